"""What a command gives back: data for machines, and blocks of text for people that say the same.

Plain values; nothing is printed here. `plain` makes JSON of everything that a feature store holds:
instants as ISO 8601 with Z, bytes as base64, and the numbers that JSON lacks by their names.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal

Style = Literal["plain", "heading", "good", "warning", "bad", "faint"]


@dataclass(frozen=True)
class Cell:
    """A text with a style, inside of a table or a line of its own."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True)
class Table:
    """Rows under column headings.

    Attributes:
        columns: The headings; ">" before one aligns it to the right, "~" lets it be wrapped.
        rows: One text or cell a column.
        empty: What to say when there are no rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    empty: str = "(none)"


@dataclass(frozen=True)
class Facts:
    """Labels and what they stand for, aligned."""

    pairs: Sequence[tuple[str, str | Cell]]


Block = Cell | Table | Facts


@dataclass(frozen=True)
class Output:
    """The result of a command.

    Attributes:
        data: What `--output json` prints, once made plain.
        blocks: What `--output text` prints, one below the other.
        exit_code: How the command ends.
    """

    data: Mapping[str, Any]
    blocks: Sequence[Block] = field(default=())
    exit_code: int = 0


def plain(value: Any) -> Any:
    """Return a value as JSON has it.

    >>> plain({"at": datetime(2013, 1, 31, tzinfo=UTC), "x": float("nan")})
    {'at': '2013-01-31T00:00:00Z', 'x': 'NaN'}
    """
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | AbstractSet):
        return [plain(item) for item in value]
    return _plain_scalar(value)


def _key(key: Any) -> str:
    """Return the key of a map as text, which is all that JSON knows for keys."""
    shown = _plain_scalar(key)
    return str(shown).lower() if isinstance(shown, bool) else str(shown)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "row"), count(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Return a duration in its largest unit, with the next one where there are few of it.

    >>> duration(3725), duration(0.25), duration(86400), duration(1000)
    ('1 h 2 min', '0.25 s', '1 d', '16 min')
    """
    if abs(seconds) < 10:  # noqa: PLR2004
        return f"{seconds:.2g} s"
    left = round(abs(seconds))
    parts: list[tuple[int, str]] = []
    for unit, size in _UNITS:
        if left >= size or parts:
            parts.append((left // size, unit))
            left %= size
    kept = parts[: 1 if parts[0][0] >= 10 else 2]  # noqa: PLR2004
    shown = " ".join(f"{number} {unit}" for number, unit in kept if number)
    return f"-{shown}" if seconds < 0 else shown
