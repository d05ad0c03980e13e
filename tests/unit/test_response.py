"""Answers: packed rows shown as Arrow, as Python and as Polars, each value with its status."""

from __future__ import annotations

import struct
import sys
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import parse
from featurestore.errors import DataError, RequestError
from featurestore.semantics import plain
from featurestore.semantics.packed import (
    NOT_FOUND,
    OUTSIDE_MAX_AGE,
    PRESENT,
    PackedReader,
)
from featurestore.semantics.rows import NULL_CREATED, RowSchema, pack, unpack
from featurestore.semantics.timeline import is_visible, to_datetime
from featurestore.services.response import (
    ArrowBlock,
    FeatureLayout,
    FeatureStatus,
    Layout,
    OnlineResponse,
    SourceLayout,
)
from tests.served import EVERY_TYPE, array

LEAD = b"\x01\x02\x03\x04"
SCHEMA = RowSchema(tuple(EVERY_TYPE), tuple(parse(t) for t in EVERY_TYPE.values()), LEAD)

FULL = {
    "a_bool": False,
    "a_int32": -(2**31),
    "a_int64": 2**53 + 1,
    "a_float32": 0.5,
    "a_float64": -0.0,
    "a_string": "größe\x00",
    "a_bytes": b"\x00\xff",
    "a_date": date(1959, 12, 31),
    "a_timestamp": datetime(1960, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
    "many_bools": [True, None, False],
    "many_ints": [1, None, -(2**63)],
    "many_floats": [1.5, None],
    "many_strings": ["", None, "x"],
    "many_bytes": [b"", b"\x00"],
    "many_dates": [date(1900, 2, 28), None],
    "many_timestamps": [datetime(9999, 12, 31, tzinfo=UTC), None],
    "embedding": [1.0, -2.0, 3.5],
    "wide": [0.1, 0.2],
    "by_string": {"": 0.5, "Z": None, "a": float("inf"), "é": 1.0, "日": -0.0},
    "by_day": {date(1, 1, 1): None, date(1969, 12, 31): -(2**63), date(1970, 1, 2): 7},
    "by_number": {-(2**63): b"", -1: None, 0: b"\x00", 300: b"x"},
    "by_bytes": {b"": None, b"\x00": datetime(1960, 1, 1, tzinfo=UTC), b"\xff": None},
    "by_bool": {False: "", True: None},
}
EMPTY_VALUES = {"list": [], "map": {}}
EMPTY_LISTS = {name: EMPTY_VALUES.get(t.partition("<")[0]) for name, t in EVERY_TYPE.items()}
NOTHING = dict.fromkeys(EVERY_TYPE)


def packed(*rows: dict[str, object]) -> list[bytes]:
    columns = [array([row[name] for row in rows], t) for name, t in EVERY_TYPE.items()]
    events = np.arange(len(rows), dtype=np.int64)
    return pack(SCHEMA, events, np.full(len(rows), NULL_CREATED, dtype=np.int64), columns)


def shown(values: list[bytes | None], as_of: int = 100, ttl: int | None = None):
    return PackedReader("v", SCHEMA).heads(values).at(as_of, ttl)


@pytest.mark.parametrize(
    "rows",
    [
        [FULL],
        [NOTHING],
        [EMPTY_LISTS],
        [FULL, NOTHING, EMPTY_LISTS, FULL],
        [FULL, FULL],
    ],
    ids=["full", "nulls", "empty lists", "mixed", "no nulls"],
)
def test_columns_are_what_unpack_says(rows):
    values = packed(*rows)
    _, expected = unpack(SCHEMA, values)
    block = shown(values)
    for index, name in enumerate(EVERY_TYPE):
        found = block.array(index)
        found.validate(full=True)
        assert found.type == SCHEMA.dtypes[index].arrow
        assert found.equals(expected[index]), name
        assert block.pylist(index) == [row[name] for row in rows], name
        valid = block.validity(index)
        present = [True] * len(rows) if valid is None else plain.unpack_bits(valid, len(rows))
        assert present == [row[name] is not None for row in rows], name


@pytest.mark.parametrize("rows", [1, 3])
def test_plain_columns_survive_arrow_and_back(rows):
    block = shown(packed(*[FULL, NOTHING, FULL][:rows]))
    indexes = list(range(len(EVERY_TYPE)))
    for index, found in zip(indexes, block.plains(indexes), strict=True):
        dtype = SCHEMA.dtypes[index]
        assert (found is None) == (dtype.width is None)
        if found is not None:
            assert plain.from_arrow(dtype, plain.to_arrow(dtype, rows, found)) == found
            assert plain.from_arrow(dtype, block.array(index).slice(rows - 1)) == (
                plain.from_arrow(dtype, block.array(index).take(pa.array([rows - 1])))
            )


@pytest.mark.parametrize("rows", [1, 2])
def test_every_bit_of_a_float_survives(rows):
    """All but those of a NaN: there is one."""
    schema = RowSchema(("f", "d"), (parse("float32"), parse("float64")), LEAD)
    bits32 = np.array([0x00000001, 0x80000000][:rows], dtype=np.uint32)
    bits64 = np.array([0x0000000000000001, 0x8000000000000000][:rows], dtype=np.uint64)
    columns = [pa.array(bits32.view(np.float32)), pa.array(bits64.view(np.float64))]
    zeros = np.zeros(rows, dtype=np.int64)
    block = PackedReader("v", schema).heads(pack(schema, zeros, zeros, columns)).at(0, None)
    assert block.array(0).to_numpy().view(np.uint32).tolist() == bits32.tolist()
    assert block.array(1).to_numpy().view(np.uint64).tolist() == bits64.tolist()


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.none() | st.integers(-(2**55), 2**55), min_size=1, max_size=5),
    as_of=st.integers(-(2**55), 2**55),
    ttl=st.none() | st.integers(1, 2**56),
)
def test_statuses_follow_the_law_of_visibility(events, as_of, ttl):
    schema = RowSchema(("x",), (parse("int64"),), LEAD)
    stored = [
        None
        if event is None
        else pack(schema, *np.array([[event], [event]]), [pa.array([event], pa.int64())])[0]
        for event in events
    ]
    heads = PackedReader("v", schema).heads(stored)
    block = heads.at(as_of, ttl)
    expected = [
        NOT_FOUND if e is None else PRESENT if is_visible(e, as_of, ttl) else OUTSIDE_MAX_AGE
        for e in events
    ]
    assert list(block.statuses) == expected
    assert struct.unpack(f"<{len(events)}q", block.events) == tuple(e or 0 for e in events)
    visible = [e if s == PRESENT else None for e, s in zip(events, expected, strict=True)]
    assert block.pylist(0) == visible
    found = [e for e in events if e is not None]
    assert heads.newest == max(found, default=None)
    after = [(i, e) for i, e in enumerate(events) if e is not None and e > as_of]
    assert heads.first_after(as_of) == (after[0] if after else None)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "damage",
    [
        lambda value: b"\xff" + value[1:],
        lambda value: value[:10],
        lambda value: value[:30],
        lambda value: value[:0],
    ],
    ids=["another schema", "half a head", "half a row", "nothing"],
)
def test_rows_of_another_schema_are_never_decoded(rows, damage):
    values = packed(*[FULL] * rows)
    values[-1] = damage(values[-1])
    with pytest.raises(DataError, match="'v'"):
        PackedReader("v", SCHEMA).heads(values)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_that_is_cut_short_behind_its_head_is_told(rows):
    values = packed(*[FULL] * rows)
    values[-1] = values[-1][:-1]
    block = PackedReader("v", SCHEMA).heads(values).at(100, None)
    with pytest.raises(DataError, match="damaged"):
        block.pylist(list(EVERY_TYPE).index("a_string"))


def response(rows: int) -> OnlineResponse:
    values = [*packed(FULL, NOTHING), None, packed(FULL)[0]][:rows]
    heads = PackedReader("v", SCHEMA).heads(values)
    layout = Layout(
        service="s",
        keys=(("k", parse("int64")),),
        features=(
            *(FeatureLayout(n, parse(t), 0, i) for i, (n, t) in enumerate(EVERY_TYPE.items())),
            FeatureLayout("made", parse("float64"), 1, 0),
        ),
        sources=(SourceLayout("v", "v", "f1"), SourceLayout("od", "od", "f2")),
    )
    made = pa.array([None, 2.0, 3.0, 4.0][:rows], pa.float64())
    keys = ArrowBlock(lambda: [pa.array(range(rows), pa.int64())])
    return OnlineResponse(layout, rows, 1, keys, [heads.at(1, 1), ArrowBlock(lambda: [made])])


def test_each_value_has_a_status_and_an_event_timestamp():
    answer = response(4)
    present, null, missing = (FeatureStatus.PRESENT, FeatureStatus.NULL_VALUE, "NOT_FOUND")
    assert answer.statuses["a_int64"] == [present, null, missing, present]
    assert answer.statuses["a_string"] == ["PRESENT", "NULL_VALUE", "NOT_FOUND", "PRESENT"]
    assert answer.statuses["made"] == [null, present, present, present]
    assert answer.event_timestamps["a_int64"] == [
        to_datetime(0),
        to_datetime(1),
        None,
        to_datetime(0),
    ]
    assert answer.event_timestamps["made"] == [None] * 4
    assert list(answer.statuses) == list(answer.event_timestamps) == answer.feature_names


def test_lists_of_two_features_are_not_the_same_list():
    stamps = response(2).event_timestamps
    stamps["a_int64"].append(None)
    assert len(stamps["a_int32"]) == 2


def test_the_answer_says_what_it_was_made_from():
    answer = response(1)
    assert answer.as_of == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    assert answer.service == "s"
    assert answer.fingerprints == {"v": "f1", "od": "f2"}
    assert len(answer) == 1
    assert "1970-01-01T00:00:00.000001Z" in repr(answer)


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
def test_dict_arrow_and_polars_agree(rows):
    answer = response(rows)
    columns = answer.to_dict()
    table, frame = answer.to_arrow(), answer.to_polars()
    assert list(columns) == table.column_names == frame.columns == ["k", *EVERY_TYPE, "made"]
    assert columns["k"] == list(range(rows))
    assert table.num_rows == rows
    assert table.to_pydict(maps_as_pydicts="strict") == columns
    assert isinstance(frame, pl.DataFrame)
    assert frame["a_timestamp"].to_list() == columns["a_timestamp"]
    assert frame.schema["embedding"] == pl.Array(pl.Float32, 3)
    assert frame.schema["by_day"] == pl.List(pl.Struct({"key": pl.Date, "value": pl.Int64}))
    if rows:
        assert columns["a_timestamp"][0].utcoffset() == timedelta(0)
        pairs = [{"key": key, "value": value} for key, value in columns["by_day"][0].items()]
        assert frame["by_day"].to_list()[0] == pairs
        assert answer.column("a_int64").to_pylist() == columns["a_int64"]
    with pytest.raises(KeyError):
        answer.column("nothing")


def test_what_had_been_applied_is_told_by_view_and_partition():
    answer = response(2)
    assert answer.applied == {}
    answer = response(3)
    answer.blocks[0].applied = {"clicks/0": struct.pack("<3q", 5, -1, 2**53), "clicks/1": bytes(24)}
    assert answer.applied == {"v": {"clicks/0": [5, None, 2**53], "clicks/1": [0, 0, 0]}}


@pytest.mark.parametrize("rows", [0, 1, 2, 4])
def test_numpy_loses_nothing(rows):
    answer = response(rows)
    table, columns = answer.to_arrow(), answer.to_numpy()
    expected = answer.to_dict()
    assert list(columns) == list(expected)
    for name, dtype in {"k": "int64", **EVERY_TYPE, "made": "float64"}.items():
        found, column, kind = columns[name], table[name].combine_chunks(), parse(dtype)
        nulls = column.is_null().to_pylist()
        assert len(found) == rows
        if kind.width is None:
            assert found.dtype == object
            assert found.tolist() == expected[name]
            continue
        assert isinstance(found, np.ma.MaskedArray) is any(nulls)
        masks = np.ma.getmaskarray(found).reshape(rows, kind.length or 1)
        assert masks.all(axis=1).tolist() == masks.any(axis=1).tolist() == nulls
        if kind.container:
            assert found.shape == (rows, kind.length)
        elif kind.scalar in {"date", "timestamp"}:
            there = [str(value) for value in np.ma.compressed(found)]
            told = [v.isoformat().replace("+00:00", "") for v in expected[name] if v is not None]
            assert there == told
            assert found.dtype == {"date": "<M8[D]", "timestamp": "<M8[us]"}[kind.scalar]
        elif kind.scalar == "bool":
            assert found.dtype == bool
        if kind.scalar in {"float32", "float64"}:
            bits = np.ma.getdata(found)[[not null for null in nulls]].tobytes()
            assert bits == plain.from_arrow(kind, column.drop_null())[0]
        elif kind.scalar not in {"date", "timestamp"}:
            assert found.tolist() == expected[name]


def test_pandas_keeps_integers_exact_beside_nulls():
    frame = response(4).to_pandas()
    assert list(frame.columns) == ["k", *EVERY_TYPE, "made"]
    assert str(frame["a_int64"].dtype) == "Int64"
    assert frame["a_int64"].tolist()[0] == 2**53 + 1
    assert frame["a_int64"].isna().tolist() == [False, True, True, False]
    assert frame["by_number"][0] == FULL["by_number"]


def test_pandas_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RequestError, match="pandas") as caught:
        response(1).to_pandas()
    assert "featurestore[pandas]" in caught.value.hint
