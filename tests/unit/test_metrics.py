"""Metrics without a network: what is counted, in whose slots, and what Prometheus reads of it."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.clock import FixedClock
from featurestore.errors import (
    OnlineStoreUnavailableError,
    OverloadedError,
    RequestError,
    SettingsError,
)
from featurestore.services.freshness import ViewFreshness
from featurestore.serving.metrics import board as boards
from featurestore.serving.metrics import families, gathering
from featurestore.serving.metrics.board import Board, add_up, is_abandoned, lasting, read_board
from featurestore.serving.metrics.exposition import MetricsServer, _Collector
from featurestore.serving.metrics.families import FAMILIES
from featurestore.serving.metrics.gathering import Gathering, new_board, shared_folder
from featurestore.serving.metrics.recorder import Metrics
from featurestore.serving.observing import Condition
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.watched_store import WatchedStore
from tests.served import CODE, HOUR_US, NOW_US, Served, on_demand, select, state, view
from tests.stated import deliver, earliest
from tests.windowed import make_case

USERS = view("users", {"user": "int64"}, {"score": "float64", "name": "string"}, ttl_us=HOUR_US)
WIDE = view("wide", {"user": "int64"}, {f"f{i}": "float64" for i in range(9)})
ECHO = on_demand("echo", [select("users", "score")], {"same": "float64"})
STATE = state(
    [USERS, WIDE],
    [ECHO],
    {"all": [select("users", "score", "name"), select("wide", "f0", "f8")]},
)


def echo(inputs):
    return inputs.select(same="score")


class Counted:
    """A project whose lookups are counted."""

    def __init__(self, board=None):
        self.board = board or Board()
        self.served = Served(STATE, {"echo": (echo, CODE)})
        self.served.push(
            USERS,
            ((1,), NOW_US - 2_000_000, (0.5, "one")),
            ((2,), NOW_US - 1, (None, "two")),
            ((3,), NOW_US - 2 * HOUR_US, (1.5, None)),
        )
        self.served.push(WIDE, ((1,), NOW_US, (None,) + (1.0,) * 8))
        self.clock = FixedClock(NOW_US)
        self.metrics = Metrics(self.board, self.served.reader, self.clock)

    def look_up(self, features, rows, status="OK", method="GetOnlineFeatures", seconds=0.0):
        call = Call(method, ())
        call.begun = self.clock.monotonic()
        self.metrics.begun(call)
        answer = self.served.read(features, rows)
        asked = ReadRequest(features, answer, None, None, full_feature_names=False, sent={})
        self.metrics.answered(call, asked, answer)
        self.clock.advance(int(seconds * 1e6))
        self.metrics.ended(call, status, None)
        return answer

    def end(self, status, error=None, method="GetOnlineFeatures", source=None, rows=0):
        call = Call(method, ())
        call.begun, call.source, call.rows = self.clock.monotonic(), source, rows
        self.metrics.begun(call)
        self.metrics.ended(call, status, error)

    def samples(self):
        return samples(self.board.read)


def samples(read):
    """Return {(sample, labels): value} as Prometheus reads them."""
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(prometheus_client, read))
    text = prometheus_client.generate_latest(registry).decode()
    return {
        (sample.name.removeprefix("featurestore_"), tuple(sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found, name, **labels):
    return found.get((name, tuple(sorted(labels.items()))))


def statuses(found, of_view):
    names = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
    return [of(found, "values_total", view=of_view, status=name) for name in names]


@pytest.mark.parametrize(
    ("keys", "users", "wide"),
    [
        ([1], [2, None, None, None], [1, 1, None, None]),
        ([2], [1, 1, None, None], [None, None, 2, None]),
        ([3], [None, None, None, 2], [None, None, 2, None]),
        ([9], [None, None, 2, None], [None, None, 2, None]),
        ([1, 2, 3, 9] * 5, [15, 5, 10, 10], [5, 5, 30, None]),
        ([1] * 9, [18, None, None, None], [9, 9, None, None]),
        ([], [None, None, None, None], [None, None, None, None]),
    ],
)
def test_values_are_counted_by_view_and_status(keys, users, wide):
    counted = Counted()
    answer = counted.look_up("all", {"user": keys})
    found = counted.samples()

    def shown(numbers):
        return [None if n == 0 else n for n in numbers]

    assert shown(statuses(found, "users")) == users
    assert shown(statuses(found, "wide")) == wide
    # The same as the answer itself says, value by value.
    for name, number in zip(("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"), users,
                            strict=True):  # fmt: skip
        told = sum(answer.statuses[f].count(name) for f in ("score", "name"))
        assert told == (number or 0)


def test_only_the_features_that_are_asked_for_are_counted():
    counted = Counted()
    counted.look_up(["wide:f0"], {"user": [1]})
    counted.look_up(["wide:f1", "wide:f2"], {"user": [1, 1]})
    assert statuses(counted.samples(), "wide")[:2] == [4, 1]


def test_an_on_demand_view_has_values_and_nulls_and_no_staleness():
    counted = Counted()
    counted.look_up(["echo"], {"user": [1, 2, 1]})
    found = counted.samples()
    assert statuses(found, "echo")[:2] == [2, 1]
    assert of(found, "staleness_seconds_count", view="echo") is None


def test_staleness_is_that_of_the_newest_event_found():
    counted = Counted()
    counted.look_up(["users:score"], {"user": [1]})
    counted.look_up(["users:score"], {"user": [1, 3, 9]})
    counted.look_up(["users:score"], {"user": [9]})
    counted.look_up(["users:score"], {"user": [9, 9]})
    found = counted.samples()
    assert of(found, "staleness_seconds_count", view="users") == 2
    assert of(found, "staleness_seconds_sum", view="users") == pytest.approx(4.0)
    assert of(found, "staleness_seconds_bucket", view="users", le="1.0") == 0
    assert of(found, "staleness_seconds_bucket", view="users", le="5.0") == 2


def test_calls_are_counted_timed_and_in_flight():
    counted = Counted()
    counted.look_up("all", {"user": [1, 2, 3]}, seconds=0.003)
    counted.look_up("all", {"user": [1]}, seconds=30)
    counted.end("INVALID_ARGUMENT", RequestError("no"))
    counted.metrics.begun(Call("Push", ()))
    found = counted.samples()
    get = {"method": "GetOnlineFeatures"}
    assert of(found, "requests_total", status="OK", **get) == 2
    assert of(found, "requests_total", status="INVALID_ARGUMENT", **get) == 1
    assert of(found, "request_seconds_sum", **get) == pytest.approx(30.003)
    buckets = {
        le: of(found, "request_seconds_bucket", le=le, **get)
        for le in ("0.0025", "0.005", "10.0", "+Inf")
    }
    assert buckets == {"0.0025": 1, "0.005": 2, "10.0": 2, "+Inf": 3}
    assert of(found, "requests_in_flight") == 1
    assert of(found, "answers_total", service="all") == 2
    assert of(found, "request_entities_sum") == 4
    assert of(found, "request_entities_bucket", le="1.0") == 1
    assert of(found, "request_entities_bucket", le="5.0") == 2


def test_requests_that_were_resolved_before_are_hits():
    counted = Counted()
    for features in ("all", "all", ["users:score"], "all"):
        counted.look_up(features, {"user": [1]})
    found = counted.samples()
    assert of(found, "plans_total", result="miss") == 2
    assert of(found, "plans_total", result="hit") == 2


def test_each_round_trip_to_the_store_is_timed_and_failures_counted():
    counted = Counted()
    counted.look_up("all", {"user": [1]})
    counted.look_up("all", {"user": [1, 2]})
    found = counted.samples()
    assert of(found, "store_read_seconds_count", operation="read") == 2
    assert of(found, "store_failures_total", error="OnlineStoreUnavailableError") is None

    def fail(*_, **__):
        raise OnlineStoreUnavailableError("gone")

    counted.served.reader._online._read = fail
    with pytest.raises(OnlineStoreUnavailableError):
        counted.served.read("all", {"user": [1]})
    found = counted.samples()
    assert of(found, "store_read_seconds_count", operation="read") == 3
    assert of(found, "store_failures_total", error="OnlineStoreUnavailableError") == 1


def test_calls_that_were_refused_at_once_are_counted_by_why():
    counted = Counted()
    alone = OnlineStoreUnavailableError("left alone")
    alone.retry_seconds = 1.0
    counted.end("RESOURCE_EXHAUSTED", OverloadedError("full"))
    counted.end("UNAVAILABLE", alone)
    counted.end("UNAVAILABLE", OnlineStoreUnavailableError("failed"))
    found = counted.samples()
    assert of(found, "shed_requests_total", reason="queue") == 1
    assert of(found, "shed_requests_total", reason="breaker") == 1


def condition(project, **changes):
    told = {"store_up": True, "breaker_open": False, "freshness": {}, "newest_served": {}}
    return Condition(state=project, **{**told, **changes})


def test_the_condition_of_the_server_is_shown_and_what_is_gone_is_not():
    counted = Counted()
    fresh = ViewFreshness(materialized_until_us=NOW_US, materialized_at_us=NOW_US + 5_000_000)
    counted.metrics.watched(
        condition(
            STATE.model_copy(update={"revision": 3}),
            freshness={"users": fresh, "wide": ViewFreshness()},
            newest_served={"users": NOW_US - 1_500_000},
        )
    )
    found = counted.samples()
    assert of(found, "definitions_revision") == 3
    assert of(found, "online_store_up") == 1
    assert of(found, "breaker_open") == 0
    assert of(found, "processes") == 1
    assert of(found, "view_info", view="users", fingerprint=USERS.fingerprint) == 1
    assert of(found, "view_info", view="echo", fingerprint=ECHO.fingerprint) == 1
    at = NOW_US / 1e6
    assert of(found, "materialized_until_timestamp_seconds", view="users") == at
    assert of(found, "materialized_timestamp_seconds", view="users") == at + 5
    assert of(found, "newest_event_timestamp_seconds", view="users") == at - 1.5
    assert of(found, "materialized_until_timestamp_seconds", view="wide") is None
    changed = view("users", {"user": "int64"}, {"score": "float64"}, version="2")
    counted.metrics.watched(condition(state([changed]), store_up=False, breaker_open=True))
    found = counted.samples()
    assert of(found, "view_info", view="users", fingerprint=USERS.fingerprint) is None
    assert of(found, "view_info", view="wide", fingerprint=WIDE.fingerprint) is None
    assert of(found, "view_info", view="users", fingerprint=changed.fingerprint) == 1
    assert of(found, "online_store_up") == 0
    assert of(found, "breaker_open") == 1


def test_pushes_are_counted_by_sources_that_exist():
    counted = Counted()
    source = USERS.source.model_copy(update={"name": "clicks", "stream": "memory:clicks"})
    live = USERS.model_copy(update={"source": source})
    counted.metrics.watched(condition(state([live, WIDE])))
    counted.end("OK", method="Push", source="clicks", rows=5)
    counted.end("OK", method="Push", source="clicks", rows=2)
    counted.end("INVALID_ARGUMENT", RequestError("no"), "Push", "clicks", 3)
    counted.end("NOT_FOUND", RequestError("no"), "Push", "my secret", 1)
    found = counted.samples()
    assert of(found, "pushed_rows_total", source="clicks", status="OK") == 7
    assert of(found, "pushed_rows_total", source="clicks", status="INVALID_ARGUMENT") == 3
    assert of(found, "pushed_rows_total", source="other", status="NOT_FOUND") == 1


def test_nothing_that_a_caller_writes_becomes_a_label():
    counted = Counted()
    for number in range(50):
        counted.end(f"STATUS{number}", method=f"Method{number}", source=f"source{number}")
    text = str(counted.samples())
    for word in ("STATUS", "Method", "source1"):
        assert word not in text
    assert of(counted.samples(), "requests_total", method="other", status="other") == 50


def test_every_metric_is_well_formed_by_the_conventions():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert bool(family.bounds) == (family.kind == "histogram")
        assert list(family.bounds) == sorted(set(family.bounds))
        assert family.help.endswith(".")
    assert families.SECONDS.bounds[0] == 0.0001
    assert families.SECONDS.bounds[-1] == 10.0


def test_threads_lose_no_count():
    counted = Counted()
    answer = counted.look_up("all", {"user": [1]})

    def work():
        for _ in range(500):
            counted.metrics.answered(Call("GetOnlineFeatures", ()), None, answer)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counted.samples()
    assert of(found, "answers_total", service="all") == 2001
    assert statuses(found, "users")[0] == 4002


def test_a_board_in_a_file_reads_as_the_one_in_memory(tmp_path):
    path = tmp_path / "1.board"
    in_file, in_memory = Counted(Board(path)), Counted()
    for counted in (in_file, in_memory):
        counted.look_up("all", {"user": [1, 2, 9]})
        counted.metrics.watched(condition(STATE))
    held = samples(lambda: read_board(path))
    times = [key for key in held if key[0].startswith("store_read_seconds_")]
    assert len(times) > 10
    assert {k: v for k, v in held.items() if k not in times} == {
        k: v for k, v in in_memory.samples().items() if k not in times
    }
    in_file.metrics.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_series_for_which_there_is_no_room_touch_no_other(monkeypatch):
    monkeypatch.setattr(boards, "_SLOTS", 40)
    board = Board()
    kept = board.place(families.REQUESTS, "GetOnlineFeatures", "OK")
    lost = [board.place(families.STALENESS, f"view{i}") for i in range(10)]
    for place in lost[2:]:
        board.values[place + families.STALENESS.size - 1] += 7
    board.values[kept] += 1
    found = board.read()
    assert found[families.REQUESTS, ("GetOnlineFeatures", "OK")] == [1.0]
    assert sum(map(sum, found.values())) == 1.0


def test_processes_add_up_by_the_kind_of_each_metric():
    one = {(families.REVISION, ()): [3.0], (families.IN_FLIGHT, ()): [2.0],
           (families.NEWEST_EVENT, ("v",)): [7.0], (families.ENTITIES, ()): [1.0, 1.0]}  # fmt: skip
    two = {(families.REVISION, ()): [4.0], (families.IN_FLIGHT, ()): [1.0],
           (families.NEWEST_EVENT, ("v",)): [5.0], (families.ENTITIES, ()): [5.0, 2.0]}  # fmt: skip
    assert add_up([one, two, {}]) == {
        (families.REVISION, ()): [3.0],
        (families.IN_FLIGHT, ()): [3.0],
        (families.NEWEST_EVENT, ("v",)): [7.0],
        (families.ENTITIES, ()): [6.0, 3.0],
    }
    assert list(lasting(one)) == [(families.ENTITIES, ())]


def test_a_worker_that_ends_leaves_its_counts_and_not_its_gauges(tmp_path):
    gathered = Gathering(tmp_path)
    first, second = new_board(tmp_path), new_board(tmp_path)
    for board in (first, second):
        board.values[board.place(families.REQUESTS, "Push", "OK")] += 5
        board.values[board.place(families.IN_FLIGHT)] += 1
    one = {(families.REQUESTS, ("Push", "OK")): [10.0], (families.IN_FLIGHT, ()): [2.0]}
    assert gathered.read() == one
    first.close()
    after = {(families.REQUESTS, ("Push", "OK")): [10.0], (families.IN_FLIGHT, ()): [1.0]}
    assert gathered.read() == after
    assert len(list(tmp_path.iterdir())) == 1
    assert gathered.read() == after
    second.close()
    assert gathered.read() == {(families.REQUESTS, ("Push", "OK")): [10.0]}
    gathered.close()


def test_the_shared_folder_is_private_and_goes_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering.tempfile, "gettempdir", lambda: str(tmp_path))
    with shared_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not is_abandoned(folder / "supervisor.lock")
        with shared_folder() as other:
            assert other != folder
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_supervisor_that_was_killed_is_found_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(gathering.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / "featurestore-metrics-left"
    left.mkdir()
    (left / "supervisor.lock").touch()
    begun = tmp_path / "featurestore-metrics-begun"
    begun.mkdir()
    with shared_folder():
        assert not left.exists()
        # Another supervisor may be making it just now.
        assert begun.exists()


def test_a_disk_without_room_is_told_at_the_start(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Board(tmp_path / "x.board")


def test_an_address_that_is_taken_is_told():
    server = MetricsServer("127.0.0.1:0", dict, whole=True)
    try:
        with pytest.raises(SettingsError) as caught:
            MetricsServer(server.address, dict, whole=True)
        assert caught.value.where == "serving.metrics_address"
        with pytest.raises(SettingsError):
            MetricsServer("nonsense", dict, whole=True)
    finally:
        server.close()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(SettingsError) as caught:
        MetricsServer("127.0.0.1:0", dict, whole=True)
    assert "featurestore[metrics]" in caught.value.hint


def test_what_wraps_a_store_hides_nothing_of_it():
    counted = Counted()
    store = counted.served.reader._online
    assert isinstance(store, WatchedStore)
    store.ping()
    assert store.count(b"x" * 8) == 0
    found, rows = store.read_states([], [b"k"])
    assert (found, rows) == ([], [None])
    reads = counted.samples()
    assert of(reads, "store_read_seconds_count", operation="read_states") == 1


def test_methods_that_are_counted_are_those_of_the_protocol():
    counted = Counted()
    for method in pb.DESCRIPTOR.services_by_name["FeatureServing"].methods:
        counted.end("OK", method=method.name)
        assert of(counted.samples(), "requests_total", method=method.name, status="OK") == 1


def test_staleness_buckets_reach_from_a_second_to_a_quarter():
    bounds = families.STALENESS.bounds
    assert (bounds[0], bounds[-1]) == (1.0, timedelta(days=90).total_seconds())


def test_an_aggregated_view_has_values_and_no_staleness():
    case = make_case(3, features=4)
    store = MemoryOnlineStore()
    deliver(case, store, 3, (2, 2))
    served = Served(state([case.view]), store=store)
    served.clock.set(earliest(case))
    board = Board()
    metrics = Metrics(board, served.reader, FixedClock(0))
    (key,), instant = max(case.asked, key=lambda asked: asked[1])
    answer = served.read(["view"], {"key": [key, None, 99]}, as_of=instant)
    metrics.answered(Call("GetOnlineFeatures", ()), None, answer)
    found = samples(board.read)
    told = [status for feature in answer.statuses.values() for status in feature]
    for number, name in enumerate(("PRESENT", "NULL_VALUE", "NOT_FOUND")):
        assert (statuses(found, "view")[number] or 0) == told.count(name), name
    assert told.count("NOT_FOUND") == 4
    assert not any(name.startswith("staleness") for name, _ in found)
    assert of(found, "store_read_seconds_count", operation="read_states") >= 1
