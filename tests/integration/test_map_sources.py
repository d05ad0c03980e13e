"""MAP columns of sources: read as maps, put in order, written once; refused where they are none."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.errors import DataError, SourceSchemaError

AT = datetime(2024, 3, 1, tzinfo=UTC)
NAIVE = pa.timestamp("ns")
INSTANT = pa.timestamp("us", tz="UTC")
_DEFINITIONS = """
from featurestore import Entity, FeatureView, Field, FileSource
user = Entity(name="user", join_keys=["user"])
taste = FeatureView(
    name="taste", entities=[user], {where}
    source=FileSource(name="log", path="{path}", {zone} event_timestamp="at"),
    features=[{features}])
"""


def repository(
    folder: Path, features: str, *, path: str = "log.parquet", zone: str = "", where: str = ""
) -> FeatureStore:
    (folder / "definitions").mkdir()
    (folder / "featurestore.toml").write_text('project = "maps"\n[online]\nurl = "memory:"\n')
    text = _DEFINITIONS.format(features=features, path=path, zone=zone, where=where)
    (folder / "definitions" / "views.py").write_text(text)
    return FeatureStore(folder)


def write(path: Path, column: pa.Array) -> None:
    rows = len(column)
    pq.write_table(
        pa.table({"user": range(rows), "at": pa.array([AT] * rows, INSTANT), "m": column}), path
    )


def both(store: FeatureStore, rows: int, features: list[str]) -> dict[str, list[Any]]:
    """Return what a training set and a lookup say, which is the same."""
    entities = pa.table({"user": range(rows), "event_timestamp": pa.array([AT] * rows, INSTANT)})
    job = store.get_historical_features(entities, features)
    found = job.to_arrow().drop_columns(["user", "event_timestamp"])
    answer = store.get_online_features(features, {"user": list(range(rows))}, as_of=AT)
    there = answer.to_arrow().drop_columns(["user"])
    assert there.schema == found.schema
    for name in found.column_names:
        assert repr(there[name].to_pylist()) == repr(found[name].to_pylist())
    frame = job.to_pandas()
    for name in found.column_names:
        dicts = found[name].to_pylist(maps_as_pydicts="strict")
        assert repr(frame[name].tolist()) == repr(dicts)
    return {name: found[name].to_pylist() for name in found.column_names}


def materialized(store: FeatureStore) -> int:
    return store.materialize_incremental().rows_written


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_maps_are_read_in_order_and_written_once(tmp_path, kind):
    given = [{"b": 0.5, "a": None}, None, {}, {"x": -0.0}, {"n": math.nan}]
    back = [dict(reversed(value.items())) if value else value for value in given]
    path = "log.parquet" if kind == "parquet" else "log"
    store = repository(
        tmp_path, '"m", Field(name="size", expression="cardinality(m)::INT")', path=path
    )

    def put(values):
        column = pa.array(values, pa.map_(pa.string(), pa.float64()))
        if kind == "parquet":
            write(tmp_path / path, column)
        else:
            write(tmp_path / "one.parquet", column)
            table = pq.read_table(tmp_path / "one.parquet")
            deltalake.write_deltalake(tmp_path / path, table, mode="overwrite")

    put(given)
    store.apply()
    assert materialized(store) == 5
    found = both(store, 5, ["taste:m"])
    assert repr(found["m"]) == repr([[("a", None), ("b", 0.5)], None, [], [("x", -0.0)],
                                     [("n", math.nan)]])  # fmt: skip
    # The same maps in another order are the same rows; another sign of zero is another row.
    put(back)
    assert materialized(store) == 0
    put([*given[:3], {"x": 0.0}, given[4]])
    assert materialized(store) == 1
    # The two tie fully: their canonical bytes settle it, in the engine as in the online store.
    assert repr(both(store, 5, ["taste:m"])["m"][3]) == repr([("x", -0.0)])


def test_types_inside_of_maps_are_made_the_declared_ones(tmp_path):
    kinds = {
        "widened": (pa.map_(pa.int16(), pa.float32()), "map<int32, float64>"),
        "zoned": (pa.map_(NAIVE, NAIVE), "map<timestamp, timestamp>"),
        "dates": (pa.map_(pa.date32(), pa.timestamp("ms", "UTC")), "map<date, timestamp>"),
    }
    values = {
        "widened": [[(2, 0.5), (-1, None)], None],
        "zoned": [[(1_500, -1_500), (-1, None)], []],
        "dates": [[(date(2024, 1, 2), AT), (date(1960, 1, 1), None)], None],
    }
    columns = {n: pa.array(values[n], kind) for n, (kind, _) in kinds.items()}
    table = {"user": [0, 1], "at": pa.array([AT] * 2, INSTANT), **columns}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    fields = [f'Field(name="{n}", dtype="{dtype}")' for n, (_, dtype) in kinds.items()]
    fields.append('Field(name="made", expression="map([2, 1], [\'b\', user::VARCHAR])")')
    store = repository(tmp_path, ", ".join(fields), zone='timezone="Europe/Paris",')
    store.apply()
    assert materialized(store) == 2
    hour = 3_600_000_000
    at = pa.array([-1 - hour, 1 - hour, -2 - hour], pa.int64()).cast(INSTANT).to_pylist()
    assert both(store, 2, ["taste"]) == {
        "widened": [[(-1, None), (2, 0.5)], None],
        "zoned": [[(at[0], None), (at[1], at[2])], []],
        "dates": [[(date(1960, 1, 1), None), (date(2024, 1, 2), AT)], None],
        "made": [[(1, "0"), (2, "b")], [(1, "1"), (2, "b")]],
    }


def test_a_key_that_is_there_twice_is_a_data_error(tmp_path):
    twice = pa.array([[("a", 1), ("a", 2)], [("b", 1)]], pa.map_(pa.string(), pa.int64()))
    write(tmp_path / "log.parquet", twice)
    store = repository(tmp_path, '"m"')
    store.apply()
    with pytest.raises(DataError, match="key twice"):
        store.materialize_incremental()


def test_rows_with_such_keys_can_be_left_out(tmp_path):
    twice = pa.array([[("a", 1), ("a", 2)], [("b", 1)]], pa.map_(pa.string(), pa.int64()))
    write(tmp_path / "log.parquet", twice)
    condition = "len(list_distinct(map_keys(m))) = cardinality(m)"
    store = repository(tmp_path, '"m"', where=f'where="{condition}",')
    store.apply()
    assert materialized(store) == 1
    assert both(store, 2, ["taste:m"]) == {"m": [None, [("b", 1)]]}


@pytest.mark.parametrize(
    ("kind", "declared"),
    [
        (pa.map_(pa.string(), pa.list_(pa.int64())), ""),
        (pa.map_(pa.float64(), pa.int64()), ""),
        (pa.map_(pa.string(), NAIVE), ""),
        (pa.map_(pa.string(), pa.int64()), "map<int64, int64>"),
        (pa.map_(pa.string(), pa.int64()), "list<int64>"),
        (pa.map_(pa.string(), pa.float64()), "map<string, float32>"),
    ],
    ids=range(6),
)
def test_maps_of_other_types_are_refused_when_they_are_applied(tmp_path, kind, declared):
    write(tmp_path / "log.parquet", pa.array([[]], kind))
    store = repository(tmp_path, f'Field(name="m", dtype="{declared}")' if declared else '"m"')
    with pytest.raises(SourceSchemaError, match="'m'"):
        store.apply()
