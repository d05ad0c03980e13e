"""The log lines of calls: which calls get one, what stands in it, and how often."""

from __future__ import annotations

import pytest
from structlog.testing import CapturingLogger

from featurestore.clock import FixedClock
from featurestore.errors import OnlineStoreUnavailableError, OverloadedError, RequestError
from featurestore.serving.call_log import CallLog
from featurestore.serving.security.calls import Call
from tests.served import NOW_US


class Logged:
    def __init__(self, slow_seconds=0.0):
        self.clock = FixedClock(NOW_US)
        self.log = CapturingLogger()
        self.calls = CallLog(slow_seconds, self.clock, self.log)

    def end(self, status, error=None, seconds=0.0, call_id="mine"):
        call = Call("GetOnlineFeatures", [("x-request-id", call_id)])
        call.begun, call.rows = self.clock.monotonic(), 7
        self.clock.advance(int(seconds * 1e6))
        self.calls.ended(call, status, error)

    def lines(self):
        return [{"event": line.args[0], **line.kwargs} for line in self.log.calls]


def test_slow_calls_are_logged_whatever_their_status():
    logged = Logged(slow_seconds=0.5)
    logged.end("OK", seconds=0.5)
    logged.end("OK", seconds=0.75)
    logged.end("NOT_FOUND", RequestError("no"), seconds=1)
    lines = logged.lines()
    assert lines[0] == {
        "event": "slow call",
        "request_id": "mine",
        "method": "GetOnlineFeatures",
        "rows": 7,
        "status": "OK",
        "latency_ms": 750.0,
    }
    assert [line["status"] for line in lines] == ["OK", "NOT_FOUND"]


def test_without_a_limit_no_call_is_slow():
    logged = Logged()
    logged.end("OK", seconds=10_000)
    assert logged.lines() == []


@pytest.mark.parametrize("status", ["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_failures_of_the_server_carry_the_id_of_the_call(status):
    logged = Logged()
    logged.end(status, OnlineStoreUnavailableError("It is gone.", where="the store"))
    (line,) = logged.lines()
    assert (line["event"], line["request_id"], line["status"]) == ("call failed", "mine", status)
    assert (line["error"], line["where"]) == ("It is gone.", "the store")


def test_a_call_that_was_shed_is_told_as_such():
    logged = Logged()
    logged.end("RESOURCE_EXHAUSTED", OverloadedError("full"))
    assert logged.lines()[0]["event"] == "call shed"


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"])
def test_what_the_caller_did_wrong_is_not_logged(status):
    logged = Logged()
    logged.end(status, RequestError("no"))
    logged.end("CANCELLED")
    assert logged.lines() == []


def test_a_failure_that_repeats_is_told_once_a_second_with_how_many_were_left_out():
    logged = Logged()
    gone = OnlineStoreUnavailableError("gone")
    for _ in range(10):
        logged.end("UNAVAILABLE", gone, seconds=0.05)
    logged.end("RESOURCE_EXHAUSTED", OverloadedError("full"))
    logged.clock.advance(1_000_000)
    logged.end("UNAVAILABLE", gone, call_id="later")
    lines = logged.lines()
    assert [line["event"] for line in lines] == ["call failed", "call shed", "call failed"]
    assert (lines[0]["left_out"], lines[2]["left_out"]) == (0, 9)
    assert lines[2]["request_id"] == "later"
