"""Packed rows as one view's part of an answer: who is visible, what they hold (laws T3, O3, O4).

`rows.unpack` says what packed rows mean; this room reads the same bytes without decoding more than
is asked for. First the heads: whether each row was written under our schema, and its instant.
Then, once the instant of the answer is known, a status a row. Features are decoded one at a time,
as plain bytes, as Arrow or as Python values. One row, the most frequent request, is read without
NumPy; nothing else differs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.errors import DataError
from featurestore.semantics import plain as columns
from featurestore.semantics.plain import CODES, SHOWN, Plain
from featurestore.semantics.rows import (
    FINGERPRINT_BYTES,
    HEADER_BYTES,
    RowSchema,
    event_of,
    plain_arrow,
    read_varying,
)
from featurestore.semantics.timeline import is_visible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Int64s = npt.NDArray[np.int64]

# The statuses of law O3 as numbers, the same on the wire. A view's row is never NULL_VALUE as a
# whole: that is told feature by feature.
PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = 1, 2, 3, 4
_SIGN = 1 << 63
_NULL = b"\x00"


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
        self.start = HEADER_BYTES + schema.bitmap_bytes
        self.slots = {
            i: (self.start + at, self.start + at + width) for i, at, width in schema.fixed
        }
        self.all_bits = (1 << len(schema.names)) - 1
        items = [schema.dtypes[i] for i, _, _ in schema.fixed]
        self.struct = struct.Struct(
            "<" + "".join(f"{t.length or 1}{CODES[t.scalar]}" for t in items)
        )
        # Whether a row without nulls is just what `struct` gives.
        self.is_simple = not schema.varying and all(
            not t.container and t.scalar not in SHOWN for t in items
        )

    @cached_property
    def arrow_types(self) -> tuple[pa.DataType, ...]:
        """The features' types in Arrow."""
        return tuple(dtype.arrow for dtype in self.schema.dtypes)

    def heads(self, values: Sequence[bytes | None]) -> OneHead | ManyHeads:
        """Return the heads of one packed row an entity row, None where there is none.

        Raises:
            DataError: A row was written under another schema (law O4), or is cut short.
        """
        return OneHead(self, values[0]) if len(values) == 1 else ManyHeads(self, values)

    def check(self, value: bytes) -> None:
        """Refuse a packed row that is not of this schema.

        Raises:
            DataError: It is not, or it is cut short.
        """
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
        self._reader = reader
        self._value = value
        self.newest: int | None = None
        if value is not None:
            reader.check(value)
            self.newest = event_of(value)

    def first_after(self, as_of: int) -> tuple[int, int] | None:
        """Return (row, event timestamp) of the first row newer than `as_of`, or None."""
        return (0, self.newest) if self.newest is not None and self.newest > as_of else None

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the row as it is seen at `as_of` (law T3)."""
        event = self.newest
        if event is None:
            return _OneRow(self._reader, [None], bytes((NOT_FOUND,)), bytes(8))
        stamp = event.to_bytes(8, "little", signed=True)
        if is_visible(event, as_of, ttl):
            return _OneRow(self._reader, [self._value], bytes((PRESENT,)), stamp)
        return _OneRow(self._reader, [None], bytes((OUTSIDE_MAX_AGE,)), stamp)


class ManyHeads:
    """The heads of any number of rows."""

    def __init__(self, reader: PackedReader, values: Sequence[bytes | None]) -> None:
        import numpy as np

        self._reader = reader
        self._values = values
        stored = [v for v in values if v is not None]
        self._found = None if len(stored) == len(values) else [v is not None for v in values]
        if stored and min(map(len, stored)) < reader.size:
            self._refuse(stored)
        joined = b"".join([v[:HEADER_BYTES] for v in stored])
        matrix = np.frombuffer(joined, dtype=np.uint8).reshape(len(stored), HEADER_BYTES)
        lead = np.frombuffer(reader.schema.fingerprint, dtype=np.uint8)
        if (matrix[:, :FINGERPRINT_BYTES] != lead).any():
            self._refuse(stored)
        order = np.ascontiguousarray(matrix[:, 4:12]).view(">u8")[:, 0].astype(np.uint64)
        self._events: Int64s = (order ^ np.uint64(_SIGN)).view(np.int64)
        self.newest: int | None = int(self._events.max()) if stored else None

    def _refuse(self, stored: Sequence[bytes]) -> None:
        for value in stored:
            self._reader.check(value)

    def first_after(self, as_of: int) -> tuple[int, int] | None:
        """Return (row, event timestamp) of the first row newer than `as_of`, or None."""
        if self.newest is None or self.newest <= as_of:
            return None
        place = int((self._events > as_of).argmax())
        rows = [i for i, value in enumerate(self._values) if value is not None]
        return rows[place], int(self._events[place])

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the rows as they are seen at `as_of` (law T3, here for all rows at once)."""
        import numpy as np

        visible = self._events <= as_of
        if ttl is not None:
            visible &= as_of - self._events <= ttl
        if self._found is None and visible.all():
            statuses = bytes((PRESENT,)) * len(self._values)
            return PackedRows(self._reader, self._values, statuses, self._events.tobytes())
        found = np.ones(len(visible), dtype=bool) if self._found is None else np.array(self._found)
        codes = np.full(len(found), NOT_FOUND, dtype=np.uint8)
        codes[found] = np.where(visible, PRESENT, OUTSIDE_MAX_AGE)
        events = np.zeros(len(found), dtype="<i8")
        events[found] = self._events
        shown = [
            value if code == PRESENT else None
            for value, code in zip(self._values, codes.tolist(), strict=True)
        ]
        return PackedRows(self._reader, shown, codes.tobytes(), events.tobytes())


class PackedRows:
    """One view's rows in an answer: statuses and instants, and its features decoded when asked.

    Args:
        reader: The view's.
        shown: A packed row an entity row, None where none is visible.
        statuses: One byte a row: PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE.
        events: Eight bytes a row, little-endian: microseconds; 0 where nothing was found.
    """

    applied: Mapping[str, bytes] = {}

    def __init__(
        self, reader: PackedReader, shown: Sequence[bytes | None], statuses: bytes, events: bytes
    ) -> None:
        self._reader = reader
        self._shown = shown
        self.statuses = statuses
        self.events = events

    def plain(self, index: int) -> Plain | None:
        """Return a feature as a plain column, None when its values vary in width."""
        slot = self._reader.slots.get(index)
        if slot is None:
            return None
        start, stop = slot
        data = self._matrix[:, start - HEADER_BYTES : stop - HEADER_BYTES].tobytes()
        return data, self.validity(index)

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        """Return several features as plain columns."""
        if self._bits is not None or self._reader.schema.varying:
            return [self.plain(index) for index in indexes]
        matrix = self._matrix
        slots = [self._reader.slots[index] for index in indexes]
        return [
            (matrix[:, start - HEADER_BYTES : stop - HEADER_BYTES].tobytes(), None)
            for start, stop in slots
        ]

    def validity(self, index: int) -> bytes | None:
        """Return the validity of a feature as plain columns have it."""
        bits = self._bits
        return None if bits is None or bits[0][index] else bits[1][index].tobytes()

    def array(self, index: int) -> pa.Array:
        """Return a feature as an Arrow array of its declared type."""
        import pyarrow as pa

        dtype = self._reader.schema.dtypes[index]
        plain = self.plain(index)
        kind = self._reader.arrow_types[index]
        if plain is not None:
            return columns.to_arrow(dtype, len(self._shown), plain, kind)
        return pa.array(self._tails[index], type=plain_arrow(dtype)).cast(kind)

    def pylist(self, index: int) -> list[Any]:
        """Return a feature as Python values, None where null."""
        dtype = self._reader.schema.dtypes[index]
        plain = self.plain(index)
        if plain is not None:
            return columns.to_list(dtype, len(self._shown), plain)
        if dtype.container:
            values: list[Any] = self.array(index).to_pylist(maps_as_pydicts="strict")
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
    def _bits(self) -> tuple[list[bool], npt.NDArray[np.uint8]] | None:
        """(whether no row is null, the validity) of each feature; None when nothing is null."""
        import numpy as np

        count = self._reader.schema.bitmap_bytes
        full = self._reader.all_bits.to_bytes(count, "little")
        if self._matrix[:, :count].tobytes() == full * len(self._shown):
            return None
        bits = np.unpackbits(self._matrix[:, :count], axis=1, bitorder="little")
        by_feature = np.ascontiguousarray(bits.T)
        whole: list[bool] = np.logical_and.reduce(by_feature, axis=1).tolist()
        return whole, np.packbits(by_feature, axis=1, bitorder="little")

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


class _OneRow(PackedRows):
    """The same for a single row, without a matrix."""

    def plain(self, index: int) -> Plain | None:
        slot = self._reader.slots.get(index)
        if slot is None:
            return None
        start, stop = slot
        value = self._shown[0]
        if value is None:
            return bytes(stop - start), _NULL
        present = value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
        return value[start:stop], None if present else _NULL

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        value, reader = self._shown[0], self._reader
        if value is None or reader.schema.varying:
            return super().plains(indexes)
        if int.from_bytes(value[HEADER_BYTES : reader.start], "little") != reader.all_bits:
            return super().plains(indexes)
        slots = reader.slots
        return [(value[slots[i][0] : slots[i][1]], None) for i in indexes]

    def validity(self, index: int) -> bytes | None:
        value = self._shown[0]
        present = value is not None and value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
        return None if present else _NULL

    def pylist(self, index: int) -> list[Any]:
        return [self._values[index]]

    @cached_property
    def _values(self) -> Sequence[Any]:
        """All features as Python values."""
        reader, value = self._reader, self._shown[0]
        if value is None:
            return [None] * len(reader.schema.names)
        bits = int.from_bytes(value[HEADER_BYTES : reader.start], "little")
        if reader.is_simple and bits == reader.all_bits:
            return reader.struct.unpack_from(value, reader.start)
        return [super(_OneRow, self).pylist(i)[0] for i in range(len(reader.schema.names))]
