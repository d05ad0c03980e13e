"""One row of a view as bytes: what the online store keeps and how two rows compare (T2, O2, O4).

    fingerprint  4 bytes   of the schema that the rest was written under (law O4)
    event        8 bytes   big-endian, sign flipped: bytes order as instants do
    created      8 bytes   the same; all zero where the source's created_timestamp is null
    payload      a bit for each feature (set = present), then the fixed-width features in
                 declared order (little-endian, zero where null), then the others in declared
                 order (32-bit length and bytes; a list is a count, its presence bits, its items;
                 a map is a count, its keys in order, the presence bits of its values, its values)

Without a declared `created_timestamp` a row counts as created when it happened. The payload is the
row's canonical form: equal rows have equal bytes. So *newer* (T2) is plain byte order of everything
behind the fingerprint, and a full tie of both timestamps is settled by the payload, whatever the
order of arrival. Packing is vectorized over a batch; no object per value for fixed-width features.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import DataError
from featurestore.semantics import maps

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Int64s = npt.NDArray[np.int64]

FINGERPRINT_BYTES = 4
ORDER_BYTES = 16
HEADER_BYTES = FINGERPRINT_BYTES + ORDER_BYTES
NULL_CREATED = -(2**63)
_SIGN = 1 << 63
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class RowSchema:
    """The features of a view in declared order and the fingerprint of their table.

    Attributes:
        names: The features' names.
        dtypes: Their types, in the same order.
        fingerprint: 4 bytes that lead every packed row.
    """

    names: tuple[str, ...]
    dtypes: tuple[DType, ...]
    fingerprint: bytes

    @cached_property
    def bitmap_bytes(self) -> int:
        """Bytes of the presence bits."""
        return (len(self.names) + 7) // 8

    @cached_property
    def fixed(self) -> tuple[tuple[int, int, int], ...]:
        """(feature index, offset behind the bitmap, width) of each fixed-width feature."""
        slots = []
        offset = 0
        for index, dtype in enumerate(self.dtypes):
            if dtype.width is not None:
                slots.append((index, offset, dtype.width))
                offset += dtype.width
        return tuple(slots)

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes of the bitmap and all fixed-width features."""
        return self.bitmap_bytes + sum(width for _, _, width in self.fixed)

    @cached_property
    def varying(self) -> tuple[int, ...]:
        """The indexes of the features of varying width."""
        return tuple(i for i, dtype in enumerate(self.dtypes) if dtype.width is None)


def is_newer(new: bytes, old: bytes) -> bool:
    """Law T2 on packed rows of one schema: whether `new` replaces `old`."""
    return new[FINGERPRINT_BYTES:] > old[FINGERPRINT_BYTES:]


def event_of(value: bytes) -> int:
    """Return the event timestamp of a packed row, microseconds since the epoch."""
    return int.from_bytes(value[4:12], "big") - _SIGN


def created_of(value: bytes) -> int | None:
    """Return the created timestamp of a packed row, None where it was null."""
    created = int.from_bytes(value[12:20], "big") - _SIGN
    return None if created == NULL_CREATED else created


def pack(
    schema: RowSchema, event: Int64s, created: Int64s, columns: Sequence[pa.Array]
) -> list[bytes]:
    """Return the packed rows of a batch.

    Args:
        schema: The view's features.
        event: int64[n], microseconds since the epoch.
        created: int64[n], the same; `NULL_CREATED` where null.
        columns: One Arrow array of n items a feature, of exactly its declared type.

    Raises:
        DataError: A vector holds a null item, or a map a key twice.
    """
    import numpy as np

    order = np.empty((len(event), 2), dtype=">u8")
    order[:, 0] = event.view(np.uint64) ^ np.uint64(_SIGN)
    order[:, 1] = created.view(np.uint64) ^ np.uint64(_SIGN)
    heads = order.tobytes()
    lead = schema.fingerprint
    size = ORDER_BYTES
    return [
        lead + heads[i * size : (i + 1) * size] + payload
        for i, payload in enumerate(payloads(schema, columns, len(event)))
    ]


def payloads(schema: RowSchema, columns: Sequence[pa.Array], rows: int) -> list[bytes]:
    """Return the canonical bytes of each row's features (the tie-breaker of law T2)."""
    import numpy as np

    present = np.zeros((rows, len(schema.names)), dtype=np.uint8)
    for index, column in enumerate(columns):
        present[:, index] = _presence(column)
    matrix = np.zeros((rows, schema.fixed_bytes), dtype=np.uint8)
    matrix[:, : schema.bitmap_bytes] = np.packbits(present, axis=1, bitorder="little")
    for index, offset, width in schema.fixed:
        start = schema.bitmap_bytes + offset
        matrix[:, start : start + width] = _fixed(
            schema.names[index], schema.dtypes[index], columns[index], present[:, index]
        )
    data = matrix.tobytes()
    size = schema.fixed_bytes
    heads = [data[i * size : (i + 1) * size] for i in range(rows)]
    tails = [_varying(schema.names[i], schema.dtypes[i], columns[i]) for i in schema.varying]
    if not tails:
        return heads
    return [head + b"".join(parts) for head, *parts in zip(heads, *tails, strict=True)]


def unpack(schema: RowSchema, values: Sequence[bytes]) -> tuple[Int64s, list[pa.Array]]:
    """Return the event timestamps and one Arrow array a feature of packed rows.

    Raises:
        DataError: A row was written under another schema (law O4); nothing is decoded.
    """
    import numpy as np

    lead = schema.fingerprint
    for value in values:
        if not value.startswith(lead):
            raise DataError(
                "A packed row was written under another schema and is not decoded.",
                got=value[:FINGERPRINT_BYTES].hex(),
                allowed=lead.hex(),
                hint="Materialize the view again, or apply the definition that wrote it.",
            )
    end = HEADER_BYTES + schema.fixed_bytes
    joined = b"".join([value[FINGERPRINT_BYTES:end] for value in values])
    matrix = np.frombuffer(joined, dtype=np.uint8).reshape(len(values), end - FINGERPRINT_BYTES)
    order = np.ascontiguousarray(matrix[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    events = (order ^ np.uint64(_SIGN)).view(np.int64)
    body = matrix[:, ORDER_BYTES:]
    bits = np.unpackbits(body[:, : schema.bitmap_bytes], axis=1, bitorder="little").astype(bool)
    arrays: list[Any] = [None] * len(schema.names)
    for index, offset, width in schema.fixed:
        start = schema.bitmap_bytes + offset
        raw = np.ascontiguousarray(body[:, start : start + width])
        arrays[index] = _fixed_array(schema.dtypes[index], raw, bits[:, index])
    if schema.varying:
        _unpack_varying(schema, values, bits, arrays, end)
    return events, arrays


def _presence(column: pa.Array) -> Any:
    if column.null_count == 0:
        return 1
    return column.is_valid().to_numpy(zero_copy_only=False)


def _fixed(name: str, dtype: DType, column: pa.Array, present: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    from featurestore.semantics.nan import one_nan

    rows = len(column)
    if dtype.container == "vector":
        length = dtype.length
        items = column.values.slice(column.offset * length, rows * length)
        valid = np.repeat(present.astype(bool), length)
        if items.null_count and not items.is_valid().to_numpy(zero_copy_only=False)[valid].all():
            raise DataError(
                f"A vector of '{name}' holds a null item.",
                allowed=f"{length} numbers, or null as a whole",
                hint="Filter such rows by where=, or fill the items by an expression.",
            )
        numbers = items.fill_null(0).to_numpy(zero_copy_only=False)
        numbers = one_nan(np.where(valid, numbers, numbers.dtype.type(0)).astype(dtype.numpy))
        return numbers.reshape(rows, length).view(np.uint8)
    if dtype.scalar == "bool":
        numbers = column.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
    else:
        plain = {"date": pa.int32(), "timestamp": pa.int64()}.get(dtype.scalar)
        numbers = (column.cast(plain) if plain else column).fill_null(0).to_numpy()
        numbers = one_nan(numbers) if dtype.scalar in {"float32", "float64"} else numbers
    return np.ascontiguousarray(numbers.astype(dtype.numpy)).reshape(rows, 1).view(np.uint8)


def _fixed_array(dtype: DType, raw: Any, valid: Any) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    numbers = raw.view(dtype.numpy)
    mask = None if valid.all() else ~valid
    if dtype.container == "vector":
        child = pa.array(numbers.reshape(-1), type=dtype.item.arrow)
        return pa.FixedSizeListArray.from_arrays(
            child, type=dtype.arrow, mask=None if mask is None else pa.array(mask)
        )
    flat = numbers.reshape(-1)
    if dtype.scalar == "bool":
        return pa.array(flat.astype(bool), mask=mask)
    native = np.ascontiguousarray(flat.astype(flat.dtype.newbyteorder("=")))
    if dtype.scalar in {"date", "timestamp"}:
        plain = pa.int32() if dtype.scalar == "date" else pa.int64()
        return pa.array(native, type=plain, mask=mask).cast(dtype.arrow)
    return pa.array(native, type=dtype.arrow, mask=mask)


def _varying(name: str, dtype: DType, column: pa.Array) -> list[bytes]:
    length = _LENGTH.pack
    if dtype.container == "list":
        lengths = column.value_lengths().fill_null(0).to_pylist()
        present = column.is_valid().to_pylist()
        return _runs(lengths, present, None, _alone(dtype.item, column.flatten()))
    if dtype.container == "map":
        found = maps.entries_of(maps.in_order(column, name))
        keys = _alone(DType(dtype.key), found.keys)
        values = _alone(dtype.item, found.values)
        return _runs(found.lengths.tolist(), found.present.tolist(), keys, values)
    values = column.to_pylist()
    if dtype.scalar == "string":
        encoded = [None if v is None else v.encode() for v in values]
        return [b"" if v is None else length(len(v)) + v for v in encoded]
    return [b"" if v is None else length(len(v)) + v for v in values]


def _alone(dtype: DType, column: pa.Array) -> list[bytes]:
    """Return each scalar as a row of its own: a presence bit in a byte, and its bytes."""
    return payloads(RowSchema(("item",), (dtype,), b""), [column], len(column))


def _runs(
    lengths: Sequence[int],
    present: Sequence[bool],
    keys: Sequence[bytes] | None,
    items: Sequence[bytes],
) -> list[bytes]:
    """Return lists, or with keys maps, of items that stand one after the other."""
    result: list[bytes] = []
    position = 0
    for count, there in zip(lengths, present, strict=True):
        if not there:
            result.append(b"")
            continue
        end = position + count
        own = items[position:end]
        bits = sum(1 << i for i, item in enumerate(own) if item[0] & 1)
        parts = [_LENGTH.pack(count)]
        if keys is not None:
            parts += [key[1:] for key in keys[position:end]]
        parts.append(bits.to_bytes((count + 7) // 8, "little"))
        parts += [item[1:] for item in own]
        result.append(b"".join(parts))
        position = end
    return result


def _unpack_varying(
    schema: RowSchema, values: Sequence[bytes], bits: Any, arrays: list[Any], start: int
) -> None:
    import pyarrow as pa

    decoded: dict[int, list[Any]] = {index: [] for index in schema.varying}
    for row, value in enumerate(values):
        offset = start
        for index in schema.varying:
            if not bits[row, index]:
                decoded[index].append(None)
                continue
            item, offset = read_varying(schema.dtypes[index], value, offset)
            decoded[index].append(item)
    for index, items in decoded.items():
        dtype = schema.dtypes[index]
        arrays[index] = pa.array(items, type=plain_arrow(dtype)).cast(dtype.arrow)


def plain_arrow(dtype: DType) -> pa.DataType:
    """Return the Arrow type of what `read_varying` gives: dates and instants are integers."""
    import pyarrow as pa

    integers = {"date": pa.int32(), "timestamp": pa.int64()}
    item = integers.get(dtype.scalar, dtype.item.arrow)
    if dtype.container == "map":
        return pa.map_(integers.get(dtype.key, DType(dtype.key).arrow), item)
    return pa.list_(item) if dtype.container else item


def read_varying(dtype: DType, value: bytes, offset: int) -> tuple[Any, int]:
    """Return a value of varying width that stands at `offset`, and the offset behind it.

    A map comes as its pairs.
    """
    (count,) = _LENGTH.unpack_from(value, offset)
    offset += 4
    if dtype.container == "list":
        return _read_items(dtype.item, value, offset, count)
    if dtype.container == "map":
        key_type = DType(dtype.key)
        keys: list[Any] = []
        for _ in range(count):
            key, offset = _read_one(key_type, value, offset)
            keys.append(key)
        items, offset = _read_items(dtype.item, value, offset, count)
        return list(zip(keys, items, strict=True)), offset
    data = value[offset : offset + count]
    return (data.decode() if dtype.scalar == "string" else data), offset + count


def _read_items(dtype: DType, value: bytes, offset: int, count: int) -> tuple[list[Any], int]:
    """Return scalars behind their presence bits, and the offset behind them."""
    if count > 8 * (len(value) - offset):
        raise struct.error("there are fewer items than were counted")
    bits = int.from_bytes(value[offset : offset + (count + 7) // 8], "little")
    offset += (count + 7) // 8
    width = dtype.width
    items: list[Any]
    if width is not None:
        # All at once: what is null has its place too.
        code = _SCALARS[dtype.scalar].format[1:]
        items = list(struct.unpack_from(f"<{count}{code}", value, offset))
        if bits != (1 << count) - 1:
            items = [item if bits >> i & 1 else None for i, item in enumerate(items)]
        return items, offset + count * width
    items = []
    for i in range(count):
        if bits >> i & 1:
            item, offset = read_varying(dtype, value, offset)
            items.append(item)
        else:
            items.append(None)
    return items, offset


def _read_one(dtype: DType, value: bytes, offset: int) -> tuple[Any, int]:
    width = dtype.width
    if width is None:
        return read_varying(dtype, value, offset)
    return _SCALARS[dtype.scalar].unpack_from(value, offset)[0], offset + width


_SCALARS = {
    "bool": struct.Struct("<?"),
    "int32": struct.Struct("<i"),
    "int64": struct.Struct("<q"),
    "float32": struct.Struct("<f"),
    "float64": struct.Struct("<d"),
    "date": struct.Struct("<i"),
    "timestamp": struct.Struct("<q"),
}
