"""Columns without nulls, all at once: the same bytes as one by one, or nothing at all."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import parse
from featurestore.errors import DataError
from featurestore.semantics.packed import NOT_FOUND, PRESENT, PackedReader
from featurestore.semantics.rows import RowSchema, pack
from featurestore.services.response import (
    ArrowBlock,
    FeatureLayout,
    Layout,
    OnlineResponse,
    SourceLayout,
)
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import ResponseWriter

LEAD = b"lead"
WIDTHS = {
    "one width": ("float32", "int32", "float32"),
    "many widths": ("float32", "bool", "float64", "vector<float32, 2>"),
    "some vary": ("float32", "string", "int64"),
}
SAMPLES = {
    "float32": 1.5,
    "int32": -7,
    "bool": True,
    "float64": 2.25,
    "vector<float32, 2>": [0.5, -0.5],
    "string": "text",
    "int64": 1 << 40,
}


def made(types, rows, nulls=()):
    """Return a reader and packed rows of as many instants; `nulls` are (row, feature)."""
    dtypes = tuple(parse(name) for name in types)
    schema = RowSchema(tuple(f"f{i}" for i in range(len(types))), dtypes, LEAD)
    columns = [
        pa.array([None if (row, i) in nulls else SAMPLES[name] for row in range(rows)], t.arrow)
        for i, (name, t) in enumerate(zip(types, dtypes, strict=True))
    ]
    instants = np.arange(rows, dtype=np.int64)
    return PackedReader("v", schema), pack(schema, instants, instants, columns)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(WIDTHS)),
    rows=st.integers(0, 4),
    indexes=st.lists(st.integers(0, 2), max_size=4),
    nulls=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=2),
    missing=st.none() | st.integers(0, 3),
)
def test_whole_columns_are_the_plain_ones(kind, rows, indexes, nulls, missing):
    reader, stored = made(WIDTHS[kind], rows, nulls)
    values = [None if row == missing else value for row, value in enumerate(stored)]
    heads = reader.heads(values)
    block, again = heads.at(100, None), heads.at(100, None)
    whole = block.wholes(indexes)
    plains = [again.plain(index) for index in indexes]
    simple = None not in values and not any(row < rows for row, _ in nulls)
    if rows:
        assert (whole is not None) == (simple and kind != "some vary")
    if whole is not None:
        assert [(data, None) for data in whole] == plains
    assert list(block.plains(indexes)) == plains


@pytest.mark.parametrize("rows", [1, 3])
def test_all_or_nothing_is_visible_by_the_oldest_and_the_newest(rows):
    reader, stored = made(WIDTHS["one width"], rows)
    seen = reader.heads(stored).at(rows - 1, rows - 1)
    assert set(seen.statuses) == {PRESENT}
    assert seen.wholes([0]) is not None
    late = reader.heads(stored).at(10, 9)
    assert list(late.statuses).count(PRESENT) == rows - 1
    early = reader.heads(stored).at(-1, None)
    assert PRESENT not in early.statuses
    assert early.wholes([0]) is None


def test_nothing_stored_at_all():
    reader, _ = made(WIDTHS["one width"], 1)
    heads = reader.heads([None, None])
    assert heads.newest is None
    assert list(heads.at(0, 1).statuses) == [NOT_FOUND, NOT_FOUND]


def test_rows_of_other_lengths_do_not_slip_in_by_their_sum():
    """One row a byte short and another one a byte long are as long as two whole ones."""
    reader, stored = made(WIDTHS["one width"], 2)
    with pytest.raises(DataError, match="damaged"):
        reader.heads([stored[0][:-1], stored[1] + b"\x00"])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("null", [False, True])
def test_sources_may_alternate_in_an_answer(rows, null):
    """The features of a source need not stand side by side, nor in the view's order."""
    types = ("float32",) * 3
    nulls = {(0, 1)} if null else ()
    blocks = []
    for reader, stored in (made(types, rows), made(types, rows, nulls)):
        blocks.append(reader.heads(stored).at(100, None))
    order = [(0, 2), (1, 0), (0, 0), (1, 2), (1, 1), (0, 1)]
    layout = Layout(
        service=None,
        keys=(),
        features=tuple(FeatureLayout(f"{s}{i}", parse("float32"), s, i) for s, i in order),
        sources=(SourceLayout("a", "a", "1"), SourceLayout("b", "b", "2")),
    )
    answer = OnlineResponse(layout, rows, 100, ArrowBlock(list), blocks)
    writer = ResponseWriter(layout)
    message = pb.GetOnlineFeaturesResponse.FromString(writer.write(answer))
    assert [column.name for column in message.features] == [f"{s}{i}" for s, i in order]
    for column, (source, index) in zip(message.features, order, strict=True):
        values, validity = blocks[source].plain(index)
        assert list(column.floats.values) == np.frombuffer(values, "<f4").tolist()
        assert column.validity == (validity or b"")
    assert writer.write(answer) == writer.write(answer)
