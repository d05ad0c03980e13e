"""Cron expressions of five fields, checked when they are declared; `scheduling` runs them."""

from __future__ import annotations

import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_PART = re.compile(r"^(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?$")


def check_cron(text: str) -> None:
    """Raise ValueError unless `text` is a cron expression of five fields.

    A field is a list of `*`, `a`, `a-b`, each perhaps with a step `/n`; months and days of the week
    may be named.

    >>> check_cron("*/15 6-22 * * mon-fri")
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ValueError("a schedule is a cron expression of five fields, as in '*/15 * * * *'")
    for part, (label, low, high, names) in zip(parts, _FIELDS, strict=True):
        if not all(_is_valid(item, low, high, names) for item in part.split(",")):
            allowed = f"{low} to {high}" + (f" or {names[0]} to {names[-1]}" if names else "")
            raise ValueError(f"'{part}' is no {label} of a cron expression ({allowed}, * or */n)")


def _is_valid(item: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    match = _PART.match(item)
    if not match or match[3] == "0" * len(match[3] or ""):
        return False
    values = [_number(text, low, names) for text in (match[1], match[2]) if text]
    return all(v is not None and low <= v <= high for v in values) and (
        len(values) < 2 or (values[0] or 0) <= (values[1] or 0)  # noqa: PLR2004
    )


def _number(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.lower() in names:
        return names.index(text.lower()) + low
    return int(text) if text.isdecimal() else None
