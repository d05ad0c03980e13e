"""Columns of answers as what JSON has, by the view: of plain numbers no Python object is made.

The plain columns of a type (`semantics.plain`) become one array, which orjson writes as it is:
float32 as float64 first, as it would be shortened otherwise. A column with nulls, or with floats
that JSON lacks, becomes a list in which these are replaced. A single row, the most frequent
request, has few values: they are Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dtypes import DType
from featurestore.semantics.plain import SHOWN, Plain, from_arrow
from featurestore.serving.http.values import FLOATS, named, shower, shown_column

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurestore.services.response import Block, FeatureLayout

# From so many rows on, an array is written faster than a list.
_ARRAY_ROWS = 16
# Units of NumPy, and zones, which instants are shown with.
_UNITS = {"date": ("D", "naive"), "timestamp": ("us", "UTC")}


class Holes(dict[bytes, list[int]]):
    """Where the nulls of columns are, by their validity; each is looked at once an answer.

    Args:
        rows: The number of entity rows.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows

    def __missing__(self, validity: bytes) -> list[int]:
        bits = np.frombuffer(validity, dtype=np.uint8)
        valid = np.unpackbits(bits, count=self._rows, bitorder="little")
        found: list[int] = np.flatnonzero(valid == 0).tolist()
        self[validity] = found
        return found


class SourceColumns:
    """Makes columns of one source what JSON has.

    Args:
        features: Its features.

    Attributes:
        names: What they are called.
    """

    def __init__(self, features: Sequence[FeatureLayout]) -> None:
        self.names = [feature.name for feature in features]
        self._indexes = [feature.index for feature in features]
        self._types = [feature.dtype for feature in features]
        self._showers = [shower(dtype) for dtype in self._types]
        self._groups: dict[DType, list[int]] = {}
        self._varying = []
        for place, dtype in enumerate(self._types):
            if dtype.width is None:
                self._varying.append(place)
            else:
                self._groups.setdefault(dtype, []).append(place)

    def read(
        self, block: Block, rows: int, holes: Holes
    ) -> tuple[list[Any], Sequence[bytes | None]]:
        """Return the columns, lists or arrays, and the validity of each.

        Args:
            block: The source's part of an answer.
            rows: The number of entity rows.
            holes: Of the answer.
        """
        whole = block.wholes(self._indexes) if rows else None
        if whole is not None:
            none: Sequence[None] = [None] * len(whole)
            return self._columns(block, rows, list(zip(whole, none, strict=True)), holes), none
        validities = [block.validity(index) for index in self._indexes]
        if rows <= 1:
            lists = map(block.pylist, self._indexes)
            pairs = zip(lists, self._showers, strict=True)
            return [v if show is None else show(v) for v, show in pairs], validities
        return self._columns(block, rows, self._plains(block), holes), validities

    def _plains(self, block: Block) -> list[Plain | None]:
        """Return the plain columns, made of Arrow's where they are not at hand."""
        found = list(block.plains(self._indexes))
        for places in self._groups.values():
            for place in places:
                if found[place] is None:
                    dtype, array = self._types[place], block.array(self._indexes[place])
                    found[place] = from_arrow(dtype, array)
        return found

    def _columns(
        self, block: Block, rows: int, plains: Sequence[Plain | None], holes: Holes
    ) -> list[Any]:
        """Return the columns, those of one type at once."""
        columns: list[Any] = [None] * len(plains)
        for dtype, places in self._groups.items():
            held = [plain for place in places if (plain := plains[place]) is not None]
            read = _read(dtype, rows, [data for data, _ in held])
            for place, column, (_, validity) in zip(places, read, held, strict=True):
                if validity is None:
                    columns[place] = column
                else:
                    columns[place] = _without(column, holes[validity])
        for place in self._varying:
            values = block.pylist(self._indexes[place])
            columns[place] = shown_column(values, self._types[place])
        return columns


def show_instants(instants: npt.NDArray[np.int64]) -> list[str]:
    """Return microseconds since the epoch as RFC 3339 with six decimals.

    Raises:
        OverflowError: Python's `datetime` has no such instant.
    """
    texts: list[str] = _shown(instants, "timestamp")
    return texts


def _read(dtype: DType, rows: int, held: Sequence[bytes]) -> Sequence[Any]:
    """Return plain columns of one type, as if nothing in them was null."""
    shape = (len(held), rows, dtype.length) if dtype.container else (len(held), rows)
    numbers = np.frombuffer(b"".join(held), dtype=dtype.numpy).reshape(shape)
    if dtype.scalar in _UNITS:
        columns: list[Any] = _shown(numbers.astype(np.int64), dtype.scalar)
        return columns
    if dtype.scalar in FLOATS:
        return _floats(numbers, rows)
    kind = np.bool_ if dtype.scalar == "bool" else numbers.dtype.newbyteorder("=")
    return _listed(numbers.astype(kind, copy=False), rows)


def _floats(numbers: npt.NDArray[Any], rows: int) -> Sequence[Any]:
    # A NaN that would signal is one like any other.
    with np.errstate(invalid="ignore"):
        wide = numbers.astype(np.float64, copy=False)
    finite = np.isfinite(wide)
    columns = _listed(wide, rows)
    if finite.all():
        return columns
    odd = ~finite.reshape(len(wide), -1).all(axis=1)
    found = list(columns)
    for place in np.flatnonzero(odd).tolist():
        found[place] = named(wide[place].tolist())
    return found


def _listed(columns: npt.NDArray[Any], rows: int) -> Sequence[Any]:
    """Return each column as what is written faster: an array, or a list."""
    if rows < _ARRAY_ROWS:
        lists: list[Any] = columns.tolist()
        return lists
    return list(columns)


def _shown(numbers: npt.NDArray[np.int64], scalar: str) -> Any:
    """Return dates or instants as texts, in lists like the array."""
    for extreme in (numbers.min(), numbers.max()) if numbers.size else ():
        # Raises, as a list of them would, where Python has no such date.
        SHOWN[scalar](int(extreme))
    unit, zone = _UNITS[scalar]
    texts = np.datetime_as_string(numbers.view(f"M8[{unit}]"), unit=unit, timezone=zone)  # type: ignore[call-overload]
    return texts.tolist()


def _without(column: Any, holes: Sequence[int]) -> list[Any]:
    """Return a column with nulls where it has holes."""
    values: list[Any] = column if isinstance(column, list) else column.tolist()
    for hole in holes:
        values[hole] = None
    return values
