"""The training set of the demo, and what a careless one would have leaked.

Every flight is asked about an hour before its scheduled departure. At the scheduled instant itself
it would be too late: 200,089 flights left on time or early (the earliest by 43 minutes), and
"the last departure of the aircraft" would then be the very flight whose delay is to be predicted.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from demo.stores import FLIGHTS, SERVICE, VIEWS
from demo.story import Story, text

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore import FeatureStore

_ROWS = f"""
    SELECT time_hour + to_minutes(minute) - INTERVAL 1 HOUR AS event_timestamp,
           origin, dest, carrier, tailnum,
           time_hour + to_minutes(minute) AS scheduled_at, CAST(distance AS DOUBLE) AS distance
    FROM {FLIGHTS}
    WHERE time_hour < TIMESTAMPTZ '{{until}}'
"""
_SHOWN = {
    "event_timestamp": "as of",
    "origin": "origin",
    "dest": "dest",
    "tailnum": "tailnum",
    "origin_weather__wind_kmh": ">wind km/h",
    "aircraft_last_departure__left_late_minutes": ">left late",
    "route_last_flight__arrived_late_minutes": ">route late",
    "departure_conditions__hours_since_last_departure": ">hours since",
}
_SHOWN_ROWS = 4


def train(story: Story, store: FeatureStore, until: datetime) -> None:
    """Make the training set of all flights, show some of it, and tell what was known."""
    story.chapter(
        "A training set: every flight, asked about an hour before its scheduled departure"
    )
    started = time.perf_counter()
    known = _training_set(store, until, "known")
    seconds = time.perf_counter() - started
    story.say(
        f"{known.num_rows:,} rows x {known.num_columns} columns in {seconds:.1f} s:"
        f" {known.num_rows / seconds:,.0f} rows/s. Some of them:"
    )
    some = known.slice(known.num_rows // 2, _SHOWN_ROWS).to_pylist()
    story.table(list(_SHOWN.values()), [[text(row[name]) for name in _SHOWN] for row in some])
    shares = [f"{view} {_share_matched(known, view):.1%}" for view in VIEWS]
    story.say(f"Flights for which there was a fact: {', '.join(shares)}.")
    _tell_leak(story, known, _training_set(store, until, "healed"))


def _share_matched(rows: pa.Table, view: str) -> float:
    missing: int = rows.column(f"{view}__event_timestamp").null_count
    return float((rows.num_rows - missing) / max(1, rows.num_rows))


def _tell_leak(story: Story, known: pa.Table, healed: pa.Table) -> None:
    """Count the flights for which event time alone matches what was not known yet."""
    name = "route_last_flight__event_timestamp"
    pairs = zip(known.column(name).to_pylist(), healed.column(name).to_pylist(), strict=True)
    leaks = sum(before != after for before, after in pairs)
    story.say(
        f"For {leaks:,} of them ({leaks / max(1, known.num_rows):.0%}) the route's last flight was"
        " still in the air. A join on event time alone would have told its delay at arrival;"
        " knowledge='known' looks further back, at the last one that had landed."
    )


def _training_set(store: FeatureStore, until: datetime, knowledge: Any) -> pa.Table:
    return store.get_historical_features(
        _ROWS.format(until=until.isoformat()),
        SERVICE,
        knowledge=knowledge,
        full_feature_names=True,
        include_timestamps=True,
    ).to_arrow()
