"""The smallest and the largest value (`min`, `max`): of codes, so of any type.

Zero is told by a mask, since every code is some value's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.dtypes import DType
from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.interface import Algebra, Events, Plan, States
from featurestore.semantics.aggregates.merging import (
    FoldedStates,
    offsets_of,
    reduce_groups,
    same_kind,
)
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import EMPTY, Pool, Scalars, union

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_LEAST, _LARGEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class ExtremeStates(FoldedStates):
    """One value a state, or none.

    Args:
        scalars: The values' codes.
        is_largest: Whether the largest is kept, or the smallest.
        codes: int64[n]; where there is none, the code that every other one beats.
        found: Which states have a value; None for all.
        pool: The pool of texts and bytes.
    """

    def __init__(
        self,
        scalars: Scalars,
        codes: Int64s,
        found: Bools | None,
        pool: Pool | None,
        *,
        is_largest: bool,
    ) -> None:
        self.scalars = scalars
        self.is_largest = is_largest
        self.codes = codes
        self.found = found
        self.pool = pool

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nothing(self) -> int:
        """The code that every other one beats."""
        return _LEAST if self.is_largest else _LARGEST

    def is_zero(self) -> Bools:
        """Return which states have no value."""
        return np.zeros(len(self), dtype=bool) if self.found is None else ~self.found

    def take(self, indexes: Int64s) -> ExtremeStates:
        """Return the states at these places."""
        return self.made(
            self.codes[indexes], None if self.found is None else self.found[indexes], self.pool
        )

    def fold(self, indexes: Int64s, offsets: Int64s) -> ExtremeStates:
        """Return merged groups of states."""
        codes = reduce_groups(self._ufunc, self.codes[indexes], offsets, self.nothing)
        found: Bools | None = np.diff(offsets) > 0
        if self.found is not None:
            found = reduce_groups(np.logical_or, self.found[indexes], offsets, 0)
        elif np.all(found):
            found = None
        return self.made(codes, found, self.pool)

    def join(self, parts: Sequence[ExtremeStates]) -> ExtremeStates:
        """Return the states of all parts."""
        found = None
        if any(part.found is not None for part in parts):
            found = np.concatenate([~part.is_zero() for part in parts])
        return self.made(np.concatenate([part.codes for part in parts]), found, self.pool)

    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> ExtremeStates:
        """Return the merged states of ranges."""
        if plan == "prefix":
            return super().merge(starts, ends, plan)
        lengths = np.maximum(ends - starts, 0)
        codes = np.full(len(starts), self.nothing, dtype=np.int64)
        found = np.zeros(len(starts), dtype=bool)
        rows = np.flatnonzero(lengths)
        if len(rows):
            # In order of their starts, what lies between two ranges is passed once at most.
            rows = rows[np.argsort(starts[rows], kind="stable")]
            edges = np.empty(2 * len(rows), dtype=np.int64)
            edges[::2] = starts[rows]
            edges[1::2] = starts[rows] + lengths[rows]
            codes[rows] = self._ufunc.reduceat(np.append(self.codes, self.nothing), edges)[::2]
            found[rows] = True
            if self.found is not None:
                flags = np.append(self.found, np.False_)
                found[rows] = np.logical_or.reduceat(flags, edges)[::2]
        return self.made(codes, found, self.pool)

    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state."""
        rows = np.arange(len(self)) if self.found is None else np.flatnonzero(self.found)
        _, items = self.scalars.dump(self.codes[rows], self.pool)
        sizes = np.array([len(item) for item in items], dtype=np.int64)
        payloads = [b""] * len(self)
        for row, item in zip(rows.tolist(), items, strict=True):
            payloads[row] = item
        return blobs.pack(sizes, offsets_of((~self.is_zero()).astype(np.int64)), payloads)

    def made(self, codes: Int64s, found: Bools | None, pool: Pool | None) -> ExtremeStates:
        """Return other states of the same kind."""
        return ExtremeStates(self.scalars, codes, found, pool, is_largest=self.is_largest)

    @property
    def _ufunc(self) -> np.ufunc:
        return np.maximum if self.is_largest else np.minimum


class ExtremeAlgebra(Algebra):
    """The smallest or the largest of a column.

    Args:
        state: The spec that it is for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        self._scalars = Scalars(state.dtype or DType("int64"))
        self._is_largest = state.function == "max"
        self._none = self._made(np.empty(0, dtype=np.int64), None, None)

    def lift(self, events: Events) -> ExtremeStates:
        """Return one state an event."""
        codes, valid, pool = self._scalars.codes(events.values)
        if valid is not None:
            codes = np.where(valid, codes, self._none.nothing)
        return self._made(codes, valid, pool)

    def decode(self, data: Sequence[bytes]) -> ExtremeStates:
        """Return the states of canonical bytes."""
        sizes, offsets, payloads = blobs.unpack(data)
        rows = np.flatnonzero(np.diff(offsets))
        items = [payloads[row] for row in rows.tolist()]
        if sizes.tolist() != [len(item) for item in items]:
            raise blobs.damaged("a value of another length")
        codes, pool = self._scalars.load(items)
        result = np.full(len(data), self._none.nothing, dtype=np.int64)
        result[rows] = codes
        found = np.zeros(len(data), dtype=bool)
        found[rows] = True
        return self._made(result, found, pool)

    def concat(self, parts: Sequence[States]) -> ExtremeStates:
        """Return the states of all parts."""
        states = same_kind(parts, ExtremeStates)
        if len(states) < 2:  # noqa: PLR2004
            return states[0] if states else self._none
        if not self._scalars.is_pooled:
            return self._none.join(states)
        pool, places = union([part.pool or EMPTY for part in states])
        moved = [
            self._made(_moved(part, codes), part.found, pool)
            for part, codes in zip(states, places, strict=True)
        ]
        return moved[0].join(moved)

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:  # noqa: ARG002
        """Return the value of each state."""
        absent = states.is_zero()
        if not absent.any():
            return self._scalars.array(states.codes, states.pool)
        codes = np.where(absent, 0, states.codes)
        return self._scalars.array(codes, states.pool, absent)

    def _made(self, codes: Int64s, found: Bools | None, pool: Pool | None) -> ExtremeStates:
        return ExtremeStates(self._scalars, codes, found, pool, is_largest=self._is_largest)


def _moved(part: ExtremeStates, places: Int64s) -> Int64s:
    """Return the codes of states in another pool."""
    if not len(places):
        return part.codes
    absent = part.is_zero()
    return np.where(absent, part.nothing, places[np.where(absent, 0, part.codes)])
