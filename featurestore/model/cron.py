"""Cron expressions of five fields, in UTC: checked when declared, and which minutes they mean.

They mean what crontab(5) says: Sunday is 0 or 7, and when the day of the month and the day of the
week are both restricted (do not begin with `*`), a day that meets either counts. `scheduling` runs
them and `services.status` tells when they are due, from the same `Cron`, so that the two agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SUNDAY = 7
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, _SUNDAY, _DAYS),
)
_PART = re.compile(r"^(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?$")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)
# From one 29 February to the next it can be eight years (1896 to 1904).
_HORIZON_DAYS = 8 * 366 + 31


def check_cron(text: str) -> None:
    """Raise ValueError unless `text` is a cron expression of five fields that is ever due.

    A field is a list of `*`, `a`, `a-b`, each perhaps with a step `/n`; months and days of the week
    may be named.

    >>> check_cron("*/15 6-22 * * mon-fri")
    """
    parse_cron(text)


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed cron expression.

    Attributes:
        minutes: The minutes of the hour, sorted.
        hours: The hours of the day, sorted.
        days: The days of the month.
        months: The months.
        weekdays: The days of the week, Sunday 0.
        either_day: Whether a day counts that meets one of `days` and `weekdays`, rather than both.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    def next_after(self, instant: int) -> int | None:
        """Return the first due instant after `instant` (both in microseconds), None if none comes.

        >>> parse_cron("*/15 * * * *").next_after(0) // 60_000_000
        15
        """
        moment = _EPOCH + timedelta(microseconds=instant)
        for day in self._days(moment.date(), 1):
            for hour in self.hours:
                for minute in self.minutes:
                    due = _at(day, hour, minute)
                    if due > moment:
                        return (due - _EPOCH) // _MICROSECOND
        return None

    def last_at(self, instant: int) -> int | None:
        """Return the last due instant at or before `instant`, None if there was none.

        >>> parse_cron("0 3 * * *").last_at(86_400_000_000) // 3_600_000_000
        3
        """
        moment = _EPOCH + timedelta(microseconds=instant)
        for day in self._days(moment.date(), -1):
            for hour in reversed(self.hours):
                for minute in reversed(self.minutes):
                    due = _at(day, hour, minute)
                    if due <= moment:
                        return (due - _EPOCH) // _MICROSECOND
        return None

    def _days(self, start: date, direction: int) -> Iterator[date]:
        for offset in range(_HORIZON_DAYS):
            try:
                day = start + _DAY * offset * direction
            except OverflowError:  # years 1 and 9999 are the ends of Python's calendar
                return
            if self._is_due(day):
                yield day

    def _is_due(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        by_month, by_week = day.day in self.days, day.isoweekday() % _SUNDAY in self.weekdays
        return by_month or by_week if self.either_day else by_month and by_week


def parse_cron(text: str) -> Cron:
    """Return the schedule that a cron expression of five fields means.

    Raises:
        ValueError: It is no such expression, or its day never comes.
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ValueError("a schedule is a cron expression of five fields, as in '*/15 * * * *'")
    minutes, hours, days, months, weekdays = (
        _values(part, *field) for part, field in zip(parts, _FIELDS, strict=True)
    )
    cron = Cron(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=days,
        months=months,
        weekdays=frozenset(day % _SUNDAY for day in weekdays),
        either_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )
    if cron.next_after(0) is None:
        raise ValueError(f"the schedule '{text}' names a day that no year has")
    return cron


def _values(part: str, label: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    values: set[int] = set()
    for item in part.split(","):
        found = _item(item, low, high, names)
        if found is None:
            allowed = f"{low} to {high}" + (f" or {names[0]} to {names[-1]}" if names else "")
            raise ValueError(f"'{part}' is no {label} of a cron expression ({allowed}, * or */n)")
        values.update(found)
    return frozenset(values)


def _item(item: str, low: int, high: int, names: tuple[str, ...]) -> range | None:
    match = _PART.match(item)
    if not match or match[3] == "0" * len(match[3] or ""):
        return None
    first, last = low, high
    if match[1]:
        start = _number(match[1], low, names)
        end = start if match[2] is None else _number(match[2], low, names)
        if end == 0 and match[2] and names is _DAYS:
            end = _SUNDAY  # "fri-sun"
        if start is None or end is None or not low <= start <= end <= high:
            return None
        # "5/15" is "5-59/15", as cron implementations have it.
        first, last = start, high if match[3] and match[2] is None else end
    return range(first, last + 1, int(match[3] or 1))


def _number(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.lower() in names:
        return names.index(text.lower()) + low
    return int(text) if text.isdecimal() else None


def _at(day: date, hour: int, minute: int) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
