"""Arrow arrays as arrays of a declared type, where nothing is lost by it.

The same rules hold for join keys, for the fields of a request and for what on-demand functions
return: text is never read as a number, nor a number as an instant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from featurestore import dtypes
from featurestore.dtypes import DType
from featurestore.semantics import maps

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = frozenset({"int32", "int64", "float32", "float64"})


def exact(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Return a column in exactly an Arrow type that it already has but for names and zones."""
    return column if column.type.equals(wanted, check_metadata=True) else column.cast(wanted)


def lossless(array: pa.Array, dtype: DType, *, rounding: bool = False) -> pa.Array | None:
    """Return an array as one of a declared type, None where a value would change or does not fit.

    Integers fit floats that hold them exactly, whole floats fit integers, any text and binary
    layout fits string and bytes, instants of any unit and zone fit timestamp when no part of a
    microsecond is lost, and lists fit a vector of their common length. Maps, or lists of structs of
    `key` and `value`, fit a map whose keys and values theirs fit; they come with their entries by
    key, and do not fit with a key that is null or there twice.

    Args:
        array: Any Arrow array.
        dtype: The declared type.
        rounding: Whether float64 values may be rounded to the nearest float32.
    """
    import pyarrow as pa

    if dtype.container == "map":
        return _maps(array, dtype, rounding=rounding)
    if array.type == dtype.arrow:
        converted = array
    elif array.null_count == len(array):
        converted = pa.nulls(len(array), dtype.arrow)
    else:
        converted = _cast(array, dtype, rounding=rounding)
    return converted if converted is not None and _whole_vectors(converted, dtype) else None


def _cast(array: pa.Array, dtype: DType, *, rounding: bool) -> pa.Array | None:
    import pyarrow as pa

    if dtype.container == "list" and _has_no_items(array):
        # Lists without any value are lists of anything.
        return pa.array(array.to_pylist(), type=dtype.arrow)
    if not _fits(array.type, dtype, rounding=rounding):
        return None
    try:
        converted = array.cast(dtype.arrow)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    lost = rounding and dtype.scalar == "float32" and _overflows(array, converted)
    return None if lost else converted


def _maps(array: pa.Array, dtype: DType, *, rounding: bool) -> pa.Array | None:
    import pyarrow as pa

    if array.null_count == len(array):
        return pa.nulls(len(array), dtype.arrow)
    if _has_no_items(array) and len(array.flatten()) == 0:
        # Lists without any value are maps of anything.
        return pa.array(array.to_pylist(), type=dtype.arrow)
    found = maps.entries(array)
    if found is None:
        return None
    keys = lossless(found.keys, DType(dtype.key))
    values = lossless(found.values, dtype.item, rounding=rounding)
    if keys is None or keys.null_count or values is None:
        return None
    return maps.arranged(maps.to_arrow(replace(found, keys=keys, values=values)))


def _fits(source: pa.DataType, dtype: DType, *, rounding: bool) -> bool:
    """Whether values of an Arrow type may be of a declared type; a safe cast tells if all are."""
    import pyarrow as pa

    if pa.types.is_uint64(source):
        return not dtype.container and dtype.scalar in _NUMBERS
    if isinstance(source, pa.ListViewType):
        # Arrow's cast of list views loses items.
        return False
    held = dtypes.from_arrow(source)
    if held is None or held.container == "map" or bool(held.container) != bool(dtype.container):
        return False
    if dtype.container == "vector" and held.length not in {0, dtype.length}:
        return False
    return _scalar_fits(held.scalar, dtype.scalar, rounding=rounding)


def _scalar_fits(held: str, declared: str, *, rounding: bool) -> bool:
    if (held, declared) == ("float64", "float32"):
        return rounding
    return held == declared or (held in _NUMBERS and declared in _NUMBERS)


def _has_no_items(array: pa.Array) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        return False
    items = array.flatten()
    return bool(items.null_count == len(items))


def _whole_vectors(array: pa.Array, dtype: DType) -> bool:
    return dtype.container != "vector" or array.flatten().null_count == 0


def _overflows(array: pa.Array, converted: pa.Array) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    while pa.types.is_nested(array.type):
        array, converted = array.flatten(), converted.flatten()
    if not pa.types.is_floating(array.type):
        return False
    return bool(pc.any(pc.and_(pc.is_inf(converted), pc.invert(pc.is_inf(array)))).as_py())
