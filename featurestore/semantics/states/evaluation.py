"""The events and nodes that one request looks at, as one column; each window is ranges of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from featurestore.semantics.aggregates import States, algebra
from featurestore.semantics.states.cover import Cut, Edges, Nodes, Parts
from featurestore.semantics.states.events import EventColumns
from featurestore.semantics.states.layout import NEVER, Header, Node
from featurestore.semantics.states.pool import Pool
from featurestore.semantics.states.schema import Family, StateSchema, Wanted

Int64s = npt.NDArray[np.int64]
_FIRST = -(2**63)


@dataclass(frozen=True)
class StateRow:
    """One entity's state as it was read.

    Attributes:
        header: None where the entity was never seen.
        recent: Its recent versions, a page.
        nodes: Other fields, where it has a tree.
    """

    header: Header | None
    recent: bytes
    nodes: Mapping[bytes, bytes | None] | None

    @property
    def horizon(self) -> int:
        """Events before it may have been dropped."""
        return NEVER if self.header is None else self.header.horizon


class Evaluation:
    """States, and what each window takes of them.

    Args:
        schema: The view's.
        edges: The edges of each window.
        rows: The states.
        wanted: What is read of events.

    Raises:
        DataError: A state is damaged.
    """

    def __init__(
        self,
        schema: StateSchema,
        edges: Sequence[Edges],
        rows: Sequence[StateRow],
        wanted: Wanted,
    ) -> None:
        self._edges = edges
        self._rows = len(rows)
        self._wanted = wanted
        self._pages = [row.recent for row in rows]
        # Of windows of states with trees, (window, state, range): ranges of tiles, pages they cut.
        self._ranges: list[tuple[int, int, int, int]] = []
        self._cuts: list[tuple[int, int, int]] = []
        self._tiles: list[tuple[Nodes, Node]] = []
        self._tile_count = 0
        for place, row in enumerate(rows):
            if row.nodes is not None:
                self._cover(place, Nodes(schema, row.nodes))
        lows = [_FIRST if low is None else low for low, _ in edges]
        highs = [high for _, high in edges]
        self._pool = Pool(schema, self._pages, [*lows, *highs])
        at = {bound: self._pool.positions(bound) for bound in {*lows, *highs}}
        self._starts = [at[low] for low in lows]
        self._ends = [np.maximum(at[low], at[high]) for low, high in zip(lows, highs, strict=True)]

    def merged(self, family: Family, number: int, windows: Sequence[int]) -> States:
        """Return the state of each window and entity, window after window.

        Args:
            family: What is aggregated.
            number: The family's number in the schema.
            windows: The numbers of the windows.
        """
        events = self._columns.lift(family)
        starts = np.concatenate([self._starts[window][: self._rows] for window in windows])
        ends = np.concatenate([self._ends[window][: self._rows] for window in windows])
        if not self._cuts and not self._ranges:
            return events.merge(starts, ends)
        tiles = [
            summary.states[number]
            for nodes, node in self._tiles
            for summary in nodes.parts(node)[1].parts.values()
        ]
        if tiles:
            kind = algebra(family.state)
            events = kind.concat([events, kind.decode(tiles)])
        pieces = [(np.arange(len(starts)), starts, ends), *self._more(windows)]
        owner, first, last = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.argsort(owner, kind="stable")
        places = _spans(first[order], last[order] - first[order])
        ends = np.cumsum(np.bincount(owner, last - first, len(starts)).astype(np.int64))
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
        return events.take(places).merge(starts, ends)

    def _cover(self, place: int, nodes: Nodes) -> None:
        sources: dict[Node, int] = {}
        offsets: dict[Node, int] = {}
        for number, window in enumerate(self._edges):
            for item in nodes.cover(window):
                if isinstance(item, Cut):
                    if item.node not in sources:
                        sources[item.node] = len(self._pages)
                        self._pages.append(nodes.page(item.node))
                    self._cuts.append((number, place, sources[item.node]))
                else:
                    self._add_parts(number, place, item, nodes, offsets)

    def _add_parts(
        self, number: int, place: int, item: Parts, nodes: Nodes, offsets: dict[Node, int]
    ) -> None:
        if item.node not in offsets:
            offsets[item.node] = self._tile_count
            self._tiles.append((nodes, item.node))
            self._tile_count += len(nodes.parts(item.node)[0])
        offset = offsets[item.node]
        self._ranges.append((number, place, offset + item.first, offset + item.last))

    def _more(self, windows: Sequence[int]) -> list[tuple[Int64s, Int64s, Int64s]]:
        """Return (window and entity as one number, first, behind last) of pages and tiles."""
        count = len(self._pool)
        found = [
            (number, place, int(self._starts[number][source]), int(self._ends[number][source]))
            for number, place, source in self._cuts
        ]
        found += [(n, place, count + a, count + b) for n, place, a, b in self._ranges]
        where = {number: i * self._rows for i, number in enumerate(windows)}
        rows = [(where[n] + place, a, b) for n, place, a, b in found if n in where]
        if not rows:
            return []
        owner, first, last = np.array(rows, dtype=np.int64).T
        return [(owner, first, last)]

    @cached_property
    def _columns(self) -> EventColumns:
        return self._pool.columns(self._wanted, ranked=not self._cuts and not self._ranges)


def _spans(starts: Int64s, lengths: Int64s) -> Int64s:
    """Return the places of ranges, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)
