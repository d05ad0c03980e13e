"""Online = offline = reference, bit for bit, for windowed features (laws W1-W6, V1, V3).

A trial is one entity with its events, asked for every feature of a random definition at one
instant. Events are delivered as they are learnt, shuffled, doubled and split, in files or over a
stream, and the features are asked while that goes on. Run as a module for many more trials:
`python -m tests.laws.test_window_parity 100`.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import Entity, FeatureStore, FeatureView, FileSource, StreamSource
from featurestore.clock import FixedClock
from featurestore.compile.declared import Declarations
from featurestore.model.settings import Settings
from featurestore.semantics.reference_windows import Knowledge, value
from featurestore.semantics.timeline import to_datetime
from tests import window_worlds as worlds
from tests.window_worlds import Definition, Version, bits

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "key": pa.int64(),
        "id": pa.string(),
        "version": pa.int64(),
        "at": INSTANT,
        "learnt": INSTANT,
        "gone": pa.bool_(),
        "num": pa.int64(),
        "dbl": pa.float64(),
        "tame": pa.float64(),
        "txt": pa.string(),
        "lst": pa.list_(pa.float64()),
        "vec": pa.list_(pa.float64()),
        "mp": pa.map_(pa.string(), pa.float64()),
        "by": pa.string(),
    }
)
KEYS, EVENTS, STEPS = 24, 10, 4
WORLDS = 4


@dataclass
class Tally:
    """What was compared and what differed."""

    trials: int = 0
    values: int = 0
    different: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    def compare(self, label: str, place: Any, first: Any, second: Any) -> None:
        """Count one comparison."""
        self.values += 1
        self.asked[label] += 1
        if bits(first) != bits(second):
            self.different.append(f"{label} {place}: {first!r} != {second!r}")


class World:
    """One definition, its store, and the events that were delivered so far."""

    def __init__(self, seed: int, folder: Path, delivery: str) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.folder = folder
        self.delivery = delivery
        self.clock = FixedClock(worlds.START - worlds.DAY)
        self.definition: Definition = worlds.definition(self.rng)
        self.versions = [
            version
            for key in range(KEYS)
            for version in worlds.versions(self.rng, key, self.rng.randrange(EVENTS))
        ]
        self.versions.sort(key=lambda v: v.created)
        self.delivered: list[Version] = []
        self.files = 0
        self.stream = self.rng.choice(["lmdb:stream/events", f"memory:{folder.name}-{seed}"])
        self.store = self._open()

    def _open(self) -> FeatureStore:
        (self.folder / "events").mkdir()
        self._write([])
        files = FileSource(
            name="files",
            path="events/*.parquet",
            event_timestamp="at",
            created_timestamp=None if self.delivery == "stream" else "learnt",
            event_id="id",
            version="version",
            deleted="gone",
        )
        live = StreamSource(name="events", batch=files, stream=self.stream)
        source = live if self.delivery == "stream" else files
        view = FeatureView(
            name="windows",
            entities=[Entity(name="thing", join_keys=["key"])],
            source=source,
            features=self.definition.aggregates,
        )
        settings = Settings(
            project="trials",
            registry={"url": "sqlite:///registry.db"},
            offline={"path": "offline", "threads": 1, "workers": 1},
            online={"url": "memory:" if self.rng.random() < 0.5 else "lmdb:online"},
            streams={"poll_seconds": 0.0},
        )
        store = FeatureStore(self.folder, settings=settings, clock=self.clock)
        store.apply(Declarations.of(view))
        return store

    def _write(self, versions: list[Version]) -> None:
        rows = [self._row(version) for version in versions]
        path = self.folder / "events" / f"{self.files:04d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
        self.files += 1

    @staticmethod
    def _row(version: Version) -> dict[str, Any]:
        row = version.row()
        instants = {name: to_datetime(row[name]) for name in ("at", "learnt")}
        return row | instants | {"mp": list(row["mp"].items()) if row["mp"] is not None else None}

    def deliver(self, until: int) -> None:
        """Deliver what has been learnt by an instant, some of it again, in any order and parts."""
        fresh = [v for v in self.versions[len(self.delivered) :] if v.created <= until]
        self.delivered += fresh
        again = self.rng.sample(self.delivered, min(len(self.delivered), 5))
        batch = fresh + again
        self.rng.shuffle(batch)
        self.clock.set(max(until, self.clock.now_us()))
        parts = self.rng.choice([1, 1, 2, 3])
        for part in range(parts):
            self._hand_over(batch[part::parts])

    def _hand_over(self, batch: list[Version]) -> None:
        if self.delivery == "stream":
            if batch:
                rows = [self._row(version) for version in batch]
                self.store.push("events", pa.Table.from_pylist(rows, SCHEMA))
            self._ingest(settle=self.rng.random() < 0.5)
        else:
            self._write(batch)
        if self.delivery == "files" or self.rng.random() < 0.5:
            self.store.materialize_incremental()

    def _ingest(self, *, settle: bool) -> None:
        """Put online what is in the stream; write it into the log as well if that is asked for."""
        worker = self.store.services.ingestor("trials").worker("events", "0")
        try:
            while worker.step():
                pass
            if settle:
                worker.settle()
        finally:
            worker.close()

    def references(self) -> list[str]:
        """Return the references of all features."""
        return [f"windows:{feature.name}" for feature in self.definition.features]

    def check(self, asked: int, tally: Tally) -> None:
        """Compare every entity's features at the present instant."""
        keys = list(range(KEYS))
        online = self.store.get_online_features(self.references(), {"key": keys}).to_dict()
        if self.delivery == "stream":
            # Training sets start from the log and the tables, which follow what is online.
            self._ingest(settle=True)
            self.store.materialize_incremental()
        offline = self._offline(keys, [asked] * KEYS, "healed")
        self._compare(tally, keys, [asked] * KEYS, offline, knowledge="healed", online=online)
        tally.trials += KEYS

    def check_known(self, instants: list[int], tally: Tally) -> None:
        """Compare what training sets say that had been known, after everything was delivered."""
        keys = [key for key in range(KEYS) for _ in instants]
        asked = instants * KEYS
        offline = self._offline(keys, asked, "known")
        self._compare(tally, keys, asked, offline, knowledge="known")

    def _offline(self, keys: list[int], asked: list[int], knowledge: Knowledge) -> dict[str, Any]:
        rows = pa.table(
            {"key": keys, "event_timestamp": pa.array([to_datetime(a) for a in asked], INSTANT)}
        )
        job = self.store.get_historical_features(rows, self.references(), knowledge=knowledge)
        table = job.to_arrow()
        return {name: _pylist(table[name]) for name in table.column_names}

    def _compare(
        self,
        tally: Tally,
        keys: list[int],
        asked: list[int],
        offline: dict[str, Any],
        *,
        knowledge: Knowledge,
        online: dict[str, Any] | None = None,
    ) -> None:
        by_key: dict[int, list[Version]] = {}
        for version in self.delivered:
            by_key.setdefault(version.key, []).append(version)
        for feature in self.definition.features:
            place = f"{feature.name} {feature.question}"
            for i, (key, instant) in enumerate(zip(keys, asked, strict=True)):
                found = offline[feature.name][i]
                where = (place, key, instant)
                if online is not None:
                    tally.compare("online = offline", where, online[feature.name][i], found)
                if feature.question is None:
                    continue
                events = worlds.events_of(by_key.get(key, []), feature)
                expected = value(events, feature.question, instant, knowledge)
                tally.compare(f"offline {knowledge} = reference", where, found, expected)


def _pylist(column: pa.ChunkedArray) -> list[Any]:
    items = column.to_pylist()
    if not pa.types.is_map(column.type):
        return items
    return [None if item is None else dict(item) for item in items]


def run(seed: int, folder: Path, delivery: str, tally: Tally) -> None:
    """Run one world from its first event to its last."""
    world = World(seed, folder, delivery)
    with world.store:
        instants = worlds.questions(world.rng, world.versions, STEPS)
        for asked in instants:
            world.deliver(asked)
            world.check(asked, tally)
        world.deliver(max([v.created for v in world.versions], default=asked))
        if delivery == "files":
            world.check_known(instants, tally)


@pytest.mark.parametrize("delivery", ["files", "stream"])
@pytest.mark.parametrize("seed", range(WORLDS))
def test_v1_online_offline_and_reference_agree(seed: int, delivery: str, tmp_path: Path) -> None:
    """No difference, and something was compared."""
    tally = Tally()
    run(seed, tmp_path, delivery, tally)
    assert not tally.different, "\n".join(tally.different[:20])
    assert min(tally.asked.values()) > KEYS


def main(count: int) -> int:
    """Run many worlds and print what came of them."""
    tally = Tally()
    for seed in range(1_000, 1_000 + count):
        for delivery in ("files", "stream"):
            with tempfile.TemporaryDirectory() as folder:
                run(seed, Path(folder), delivery, tally)
    shown = ", ".join(f"{label}: {n:,}" for label, n in sorted(tally.asked.items()))
    write = sys.stdout.write
    write(f"{tally.trials:,} trials, {tally.values:,} values compared ({shown})\n")
    write("\n".join([f"{len(tally.different)} different", *tally.different[:20], ""]))
    return bool(tally.different)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
