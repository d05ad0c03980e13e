"""There is one NaN, in every type and wherever an array begins; everything else stays as it was."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from featurestore.semantics.nan import one_nan, with_one_nan

NEGATIVE = np.copysign(np.nan, -1.0)
USUAL = np.float64(np.nan).view(np.int64)
KINDS = {
    "scalar": (pa.float64(), lambda x: x),
    "list": (pa.list_(pa.float64()), lambda x: [1.0, x]),
    "vector": (pa.list_(pa.float64(), 2), lambda x: [x, -0.0]),
    "map": (pa.map_(pa.string(), pa.float64()), lambda x: [("a", -0.0), ("b", x)]),
}


def bits(array: pa.Array) -> list[int]:
    """Return the bits of all numbers of an array."""
    kind = array.type
    flat = array.items if pa.types.is_map(kind) else array
    flat = flat.flatten() if pa.types.is_nested(flat.type) else flat
    return list(flat.drop_null().to_numpy(zero_copy_only=False).view(np.int64))


@pytest.mark.parametrize("name", KINDS)
def test_a_nan_gets_the_usual_bits(name: str) -> None:
    kind, make = KINDS[name]
    array = pa.array([make(5.0), make(NEGATIVE), None, make(NEGATIVE), make(7.0)], kind)
    for start in range(3):
        found = with_one_nan(array.slice(start))
        found.validate(full=True)
        assert found.type == kind
        assert found.null_count == 1
        assert NEGATIVE.view(np.int64) not in bits(found)
        assert USUAL in bits(found)
        expected = pa.array(array.slice(start).to_pylist(), kind)
        assert str(found) == str(expected)  # lengths, nulls, zeros and numbers


@pytest.mark.parametrize("name", KINDS)
def test_what_has_no_nan_is_not_copied(name: str) -> None:
    kind, make = KINDS[name]
    array = pa.array([make(5.0), None], kind)
    assert with_one_nan(array) is array
    texts = pa.array(["a", None])
    assert with_one_nan(texts) is texts


def test_arrays_of_numpy_too() -> None:
    for dtype in (np.float32, np.float64):
        numbers = np.array([NEGATIVE, -0.0, 1.0], dtype)
        found = one_nan(numbers)
        assert found.dtype == dtype
        assert np.signbit(found).tolist() == [False, True, False]
