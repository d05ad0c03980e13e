"""The proof of the demo: a year is replayed beside a server, and its answers are compared.

At each instant the replayed store has been materialized up to that instant and no further, so that
its newest rows are the truth as of then. The server, another process, is asked over gRPC for some
hundred flights and three that nobody knows. The same is asked of the first store's tables, which
hold the whole year, as a training set of the same entities at the same instant.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo import parity
from demo.stores import BEGINNING, FLIGHTS, REPOSITORY, SERVICE, VIEWS, open_store, server
from demo.story import Story, text
from featurestore import FeatureStore, OnlineClient

if TYPE_CHECKING:
    import pyarrow as pa

# Winter and summer, the hours in which the clocks changed, a storm before Thanksgiving, and two
# instants after the last weather observation: one within its ttl, one beyond.
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
_ENTITIES = 400
_COLUMNS = (
    "as of", ">entities", ">values", ">different", ">present", ">null", ">too old", ">not found",
)  # fmt: skip


def prove(story: Story, store: FeatureStore, state: Path, until: datetime) -> bool:
    """Replay the year beside a server and compare; return whether all was equal."""
    story.chapter("Serve, and prove that training and serving are equal")
    found: dict[datetime, parity.Comparison] = {}
    seconds: list[float] = []
    with open_store(state) as replay:
        replay.apply()
        # The tables exist before the server looks for them; what they hold grows beside it.
        begin = BEGINNING + _MICROSECOND
        views = sorted(set(VIEWS.values()))
        replay.materialize(BEGINNING, begin, views)
        with server(state) as (address, pid), OnlineClient(address) as client:
            story.say(f"Server {pid} answers on {address}; this process, {os.getpid()}, asks it.")
            for as_of in (instant for instant in INSTANTS if instant < until):
                # An interval is half-open: its end is the first instant that is not in it.
                with story.progress() as progress:
                    replay.materialize(begin, as_of + _MICROSECOND, views, progress=progress)
                begin = as_of + _MICROSECOND
                found[as_of] = _compare(store, client, as_of, seconds)
    story.table(_COLUMNS, [_row(as_of, comparison) for as_of, comparison in found.items()])
    return _verdict(story, list(found.values()), seconds)


def _compare(
    store: FeatureStore, client: OnlineClient, as_of: datetime, seconds: list[float]
) -> parity.Comparison:
    entities = _entities(as_of)
    keys = {name: entities[name] for name in ("origin", "dest", "carrier", "tailnum")}
    request = {name: entities[name] for name in ("scheduled_at", "distance")}
    started = time.perf_counter()
    response = client.get_online_features(
        SERVICE, keys, as_of=as_of, request=request, full_feature_names=True
    )
    seconds.append(time.perf_counter() - started)
    rows = {"event_timestamp": [as_of] * len(entities["origin"]), **keys, **request}
    offline = store.get_historical_features(
        _table(rows), SERVICE, full_feature_names=True, include_timestamps=True
    ).to_arrow()
    ttls = {alias: _ttl(store, view) for alias, view in VIEWS.items()}
    return parity.compare(response, offline, as_of, ttls)


def _verdict(story: Story, found: Sequence[parity.Comparison], seconds: Sequence[float]) -> bool:
    compared = sum(comparison.compared for comparison in found)
    differences = [line for comparison in found for line in comparison.differences]
    for line in differences[: parity.SHOWN]:
        story.say(f"[red]{line}[/red]")
    equal = compared > 0 and not differences
    colour = "green" if equal else "red"
    story.say(
        f"[{colour}]{compared:,} values compared, {len(differences):,} different.[/{colour}]"
        f" A request of {_ENTITIES + 3} entities took"
        f" {statistics.median(seconds or [0.0]) * 1e3:.0f} ms (median, in this process, decoding"
        " included)."
    )
    return equal


def _entities(as_of: datetime) -> dict[str, list[Any]]:
    """Return flights around an instant, and three that no register knows."""
    import duckdb

    instant = f"TIMESTAMPTZ '{as_of.isoformat()}'"
    sql = f"""
        SELECT origin, dest, carrier, tailnum,
               time_hour + to_minutes(minute) AS scheduled_at, CAST(distance AS DOUBLE) AS distance
        FROM {FLIGHTS}
        WHERE scheduled_at BETWEEN {instant} - INTERVAL 12 HOURS AND {instant} + INTERVAL 36 HOURS
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


def _ttl(store: FeatureStore, view: str) -> timedelta | None:
    ttl = store.services.registry.state(store.project).catalog.views[view].ttl_us
    return None if ttl is None else timedelta(microseconds=ttl)


def _row(as_of: datetime, found: parity.Comparison) -> list[str]:
    numbers = [found.entities, found.compared, len(found.differences)]
    numbers += [
        found.statuses[name] for name in ("PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND")
    ]
    return [text(as_of), *(f"{number:,}" for number in numbers)]
