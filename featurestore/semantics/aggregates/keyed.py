"""A state a key: second-level keys (`by`), maps, and lists position by position.

Any other aggregate's states are the states of the keys. A state of no events is never kept, so that
equal events give equal bytes. Lists keep the length of the longest one beside their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.dtypes import DType
from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.interface import Algebra, Events, States
from featurestore.semantics.aggregates.items import Items, extents, of_items, taken
from featurestore.semantics.aggregates.keys import dump_keys, load_keys
from featurestore.semantics.aggregates.merging import (
    FoldedStates,
    counts_of,
    gather,
    offsets_of,
    owners,
    reduce_groups,
    same_kind,
    sorting,
    spans,
)
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import EMPTY, Pool, Scalars, typed, union

Int64s = npt.NDArray[np.int64]

_NO_LIST = 0


class KeyedStates(FoldedStates):
    """States of ascending keys, each with a state of its own.

    Args:
        scalars: The keys' codes.
        offsets: int64[n + 1], where each state's keys begin.
        keys: int64[m], the keys' codes.
        inner: The m states of the keys.
        pool: The pool of keys that are texts or bytes.
        lengths: int64[n], 1 + the length of the longest list, 0 without any; None unless lists are
            aggregated position by position.
    """

    def __init__(
        self,
        scalars: Scalars,
        offsets: Int64s,
        keys: Int64s,
        inner: FoldedStates,
        *,
        pool: Pool | None,
        lengths: Int64s | None,
    ) -> None:
        self.scalars = scalars
        self.offsets = offsets
        self.keys = keys
        self.inner = inner
        self.pool = pool
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Return which states are zero."""
        nothing = np.equal(self.offsets[1:], self.offsets[:-1])
        return nothing if self.lengths is None else nothing & (self.lengths == _NO_LIST)

    def entries(self) -> Int64s:
        """Return the keys in front of each state."""
        return self.offsets

    def take(self, indexes: Int64s) -> KeyedStates:
        """Return the states at these places."""
        sizes = self.offsets[indexes + 1] - self.offsets[indexes]
        places = spans(self.offsets[indexes], sizes)
        lengths = None if self.lengths is None else self.lengths[indexes]
        return self._made(offsets_of(sizes), self.keys[places], self.inner.take(places), lengths)

    def fold(self, indexes: Int64s, offsets: Int64s) -> KeyedStates:
        """Return merged groups of states."""
        groups = len(offsets) - 1
        places, new, keys, rows = gather(self.keys, self.offsets, indexes, offsets)
        inner = self.inner.fold(places, np.append(new, len(places)))
        lengths = self.lengths
        if lengths is not None:
            lengths = reduce_groups(np.maximum, lengths[indexes], offsets, _NO_LIST)
        return self._made(offsets_of(counts_of(rows, groups)), keys, inner, lengths)

    def join(self, parts: Sequence[KeyedStates]) -> KeyedStates:
        """Return the states of all parts."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        keys = np.concatenate([part.keys for part in parts])
        inner = parts[0].inner.join([part.inner for part in parts])
        lengths = None
        if self.lengths is not None:
            lengths = np.concatenate([p.lengths for p in parts if p.lengths is not None])
        return self._made(offsets_of(sizes), keys, inner, lengths)

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        states = self.inner.encode()
        numbers, data = dump_keys(self.scalars, self.keys, self.offsets, self.pool)
        sizes = np.array([len(state) for state in states], dtype=np.int64)
        edges = list(pairwise(self.offsets.tolist()))
        payloads = [b"".join(states[start:stop]) for start, stop in edges]
        if data is not None:
            payloads = [head + tail for head, tail in zip(data, payloads, strict=True)]
        table = np.stack([numbers, sizes], axis=1).reshape(-1)
        offsets = self.offsets * 2
        if self.lengths is not None:
            found = self.lengths != _NO_LIST
            table = np.insert(table, offsets[:-1][found], self.lengths[found])
            offsets = offsets + offsets_of(found.astype(np.int64))
        return blobs.pack(table, offsets, payloads)

    def without_zeros(self, is_zero: npt.NDArray[np.bool_]) -> KeyedStates:
        """Return the states without keys whose states have seen nothing."""
        if not is_zero.any():
            return self
        kept = np.flatnonzero(~is_zero)
        sizes = counts_of(owners(self.offsets)[kept], len(self))
        return self._made(offsets_of(sizes), self.keys[kept], self.inner.take(kept), self.lengths)

    def _made(
        self, offsets: Int64s, keys: Int64s, inner: FoldedStates, lengths: Int64s | None
    ) -> KeyedStates:
        return KeyedStates(self.scalars, offsets, keys, inner, pool=self.pool, lengths=lengths)


class KeyedAlgebra(Algebra):
    """An aggregate for each key.

    Args:
        state: The spec that it is for: with `by`, of a map, or of lists position by position.
        inner: The algebra of one key's values.
    """

    def __init__(self, state: AggregateSpec, inner: Algebra) -> None:
        self._state = state
        self._inner = inner
        self._is_lists = state.element_wise
        key = DType("int64")
        if state.by is not None:
            key = state.by
        elif state.dtype is not None and state.dtype.key:
            key = DType(state.dtype.key)
        self._scalars = Scalars(key)

    def lift(self, events: Events) -> KeyedStates:
        """Return one state an event."""
        lengths = None
        if self._state.by is not None:
            keys, valid, pool = self._scalars.codes(events.by)
            offsets = np.arange(len(keys) + 1, dtype=np.int64)
            if valid is not None:
                offsets = offsets_of(valid.astype(np.int64))
                keys, events = keys[valid], _filtered(events, valid)
        else:
            values = self._typed(events.values)
            offsets, places = extents(values)
            if self._is_lists:
                keys, pool = np.arange(len(places)) - offsets[:-1][owners(offsets)], None
                found = values.is_valid().to_numpy(zero_copy_only=False)
                lengths = np.where(found, 1 + np.diff(offsets), _NO_LIST)
                events = of_items(events, offsets, taken(values.values, places))
            else:
                events = of_items(events, offsets, taken(values.items, places))
                keys, _, pool = self._scalars.codes(taken(values.keys, places))
        inner: Any = self._inner.lift(events)
        if not self._is_lists and self._state.by is None:
            order = sorting(owners(offsets), keys)
            keys, inner = keys[order], inner.take(order)
        states = KeyedStates(self._scalars, offsets, keys, inner, pool=pool, lengths=lengths)
        return states.without_zeros(inner.is_zero())

    def decode(self, data: Sequence[bytes]) -> KeyedStates:
        """Return the states of canonical bytes."""
        lengths = None
        numbers, offsets, payloads = blobs.unpack(data)
        if self._is_lists:
            found = np.diff(offsets) > 0
            heads = offsets[:-1][found]
            lengths = np.full(len(data), _NO_LIST, dtype=np.int64)
            lengths[found] = numbers[heads]
            numbers = np.delete(numbers, heads)
            offsets = offsets - offsets_of(found.astype(np.int64))
        if (offsets % 2).any():
            raise blobs.damaged(f"{len(numbers)} numbers")
        offsets = offsets // 2
        table = numbers.reshape(-1, 2).T
        keys, pool, rests = load_keys(self._scalars, table[0].copy(), offsets, payloads)
        if lengths is not None:
            is_outside = (keys < 0) | (keys >= lengths[owners(offsets)] - 1)
            if is_outside.any():
                raise blobs.damaged("a position that no list has")
        joined = b"".join(rests)
        ends = np.cumsum(table[1])
        if (len(ends) and ends[-1] != len(joined)) or table[1].min(initial=0) < 0:
            raise blobs.damaged(f"{len(joined)} bytes of states")
        edges = [0, *ends.tolist()]
        inner: Any = self._inner.decode([joined[start:stop] for start, stop in pairwise(edges)])
        return KeyedStates(self._scalars, offsets, keys, inner, pool=pool, lengths=lengths)

    def concat(self, parts: Sequence[States]) -> KeyedStates:
        """Return the states of all parts."""
        states = same_kind(parts, KeyedStates)
        if len(states) < 2:  # noqa: PLR2004
            return states[0] if states else self.decode([])
        inner: Any = self._inner.concat([part.inner for part in states])
        sizes = np.concatenate([np.diff(part.offsets) for part in states])
        pool, keys = None, [part.keys for part in states]
        if self._scalars.is_pooled:
            pool, moves = union([part.pool or EMPTY for part in states])
            keys = [
                move[part.keys] if len(move) else part.keys
                for part, move in zip(states, moves, strict=True)
            ]
        lengths = None
        if self._is_lists:
            lengths = np.concatenate([part.lengths for part in states])
        return KeyedStates(
            self._scalars,
            offsets_of(sizes),
            np.concatenate(keys),
            inner,
            pool=pool,
            lengths=lengths,
        )

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return a map of each state, or a list."""
        values = self._inner.finalize(spec.inner, states.inner)
        if not self._is_lists:
            return pa.MapArray.from_arrays(
                pa.array(states.offsets.astype(np.int32)),
                self._scalars.array(states.keys, states.pool),
                values,
            )
        absent = states.lengths == _NO_LIST
        edges = offsets_of(np.where(absent, 0, states.lengths - 1))
        places = np.full(edges[-1], -1, dtype=np.int64)
        places[edges[:-1][owners(states.offsets)] + states.keys] = np.arange(len(states.keys))
        items = self._positions(spec.inner, values, places)
        mask = pa.array(absent) if absent.any() else None
        return pa.ListArray.from_arrays(pa.array(edges.astype(np.int32)), items, mask=mask)

    def _typed(self, values: Any) -> pa.Array:
        return values if self._state.dtype is None else typed(values, self._state.dtype.arrow)

    def _positions(self, spec: AggregateSpec, values: pa.Array, places: Int64s) -> pa.Array:
        """Return the values of positions; where a position saw nothing, what nothing gives."""
        if (places >= 0).all():
            return values.take(pa.array(places))
        nothing = self._inner.finalize(spec, self._inner.decode([b""]))
        return pa.concat_arrays([values, nothing]).take(
            pa.array(np.where(places < 0, len(values), places))
        )


def _filtered(events: Events, valid: npt.NDArray[np.bool_]) -> Events:
    rows = np.flatnonzero(valid)
    places = events.places if isinstance(events, Items) else None
    return Items(
        instants=events.instants[rows],
        ids=None if events.ids is None else [events.ids[row] for row in rows.tolist()],
        values=None if events.values is None else events.values.take(pa.array(rows)),
        places=None if places is None else places[rows],
    )
