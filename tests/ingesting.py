"""A repository whose views are fed by a stream, and what the reference says of its events."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from featurestore.clock import Clock, FixedClock
from featurestore.compile.plan import table_id
from featurestore.model.settings import Settings
from featurestore.semantics.reference_windows import Event, Question, value
from featurestore.services.ingestion import Ingestor

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("user", pa.int64()),
        ("at", INSTANT),
        ("seen", INSTANT),
        ("amount", pa.float64()),
        ("gone", pa.bool_()),
        ("note", pa.string()),
    ]
)
HOUR, DAY = 3_600_000_000, 86_400_000_000
FEATURES = ["counts:n_1h", "counts:n_lifetime", "counts:total_1d"]
QUESTIONS = {
    "n_1h": Question("count", HOUR, hop=60_000_000, column=False),
    "n_lifetime": Question("count", None, column=False),
    "total_1d": Question("sum", DAY, hop=HOUR),
}
_names = itertools.count()

COUNTS = """
counts = FeatureView(
    name="counts", entities=[user], source=clicks,
    features=[Aggregate("count", windows=["1h", "lifetime"], name="n"),
              Aggregate("sum", column="{column}", windows=["1d"], name="total_1d")],
)
"""
LAST = """
last = FeatureView(name="last", entities=[user], source=clicks, features=["amount", "note"])
"""
DEFINITIONS = """
from featurestore import Aggregate, Entity, FeatureView, Field, FileSource, StreamSource
user = Entity(name="user", join_keys=["user"])
files = FileSource(name="files", path="clicks/*.parquet", event_timestamp="at",
                   created_timestamp="seen")
clicks = StreamSource(name="clicks", batch=files, stream="{stream}", event_id="id", deleted="gone")
"""


@dataclass(frozen=True)
class Click:
    """An event as a producer sends it."""

    id: str
    user: int | None = 1
    minutes: float = 10.0
    amount: float | None = 1.0
    gone: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The event's columns."""
        at = NOW - timedelta(minutes=self.minutes)
        return {
            "id": self.id,
            "user": self.user,
            "at": at,
            "amount": self.amount,
            "gone": self.gone,
            "note": f"{self.id} {self.amount}",
        }


class Repository:
    """A repository with a stream, driven by hand.

    Args:
        folder: Where it is written.
        online: The online store's URL.
        stream: The stream's URL; None takes a new one in memory.
        views: The views' definitions.
        clock: What tells the time.
        more: More sections of the settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        online: str = "memory:",
        stream: str | None = None,
        views: str = COUNTS.format(column="amount") + LAST,
        clock: Clock | None = None,
        **streams: Any,
    ) -> None:
        self.folder = folder
        self.stream_url = stream or f"memory:clicks-{next(_names)}"
        self.clock = clock or FixedClock(int(NOW.timestamp() * 1_000_000))
        self.settings = Settings.model_validate(
            {
                "project": f"project_{next(_names)}" if "{" in online else "p",
                "online": {"url": online},
                "offline": {"workers": 1, "threads": 1},
                "streams": {"poll_seconds": 0.0, "retry_seconds": 0.02, **streams},
                "serving": {"refresh_seconds": 0.0},
            }
        )
        (folder / "definitions").mkdir(parents=True, exist_ok=True)
        (folder / "clicks").mkdir(exist_ok=True)
        self.define(views)
        if not list((folder / "clicks").iterdir()):
            self.history([])
        self.store = FeatureStore(folder, settings=self.settings, clock=self.clock)

    def define(self, views: str) -> None:
        """Write the definitions."""
        head = DEFINITIONS.format(stream=self.stream_url)
        (self.folder / "definitions" / "views.py").write_text(head + views, encoding="utf-8")

    def history(self, clicks: Sequence[Click], name: str = "a", *, late: int = 1) -> None:
        """Write events to a file of the history, learnt so many minutes after they happened."""
        rows = [
            {**click.row, "seen": click.row["at"] + timedelta(minutes=late)} for click in clicks
        ]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, self.folder / "clicks" / f"{name}.parquet")

    def push(self, *clicks: Click) -> None:
        """Push events through the store."""
        self.store.push("clicks", [click.row for click in clicks])

    def send(self, *payloads: bytes) -> None:
        """Append payloads to the stream as they are."""
        self.store.services.open_stream(self.stream_url).append(list(payloads))

    def ingestor(self) -> Ingestor:
        """Return an ingestor that is driven by hand."""
        return self.store.services.ingestor("test")

    def online(self, users: Sequence[int], features: Sequence[str] = FEATURES) -> dict[str, Any]:
        """Return what is served."""
        found = self.store.get_online_features(
            list(features), {"user": list(users)}, as_of=NOW
        ).to_dict()
        return {name: found[name] for name in found if name != "user"}

    def offline(self, users: Sequence[int], features: Sequence[str] = FEATURES) -> dict[str, Any]:
        """Return what a training set has at the same instant."""
        rows = pa.table(
            {"user": list(users), "event_timestamp": pa.array([NOW] * len(users), INSTANT)}
        )
        found = self.store.get_historical_features(rows, list(features)).to_arrow()
        return {name.split(":")[1]: found[name.split(":")[1]].to_pylist() for name in features}

    def table(self, view: str) -> list[dict[str, Any]]:
        """Return the rows of a view's table."""
        services = self.store.services
        plan = services.registry.state(self.store.project).catalog.views[view]
        files = services.tables.snapshot(table_id(self.store.project, plan)).files
        return [row for file in files for row in pq.ParquetFile(file.path).read().to_pylist()]

    def logged(self) -> list[dict[str, Any]]:
        """Return the rows of the stream's log."""
        files = self.store.services.stream_log.live("clicks").files
        return [row for file in files for row in pq.ParquetFile(file.path).read().to_pylist()]

    def quarantined(self) -> list[dict[str, Any]]:
        """Return what was refused."""
        table = f"{self.store.project}/_quarantine/clicks"
        files = self.store.services.tables.snapshot(table).files
        rows = [row for file in files for row in pq.ParquetFile(file.path).read().to_pylist()]
        return sorted(rows, key=lambda row: (row["_position"], row["_index"]))


def expected(rows: Iterable[tuple[int, Event]], users: Sequence[int]) -> dict[str, list[Any]]:
    """Return what the reference gives at `NOW` for users, of (user, event)."""
    asked = int(NOW.timestamp() * 1_000_000)
    held: dict[int, list[Event]] = {}
    for user, event in rows:
        held.setdefault(user, []).append(event)
    return {
        name: [value(held.get(user, []), question, asked) for user in users]
        for name, question in QUESTIONS.items()
    }


def newest(clicks: Iterable[Click]) -> Iterator[tuple[int, Event]]:
    """Yield (user, event) of clicks in the order in which the stream has them."""
    for version, click in enumerate(clicks):
        if click.user is not None:
            at = int(click.row["at"].timestamp() * 1_000_000)
            yield click.user, Event(click.id, version, at, deleted=click.gone, value=click.amount)


def as_json(*clicks: Click) -> bytes:
    """Return a payload of events as JSON."""
    rows = [{**click.row, "at": click.row["at"].isoformat()} for click in clicks]
    return json.dumps(rows).encode()
