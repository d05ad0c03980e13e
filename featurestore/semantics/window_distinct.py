"""How many different values long ranges hold, without a set for each range.

A value counts in a range where it stands there for the first time: where its previous place, over
all events, lies in front of the range. So the question is how many places before the range's end
have a previous place before its start. It is answered for all ranges at once, bit by bit of the
previous places (a wavelet matrix, of which one level is kept at a time): time grows with events and
ranges, not with what ranges hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]


def distinct_counts(values: pa.Array, starts: Int64s, ends: Int64s) -> Int64s:
    """Return how many different values each range holds, int64[m].

    Nulls and NaN do not count, 0.0 and -0.0 are the same (law W6).

    Args:
        values: n scalars, or lists or vectors of them, whose items count.
        starts: int64[m].
        ends: int64[m], not before their starts.
    """
    items, before = _items(values)
    kept = np.concatenate([[0], np.cumsum(items.is_valid().to_numpy(zero_copy_only=False))])
    places = kept[before]
    previous = _previous(items.drop_null())
    counts: Int64s = _smaller(previous + 1, places[ends], places[starts] + 1) - places[starts]
    return counts


def _items(values: pa.Array) -> tuple[pa.Array, Int64s]:
    """Return the single values, null where they do not count, and how many come before each row."""
    before = np.arange(len(values) + 1)
    if pa.types.is_nested(values.type):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        before = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
        values = values.flatten()
    if pa.types.is_floating(values.type):
        values = pc.add(values, pa.scalar(0, values.type))  # -0.0 becomes 0.0
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    return values, before


def _previous(values: pa.Array) -> Int64s:
    """Return the place at which each value stands before, -1 for the first time."""
    codes = values.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    previous = np.full(len(codes), -1)
    again = codes[order[1:]] == codes[order[:-1]]
    previous[order[1:][again]] = order[:-1][again]
    return previous


def _smaller(numbers: Int64s, ends: Int64s, limits: Int64s) -> Int64s:
    """Return for each (end, limit) how many of the first `end` numbers are below the limit.

    Args:
        numbers: int64[n], from 0 to n.
        ends: int64[m], from 0 to n.
        limits: int64[m], from 0 to n + 1.
    """
    found = np.zeros(len(ends), dtype=np.int64)
    starts = np.zeros(len(ends), dtype=np.int64)
    for bit in reversed(range(int(len(numbers) + 1).bit_length())):
        is_one = (numbers >> bit) & 1 == 1
        zeros = np.concatenate([[0], np.cumsum(~is_one)])
        low, high = zeros[starts], zeros[ends]
        takes_ones = (limits >> bit) & 1 == 1
        found += np.where(takes_ones, high - low, 0)
        starts = np.where(takes_ones, zeros[-1] + starts - low, low)
        ends = np.where(takes_ones, zeros[-1] + ends - high, high)
        numbers = np.concatenate([numbers[~is_one], numbers[is_one]])
    return found
