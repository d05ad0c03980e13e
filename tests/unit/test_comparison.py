"""Columns are compared bit for bit, whatever their type and wherever they begin."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import DType, parse
from featurestore.errors import DataError
from featurestore.semantics import maps
from featurestore.semantics.reference import canonical
from featurestore.services.comparison import differing
from featurestore.testing.strategies import dtypes, values


@st.composite
def columns(draw: st.DrawFn) -> tuple[DType, list[Any], list[Any]]:
    """Two columns of one type with many equal values."""
    dtype = draw(dtypes())
    left = draw(st.lists(values(dtype), max_size=6))
    right = [v if draw(st.booleans()) else draw(values(dtype)) for v in left]
    return dtype, left, right


@settings(max_examples=200, deadline=None)
@given(columns(), st.integers(0, 2))
def test_rows_differ_when_their_canonical_bytes_do(
    drawn: tuple[DType, list[Any], list[Any]], start: int
):
    dtype, left, right = drawn
    found = differing(arrow(left, dtype).slice(start), arrow(right, dtype).slice(start))
    expected = [
        canonical((ours,), (dtype,)) != canonical((theirs,), (dtype,))
        for ours, theirs in zip(left[start:], right[start:], strict=True)
    ]
    assert found.tolist() == expected


def arrow(items: list[Any], dtype: DType) -> pa.Array:
    """Return values as Arrow, maps with their entries in order."""
    if dtype.container != "map":
        return pa.array(items, dtype.arrow)
    pairs = [None if m is None else list(m.items()) for m in items]
    return maps.in_order(pa.array(pairs, dtype.arrow), "test")


@pytest.mark.parametrize(("code", "bits"), [("<d", "<Q"), ("<f", "<I")])
def test_zeros_of_two_signs_and_nans_of_two_kinds_differ(code: str, bits: str):
    quiet = struct.unpack(code, struct.pack(code, float("nan")))[0]
    other = struct.unpack(bits, struct.pack(code, quiet))[0] ^ 1
    kind = np.float64 if code == "<d" else np.float32
    raw = np.array([0, other], dtype=np.uint64 if code == "<d" else np.uint32).view(kind)
    left = pa.array(np.array([0.0, quiet], kind))
    assert differing(left, pa.array(np.array([-0.0, quiet], kind))).tolist() == [True, False]
    assert differing(left, pa.array(raw)).tolist() == [False, True]


def test_columns_of_other_types_or_lengths_are_refused():
    with pytest.raises(DataError):
        differing(pa.array([1]), pa.array([1.0]))
    with pytest.raises(DataError):
        differing(pa.array([1]), pa.array([1, 2]))
    assert (
        differing(
            pa.array([], parse("list<int64>").arrow), pa.array([], pa.list_(pa.int64()))
        ).tolist()
        == []
    )
