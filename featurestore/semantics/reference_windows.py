"""Windowed aggregates as slowly and plainly as they can be written: they decide (laws W1-W6).

Every plan, store and stream is compared with `value`: it looks at all events for each question,
adds fractions, and sorts lists. Nothing is shared with the vectorized code but the law's words. Not
for use on more than some thousand events. Approximate functions are not here: their own tests bound
their errors.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

Knowledge = Literal["healed", "known"]


@dataclass(frozen=True)
class Event:
    """One version of an event.

    Attributes:
        id: Tells the event from others of its key.
        version: The highest counts.
        instant: When it happened, microseconds.
        created: When it was learnt; None is never.
        deleted: Whether this version takes the event away.
        value: What is aggregated; anything for a count without a column.
        by: The second-level key.
        rank: Settles a full tie of versions, the larger wins: the canonical bytes.
    """

    id: str
    version: int
    instant: int
    created: int | None = None
    deleted: bool = False
    value: Any = None
    by: Any = None
    rank: bytes = b""


@dataclass(frozen=True)
class Question:
    """A function and a window; see `AggregateSpec` and `Window` for the meaning of each."""

    function: str
    size: int | None
    hop: int = 1
    head_hop: int = 1
    offset: int = 0
    column: bool = True
    by: bool = False
    k: int | None = None
    limit: int | None = None
    element_wise: bool = False
    kind: str = "float"


def live(events: Iterable[Event], asked: int, knowledge: Knowledge = "healed") -> list[Event]:
    """Return the events that are there: the highest version of each, deletions taken out (W1)."""
    best: dict[str, Event] = {}
    for event in events:
        if knowledge == "known" and (event.created is None or not event.created < asked):
            continue
        held = best.get(event.id)
        if held is None or (event.version, event.rank) > (held.version, held.rank):
            best[event.id] = event
    return [event for event in best.values() if not event.deleted]


def value(
    events: Iterable[Event], question: Question, asked: int, knowledge: Knowledge = "healed"
) -> Any:
    """Return the value of a windowed feature at an instant, before its default."""
    head = asked + question.offset
    last = head // question.head_hop * question.head_hop
    inside = [e for e in live(events, asked, knowledge) if e.instant < last]
    if question.size is not None:
        first = (head - question.size) // question.hop * question.hop
        inside = [e for e in inside if first <= e.instant]
    inside.sort(key=lambda e: (e.instant, e.id.encode()))
    return _grouped(inside, question)


def _grouped(events: Sequence[Event], question: Question) -> Any:
    """Split by the second-level key, by map key or by position; then aggregate each part."""
    if not question.column:
        events = [replace(e, value=True) for e in events]
    given = [(e.by, e.value) for e in events if e.value is not None]
    if question.by:
        flat = [(by, item) for by, held in given if by is not None for item in _items(held)]
        return _each(flat, question)
    values = [held for _, held in given]
    if any(isinstance(held, dict) for held in values) or question.kind == "map":
        flat = [(key, item) for held in values for key, item in held.items()]
        return _each(flat, question)
    if question.element_wise:
        if not values:
            return None
        width = max(len(held) for held in values)
        columns = [[held[i] for held in values if i < len(held)] for i in range(width)]
        return [_aggregate(_clean(column), question) for column in columns]
    return _aggregate(_clean([item for held in values for item in _items(held)]), question)


def _each(pairs: Sequence[tuple[Hashable, Any]], question: Question) -> dict[Hashable, Any]:
    kept = [(key, item) for key, item in pairs if _clean([item])]
    keys = sorted({key for key, _ in kept}, key=lambda k: (str(type(k)), k))
    return {key: _aggregate([i for k, i in kept if k == key], question) for key in keys}


def _items(held: Any) -> list[Any]:
    return held if isinstance(held, list) else [held]


def _clean(values: Sequence[Any]) -> list[Any]:
    """Leave out nulls and NaN (W6)."""
    return [v for v in values if v is not None and not (isinstance(v, float) and math.isnan(v))]


def _aggregate(values: list[Any], question: Question) -> Any:
    name = question.function
    if name == "count":
        return len(values)
    if name in {"sum", "mean"}:
        return _sum(values, question) if name == "sum" else _mean(values)
    if name in {"variance", "stddev", "skew", "kurtosis"}:
        return _moments(values, name)
    return (
        _by_order(values, question)
        if "first" in name or "last" in name
        else _by_value(values, question)
    )


def _by_order(values: list[Any], question: Question) -> Any:
    """What depends on the order of events; `values` are in it (W4)."""
    name, k = question.function, question.k
    if name in {"first", "last"}:
        return (values[0] if name == "first" else values[-1]) if values else None
    ordered = values if name.startswith("first") else values[::-1]
    if name.endswith("_k"):
        return ordered[:k]
    return list(dict.fromkeys(_plain(ordered)))[:k]


def _by_value(values: list[Any], question: Question) -> Any:
    """What depends on the values alone; zeros of both signs are one value."""
    name, k, plain = question.function, question.k, _plain(values)
    if name in {"min", "max"}:
        return (min(plain) if name == "min" else max(plain)) if plain else None
    if name in {"top_k", "bottom_k"}:
        return sorted(plain, reverse=name == "top_k")[:k]
    if name == "histogram":
        counts = {v: plain.count(v) for v in plain}
        kept = sorted(counts, key=lambda v: (-counts[v], v))[:k] if k else list(counts)
        return {v: counts[v] for v in sorted(kept)}
    if name == "count_distinct":
        return min(len(set(plain)), question.limit or len(plain))
    raise ValueError(name)


def _plain(values: Iterable[Any]) -> list[Any]:
    return [0.0 if isinstance(v, float) and v == 0 else v for v in values]


def _sum(values: list[Any], question: Question) -> Any:
    if not values:
        return None
    if question.kind == "int":
        return sum(values)
    return _rounded(values, 1)


def _mean(values: list[Any]) -> float | None:
    return _rounded(values, len(values)) if values else None


def _rounded(values: list[Any], count: int) -> float | None:
    """Return sum / count, rounded once; infinities as IEEE has them, both of them being null."""
    infinite = {v for v in values if isinstance(v, float) and math.isinf(v)}
    if infinite:
        return infinite.pop() if len(infinite) == 1 else None
    return _to_float(sum((Fraction(v) for v in values), Fraction()) / count)


def _to_float(exact: Fraction) -> float:
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def _moments(values: list[Any], name: str) -> float | None:
    count = len(values)
    least = {"variance": 1, "stddev": 1, "skew": 3, "kurtosis": 4}[name]
    if count < least or any(isinstance(v, float) and math.isinf(v) for v in values):
        return None
    mean = sum((Fraction(v) for v in values), Fraction()) / count

    def central(order: int) -> Fraction:
        return sum(((Fraction(v) - mean) ** order for v in values), Fraction()) / count

    second = central(2)
    if name in {"variance", "stddev"}:
        rounded = _to_float(second)
        return math.sqrt(rounded) if name == "stddev" else rounded
    if second == 0:
        return None
    # Ratios of moments have no scale; halving the values until m2 is near 1 lets none overflow.
    half = Fraction(2) ** ((second.numerator.bit_length() - second.denominator.bit_length()) // 2)
    spread = _to_float(second / half**2)
    if name == "skew":
        return _to_float(central(3) / half**3) / (spread * math.sqrt(spread))
    return _to_float(central(4) / half**4) / (spread * spread) - 3.0
