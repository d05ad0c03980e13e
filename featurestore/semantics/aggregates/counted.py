"""Sets of keys with a number each: histograms, distinct values, and the sketches made of such.

Numbers of one key are added up (how often a value occurred), or the largest counts (the registers
of HyperLogLog), or there are none (a set). A set with a limit keeps its smallest keys, which is
exact: what is among the smallest of all is among the smallest of any part that it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.keys import dump_keys, load_keys
from featurestore.semantics.aggregates.merging import (
    FoldedStates,
    counts_of,
    gather,
    offsets_of,
    spans,
)
from featurestore.semantics.aggregates.values import EMPTY, Pool, Scalars, union

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counting:
    """What sets of keys are made of.

    Attributes:
        scalars: The keys' codes.
        rule: What becomes of the numbers of a key: np.add, np.maximum, or None without numbers.
        limit: How many keys are kept, the smallest ones; None for all.
    """

    scalars: Scalars
    rule: np.ufunc | None
    limit: int | None = None


class CountedStates(FoldedStates):
    """Sets of keys, ascending within each state.

    Args:
        kind: What they are made of.
        offsets: int64[n + 1], where each state's keys begin.
        keys: int64[m], the keys' codes.
        weights: int64[m], the number of each; None without numbers.
        pool: The pool of keys that are texts or bytes.
    """

    def __init__(
        self,
        kind: Counting,
        offsets: Int64s,
        keys: Int64s,
        weights: Int64s | None,
        pool: Pool | None,
    ) -> None:
        self.kind = kind
        self.offsets = offsets
        self.keys = keys
        self.weights = weights
        self.pool = pool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int64s:
        """How many keys each state has."""
        return np.diff(self.offsets)

    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Return which states are empty."""
        return np.equal(self.offsets[1:], self.offsets[:-1])

    def entries(self) -> Int64s:
        """Return the keys in front of each state."""
        return self.offsets

    def take(self, indexes: Int64s) -> CountedStates:
        """Return the states at these places."""
        sizes = self.offsets[indexes + 1] - self.offsets[indexes]
        places = spans(self.offsets[indexes], sizes)
        weights = None if self.weights is None else self.weights[places]
        return self.made(offsets_of(sizes), self.keys[places], weights)

    def fold(self, indexes: Int64s, offsets: Int64s) -> CountedStates:
        """Return merged groups of states."""
        groups = len(offsets) - 1
        places, new, keys, rows = gather(self.keys, self.offsets, indexes, offsets)
        weights = None
        if self.kind.rule is not None and self.weights is not None:
            weights = self.weights[places]
            weights = self.kind.rule.reduceat(weights, new) if len(new) else weights
        sizes = counts_of(rows, groups)
        limit = self.kind.limit
        if limit is not None and sizes.max(initial=0) > limit:
            kept = np.arange(len(rows)) - np.repeat(offsets_of(sizes)[:-1], sizes) < limit
            keys = keys[kept]
            sizes = np.minimum(sizes, limit)
        return self.made(offsets_of(sizes), keys, weights)

    def join(self, parts: Sequence[CountedStates]) -> CountedStates:
        """Return the states of all parts."""
        sizes = np.concatenate([part.sizes for part in parts])
        keys = np.concatenate([part.keys for part in parts])
        weights = None
        if self.kind.rule is not None:
            weights = np.concatenate([p.weights for p in parts if p.weights is not None])
        return self.made(offsets_of(sizes), keys, weights)

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        numbers, data = dump_keys(self.kind.scalars, self.keys, self.offsets, self.pool)
        columns = [numbers] if self.weights is None else [numbers, self.weights]
        table = np.stack(columns, axis=1).reshape(-1)
        return blobs.pack(table, self.offsets * len(columns), data)

    def made(self, offsets: Int64s, keys: Int64s, weights: Int64s | None) -> CountedStates:
        """Return other states of the same kind and pool."""
        return CountedStates(self.kind, offsets, keys, weights, self.pool)


def lifted(
    kind: Counting, keys: Int64s, found: npt.NDArray[np.bool_] | None, pool: Pool | None
) -> CountedStates:
    """Return states of one key each, with the number 1; none where `found` says so."""
    if found is None:
        offsets = np.arange(len(keys) + 1, dtype=np.int64)
    else:
        offsets, keys = offsets_of(found.astype(np.int64)), keys[found]
    weights = None if kind.rule is None else np.ones(len(keys), dtype=np.int64)
    return CountedStates(kind, offsets, keys, weights, pool)


def decode(kind: Counting, data: Sequence[bytes]) -> CountedStates:
    """Return the states of canonical bytes."""
    numbers, offsets, payloads = blobs.unpack(data)
    fields = 1 if kind.rule is None else 2
    if (offsets % fields).any():
        raise blobs.damaged(f"{len(numbers)} numbers")
    table = numbers.reshape(-1, fields).T
    offsets = offsets // fields
    keys, pool, rests = load_keys(kind.scalars, table[0].copy(), offsets, payloads)
    if any(rests):
        raise blobs.damaged("more bytes than keys")
    weights = None if kind.rule is None else table[1].copy()
    return CountedStates(kind, offsets, keys, weights, pool)


def concat(kind: Counting, parts: Sequence[CountedStates]) -> CountedStates:
    """Return the states of all parts, their keys in one pool."""
    if len(parts) < 2:  # noqa: PLR2004
        return parts[0] if parts else decode(kind, [])
    if not kind.scalars.is_pooled:
        return parts[0].join(parts)
    pool, moves = union([part.pool or EMPTY for part in parts])
    moved = [
        CountedStates(
            kind, part.offsets, move[part.keys] if len(move) else part.keys, part.weights, pool
        )
        for part, move in zip(parts, moves, strict=True)
    ]
    return moved[0].join(moved)
