"""What the states of one view consist of: inputs of its events, aggregates, how far they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from featurestore.semantics.aggregates import AggregateSpec
from featurestore.semantics.rows import RowSchema
from featurestore.semantics.windows import HOUR

GRACE_US = HOUR
"""How long events are kept beyond the reach of the widest window, for instants of the past."""
_ORDERED = frozenset({"first_k", "last_k", "first_distinct", "last_distinct"})


@dataclass(frozen=True)
class Family:
    """Aggregates that are answered from the same states.

    Attributes:
        state: The spec of the states.
        input: Index of the input that is aggregated; None counts events.
        by: Index of the second-level key.
    """

    state: AggregateSpec
    input: int | None
    by: int | None

    @cached_property
    def is_ordered(self) -> bool:
        """Whether its states hold identities of events, by which equal instants are ordered."""
        return self.state.function in _ORDERED


@dataclass(frozen=True)
class StateSchema:
    """The layout of one view's states.

    Attributes:
        view: The view's name, for errors.
        fingerprint: 4 bytes that lead the header of every state (law O4).
        inputs: How inputs of events are packed.
        families: What nodes hold of each of their parts, in this order.
        reach: How long before an instant an event can lie and still count; None for ever.
    """

    view: str
    fingerprint: bytes
    inputs: RowSchema
    families: tuple[Family, ...]
    reach: int | None

    def retention(self, grace_us: int) -> int | None:
        """Return how long events are kept at least; None for ever."""
        return None if self.reach is None else self.reach + grace_us

    @cached_property
    def wanted(self) -> Wanted:
        """What all families read of events."""
        return Wanted.of(self.families)


@dataclass(frozen=True)
class Wanted:
    """What is read of events.

    Attributes:
        inputs: The indexes of inputs.
        ids: Whether ids of events are.
    """

    inputs: frozenset[int]
    ids: bool

    @classmethod
    def of(cls, families: Sequence[Family]) -> Wanted:
        """Return what families read."""
        found = {index for each in families for index in (each.input, each.by)}
        inputs = frozenset(index for index in found if index is not None)
        return cls(inputs, any(family.is_ordered for family in families))
