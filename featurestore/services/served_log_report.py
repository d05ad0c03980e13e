"""What an audit of served answers found. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from featurestore.services.verification_report import Difference, Lateness


@dataclass(frozen=True)
class ServedReport:
    """The outcome of `verify_served`.

    Attributes:
        services: What had been asked for: services, or references.
        rows: Logged rows that were looked at.
        first: When the first of them was served.
        last: When the last of them was.
        compared: Values compared, bit for bit, with their statuses.
        present: How many of them were there and not null.
        different: How many of them no state of the tables explains.
        differences: The first of these.
        not_comparable: {reason: how many values could not be compared}.
        late: {reference: how many of its values rows that came later would change now}.
        seconds: How long it took.
    """

    services: tuple[str, ...]
    rows: int
    first: datetime
    last: datetime
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
