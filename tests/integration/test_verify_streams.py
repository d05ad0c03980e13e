"""Verification of streams: what had been applied is compared, no more and no less (laws V1, V2)."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Aggregate, Entity, FeatureStore, FeatureView, FileSource, StreamSource
from featurestore.clock import Clock, FixedClock, SystemClock
from featurestore.compile.declared import Declarations
from featurestore.errors import RequestError
from featurestore.model.settings import Settings
from featurestore.semantics.timeline import to_datetime, to_instant
from featurestore.services.verification_checking import BEHIND

NOW = datetime(2024, 3, 10, 12, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "card": pa.int64(), "at": INSTANT, "amount": pa.float64()})
CARDS = 5


def definitions() -> Declarations:
    """Sums over a stream of payments."""
    history = FileSource(
        name="history", path="history.parquet", event_timestamp="at", event_id="id"
    )
    payments = StreamSource(name="payments", batch=history, stream="lmdb:streams/payments")
    card = Entity(name="card", join_keys=["card"])
    spend = FeatureView(
        name="spend",
        entities=[card],
        source=payments,
        features=[
            Aggregate("sum", column="amount", windows=["1h", "lifetime"]),
            Aggregate("last_k", column="amount", k=3, windows=["1h"], name="latest"),
        ],
    )
    last = FeatureView(name="last", entities=[card], source=payments, features=["amount"])
    return Declarations.of(spend, last)


def open_store(
    folder: Path, clock: Clock, *, online: str = "lmdb:online", offline: str = "offline"
) -> FeatureStore:
    """Open the repository; stores with other URLs see another half of it."""
    settings = Settings(
        project="cards",
        registry={"url": "sqlite:///registry.db"},
        offline={"path": offline, "threads": 1, "workers": 1},
        online={"url": online},
        streams={"flush_seconds": 0.2, "log_seconds": 0.5},
    )
    return FeatureStore(folder, settings=settings, clock=clock)


def payment(number: int, at: datetime) -> dict[str, Any]:
    """Return an event."""
    amount = [0.1, 0.2, 1e16, -1e16, 7.25][number % 5]
    return {"id": f"p{number}", "card": number % CARDS, "at": at, "amount": amount}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([], SCHEMA), tmp_path / "history.parquet")
    return tmp_path


def deliver(store: FeatureStore, numbers: range) -> None:
    """Push payments of the last minutes and take them everywhere."""
    events = [payment(n, NOW - timedelta(seconds=600 - n)) for n in numbers]
    store.push("payments", pa.Table.from_pylist(events, SCHEMA))
    store.services.ingestor("test").run(until_idle=True)


def test_a_table_that_is_ahead_is_read_as_far_as_was_applied(folder: Path) -> None:
    clock = FixedClock(to_instant(NOW))
    with ExitStack() as opened:
        first = opened.enter_context(open_store(folder, clock))
        first.apply(definitions())
        deliver(first, range(40))
        # The same tables, and online values somewhere else: these get what comes next.
        second = opened.enter_context(open_store(folder, clock, online="memory:"))
        deliver(second, range(40, 97))
        ahead = second.verify(["spend"], as_of=NOW)
        behind = first.verify(["spend"], as_of=NOW)
        rows = pa.table({"card": [1], "event_timestamp": pa.array([NOW], INSTANT)})
        whole = first.get_historical_features(rows, ["spend:amount_sum_1h"]).to_arrow()
        served = first.get_online_features(["spend:amount_sum_1h"], [{"card": 1}], as_of=NOW)
    assert (behind.compared, behind.different) == (CARDS * 3, 0)
    assert behind.not_comparable == {}
    assert served.to_dict()["amount_sum_1h"] != whole["amount_sum_1h"].to_pylist()
    # What `second` was not given it does not have: its answers are of a part of the events.
    assert ahead.different > 0


def test_a_table_that_is_behind_is_waited_for_and_then_told(folder: Path) -> None:
    clock = FixedClock(to_instant(NOW))
    with ExitStack() as opened:
        store = opened.enter_context(open_store(folder, clock))
        store.apply(definitions())
        deliver(store, range(30))
        other = opened.enter_context(open_store(folder, clock, offline="elsewhere"))
        other.services.verifier._patience = 0.3
        with pytest.raises(RequestError, match="Nothing was compared") as caught:
            other.verify(["spend"], as_of=NOW, entities=[{"card": 1}, {"card": 2}])
        assert BEHIND in (caught.value.got or "")
        mixed = other.verify(["spend", "last"], as_of=NOW, entities=[{"card": 1}, {"card": 77}])
    # A card that nobody knows is the same everywhere.
    assert (mixed.compared, mixed.different) == (4, 0)
    assert mixed.not_comparable == {BEHIND: 4}


def test_nothing_differs_while_events_come_in(folder: Path) -> None:
    clock, chance = SystemClock(), random.Random(3)  # noqa: S311
    over = threading.Event()
    with ExitStack() as opened:
        store = opened.enter_context(open_store(folder, clock))
        store.apply(definitions())
        ingestor = store.services.ingestor("live")
        thread = threading.Thread(target=ingestor.run)
        thread.start()
        opened.callback(thread.join)
        opened.callback(ingestor.stop)

        def push() -> None:
            number = 0
            while not over.wait(0.02):
                at = to_datetime(clock.now_us() - chance.choice([0, 1, 10_000_000]))
                events = [payment(n, at) for n in range(number, number + 7)]
                store.push("payments", pa.Table.from_pylist(events, SCHEMA))
                number += 6  # one of them comes again, at another instant

        pusher = threading.Thread(target=push)
        pusher.start()
        opened.callback(pusher.join)
        opened.callback(over.set)
        keys = [{"card": n} for n in range(CARDS)]
        reports = [store.verify(["spend", "last"], entities=keys) for _ in range(4)]
    assert [report.differences for report in reports] == [()] * 4
    assert sum(report.present for report in reports) > CARDS
