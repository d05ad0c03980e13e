"""Columns compared bit for bit: which rows of two Arrow arrays of one type differ (law V1).

Numbers are compared by their bytes, so 0.0 differs from -0.0, and a NaN from one of other bits.
Lists, vectors and maps are compared item by item, maps in the order in which they are stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    Rows = npt.NDArray[np.bool_]


def differing(left: pa.Array, right: pa.Array) -> Rows:
    """Return bool[n]: whether the values of each row differ in any bit, null being one value.

    Args:
        left: n values.
        right: n values of the same type.

    Raises:
        DataError: The arrays differ in type or length, so that rows cannot be compared.
    """
    if not left.type.equals(right.type) or len(left) != len(right):
        raise DataError(
            "Two columns that should be equal cannot be compared.",
            got=f"{len(left)} values of {left.type}, {len(right)} of {right.type}",
            allowed="as many values of one type",
        )
    here, there = _valid(left), _valid(right)
    result: Rows = here != there
    both = np.flatnonzero(here & there)
    if len(both):
        result[both] = _values_differ(left.take(_index(both)), right.take(_index(both)))
    return result


def _values_differ(left: pa.Array, right: pa.Array) -> Rows:
    """Compare arrays without nulls; `take` has made them compact."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = left.type
    if pa.types.is_map(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists_differ(left, right)
    if pa.types.is_floating(kind) or pa.types.is_timestamp(kind) or pa.types.is_date32(kind):
        return np.asarray(_bits(left) != _bits(right))
    return np.asarray(pc.not_equal(left, right).to_numpy(zero_copy_only=False), dtype=bool)


def _bits(array: pa.Array) -> Any:
    width = array.type.bit_width
    data = np.frombuffer(array.buffers()[1], dtype=f"i{width // 8}")
    return data[array.offset : array.offset + len(array)]


def _lists_differ(left: pa.Array, right: pa.Array) -> Rows:
    lengths, others = _lengths(left), _lengths(right)
    result: Rows = lengths != others
    same = np.flatnonzero(~result)
    if not len(same):
        return result
    pairs = zip(_items(left.take(_index(same))), _items(right.take(_index(same))), strict=True)
    owners = np.repeat(same, lengths[same])
    for ours, theirs in pairs:
        result[owners[differing(ours, theirs)]] = True
    return result


def _lengths(array: pa.Array) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size)
    if pa.types.is_map(array.type):
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return np.diff(offsets)
    return pc.list_value_length(array).to_numpy(zero_copy_only=False)


def _items(array: pa.Array) -> list[pa.Array]:
    """Return the items of lists one after the other; of maps the keys and the values."""
    import pyarrow as pa

    if not pa.types.is_map(array.type):
        return [array.flatten()]
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    return [array.keys.slice(first, last - first), array.items.slice(first, last - first)]


def _valid(array: pa.Array) -> Rows:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)


def _index(places: Any) -> pa.Array:
    import pyarrow as pa

    return pa.array(places, pa.int64())
