"""What a verification found: how much was compared, what differs, and what lateness changed.

Plain data. A difference between online and offline is a bug; a value that late data changed since
is not, and is told apart (laws V1, V2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

SHOWN = 100
"""How many differences a report holds at most; all are counted."""


@dataclass(frozen=True)
class Difference:
    """One value, or its status, that is not the same online and offline.

    Attributes:
        reference: `view:feature`, the view as it is called in the service.
        entity: The join keys.
        as_of: The instant of both.
        online: What was read.
        offline: What was computed again.
        online_status: The status that was read.
        offline_status: The one that follows from the tables.
    """

    reference: str
    entity: Mapping[str, Any]
    as_of: datetime
    online: Any
    offline: Any
    online_status: str
    offline_status: str


@dataclass(frozen=True)
class Lateness:
    """How much of a feature would have been another value with what was known at the time.

    Attributes:
        compared: Values that were computed both ways.
        changed: How many of them differ.
    """

    compared: int
    changed: int

    @property
    def share(self) -> float:
        """The share that differs, 0 where nothing was compared."""
        return self.changed / self.compared if self.compared else 0.0


@dataclass(frozen=True)
class VerificationReport:
    """The outcome of `verify`.

    Attributes:
        features: The service, or the references, that were asked for.
        entities: Different entity rows that were asked for, at each instant.
        instants: The instants.
        compared: Values compared, bit for bit, with their statuses.
        present: How many of them were there and not null.
        different: How many of them are not the same.
        differences: The first of these.
        not_comparable: {reason: how many values could not be compared}.
        late: {reference: what late data changed}, only features whose source tells when facts were
            learnt.
        seconds: How long it took.
    """

    features: str
    entities: int
    instants: tuple[datetime, ...]
    compared: int
    present: int
    different: int
    differences: tuple[Difference, ...] = ()
    not_comparable: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, Lateness] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.different == 0
