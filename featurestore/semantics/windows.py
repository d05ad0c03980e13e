"""Window arithmetic, written once for the reference, the training sets and the reader (law W2).

A window of size W, hop h, head hop g and offset o, asked at an instant q, holds the events with

    floor(q + o - W, h) <= event_timestamp < floor(q + o, g)

half-open and anchored at the epoch; `floor` is the mathematical one, also before 1970. Durations
are integers, microseconds. An event at q itself is out: what is to be predicted must not be seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from featurestore.errors import DefinitionError

LIFETIME = "lifetime"
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION = re.compile(r"(\d+)(us|ms|s|m|h|d)")
# The largest of these that divides a window and is at most a 24th of it is its hop.
_HOPS = (DAY, HOUR, 5 * MINUTE, MINUTE, 10 * SECOND, SECOND)
_PARTS = 24
_LONGEST = 36_525 * DAY


@dataclass(frozen=True, slots=True)
class Window:
    """A window; all in microseconds.

    Attributes:
        size: W; None for lifetime, which holds everything before the head.
        hop: h, the step in which the tail moves; divides the size.
        head_hop: g, the step in which the head moves; 1 slides.
        offset: o, zero or negative: how long before the instant the window ends.
    """

    size: int | None
    hop: int = 1
    head_hop: int = 1
    offset: int = 0

    def bounds(self, instant: Any) -> tuple[Any, Any]:
        """Return the first instant inside, None for lifetime, and the first one behind.

        Args:
            instant: An integer or an int64 array.

        >>> Window(60_000_000, hop=10_000_000).bounds(65_000_000)
        (0, 65000000)
        """
        head = instant + self.offset
        tail = None if self.size is None else floor(head - self.size, self.hop)
        return tail, floor(head, self.head_hop)

    @property
    def reach(self) -> int | None:
        """How long before an instant an event can lie and still count; None for lifetime."""
        return None if self.size is None else self.size + self.hop - self.offset


def floor(instant: Any, step: int) -> Any:
    """Return the last multiple of `step` that is not after the instant.

    >>> floor(-1, 10)
    -10
    """
    return instant if step == 1 else instant - instant % step


def parse_duration(text: str, *, what: str = "duration") -> int:
    """Return the microseconds of "90s", "5m", "1h", "7d"; a leading minus is taken.

    Args:
        text: A whole number and one of us, ms, s, m, h, d.
        what: What it is, for the error.

    Raises:
        DefinitionError: It is none.
    """
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    match = _DURATION.fullmatch(digits)
    value = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < value <= _LONGEST:
        raise DefinitionError(
            f"'{text}' is no {what}.",
            allowed="a whole number with us, ms, s, m, h or d, such as 90s or 7d, up to 100 years",
        )
    return sign * value


def default_hop(size: int) -> int:
    """Return the hop of a window that declares none.

    >>> default_hop(DAY) == HOUR, default_hop(HOUR) == MINUTE, default_hop(10 * SECOND)
    (True, True, 1)
    """
    return next((hop for hop in _HOPS if size % hop == 0 and hop * _PARTS <= size), 1)


def make_window(
    size: str, *, hop: str | None = None, head_hop: str | None = None, offset: str | None = None
) -> Window:
    """Return the window that texts declare.

    Raises:
        DefinitionError: The hop does not divide the window, or the offset leads into the future.
    """
    ahead = 0 if offset is None else parse_duration(offset, what="offset")
    if ahead > 0:
        raise DefinitionError(
            "A window cannot end after the instant it is asked for.",
            got=f"offset='{offset}'",
            allowed="a negative offset",
            hint=f"Write offset='-{offset}' for a window that ended {offset} before.",
        )
    step = 1 if head_hop is None else _positive(head_hop, "head_hop")
    if size == LIFETIME:
        if hop is not None:
            raise DefinitionError("A lifetime window has no tail, so no hop.", got=f"hop='{hop}'")
        return Window(None, 1, step, ahead)
    length = _positive(size, "window")
    tail = default_hop(length) if hop is None else _positive(hop, "hop")
    if length % tail:
        raise DefinitionError(
            "The hop does not divide the window.",
            got=f"window {size}, hop {hop}",
            allowed="a hop that goes into the window a whole number of times",
            hint="Leave hop= out, or take one such as the window itself.",
        )
    return Window(length, tail, step, ahead)


def _positive(text: str, what: str) -> int:
    value = parse_duration(text, what=what)
    if value < 0:
        raise DefinitionError(f"A {what} is positive.", got=text)
    return value
