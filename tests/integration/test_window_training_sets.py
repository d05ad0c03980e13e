"""Training sets of aggregated views beside others: requests, snapshots, coverage, plans, memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from featurestore.compile.fingerprints import code_fingerprint
from featurestore.compile.plan import (
    AggregatePlan,
    Column,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    SourcePlan,
    ViewPlan,
)
from featurestore.semantics.reference import ReferenceRow
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.semantics.window_ranges import Locator, expand
from featurestore.services.window_retrieval import Budget
from tests.offline import NOW, Offline

DAY = datetime(2024, 1, 1, tzinfo=UTC)
HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000
START_US = int(DAY.timestamp()) * 1_000_000


def windowed(name: str, *, keys: dict[str, str] | None = None, **source: Any) -> ViewPlan:
    """Return a view of a count and a sum over an hour, the last text, and a lifetime histogram."""
    keys = {"driver": "int64"} if keys is None else keys
    hour = {"size": HOUR_US, "hop": MINUTE_US}
    return ViewPlan(
        name=name,
        entities=("driver",) if keys else (),
        join_keys=tuple(Column(name=n, dtype=t) for n, t in keys.items()),
        features=(
            FeaturePlan(name="rides", dtype="int64"),
            FeaturePlan(name="fare", dtype="float64"),
            FeaturePlan(name="zone", dtype="string"),
            FeaturePlan(name="zones", dtype="map<string, int64>"),
        ),
        aggregates=(
            AggregatePlan(function="count", **hour),
            AggregatePlan(function="sum", input=0, default=0.0, **hour),
            AggregatePlan(function="last", input=1, **hour),
            AggregatePlan(function="histogram", input=1),
        ),
        inputs=(
            FeaturePlan(name="_input_0", dtype="float64"),
            FeaturePlan(name="_input_1", dtype="string"),
        ),
        source=SourcePlan(
            name="s", kind="parquet", path="s", event_timestamp="event_timestamp", **source
        ),
        fingerprint=f"{abs(hash(name)):016x}"[:16],
        table_fingerprint="0123456789abcdef",
    )


def ride(key: Any, hour: float, fare: float | None, zone: str | None, **more: Any) -> ReferenceRow:
    instant = START_US + round(hour * HOUR_US)
    created = START_US + round(more["learnt"] * HOUR_US) if "learnt" in more else instant
    told = (more.get("id", f"{key}-{hour}"), more.get("version", 0), more.get("deleted", False))
    key = key if isinstance(key, tuple) else (key,)
    return ReferenceRow(key, instant, created, (*told, None, None, fare, zone))


def at(hour: float) -> datetime:
    return DAY + timedelta(hours=hour)


RIDES = windowed("rides")
TOLD = windowed("told", event_id="id", version="v", deleted="d", created_timestamp="learnt")
CITY = windowed("city", keys={})
RATES = ViewPlan(
    name="rates",
    entities=("driver",),
    join_keys=(Column(name="driver", dtype="int64"),),
    features=(FeaturePlan(name="rate", dtype="float64"),),
    source=SourcePlan(name="r", kind="parquet", path="r", event_timestamp="event_timestamp"),
    fingerprint="0123456789abcdef",
    table_fingerprint="0123456789abcdef",
)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Offline]:
    made = Offline(tmp_path)
    made.publish([RIDES, TOLD, CITY, RATES])
    made.write(
        RIDES.log,
        [ride(1, 1, 2.5, "a"), ride(1, 1.5, 1.0, "b"), ride(2, 1, 4.0, None)],
        unique=True,
    )
    made.write(CITY.log, [ride((), 1, 7.0, "c")], unique=True)
    rate = ReferenceRow((1,), START_US, START_US, (0.5,))
    made.write(RATES, [rate], unique=True)
    made.cover_all(RIDES, TOLD, CITY, RATES)
    yield made
    assert list((tmp_path / "spill").glob("*")) == [], "a session was left open"


def entity_rows(drivers: list[int | None], hours: list[float], **more: Any) -> pa.Table:
    instants = pa.array([at(hour) for hour in hours], pa.timestamp("us", tz="UTC"))
    return pa.table({"driver": pa.array(drivers, pa.int64()), "event_timestamp": instants, **more})


def lists(table: pa.Table) -> dict[str, Any]:
    return table.to_pydict(maps_as_pydicts="strict")


def test_a_request_mixes_windows_plain_views_and_views_without_keys(project: Offline) -> None:
    rows = entity_rows([1, 1, 2, 99, None], [2, 1, 2, 2, 2], extra=list("vwxyz"))
    job = project.reader.get_historical_features(
        rows,
        ["rides:zones", "rates:rate", "city:fare", "rides:rides", "rides:fare", "rides:zone"],
        full_feature_names=True,
        include_timestamps=True,
    )
    result = job.to_arrow()
    assert result.schema.equals(job.schema, check_metadata=True)
    assert result.select(rows.column_names).equals(rows)
    moments = [at(2), at(1), at(2), at(2), None]
    assert lists(result.drop_columns(rows.column_names)) == {
        "rides__zones": [{"a": 1, "b": 1}, {}, {}, {}, None],
        "rates__rate": [0.5, 0.5, None, None, None],
        "city__fare": [7.0, 0.0, 7.0, 7.0, 7.0],
        "rides__rides": [2, 0, 1, 0, None],
        "rides__fare": [3.5, 0.0, 4.0, 0.0, None],
        "rides__zone": ["b", None, None, None, None],
        "rides__event_timestamp": moments,
        "rides__created_timestamp": [None] * 5,
        "rates__event_timestamp": [DAY, DAY, None, None, None],
        "rates__created_timestamp": [None] * 5,
        "city__event_timestamp": [*moments[:4], at(2)],
        "city__created_timestamp": [None] * 5,
    }


def test_rows_come_in_batches_in_the_order_of_the_entity_rows(project: Offline) -> None:
    chance = np.random.default_rng(7)
    drivers = chance.integers(1, 4, 500).tolist()
    rows = entity_rows(drivers, chance.integers(0, 4, 500).tolist())
    whole = project.reader.get_historical_features(rows, ["rides", "rates:rate"]).to_arrow()
    with mock.patch.object(Budget, "of", return_value=Budget(2, 64)):
        job = project.reader.get_historical_features(rows, ["rides", "rates:rate"])
        batches = list(job.to_batches(64))
    assert [batch.num_rows for batch in batches] == [64] * 7 + [52]
    assert pa.Table.from_batches(batches).equals(whole.combine_chunks())


def share(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(share=pl.col("fare") / pl.col("price"))


def test_on_demand_views_take_windowed_features(project: Offline) -> None:
    plan = OnDemandPlan(
        name="shares",
        inputs=(Selection(view="rides", features=("fare",), alias="rides"),),
        request=(Column(name="price", dtype="float64"),),
        features=(FeaturePlan(name="share", dtype="float64"),),
        code_fingerprint=code_fingerprint(share),
    )
    project.functions["shares"] = share
    project.publish([RIDES], [plan])
    rows = entity_rows([1, 3], [2, 2], price=[7.0, 2.0])
    result = project.reader.get_historical_features(rows, ["shares:share"]).to_arrow()
    assert result["share"].to_pylist() == [0.5, 0.0]


def test_of_a_view_without_a_table_there_are_the_values_of_nothing(project: Offline) -> None:
    new = windowed("new")
    project.publish([new])
    for rows in (entity_rows([1, None], [1, 1]), entity_rows([], [])):
        job = project.reader.get_historical_features(rows, ["new"], include_timestamps=True)
        result = lists(job.to_arrow())
        size = len(rows)
        assert result["rides"] == [0, None][:size]
        assert result["fare"] == [0.0, None][:size]
        assert result["zone"] == [None, None][:size]
        assert result["zones"] == [{}, None][:size]


def told_rows() -> list[ReferenceRow]:
    return [
        ride(1, 1.0, 1.0, "a", id="x", version=1, learnt=1.25),
        ride(1, 0.5, 2.0, "b", id="x", version=2, learnt=1.75),
        ride(2, 1.0, 4.0, "a", id="y", version=1, learnt=3.0),
        ride(3, 1.0, 8.0, "a", id="z", version=1, learnt=1.0),
        ride(3, 1.0, None, None, id="z", version=2, learnt=1.5, deleted=True),
    ]


def test_a_correction_that_moves_an_event_and_a_deletion_count_from_when_they_were_learnt(
    project: Offline,
) -> None:
    project.write(TOLD.log, told_rows()[::2], unique=True)
    project.write(TOLD.log, told_rows()[1::2], unique=True)
    hours = [1.25, 1.26, 1.75, 1.76, 1.26, 1.5, 1.51]
    rows = entity_rows([1, 1, 1, 1, 3, 3, 3], hours)
    found = {
        knowledge: project.reader.get_historical_features(rows, ["told:fare"], knowledge=knowledge)
        .to_arrow()["fare"]
        .to_pylist()
        for knowledge in ("healed", "known")
    }
    assert found["healed"] == [2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert found["known"] == [0.0, 1.0, 1.0, 0.0, 8.0, 8.0, 0.0]


def test_a_snapshot_has_the_keys_of_all_events_before_its_instant(project: Offline) -> None:
    project.write(TOLD.log, told_rows(), unique=True)

    def drivers(hour: float, knowledge: Any = "healed") -> dict[int, int]:
        as_of = START_US + round(hour * HOUR_US)
        job = project.reader.get_snapshot(["told:rides"], as_of=as_of, knowledge=knowledge)
        found = job.to_arrow()
        return dict(zip(found["driver"].to_pylist(), found["rides"].to_pylist(), strict=True))

    assert drivers(1.0) == {1: 1}
    assert drivers(1.001) == {1: 1, 2: 1, 3: 0}
    assert drivers(9) == {1: 0, 2: 0, 3: 0}
    assert drivers(1.001, "known") == {3: 1}
    assert drivers(1.6, "known") == {1: 1, 3: 0}


def test_what_lies_within_reach_is_materialized_first(project: Offline) -> None:
    """The widest window of one view reaches an hour and a minute back, of another one for ever."""
    narrow = RIDES.model_copy(
        update={
            "name": "narrow",
            "features": RIDES.features[:3],
            "aggregates": RIDES.aggregates[:3],
        }
    )
    project.publish([narrow, RIDES])
    for view in (narrow, RIDES):
        project.cover(view, (START_US + HOUR_US, START_US + 9 * HOUR_US))
    rows = entity_rows([1, 1, 1], [2, 3, 9])
    reader = project.reader
    assert reader.get_historical_features(rows, ["narrow"]).outside == {"narrow": 1}
    assert reader.get_historical_features(rows, ["rides"]).outside == {"rides": 3}
    reader.get_historical_features(
        rows, ["narrow", "rides:zones"], full_feature_names=True, materialize_missing=True
    ).to_arrow()
    assert project.filled == [
        ("narrow", START_US + HOUR_US - MINUTE_US, START_US + HOUR_US),
        ("rides", MIN_INSTANT, START_US + HOUR_US),
    ]
    assert NOW > START_US + 9 * HOUR_US


def test_the_plan_of_each_feature_is_named(project: Offline) -> None:
    text = project.reader.get_historical_features(
        entity_rows([1] * 40, [2] * 40), ["rides", "told"], full_feature_names=True
    ).explain()
    assert "rides = count() over 1h, hop 1m: prefix, 80 pairs of event and row" in text
    assert "zones = histogram(" in text
    assert "over lifetime: frames, 80 pairs of event and row" in text
    assert "there are no events" in text
    assert "CREATE TEMP TABLE" in text


def test_explaining_touches_nothing_that_a_run_needs(project: Offline) -> None:
    project.write(TOLD.log, told_rows(), unique=True)
    job = project.reader.get_historical_features(entity_rows([1, 3], [1.3, 1.3]), ["told:fare"])
    assert "their versions" in job.explain()
    with mock.patch.object(Budget, "of", return_value=Budget(1, 1)):
        assert "some keys at a time" in job.explain()
    assert job.to_arrow()["fare"].to_pylist() == [2.0, 0.0]


def test_places_are_found_where_key_and_instant_do_not_fit_one_number() -> None:
    keys = np.array([1, 1, 1 << 40, 1 << 40], dtype=np.int64)
    instants = np.array([MIN_INSTANT, MAX_INSTANT, 0, 0], dtype=np.int64)
    asked = [
        (1, MIN_INSTANT, 0),
        (1, MIN_INSTANT + 1, 1),
        (1, MAX_INSTANT, 1),
        (1, MAX_INSTANT + 1, 2),
        (0, 5, 0),
        (2, 5, 2),
        (1 << 40, 0, 2),
        (1 << 40, 1, 4),
        (1 << 41, 0, 4),
    ]
    found = Locator(keys, instants).first_at(
        np.array([key for key, *_ in asked]), np.array([bound for _, bound, _ in asked])
    )
    assert found.tolist() == [place for *_, place in asked]


def test_ranges_are_written_out_some_at_a_time() -> None:
    starts, ends = np.array([5, 0, 3, 3]), np.array([7, 0, 9, 4])
    for most in (1, 2, 3, 100):
        pairs = [
            pair
            for _, owner, index in expand(starts, ends, most)
            for pair in zip(owner.tolist(), index.tolist(), strict=True)
        ]
        assert pairs == [(r, i) for r in range(4) for i in range(starts[r], ends[r])]
