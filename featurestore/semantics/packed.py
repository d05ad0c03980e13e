"""The heads of packed rows: which are of our schema, and which are visible when (laws T3, O3, O4).

`rows.unpack` says what packed rows mean; these rooms read the same bytes without decoding more than
is asked for. First the heads: whether each row was written under our schema, and its instant.
Then, once the instant of the answer is known, a status a row; the features are `packed_rows`'
matter. One row, the most frequent request, is read without NumPy; nothing else differs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from featurestore.errors import DataError
from featurestore.semantics.packed_rows import OneRow, PackedRows
from featurestore.semantics.plain import CODES, SHOWN
from featurestore.semantics.rows import FINGERPRINT_BYTES, HEADER_BYTES, RowSchema, event_of
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
# What a view says of its only row where there is one, where there is none, and where it is too old.
_ONE_PRESENT, _ONE_NOT_FOUND, _ONE_TOO_OLD = (
    bytes((status,)) for status in (PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE)
)
_NO_EVENT = bytes(8)


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
        # The same features as bytes, and what all of them are wide; in a view of these alone.
        widths = {width for _, _, width in schema.fixed}
        self.cells = struct.Struct("".join(f"{width}s" for _, _, width in schema.fixed)).unpack_from
        self.cell_width = min(widths) if len(widths) == 1 else None
        self.every = list(range(len(schema.names)))
        # The presence bits of a row without nulls.
        self.whole_bits = self.all_bits.to_bytes(schema.bitmap_bytes, "little")
        self.lead = int.from_bytes(schema.fingerprint, "little")
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

    __slots__ = ("_reader", "_value", "newest")

    def __init__(self, reader: PackedReader, value: bytes | None) -> None:
        self._reader = reader
        self._value = value
        self.newest: int | None = None
        if value is not None:
            if len(value) < reader.size or value[:FINGERPRINT_BYTES] != reader.schema.fingerprint:
                reader.check(value)
            self.newest = event_of(value)

    def first_after(self, as_of: int) -> tuple[int, int] | None:
        """Return (row, event timestamp) of the first row newer than `as_of`, or None."""
        return (0, self.newest) if self.newest is not None and self.newest > as_of else None

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the row as it is seen at `as_of` (law T3)."""
        event = self.newest
        if event is None:
            return OneRow(self._reader, (None,), _ONE_NOT_FOUND, _NO_EVENT)
        stamp = event.to_bytes(8, "little", signed=True)
        if is_visible(event, as_of, ttl):
            return OneRow(self._reader, (self._value,), _ONE_PRESENT, stamp)
        return OneRow(self._reader, (None,), _ONE_TOO_OLD, stamp)


class ManyHeads:
    """The heads of any number of rows."""

    def __init__(self, reader: PackedReader, values: Sequence[bytes | None]) -> None:
        import numpy as np

        self._reader = reader
        self._values = values
        stored = [v for v in values if v is not None]
        count, size = len(stored), reader.size
        self._found = None if count == len(values) else [v is not None for v in values]
        lengths = set(map(len, stored))
        if stored and min(lengths) < size:
            self._refuse(stored)
        # The heads; and the features too, where all rows may be shown as they are.
        whole = self._found is None and lengths == {size}
        size = size if whole else HEADER_BYTES
        joined = b"".join(stored if whole else [v[:size] for v in stored])
        leads = np.ndarray(count, "<u4", joined, 0, (size,))
        if (leads != reader.lead).any():
            self._refuse(stored)
        self._events = _events(joined, count, size)
        self.newest: int | None = int(self._events.max()) if stored else None
        self._body: npt.NDArray[np.uint8] | None = None
        if whole:
            shape = (count, size - HEADER_BYTES)
            self._body = np.ndarray(shape, np.uint8, joined, HEADER_BYTES, (size, 1))

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

    def _are_visible(self, as_of: int, ttl: int | None) -> bool:
        """Whether the newest row and the oldest one are visible, and so all of them."""
        if self.newest is None:
            return True
        return self.newest <= as_of and is_visible(int(self._events.min()), as_of, ttl)

    def at(self, as_of: int, ttl: int | None) -> PackedRows:
        """Return the rows as they are seen at `as_of` (law T3, here for all rows at once)."""
        import numpy as np

        if self._found is None and self._are_visible(as_of, ttl):
            statuses = _ONE_PRESENT * len(self._values)
            stamps = self._events.tobytes()
            return PackedRows(self._reader, self._values, statuses, stamps, self._body)
        visible = self._events <= as_of
        if ttl is not None:
            visible &= as_of - self._events <= ttl
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


def _events(joined: bytes, count: int, size: int) -> Int64s:
    """Return the instants of packed rows, or of as many of their first bytes, in a row."""
    import numpy as np

    if not count:
        return np.empty(0, dtype=np.int64)
    order = np.ndarray(count, ">u8", joined, FINGERPRINT_BYTES, (size,)).astype(np.uint64)
    return (order ^ np.uint64(_SIGN)).view(np.int64)
