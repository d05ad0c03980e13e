"""Pages of many states as one column of events, so that reading costs per request, not per state.

A source is one page: the recent versions of a state, or a page at a window's edge. Events of a
source stand together, sorted by instant, and those of a window are a range of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.semantics.states.events import EventColumns, Tails, unpack_inputs
from featurestore.semantics.states.layout import damaged
from featurestore.semantics.states.schema import StateSchema, Wanted
from featurestore.semantics.states.versions import FIXED, HEAD, SEPARATOR

Int64s = npt.NDArray[np.int64]
_FIRST, _LAST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class _Bodies:
    """Pages laid one after the other.

    Attributes:
        rows: uint8[n, bytes].
        counts: How many versions each page has.
        ids: The part of ids of each page.
        tails: The tails of all pages.
    """

    rows: npt.NDArray[np.uint8]
    counts: Int64s
    ids: list[bytes]
    tails: bytes

    @property
    def instants(self) -> Any:
        """The place of each version, int64[n]."""
        return np.ascontiguousarray(self.rows[:, :8]).view("<i8")[:, 0]


class Pool:
    """The events of pages that count and may lie in some window.

    Args:
        schema: The view's.
        pages: The pages, as bytes.
        bounds: The edges of all windows.

    Raises:
        DataError: A page is damaged.
    """

    def __init__(self, schema: StateSchema, pages: Sequence[bytes], bounds: Sequence[int]) -> None:
        self._schema = schema
        self._bodies = _read(schema, pages)
        instants = self._bodies.instants
        keep = self._bodies.rows[:, FIXED.size - 5] == 0
        if bounds:
            keep &= (instants >= min(bounds)) & (instants < max(bounds))
        chosen = np.flatnonzero(keep)
        sources = np.repeat(np.arange(len(pages)), self._bodies.counts)[chosen]
        order = np.lexsort((instants[chosen], sources))
        self._places = chosen[order]
        self._sources = sources[order]
        self.instants = instants[self._places]
        sizes = np.bincount(sources, minlength=len(pages)) if len(pages) else np.zeros(0, int)
        self._offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._places)

    def positions(self, bound: int) -> Int64s:
        """Return for each source the place of its first event at a bound or later."""
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.instants < bound)])
        first, last = self._offsets[:-1], self._offsets[1:]
        positions: Int64s = first + before[last] - before[first]
        return positions

    def columns(self, wanted: Wanted, *, ranked: bool) -> EventColumns:
        """Return the events as columns, with what is wanted of them.

        Args:
            wanted: What is read.
            ranked: Whether only events of one source are merged with each other: their places then
                do for ids, which are not returned.
        """
        if wanted.ids and ranked:
            self._order_by_id()
        fixed = self._bodies.rows[self._places, FIXED.size :]
        varies = not wanted.inputs.isdisjoint(self._schema.inputs.varying)
        tails = Tails(self._bodies.tails, self._tail_starts) if varies else None
        inputs = unpack_inputs(self._schema, fixed, tails, wanted.inputs)
        ids = self._ids() if wanted.ids and not ranked else None
        return EventColumns(self.instants, ids, inputs)

    def _ids(self) -> list[bytes]:
        """Return the id of each event."""
        names = self._names
        return [names[place] for place in self._places.tolist()]

    def _order_by_id(self) -> None:
        """Put events of one source and instant in the order of their ids (law W4)."""
        same = (self.instants[1:] == self.instants[:-1]) & (self._sources[1:] == self._sources[:-1])
        if not same.any():
            return
        names, places = self._names, self._places
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            run = slice(first, last + 1)
            places[run] = sorted(places[run].tolist(), key=names.__getitem__)

    @cached_property
    def _names(self) -> list[bytes]:
        """The id of each version of all pages."""
        names = [name for part in self._bodies.ids for name in part.split(SEPARATOR)[1:-1]]
        if len(names) != len(self._bodies.rows):
            raise damaged(self._schema.view, f"{len(names)} ids of {len(self._bodies.rows)} events")
        return names

    @property
    def _tail_starts(self) -> Int64s:
        sizes = np.ascontiguousarray(self._bodies.rows[:, FIXED.size - 4 : FIXED.size])
        lengths = sizes.view("<u4")[:, 0].astype(np.int64)
        ends = np.cumsum(lengths)
        return (ends - lengths)[self._places]


def _read(schema: StateSchema, pages: Sequence[bytes]) -> _Bodies:
    size = FIXED.size + schema.inputs.fixed_bytes
    head = HEAD.size
    counts: list[int] = []
    rows: list[bytes] = []
    ids: list[bytes] = []
    tails: list[bytes] = []
    for page in pages:
        if len(page) < head:
            raise damaged(schema.view, f"a page of {len(page)} bytes")
        _, count, named = HEAD.unpack_from(page)
        stop = head + count * size
        counts.append(count)
        rows.append(page[head:stop])
        ids.append(page[stop : stop + named])
        tails.append(page[stop + named :])
    data = b"".join(rows)
    if len(data) != sum(counts) * size:
        raise damaged(schema.view, f"{len(data)} bytes for {sum(counts)} events")
    matrix = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    return _Bodies(matrix, np.array(counts, dtype=np.int64), ids, b"".join(tails))
