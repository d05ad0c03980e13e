"""The worked example as a story: plan, apply, materialize, train, serve, and prove parity.

A year of flights is materialized into one store and becomes a training set. Then the year is
replayed into a second store, instant by instant, while a server in another process answers from it;
what it answers over gRPC is compared, bit for bit, with training rows of the same entities at the
same instants from the first store. Any difference ends the demo with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo import parity
from demo.stores import REPOSITORY, open_store, server, terminated_as_interrupt
from demo.story import Story
from featurestore import FeatureStore, OnlineClient

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from featurestore.services.jobs import MaterializationReport

SERVICE = "departure_delay"
BEGINNING = datetime(2013, 1, 1, tzinfo=UTC)
END = datetime(2014, 1, 2, tzinfo=UTC)
# Winter and summer, the hours in which the clocks changed, a storm, an hour without any departure,
# the instant of an observation itself, and two after the last observation: one within its ttl.
INSTANTS = (
    datetime(2013, 1, 2, 11, 0, tzinfo=UTC),
    datetime(2013, 3, 10, 6, 59, 59, 999_999, tzinfo=UTC),
    datetime(2013, 7, 4, 21, 15, tzinfo=UTC),
    datetime(2013, 11, 3, 6, 30, tzinfo=UTC),
    datetime(2013, 11, 27, 15, 45, tzinfo=UTC),
    datetime(2013, 12, 31, 1, 0, tzinfo=UTC),
    datetime(2013, 12, 31, 20, 0, tzinfo=UTC),
)
_MICROSECOND = timedelta(microseconds=1)
_FLIGHTS = "'definitions/data/flights.parquet'"
_ENTITIES = 400
# The scheduled departure: the instant at which a model would be asked.
TRAINING_ROWS = f"""
    SELECT time_hour + to_minutes(minute) AS event_timestamp, flight,
           origin, dest, carrier, tailnum,
           time_hour + to_minutes(minute) AS scheduled_at, CAST(distance AS DOUBLE) AS distance
    FROM {_FLIGHTS}
    WHERE time_hour < TIMESTAMPTZ '{{end}}'
"""
_VIEWS = (
    "origin_weather",
    "origin_airport",
    "destination_airport",
    "aircraft_facts",
    "aircraft_last_departure",
    "route_last_flight",
    "day_plan",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _options(arguments)
    story = Story(Console(width=None if sys.stdout.isatty() else 110, highlight=False))
    started = time.perf_counter()
    for former in ("store", "replay"):
        shutil.rmtree(options.state / former, ignore_errors=True)
    story.console.print("[bold]Flights out of New York City, 2013[/bold]")
    story.say(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, state"
        f" in {_shown(options.state)}"
    )
    with terminated_as_interrupt(), open_store(options.state / "store") as store:
        apply(story, store)
        materialize(story, store, options.until)
        train(story, store, options.until)
        instants = [instant for instant in INSTANTS if instant < options.until]
        different = prove(story, store, options.state / "replay", instants)
    story.console.print(f"\nDone in {time.perf_counter() - started:.1f} s.")
    return 1 if different else 0


def apply(story: Story, store: FeatureStore) -> None:
    """Show the plan and apply it."""
    story.chapter("Plan and apply the definitions")
    plan = store.plan()
    for kind in dict.fromkeys(change.kind for change in plan.changes):
        names = [change.name for change in plan.changes if change.kind == kind]
        story.say(f"[green]+[/green] {kind.replace('_', ' ')}: {', '.join(names)}")
    result = store.apply()
    story.say(f"Applied as revision {result.revision}.")


def materialize(story: Story, store: FeatureStore, until: datetime) -> None:
    """Write every view's table and push the newest rows online."""
    story.chapter(f"Materialize [{BEGINNING:%Y-%m-%d}, {until:%Y-%m-%d})")
    report = _materialize(story, store, BEGINNING, until)
    table = story.table("view", ">rows read", ">written", ">newest online", ">tied", ">seconds")
    for view in report.views:
        table.add_row(
            view.view,
            f"{view.rows_read:,}",
            f"{view.rows_written:,}",
            f"{view.rows_pushed:,}",
            f"{view.rows_tied:,}",
            f"{view.seconds:.2f}",
        )
    story.show(table)
    story.say(
        f"{report.rows_written:,} rows in {report.seconds:.1f} s:"
        f" {report.rows_written / report.seconds:,.0f} rows/s."
    )


def train(story: Story, store: FeatureStore, until: datetime) -> None:
    """Make the training set of all flights at their scheduled departure."""
    story.chapter("A training set: every flight at its scheduled departure")
    started = time.perf_counter()
    known = _training_set(store, until, "known")
    seconds = time.perf_counter() - started
    story.say(
        f"{known.num_rows:,} rows x {known.num_columns} columns in {seconds:.1f} s:"
        f" {known.num_rows / seconds:,.0f} rows/s. The first rows:"
    )
    shown = ("event_timestamp", "origin", "dest", "tailnum")
    features = (
        "origin_weather__wind_kmh",
        "aircraft_last_departure__left_late_minutes",
        "route_last_flight__arrived_late_minutes",
        "departure_conditions__hours_since_last_departure",
    )
    table = story.table(*shown, *(name.partition("__")[2] for name in features))
    for row in known.slice(known.num_rows // 2, 4).to_pylist():
        table.add_row(*(_text(row[name]) for name in (*shown, *features)))
    story.show(table)
    matched = []
    for view in _VIEWS:
        events = known.column(f"{view}__event_timestamp")
        share = (known.num_rows - events.null_count) / known.num_rows
        matched.append(f"{view} {share:.1%}")
    story.say("Flights for which a fact was known: " + ", ".join(matched) + ".")
    _tell_leak(story, known, _training_set(store, until, "healed"))


def _tell_leak(story: Story, known: pa.Table, healed: pa.Table) -> None:
    import pyarrow.compute as pc

    name = "route_last_flight__event_timestamp"
    before, after = known.column(name), healed.column(name)
    same = pc.or_kleene(
        pc.equal(before, after), pc.and_(pc.is_null(before), pc.is_null(after))
    ).fill_null(False)  # noqa: FBT003
    leaks = len(same) - pc.sum(same).as_py()
    story.say(
        f"For {leaks:,} of them ({leaks / len(same):.0%}) the route's last flight was still in the"
        " air. Joined on event time alone, its delay at arrival would have leaked into training;"
        " knowledge='known' looks further back."
    )


def prove(story: Story, store: FeatureStore, state: Path, instants: Sequence[datetime]) -> int:
    """Replay the year beside a server and compare; return how many values differ."""
    story.chapter("Serve, and prove that training and serving are equal")
    table = story.table(
        "as of", ">entities", ">values", ">different", ">present", ">null", ">too old", ">not found"
    )
    compared, different, shown = 0, 0, []
    with open_store(state) as replay:
        replay.apply()
        begin = BEGINNING
        _materialize(story, replay, begin, begin + _MICROSECOND)
        with server(state) as (address, pid), OnlineClient(address) as client:
            story.say(f"Server {pid} answers on {address}; this process ({os.getpid()}) asks it.")
            for as_of in instants:
                # An interval is half-open: its end is the first instant that is not in it.
                end = as_of + _MICROSECOND
                _materialize(story, replay, begin, end)
                begin = end
                found = _compare(store, client, as_of)
                compared += found.compared
                different += len(found.differences)
                shown += found.shown()
                _add_row(table, as_of, found)
    story.show(table)
    for line in shown:
        story.say(f"[red]{line}[/red]")
    colour = "red" if different else "green"
    story.say(
        f"[{colour}]{compared:,} values compared over gRPC, {different:,} different.[/{colour}]"
    )
    return different


def _compare(store: FeatureStore, client: OnlineClient, as_of: datetime) -> parity.Comparison:
    entities = _entities(as_of)
    keys = {name: entities[name] for name in ("origin", "dest", "carrier", "tailnum")}
    request = {name: entities[name] for name in ("scheduled_at", "distance")}
    response = client.get_online_features(
        SERVICE, keys, as_of=as_of, request=request, full_feature_names=True
    )
    rows = {"event_timestamp": [as_of] * len(entities["origin"]), **keys, **request}
    offline = store.get_historical_features(
        _table(rows), SERVICE, full_feature_names=True, include_timestamps=True
    ).to_arrow()
    ttls = {view: _ttl(store, view) for view in _VIEWS}
    return parity.compare(response, offline, as_of, ttls)


def _entities(as_of: datetime) -> dict[str, list[Any]]:
    """Return flights around an instant, and three that no register knows."""
    import duckdb

    sql = f"""
        SELECT origin, dest, carrier, tailnum,
               time_hour + to_minutes(minute) AS scheduled_at, CAST(distance AS DOUBLE) AS distance
        FROM {_FLIGHTS}
        WHERE scheduled_at BETWEEN TIMESTAMPTZ '{as_of.isoformat()}' - INTERVAL 12 HOURS
                               AND TIMESTAMPTZ '{as_of.isoformat()}' + INTERVAL 36 HOURS
        ORDER BY hash(flight, carrier, scheduled_at), flight
        LIMIT {_ENTITIES}
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET file_search_path = '{REPOSITORY}'")
        columns: dict[str, list[Any]] = connection.sql(sql).to_arrow_table().to_pydict()
    for strange in (
        ("JFK", "LAX", "XX", "N0NE", as_of, 2475.0),
        (None, "LAX", "AA", None, as_of, None),
        ("ZZZ", None, "AA", "N0NE", None, 0.0),
    ):
        for values, value in zip(columns.values(), strange, strict=True):
            values.append(value)
    return columns


def _table(columns: dict[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    types = {"event_timestamp": instant, "scheduled_at": instant, "distance": pa.float64()}
    return pa.table(
        {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    )


def _training_set(store: FeatureStore, until: datetime, knowledge: Any) -> pa.Table:
    return store.get_historical_features(
        TRAINING_ROWS.format(end=until.isoformat()),
        SERVICE,
        knowledge=knowledge,
        full_feature_names=True,
        include_timestamps=True,
    ).to_arrow()


def _materialize(
    story: Story, store: FeatureStore, start: datetime, end: datetime
) -> MaterializationReport:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=story.console, transient=True) as progress:
        task = progress.add_task("materializing")
        return store.materialize(
            start,
            end,
            progress=lambda view, stage: progress.update(task, description=f"{view}: {stage}"),
        )


def _ttl(store: FeatureStore, alias: str) -> timedelta | None:
    name = "airport_facts" if alias.endswith("_airport") else alias
    ttl = store.services.registry.state(store.project).catalog.views[name].ttl_us
    return None if ttl is None else timedelta(microseconds=ttl)


def _add_row(table: Table, as_of: datetime, found: parity.Comparison) -> None:
    counts = found.statuses
    names = ("PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND")
    table.add_row(
        as_of.isoformat().replace("+00:00", "Z"),
        f"{found.entities:,}",
        f"{found.compared:,}",
        f"{len(found.differences):,}",
        *(f"{counts[name]:,}" for name in names),
    )


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}Z"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--state",
        type=lambda text: Path(text).resolve(),
        default=REPOSITORY / "data" / "demo",
        help="where to keep the folders store and replay, made anew (default: data/demo)",
    )
    parser.add_argument(
        "--until",
        type=lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC),
        default=END,
        help="leave out all that came later, as in 2013-01-15 (default: the whole year)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
