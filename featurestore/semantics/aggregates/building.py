"""Which algebra a spec has: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Callable

from featurestore.semantics.aggregates.bounded_algebra import BoundedAlgebra
from featurestore.semantics.aggregates.distinct import (
    ApproximateDistinctAlgebra,
    DistinctAlgebra,
    HistogramAlgebra,
)
from featurestore.semantics.aggregates.extremes import ExtremeAlgebra
from featurestore.semantics.aggregates.interface import Algebra
from featurestore.semantics.aggregates.keyed import KeyedAlgebra
from featurestore.semantics.aggregates.moments import MomentAlgebra
from featurestore.semantics.aggregates.nested import FlatAlgebra, VectorAlgebra
from featurestore.semantics.aggregates.quantiles import QuantileAlgebra
from featurestore.semantics.aggregates.spec import AggregateSpec

_ORDERS = {"count": 0, "sum": 1, "variance": 2, "skew": 3, "kurtosis": 4}
_OTHERS: dict[str, Callable[[AggregateSpec], Algebra]] = {
    "min": ExtremeAlgebra,
    "max": ExtremeAlgebra,
    "histogram": HistogramAlgebra,
    "count_distinct": DistinctAlgebra,
    "approx_count_distinct": ApproximateDistinctAlgebra,
    "approx_quantile": QuantileAlgebra,
}


def build(state: AggregateSpec) -> Algebra:
    """Return the algebra of a spec that is a state's own (`AggregateSpec.state`)."""
    dtype = state.dtype
    if state.by is not None or (dtype is not None and dtype.container == "map"):
        return KeyedAlgebra(state, build(state.inner))
    if dtype is not None and dtype.container:
        inner = build(state.inner)
        if not state.element_wise:
            return FlatAlgebra(dtype, inner)
        if dtype.container == "vector":
            return VectorAlgebra(dtype, inner)
        return KeyedAlgebra(state, inner)
    if state.function in _ORDERS:
        return MomentAlgebra(state, _ORDERS[state.function])
    return _OTHERS.get(state.function, BoundedAlgebra)(state)
