"""Aggregated views online: statuses, round trips, refusals, what had been applied, explanations."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.plan import AggregatePlan, Column, FeaturePlan, ViewPlan
from featurestore.errors import (
    AsOfBeforeRowError,
    DataError,
    FeatureNotFoundError,
    OnlineStoreUnavailableError,
    RequestError,
)
from featurestore.ports.online import VERSION, StateChange
from featurestore.semantics.windows import DAY, HOUR, MINUTE, SECOND
from featurestore.services.state_explaining import explain_window
from featurestore.services.states import Applied, StateWriter
from tests.served import CODE, NOW, NOW_US, PROJECT, Served, on_demand, select, state, view
from tests.stated import fields_of, log_table, state_key
from tests.windowed import Row

AGGREGATES = {
    "trips_1h": ("count", None, HOUR, MINUTE, "int64"),
    "trips_1d": ("count", None, DAY, HOUR, "int64"),
    "paid_1d": ("sum", 0, DAY, HOUR, "float64"),
    "paid_or_0_1d": ("sum", 0, DAY, HOUR, "float64"),
    "places_1d": ("last_k", 1, DAY, HOUR, "list<string>"),
    "kinds_1d": ("histogram", 1, DAY, HOUR, "map<string, int64>"),
}


def windowed() -> ViewPlan:
    """Return a view with these aggregates."""
    return view("rides", {"user": "int64"}, {}).model_copy(
        update={
            "join_keys": (Column(name="user", dtype="int64"),),
            "features": tuple(FeaturePlan(name=n, dtype=a[4]) for n, a in AGGREGATES.items()),
            "inputs": (
                FeaturePlan(name="_input_0", dtype="float64"),
                FeaturePlan(name="_input_1", dtype="string"),
            ),
            "aggregates": tuple(
                AggregatePlan(
                    function=function,
                    input=source,
                    size=window,
                    hop=hop,
                    k=2 if function == "last_k" else None,
                    default=0.0 if "or_0" in name else None,
                )
                for name, (function, source, window, hop, _) in AGGREGATES.items()
            ),
        }
    )


RIDES = windowed()
USERS = view("users", {"user": "int64"}, {"score": "float64"})
DOUBLED = on_demand("doubled", [select("rides", "trips_1d")], {"twice": "int64"})


def double(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(twice=pl.col("trips_1d") * 2)


class SpyStore(MemoryOnlineStore):
    """Remembers round trips."""

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[tuple[str, int, int]] = []

    def read(self, keys, *, timeout=None):
        self.trips.append(("read", 0, len(keys)))
        return super().read(keys, timeout=timeout)

    def read_states(self, reads, rows=(), *, timeout=None):
        self.trips.append(("read_states", len(reads), len(rows)))
        return super().read_states(reads, rows, timeout=timeout)


def ride(user: int, name: str, ago: int, *values: Any, version: int = 1, **more: Any) -> Row:
    paid, place = values or (1.0, "x")
    return Row(user, name, version, NOW_US - ago, None, more.get("deleted", False), (paid, place))


RIDES_ROWS = [
    ride(1, "a", 10 * MINUTE, 2.5, "home"),
    ride(1, "b", 5 * HOUR, 4.0, "work"),
    ride(1, "c", 5 * HOUR, None, "home"),
    ride(1, "d", -HOUR, 100.0, "later"),
    ride(1, "e", 0, 100.0, "now"),
    ride(2, "a", 3 * DAY, 1.0, "old"),
]


@pytest.fixture
def store() -> SpyStore:
    return SpyStore()


@pytest.fixture
def served(store: SpyStore) -> Served:
    wanted = state((RIDES, USERS), on_demand=[DOUBLED])
    served = Served(wanted, {"doubled": (double, CODE)}, store)
    served.push(USERS, ((1,), NOW_US - 1, (0.5,)))
    return served


def apply(
    store: MemoryOnlineStore, rows: list[Row], plan: ViewPlan = RIDES, **sizes: int
) -> Applied:
    return StateWriter(PROJECT, store, **sizes).apply(plan, log_table(plan, rows), NOW_US)


def test_w2_w6_values_statuses_and_instants(served, store):
    apply(store, RIDES_ROWS)
    answer = served.read([f"rides:{name}" for name in AGGREGATES], {"user": [1, 2, 3, None, 1]})
    assert answer.to_dict() == {
        "user": [1, 2, 3, None, 1],
        "trips_1h": [1, 0, 0, None, 1],
        "trips_1d": [3, 0, 0, None, 3],
        "paid_1d": [6.5, None, None, None, 6.5],
        "paid_or_0_1d": [6.5, 0.0, 0.0, None, 6.5],
        "places_1d": [["home", "home"], [], [], None, ["home", "home"]],
        "kinds_1d": [{"home": 2, "work": 1}, {}, {}, None, {"home": 2, "work": 1}],
    }
    assert answer.statuses["paid_1d"] == [
        "PRESENT", "NULL_VALUE", "NULL_VALUE", "NOT_FOUND", "PRESENT",
    ]  # fmt: skip
    assert answer.event_timestamps["trips_1h"] == [NOW, NOW, NOW, None, NOW]
    assert answer.as_of == NOW


def test_events_ahead_count_when_their_time_has_come(served, store):
    apply(store, RIDES_ROWS)
    later = NOW + timedelta(hours=1, microseconds=1)
    answer = served.read(["rides:trips_1h", "rides:paid_1d"], {"user": [1]}, as_of=later)
    assert answer.to_dict() == {"user": [1], "trips_1h": [2], "paid_1d": [206.5]}
    served.clock.advance(1)
    assert served.read(["rides:trips_1h"], {"user": [1]}).to_dict()["trips_1h"] == [2]


def test_one_round_trip_for_states_and_rows(served, store):
    apply(store, RIDES_ROWS)
    store.trips.clear()
    rows = {"user": [1, 2, 1, None]}
    answer = served.read(["users:score", "rides:trips_1h", "doubled:twice"], rows)
    assert store.trips == [("read_states", 2, 2)]
    assert answer.to_dict() == {
        "user": [1, 2, 1, None],
        "score": [0.5, None, 0.5, None],
        "trips_1h": [1, 0, 1, None],
        "twice": [6, 0, 6, None],
    }


def test_plain_views_alone_are_read_as_rows(served, store):
    served.read(["users:score"], {"user": [1]})
    assert store.trips == [("read", 0, 1)]


def test_nothing_is_read_where_every_key_is_null(served, store):
    answer = served.read(["rides:trips_1h"], {"user": [None]})
    assert store.trips == []
    assert answer.to_dict() == {"user": [None], "trips_1h": [None]}


def test_trees_are_learnt_and_then_read_in_one_round_trip(served, store):
    rows = [ride(1, f"{i}", i * MINUTE) for i in range(1, 60)]
    apply(store, rows, recent_rows=4, page_rows=4)
    store.trips.clear()
    for _ in range(2):
        answer = served.read(["rides:trips_1h", "rides:paid_1d"], {"user": [1]})
        assert answer.to_dict() == {"user": [1], "trips_1h": [59], "paid_1d": [59.0]}
    assert [trip[0] for trip in store.trips] == ["read_states"] * 3


def test_a_newer_row_shifts_the_instant_of_windows_too(served, store):
    """The answer has one instant; a tree is read again for it."""
    rows = [ride(1, f"{i}", i * SECOND) for i in range(-9, 20)]
    apply(store, rows, recent_rows=2, page_rows=2)
    served.push(USERS, ((1,), NOW_US + 5 * SECOND + 1, (0.75,)))
    for _ in range(2):
        answer = served.read(["users:score", "rides:trips_1h"], {"user": [1]})
        assert answer.to_dict() == {"user": [1], "score": [0.75], "trips_1h": [19 + 1 + 5]}
        assert answer.as_of_us == NOW_US + 5 * SECOND + 1


def test_what_had_been_applied_is_told_by_partition(served, store):
    apply(store, [ride(2, "x", HOUR)])
    table = log_table(
        RIDES, [ride(1, "a", HOUR), ride(1, "b", HOUR), ride(3, "a", HOUR)], positions=True
    )
    writer = StateWriter(PROJECT, store)
    writer.apply(RIDES, table, NOW_US)
    block = served.read(["rides:trips_1h"], {"user": [1, 2, 3, 4, None]}).blocks[0]
    found = {name: [*memoryview(data).cast("q")] for name, data in block.applied.items()}
    assert found == {"p1": [1, -1, -1, -1, -1], "p3": [-1, -1, 2, -1, -1]}
    # Going back changes no position, going on changes nothing else.
    assert writer.apply(RIDES, table.slice(0, 1), NOW_US) == Applied(rows=1, changed=0)
    moved = table.slice(0, 1).set_column(7, "_position", pa.array([9], pa.int64()))
    assert writer.apply(RIDES, moved, NOW_US) == Applied(rows=1, changed=1)


def test_rows_without_a_key_are_nobodys(store):
    rows = log_table(RIDES, [ride(1, "a", HOUR)])
    none = rows.set_column(0, "user", pa.array([None], pa.int64()))
    assert StateWriter(PROJECT, store).apply(RIDES, none, NOW_US) == Applied(rows=0, changed=0)


def test_a_past_that_is_kept_is_exact_and_what_is_not_is_refused(served, store):
    apply(store, RIDES_ROWS)
    before = NOW - timedelta(minutes=30)
    answer = served.read(["rides:trips_1h", "rides:trips_1d"], {"user": [1, 3]}, as_of=before)
    assert answer.to_dict() == {"user": [1, 3], "trips_1h": [0, 0], "trips_1d": [2, 0]}
    for user in (1, 3):  # what was never seen may have been dropped as a whole
        with pytest.raises(AsOfBeforeRowError) as raised:
            served.read(["rides:trips_1d"], {"user": [user]}, as_of=NOW - timedelta(days=1))
        assert "windows from 2024-05-31T10:00:00Z or later" in str(raised.value)
    # A narrower window of the same view does not need as much.
    early = NOW - timedelta(hours=23)
    assert served.read(["rides:trips_1h"], {"user": [1]}, as_of=early).to_dict()["trips_1h"] == [0]


def test_o4_a_state_of_another_schema_is_refused(served, store):
    apply(store, RIDES_ROWS)
    header = fields_of(store, RIDES, 1)[VERSION]
    change = StateChange(state_key(RIDES, 1), header, {VERSION: b"\0" + header[1:]})
    assert store.write_states([change]) == [True]
    with pytest.raises(DataError, match="another schema"):
        served.read(["rides:trips_1h"], {"user": [1]})
    with pytest.raises(DataError, match="another schema"):
        apply(store, RIDES_ROWS)


@pytest.mark.parametrize("field", [VERSION, b"r"])
def test_a_state_that_is_cut_short_is_refused(served, store, field):
    apply(store, RIDES_ROWS)
    fields = fields_of(store, RIDES, 1)
    cut = {VERSION: fields[VERSION][:12]} if field == VERSION else {field: fields[field][:40]}
    change = StateChange(state_key(RIDES, 1), fields[VERSION], {VERSION: fields[VERSION]} | cut)
    assert store.write_states([change]) == [True]
    with pytest.raises(DataError, match="damaged"):
        served.read(["rides:paid_1d", "rides:places_1d"], {"user": [1]})


class LosingStore(MemoryOnlineStore):
    """Somebody else is always faster."""

    def write_states(self, changes):
        return [False] * len(changes)


def test_a_state_that_others_change_all_the_time_is_given_up():
    with pytest.raises(OnlineStoreUnavailableError, match="changed by others"):
        apply(LosingStore(), [ride(1, "a", HOUR)])


def test_explanations_name_window_tiles_and_events(store):
    rows = [ride(1, f"{i:02d}", i * MINUTE) for i in range(1, 60)]
    apply(store, rows, recent_rows=4, page_rows=4)
    apply(store, [ride(1, "late", 90 * MINUTE)])
    told = explain_window(store, PROJECT, RIDES, [1], "paid_1d", instant=NOW_US, now=NOW_US)
    assert (told.value, told.start, told.end) == (60.0, NOW_US - DAY, NOW_US)
    assert sum(tile.events for tile in told.tiles) + len(told.events) == 60
    assert "late" in {event.event_id for event in told.events}
    assert all(told.start <= tile.start < tile.end <= told.end for tile in told.tiles)
    assert told.tiles
    assert told.kept_from == NOW_US - DAY - 2 * HOUR
    unseen = explain_window(store, PROJECT, RIDES, [9], "trips_1h", instant=NOW_US, now=NOW_US)
    assert (unseen.value, unseen.tiles, unseen.events, unseen.applied) == (0, [], [], {})


def test_explanations_refuse_what_is_not_there(store):
    with pytest.raises(FeatureNotFoundError, match="no windowed feature"):
        explain_window(store, PROJECT, RIDES, [1], "trip_1h", instant=NOW_US, now=NOW_US)
    with pytest.raises(RequestError, match="null join key"):
        explain_window(store, PROJECT, RIDES, [None], "trips_1h", instant=NOW_US, now=NOW_US)


class RivalStore(MemoryOnlineStore):
    """Lets somebody else in at a moment, once."""

    def __init__(self, moment: str, **sizes: int) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._moment = moment
        self._sizes = sizes
        self._reads = 0

    def read_states(self, reads, rows=(), *, timeout=None):
        self._reads += bool(self.rows)
        if self._moment == "between reads" and self._reads == 2:
            self._let_in()
        return super().read_states(reads, rows, timeout=timeout)

    def write_states(self, changes):
        if self._moment == "before the write":
            self._let_in()
        return super().write_states(changes)

    def _let_in(self) -> None:
        rows, self.rows = self.rows, []
        if rows:
            apply(self, rows, **self._sizes)


@pytest.mark.parametrize("held", [0, 3, 40])
@pytest.mark.parametrize("sizes", [(4, 4), (128, 256)], ids=str)
def test_what_a_rival_writes_meanwhile_is_kept(sizes, held):
    for moment in ("between reads", "before the write"):
        rows = [ride(1, f"{i}", i * MINUTE) for i in range(1, 60)]
        store = RivalStore(moment, recent_rows=sizes[0], page_rows=sizes[1])
        apply(store, rows[:held], recent_rows=sizes[0], page_rows=sizes[1])
        store.rows = rows[held : held + 10]
        apply(store, rows[held + 5 :], recent_rows=sizes[0], page_rows=sizes[1])
        if store.rows:  # there was no second read
            apply(store, store.rows, recent_rows=sizes[0], page_rows=sizes[1])
        served = Served(state((RIDES,)), store=store)
        assert served.read(["rides:trips_1h"], {"user": [1]}).to_dict()["trips_1h"] == [59]


def test_w4_events_of_one_instant_are_ordered_by_id(served, store):
    for name in ("b", "c", "a"):
        apply(store, [ride(1, name, HOUR, 1.0, f"at {name}")])
    answer = served.read(["rides:places_1d"], {"user": [1]})
    assert answer.to_dict()["places_1d"] == [["at c", "at b"]]
