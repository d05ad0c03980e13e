"""Packed rows as one view's part of an answer: what they hold, decoded when it is asked for.

Features are decoded one at a time, or all at once where none of them is null, as plain bytes, as
Arrow or as Python values. Who is visible was decided before (`packed`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import to_pylist
from featurestore.semantics import plain as columns
from featurestore.semantics.plain import Plain
from featurestore.semantics.rows import HEADER_BYTES, plain_arrow, read_varying

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.semantics.packed import PackedReader

_NULL = b"\x00"


class PackedRows:
    """One view's rows in an answer: statuses and instants, and its features decoded when asked.

    Args:
        reader: The view's.
        shown: A packed row an entity row, None where none is visible.
        statuses: One byte a row: PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE.
        events: Eight bytes a row, little-endian: microseconds; 0 where nothing was found.
        body: The bits and fixed-width features, one row of bytes an entity row, if at hand.
    """

    applied: Mapping[str, bytes] = {}

    def __init__(
        self,
        reader: PackedReader,
        shown: Sequence[bytes | None],
        statuses: bytes,
        events: bytes,
        body: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self._reader = reader
        self._shown = shown
        self.statuses = statuses
        self.events = events
        if body is not None:
            self._matrix = body

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
        cells = self._cells(indexes)
        if cells is None:
            return [self.plain(index) for index in indexes]
        return list(zip(cells, map(self.validity, indexes), strict=True))

    def wholes(self, indexes: Sequence[int]) -> Sequence[bytes] | None:
        """Return the data of several plain columns; None where a view's rows are not so simple."""
        if self._reader.schema.varying or self._bits is not None:
            return None
        return self._cells(indexes)

    def _cells(self, indexes: Sequence[int]) -> Sequence[bytes] | None:
        """Return the data of several plain columns, None where a view has others too."""
        reader = self._reader
        if reader.schema.varying:
            return None
        matrix, width = self._matrix, reader.cell_width
        if width is None:
            slots = [reader.slots[index] for index in indexes]
            return [matrix[:, a - HEADER_BYTES : b - HEADER_BYTES].tobytes() for a, b in slots]
        import numpy as np

        # All at once: a feature a row.
        cells = np.ascontiguousarray(matrix[:, reader.start - HEADER_BYTES :]).view(f"V{width}")
        data = cells.T.tobytes()
        size = len(matrix) * width
        return [data[index * size : (index + 1) * size] for index in indexes]

    def validity(self, index: int) -> bytes | None:
        """Return the validity of a feature as plain columns have it."""
        bits = self._bits
        return None if bits is None or bits[0][index] else bits[1][index].tobytes()

    def nulls(self, indexes: Sequence[int]) -> int:
        """Return how many values are null, those of rows that are not shown included."""
        import numpy as np

        bits = self._bits
        if bits is None:
            return 0
        there = np.bitwise_count(bits[1][list(indexes)]).sum(dtype=np.int64)
        return len(self._shown) * len(indexes) - int(there)

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
        if dtype.container == "map" or (dtype.container and dtype.scalar in columns.SHOWN):
            return to_pylist(self.array(index))
        tails = self._tails[index]
        if dtype.container:
            # What is handed out may be changed by whoever gets it.
            return [None if value is None else value.copy() for value in tails]
        return tails.copy()

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


class OneRow(PackedRows):
    """The same for a single row, without a matrix."""

    def plain(self, index: int) -> Plain | None:
        """See `PackedRows.plain`."""
        slot = self._reader.slots.get(index)
        if slot is None:
            return None
        start, stop = slot
        value = self._shown[0]
        if value is None:
            return bytes(stop - start), _NULL
        present = value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
        return value[start:stop], None if present else _NULL

    def wholes(self, indexes: Sequence[int]) -> Sequence[bytes] | None:
        """See `PackedRows.wholes`."""
        value, reader = self._shown[0], self._reader
        if value is None or value[HEADER_BYTES : reader.start] != reader.whole_bits:
            return None
        return self._cells(indexes)

    def _cells(self, indexes: Sequence[int]) -> Sequence[bytes] | None:
        """See `PackedRows._cells`."""
        value, reader = self._shown[0], self._reader
        if value is None or reader.schema.varying:
            return None
        cells: Sequence[bytes] = reader.cells(value, reader.start)
        return cells if indexes == reader.every else [cells[i] for i in indexes]

    def nulls(self, indexes: Sequence[int]) -> int:
        """See `PackedRows.nulls`."""
        value, reader = self._shown[0], self._reader
        if value is None:
            return len(indexes)
        bits = int.from_bytes(value[HEADER_BYTES : reader.start], "little")
        if bits == reader.all_bits:
            return 0
        return sum(1 - (bits >> index & 1) for index in indexes)

    def validity(self, index: int) -> bytes | None:
        """See `PackedRows.validity`."""
        value = self._shown[0]
        present = value is not None and value[HEADER_BYTES + (index >> 3)] >> (index & 7) & 1
        return None if present else _NULL

    def pylist(self, index: int) -> list[Any]:
        """See `PackedRows.pylist`."""
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
        return [super(OneRow, self).pylist(i)[0] for i in range(len(reader.schema.names))]
