"""Training sets end to end on real tables: forms of results, on-demand views, coverage, memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from featurestore.compile.fingerprints import code_fingerprint
from featurestore.compile.plan import (
    Column,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.errors import (
    DataError,
    FeatureNotFoundError,
    MissingColumnError,
    NameClashError,
    NotMaterializedError,
    RequestError,
    StorageError,
)
from featurestore.model.declarations import FeatureSelection
from featurestore.semantics.reference import ReferenceRow
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from tests.offline import NOW, Offline

DAY = datetime(2024, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
YES, NO = True, False
START_US = int(DAY.timestamp()) * 1_000_000


def view(
    name: str, features: dict[str, str], keys: dict[str, str] | None = None, **more: Any
) -> ViewPlan:
    keys = {"driver": "int64"} if keys is None else keys
    return ViewPlan(
        name=name,
        entities=("driver",) if keys else (),
        join_keys=tuple(Column(name=n, dtype=t) for n, t in keys.items()),
        features=tuple(FeaturePlan(name=n, dtype=t) for n, t in features.items()),
        source=SourcePlan(name="s", kind="parquet", path="s", event_timestamp="event_timestamp"),
        fingerprint=f"{abs(hash(name)):016x}"[:16],
        table_fingerprint="0123456789abcdef",
        **more,
    )


def row(key: Any, day: float, *values: Any) -> ReferenceRow:
    event = START_US + int(day * DAY_US)
    return ReferenceRow(key if isinstance(key, tuple) else (key,), event, event, values)


def at(day: float) -> datetime:
    return DAY + timedelta(days=day)


RATES = view("rates", {"trips": "int64", "rate": "float64", "vip": "bool"})
CITY = view("city", {"fuel": "float64"}, keys={})
ORIGIN = view("zone", {"demand": "float32"}, keys={"zone": "string"}, ttl_us=DAY_US)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Offline]:
    made = Offline(tmp_path)
    made.publish([RATES, CITY, ORIGIN])
    made.write(
        RATES,
        [row(1, 0, 2**53 + 1, 0.5, YES), row(1, 2, 7, None, None), row(2, 1, None, 0.25, NO)],
        unique=True,
    )
    made.write(CITY, [row((), 0, 1.5), row((), 1.5, 1.75)], unique=True)
    made.write(ORIGIN, [row("a", 0, 1.0), row("b", 1, 2.0)], unique=True)
    made.cover_all(RATES, CITY, ORIGIN)
    yield made
    assert list((tmp_path / "spill").glob("*")) == [], "a session was left open"


def entity_rows(**columns: Any) -> pa.Table:
    days = columns.pop("days", [0.5, 2.5, 0.5, 9])
    drivers = columns.pop("driver", [1, 1, 2, 3])
    return pa.table(
        {"driver": drivers, "event_timestamp": [at(day) for day in days], **columns},
    )


def test_views_of_other_keys_and_global_views_in_one_request(project: Offline) -> None:
    rows = entity_rows(**{"from": ["a", "b", None, "a"], "to": ["b", "b", "a", "zz"]})
    zone = FeatureSelection(view="zone", alias_name="to", join_keys={"zone": "to"})
    origin = FeatureSelection(view="zone", alias_name="origin", join_keys={"zone": "from"})
    result = project.reader.get_historical_features(
        rows, ["rates:rate", "city:fuel", origin, zone], full_feature_names=True
    ).to_arrow()
    assert result.column_names[4:] == [
        "rates__rate",
        "city__fuel",
        "origin__demand",
        "to__demand",
    ]
    found = result.select(result.column_names[4:]).to_pydict()
    assert found == {
        "rates__rate": [0.5, None, None, None],
        "city__fuel": [1.5, 1.75, 1.5, 1.75],
        "origin__demand": [1.0, None, None, None],
        "to__demand": [None, None, 1.0, None],
    }


def test_a_view_that_was_never_materialized_is_null_and_of_its_type(project: Offline) -> None:
    new = view("new", {"x": "vector<float32, 2>", "y": "timestamp", "z": "list<string>"})
    project.publish([RATES, new])
    job = project.reader.get_historical_features(
        entity_rows(), ["rates:trips", "new"], include_timestamps=True
    )
    with capture_logs():
        result = job.to_arrow()
    assert result["trips"].to_pylist() == [2**53 + 1, 7, None, None]
    for feature in new.features:
        assert result[feature.name].type == feature.type.arrow
        assert result[feature.name].null_count == 4
    assert result["new__event_timestamp"].null_count == 4
    assert job.outside == {"rates": 0, "new": 4}


def test_no_entity_rows_give_no_rows_and_all_columns(project: Offline) -> None:
    for rows in (entity_rows().slice(0, 0), pl.from_arrow(entity_rows().slice(0, 0))):
        job = project.reader.get_historical_features(rows, ["rates", "city"])
        result = job.to_arrow()
        assert result.schema == job.schema
        assert result.column_names == ["driver", "event_timestamp", "trips", "rate", "vip", "fuel"]
        assert result.num_rows == 0
    pq.write_table(entity_rows().slice(0, 0), project.folder / "e.parquet")
    job = project.reader.get_historical_features("e.parquet", ["rates", "city"])
    assert job.to_arrow().num_rows == 0
    assert job.to_polars().height == 0
    job.to_parquet(project.folder / "out.parquet")
    assert pq.read_table(project.folder / "out.parquet").schema.names == job.schema.names


def test_a_polars_frame_keeps_its_columns(project: Offline) -> None:
    frame = pl.from_arrow(entity_rows())
    assert isinstance(frame, pl.DataFrame)
    frame = frame.with_columns(
        label=pl.Series(["x", "y", "x", None], dtype=pl.Categorical),
        grade=pl.Series(["a", "b", "a", None], dtype=pl.Enum(["a", "b"])),
        small=pl.Series([1, 2, None, 4], dtype=pl.UInt8),
        pair=pl.Series([(1, 2)] * 4, dtype=pl.Array(pl.Int16, 2)),
    )
    result = project.reader.get_historical_features(frame, ["rates", "city:fuel"]).to_polars()
    assert result.select(frame.columns).equals(frame)
    assert result.schema == frame.schema | {
        "trips": pl.Int64,
        "rate": pl.Float64,
        "vip": pl.Boolean,
        "fuel": pl.Float64,
    }
    assert result["trips"].to_list() == [2**53 + 1, 7, None, None]


def test_a_pandas_frame_keeps_its_columns_and_index(project: Offline) -> None:
    frame = entity_rows().to_pandas()
    frame["thing"] = [object(), {1}, None, ...]
    frame["kind"] = pd.Categorical(["x", "y", "x", None])
    frame.index = pd.Index(["d", "d", "b", "a"], name="who")
    result = project.reader.get_historical_features(frame, ["rates", "city:fuel"]).to_pandas()
    pd.testing.assert_frame_equal(result[frame.columns], frame)
    assert result["trips"].dtype == pd.Int64Dtype()
    assert result["trips"].tolist()[:2] == [2**53 + 1, 7]
    assert result["vip"].dtype == pd.BooleanDtype()
    assert result["fuel"].tolist() == [1.5, 1.75, 1.5, 1.75]
    assert result["rate"].isna().tolist() == [False, True, True, True]


def test_other_tables_as_pandas_stay_exact_beside_nulls(project: Offline) -> None:
    rows = entity_rows(big=pa.array([2**53 + 1, None, 3, 4]))
    result = project.reader.get_historical_features(rows, ["rates"]).to_pandas()
    assert result["big"].tolist()[0] == 2**53 + 1
    assert result["driver"].dtype == np.dtype("int64")
    assert result["trips"].tolist()[0] == 2**53 + 1


def test_columns_of_a_query_come_back_with_their_types(project: Offline) -> None:
    query = (
        "SELECT 1::UTINYINT AS small, 1.10::DECIMAL(5, 2) AS exact, NULL::TIMESTAMP AS naive,"
        " i % 3 AS driver, TIMESTAMPTZ '2024-01-03 00:00:00+00' AS event_timestamp, 'a b' AS"
        ' "odd name" FROM range(5000) r(i)'
    )
    result = project.reader.get_historical_features(query, ["rates:trips"]).to_arrow()
    assert result.column_names[-2:] == ["odd name", "trips"]
    types = dict(zip(result.column_names, result.schema.types, strict=True))
    assert types["small"] == pa.uint8()
    assert types["exact"] == pa.decimal128(5, 2)
    assert types["naive"] == pa.timestamp("us")
    assert types["event_timestamp"] == pa.timestamp("us", tz="UTC")
    assert result["driver"].to_pylist() == [i % 3 for i in range(5000)]
    assert result["trips"].to_pylist() == [[None, 7, None][i % 3] for i in range(5000)]


def test_batches_are_no_larger_than_asked_and_in_order(project: Offline) -> None:
    rows = entity_rows(driver=[1, 2] * 5000, days=[0.5, 2.5] * 5000, n=pa.array(range(10_000)))
    pq.write_table(rows, project.folder / "e.parquet")
    for form in (rows, "e.parquet"):
        job = project.reader.get_historical_features(form, ["rates:trips", "rates:rate"])
        batches = list(job.to_batches(batch_rows=999))
        assert max(batch.num_rows for batch in batches) <= 999
        table = pa.Table.from_batches(batches)
        assert table.schema == job.schema
        assert table["n"].to_pylist() == list(range(10_000))
        assert table["rate"].to_pylist() == [0.5, 0.25] * 5000
        assert table.equals(job.to_arrow())
    with pytest.raises(RequestError, match="one row or more"):
        job.to_batches(batch_rows=0)


def test_batches_that_are_not_read_to_the_end_leave_nothing_open(project: Offline) -> None:
    rows = entity_rows(driver=[1] * 9000, days=[0.5] * 9000)
    batches = project.reader.get_historical_features(rows, ["rates"]).to_batches(batch_rows=100)
    assert next(iter(batches)).num_rows == 100
    batches.close()  # type: ignore[attr-defined]
    assert list((project.folder / "spill").glob("*")) == []


def test_a_parquet_file_is_what_the_table_is(project: Offline, tmp_path: Path) -> None:
    job = project.reader.get_historical_features(entity_rows(), ["rates", "city"])
    job.to_parquet(tmp_path / "out.parquet")
    job.to_parquet(str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").equals(job.to_arrow())
    assert [p.name for p in tmp_path.glob("*out*")] == ["out.parquet"]


def test_a_parquet_file_that_cannot_be_written(project: Offline, tmp_path: Path) -> None:
    job = project.reader.get_historical_features(entity_rows(), ["rates"])
    with pytest.raises(StorageError, match="cannot be written"):
        job.to_parquet(tmp_path / "no" / "out.parquet")


# -- on-demand views


def share(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(share=pl.col("rate") / pl.col("price"))


def doubled(inputs: pl.DataFrame) -> pl.DataFrame:
    if (inputs["share"] == -1.0).any():
        raise ValueError("a share below zero")
    return inputs.select(doubled=2 * pl.col("share") + pl.col("fuel"))


def on_demand(project: Offline) -> None:
    plans = [
        OnDemandPlan(
            name="shares",
            inputs=(Selection(view="rates", features=("rate",), alias="rates"),),
            request=(Column(name="price", dtype="float64"),),
            features=(FeaturePlan(name="share", dtype="float64"),),
            code_fingerprint=code_fingerprint(share),
        ),
        OnDemandPlan(
            name="more",
            inputs=(
                Selection(view="shares", features=("share",), alias="shares"),
                Selection(view="city", features=("fuel",), alias="city"),
            ),
            request=(),
            features=(FeaturePlan(name="doubled", dtype="float64"),),
            code_fingerprint=code_fingerprint(doubled),
        ),
    ]
    service = ServicePlan(
        name="pricing",
        features=(
            Selection(view="more", features=("doubled",), alias="more"),
            Selection(view="rates", features=("vip",), alias="rates"),
        ),
    )
    project.functions.update(shares=share, more=doubled)
    project.publish([RATES, CITY, ORIGIN], plans, [service])


def test_on_demand_views_compute_from_features_and_request_fields(project: Offline) -> None:
    on_demand(project)
    rows = entity_rows(price=pa.array([2, 1, None, 1], pa.int8()))
    pq.write_table(rows, project.folder / "e.parquet")
    for form in (rows, "e.parquet", rows.to_pandas()):
        result = project.reader.get_historical_features(form, "pricing").to_arrow()
        assert result.column_names == [*rows.column_names, "doubled", "vip"]
        assert result["doubled"].to_pylist() == [2.0, None, None, None]
        assert result["vip"].to_pylist() == [True, None, None, None]


def test_on_demand_views_see_each_row_once_whatever_the_batches(project: Offline) -> None:
    on_demand(project)
    rows = entity_rows(driver=[1] * 5000, days=[0.5] * 5000, price=np.arange(1.0, 5001.0))
    job = project.reader.get_historical_features(rows, ["more", "shares"])
    whole = job.to_arrow()
    assert whole["share"].to_pylist() == [0.5 / n for n in range(1, 5001)]
    assert pa.Table.from_batches(job.to_batches(batch_rows=7)).equals(whole)


def test_a_missing_request_field_is_told_before_any_work(project: Offline) -> None:
    on_demand(project)
    with pytest.raises(MissingColumnError, match="price") as caught:
        project.reader.get_historical_features(entity_rows(prise=[1.0] * 4), "pricing")
    assert caught.value.where == "request field of 'shares'"
    assert caught.value.hint == "Did you mean 'prise'?"


def test_code_that_is_not_what_was_applied_is_told_before_any_work(project: Offline) -> None:
    on_demand(project)
    project.functions["more"] = share
    with pytest.raises(NotMaterializedError, match="'more'"):
        project.reader.get_historical_features(entity_rows(price=[1.0] * 4), "pricing")


def test_a_failing_function_leaves_no_file_and_the_former_one_alone(
    project: Offline, tmp_path: Path
) -> None:
    on_demand(project)
    prices = [1.0] * 70_000
    good = entity_rows(driver=[1] * 70_000, days=[0.5] * 70_000, price=prices)
    project.reader.get_historical_features(good, ["more"]).to_parquet(tmp_path / "out.parquet")
    prices[-1] = -0.5
    bad = entity_rows(driver=[1] * 70_000, days=[0.5] * 70_000, price=prices)
    with pytest.raises(DataError, match="'more' failed"):
        project.reader.get_historical_features(bad, ["more"]).to_parquet(tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.glob("*out*")] == ["out.parquet"]
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_rows == 70_000


# -- refusals


def test_a_feature_named_like_a_column_is_refused(project: Offline) -> None:
    rows = entity_rows(rate=[1.0] * 4)
    with pytest.raises(NameClashError, match="'rate'") as caught:
        project.reader.get_historical_features(rows, ["rates"])
    assert caught.value.got == "rates:rate"
    named = project.reader.get_historical_features(rows, ["rates"], full_feature_names=True)
    assert named.to_arrow()["rates__rate"].to_pylist() == [0.5, None, None, None]
    rows = entity_rows(rates__event_timestamp=[1] * 4)
    with pytest.raises(NameClashError, match="rates__event_timestamp"):
        project.reader.get_historical_features(rows, ["rates:trips"], include_timestamps=True)


def test_arguments_that_make_no_sense_are_refused(project: Offline) -> None:
    with pytest.raises(RequestError, match="knowledge"):
        project.reader.get_historical_features(entity_rows(), ["rates"], knowledge="all")  # type: ignore[arg-type]
    with pytest.raises(FeatureNotFoundError, match="rate"):
        project.reader.get_historical_features(entity_rows(), ["rates:rat"])
    with pytest.raises(MissingColumnError, match="driver"):
        project.reader.get_historical_features(entity_rows().drop(["driver"]), ["rates"])


# -- snapshots


def test_a_snapshot_unites_the_keys_of_its_views(project: Offline) -> None:
    more = view("more", {"score": "float64"}, ttl_us=DAY_US)
    project.publish([RATES, CITY, more])
    project.write(more, [row(9, 0, 0.5), row(1, 1, 0.75), row(5, 8, 1.0)], unique=True)
    project.cover_all(more)
    job = project.reader.get_snapshot(
        ["rates:trips", "more", "city:fuel"], as_of=START_US + 2 * DAY_US
    )
    assert job.to_arrow().to_pydict() == {
        "driver": [1, 2, 9],
        "event_timestamp": [at(2)] * 3,
        "trips": [7, None, None],
        "score": [0.75, None, None],
        "fuel": [1.75] * 3,
    }


def test_a_snapshot_of_global_features_is_one_row(project: Offline) -> None:
    job = project.reader.get_snapshot(["city"], as_of=START_US)
    assert job.to_arrow().to_pydict() == {"event_timestamp": [DAY], "fuel": [1.5]}
    assert project.reader.get_snapshot(["city"], as_of=START_US - 1).to_arrow().num_rows == 0


def test_a_snapshot_refuses_views_of_other_keys_and_request_fields(project: Offline) -> None:
    with pytest.raises(RequestError, match="different join keys") as caught:
        project.reader.get_snapshot(["rates", "zone"], as_of=START_US)
    assert caught.value.got == "rates: driver; zone: zone"
    on_demand(project)
    with pytest.raises(MissingColumnError, match="request fields"):
        project.reader.get_snapshot("pricing", as_of=START_US)


# -- what has been materialized


def test_entity_rows_outside_of_what_was_materialized_are_counted_and_logged(
    project: Offline,
) -> None:
    # Half-open: the instant of the end is outside.
    project.cover(RATES, (MIN_INSTANT, START_US + DAY_US // 2), (START_US + DAY_US, MAX_INSTANT))
    job = project.reader.get_historical_features(entity_rows(), ["rates", "city"])
    with capture_logs() as logs:
        job.to_arrow()
        job.to_arrow()
    assert job.outside == {"rates": 2, "city": 0}
    (log,) = logs
    assert (log["log_level"], log["view"], log["outside"]) == ("warning", "rates", 2)


def test_what_is_missing_is_filled_on_request(project: Offline) -> None:
    late = row(3, 3, 33, 0.1, YES)

    def fill(name: str) -> None:
        assert name == "rates"
        assert list((project.folder / "spill").glob("*")) == [], "a session holds memory"
        if len(project.filled) == 2:
            project.write(RATES, [late], unique=True)
            project.cover_all(RATES)

    project.on_fill = fill
    project.cover(RATES, (START_US, START_US + DAY_US))
    job = project.reader.get_historical_features(
        entity_rows(), ["rates:trips", "city"], materialize_missing=True
    )
    assert project.filled == []
    result = job.to_arrow()
    last = START_US + 9 * DAY_US
    assert project.filled == [
        ("rates", MIN_INSTANT, START_US),
        ("rates", START_US + DAY_US, last + 1),
    ]
    assert result["trips"].to_pylist() == [2**53 + 1, 7, None, 33]
    assert job.outside == {"rates": 0, "city": 0}
    job.to_arrow()
    assert len(project.filled) == 2


def test_only_what_a_ttl_reaches_is_filled_and_nothing_ahead_of_now(project: Offline) -> None:
    project.cover(ORIGIN)
    project.on_fill = lambda _: project.cover_all(ORIGIN)
    project.clock.set(START_US + 2 * DAY_US)
    rows = pa.table({"zone": ["a", "b"], "event_timestamp": [at(1), at(30)]})
    job = project.reader.get_historical_features(rows, ["zone"], materialize_missing=True)
    assert job.to_arrow()["demand"].to_pylist() == [1.0, None]
    assert project.filled == [("zone", START_US, START_US + 2 * DAY_US)]
    project.clock.set(NOW)


def test_a_job_sees_the_tables_as_they_were_when_it_was_made(project: Offline) -> None:
    job = project.reader.get_historical_features(entity_rows(), ["rates:trips"])
    project.write(RATES, [row(3, 3, 33, 0.1, YES)], unique=True)
    assert job.to_arrow()["trips"].to_pylist() == [2**53 + 1, 7, None, None]
    again = project.reader.get_historical_features(entity_rows(), ["rates:trips"])
    assert again.to_arrow()["trips"].to_pylist() == [2**53 + 1, 7, None, 33]


def test_explain_shows_the_plan_and_sql_that_runs(project: Offline) -> None:
    on_demand(project)
    rows = entity_rows(price=[1.0] * 4, days=[0.1, 0.2, 0.3, 0.4])
    text = project.reader.get_historical_features(rows, "pricing").explain()
    assert "entity rows: a table in memory, 4 rows" in text
    assert "join: rates, features rate, vip" in text
    assert "keys: driver = driver; ttl: none" in text
    assert "1 of 1 files, 3 of 3 rows may matter" in text
    assert "ties: none: the table promises" in text
    assert "ASOF LEFT JOIN" in text
    assert "on demand: shares(rate, request price)" in text
    assert "result: doubled, vip" in text
    project.write(RATES, [row(1, 40, 1, 1.0, YES)], unique=False)
    text = project.reader.get_historical_features(rows, ["rates"], knowledge="known").explain()
    assert "knowledge: known" in text
    assert "ties: reduced" in text
    assert "1 of 2 files, 3 of 4 rows may matter" in text


# -- sizes


@pytest.mark.slow
def test_a_join_larger_than_its_memory_spills_and_gives_the_same(tmp_path: Path) -> None:
    """Some 50 MB of rows and 60 MB of features pass through 40 MB of memory."""
    wide = view("wide", {f"f{i}": "float64" for i in range(10)} | {"s": "string"})
    results = []
    for limit in (40_000_000, 2_000_000_000):
        folder = tmp_path / str(limit)
        project = Offline(folder, memory_limit=limit)
        project.publish([wide])
        project.cover_all(wide)
        floats = ", ".join(f"(hash(i, {n}) % 1000)::DOUBLE AS f{n}" for n in range(10))
        if not results:
            writer = Offline(tmp_path / "writer", memory_limit=10**9)
            with writer.engine.session() as session:
                session.run(
                    "CREATE TEMP TABLE rows AS SELECT (hash(i) % 8000)::BIGINT AS driver,"
                    f" make_timestamptz({START_US} + (hash(i, 1) % 2592000)::BIGINT * 1000000)"
                    " AS event_timestamp, NULL::TIMESTAMPTZ AS created_timestamp,"
                    f" {floats}, 'text ' || i AS s FROM range(500000) r(i)"
                )
                writer.write_sql(wide, session, "rows", unique=False)
                session.run(
                    "COPY (SELECT i AS n, (hash(i, 2) % 10000)::BIGINT AS driver,"
                    f" make_timestamptz({START_US} + (hash(i, 3) % 2592000)::BIGINT * 1000000)"
                    " AS event_timestamp FROM range(400000) r(i)) TO"
                    f" '{tmp_path / 'entities.parquet'}'"
                )
        project.tables = project.reader._tables = writer.tables
        job = project.reader.get_historical_features(str(tmp_path / "entities.parquet"), ["wide"])
        job.to_parquet(folder / "out.parquet")
        results.append(pq.read_table(folder / "out.parquet"))
        shutil.rmtree(folder)
    assert results[0].num_rows == 400_000
    assert results[0]["n"].to_pylist() == list(range(400_000))
    assert results[0]["f0"].null_count < 100_000
    assert results[0].equals(results[1])
