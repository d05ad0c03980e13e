"""Columns of fixed-width types as plain bytes: what packed rows, Arrow and the wire have in common.

A plain column is its values, little-endian and zero where null (a bool is a byte, a vector its
items), and its validity: a bit a row, least significant first, set where there is a value; None
where nothing is null. Converting one copies bytes and never looks at a number, so that every bit of
a float survives.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.semantics.timeline import to_datetime

if TYPE_CHECKING:
    import pyarrow as pa

Plain = tuple[bytes, bytes | None]

# How `struct` calls the scalars.
CODES = {
    "bool": "?",
    "int32": "i",
    "int64": "q",
    "float32": "f",
    "float64": "d",
    "date": "i",
    "timestamp": "q",
}
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


def to_arrow(
    dtype: DType, rows: int, plain: Plain, arrow_type: pa.DataType | None = None
) -> pa.Array:
    """Return a plain column as an Arrow array.

    Args:
        dtype: A type of fixed width.
        rows: The number of values.
        plain: The column.
        arrow_type: The type in Arrow, where the caller has it at hand.
    """
    import pyarrow as pa

    data, validity = plain
    mask = None if validity is None else pa.py_buffer(validity)
    kind = dtype.arrow if arrow_type is None else arrow_type
    if dtype.container == "vector":
        child = to_arrow(dtype.item, rows * dtype.length, (data, None))
        return pa.Array.from_buffers(kind, rows, [mask], children=[child])
    if dtype.scalar == "bool":
        data = pack_bits(data)
    return pa.Array.from_buffers(kind, rows, [mask, pa.py_buffer(data)])


def from_arrow(dtype: DType, array: pa.Array) -> Plain:
    """Return an Arrow array of exactly the type's Arrow type as a plain column."""
    import numpy as np
    import pyarrow as pa

    rows = len(array)
    validity = validity_of(array)
    if dtype.container == "vector":
        length = dtype.length
        items = array.values.slice(array.offset * length, rows * length)
        if validity is not None:
            # What stands below a null vector is nobody's business, nulls included.
            keep = np.repeat(np.array(unpack_bits(validity, rows), dtype=bool), length)
            data = np.frombuffer(from_arrow(dtype.item, items)[0], dtype=dtype.numpy).copy()
            data[~keep] = 0
            return data.tobytes(), validity
        return from_arrow(dtype.item, items)[0], None
    if dtype.scalar == "bool":
        numbers = array.cast(pa.uint8())
    elif dtype.scalar in {"date", "timestamp"}:
        numbers = array.view(pa.int32() if dtype.scalar == "date" else pa.int64())
    else:
        numbers = array
    if validity is not None:
        numbers = numbers.fill_null(0)
    return np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False)).tobytes(), validity


def to_list(dtype: DType, rows: int, plain: Plain) -> list[Any]:
    """Return a plain column as Python values, None where null."""
    data, validity = plain
    count = rows * (dtype.length or 1)
    values: list[Any] = list(struct.unpack(f"<{count}{CODES[dtype.scalar]}", data))
    if dtype.container == "vector":
        size = dtype.length
        values = [values[i * size : (i + 1) * size] for i in range(rows)]
    show = SHOWN.get(dtype.scalar)
    if show is not None and validity is None:
        return [show(v) for v in values]
    if validity is None:
        return values
    present = unpack_bits(validity, rows)
    if show is not None:
        return [show(v) if p else None for v, p in zip(values, present, strict=True)]
    return [v if p else None for v, p in zip(values, present, strict=True)]


def validity_of(array: pa.Array) -> bytes | None:
    """Return the validity of an Arrow array, None without nulls."""
    import numpy as np

    if array.null_count == 0:
        return None
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    return np.packbits(valid, bitorder="little").tobytes()


def pack_bits(flags: bytes) -> bytes:
    """Return bytes of 0 and 1 as bits, least significant first."""
    import numpy as np

    return np.packbits(np.frombuffer(flags, dtype=np.uint8), bitorder="little").tobytes()


def unpack_bits(validity: bytes, rows: int) -> list[bool]:
    """Return bits, least significant first, as truth values."""
    return [bool(validity[i >> 3] >> (i & 7) & 1) for i in range(rows)]


def _to_date(days: int) -> date:
    return date.fromordinal(days + _EPOCH_ORDINAL)


SHOWN: dict[str, Callable[[int], Any]] = {"date": _to_date, "timestamp": to_datetime}
"""How the scalars that are integers underneath look in Python."""
