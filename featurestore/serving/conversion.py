"""Columns between Arrow, plain bytes and the protocol: numbers are copied, never looked at.

A message of packed fixed-width numbers is, serialized, one tag, one length and the plain bytes
(`semantics.plain`). So a column is written by merging such bytes into its message and read by
serializing it: no Python object a value, and every bit of a float survives, payloads of NaN too.
Refuses what breaks the protocol: lengths that differ, a validity that is too short, no values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore import dtypes
from featurestore.dtypes import KEY_SCALARS, DType
from featurestore.errors import RequestError
from featurestore.semantics import maps
from featurestore.semantics import plain as plains
from featurestore.semantics.plain import Plain
from featurestore.serving.v1 import serving_pb2 as pb

# The fields of a column's values by scalar, and back.
FIELDS = {
    "bool": "bools",
    "int32": "int32s",
    "int64": "int64s",
    "float32": "floats",
    "float64": "doubles",
    "string": "strings",
    "bytes": "binaries",
    "date": "dates",
    "timestamp": "timestamps",
}
SCALARS: dict[str | None, str] = {field: scalar for scalar, field in FIELDS.items()}
_TOLD_BY_VALUES = {"bools", "int32s", "int64s", "strings", "binaries"}
_LOW_BITS = 127
_WIDTHS = {scalar: DType(scalar).width or 0 for scalar in plains.CODES}


def write_plain(column: pb.Column, dtype: DType, plain: Plain) -> None:
    """Fill a column's values and validity from plain bytes."""
    data, validity = plain
    if validity is not None:
        column.validity = validity
    if dtype.container == "vector":
        column.vectors.length = dtype.length
        _merge(getattr(column.vectors, FIELDS[dtype.scalar]), data)
    else:
        _merge(getattr(column, FIELDS[dtype.scalar]), data)


def write_arrow(column: pb.Column, array: pa.Array) -> None:
    """Fill a column's values and validity from an Arrow array of one of our types, or of nulls.

    Nulls without a type travel as bools, all null: a column of nulls is of any type. So do the
    items of lists and the values of maps that have none.

    Raises:
        RequestError: The array is of no type of ours.
    """
    if pa.types.is_map(array.type):
        _write_maps(column, array)
        return
    if pa.types.is_null(array.type):
        array = array.cast(pa.bool_())
    elif pa.types.is_list(array.type) and pa.types.is_null(array.type.value_type):
        array = array.cast(pa.list_(pa.bool_()))
    dtype = dtypes.from_arrow(array.type)
    if dtype is None:
        raise RequestError(f"A column of type {array.type} cannot be sent.")
    array = array if array.type == dtype.arrow else array.cast(dtype.arrow)
    if dtype.width is not None:
        write_plain(column, dtype, plains.from_arrow(dtype, array))
        return
    validity = plains.validity_of(array)
    if validity is not None:
        column.validity = validity
    if dtype.container == "list":
        lengths = array.value_lengths().fill_null(0).to_numpy().astype("<u4")
        column.lists.SetInParent()
        column.lists.MergeFromString(framed(1, lengths.tobytes()))
        write_arrow(column.lists.items, array.flatten())
        return
    values = getattr(column, FIELDS[dtype.scalar])
    values.SetInParent()
    empty: Any = "" if dtype.scalar == "string" else b""
    filled = array.fill_null(empty) if array.null_count else array
    values.values.extend(filled.to_pylist())


def read_arrow(column: pb.Column) -> pa.Array:
    """Return a column as an Arrow array.

    Raises:
        RequestError: It breaks the protocol.
    """
    dtype = dtype_of(column)
    if dtype.width is not None:
        data = read_plain(column, dtype)
        rows = len(data[0]) // dtype.width
        return plains.to_arrow(dtype, rows, (data[0], _checked_validity(column, rows)))
    if dtype.container == "list":
        return _read_lists(column, dtype)
    if dtype.container == "map":
        return _read_maps(column)
    values = list(getattr(column, FIELDS[dtype.scalar]).values)
    validity = _checked_validity(column, len(values))
    if validity is None:
        return pa.array(values, type=dtype.arrow)
    mask = ~np.array(plains.unpack_bits(validity, len(values)), dtype=bool)
    return pa.array(values, type=dtype.arrow, mask=mask)


def read_plain(column: pb.Column, dtype: DType) -> Plain:
    """Return a column of a fixed-width type as plain bytes.

    Raises:
        RequestError: The items of its vectors do not fill them.
    """
    validity = column.validity or None
    if dtype.container != "vector":
        return _packed(getattr(column, FIELDS[dtype.scalar]), dtype.scalar), validity
    data = _packed(getattr(column.vectors, FIELDS[dtype.scalar]), dtype.scalar)
    if len(data) % (dtype.width or 1):
        raise _broken(column, "its items do not fill its vectors")
    return data, validity


def dtype_of(column: pb.Column) -> DType:
    """Return the type of a column's values.

    Raises:
        RequestError: It has no values, or containers of something that is no value type.
    """
    field = column.WhichOneof("values")
    if field is None:
        raise _broken(column, "it has no values")
    scalar = SCALARS.get(field)
    if scalar is not None:
        return DType(scalar)
    if field == "lists":
        item = SCALARS.get(column.lists.items.WhichOneof("values") or "")
        if item is None:
            raise _broken(column, "its lists have no items of a scalar type")
        return DType(item, "list")
    if field == "maps":
        return _map_type(column)
    item = SCALARS.get(column.vectors.WhichOneof("items") or "")
    if item is None or column.vectors.length == 0:
        raise _broken(column, "its vectors have no items or no length")
    return DType(item, "vector", column.vectors.length)


def read_columns(columns: Iterable[pb.Column], what: str, few: int = 0) -> dict[str, Any]:
    """Return columns by name, as Arrow arrays.

    Args:
        columns: The columns of a request.
        what: The request's field, for errors.
        few: Columns of at most so many values come as lists of Python values where that says as
            much: one key is looked up faster so, and no thread waits for another in between.

    Raises:
        RequestError: One breaks the protocol, or two share a name.
    """
    found: dict[str, Any] = {}
    for column in columns:
        if column.name in found:
            raise RequestError(f"Two columns of '{what}' share a name.", got=column.name)
        values = _few_values(column, few)
        found[column.name] = read_arrow(column) if values is None else values
    return found


def framed(number: int, data: bytes) -> bytes:
    """Return bytes as the length-delimited field of a message: a text, a message, packed numbers.

    Args:
        number: The field's number, below 16.
        data: What the field holds.
    """
    return head(number, len(data)) + data


def head(number: int, size: int) -> bytes:
    """Return what stands before `size` bytes of a length-delimited field."""
    return bytes((number << 3 | 2,)) + _varint(size)


def _few_values(column: pb.Column, most: int) -> list[Any] | None:
    """Return a column as Python values if it is short, without nulls, and of a type they tell."""
    field = column.WhichOneof("values")
    if field not in _TOLD_BY_VALUES or column.validity:
        return None
    values = getattr(column, field).values
    return list(values) if 0 < len(values) <= most else None


def _merge(message: Any, data: bytes) -> None:
    message.SetInParent()
    if data:
        message.MergeFromString(framed(1, data))


def _packed(message: Any, scalar: str) -> bytes:
    """Return the numbers of a message of packed numbers as little-endian bytes."""
    size = len(message.values) * _WIDTHS[scalar]
    if not size:
        return b""
    start = len(head(1, size))
    data: bytes = message.SerializeToString()
    if len(data) != start + size:
        # Fields of a later version of the protocol.
        message.DiscardUnknownFields()
        data = message.SerializeToString()
    return data[start:]


def _read_lists(column: pb.Column, dtype: DType) -> pa.Array:
    lengths = np.array(column.lists.lengths, dtype=np.int64)
    items = read_arrow(column.lists.items)
    if int(lengths.sum()) != len(items):
        raise _broken(column, "the lengths of its lists do not add up to its items")
    validity = _checked_validity(column, len(lengths))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None if validity is None else pa.py_buffer(validity), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(dtype.arrow, len(lengths), buffers, children=[items])


def _write_maps(column: pb.Column, array: pa.Array) -> None:
    found = maps.entries_of(array)
    key = dtypes.from_arrow(found.keys.type)
    if key is None or str(key) not in KEY_SCALARS or pa.types.is_nested(found.values.type):
        raise RequestError(f"A column of type {array.type} cannot be sent.")
    column.validity = plains.validity_of(array) or b""
    column.maps.SetInParent()
    column.maps.MergeFromString(framed(1, found.lengths.astype("<u4").tobytes()))
    write_arrow(column.maps.keys, found.keys)
    write_arrow(column.maps.values, found.values)


def _map_type(column: pb.Column) -> DType:
    key = SCALARS.get(column.maps.keys.WhichOneof("values") or "")
    value = SCALARS.get(column.maps.values.WhichOneof("values") or "")
    if key not in KEY_SCALARS or value is None:
        raise _broken(column, "its maps have no keys or values, or of types that none can have")
    return DType(value, "map", key=key)


def _read_maps(column: pb.Column) -> pa.Array:
    """Return maps, the entries of each by key."""
    lengths = np.array(column.maps.lengths, dtype=np.int64)
    keys, values = read_arrow(column.maps.keys), read_arrow(column.maps.values)
    total = int(lengths.sum())
    if total != len(keys) or total != len(values) or keys.null_count:
        raise _broken(
            column, "its maps' lengths, keys and values differ in number, or a key is null"
        )
    rows = len(lengths)
    validity = _checked_validity(column, rows)
    present = np.ones(rows, bool) if validity is None else plains.unpack_bits(validity, rows)
    made = maps.arranged(maps.to_arrow(maps.Entries(lengths, np.array(present), keys, values)))
    if made is None:
        raise _broken(column, "one of its maps has a key twice")
    return made


def _checked_validity(column: pb.Column, rows: int) -> bytes | None:
    validity: bytes = column.validity
    if not validity:
        return None
    if len(validity) != (rows + 7) // 8:
        raise _broken(
            column, f"its validity has {len(validity)} bytes for {rows} values, one bit each"
        )
    return validity


def _broken(column: pb.Column, how: str) -> RequestError:
    return RequestError(
        f"The column '{column.name}' breaks the protocol: {how}.",
        allowed="see Column in featurestore/serving/v1/serving.proto",
    )


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > _LOW_BITS:
        parts.append(number & _LOW_BITS | _LOW_BITS + 1)
        number >>= 7
    parts.append(number)
    return bytes(parts)
