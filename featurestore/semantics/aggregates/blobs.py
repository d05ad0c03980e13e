"""States as bytes: one framing for all of them, written and read for a whole column at once.

    length    of the numbers, in bytes
    numbers   whole numbers, least significant group of seven bits first (LEB128)
    payload   the rest: raw bytes that the numbers tell how to cut

A number has one spelling only, so equal content gives equal bytes. Zero is no bytes at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from featurestore.errors import DataError

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_MOST_GROUPS = 10
_LAST = 0x80


def zigzag(numbers: Int64s) -> Int64s:
    """Return signed numbers so that small ones of either sign are short."""
    return (numbers << 1) ^ (numbers >> 63)


def unzigzag(numbers: Int64s) -> Int64s:
    """Return what `zigzag` was given."""
    unsigned = numbers.view(np.uint64)
    return (unsigned >> np.uint64(1)).view(np.int64) ^ -(numbers & 1)


def pack(numbers: Int64s, offsets: Int64s, payloads: Sequence[bytes] | None) -> list[bytes]:
    """Return one blob a row.

    Args:
        numbers: The numbers of all rows, one after the other, taken as unsigned.
        offsets: int64[rows + 1], where each row's numbers begin; a row without any gives b"".
        payloads: The raw bytes of each row; None where no row has any.
    """
    data, ends = _write(numbers)
    cuts = np.concatenate([[0], ends])[offsets].tolist()
    blobs = []
    for row, (start, stop) in enumerate(pairwise(cuts)):
        if start == stop:
            blobs.append(b"")
            continue
        payload = payloads[row] if payloads is not None else b""
        blobs.append(_length(stop - start) + data[start:stop] + payload)
    return blobs


def unpack(blobs: Sequence[bytes]) -> tuple[Int64s, Int64s, list[bytes]]:
    """Return the numbers, where each row's begin (int64[rows + 1]), and the payloads.

    Raises:
        DataError: A blob is damaged.
    """
    sections: list[bytes] = []
    payloads: list[bytes] = []
    for blob in blobs:
        size, start = _read_length(blob) if blob else (0, 0)
        if start + size > len(blob):
            raise damaged(f"{len(blob)} bytes, cut short")
        sections.append(blob[start : start + size])
        payloads.append(blob[start + size :])
    data = np.frombuffer(b"".join(sections), dtype=np.uint8)
    lasts = np.flatnonzero(data < _LAST)
    edges = np.cumsum([0] + [len(section) for section in sections])
    offsets = np.searchsorted(lasts, edges)
    if len(data) and (not len(lasts) or lasts[-1] != len(data) - 1):
        raise damaged("numbers that do not end")
    return _read(data, lasts), offsets.astype(np.int64), payloads


def damaged(got: str) -> DataError:
    """Return the error of bytes that no state has."""
    return DataError(
        "The stored state of an aggregate is damaged.",
        got=got,
        allowed="the bytes that an aggregate of this definition wrote",
        hint="Materialize the view again.",
    )


def _length(size: int) -> bytes:
    groups = bytearray()
    while size >= _LAST:
        groups.append(size & 0x7F | _LAST)
        size >>= 7
    groups.append(size)
    return bytes(groups)


def _read_length(blob: bytes) -> tuple[int, int]:
    first = blob[0]
    if first < _LAST:
        return first, 1
    value, place = 0, 0
    for place, group in enumerate(blob[:_MOST_GROUPS]):
        value |= (group & 0x7F) << (7 * place)
        if group < _LAST:
            break
    return value, place + 1


def _write(numbers: Int64s) -> tuple[bytes, Int64s]:
    """Return the bytes of numbers, and where each ends."""
    left = numbers.view(np.uint64)
    sizes = np.ones(len(left), dtype=np.int64)
    rest = left >> np.uint64(7)
    while rest.any():
        sizes += rest != 0
        rest >>= np.uint64(7)
    ends = np.cumsum(sizes)
    data = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    places = ends - sizes
    while len(left):
        more = left > np.uint64(0x7F)
        data[places] = (left & np.uint64(0x7F)).astype(np.uint8) | (more.view(np.uint8) << 7)
        left, places = left[more] >> np.uint64(7), places[more] + 1
    return data.tobytes(), ends


def _read(data: Bytes, lasts: Int64s) -> Int64s:
    starts = np.empty_like(lasts)
    starts[:1] = 0
    starts[1:] = lasts[:-1] + 1
    sizes = lasts - starts
    most = int(sizes.max(initial=0))
    if most >= _MOST_GROUPS:
        raise damaged("a number of more than 64 bits")
    values = (data[starts] & np.uint8(0x7F)).astype(np.uint64)
    for place in range(1, most + 1):
        longer = np.flatnonzero(sizes >= place)
        group = (data[starts[longer] + place] & np.uint8(0x7F)).astype(np.uint64)
        values[longer] |= group << np.uint64(7 * place)
    return values.view(np.int64)
