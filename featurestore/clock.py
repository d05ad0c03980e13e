"""The only place that reads the time (law T5).

Everything else takes a `Clock` and asks it; tests hand in a `FixedClock`. Instants are integers:
microseconds since the epoch, UTC (law T1). Durations for humans use `monotonic`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time."""

    def now_us(self) -> int:
        """Return the current instant in microseconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never going back."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now_us(self) -> int:
        """Return the machine's instant in microseconds since the epoch, UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()


class FixedClock:
    """A clock that stands still until told otherwise.

    Args:
        now_us: The instant to show, microseconds since the epoch.

    >>> clock = FixedClock(10)
    >>> clock.advance(5)
    >>> clock.now_us()
    15
    """

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._start_us = now_us

    def now_us(self) -> int:
        """Return the instant that was set."""
        return self._now_us

    def monotonic(self) -> float:
        """Return the seconds by which the clock was moved."""
        return (self._now_us - self._start_us) / 1e6

    def set(self, now_us: int) -> None:
        """Show another instant from now on."""
        self._now_us = now_us

    def advance(self, microseconds: int) -> None:
        """Move forward by so many microseconds."""
        self._now_us += microseconds
