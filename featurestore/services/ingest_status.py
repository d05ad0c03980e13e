"""What an ingest process says of itself: how far each source is, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EventKind = Literal["started", "stopped", "trouble", "recovered", "definitions", "serving", "bug"]


@dataclass(frozen=True)
class PartitionStatus:
    """One partition of a stream.

    Attributes:
        applied: The newest position that is online; None before the first.
        logged: The newest position that is in the log.
        lag: Entries of the partition that the group has not done, None while it is unknown.
    """

    applied: int | None = None
    logged: int | None = None
    lag: int | None = None


@dataclass(frozen=True)
class SourceStatus:
    """What one member of a consumer group does for one source.

    Attributes:
        source: The source.
        member: The member's name.
        partitions: By name.
        events: Events taken since the start.
        events_per_second: Over the last seconds.
        refused: Events that were refused since the start.
        waiting: Events that are online and not in the log yet.
        last_event_us: When the stream took the newest event that is online, None before the first.
        idle: Whether everything that is in the stream is online and in the log.
        trouble: What is in the way, None when nothing is.
        age_seconds: How long ago that newest event was taken.
    """

    source: str
    member: str
    partitions: Mapping[str, PartitionStatus] = field(default_factory=dict)
    events: int = 0
    events_per_second: float = 0.0
    refused: int = 0
    waiting: int = 0
    last_event_us: int | None = None
    idle: bool = False
    trouble: str | None = None
    age_seconds: float | None = None


@dataclass(frozen=True)
class IngestEvent:
    """Something worth a line.

    Attributes:
        kind: What happened.
        source: The source, or "" where it is about all of them.
        text: More about it.
    """

    kind: EventKind
    source: str = ""
    text: str = ""


class Rate:
    """Counts events a second over the last few seconds.

    Args:
        seconds: How far back it looks.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._seen: list[tuple[float, int]] = []

    def add(self, at: float, count: int) -> None:
        """Count events at an instant of the monotonic clock."""
        self._seen.append((at, count))
        self._forget(at)

    def at(self, at: float) -> float:
        """Return the events a second as of an instant."""
        self._forget(at)
        return sum(count for _, count in self._seen) / self._seconds

    def _forget(self, at: float) -> None:
        first = next((i for i, (t, _) in enumerate(self._seen) if t > at - self._seconds), None)
        self._seen = [] if first is None else self._seen[first:]
