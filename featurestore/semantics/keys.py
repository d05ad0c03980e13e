"""Entity keys as bytes (laws K1, K2).

A key is encoded part by part in declared join-key order: one tag byte for the type, then a fixed
width or a length and the bytes. Different keys never share bytes, and no key is a prefix of another
of the same shape. int32 and int64 encode alike: a key's identity is its value. A null part means
that there is no key at all; it matches nothing, not even another null.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import RequestError
from featurestore.semantics.timeline import to_instant

if TYPE_CHECKING:
    import pyarrow as pa

_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
NAMESPACE_BYTES = 8


def encode_part(value: Any, dtype: DType) -> bytes:
    """Return the bytes of one non-null part of a key.

    Raises:
        RequestError: The value is not of the type (a bool is no integer here).
    """
    encode = _ENCODERS.get(dtype.scalar)
    if encode is None or dtype.container:
        raise RequestError(f"A key cannot be of type {dtype}.", got=repr(value))
    try:
        return encode(value)
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise RequestError(
            f"A join key of type {dtype} got a value of another type.",
            got=f"{value!r} ({type(value).__name__})",
            allowed=str(dtype),
        ) from error


def encode_key(values: Sequence[Any], dtypes: Sequence[DType]) -> bytes | None:
    """Return the bytes of a key, or None when any part is null (law K2).

    A view without entities has the empty key, b"".

    >>> from featurestore.dtypes import parse
    >>> encode_key(["1", "23"], [parse("string")] * 2) == encode_key(
    ...     ["12", "3"], [parse("string")] * 2
    ... )
    False
    """
    if any(value is None for value in values):
        return None
    return b"".join(encode_part(v, t) for v, t in zip(values, dtypes, strict=True))


def encode_columns(columns: Sequence[pa.Array], dtypes: Sequence[DType]) -> list[bytes | None]:
    """Return the key of every row of Arrow columns, None where a part is null.

    Args:
        columns: One array a join key, all of one length, in declared order.
        dtypes: The declared types, in the same order.

    Raises:
        RequestError: A column holds values of another type.
    """
    parts = [_encode_column(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return [None if None in row else b"".join(row) for row in zip(*parts, strict=True)]


def namespace(project: str, view: str, table_fingerprint: str) -> bytes:
    """Return the 8 bytes that lead every online key of one view's table in one project (law M7)."""
    text = b"\x00".join(part.encode() for part in (project, view, table_fingerprint))
    return hashlib.blake2b(text, digest_size=NAMESPACE_BYTES).digest()


def _encode_column(column: pa.Array, dtype: DType) -> list[bytes | None]:
    import pyarrow as pa

    if dtype.scalar in {"int32", "int64"} and pa.types.is_integer(column.type):
        pack = struct.Struct(">cq").pack
        return [None if v is None else pack(b"i", v) for v in column.to_pylist()]
    if dtype.scalar == "timestamp" and pa.types.is_timestamp(column.type):
        if column.type.tz is None:
            encode_part(datetime(1970, 1, 1), dtype)  # noqa: DTZ001  (raises the naive error)
        micros = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
        return [None if v is None else _instant(v) for v in micros]
    return [None if v is None else encode_part(v, dtype) for v in column.to_pylist()]


def _integer(value: Any) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return struct.pack(">cq", b"i", value)


def _string(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    data = value.encode()
    return struct.pack(">cI", b"s", len(data)) + data


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return struct.pack(">cI", b"b", len(value)) + bytes(value)


def _bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise TypeError
    return b"t\x01" if value else b"t\x00"


def _date(value: Any) -> bytes:
    if isinstance(value, datetime) or not isinstance(value, date):
        raise TypeError
    return struct.pack(">ci", b"d", value.toordinal() - _EPOCH_ORDINAL)


def _instant(value: Any) -> bytes:
    if isinstance(value, bool) or not isinstance(value, datetime | int):
        raise TypeError
    return struct.pack(">cq", b"u", to_instant(value, "join key"))


_ENCODERS = {
    "int32": _integer,
    "int64": _integer,
    "string": _string,
    "bytes": _bytes,
    "bool": _bool,
    "date": _date,
    "timestamp": _instant,
}
