"""How ranges of states are merged, whatever the states are: range by range, or by running states.

Range by range costs as much as the ranges are long. Running states are merged blocks of 16 states,
blocks of 16 blocks, and so on: a range is then some states at either end and a few blocks between
them. Work goes on in pieces, so that memory is bounded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from featurestore.semantics.aggregates.interface import Plan, States

Int64s = npt.NDArray[np.int64]

_BLOCK = 16
# Ranges of fewer states, or of fewer in all, are gone through one by one.
_SHORT = 4 * _BLOCK
_FEW = 4_096
# Entries that are gathered at once: some tens of megabytes.
_CHUNK = 1 << 21


class FoldedStates(States):
    """States that know how to merge groups of themselves."""

    @abstractmethod
    def take(self, indexes: Int64s) -> Self:
        """Return the states at these places, in this order."""

    @abstractmethod
    def fold(self, indexes: Int64s, offsets: Int64s) -> Self:
        """Return merged groups: group i are the states `indexes[offsets[i]:offsets[i + 1]]`."""

    @abstractmethod
    def join(self, parts: Sequence[Self]) -> Self:
        """Return the states of all parts, which were made from these and share their pools."""

    @abstractmethod
    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Return which states have seen nothing that counts."""

    def entries(self) -> Int64s | None:
        """Return int64[n + 1], the entries in front of each state; None for one entry each."""
        return None

    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> Self:
        """Return the merged states of ranges of this column."""
        lengths = np.maximum(ends - starts, 0)
        if plan == "auto":
            total = int(lengths.sum())
            is_long = total > _FEW and total > _SHORT * max(1, len(lengths), len(self) // _BLOCK)
            plan = "prefix" if is_long else "frames"
        if plan == "frames":
            return self.fold_pieces(starts.reshape(-1, 1), lengths.reshape(-1, 1))
        return self._running(starts, lengths)

    def _running(self, starts: Int64s, lengths: Int64s) -> Self:
        level = self
        levels: list[Self] = []
        pieces: list[tuple[Int64s, Int64s]] = []
        ends = starts + lengths
        base = 0
        while True:
            levels.append(level)
            if len(level) <= _BLOCK or int((ends - starts).max(initial=0)) <= 2 * _BLOCK:
                pieces.append((starts + base, ends - starts))
                break
            first, last = -(-starts // _BLOCK), ends // _BLOCK
            spans = last > first
            head = np.where(spans, first * _BLOCK, ends)
            tail = np.where(spans, last * _BLOCK, ends)
            pieces += [(starts + base, head - starts), (tail + base, ends - tail)]
            base += len(level)
            level = level.blocks()
            starts, ends = np.where(spans, first, 0), np.where(spans, last, 0)
        whole = self.join(levels) if len(levels) > 1 else self
        matrix = [np.stack(columns, axis=1) for columns in zip(*pieces, strict=True)]
        return whole.fold_pieces(matrix[0], matrix[1])

    def blocks(self) -> Self:
        """Return the merged states of each block of neighbours."""
        starts = np.arange(0, len(self), _BLOCK, dtype=np.int64)
        lengths = np.minimum(starts + _BLOCK, len(self)) - starts
        return self.fold_pieces(starts.reshape(-1, 1), lengths.reshape(-1, 1))

    def fold_pieces(self, starts: Int64s, lengths: Int64s) -> Self:
        """Return one state a row of pieces, each a run of neighbours."""
        groups = len(starts)
        sizes = lengths.sum(axis=1)
        before = self.entries()
        if before is None:
            entries = sizes
        else:
            ends = np.where(lengths > 0, starts + lengths, 0)
            entries = (before[ends] - before[np.where(lengths > 0, starts, 0)]).sum(axis=1)
        running = np.cumsum(np.maximum(entries, sizes))
        if groups == 0 or running[-1] <= _CHUNK:
            return self._fold_rows(starts, lengths, sizes)
        parts = []
        start = 0
        while start < groups:
            done = running[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(running, done + _CHUNK, side="right")))
            rows = slice(start, stop)
            parts.append(self._fold_rows(starts[rows], lengths[rows], sizes[rows]))
            start = stop
        return parts[0].join(parts)

    def _fold_rows(self, starts: Int64s, lengths: Int64s, sizes: Int64s) -> Self:
        return self.fold(spans(starts.reshape(-1), lengths.reshape(-1)), offsets_of(sizes))


def spans(starts: Int64s, lengths: Int64s) -> Int64s:
    """Return the places of runs of neighbours, run after run.

    >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def offsets_of(sizes: Int64s) -> Int64s:
    """Return where each group begins, and behind them where the last one ends.

    >>> offsets_of(np.array([2, 0, 1])).tolist()
    [0, 2, 2, 3]
    """
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def owners(offsets: Int64s) -> Int64s:
    """Return the group of each item.

    >>> owners(np.array([0, 2, 2, 3])).tolist()
    [0, 0, 2]
    """
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def reduce_groups(ufunc: np.ufunc, items: Any, offsets: Int64s, zero: int) -> Any:
    """Return items reduced group by group along the last axis; an empty group gives `zero`."""
    sizes = np.diff(offsets)
    found = sizes > 0
    if found.all():
        if len(sizes) == items.shape[-1]:
            return items
        return ufunc.reduceat(items, offsets[:-1], axis=-1)
    result = np.full((*items.shape[:-1], len(sizes)), zero, dtype=items.dtype)
    if found.any():
        result[..., found] = ufunc.reduceat(items, offsets[:-1][found], axis=-1)
    return result


def sorting(rows: Int64s, *columns: Int64s) -> Int64s:
    """Return the order that sorts by row, then by each column in turn."""
    if len(columns) == 1 and len(rows):
        column = columns[0]
        low, high = int(column.min()), int(column.max())
        if (int(rows.max()) + 1) * (high - low + 1) < 1 << 62:
            return np.argsort(rows * np.int64(high - low + 1) + (column - low))
    return np.lexsort((*columns[::-1], rows))


def firsts(*columns: Int64s) -> npt.NDArray[np.bool_]:
    """Return which items of sorted columns differ from the one before."""
    flags = np.ones(len(columns[0]), dtype=bool)
    if len(flags):
        flags[1:] = columns[0][1:] != columns[0][:-1]
        for column in columns[1:]:
            flags[1:] |= column[1:] != column[:-1]
    return flags


def counts_of(rows: Int64s, groups: int) -> Int64s:
    """Return how many items each group has."""
    return np.bincount(rows, minlength=groups).astype(np.int64)


class Gathered(NamedTuple):
    """The keyed items of merged groups of states, sorted by group, then by key.

    Attributes:
        places: Where each item stood.
        new: The first item of each distinct (group, key).
        keys: The distinct keys, group after group.
        rows: The group of each.
    """

    places: Int64s
    new: Int64s
    keys: Int64s
    rows: Int64s


def gather(keys: Int64s, held: Int64s, indexes: Int64s, offsets: Int64s) -> Gathered:
    """Return the items of the states at `indexes`, brought together by group.

    Args:
        keys: The key of each item.
        held: Where the items of each state begin, and the end.
        indexes: States, group after group.
        offsets: Where each group begins among them, and the end.
    """
    sizes = held[indexes + 1] - held[indexes]
    rows = np.repeat(owners(offsets), sizes)
    places = spans(held[indexes], sizes)
    order = sorting(rows, keys[places])
    places, rows = places[order], rows[order]
    new = np.flatnonzero(firsts(rows, keys[places]))
    return Gathered(places, new, keys[places[new]], rows[new])


def same_kind(parts: Sequence[States], kind: type[Any]) -> list[Any]:
    """Return the parts, seen as what they are."""
    return [part for part in parts if isinstance(part, kind)]
