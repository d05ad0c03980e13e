"""Which of the sorted events a window holds, for many queries at once: integers in, indexes out.

Events stand sorted by (key, instant), so all events of a key before an instant end at one place.
All places are found by one bisection over a single number, made of key and instant; where that
would not fit 64 bits, instants are replaced by their rank first.

What had been learnt by a query is a question of each version. Most versions are punctual: learnt,
or even replaced, soon after they happened. But for those that happened shortly before a query, it
is certain which of them count, so that ranges stay ranges; the rest is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Ranges = tuple[Int64s, Int64s]
    Loose = tuple[Int64s, Ranges]

NEVER = 2**63 - 1
"""The `until` of a version that nothing has replaced."""

# Codes below this leave room for the sums that are made of them.
_MOST = 1 << 61
# The parts of all versions that may count as punctual; the cheapest is taken.
_PUNCTUAL = (1.0, 0.999, 0.99, 0.9, 0.5, 0.0)
_SAMPLE = 1_024


class Locator:
    """Finds the place of an instant among the events of a key.

    Args:
        keys: int64[n], rising.
        instants: int64[n], rising within a key.
    """

    def __init__(self, keys: Int64s, instants: Int64s) -> None:
        self._rows = len(keys)
        if not self._rows:
            return
        self._first_key, last_key = int(keys[0]), int(keys[-1])
        self._keys = last_key - self._first_key + 1
        self._base = int(instants.min())
        self._stride = int(instants.max()) - self._base + 2
        self._ranks: Int64s | None = None
        offsets = instants - self._base
        if (self._keys + 2) * self._stride > _MOST:
            self._ranks = np.unique(instants)
            self._stride = len(self._ranks) + 1
            offsets = np.searchsorted(self._ranks, instants)
        self._codes = (keys - self._first_key) * self._stride + offsets

    def first_at(self, keys: Int64s, bounds: Int64s) -> Int64s:
        """Return for each (key, bound) the index of the key's first event at the bound or later.

        That is where the next key begins where there is none. Keys need not have events.

        Args:
            keys: int64[m], in any order.
            bounds: int64[m], instants.
        """
        if not self._rows:
            return np.zeros(len(keys), dtype=np.int64)
        if self._ranks is None:
            offsets = np.clip(bounds, self._base, self._base + self._stride - 1) - self._base
        else:
            offsets = np.searchsorted(self._ranks, bounds)
        numbers = np.clip(keys - self._first_key, -1, self._keys)
        found: Int64s = np.searchsorted(self._codes, numbers * self._stride + offsets)
        return found.astype(np.int64, copy=False)


@dataclass(frozen=True)
class Split:
    """Ranges of versions, taken apart into such that count for sure, and others.

    Attributes:
        lasting: The places of punctual versions that nothing replaces.
        all_lasting: Whether that is all of them.
        body: Ranges of `lasting`, all of which count.
        loose: (places, ranges of these): versions that may count or not.
    """

    lasting: Int64s
    all_lasting: bool
    body: Ranges
    loose: tuple[Loose, ...]


@dataclass(frozen=True)
class Known:
    """When each version is known; n of them.

    Attributes:
        instants: int64[n], when it happened.
        learnt: int64[n]: it is known after this instant.
        until: int64[n]: up to and including this one, where another version replaces it.
    """

    instants: Int64s
    learnt: Int64s
    until: Int64s

    def at(self, places: Int64s, asked: Int64s) -> Bools:
        """Return whether the version at each place is known at an instant."""
        known: Bools = (self.learnt[places] < asked) & (asked <= self.until[places])
        return known

    def split(self, locator: Locator, keys: Int64s, asked: Int64s, ranges: Ranges) -> Split:
        """Return ranges taken apart.

        Args:
            locator: Finds places among the versions.
            keys: int64[m], the key of each range.
            asked: int64[m], the instant that each is asked for.
            ranges: Of versions.
        """
        starts, ends = ranges
        is_lasting = self.until == NEVER
        # What it takes until it is certain for good whether a version counts.
        delays = np.maximum(np.where(is_lasting, self.learnt, self.until) - self.instants, 0)
        patience = _patience(delays, locator, keys, asked, ranges)
        is_punctual = delays <= patience
        sure = np.clip(locator.first_at(keys, asked - patience), starts, ends)
        lasting, before_lasting = _ranked(is_lasting & is_punctual)
        punctual, before = _ranked(is_punctual)
        loose = [(punctual, (before[sure], before[ends]))]
        if len(punctual) < len(delays):
            others, before_others = _ranked(~is_punctual)
            loose.append((others, (before_others[starts], before_others[ends])))
        body = (before_lasting[starts], before_lasting[sure])
        return Split(lasting, len(lasting) == len(delays), body, tuple(loose))


def _ranked(chosen: Bools) -> tuple[Int64s, Int64s]:
    """Return the places of what is chosen, and how many come before each place."""
    return np.flatnonzero(chosen), np.concatenate([[0], np.cumsum(chosen)])


def _patience(delays: Int64s, locator: Locator, keys: Int64s, asked: Int64s, ranges: Ranges) -> int:
    """Return the longest delay of a punctual version, so that few are looked at one by one."""
    if not len(delays) or not len(asked):
        return 0
    step = max(1, len(asked) // _SAMPLE)
    keys, asked = keys[::step], asked[::step]
    starts, ends = (side[::step] for side in ranges)
    costs = []
    for delay in np.quantile(delays, _PUNCTUAL, method="lower").astype(np.int64):
        sure = np.clip(locator.first_at(keys, asked - delay), starts, ends)
        others = float((delays > delay).mean())
        costs.append((float((ends - sure).sum() + others * (ends - starts).sum()), int(delay)))
    return min(costs)[1]


def expand(starts: Int64s, ends: Int64s, most: int) -> Iterator[tuple[slice, Int64s, Int64s]]:
    """Write ranges out, some at a time: (which ranges, each pair's range, each pair's index).

    Args:
        starts: int64[m].
        ends: int64[m], not before their starts.
        most: How many pairs to give at a time; a single range may have more.
    """
    counts = ends - starts
    totals = np.cumsum(counts)
    first = 0
    while first < len(starts):
        before = int(totals[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(totals, before + most, side="right")))
        held = counts[first:last]
        owner = np.repeat(np.arange(first, last), held)
        shift = starts[first:last] - (totals[first:last] - held - before)
        yield slice(first, last), owner, np.arange(len(owner)) + np.repeat(shift, held)
        first = last
