"""Lists and vectors: their items flattened into one state, or vectors position by position.

Vectors have all the same length, so their positions need no keys: the states of the first position
of all vectors stand first, then those of the second, in one column of the inner algebra.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.dtypes import DType
from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.interface import Algebra, Events, Plan, States
from featurestore.semantics.aggregates.items import extents, of_items, taken
from featurestore.semantics.aggregates.merging import FoldedStates, same_kind
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import typed

Int64s = npt.NDArray[np.int64]


class FlatAlgebra(Algebra):
    """An aggregate of the items of lists: every item counts as a value.

    Args:
        dtype: The type of the lists or vectors.
        inner: The algebra of the items.
    """

    def __init__(self, dtype: DType, inner: Algebra) -> None:
        self._dtype = dtype
        self._inner = inner

    def lift(self, events: Events) -> States:
        """Return one state an event: that of the items of its list."""
        values = typed(events.values, self._dtype.arrow)
        offsets, places = extents(values)
        inner = self._inner.lift(of_items(events, offsets, taken(values.values, places)))
        return inner.merge(offsets[:-1], offsets[1:], "frames")

    def decode(self, data: Sequence[bytes]) -> States:
        """Return the states of canonical bytes."""
        return self._inner.decode(data)

    def concat(self, parts: Sequence[States]) -> States:
        """Return the states of all parts."""
        return self._inner.concat(parts)

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the result of each state."""
        return self._inner.finalize(spec.inner, states)


class VectorStates(FoldedStates):
    """A state for each position of a vector.

    Args:
        length: The number of positions.
        inner: Their states: those of the first position, then those of the second, and so on.
    """

    def __init__(self, length: int, inner: FoldedStates) -> None:
        self.length = length
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner) // self.length

    def is_zero(self) -> npt.NDArray[np.bool_]:
        """Return which states have seen nothing at any position."""
        table = self.inner.is_zero().reshape(self.length, -1)
        zeros: npt.NDArray[np.bool_] = np.logical_and.reduce(table, axis=0)
        return zeros

    def take(self, indexes: Int64s) -> VectorStates:
        """Return the states at these places."""
        return VectorStates(self.length, self.inner.take(self._everywhere(indexes)))

    def fold(self, indexes: Int64s, offsets: Int64s) -> VectorStates:
        """Return merged groups of states."""
        shifts = np.arange(self.length, dtype=np.int64)[:, None] * len(indexes)
        edges = np.append((shifts + offsets[:-1]).reshape(-1), self.length * len(indexes))
        return VectorStates(self.length, self.inner.fold(self._everywhere(indexes), edges))

    def join(self, parts: Sequence[VectorStates]) -> VectorStates:
        """Return the states of all parts."""
        return VectorStates(
            self.length, self.inner.join([part.inner for part in parts])
        ).interleaved([len(part) for part in parts])

    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> VectorStates:
        """Return the merged states of ranges."""
        ends = np.maximum(starts, ends)
        first, last = self._everywhere(starts), self._everywhere(ends)
        return VectorStates(self.length, self.inner.merge(first, last, plan))

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        count = len(self)
        states = self.inner.encode()
        sizes = np.array([len(state) for state in states], dtype=np.int64)
        table = sizes.reshape(self.length, count).T
        found = table.any(axis=1)
        offsets = np.concatenate([[0], np.cumsum(np.where(found, self.length, 0))])
        payloads = [b"".join(states[row::count]) for row in range(count)]
        return blobs.pack(table[found].reshape(-1), offsets, payloads)

    def _everywhere(self, indexes: Int64s) -> Int64s:
        """Return the places of all positions of some states."""
        shifts = np.arange(self.length, dtype=np.int64)[:, None] * len(self)
        return (shifts + indexes).reshape(-1)

    def interleaved(self, sizes: Sequence[int]) -> VectorStates:
        """Return states whose parts stood one behind the other with all their positions."""
        starts = np.cumsum([0, *sizes[:-1]]) * self.length
        positions = np.arange(self.length, dtype=np.int64)[:, None]
        places = [
            start + positions * size + np.arange(size)
            for start, size in zip(starts.tolist(), sizes, strict=True)
        ]
        order = np.concatenate(places, axis=1).reshape(-1)
        return VectorStates(self.length, self.inner.take(order))


class VectorAlgebra(Algebra):
    """An aggregate for each position of vectors.

    Args:
        dtype: The type of the vectors.
        inner: The algebra of one position's numbers.
    """

    def __init__(self, dtype: DType, inner: Algebra) -> None:
        self._dtype = dtype
        self._length = dtype.length
        self._inner = inner

    def lift(self, events: Events) -> VectorStates:
        """Return one state an event; that of a null vector is zero."""
        values = typed(events.values, self._dtype.arrow)
        count, length = len(values), self._length
        places = (values.offset + np.arange(count)) * length + np.arange(length)[:, None]
        items = values.values.take(pa.array(places.reshape(-1)))
        if values.null_count:
            valid = np.tile(values.is_valid().to_numpy(zero_copy_only=False), length)
            items = pc.if_else(pa.array(valid), items, None)
        ids = None if events.ids is None else list(events.ids) * length
        inner: Any = self._inner.lift(Events(np.tile(events.instants, length), ids, items))
        return VectorStates(length, inner)

    def decode(self, data: Sequence[bytes]) -> VectorStates:
        """Return the states of canonical bytes."""
        numbers, offsets, payloads = blobs.unpack(data)
        states: list[list[bytes]] = []
        for payload, start, stop in zip(payloads, offsets[:-1], offsets[1:], strict=True):
            sizes = numbers[start:stop]
            if len(sizes) not in {0, self._length} or sizes.sum() != len(payload):
                raise blobs.damaged(f"{len(sizes)} positions in {len(payload)} bytes")
            edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
            parts = [payload[a:b] for a, b in pairwise(edges)]
            states.append(parts or [b""] * self._length)
        flat = [parts[position] for position in range(self._length) for parts in states]
        inner: Any = self._inner.decode(flat)
        return VectorStates(self._length, inner)

    def concat(self, parts: Sequence[States]) -> VectorStates:
        """Return the states of all parts."""
        states = same_kind(parts, VectorStates)
        if not states:
            return self.decode([])
        inner: Any = self._inner.concat([part.inner for part in states])
        return VectorStates(self._length, inner).interleaved([len(part) for part in states])

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the vector of each state; null where a position has no result."""
        values = self._inner.finalize(spec.inner, states.inner)
        count = len(states)
        order = np.arange(self._length * count).reshape(self._length, count).T.reshape(-1)
        items = values.take(pa.array(order))
        absent = None
        if items.null_count:
            missing = ~items.is_valid().to_numpy(zero_copy_only=False)
            absent = pa.array(missing.reshape(count, self._length).any(axis=1))
        return pa.FixedSizeListArray.from_arrays(items, type=spec.result.arrow, mask=absent)
