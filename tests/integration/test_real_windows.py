"""Windows over real events, replayed as they were learnt: every value is verified (laws V1-V3, W).

Earthquakes were registered when they happened and corrected later; flights leave all day long. At
hundreds of instants on the way every entity is looked up and computed again, bit for bit, and a
part of it is compared with the slow reference.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
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
from featurestore.semantics.reference_windows import Event, Knowledge, Question, value
from featurestore.semantics.timeline import to_instant
from featurestore.semantics.windows import make_window
from featurestore.services.verification_report import VerificationReport
from tests.window_worlds import bits

DATA = Path(__file__).resolve().parents[1] / "data"
FLIGHTS = Path(__file__).resolve().parents[2] / "definitions" / "data" / "flights.parquet"
INSTANT = pa.timestamp("us", tz="UTC")
HOUR = timedelta(hours=1)
Row = dict[str, Any]


def open_store(folder: Path, clock: FixedClock) -> FeatureStore:
    """Open a store in memory, but for its tables."""
    settings = Settings(
        project="real",
        registry={"url": "sqlite:///registry.db"},
        offline={"path": "offline", "threads": 1, "workers": 1},
        online={"url": "memory:"},
    )
    return FeatureStore(folder, settings=settings, clock=clock)


class Total:
    """What all verifications found together."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.late: Counter[str] = Counter()

    def add(self, report: VerificationReport) -> None:
        """Count a report in; nothing may differ, and nothing be left out."""
        assert report.differences == ()
        assert report.not_comparable == {}
        self.counts.update(
            compared=report.compared, present=report.present, instants=len(report.instants)
        )
        for late in report.late.values():
            self.late.update(compared=late.compared, changed=late.changed)

    def tell(self, what: str) -> None:
        """Print what was found."""
        found, late = self.counts, self.late
        print(  # noqa: T201
            f"{what}: {found['compared']:,} values compared at {found['instants']} instants,"
            f" 0 different, {found['present']:,} present;"
            f" late data changed {late['changed']:,} of {late['compared']:,}"
        )


# ---- earthquakes -------------------------------------------------------------------------------

QUAKES = {
    "mag_mean_24h": ("mean", "mag", "24h", {}),
    "mag_mean_7d": ("mean", "mag", "7d", {}),
    "mag_max_7d": ("max", "mag", "7d", {}),
    "depth_variance": ("variance", "depth_km", "7d", {}),
    "depth_sum": ("sum", "depth_km", "lifetime", {}),
    "count_6h": ("count", None, "6h", {}),
    "kinds": ("histogram", "magType", "7d", {}),
    "latest": ("last_k", "mag", "24h", {"k": 5}),
    "strongest": ("top_k", "mag", "7d", {"k": 3}),
    "by_kind": ("mean", "mag", "7d", {"by": "magType"}),
}


def quakes() -> list[Row]:
    """Every earthquake as it was first told, without its size, and as it was corrected."""
    columns = ["id", "net", "time", "updated", "mag", "depth_km", "magType"]
    rows: list[Row] = []
    for row in pq.read_table(DATA / "earthquakes.parquet", columns=columns).to_pylist():
        updated = row.pop("updated")
        first = {"learnt": row["time"], "mag": None, "magType": None}
        rows += [row | first, row | {"learnt": max(updated, row["time"])}]
    rows.sort(key=lambda row: (row["learnt"], row["id"]))
    return rows


def quake_view() -> FeatureView:
    """Earthquakes by the network that registered them."""
    source = FileSource(
        name="quakes", path="quakes/*.parquet", event_timestamp="time",
        created_timestamp="learnt", event_id="id",
    )  # fmt: skip
    aggregates = [
        Aggregate(function, column=column, windows=[window], name=name, **more)
        for name, (function, column, window, more) in QUAKES.items()
    ]
    network = Entity(name="network", join_keys=["net"])
    return FeatureView(name="quakes", entities=[network], source=source, features=aggregates)


def write_quakes(folder: Path, number: int, rows: list[Row]) -> None:
    """Write a file of the source."""
    kinds = {"time": INSTANT, "learnt": INSTANT, "mag": pa.float64(), "depth_km": pa.float64()}
    names = ["id", "net", "time", "learnt", "mag", "depth_km", "magType"]
    table = {n: pa.array([r[n] for r in rows], kinds.get(n, pa.string())) for n in names}
    (folder / "quakes").mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "quakes" / f"{number:03d}.parquet")


@pytest.fixture(scope="module")
def replayed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[FeatureStore, list[Row], Total]]:
    """A store to which all earthquakes came as they were learnt, and what was verified meanwhile.

    Files come in any order of rows; one in five rows comes again later.
    """
    folder = tmp_path_factory.mktemp("quakes")
    chance, total, rows = random.Random(7), Total(), quakes()  # noqa: S311
    start = rows[0]["learnt"]
    clock = FixedClock(to_instant(start))
    write_quakes(folder, 0, [])
    with open_store(folder, clock) as store:
        store.apply(Declarations.of(quake_view()))
        step, done = timedelta(hours=15), 0
        for number in range(1, 19):
            now = start + number * step
            count = sum(row["learnt"] <= now for row in rows)
            batch = rows[done:count] + chance.sample(rows[:done], min(done, 20))
            chance.shuffle(batch)
            clock.set(to_instant(now))
            write_quakes(folder, number, batch)
            store.materialize_incremental()
            done = count
            near = [row["time"] for row in batch if now - HOUR / 2 < row["time"]] or [now]
            instants = [now, *(max(now - HOUR / 2, at) for at in near[:3])]
            instants += [now + minutes * HOUR / 60 for minutes in (1, 17, 60, 7 * 60)]
            instants += [now + chance.random() * 30 * HOUR for _ in range(8)]
            total.add(store.verify(["quakes"], as_of=list(dict.fromkeys(instants))))
        yield store, rows[:done], total


def test_every_earthquake_window_is_verified_on_the_way(
    replayed: tuple[FeatureStore, list[Row], Total],
) -> None:
    _, rows, total = replayed
    total.tell("earthquakes")
    assert len(rows) > 1_000
    assert total.counts["instants"] >= 250
    assert total.counts["compared"] > 20_000
    assert total.counts["present"] > 10_000
    assert 0 < total.late["changed"] < total.late["compared"] // 20


@pytest.mark.parametrize("knowledge", ["healed", "known"])
def test_earthquake_windows_are_those_of_the_reference(
    replayed: tuple[FeatureStore, list[Row], Total], knowledge: Knowledge
) -> None:
    store, rows, _ = replayed
    chance = random.Random(11)  # noqa: S311
    networks = sorted({row["net"] for row in rows})
    asked = [
        (chance.choice(networks), chance.choice(rows)[kind] + chance.choice(offsets))
        for kind, offsets in (
            ("time", [timedelta(0), timedelta(microseconds=1), HOUR, 24 * HOUR]),
            ("learnt", [timedelta(0), timedelta(microseconds=1), -HOUR]),
        )
        for _ in range(40)
    ]
    table = pa.table(
        {
            "net": [net for net, _ in asked],
            "event_timestamp": pa.array([t for _, t in asked], INSTANT),
        }
    )
    job = store.get_historical_features(table, ["quakes"], knowledge=knowledge)
    found = job.to_arrow().to_pylist(maps_as_pydicts="strict")
    for name, question in QUAKES.items():
        for place, (net, at) in enumerate(asked):
            events = quake_events(rows, net, name)
            expected = value(events, as_question(question), to_instant(at), knowledge)
            assert bits(found[place][name]) == bits(expected), (name, net, at)


def as_question(declared: tuple[str, str | None, str, dict[str, Any]]) -> Question:
    """Return a declared aggregate as the reference is asked."""
    function, column, text, more = declared
    window = make_window(text)
    return Question(
        function, window.size, window.hop, window.head_hop, window.offset,
        column=column is not None, by="by" in more, k=more.get("k"),
    )  # fmt: skip


def quake_events(rows: list[Row], net: str, name: str) -> list[Event]:
    """Return the versions of a network's events; the one that was learnt last counts."""
    _, column, _, more = QUAKES[name]
    return [
        Event(
            row["id"],
            to_instant(row["learnt"]),
            to_instant(row["time"]),
            to_instant(row["learnt"]),
            value=True if column is None else row[column],
            by=row[more["by"]] if "by" in more else None,
        )
        for row in rows
        if row["net"] == net
    ]


# ---- flights -----------------------------------------------------------------------------------

DEPARTURES = {
    "mean_delay": ("mean", "dep_delay", "6h", {}),
    "worst": ("max", "dep_delay", "24h", {}),
    "spread": ("stddev", "dep_delay", "24h", {}),
    "departures": ("count", None, "1h", {}),
    "by_carrier": ("count", None, "24h", {"by": "carrier"}),
    "aircraft": ("count_distinct", "tailnum", "24h", {}),
    "last_three": ("last_k", "dest", "6h", {"k": 3}),
    "all_miles": ("sum", "distance", "lifetime", {}),
}
_FLIGHTS = f"""
    SELECT carrier || flight || ' ' || origin || ' ' || make_date(year, month, day) AS flight_id,
           origin, dest, carrier, tailnum, dep_delay, distance,
           time_hour + to_minutes(minute) + to_minutes(CAST(dep_delay AS BIGINT)) AS departed_at
    FROM '{FLIGHTS}'
    WHERE dep_delay IS NOT NULL AND month = 1 AND day <= 2
    ORDER BY departed_at, flight_id
"""


def flights() -> pa.Table:
    """The departures of two days, in the order of the events."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(_FLIGHTS).to_arrow_table()


def flight_views() -> Declarations:
    """Windows and a newest row over a stream of departures."""
    history = FileSource(
        name="history", path="history.parquet", event_timestamp="departed_at", event_id="flight_id"
    )
    departures = StreamSource(name="departures", batch=history, stream="lmdb:streams/departures")
    aggregates = [
        Aggregate(function, column=column, windows=[window], name=name, **more)
        for name, (function, column, window, more) in DEPARTURES.items()
    ]
    origin = Entity(name="origin", join_keys=["origin"])
    carrier = Entity(name="carrier", join_keys=["carrier"])
    return Declarations.of(
        FeatureView(name="airport", entities=[origin], source=departures, features=aggregates),
        FeatureView(name="airline", entities=[carrier], source=departures, features=aggregates),
        FeatureView(name="last", entities=[origin], source=departures, features=["dest"]),
    )


@pytest.mark.parametrize("order", ["as they left", "shuffled within a day"])
def test_every_flight_window_is_verified_while_flights_come_in(order: str, tmp_path: Path) -> None:
    chance, total, rows = random.Random(5), Total(), flights()  # noqa: S311
    pq.write_table(rows.slice(0, 0), tmp_path / "history.parquet")
    clock = FixedClock(to_instant("2013-01-01T00:00:00Z"))
    with open_store(tmp_path, clock) as store:
        store.apply(flight_views())
        delivered = rows.slice(0, 0)
        for now, batch in deliveries(rows, order, chance):
            clock.set(to_instant(now))
            again = delivered.slice(chance.randrange(len(delivered) + 1), 9)
            store.push("departures", pa.concat_tables([batch, again]))
            store.services.ingestor("replay").run(until_idle=True)
            delivered = pa.concat_tables([delivered, batch])
            instants = [now, *(now + n * HOUR / 20 for n in (1, 7, 20, 21))]
            instants += [now + chance.random() * 26 * HOUR for _ in range(25)]
            total.add(store.verify(["airport", "airline", "last"], as_of=instants))
        total.tell(f"flights {order}")
        assert len(delivered) > 1_700
        assert total.counts["instants"] >= 200
        assert total.counts["present"] > 20_000
        compare_flights(store, delivered.to_pylist(), chance)


def deliveries(
    rows: pa.Table, order: str, chance: random.Random
) -> Iterator[tuple[datetime, pa.Table]]:
    """Yield instants and the flights that are pushed then."""
    days = [row.date() for row in rows.column("departed_at").to_pylist()]
    for day in sorted(set(days)):
        places = [place for place, held in enumerate(days) if held == day]
        parts = 3
        if order != "as they left":
            chance.shuffle(places)
        for part in range(parts):
            size = -(-len(places) // parts)
            chosen = rows.take(places[part * size : (part + 1) * size])
            newest = max(chosen.column("departed_at").to_pylist(), default=None)
            end = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC)
            if newest is not None:
                # What happens at the very instant of a run is left to the next one (law M1).
                yield (newest + HOUR / 3600 if order == "as they left" else end), chosen


def compare_flights(store: FeatureStore, rows: list[Row], chance: random.Random) -> None:
    """Compare some windows of the end with the reference."""
    asked = [
        chance.choice(rows)["departed_at"] + chance.choice([0, 1, 5]) * HOUR for _ in range(12)
    ]
    table = pa.table({"origin": ["JFK"] * 12, "event_timestamp": pa.array(asked, INSTANT)})
    job = store.get_historical_features(table, ["airport"])
    for found, at in zip(job.to_arrow().to_pylist(maps_as_pydicts="strict"), asked, strict=True):
        for name, declared in DEPARTURES.items():
            _, column, _, more = declared
            events = [
                Event(
                    row["flight_id"],
                    0,
                    to_instant(row["departed_at"]),
                    value=True if column is None else row[column],
                    by=row[more["by"]] if "by" in more else None,
                )
                for row in rows
                if row["origin"] == "JFK"
            ]
            question = replace(
                as_question(declared), kind="int" if name == "all_miles" else "float"
            )
            expected = value(events, question, to_instant(at))
            assert bits(found[name]) == bits(expected), (name, at)
