"""Lookups over HTTP with JSON that wait at the same time: read together, answered one by one."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.serving.http import gathering
from featurestore.testing.valkey import wait_until
from tests.integration.http_front import Fronts, held_store

INSTANT = "2000-01-01T00:00:00Z"


def lookup(*users, **fields):
    return {"features": ["users:score"], "entity_rows": [{"user": u} for u in users], **fields}


pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    begun = []

    def start(**settings):
        begun.append(Fronts(**settings))
        return begun[-1]

    yield start
    for fronts in begun:
        fronts.stop()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(16) as threads:
        yield threads


def gather(fronts, threads, bodies):
    """Ask these while a first lookup is being read; return it, then their answers to come."""
    first = threads.submit(fronts.look_up, lookup(1))
    wait_until(lambda: fronts.reads, what="the first lookup to be read")
    rest = [threads.submit(fronts.look_up, body) for body in bodies]
    front = fronts.server._front
    wait_until(lambda: front._gathering.held == 1 + len(bodies), what="the calls to be taken")
    return first, rest


def test_they_are_read_together_and_answered_one_by_one(start, threads):
    fronts = start()
    bodies = [
        lookup(1),
        lookup(4),
        lookup(2, 1),
        {"features": ["no"], "entity_rows": [{"user": 1}]},
    ]
    bodies += [b"{", lookup("x"), lookup(1, as_of=INSTANT), lookup(*range(1, 130))]
    with held_store(fronts):
        first, rest = gather(fronts, threads, bodies)
        fronts.open.set()
        assert first.result().json["values"] == {"score": [0.5]}
        one, missing, two, unknown, broken, text, early, many = [f.result() for f in rest]
    assert one.json["values"] == {"score": [0.5]}
    assert missing.json["statuses"] == {"score": ["NOT_FOUND"]}
    assert two.json["values"] == {"score": [None, 0.5]}
    assert [each.status for each in (unknown, broken, text, early)] == [404, 400, 400, 400]
    assert early.error["code"] == "OUT_OF_RANGE"
    assert many.json["values"]["score"][0] == 0.5
    # The first, those that can be read, and the one that has too many rows for company.
    assert sorted(fronts.reads) == [1, 5, 129]
    answered = [heard for heard in fronts.recorder.heard if heard[0] == "answered"]
    ended = [heard[2] for heard in fronts.recorder.heard if heard[0] == "ended"]
    assert len(answered) == 5
    assert len(ended) == 9
    assert ended.count("OK") == 5


def test_a_store_that_is_gone_is_told_to_all_of_them(start, threads):
    fronts = start()
    with held_store(fronts):
        first, rest = gather(fronts, threads, [lookup(1)] * 3)

        def fail(*_, **__):
            raise OnlineStoreUnavailableError("The store is gone.")

        fronts.served.store.read = fail
        fronts.open.set()
        assert first.result().status == 200
        assert [each.result().status for each in rest] == [503] * 3


def test_too_many_are_refused_at_once(start, threads):
    fronts = start(max_concurrent_requests=3, threads=1)
    with held_store(fronts):
        first, rest = gather(fronts, threads, [lookup(1)] * 2)
        refused = fronts.look_up(lookup(1))
        assert refused.status == 429
        assert refused.error["code"] == "RESOURCE_EXHAUSTED"
        fronts.open.set()
        assert [each.result().status for each in (first, *rest)] == [200] * 3
    assert fronts.look_up(lookup(1)).status == 200


def test_who_goes_away_is_not_read_for(start, threads):
    fronts = start()
    with held_store(fronts):
        first, _ = gather(fronts, threads, [])
        body = b'{"features": ["users:score"], "entity_rows": [{"user": 2}]}'
        head = "POST /v1/get-online-features HTTP/1.1\r\nhost: x\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
            connection.sendall(head.encode() + body)
            wait_until(
                lambda: fronts.server._front._gathering.held == 2, what="the call to be taken"
            )
        late = threads.submit(fronts.look_up, lookup(1), {"x-request-timeout": "0.05"})
        assert late.result().status == 504
        fronts.open.set()
        assert first.result().status == 200
        wait_until(lambda: fronts.server._front._gathering.held == 0, what="the calls to end")
    assert fronts.reads == [1]
    ended = [heard[2] for heard in fronts.recorder.heard if heard[0] == "ended"]
    assert sorted(ended) == ["CANCELLED", "DEADLINE_EXCEEDED", "OK"]
