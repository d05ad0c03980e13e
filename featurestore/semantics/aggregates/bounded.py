"""Lists of at most k values: the first, last, smallest or largest ones, or distinct ones.

A state keeps k entries and forgets the others, which is exact: an entry among the first k of all is
among the first k of any part that it is in. That goes for distinct values too. The newest of a
value's occurrences is in some part; were there k other values with newer ones in that part, there
would be k in all. A value that a part forgets has k better ones, whatever else comes; an older
occurrence that another part keeps is then behind these k as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import RequestError
from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.interface import Plan
from featurestore.semantics.aggregates.merging import (
    FoldedStates,
    counts_of,
    firsts,
    offsets_of,
    owners,
    sorting,
    spans,
)
from featurestore.semantics.aggregates.values import Pool, Scalars

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """Which entries a state keeps.

    Attributes:
        k: How many.
        is_descending: Whether the newest or largest come first.
        is_ordered: Whether entries are ordered by (instant, id); otherwise by their value.
        is_distinct: Whether a value is kept once, with its first place in the order.
    """

    k: int
    is_descending: bool
    is_ordered: bool
    is_distinct: bool


@dataclass(frozen=True)
class Entries:
    """Entries in columns.

    Attributes:
        keys: int64[columns, m], what they are ordered by, ascending: the value; or the position; or
            the instant, the id's code and the place in a list. Turned round (~) where the rule is
            descending.
        values: int64[m], their values' codes.
        ids: The pool of ids; None where entries go by position.
        pool: The pool of the values.
    """

    keys: Int64s
    values: Int64s
    ids: Pool | None
    pool: Pool | None

    def take(self, places: Int64s | Bools | slice) -> Entries:
        """Return some of them."""
        return Entries(self.keys[:, places], self.values[places], self.ids, self.pool)


class BoundedStates(FoldedStates):
    """States of at most k entries each, in order.

    Args:
        rule: What is kept.
        scalars: The values' codes.
        offsets: int64[n + 1], where each state's entries begin.
        items: The entries.
        is_running: Whether the order goes on from state to state, as where sorted events were
            lifted: the entries of a range then stand side by side.
    """

    def __init__(
        self,
        rule: Rule,
        scalars: Scalars,
        offsets: Int64s,
        items: Entries,
        *,
        is_running: bool = False,
    ) -> None:
        self.rule = rule
        self.scalars = scalars
        self.offsets = offsets
        self.items = items
        self.is_running = is_running

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def is_zero(self) -> Bools:
        """Return which states are empty."""
        return np.equal(self.offsets[1:], self.offsets[:-1])

    def entries(self) -> Int64s:
        """Return the entries in front of each state."""
        return self.offsets

    def take(self, indexes: Int64s) -> BoundedStates:
        """Return the states at these places."""
        sizes = self.offsets[indexes + 1] - self.offsets[indexes]
        places = spans(self.offsets[indexes], sizes)
        return self.made(offsets_of(sizes), self.items.take(places))

    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> BoundedStates:
        """Return the merged states of ranges."""
        if not self.is_running or self.rule.is_distinct or plan == "frames":
            return super().merge(starts, ends, plan)
        last = self.offsets[np.maximum(starts, ends)]
        first = self.offsets[starts]
        sizes = np.minimum(last - first, self.rule.k)
        if not self.rule.is_descending:
            return self.made(offsets_of(sizes), self.items.take(spans(first, sizes)))
        offsets = offsets_of(sizes)
        places = np.repeat(last + offsets[:-1], sizes) - 1 - np.arange(offsets[-1])
        return self.made(offsets, self.items.take(places))

    def fold(self, indexes: Int64s, offsets: Int64s) -> BoundedStates:
        """Return merged groups of states."""
        sizes = self.offsets[indexes + 1] - self.offsets[indexes]
        rows = np.repeat(owners(offsets), sizes)
        items = self.items.take(spans(self.offsets[indexes], sizes))
        return self._kept(rows, items, len(offsets) - 1)

    def join(self, parts: Sequence[BoundedStates]) -> BoundedStates:
        """Return the states of all parts."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        keys = np.concatenate([part.items.keys for part in parts], axis=1)
        values = np.concatenate([part.items.values for part in parts])
        items = Entries(keys, values, self.items.ids, self.items.pool)
        return self.made(offsets_of(sizes), items)

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        items = self.items
        if self.rule.is_ordered and items.ids is None:
            raise RequestError(
                "States of events without ids cannot be kept: their order is not known.",
                hint="Lift the events with their ids.",
            )
        widths, data = self.scalars.dump(items.values, items.pool)
        columns = [] if widths is None else [widths]
        if items.ids is not None:
            keys = ~items.keys if self.rule.is_descending else items.keys
            ids = [items.ids.items[code] for code in keys[1].tolist()]
            lengths = np.array([len(each) for each in ids], dtype=np.int64)
            columns = [blobs.zigzag(keys[0]), lengths, keys[2], *columns]
            data = [each + value for each, value in zip(ids, data, strict=True)]
        else:
            # Entries of one width would need no number; one tells how many they are.
            columns = columns or [np.ones(len(data), dtype=np.int64)]
        edges = self.offsets.tolist()
        payloads = [b"".join(data[start:stop]) for start, stop in pairwise(edges)]
        numbers = np.stack(columns, axis=1).reshape(-1)
        return blobs.pack(numbers, self.offsets * len(columns), payloads)

    def lists(self) -> pa.Array:
        """Return the values of each state as a list."""
        values = self.scalars.array(self.items.values, self.items.pool)
        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), values)

    def heads(self) -> pa.Array:
        """Return the first value of each state, null where there is none."""
        absent = self.is_zero()
        if not absent.any():
            return self.scalars.array(self.items.values[self.offsets[:-1]], self.items.pool)
        codes = np.zeros(len(self), dtype=np.int64)
        codes[~absent] = self.items.values[self.offsets[:-1][~absent]]
        return self.scalars.array(codes, self.items.pool, absent)

    def made(self, offsets: Int64s, items: Entries, *, is_running: bool = False) -> BoundedStates:
        """Return other states of the same kind."""
        return BoundedStates(self.rule, self.scalars, offsets, items, is_running=is_running)

    def _kept(self, rows: Int64s, items: Entries, groups: int) -> BoundedStates:
        """Return the states of entries that belong to rows, in any order."""
        if self.rule.is_distinct and len(rows):
            order = sorting(rows, items.values, *items.keys)
            rows, items = rows[order], items.take(order)
            new = firsts(rows, items.values)
            rows, items = rows[new], items.take(new)
        # Entries without ids are told apart by their position; then their values decide nothing.
        ties = () if len(items.keys) == 1 else (items.values,)
        order = sorting(rows, *items.keys, *ties)
        rows, items = rows[order], items.take(order)
        sizes = counts_of(rows, groups)
        if sizes.max(initial=0) > self.rule.k:
            ranks = np.arange(len(rows)) - np.repeat(offsets_of(sizes)[:-1], sizes)
            items = items.take(ranks < self.rule.k)
            sizes = np.minimum(sizes, self.rule.k)
        return self.made(offsets_of(sizes), items)
