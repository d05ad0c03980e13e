"""Instants, visibility and half-open intervals (laws T1, T3, M1).

An instant is an integer: microseconds since the epoch, UTC. `MIN_INSTANT` and `MAX_INSTANT` are the
first and last that Python's `datetime` can show (years 1 and 9999); a source row outside of them is
no event. The module refuses naive datetimes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from featurestore.errors import NaiveTimestampError, RequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MIN_INSTANT = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
MAX_INSTANT = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def to_instant(value: datetime | int | str, what: str = "instant") -> int:
    """Return microseconds since the epoch of an aware datetime, an ISO 8601 text or an integer.

    Args:
        value: The instant; an integer is taken as microseconds already.
        what: The name of the argument, for the error.

    Raises:
        NaiveTimestampError: There is no time zone in it (law T1).
        RequestError: The text is no ISO 8601 instant.

    >>> to_instant("1970-01-01T00:00:01Z")
    1000000
    """
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise RequestError(
                f"'{what}' is no instant.",
                got=repr(value),
                allowed="ISO 8601: 2013-01-31T12:00:00Z",
            ) from error
    if value.tzinfo is None:
        raise NaiveTimestampError(
            f"'{what}' has no time zone.",
            got=value.isoformat(),
            allowed="an aware instant such as 2013-01-31T12:00:00Z",
            hint="Say which zone it is in; it is never guessed.",
        )
    return (value - _EPOCH) // _MICROSECOND


def to_datetime(instant: int) -> datetime:
    """Return the aware UTC datetime of an instant.

    >>> to_datetime(-1).isoformat()
    '1969-12-31T23:59:59.999999+00:00'
    """
    return _EPOCH + timedelta(microseconds=instant)


def format_instant(instant: int) -> str:
    """Return an instant as ISO 8601 with Z, microseconds only where there are any."""
    return to_datetime(instant).isoformat().replace("+00:00", "Z")


def is_visible(event: int, as_of: int, ttl: int | None) -> bool:
    """Law T3: whether a row of instant `event` is visible at `as_of`; both bounds are closed."""
    return event <= as_of and (ttl is None or as_of - event <= ttl)


@dataclass(frozen=True, order=True, slots=True)
class Interval:
    """A half-open interval `[start, end)` of instants (law M1)."""

    start: int
    end: int

    def __str__(self) -> str:
        start = "beginning" if self.start <= MIN_INSTANT else format_instant(self.start)
        end = format_instant(min(self.end, MAX_INSTANT))
        return f"[{start}, {end})"


def union(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the same instants as sorted intervals without gap-free neighbours or overlap.

    >>> [(i.start, i.end) for i in union([Interval(5, 7), Interval(0, 5), Interval(9, 9)])]
    [(0, 7)]
    """
    merged: list[Interval] = []
    for interval in sorted(i for i in intervals if i.start < i.end):
        if merged and interval.start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end))
        else:
            merged.append(interval)
    return tuple(merged)


def difference(intervals: Iterable[Interval], without: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the instants of `intervals` that are in none of `without`.

    >>> [(i.start, i.end) for i in difference([Interval(0, 9)], [Interval(3, 5)])]
    [(0, 3), (5, 9)]
    """
    left = list(union(intervals))
    for hole in union(without):
        pieces: list[Interval] = []
        for piece in left:
            if hole.end <= piece.start or piece.end <= hole.start:
                pieces.append(piece)
                continue
            pieces.append(Interval(piece.start, max(piece.start, hole.start)))
            pieces.append(Interval(min(piece.end, hole.end), piece.end))
        left = [p for p in pieces if p.start < p.end]
    return tuple(left)


def covers(intervals: Iterable[Interval], wanted: Iterable[Interval]) -> bool:
    """Whether every instant of `wanted` is in one of `intervals`."""
    return not difference(wanted, intervals)
