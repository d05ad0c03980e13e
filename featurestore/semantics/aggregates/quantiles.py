"""Approximate quantiles with a promised relative error: DDSketch, made of IEEE operations only.

Positive numbers fall into buckets, N for every doubling, of equal width within it: a bucket's upper
bound is at most 1 + 1/N times its lower one. Nothing is computed but exponent, fraction, a product
and a floor, so the bucket of a number is the same on every machine; a logarithm's would not be.
Negative numbers have the mirrored buckets, zero and either infinity one of their own.

The quantile is that of the value whose rank, from 0, is floor(quantile * (n - 1)). The number given
for a bucket is off by at most `relative_error` from every number in it (below 2**-1022, where
doubles lie further apart, by one more such step).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.dtypes import DType
from featurestore.semantics.aggregates import counted
from featurestore.semantics.aggregates.counted import CountedStates, Counting
from featurestore.semantics.aggregates.distinct import CountedAlgebra
from featurestore.semantics.aggregates.interface import Events
from featurestore.semantics.aggregates.spec import (
    DEFAULT_QUANTILE,
    DEFAULT_RELATIVE_ERROR,
    AggregateSpec,
)
from featurestore.semantics.aggregates.values import Scalars, plain, typed, validity

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# `frexp` gives exponents from -1073 to 1024.
_LEAST_EXPONENT = -1073
_EXPONENTS = 1024 - _LEAST_EXPONENT + 1


class QuantileAlgebra(CountedAlgebra):
    """How many numbers fell into each bucket.

    Args:
        state: The spec that it is for.
    """

    def __init__(self, state: AggregateSpec) -> None:
        super().__init__(Counting(Scalars(DType("int64")), np.add))
        self._dtype = state.dtype or DType("float64")
        error = state.relative_error or DEFAULT_RELATIVE_ERROR
        # The middle of a bucket is off by 1 / (2 N + 1); one more leaves room for its rounding.
        self.buckets = int((1 / error - 1) / 2) + 1

    def lift(self, events: Events) -> CountedStates:
        """Return one state an event: the bucket of its value."""
        values = typed(events.values, self._dtype.arrow)
        valid = validity(values)
        numbers: Any = plain(values, self._dtype.numpy)
        if self._dtype.scalar in {"float32", "float64"}:
            known = ~np.isnan(numbers)
            valid = known if valid is None else valid & known
        return counted.lifted(self._kind, self.places(numbers.astype(np.float64)), valid, None)

    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the quantile of each state."""
        quantile = DEFAULT_QUANTILE if spec.quantile is None else spec.quantile
        running = np.zeros(len(states.keys) + 1, dtype=np.int64)
        np.cumsum(states.weights, out=running[1:])
        before = running[states.offsets[:-1]]
        counts = running[states.offsets[1:]] - before
        ranks = np.floor(quantile * (np.maximum(counts, 1) - 1)).astype(np.int64)
        # The bucket of that rank is the last one that no more than so many numbers precede.
        places = np.searchsorted(running, before + ranks, side="right") - 1
        absent = counts == 0
        keys = np.zeros(len(states), dtype=np.int64)
        keys[~absent] = states.keys[places[~absent]]
        return pa.array(self.numbers(keys), mask=absent if absent.any() else None)

    def places(self, numbers: Floats) -> Int64s:
        """Return the bucket of each number; that of a NaN is any."""
        fractions, exponents = np.frexp(np.abs(numbers))
        # frexp gives [1/2, 1); from its own doubling's start a number is 2 f - 1 of the way.
        with np.errstate(invalid="ignore"):
            steps = ((2 * fractions - 1) * self.buckets).astype(np.int64)
        places = (exponents.astype(np.int64) - _LEAST_EXPONENT) * self.buckets + steps + 1
        places[np.isinf(numbers)] = _EXPONENTS * self.buckets + 1
        places[numbers == 0] = 0
        return np.where(numbers < 0, -places, places)

    def numbers(self, places: Int64s) -> Floats:
        """Return the number that stands for each bucket."""
        count = self.buckets
        exponents, steps = np.divmod(np.abs(places) - 1, count)
        lower, upper = (count + steps).astype(np.float64), (count + steps + 1).astype(np.float64)
        # The harmonic mean of a bucket's bounds is equally far, relatively, from both.
        middles = 2 * lower * upper / ((lower + upper) * count)
        with np.errstate(over="ignore"):
            sizes = np.ldexp(middles, exponents + _LEAST_EXPONENT - 1)
        sizes = np.where(exponents >= _EXPONENTS, np.inf, sizes)
        return np.where(places == 0, 0.0, np.where(places < 0, -sizes, sizes))
