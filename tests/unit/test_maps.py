"""Maps as values: one order of entries, one form of bytes, and what is read as a map."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.compile.plan import Column
from featurestore.dtypes import parse
from featurestore.errors import DataError, NaiveTimestampError, RequestError
from featurestore.semantics import maps
from featurestore.semantics.reference import canonical
from featurestore.semantics.rows import RowSchema, payloads, unpack
from featurestore.services.columns import InputRows
from featurestore.services.entity_needs import Needs
from featurestore.services.entity_rows import read
from featurestore.services.frames import to_polars
from featurestore.services.lossless import lossless

TEXTS = parse("map<string, int64>")
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001  (that is the point)
AT = datetime(2024, 1, 1, 12, tzinfo=UTC)


def array(values, dtype=TEXTS):
    return pa.array(values, type=dtype.arrow)


def pack(column, dtype=TEXTS):
    return payloads(RowSchema(("m",), (dtype,), b"abcd"), [column], len(column))


def test_the_bytes_of_a_map_are_count_keys_bits_and_values():
    (packed,) = pack(array([{"b": 1, "": None}]))
    keys = b"\x00\x00\x00\x00" + b"\x01\x00\x00\x00b"
    values = bytes(8) + b"\x01" + bytes(7)
    assert packed == b"\x01" + b"\x02\x00\x00\x00" + keys + b"\x02" + values
    texts = parse("map<int32, string>")
    (packed,) = pack(array([{1: None, -1: "é"}], texts), texts)
    keys = b"\xff\xff\xff\xff" + b"\x01\x00\x00\x00"
    assert packed == b"\x01\x02\x00\x00\x00" + keys + b"\x01" + b"\x02\x00\x00\x00\xc3\xa9"


@pytest.mark.parametrize(
    ("dtype", "keys"),
    [
        ("map<bool, bool>", [False, True]),
        ("map<int32, bool>", [-(2**31), -1, 0, 1, 256, 2**31 - 1]),
        ("map<int64, bool>", [-(2**63), -256, -1, 0, 2**53 + 1]),
        ("map<string, bool>", ["", "A", "Z", "a", "e\u0301", "é", "\uffee", "\U0001f600"]),
        ("map<bytes, bool>", [b"", b"\x00", b"\x00\x00", b"a", b"\xff"]),
        ("map<date, bool>", [date(1, 1, 1), date(1969, 12, 31), date(1970, 1, 1)]),
        ("map<timestamp, bool>", [datetime(1, 1, 1, tzinfo=UTC), AT]),
    ],
)
def test_entries_stand_by_their_keys(dtype, keys):
    kind = parse(dtype)
    there = {key: index % 2 == 0 for index, key in enumerate(keys)}
    back = dict(reversed(there.items()))
    column = array([back, None, there, {}, back], kind)
    ordered = maps.in_order(column, "m")
    ordered.validate(full=True)
    assert [v and [key for key, _ in v] for v in ordered.to_pylist()] == [
        keys,
        None,
        keys,
        [],
        keys,
    ]
    assert maps.in_order(ordered, "m") is ordered
    packed = pack(column, kind)
    assert packed[0] == packed[2] == packed[4]
    for value, bits in zip(column.to_pylist(), packed, strict=True):
        assert bits == canonical((value,), (kind,))
    schema = RowSchema(("m",), (kind,), b"abcd")
    _, (found,) = unpack(schema, [b"abcd" + bytes(16) + bits for bits in packed])
    assert found.equals(ordered)


def test_parts_and_nulls_that_hide_entries_are_read_as_they_are_seen():
    column = array([{"b": 1, "a": 2}, {"d": 1, "c": 2}, {"f": 1, "e": 2}])
    assert maps.in_order(column[1:2], "m").to_pylist() == [[("c", 2), ("d", 1)]]
    assert pack(column[1:]) == pack(column)[1:]
    hidden = pa.MapArray.from_arrays(
        [0, 2, 3], pa.array(["x", "x", "y"]), pa.array([1, 1, 2]), mask=pa.array([True, False])
    )
    assert maps.in_order(hidden, "m").to_pylist() == [None, [("y", 2)]]
    assert pack(hidden) == [b"\x00", pack(array([{"y": 2}]))[0]]


@pytest.mark.parametrize("pairs", [[("a", 1), ("a", 1)], [("b", 1), ("a", 1), ("b", None)]])
def test_a_key_that_is_there_twice_is_refused(pairs):
    column = array([{"a": 1}, pairs])
    with pytest.raises(DataError, match=r"'m' holds a key twice") as caught:
        pack(column)
    assert caught.value.got in {"'a'", "'b'"}
    with pytest.raises(DataError, match="twice"):
        canonical((pairs,), (TEXTS,))
    assert maps.arranged(column) is None
    assert lossless(column, TEXTS) is None
    # The same key in two maps is no trouble.
    assert maps.arranged(array([{"a": 1}, {"a": 1}])) is not None


STRUCTS = pa.list_(pa.struct([("value", pa.int32()), ("key", pa.large_string())]))


@pytest.mark.parametrize(
    ("column", "dtype", "found"),
    [
        (array([{"b": 1, "a": None}, None]), "map<string, float64>", [{"a": None, "b": 1.0}, None]),
        (pa.array([[(1.0, 2.0)]], pa.map_(pa.float64(), pa.float64())), "map<int64, int32>",
         [{1: 2}]),
        (pa.array([[{"key": "b", "value": 1}, {"key": "a", "value": 2}], None], STRUCTS),
         "map<string, int64>", [{"a": 2, "b": 1}, None]),
        (pa.array([[], None]), "map<date, bool>", [{}, None]),
        (pa.nulls(2), "map<date, bool>", [None, None]),
        (pa.array([[(1, None)]], pa.map_(pa.int64(), pa.null())), "map<int64, string>",
         [{1: None}]),
        (array([{"a": 1}]), "map<int64, int64>", None),
        (array([{"a": 1}]), "map<string, string>", None),
        (array([{"a": 2**53 + 1}]), "map<string, float64>", None),
        (array([{"a": 1}]), "list<int64>", None),
        (array([{"a": 1}]), "int64", None),
        (pa.array([[1]]), "map<int64, int64>", None),
        (pa.array([[None]], STRUCTS), "map<string, int64>", None),
        (pa.array([[{"key": None, "value": 1}]], STRUCTS), "map<string, int64>", None),
        (pa.array([["a"]]), "map<string, int64>", None),
        (pa.array([{"key": "a", "value": 1}]), "map<string, int64>", None),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_a_map_without_loss(column, dtype, found):
    converted = lossless(column, parse(dtype))
    if found is None:
        assert converted is None
    else:
        assert converted.type == parse(dtype).arrow
        assert converted.to_pylist(maps_as_pydicts="strict") == found
        assert [v and list(v) for v in converted.to_pylist(maps_as_pydicts="strict")] == [
            v and sorted(v) for v in found
        ]


@pytest.mark.parametrize(
    "values",
    [
        [{"b": 1, "a": 2}, None, {}],
        [[("b", 1), ("a", 2)], None, []],
        pd.Series([{"b": 1, "a": 2}, None, {}], dtype="object"),
        np.array([{"b": 1, "a": 2}, None, {}], dtype=object),
        pl.Series([[{"key": "b", "value": 1}, {"key": "a", "value": 2}], None, []]),
        [[{"key": "b", "value": 1}, {"key": "a", "value": 2}], None, []],
        pa.chunked_array([array([{"b": 1, "a": 2}]), array([None, {}])]),
    ],
    ids=["dicts", "pairs", "pandas", "numpy", "polars", "structs", "arrow"],
)
def test_what_callers_hold_is_read_as_a_map(values):
    rows = InputRows.of({"m": values})
    column = rows.column("m", parse("map<string, float64>"), "v", rounding=True)
    assert column.to_pylist() == [[("a", 2.0), ("b", 1.0)], None, []]


@pytest.mark.parametrize(
    "values",
    [[{"a": 1}, 7], [{"a": "x"}], [{1: 1}], [{"a": 1, 2: 1}], [{None: 1}], [[("a", 1), ("a", 2)]]],
)
def test_what_is_no_such_map_is_refused(values):
    with pytest.raises(RequestError, match="'m' of 'entity_rows' cannot be read as map<") as caught:
        InputRows.of({"m": values}).column("m", TEXTS, "v", rounding=True)
    assert "twice" in caught.value.hint


def test_instants_inside_of_maps_need_a_zone():
    by_instant = parse("map<timestamp, timestamp>")
    for value in ({NAIVE: AT}, {AT: NAIVE}):
        with pytest.raises(NaiveTimestampError, match="'m'"):
            InputRows.of({"m": [value]}).column("m", by_instant, "v", rounding=True)
    column = InputRows.of({"m": [{AT: AT}]}).column("m", by_instant, "v", rounding=True)
    assert column.to_pylist() == [[(AT, AT)]]


def test_frames_have_lists_of_structs():
    table = pa.table({"x": [1, 2, 3], "m": array([{"b": 1, "a": None}, None, {}])})
    frame = to_polars(table)
    assert frame.schema == {
        "x": pl.Int64,
        "m": pl.List(pl.Struct({"key": pl.String, "value": pl.Int64})),
    }
    pairs = [{"key": "b", "value": 1}, {"key": "a", "value": None}]
    assert frame["m"].to_list() == [pairs, None, []]
    assert lossless(frame["m"].to_arrow(), TEXTS).equals(maps.in_order(table["m"].chunk(0), "m"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_request_fields_are_maps_in_memory_and_in_files(tmp_path, in_memory):
    engine = DuckDBEngine(tmp_path, memory_limit=10**9, threads=1, temp_path=tmp_path / "spill")
    table = pa.table(
        {
            "event_timestamp": pa.array([AT] * 3, pa.timestamp("us", "UTC")),
            "m": array([{"b": 1, "a": None}, None, {}]),
        }
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)

    def request(dtype):
        needs = Needs(
            timestamp_column="event_timestamp",
            keys=(),
            request=(Column(name="m", dtype=dtype),),
            needed_by={"m": "field of 'o'", "event_timestamp": "timestamp_column"},
        )
        rows = read(table if in_memory else str(path), needs, engine)
        with engine.session() as session:
            rows.load(session)
            if in_memory:
                batch = table.to_batches()[0]
            else:
                batch = session.fetch("FROM given").to_batches()[0]
        return rows.request(batch, 0)["m"]

    assert request("map<string, int64>").to_pylist() == [[("a", None), ("b", 1)], None, []]
    for other in ("map<int64, int64>", "map<string, string>", "list<int64>"):
        with pytest.raises(RequestError, match="cannot be read as"):
            request(other)
