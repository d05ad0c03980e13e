"""An explanation shows what a value comes from, and says why everything else does not count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurestore import Aggregate, Entity, FeatureStore, FeatureView, FileSource, StreamSource
from featurestore.cli.app import cli
from featurestore.clock import FixedClock
from featurestore.compile.declared import Declarations
from featurestore.errors import FeatureNotFoundError, RequestError
from featurestore.model.settings import Settings
from featurestore.semantics.timeline import to_instant

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "card": pa.int64(),
        "version": pa.int64(),
        "gone": pa.bool_(),
        "at": INSTANT,
        "learnt": INSTANT,
        "amount": pa.float64(),
        "shop": pa.string(),
    }
)


def row(name: str, at: datetime, amount: float | None, **more: Any) -> dict[str, Any]:
    """Return a version of a payment."""
    event = {"id": name, "card": 7, "version": 1, "gone": False, "at": at, "learnt": at}
    return {**event, "amount": amount, "shop": "a", **more}


ROWS = [
    row("counts", NOON - HOUR, 2.0),
    row("corrected", NOON - 2 * HOUR, 9.0),
    row("corrected", NOON - 2 * HOUR, 1.5, version=2, learnt=NOON + HOUR),
    row("deleted", NOON - 3 * HOUR, 5.0),
    row("deleted", NOON - 3 * HOUR, 5.0, version=2, gone=True),
    row("moved", NOON - 4 * HOUR, 5.0),
    row("moved", NOON - 90 * HOUR, 5.0, version=2),
    row("null", NOON - 5 * HOUR, None),
    row("old", NOON - 80 * HOUR, 4.0),
    row("at the instant", NOON, 8.0),
    row("another card", NOON - HOUR, 100.0, card=8),
]


def definitions(*, live: bool = False) -> Declarations:
    """A view of windows and a plain one."""
    files = FileSource(
        name="files", path="payments.parquet", event_timestamp="at",
        created_timestamp="learnt", event_id="id", version="version", deleted="gone",
    )  # fmt: skip
    source = StreamSource(name="payments", batch=files, stream="lmdb:stream") if live else files
    card = Entity(name="card", join_keys=["card"])
    spend = FeatureView(
        name="spend",
        entities=[card],
        source=source,
        features=[
            Aggregate("sum", column="amount", windows=["24h", "lifetime"]),
            Aggregate("count", windows=["24h"], by="shop", name="visits"),
        ],
    )
    last = FeatureView(
        name="last", entities=[card], source=source, ttl=2 * HOUR, features=["amount"]
    )
    return Declarations.of(spend, last)


def open_store(folder: Path, now: datetime) -> FeatureStore:
    """Open the repository."""
    settings = Settings(
        project="shop",
        registry={"url": "sqlite:///registry.db"},
        offline={"path": "offline", "threads": 1, "workers": 1},
        online={"url": "lmdb:online"},
    )
    return FeatureStore(folder, settings=settings, clock=FixedClock(to_instant(now)))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[FeatureStore]:
    """A store with all of it, two hours later."""
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), tmp_path / "payments.parquet")
    with open_store(tmp_path, NOON + 2 * HOUR) as store:
        store.apply(definitions())
        store.materialize_incremental()
        yield store


def test_every_version_in_a_window_is_shown_with_what_became_of_it(shop: FeatureStore) -> None:
    report = shop.explain("spend:amount_sum_24h", {"card": 7}, as_of=NOON + HOUR / 60)
    became = {(line.id, line.version): line.became for line in report.events}
    assert became == {
        ("counts", 1): "counts",
        ("corrected", 1): "superseded",
        ("corrected", 2): "counts",
        ("deleted", 1): "deleted",
        ("deleted", 2): "deletes",
        ("moved", 1): "superseded",
        ("moved", 2): "outside",
        ("null", 1): "null",
        ("at the instant", 1): "counts",
    }
    assert report.window == (NOON - 24 * HOUR, NOON + HOUR / 60)
    assert sum(e.value for e in report.events if e.became == "counts") == report.offline == 11.5
    assert (report.online, report.online_status, report.equal) == (11.5, "PRESENT", True)


def test_a_window_ends_before_the_instant(shop: FeatureStore) -> None:
    report = shop.explain("spend:amount_sum_lifetime", {"card": 7}, as_of=NOON)
    assert "at the instant" not in {line.id for line in report.events}
    assert report.window == (None, NOON)
    assert report.offline == 2.0 + 1.5 + 5.0 + 4.0


def test_late_data_is_told(shop: FeatureStore) -> None:
    report = shop.explain("spend:amount_sum_24h", {"card": 7}, as_of=NOON + HOUR / 60)
    assert report.late
    assert report.known == 2.0 + 9.0 + 8.0  # the correction was not known yet
    later = shop.explain("spend:amount_sum_24h", {"card": 7}, as_of=NOON + 2 * HOUR)
    assert not later.late


def test_second_level_keys_are_shown(shop: FeatureStore) -> None:
    report = shop.explain("spend:visits", {"card": 7}, as_of=NOON)
    assert report.offline == {"a": 3}
    assert {line.by for line in report.events} == {"a"}


def test_a_row_is_shown_with_its_timestamps(shop: FeatureStore) -> None:
    report = shop.explain("last:amount", {"card": 7}, as_of=NOON + HOUR)
    assert [(r.event_timestamp, r.became) for r in report.rows[:3]] == [
        (NOON, "chosen"),
        (NOON - HOUR, "older"),
        (NOON - 2 * HOUR, "expired"),
    ]
    assert (report.offline, report.online, report.equal) == (8.0, 8.0, True)
    assert report.ttl_seconds == 7200
    gone = shop.explain("last:amount", {"card": 7}, as_of=NOON + 3 * HOUR)
    assert (gone.rows[0].became, gone.offline, gone.online_status) == (
        "expired",
        None,
        "OUTSIDE_MAX_AGE",
    )


def test_what_the_online_store_cannot_tell_is_explained_offline(shop: FeatureStore) -> None:
    past = shop.explain("last:amount", {"card": 7}, as_of=NOON - HOUR)
    assert past.offline == 2.0
    assert past.equal is None
    assert "newer than 'as_of'" in (past.online_error or "")


def test_an_entity_that_nobody_knows_has_nothing(shop: FeatureStore) -> None:
    report = shop.explain("spend:visits", {"card": 99})
    assert (report.events, report.tiles, report.offline, report.equal) == ((), (), {}, True)


def test_what_cannot_be_explained_is_refused(shop: FeatureStore) -> None:
    for reference in ("spend", "spend:nothing", "nothing:amount"):
        with pytest.raises(FeatureNotFoundError):
            shop.explain(reference, {"card": 7})
    with pytest.raises(RequestError, match="lacks the column 'card'"):
        shop.explain("last:amount", {"cart": 7})


def test_a_stream_tells_how_far_it_was_applied(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([], SCHEMA), tmp_path / "payments.parquet")
    with open_store(tmp_path, NOON + HOUR) as store:
        store.apply(definitions(live=True))
        receipt = store.push("payments", pa.Table.from_pylist(ROWS[:3], SCHEMA))
        store.services.ingestor("test").run(until_idle=True)
        report = store.explain("spend:amount_sum_24h", {"card": 7}, as_of=NOON)
    assert report.applied == receipt.positions
    assert {line.partition for line in report.events} == receipt.positions.keys()
    assert report.offline == report.online == 3.5


def test_a_state_with_a_tree_shows_its_parts(tmp_path: Path) -> None:
    many = [row(f"e{n}", NOON - n * HOUR / 20, float(n)) for n in range(1, 900)]
    pq.write_table(pa.Table.from_pylist(many, SCHEMA), tmp_path / "payments.parquet")
    with open_store(tmp_path, NOON) as store:
        store.apply(definitions())
        store.materialize_incremental()
        report = store.explain("spend:amount_sum_24h", {"card": 7}, as_of=NOON)
    assert report.equal
    kinds = {tile.kind for tile in report.tiles}
    assert kinds == {"events", "merged"}
    assert sum(tile.events for tile in report.tiles) == len(report.events)
    merged = [tile for tile in report.tiles if tile.kind == "merged"]
    assert min(tile.start or NOON for tile in merged) >= NOON - 24 * HOUR
    assert max(tile.end or NOON for tile in merged) <= NOON


def test_the_command_shows_it_as_text_and_as_json(shop: FeatureStore) -> None:
    folder = shop.services.folder
    (folder / "featurestore.toml").write_text(
        'project = "shop"\ndefinitions = "definitions"\n[registry]\nurl = "sqlite:///registry.db"\n'
        '[offline]\npath = "offline"\n[online]\nurl = "lmdb:online"\n',
        encoding="utf-8",
    )
    words = ["--entity", "card=7", "--as-of", "2024-03-10T12:01:00Z"]
    text = call(folder, "explain", "spend:amount_sum_24h", *words)
    assert text.exit_code == 0, text.stderr
    for expected in ("window:", "corrected", "superseded", "deletes", "11.5 PRESENT", "equal"):
        assert expected in text.stdout
    plain = call(folder, "explain", "last:amount", *words, "--output", "json")
    data = json.loads(plain.stdout)
    assert data["rows"][0]["became"] == "chosen"
    assert data["rows"][0]["event_timestamp"] == "2024-03-10T12:00:00Z"
    assert call(folder, "explain", "last:amount").exit_code == 2
    assert call(folder, "explain", "last:amount", "--entity", "cart=7").exit_code == 1


def call(folder: Path, *words: str) -> Any:
    """Run a command."""
    return CliRunner().invoke(cli, ["--repo", str(folder), *words])
