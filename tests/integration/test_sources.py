"""Every kind of source through the public API: the same rows give the same table, late ones too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.errors import SourceCorruptError, SourceError, SourceNotFoundError

DAY = datetime(2024, 3, 1, tzinfo=UTC)
_DEFINITIONS = """
from featurestore import Entity, FeatureView, Field, FileSource
shop = Entity(name="shop", join_keys=["shop"])
sales = FeatureView(
    name="sales", entities=[shop],
    source=FileSource(name="till", {source}, event_timestamp="sold_at"),
    features=[Field(name="amount", dtype="float64"), Field(name="region", dtype="string")])
"""
Write = Callable[[Path, pa.Table, int], None]


def rows(first: int, count: int) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table(
        {
            "shop": [n % 3 for n in numbers],
            "sold_at": pa.array(
                [DAY + timedelta(hours=n) for n in numbers], pa.timestamp("us", "UTC")
            ),
            "amount": [n / 4 for n in numbers],
            "region": [("north", "south")[n % 2] for n in numbers],
        }
    )


def late_rows() -> pa.Table:
    """Rows whose events lie long before all others."""
    return rows(-50, 4)


def write_file(folder: Path, table: pa.Table, number: int) -> None:
    path = folder / "till.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(path), table]) if number else table, path)


def write_glob(folder: Path, table: pa.Table, number: int) -> None:
    target = folder / "2024" / f"till-{number}.parquet"
    target.parent.mkdir(exist_ok=True)
    pq.write_table(table, target)
    (folder / "2024" / "notes.txt").write_text("not a part of it", encoding="utf-8")


def write_hive(folder: Path, table: pa.Table, number: int) -> None:
    pq.write_to_dataset(
        table,
        folder / "till",
        partition_cols=["region"],
        basename_template=f"part-{number}-{{i}}.parquet",
    )
    (folder / "till" / "_SUCCESS").write_text("", encoding="utf-8")


def write_delta(folder: Path, table: pa.Table, number: int) -> None:
    del number
    deltalake.write_deltalake(folder / "till", table, mode="append")


def write_partitioned_delta(folder: Path, table: pa.Table, number: int) -> None:
    del number
    deltalake.write_deltalake(folder / "till", table, mode="append", partition_by=["region"])


def write_csv(folder: Path, table: pa.Table, number: int) -> None:
    pc.write_csv(table, folder / f"till-{number}.csv")


KINDS: dict[str, tuple[str, Write]] = {
    "parquet file": ('path="till.parquet"', write_file),
    "glob": ('path="*/till-*.parquet"', write_glob),
    "hive folder": ('path="till"', write_hive),
    "delta": ('path="till"', write_delta),
    "partitioned delta": ('path="till"', write_partitioned_delta),
    "csv": ('path="till-*.csv"', write_csv),
    "query": ("query=\"SELECT * FROM 'till.parquet' WHERE shop IS NOT NULL\"", write_file),
    "query over delta": ("query=\"SELECT * FROM delta_scan('till')\"", write_delta),
}


def open_store(folder: Path, source: str) -> FeatureStore:
    (folder / "definitions").mkdir(exist_ok=True)
    (folder / "definitions" / "views.py").write_text(
        _DEFINITIONS.format(source=source), encoding="utf-8"
    )
    (folder / "featurestore.toml").write_text('project = "shops"\n', encoding="utf-8")
    return FeatureStore(folder)


def observed(store: FeatureStore) -> list[dict[str, Any]]:
    """What a training set gives at each hour, for each shop."""
    asked = pa.table(
        {
            "shop": [shop for shop in range(4) for _ in range(-60, 30)],
            "event_timestamp": pa.array(
                [DAY + timedelta(hours=h) for _ in range(4) for h in range(-60, 30)],
                pa.timestamp("us", "UTC"),
            ),
        }
    )
    return (
        store.get_historical_features(asked, ["sales:amount", "sales:region"])
        .to_arrow()
        .to_pylist()
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[dict[str, Any]]]:
    """The answers without and with the late rows, from one plain file."""
    answers = {}
    for late in (False, True):
        folder = tmp_path_factory.mktemp("plain")
        table = pa.concat_tables([rows(0, 20), late_rows()]) if late else rows(0, 20)
        write_file(folder, table, 0)
        with open_store(folder, KINDS["parquet file"][0]) as store:
            store.apply()
            store.materialize_incremental()
            answers[late] = observed(store)
    assert answers[False] != answers[True]
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows_and_finds_late_ones(
    kind: str, expected: dict[bool, list[dict[str, Any]]], tmp_path: Path
) -> None:
    source, write = KINDS[kind]
    write(tmp_path, rows(0, 20), 0)
    with open_store(tmp_path, source) as store:
        store.apply()
        store.materialize_incremental()
        assert observed(store) == expected[False]
        write(tmp_path, late_rows(), 1)
        assert store.materialize_incremental().rows_written == late_rows().num_rows
        assert observed(store) == expected[True]
        assert store.materialize_incremental().rows_written == 0
        online = store.get_online_features(["sales:amount"], {"shop": [0, 1, 2, 3]}).to_dict()
        assert online["amount"] == [18 / 4, 19 / 4, 17 / 4, None]


def test_naive_local_times_and_renamed_columns(tmp_path: Path) -> None:
    """Clocks in Chicago went forward on 10 March 2024: what is two hours on the wall was one."""
    naive = [datetime(2024, 3, 10, 1, 30), datetime(2024, 3, 10, 3, 30)]  # noqa: DTZ001
    table = pa.table(
        {
            "id": [1, 1],
            "when": pa.array(naive, pa.timestamp("us")),
            "amount": [1.0, 2.0],
            "region": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "till.parquet")
    source = (
        'path="till.parquet", timezone="America/Chicago",'
        ' field_mapping={"id": "shop", "when": "sold_at"}'
    )
    with open_store(tmp_path, source) as store:
        store.apply()
        store.materialize_incremental()
        instants = [
            datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
            datetime(2024, 3, 10, 8, 30, tzinfo=UTC),
        ]
        asked = pa.table(
            {"shop": [1, 1, 1], "event_timestamp": [instants[0] - timedelta(seconds=1), *instants]}
        )
        found = store.get_historical_features(asked, ["sales:amount"]).to_arrow()["amount"]
        assert found.to_pylist() == [None, 1.0, 2.0]


def test_a_delta_table_whose_deletes_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_delta(tmp_path, rows(0, 4), 0)
    table = deltalake.DeltaTable(tmp_path / "till")
    table.alter.add_feature(
        deltalake.TableFeatures.DeletionVectors, allow_protocol_versions_increase=True
    )
    with (
        open_store(tmp_path, 'path="till"') as store,
        pytest.raises(SourceError, match="features that are not read"),
    ):
        store.apply()


def test_a_delta_table_that_is_none(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, 'path="till", format="delta"') as store,
        pytest.raises(SourceNotFoundError),
    ):
        store.apply()


def test_a_damaged_delta_log(tmp_path: Path) -> None:
    write_delta(tmp_path, rows(0, 4), 0)
    for entry in (tmp_path / "till" / "_delta_log").glob("*.json"):
        entry.write_text("{ no log", encoding="utf-8")
    with open_store(tmp_path, 'path="till"') as store, pytest.raises(SourceCorruptError):
        store.apply()


def test_other_readers_read_our_tables(tmp_path: Path) -> None:
    """A table is plain Parquet in Delta Lake: pyarrow, DuckDB and deltalake read it without us."""
    write_file(tmp_path, rows(0, 20), 0)
    with open_store(tmp_path, 'path="till.parquet"') as store:
        store.apply()
        store.materialize_incremental()
    (log,) = (tmp_path / "data" / "offline").rglob("_delta_log")
    table = deltalake.DeltaTable(log.parent).to_pyarrow_table()
    assert sorted(table["amount"].to_pylist()) == [n / 4 for n in range(20)]
    query = f"SELECT sum(amount) FROM read_parquet('{log.parent}/*/*.parquet')"
    assert duckdb.sql(query).fetchall() == [(sum(range(20)) / 4,)]
