"""What every aggregate offers: events are lifted to states, states merge, states give results.

States form a commutative monoid, exactly: merging in any order and in any tree gives states with
the same bytes (law W5). They come in columns, so that one call does the work of a training set as
well as that of a single look-up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from featurestore.semantics.aggregates.spec import AggregateSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Int64s = npt.NDArray[np.int64]

Plan = Literal["auto", "frames", "prefix"]


@dataclass(frozen=True)
class Events:
    """Rows that are lifted; n of them.

    Attributes:
        instants: int64[n], microseconds since the epoch.
        ids: The events' identities, which settle equal instants; None where rows come sorted by
            (instant, id), so that their position is their order. Such states are never encoded.
        values: The input column, of the spec's type; None for the count of events.
        by: The second-level keys, of the spec's type; None without them.
    """

    instants: Int64s
    ids: Sequence[bytes] | None
    values: pa.Array | None = None
    by: pa.Array | None = None


class States(ABC):
    """A column of states of one algebra."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indexes: Int64s) -> States:
        """Return the states at these places, in this order."""

    @abstractmethod
    def merge(self, starts: Int64s, ends: Int64s, plan: Plan = "auto") -> States:
        """Return the merged states of ranges of this column.

        Args:
            starts: int64[m], the first state of each range.
            ends: int64[m], the one behind its last; an empty range gives zero.
            plan: "frames" goes through each range; "prefix" prepares running states first, and
                looks ranges up in them; "auto" takes what costs less. Results are equal.
        """

    @abstractmethod
    def encode(self) -> list[bytes]:
        """Return the canonical bytes of each state: equal events give equal bytes; b"" is zero.

        Raises:
            RequestError: The events were lifted without ids, and their order counts.
        """


class Algebra(ABC):
    """The operations of one kind of state."""

    @abstractmethod
    def lift(self, events: Events) -> States:
        """Return one state an event; a null or NaN input, or a null key, gives zero."""

    @abstractmethod
    def decode(self, data: Sequence[bytes]) -> States:
        """Return the states of canonical bytes; b"" gives zero.

        Raises:
            DataError: The bytes are damaged.
        """

    @abstractmethod
    def concat(self, parts: Sequence[States]) -> States:
        """Return the states of all parts, one after the other; of none, none."""

    @abstractmethod
    def finalize(self, spec: AggregateSpec, states: Any) -> pa.Array:
        """Return the result of each state, an array of type `spec.result.arrow`.

        Args:
            spec: A spec whose `state` this algebra is for.
            states: States of this algebra.

        Raises:
            DataError: An integer sum does not fit int64.
        """
