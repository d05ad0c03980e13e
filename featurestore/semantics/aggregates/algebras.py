"""The algebra of a spec, made once; NumPy and Arrow are loaded by the first that is asked for."""

from __future__ import annotations

import functools

from featurestore.semantics.aggregates.interface import Algebra
from featurestore.semantics.aggregates.spec import AggregateSpec


def algebra(spec: AggregateSpec) -> Algebra:
    """Return the algebra that answers a spec; specs of equal `state` share it."""
    return _algebra(spec.state)


@functools.lru_cache(maxsize=1024)
def _algebra(state: AggregateSpec) -> Algebra:
    # Declaring an aggregate must stay cheap, so this import waits for the first computation.
    from featurestore.semantics.aggregates.building import build

    return build(state)
