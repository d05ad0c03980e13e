"""Histograms and numbers of distinct values, exact and approximate (W4, W5, W6).

The approximate number is HyperLogLog with 4,096 registers: a standard error of 1.6 %. While few
registers are filled, the count is read from how many are empty, which is exact in practice for some
tens of values. A value is told by the first 8 bytes of BLAKE2b of its canonical bytes, the same on
every machine and for ever.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.dtypes import DType
from featurestore.semantics.aggregates import counted
from featurestore.semantics.aggregates.counted import CountedStates, Counting
from featurestore.semantics.aggregates.interface import Algebra, Events, States
from featurestore.semantics.aggregates.merging import offsets_of, owners, same_kind
from featurestore.semantics.aggregates.spec import AggregateSpec
from featurestore.semantics.aggregates.values import Pool, Scalars

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_INDEX_BITS = 12
_REGISTERS = 1 << _INDEX_BITS
_REST_BITS = 64 - _INDEX_BITS
# Counts up to so many registers' worth are read from the empty ones: below, that is more exact.
_LINEAR = 2
_INT64 = DType("int64")


class CountedAlgebra(Algebra):
    """What algebras of sets of keys have in common.

    Args:
        kind: What the sets are made of.
    """

    def __init__(self, kind: Counting) -> None:
        self._kind = kind

    def lift(self, events: Events) -> CountedStates:
        """Return one state an event: its value."""
        keys, valid, pool = self._kind.scalars.codes(events.values)
        return counted.lifted(self._kind, keys, valid, pool)

    def decode(self, data: Sequence[bytes]) -> CountedStates:
        """Return the states of canonical bytes."""
        return counted.decode(self._kind, data)

    def concat(self, parts: Sequence[States]) -> CountedStates:
        """Return the states of all parts."""
        return counted.concat(self._kind, same_kind(parts, CountedStates))

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:  # noqa: ARG002
        """Return how many keys each state has."""
        return pa.array(states.sizes)


class HistogramAlgebra(CountedAlgebra):
    """How often each value occurred.

    Args:
        state: The spec that they are for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        super().__init__(Counting(Scalars(state.dtype or _INT64), np.add))

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return maps: all values, ascending; or the k most frequent, those first."""
        offsets, keys, weights = states.offsets, states.keys, states.weights
        if spec.k is not None:
            rows = owners(offsets)
            order = np.lexsort((keys, -weights, rows))
            ranks = np.arange(len(rows)) - offsets[:-1][rows]
            order = order[ranks < spec.k]
            keys, weights = keys[order], weights[order]
            offsets = offsets_of(np.minimum(states.sizes, spec.k))
        return pa.MapArray.from_arrays(
            pa.array(offsets.astype(np.int32)),
            self._kind.scalars.array(keys, states.pool),
            pa.array(weights),
        )


class DistinctAlgebra(CountedAlgebra):
    """The exact number of distinct values, up to a limit.

    Args:
        state: The spec that it is for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        super().__init__(Counting(Scalars(state.dtype or _INT64), None, state.limit))


class ApproximateDistinctAlgebra(CountedAlgebra):
    """The approximate number of distinct values: registers with the largest rank each.

    Args:
        state: The spec that it is for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        super().__init__(Counting(Scalars(_INT64), np.maximum))
        self._values = Scalars(state.dtype or _INT64)

    def lift(self, events: Events) -> CountedStates:
        """Return one state an event: the register of its value, and the rank of it."""
        codes, valid, pool = self._values.codes(events.values)
        offsets = np.arange(len(codes) + 1, dtype=np.int64)
        if valid is not None:
            offsets, codes = offsets_of(valid.astype(np.int64)), codes[valid]
        distinct, places = np.unique(codes, return_inverse=True)
        hashes = _hashes(self._values, distinct, pool)[places]
        rest = hashes & np.uint64((1 << _REST_BITS) - 1)
        ranks = _REST_BITS + 1 - np.frexp(rest.astype(np.float64))[1]
        registers = (hashes >> np.uint64(_REST_BITS)).astype(np.int64)
        return CountedStates(self._kind, offsets, registers, ranks.astype(np.int64), None)

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:  # noqa: ARG002
        """Return the estimate of each state."""
        filled = states.sizes
        results = _linear_counts()[filled]
        many = np.flatnonzero(results > _LINEAR * _REGISTERS)
        if len(many):
            results = results.copy()
            results[many] = _estimates(states.take(many))
        return pa.array(results)


def _hashes(scalars: Scalars, codes: Int64s, pool: Pool | None) -> npt.NDArray[np.uint64]:
    """Return the hashes of values: of whole numbers, doubles or texts, whatever their width."""
    if scalars.is_pooled and pool is not None:
        items = [pool.items[code] for code in codes.tolist()]
    else:
        plain = scalars.plain(codes)
        data = plain.astype("<f8" if scalars.is_float else "<i8").tobytes()
        items = [data[at : at + 8] for at in range(0, len(data), 8)]
    digests = b"".join([hashlib.blake2b(item, digest_size=8).digest() for item in items])
    return np.frombuffer(digests, dtype="<u8")


@functools.cache
def _linear_counts() -> Int64s:
    """Return the count by the number of registers that are filled.

    The logarithm is rounded to a whole number, and none of these comes near to a half: libraries
    that differ in its last bit give the same table. With all registers filled it tells nothing.
    """
    empty = range(_REGISTERS, 0, -1)
    table = [round(_REGISTERS * math.log(_REGISTERS / left)) for left in empty]
    return np.array([*table, np.iinfo(np.int64).max], dtype=np.int64)


def _estimates(states: CountedStates) -> Int64s:
    """Return estimates by Ertl's improved estimator: sums and products only, no logarithm."""
    rows = owners(states.offsets)
    ranks = states.weights if states.weights is not None else rows
    width = _REST_BITS + 2
    flat = np.bincount(rows * width + ranks, minlength=len(states) * width)
    counts = flat.reshape(-1, width).T.astype(np.float64)
    total = _REGISTERS * _tau(1 - counts[-1] / _REGISTERS)
    for rank in range(_REST_BITS, 0, -1):
        total = 0.5 * (total + counts[rank])
    total += _REGISTERS * _sigma((_REGISTERS - states.sizes) / _REGISTERS)
    # 1 / (2 ln 2), the constant of the estimator.
    return np.rint(0.7213475204444817 * _REGISTERS * _REGISTERS / total).astype(np.int64)


def _sigma(x: Floats) -> Floats:
    total, power, factor = x.copy(), x * x, 1.0
    while True:
        more = total + power * factor
        if (more == total).all():
            return total
        total, power, factor = more, power * power, factor * 2


def _tau(x: Floats) -> Floats:
    total, root, factor = 1 - x, x.copy(), 1.0
    for _ in range(_REST_BITS + 12):
        root = np.sqrt(root)
        factor /= 2
        total = total - (1 - root) * (1 - root) * factor
    return np.where((x == 0) | (x == 1), 0.0, total / 3)
