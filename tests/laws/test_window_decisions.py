"""What the laws of windows leave open and docs/semantics.md decides, a test each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Aggregate, Entity, FeatureStore, FeatureView, FileSource, StreamSource
from featurestore.clock import FixedClock
from featurestore.compile.declared import Declarations
from featurestore.model.settings import Settings

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
INSTANT = pa.timestamp("us", tz="UTC")
FEATURES = ["spend:count_1d", "spend:amount_sum_1d"]


class Shop:
    """A store with one windowed view over one file of events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FixedClock(int(NOON.timestamp() * 1_000_000))
        self.write()
        settings = Settings.model_validate(
            {"project": "shop", "online": {"url": "memory:"}, "offline": {"threads": 1}}
        )
        self.store = FeatureStore(folder, settings=settings, clock=self.clock)
        source = FileSource(
            name="payments",
            path="payments.parquet",
            event_timestamp="at",
            created_timestamp="learnt",
            event_id="id",
            version="version",
        )
        view = FeatureView(
            name="spend",
            entities=[Entity(name="card", join_keys=["card"])],
            source=source,
            features=[
                Aggregate("count", windows=["1d"]),
                Aggregate("sum", column="amount", windows=["1d"]),
            ],
        )
        self.store.apply(Declarations.of(view))

    def write(self, *events: tuple[str, int, datetime, float]) -> None:
        """Write (id, version, instant, amount) of card 1, all learnt when they happened."""
        ids, versions, instants, amounts = zip(*events, strict=True) if events else ([],) * 4
        table = pa.table(
            {
                "card": pa.array([1] * len(ids), pa.int64()),
                "id": pa.array(ids, pa.string()),
                "version": pa.array(versions, pa.int64()),
                "at": pa.array(instants, INSTANT),
                "learnt": pa.array([min(at, NOON) for at in instants], INSTANT),
                "amount": pa.array(amounts, pa.float64()),
            }
        )
        pq.write_table(table, self.folder / "payments.parquet")

    def online(self, card: int | None = 1) -> list[Any]:
        """Return count and sum at the present instant."""
        found = self.store.get_online_features(FEATURES, {"card": pa.array([card], pa.int64())})
        return [found.to_dict()[name][0] for name in ("count_1d", "amount_sum_1d")]

    def offline(self, card: int | None = 1) -> list[Any]:
        """Return the same as a training set has it."""
        now = self.clock.now_us()
        rows = pa.table(
            {
                "card": pa.array([card], pa.int64()),
                "event_timestamp": pa.array([now], pa.int64()).cast(INSTANT),
            }
        )
        found = self.store.get_historical_features(rows, FEATURES).to_arrow()
        return [found[name][0].as_py() for name in ("count_1d", "amount_sum_1d")]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    found = Shop(tmp_path)
    with found.store:
        yield found


def test_a_version_that_is_dated_ahead_takes_the_event_from_where_it_was(shop: Shop) -> None:
    shop.write(("a", 1, NOON - HOUR, 5.0), ("a", 2, NOON + HOUR, 7.0), ("b", 1, NOON - HOUR, 1.0))
    shop.store.materialize_incremental()
    assert shop.online() == shop.offline() == [1, 1.0]
    shop.clock.advance(2 * 3_600_000_000)
    assert shop.online() == shop.offline() == [2, 8.0]


def test_an_explicit_run_reads_the_versions_in_its_interval(shop: Shop) -> None:
    shop.write(("a", 1, NOON - HOUR, 5.0), ("a", 2, NOON + HOUR, 7.0))
    shop.store.materialize(NOON - 2 * HOUR, NOON)
    assert shop.online() == shop.offline() == [1, 5.0]
    shop.store.materialize_incremental()
    assert shop.online() == shop.offline() == [0, None]


def test_a_null_key_is_no_entity_and_an_unseen_one_an_empty_one(shop: Shop) -> None:
    shop.write(("a", 1, NOON - HOUR, 5.0))
    shop.store.materialize_incremental()
    assert shop.online(None) == shop.offline(None) == [None, None]
    assert shop.online(2) == shop.offline(2) == [0, None]


def test_a_value_is_dated_by_the_instant_that_was_asked_for(shop: Shop) -> None:
    """Rows that are dated ahead do not move it, as they do for newest rows."""
    shop.write(("a", 1, NOON - HOUR, 5.0), ("b", 1, NOON + HOUR, 7.0))
    shop.store.materialize_incremental()
    found = shop.store.get_online_features(FEATURES, {"card": [1]})
    assert found.as_of == NOON
    assert found.event_timestamps == {"count_1d": [NOON], "amount_sum_1d": [NOON]}
    assert found.statuses == {"count_1d": ["PRESENT"], "amount_sum_1d": ["PRESENT"]}


def test_an_event_at_the_instant_is_not_seen(shop: Shop) -> None:
    shop.write(("a", 1, NOON, 5.0), ("b", 1, NOON - HOUR, 1.0))
    shop.store.materialize_incremental()
    assert shop.online() == shop.offline() == [1, 1.0]
    shop.clock.advance(1)
    shop.store.materialize_incremental()
    assert shop.online() == shop.offline() == [2, 6.0]


class Followed:
    """A store with one windowed view over a stream whose history is a query."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("a")
        past = FileSource(
            name="past",
            query="FROM 'clicks.parquet'",
            event_timestamp="at",
            created_timestamp="at",
        )
        source = StreamSource(name="clicks", batch=past, stream="lmdb:clicks", event_id="id")
        view = FeatureView(
            name="spend",
            entities=[Entity(name="card", join_keys=["card"])],
            source=source,
            features=[Aggregate("count", windows=["1d"])],
        )
        settings = Settings.model_validate({"project": "shop", "online": {"url": "memory:"}})
        clock = FixedClock(int(NOON.timestamp() * 1_000_000))
        self.store = FeatureStore(folder, settings=settings, clock=clock)
        self.store.apply(Declarations.of(view))
        self.ingestor = self.store.services.ingestor("test")

    def write(self, *ids: str) -> None:
        """Let the history be events of these ids, an hour ago."""
        rows = [{"card": 1, "id": name, "at": NOON - HOUR} for name in ids]
        schema = pa.schema({"card": pa.int64(), "id": pa.string(), "at": INSTANT})
        pq.write_table(pa.Table.from_pylist(rows, schema), self.folder / "clicks.parquet")

    def take(self) -> tuple[int, int]:
        """Ingest what was pushed, let the tables follow; return the count online and offline."""
        worker = self.ingestor.worker("clicks", "0")
        while worker.step():
            pass
        worker.settle()
        worker.close()
        self.ingestor.follow()
        return self.counts()

    def counts(self) -> tuple[int, int]:
        """Return the count online and offline."""
        features = ["spend:count_1d"]
        online = self.store.get_online_features(features, {"card": [1]}).to_dict()
        rows = pa.table({"card": [1], "event_timestamp": pa.array([NOON], INSTANT)})
        offline = self.store.get_historical_features(rows, features).to_arrow()
        return online["count_1d"][0], offline["count_1d"][0].as_py()


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Followed]:
    found = Followed(tmp_path)
    yield found
    found.store.close()


def test_a_query_history_is_not_read_again_by_a_run_that_follows(followed: Followed) -> None:
    assert followed.take() == (1, 1)
    followed.write("a", "b")
    for number, live in enumerate("cd"):
        followed.store.push("clicks", [{"card": 1, "id": live, "at": NOON - HOUR}])
        assert followed.take() == (2 + number, 2 + number)
    followed.store.materialize_incremental()
    assert followed.counts() == (4, 4)
    followed.write("a", "b", "e")
    followed.store.materialize_incremental()
    assert followed.counts() == (5, 5)


def test_a_gap_in_a_query_history_is_read_by_a_run_that_follows(followed: Followed) -> None:
    followed.write("a", "b")
    followed.store.materialize(NOON - 3 * HOUR, NOON - 2 * HOUR)
    assert followed.counts() == (0, 0)
    followed.store.push("clicks", [{"card": 1, "id": "c", "at": NOON - HOUR}])
    assert followed.take() == (3, 3)
