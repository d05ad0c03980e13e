"""Entity rows of every form: what is read, what stays untouched, what is refused and how."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.compile.plan import Column
from featurestore.errors import (
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    SourceNotFoundError,
)
from featurestore.services.entity_needs import EntityRows, Needs
from featurestore.services.entity_rows import read

AT = datetime(2024, 1, 1, 12, tzinfo=UTC)
AT_US = int(AT.timestamp()) * 1_000_000
UTC_NS = pa.timestamp("ns", tz="UTC")


def needs(request: dict[str, str] | None = None, **keys: str) -> Needs:
    fields = tuple(Column(name=n, dtype=t) for n, t in (request or {}).items())
    needed = {**dict.fromkeys(keys, "join key of 'v'"), **{f.name: "field of 'o'" for f in fields}}
    return Needs(
        timestamp_column="event_timestamp",
        keys=tuple((name, Column(name=name, dtype=dtype)) for name, dtype in keys.items()),
        request=fields,
        needed_by={**needed, "event_timestamp": "timestamp_column"},
    )


@pytest.fixture
def engine(tmp_path: Path) -> DuckDBEngine:
    return DuckDBEngine(tmp_path, memory_limit=10**9, threads=1, temp_path=tmp_path / "spill")


def entity(rows: EntityRows, engine: DuckDBEngine) -> list[dict[str, Any]]:
    """What the engine gets to see."""
    with engine.session() as session:
        rows.load(session)
        found: list[dict[str, Any]] = session.fetch("FROM entity ORDER BY row").to_pylist()
    return found


def both(table: pa.Table, tmp_path: Path) -> list[Any]:
    """The same rows in memory and in a file."""
    pq.write_table(table, tmp_path / "rows.parquet")
    return [table, "rows.parquet"]


def table_of(event_timestamp: Any = None, **columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values()))) if columns else 1
    at = [AT] * rows if event_timestamp is None else event_timestamp
    return pa.table({"event_timestamp": at, **columns})


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pa.array([1, None], pa.int8()), "int64"),
        (pa.array([1, None], pa.uint64()), "int32"),
        (pa.array([1.0, None], pa.float64()), "int64"),
        (pa.array([1.0, np.nan], pa.float32()), "int64"),
        (pa.array([1, None]).dictionary_encode(), "int64"),
        (pa.array(["a", None], pa.large_string()), "string"),
        (pa.array(["a", None]).dictionary_encode(), "string"),
        (pa.array(["a", None], pa.string_view()), "string"),
        (pa.array([b"a", None], pa.large_binary()), "bytes"),
        (pa.array([True, None]), "bool"),
        (pa.array([date(2024, 1, 1), None]), "date"),
        (pa.array([AT, None], pa.timestamp("ms", tz="Europe/Paris")), "timestamp"),
        (pa.array([None, None]), "int64"),
    ],
)
def test_join_keys_are_read_as_their_type(
    values: pa.Array, dtype: str, engine: DuckDBEngine, tmp_path: Path
) -> None:
    expected = {
        "int64": 1,
        "int32": 1,
        "string": "a",
        "bytes": b"a",
        "bool": True,
        "date": date(2024, 1, 1),
        "timestamp": AT,
    }[dtype]
    if values.null_count == 2:
        expected = None
    for rows in both(table_of(k=values), tmp_path):
        found = entity(read(rows, needs(k=dtype), engine), engine)
        assert [row["key_0"] for row in found] == [expected, None]
        assert [row["row"] for row in found] == [0, 1]
        assert {row["instant"] for row in found} == {AT_US}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (pa.array(["1"]), "int64"),
        (pa.array([1]), "string"),
        (pa.array([1.5]), "int64"),
        (pa.array([1e300]), "int64"),
        (pa.array([2**63], pa.uint64()), "int64"),
        (pa.array([True]), "int64"),
        (pa.array([1]), "bool"),
        (pa.array([b"a"]), "string"),
        (pa.array(["a"]), "bytes"),
        (pa.array([Decimal("1.0")]), "int64"),
        (pa.array([AT], pa.timestamp("us", tz="UTC")), "date"),
        (pa.array([date(2024, 1, 1)]), "timestamp"),
        (pa.array([[1]]), "int64"),
    ],
)
def test_join_keys_of_another_type_are_refused(
    values: pa.Array, dtype: str, engine: DuckDBEngine, tmp_path: Path
) -> None:
    for rows in both(table_of(k=values), tmp_path):
        with pytest.raises(RequestError) as caught:
            entity(read(rows, needs(k=dtype), engine), engine)
        assert "'k' of 'entity_rows' cannot be read as" in caught.value.what
        assert caught.value.where == "join key of 'v'"
        assert str(values.type).partition("<")[0].partition("(")[0] in str(caught.value.got)
        assert caught.value.allowed is not None


def test_an_integer_key_beyond_int32_matches_nothing_and_is_no_error(engine: DuckDBEngine) -> None:
    found = entity(read(table_of(k=[2**40]), needs(k="int32"), engine), engine)
    assert found[0]["key_0"] == 2**40


def test_a_naive_timestamp_key_is_refused(engine: DuckDBEngine, tmp_path: Path) -> None:
    naive = pa.array([datetime(2024, 1, 1)], pa.timestamp("us"))  # noqa: DTZ001
    for rows in both(table_of(k=naive), tmp_path):
        with pytest.raises(NaiveTimestampError, match="'k'"):
            read(rows, needs(k="timestamp"), engine)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_instants_of_any_unit(unit: str, engine: DuckDBEngine, tmp_path: Path) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    ticks = pa.array([-1, 0, 3 * per_second, -3 * per_second], pa.int64())
    expected = [-1_000_000 // per_second, 0, 3_000_000, -3_000_000]
    rows = table_of(ticks.cast(pa.timestamp(unit, tz="Europe/Paris")), k=[1, 1, 1, 1])
    for form in both(rows, tmp_path):
        found = entity(read(form, needs(k="int64"), engine), engine)
        assert [row["instant"] for row in found] == expected


def test_nanoseconds_are_cut_off_downwards(engine: DuckDBEngine, tmp_path: Path) -> None:
    """To the nearest microsecond would be a look into the future."""
    ticks = [-1, -999, -1000, -1001, 999, 1000, 1999]
    rows = table_of(pa.array(ticks, pa.int64()).cast(UTC_NS), k=[1] * 7)
    for form in both(rows, tmp_path):
        found = entity(read(form, needs(k="int64"), engine), engine)
        assert [row["instant"] for row in found] == [-1, -1, -1, -2, 0, 1, 1]


@pytest.mark.parametrize(
    ("column", "error", "words"),
    [
        (pa.array([datetime(2024, 1, 1)], pa.timestamp("us")), NaiveTimestampError, "time zone"),  # noqa: DTZ001
        (pa.array([date(2024, 1, 1)]), RequestError, "holds no instants"),
        (pa.array(["2024-01-01T00:00:00Z"]), RequestError, "holds no instants"),
        (pa.array([AT_US]), RequestError, "holds no instants"),
        (pa.array([None], pa.timestamp("us", tz="UTC")), RequestError, "without an instant"),
        (pa.array([2**62]).cast(pa.timestamp("us", tz="UTC")), RequestError, "no calendar"),
        (pa.array([-(2**62)]).cast(pa.timestamp("us", tz="UTC")), RequestError, "no calendar"),
    ],
)
def test_what_is_no_instant_is_refused(
    column: pa.Array, error: type[Exception], words: str, engine: DuckDBEngine, tmp_path: Path
) -> None:
    for rows in both(table_of(column, k=[1]), tmp_path):
        with pytest.raises(error, match=words):
            entity(read(rows, needs(k="int64"), engine), engine)


def test_seconds_that_overflow_microseconds_are_refused(engine: DuckDBEngine) -> None:
    column = pa.array([2**60]).cast(pa.timestamp("s", tz="UTC"))
    with pytest.raises(RequestError, match="no calendar"):
        read(table_of(column, k=[1]), needs(k="int64"), engine)


def test_null_instants_are_counted(engine: DuckDBEngine, tmp_path: Path) -> None:
    column = pa.array([AT, None, None], pa.timestamp("us", tz="UTC"))
    for rows in both(table_of(column, k=[1, 2, 3]), tmp_path):
        with pytest.raises(RequestError) as caught:
            entity(read(rows, needs(k="int64"), engine), engine)
        assert caught.value.got == "2 nulls"


def test_missing_columns_are_named_with_a_near_miss(engine: DuckDBEngine, tmp_path: Path) -> None:
    for rows in both(table_of(driver=[1]), tmp_path):
        with pytest.raises(MissingColumnError) as caught:
            read(rows, needs(drivr="int64"), engine)
        assert caught.value.where == "join key of 'v'"
        assert caught.value.hint == "Did you mean 'driver'?"
    for rows in both(pa.table({"k": [1], "when": [AT]}), tmp_path):
        with pytest.raises(MissingColumnError, match="timestamp_column="):
            read(rows, needs(k="int64"), engine)
    for rows in both(table_of(k=[1]), tmp_path):
        with pytest.raises(MissingColumnError, match="field of 'o'"):
            read(rows, needs(k="int64", request={"price": "float64"}), engine)


def test_two_columns_of_one_name_are_refused(engine: DuckDBEngine) -> None:
    rows = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2]), pa.array([AT])], ["k", "k", "event_timestamp"]
    )
    with pytest.raises(RequestError, match="share a name"):
        read(rows, needs(k="int64"), engine)


@pytest.mark.parametrize("value", [1, None, object(), b"bytes"])
def test_what_is_no_table_is_refused(value: Any, engine: DuckDBEngine) -> None:
    with pytest.raises(RequestError, match="cannot be read as rows"):
        read(value, needs(k="int64"), engine)


def test_a_path_that_is_not_there(engine: DuckDBEngine, tmp_path: Path) -> None:
    for path in ("nothing.parquet", tmp_path / "nothing.parquet"):
        with pytest.raises(SourceNotFoundError):
            read(path, needs(k="int64"), engine)


def test_a_query_that_is_wrong_is_told_at_once(engine: DuckDBEngine) -> None:
    for query in ("SELECT nothing FROM", "SELECT 1; DROP TABLE x", "SELECT * FROM nowhere"):
        with pytest.raises(RequestError):
            read(query, needs(k="int64"), engine)


def test_every_form_in_memory_gives_the_same(engine: DuckDBEngine) -> None:
    records = [{"k": 1, "event_timestamp": AT}, {"k": None, "event_timestamp": AT}]
    table = pa.Table.from_pylist(records)
    forms = [
        table,
        table.to_batches()[0],
        table.to_reader(),
        pl.DataFrame(records),
        pl.LazyFrame(records),
        pd.DataFrame(records),
        pd.DataFrame(records).convert_dtypes(),
        records,
        {"k": [1, None], "event_timestamp": [AT, AT]},
    ]
    for form in forms:
        found = entity(read(form, needs(k="int64"), engine), engine)
        assert [(row["key_0"], row["instant"]) for row in found] == [(1, AT_US), (None, AT_US)]


def test_instants_of_python_objects(engine: DuckDBEngine) -> None:
    east = AT.astimezone(timezone(timedelta(hours=5)))
    frame = pd.DataFrame({"k": [1, 2], "event_timestamp": pd.Series([AT, east], dtype=object)})
    for rows in (frame, frame.to_dict("records")):
        found = entity(read(rows, needs(k="int64"), engine), engine)
        assert [row["instant"] for row in found] == [AT_US, AT_US]
    frame["event_timestamp"] = pd.Series([AT, AT.replace(tzinfo=None)], dtype=object)
    for rows in (frame, frame.to_dict("records")):
        with pytest.raises(NaiveTimestampError):
            read(rows, needs(k="int64"), engine)
    frame["event_timestamp"] = pd.Series([AT, pd.NaT], dtype=object)
    with pytest.raises(RequestError, match="without an instant"):
        read(frame, needs(k="int64"), engine)


def test_pandas_without_a_zone_is_refused(engine: DuckDBEngine) -> None:
    frame = pd.DataFrame({"k": [1], "event_timestamp": pd.to_datetime(["2024-01-01"])})
    with pytest.raises(NaiveTimestampError):
        read(frame, needs(k="int64"), engine)


def test_only_columns_that_are_needed_are_converted(engine: DuckDBEngine) -> None:
    frame = pd.DataFrame({"k": [1], "event_timestamp": [AT], "thing": [object()]})
    rows = read(frame, needs(k="int64"), engine)
    assert entity(rows, engine)[0]["key_0"] == 1
    with pytest.raises(RequestError, match="'thing'"):
        _ = rows.schema


def test_arrow_columns_stay_what_they_are(engine: DuckDBEngine) -> None:
    table = table_of(
        k=[1, 2],
        small=pa.array([1, None], pa.uint8()),
        naive=pa.array([datetime(2024, 1, 1), None], pa.timestamp("s")),  # noqa: DTZ001
        exact=pa.array([Decimal("1.10"), None]),
        label=pa.array(["a", "b"]).dictionary_encode(),
        half=pa.array(np.array([1.5, 2.5], np.float16)),
        id=pa.array([UUID(int=1).bytes, None], pa.binary(16)),
    )
    rows = read(table, needs(k="int64"), engine)
    assert rows.schema == table.schema
    batch = pa.record_batch({"x": [0]})
    parts = rows.columns(batch, 1)
    assert [part.to_pylist() for part in parts] == [
        column.to_pylist() for column in table.slice(1, 1).columns
    ]
    assert [part.type for part in parts] == table.schema.types


def test_request_fields_are_read_as_declared(engine: DuckDBEngine, tmp_path: Path) -> None:
    wanted = needs(k="int64", request={"price": "float64", "name": "string"})
    table = table_of(k=[1, 2], price=[1, None], name=pa.array(["a", "b"], pa.large_string()))
    for form in both(table, tmp_path):
        rows = read(form, wanted, engine)
        batch = pa.RecordBatch.from_arrays(
            [c.combine_chunks() for c in table.columns], schema=rows.schema
        ).slice(1, 1)
        fields = rows.request(batch, 1)
        assert fields["price"].type == pa.float64()
        assert (fields["price"].to_pylist(), fields["name"].to_pylist()) == ([None], ["b"])
    for form in both(table_of(k=[1], price=["1.0"], name=["a"]), tmp_path):
        with pytest.raises(RequestError, match="'price'"):
            read(form, wanted, engine)
