"""Packed rows as one view's part of an answer: who is visible, what they hold (laws T3, O3, O4).

`rows.unpack` says what packed rows mean; this room reads the same bytes without decoding more than
is asked for. First the heads: whether each row was written under our schema, and its instant.
Then, once the instant of the answer is known, a status a row. Features are decoded one at a time,
as plain little-endian bytes, as Arrow or as Python values. One row, the most frequent request, is
read without NumPy; nothing else differs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import DataError
from featurestore.semantics.rows import (
    FINGERPRINT_BYTES,
    HEADER_BYTES,
    RowSchema,
    event_of,
    plain_arrow,
    read_varying,
)
from featurestore.semantics.timeline import is_visible, to_datetime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Int64s = npt.NDArray[np.int64]

# The statuses of law O3 as numbers, the same on the wire. A view's row is never NULL_VALUE as a
# whole: that is told feature by feature.
PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = 1, 2, 3, 4

Plain = tuple[bytes, bytes | None]
_SIGN = 1 << 63
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_CODES = {
    "bool": "?",
    "int32": "i",
    "int64": "q",
    "float32": "f",
    "float64": "d",
    "date": "i",
    "timestamp": "q",
}


class PackedReader:
    """Reads packed rows of one view; made once and used for every answer.

    Args:
        view: The view's name, for errors.
        schema: Its features and the fingerprint of its rows.
    """

    def __init__(self, view: str, schema: RowSchema) -> None:
        self.view = view
        self.schema = schema
        self.size = HEADER_BYTES + schema.fixed_bytes
        start = HEADER_BYTES + schema.bitmap_bytes
        self.slots = {i: (start + at, start + at + width) for i, at, width in schema.fixed}

    def heads(self, values: Sequence[bytes | None]) -> OneHead | ManyHeads:
        """Return the heads of one packed row an entity row, None where there is none.

        Raises:
            DataError: A row was written under another schema (law O4), or is cut short.
        """
        return OneHead(self, values[0]) if len(values) == 1 else ManyHeads(self, values)

    def check(self, value: bytes) -> None:
        """Refuse a packed row that is not of this schema."""
        lead = self.schema.fingerprint
        if not value.startswith(lead):
            raise DataError(
                f"A stored row of '{self.view}' was written under another schema; it is not read.",
                got=value[:FINGERPRINT_BYTES].hex(),
                allowed=lead.hex(),
                hint="Materialize the view again, or apply the definition that wrote it.",
            )
        if len(value) < self.size:
            raise self.damaged(value)

    def damaged(self, value: bytes) -> DataError:
        """Return the error of a row that is cut short or garbled."""
        return DataError(
            f"A stored row of '{self.view}' is damaged.",
            got=f"{len(value)} bytes",
            allowed=f"{self.size} bytes or more, whole",
            hint="Materialize the view again.",
        )


class OneHead:
    """The head of a single row."""

    def __init__(self, reader: PackedReader, value: bytes | None) -> None:
        if value is not None:
            reader.check(value)
        self._reader = reader
        self._value = value
        self.newest = None if value is None else event_of(value)

    def first_after(self, as_of: int) -> tuple[int, int] | None:
        """Return (row, event timestamp) of the first row newer than `as_of`, or None."""
        return (0, self.newest) if self.newest is not None and self.newest > as_of else None

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the rows as they are seen at `as_of` (law T3)."""
        event = self.newest
        if event is None:
            return PackedRows(self._reader, [None], bytes([NOT_FOUND]), bytes(8))
        stamps = event.to_bytes(8, "little", signed=True)
        if is_visible(event, as_of, ttl):
            return PackedRows(self._reader, [self._value], bytes([PRESENT]), stamps)
        return PackedRows(self._reader, [None], bytes([OUTSIDE_MAX_AGE]), stamps)


class ManyHeads:
    """The heads of any number of rows."""

    def __init__(self, reader: PackedReader, values: Sequence[bytes | None]) -> None:
        import numpy as np

        self._reader = reader
        self._values = values
        stored = [v for v in values if v is not None]
        empty = reader.schema.fingerprint + bytes(HEADER_BYTES - FINGERPRINT_BYTES)
        joined = b"".join([empty if v is None else v[:HEADER_BYTES] for v in values])
        if stored and min(map(len, stored)) < reader.size:
            self._refuse(stored)
        matrix = np.frombuffer(joined, dtype=np.uint8).reshape(len(values), HEADER_BYTES)
        lead = np.frombuffer(reader.schema.fingerprint, dtype=np.uint8)
        if (matrix[:, :FINGERPRINT_BYTES] != lead).any():
            self._refuse(stored)
        self._found = np.fromiter((v is not None for v in values), dtype=bool, count=len(values))
        order = np.ascontiguousarray(matrix[:, 4:12]).view(">u8")[:, 0].astype(np.uint64)
        self._events: Int64s = (order ^ np.uint64(_SIGN)).view(np.int64)

    def _refuse(self, stored: Sequence[bytes]) -> None:
        for value in stored:
            self._reader.check(value)

    @property
    def newest(self) -> int | None:
        """The largest event timestamp, None without any row."""
        return int(self._events[self._found].max()) if self._found.any() else None

    def first_after(self, as_of: int) -> tuple[int, int] | None:
        """Return (row, event timestamp) of the first row newer than `as_of`, or None."""
        after = self._found & (self._events > as_of)
        row = int(after.argmax()) if after.any() else None
        return None if row is None else (row, int(self._events[row]))

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the rows as they are seen at `as_of` (law T3, here for all rows at once)."""
        import numpy as np

        visible = self._found & (self._events <= as_of)
        if ttl is not None:
            visible &= as_of - self._events <= ttl
        outside = np.where(self._found, OUTSIDE_MAX_AGE, NOT_FOUND)
        statuses = np.where(visible, PRESENT, outside).astype(np.uint8)
        events = np.where(self._found, self._events, 0).astype("<i8")
        shown = [
            v if seen else None for v, seen in zip(self._values, visible.tolist(), strict=True)
        ]
        return PackedRows(self._reader, shown, statuses.tobytes(), events.tobytes())


class PackedRows:
    """One view's rows in an answer: statuses and instants, and its features decoded when asked.

    Attributes:
        statuses: One byte a row: PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE.
        events: Eight bytes a row, little-endian: microseconds; 0 where nothing was found.
    """

    def __init__(
        self, reader: PackedReader, shown: Sequence[bytes | None], statuses: bytes, events: bytes
    ) -> None:
        self._reader = reader
        self._shown = shown
        self.statuses = statuses
        self.events = events

    def plain(self, index: int) -> Plain | None:
        """Return a feature as (values, validity), None when its values vary in width.

        Values are little-endian and zero where null; bools are a byte each. Validity is a bit a
        row, least significant first, and None without nulls.
        """
        slot = self._reader.slots.get(index)
        if slot is None:
            return None
        start, stop = slot
        if len(self._shown) == 1:
            value = self._shown[0]
            if value is None:
                return bytes(stop - start), b"\x00"
            present = value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
            return value[start:stop], None if present else b"\x00"
        data = self._matrix[:, start - HEADER_BYTES : stop - HEADER_BYTES].tobytes()
        return data, self.validity(index)

    def validity(self, index: int) -> bytes | None:
        """Return a feature's validity as in `plain`."""
        if len(self._shown) == 1:
            value = self._shown[0]
            present = value and value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
            return None if present else b"\x00"
        full, bits = self._bits
        return None if full[index] else bits[index].tobytes()

    def array(self, index: int) -> pa.Array:
        """Return a feature as an Arrow array of its declared type."""
        import pyarrow as pa

        dtype = self._reader.schema.dtypes[index]
        plain = self.plain(index)
        if plain is not None:
            return plain_to_arrow(dtype, len(self._shown), *plain)
        return pa.array(self._tails[index], type=plain_arrow(dtype)).cast(dtype.arrow)

    def pylist(self, index: int) -> list[Any]:
        """Return a feature as Python values, None where null."""
        dtype = self._reader.schema.dtypes[index]
        plain = self.plain(index)
        if plain is not None:
            return plain_to_list(dtype, len(self._shown), *plain)
        if dtype.container:
            values: list[Any] = self.array(index).to_pylist()
            return values
        return list(self._tails[index])

    @cached_property
    def _matrix(self) -> npt.NDArray[np.uint8]:
        """The bits and fixed-width features, one row of bytes an entity row."""
        import numpy as np

        size = self._reader.size
        empty = bytes(size - HEADER_BYTES)
        parts = [empty if v is None else v[HEADER_BYTES:size] for v in self._shown]
        return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), len(empty))

    @cached_property
    def _bits(self) -> tuple[list[bool], npt.NDArray[np.uint8]]:
        """(whether no row is null, the validity) of each feature."""
        import numpy as np

        count = self._reader.schema.bitmap_bytes
        bits = np.unpackbits(self._matrix[:, :count], axis=1, bitorder="little")
        by_feature = np.ascontiguousarray(bits.T)
        full: list[bool] = by_feature.all(axis=1).tolist()
        return full, np.packbits(by_feature, axis=1, bitorder="little")

    @cached_property
    def _tails(self) -> dict[int, list[Any]]:
        """The features of varying width; dates and instants in lists are still integers."""
        schema = self._reader.schema
        items: dict[int, list[Any]] = {index: [] for index in schema.varying}
        for value in self._shown:
            offset = self._reader.size
            for index, column in items.items():
                if value is None or not value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1:
                    column.append(None)
                    continue
                try:
                    item, offset = read_varying(schema.dtypes[index], value, offset)
                except (struct.error, UnicodeDecodeError) as error:
                    raise self._reader.damaged(value) from error
                column.append(item)
            if value is not None and offset != len(value):
                raise self._reader.damaged(value)
        return items


def plain_to_arrow(dtype: DType, rows: int, data: bytes, validity: bytes | None) -> pa.Array:
    """Return plain bytes of a fixed-width type as an Arrow array, without touching the values."""
    import numpy as np
    import pyarrow as pa

    mask = None if validity is None else pa.py_buffer(validity)
    if dtype.container == "vector":
        child = plain_to_arrow(dtype.item, rows * dtype.length, data, None)
        return pa.Array.from_buffers(dtype.arrow, rows, [mask], children=[child])
    if dtype.scalar == "bool":
        data = np.packbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").tobytes()
    return pa.Array.from_buffers(dtype.arrow, rows, [mask, pa.py_buffer(data)])


def plain_to_list(dtype: DType, rows: int, data: bytes, validity: bytes | None) -> list[Any]:
    """Return plain bytes of a fixed-width type as Python values."""
    count = rows * (dtype.length or 1)
    values: list[Any] = list(struct.unpack(f"<{count}{_CODES[dtype.scalar]}", data))
    present = [True] * rows if validity is None else unpack_bits(validity, rows)
    if dtype.container == "vector":
        size = dtype.length
        values = [values[i * size : (i + 1) * size] for i in range(rows)]
    elif dtype.scalar in {"date", "timestamp"}:
        show: Callable[[int], Any] = to_datetime if dtype.scalar == "timestamp" else _to_date
        return [show(v) if p else None for v, p in zip(values, present, strict=True)]
    if validity is None:
        return values
    return [v if p else None for v, p in zip(values, present, strict=True)]


def unpack_bits(validity: bytes, rows: int) -> list[bool]:
    """Return the bits of a validity, least significant first."""
    return [bool(validity[i >> 3] >> (i & 7) & 1) for i in range(rows)]


def _to_date(days: int) -> date:
    return date.fromordinal(days + _EPOCH_ORDINAL)
