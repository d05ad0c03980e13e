"""Lists of at most k values: lifting and reading them (`first`, `last_k`, `top_k`, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.dtypes import DType
from featurestore.errors import RequestError
from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.bounded import BoundedStates, Entries, Rule
from featurestore.semantics.aggregates.interface import Algebra, Events, States
from featurestore.semantics.aggregates.items import places_of
from featurestore.semantics.aggregates.merging import offsets_of, same_kind
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import EMPTY, Pool, Scalars, pool_of, union

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]

_ORDER_COLUMNS = 3


class BoundedAlgebra(Algebra):
    """Lists of at most k values of a column.

    Args:
        state: The spec that they are for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        function = state.function
        self._rule = Rule(
            k=state.k or 1,
            is_descending=function in {"last_k", "last_distinct", "top_k"},
            is_ordered=function not in {"top_k", "bottom_k"},
            is_distinct=function in {"first_distinct", "last_distinct"},
        )
        # What is only ordered in time keeps every bit; what is compared takes -0.0 as 0.0.
        keeps_sign = self._rule.is_ordered and not self._rule.is_distinct
        self._scalars = Scalars(state.dtype or DType("int64"), keeps_sign=keeps_sign)

    def lift(self, events: Events) -> BoundedStates:
        """Return one state an event."""
        rows = len(events.instants)
        values, valid, pool = self._scalars.codes(events.values)
        if valid is None:
            offsets, found = np.arange(rows + 1, dtype=np.int64), None
        else:
            offsets, found = offsets_of(valid.astype(np.int64)), np.flatnonzero(valid)
        keys, ids = self._keys(events, values)
        if self._rule.is_descending:
            keys = ~keys
        items = Entries(keys, values, ids, pool)
        items = items if found is None else items.take(found)
        is_running = self._rule.is_ordered and events.ids is None
        return self._made(offsets, items, is_running=is_running)

    def decode(self, data: Sequence[bytes]) -> BoundedStates:
        """Return the states of canonical bytes."""
        numbers, offsets, payloads = blobs.unpack(data)
        fields = (_ORDER_COLUMNS if self._rule.is_ordered else 0) + self._scalars.is_pooled
        if (offsets % max(fields, 1)).any():
            raise blobs.damaged(f"{len(numbers)} numbers")
        table = numbers.reshape(-1, max(fields, 1)).T
        entries = offsets // max(fields, 1)
        sizes = np.full(table.shape[1], self._scalars.width)
        if self._scalars.is_pooled:
            sizes = table[-1]
        lengths = table[1] if self._rule.is_ordered else np.zeros_like(sizes)
        joined = b"".join(payloads)
        ends = np.cumsum(lengths + sizes)
        if (len(ends) and ends[-1] != len(joined)) or (lengths | sizes).min(initial=0) < 0:
            raise blobs.damaged(f"{len(joined)} bytes of values")
        cuts = (ends - sizes).tolist()
        edges = ends.tolist()
        items = [joined[start:stop] for start, stop in zip(cuts, edges, strict=True)]
        values, pool = self._scalars.load(items)
        if not self._rule.is_ordered:
            return self._made(entries, self._of_values(values, pool))
        starts = (ends - sizes - lengths).tolist()
        ids, codes = pool_of([joined[a:b] for a, b in zip(starts, cuts, strict=True)])
        keys = np.stack([blobs.unzigzag(table[0]), codes, table[2]])
        keys = ~keys if self._rule.is_descending else keys
        return self._made(entries, Entries(keys, values, ids, pool))

    def concat(self, parts: Sequence[States]) -> BoundedStates:
        """Return the states of all parts."""
        states = same_kind(parts, BoundedStates)
        if len(states) < 2:  # noqa: PLR2004
            return states[0] if states else self.decode([])
        if self._rule.is_ordered:
            states = self._in_one_order(states)
        if self._scalars.is_pooled:
            pool, moves = union([part.items.pool or EMPTY for part in states])
            states = [
                self._in_pool(part, pool, move) for part, move in zip(states, moves, strict=True)
            ]
        joined: BoundedStates = states[0].join(states)
        return joined

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the values of each state."""
        return states.heads() if spec.function in {"first", "last"} else states.lists()

    def _made(self, offsets: Int64s, items: Entries, *, is_running: bool = False) -> BoundedStates:
        return BoundedStates(self._rule, self._scalars, offsets, items, is_running=is_running)

    def _keys(self, events: Events, values: Int64s) -> tuple[Int64s, Pool | None]:
        if not self._rule.is_ordered:
            return values.reshape(1, -1), None
        if events.ids is None:
            return np.arange(len(values), dtype=np.int64).reshape(1, -1), None
        ids, codes = pool_of(events.ids)
        return np.stack([events.instants, codes, places_of(events)]), ids

    def _of_values(self, values: Int64s, pool: Pool | None) -> Entries:
        keys = values.reshape(1, -1)
        return Entries(~keys if self._rule.is_descending else keys, values, None, pool)

    def _in_pool(self, part: BoundedStates, pool: Pool, move: Int64s) -> BoundedStates:
        items = part.items
        values = move[items.values] if len(move) else items.values
        if not self._rule.is_ordered:
            return self._made(part.offsets, self._of_values(values, pool))
        return self._made(part.offsets, Entries(items.keys, values, items.ids, pool))

    def _in_one_order(self, states: list[BoundedStates]) -> list[BoundedStates]:
        """Return the same states, their entries' keys comparable."""
        # A part without entries has no order of its own.
        filled = [part for part in states if len(part.items.values)]
        if any((part.items.ids is None) != (filled[0].items.ids is None) for part in filled):
            raise RequestError(
                "States of events with ids and without cannot be put together.",
                hint="Lift all events with their ids.",
            )
        if filled and filled[0].items.ids is None:
            return self._one_behind_the_other(states)
        ids, moves = union([part.items.ids or EMPTY for part in states])
        moved = []
        for part, move in zip(states, moves, strict=True):
            items = part.items
            keys = np.empty((_ORDER_COLUMNS, len(items.values)), dtype=np.int64)
            if len(items.values):
                codes = ~items.keys[1] if self._rule.is_descending else items.keys[1]
                keys[0], keys[2] = items.keys[0], items.keys[2]
                keys[1] = ~move[codes] if self._rule.is_descending else move[codes]
            moved.append(self._made(part.offsets, Entries(keys, items.values, ids, items.pool)))
        return moved

    def _one_behind_the_other(self, states: list[BoundedStates]) -> list[BoundedStates]:
        """Return states whose positions go on from part to part."""
        moved = []
        start = 0
        for part in states:
            items = part.items
            keys = items.keys[:1]
            positions = (~keys if self._rule.is_descending else keys) + start
            start = int(positions.max(initial=start - 1)) + 1
            keys = ~positions if self._rule.is_descending else positions
            moved.append(self._made(part.offsets, Entries(keys, items.values, None, items.pool)))
        return moved
