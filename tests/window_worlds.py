"""Random worlds of windowed features: definitions, events and deliveries, drawn where things break.

Instants are drawn on the edges of hops, tiles and days, and just beside them; events tie, come
again, are corrected, move in time, are deleted before they are there, come late and ahead of time;
values are null, NaN, infinite, huge, tiny and zeros of both signs. Everything follows from a seed.
"""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass, field
from typing import Any

from featurestore import Aggregate
from featurestore.semantics.reference_windows import Event, Question
from featurestore.semantics.windows import DAY, HOUR, MINUTE, SECOND, make_window

START = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z
_FLOATS = (
    *(0.1, 0.2, 0.3, 1.0, 2.5, -2.5, 1e16, -1e16, 1e-9, 123456.789, -7.25, 0.0, -0.0),
    *(math.nan, math.inf, 5e-324, -5e-324, 1.7e308, -1.7e308, 1e150, 2.0**60, None),
)
_TAME = (0.1, 0.2, 1.0, 2.5, -2.5, 1e6, -1e6, 3.0, 0.0, -0.0, 5.5, None, math.nan)
_INTS = (0, 1, 2, 3, -1, -2, 7, 2**40, -(2**40), 2**53, None)
_TEXTS = ("a", "b", "c", "", "é", "aa", None)
_KEYS = ("x", "y", "z", None)
_NUMERIC = ("sum", "mean", "min", "max", "variance", "stddev", "skew", "kurtosis")
_ORDERED = ("first", "last")
_LISTS = ("first_k", "last_k", "first_distinct", "last_distinct", "top_k", "bottom_k")
_SETS = ("histogram", "count_distinct")
_APPROXIMATE = ("approx_count_distinct", "approx_quantile")
_STEPS = (1, SECOND, MINUTE, 5 * MINUTE, HOUR, DAY)
COLUMNS = ("num", "dbl", "tame", "txt", "lst", "vec", "mp")


@dataclass(frozen=True)
class Feature:
    """A feature as it is declared, and as it is asked of the reference (None: approximate)."""

    name: str
    question: Question | None
    column: str | None
    by: str | None
    where: bool


@dataclass(frozen=True)
class Definition:
    """The aggregates of one view and the questions that are the same."""

    aggregates: list[Aggregate]
    features: list[Feature]


@dataclass
class Version:
    """One version of an event of one key, as a row of the source."""

    key: int
    id: str
    version: int
    instant: int
    created: int
    deleted: bool
    values: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the source's row."""
        return {
            "key": self.key,
            "id": self.id,
            "version": self.version,
            "at": self.instant,
            "learnt": self.created,
            "gone": self.deleted,
            **self.values,
        }


def definition(rng: random.Random, size: int = 12) -> Definition:
    """Return a view's aggregates, `size` of them, with a window or two each."""
    aggregates: list[Aggregate] = []
    features: list[Feature] = []
    for number in range(size):
        arguments, question = _aggregate(rng)
        windows, steps = _windows(rng)
        aggregate = Aggregate(**arguments, **steps, windows=windows, name=f"f{number}")
        aggregates.append(aggregate)
        for name, window in zip(aggregate.names, windows, strict=True):
            counted = make_window(window, **steps)
            asked = None
            if question is not None:
                asked = Question(
                    size=counted.size,
                    hop=counted.hop,
                    head_hop=counted.head_hop,
                    offset=counted.offset,
                    **question,
                )
            features.append(
                Feature(
                    name,
                    asked,
                    arguments.get("column"),
                    arguments.get("by"),
                    "where" in arguments,
                )
            )
    return Definition(aggregates, features)


def _windows(rng: random.Random) -> tuple[list[str], dict[str, Any]]:
    steps: dict[str, Any] = {}
    kind = rng.random()
    if kind < 0.15:
        windows = ["lifetime"]
    elif kind < 0.3:
        windows, steps["hop"] = [rng.choice(["10m", "1h", "1d"])], "1us"
    elif kind < 0.45:
        step = rng.choice(["5m", "1h"])
        windows, steps = [rng.choice(["1h", "2h"])], {"hop": step, "head_hop": step}
    else:
        windows = rng.sample(["90s", "5m", "1h", "6h", "24h", "2d", "12d"], rng.choice([1, 1, 2]))
    if rng.random() < 0.2:
        steps["offset"] = rng.choice(["-1us", "-90s", "-1h", "-1d"])
    return windows, steps


def _aggregate(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the arguments of `Aggregate` and those of `Question`, None for approximate ones."""
    kind = rng.random()
    if kind < 0.08:
        by = "by" if rng.random() < 0.3 else None
        arguments = {"function": "count"} | ({"by": by} if by else {})
        return arguments, {"function": "count", "column": False, "by": bool(by)}
    if kind < 0.16:
        function = rng.choice(["sum", "mean", "min", "max", "count"])
        asked = {"function": function, "element_wise": True}
        return {"function": function, "column": "vec", "element_wise": True}, asked
    if kind < 0.26:
        function = rng.choice([*_NUMERIC[:4], "count", "last"])
        return {"function": function, "column": "mp"}, {"function": function, "kind": "map"}
    if kind < 0.33:
        function = rng.choice(_APPROXIMATE)
        column = rng.choice(["txt", "num"]) if "count" in function else rng.choice(["dbl", "num"])
        return {"function": function, "column": column}, None
    return _plain_aggregate(rng)


def _plain_aggregate(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    function = rng.choice([*_NUMERIC, *_ORDERED, *_LISTS, *_SETS, "count"])
    column = rng.choice(["num", "dbl", "tame", "lst"])
    if function in {*_ORDERED, *_LISTS, *_SETS, "min", "max"} and rng.random() < 0.4:
        column = "txt"
    if function == "histogram":
        column = rng.choice(["num", "txt"])
    if function in {"skew", "kurtosis", "variance", "stddev"} and rng.random() < 0.7:
        column = "tame"
    arguments: dict[str, Any] = {"function": function, "column": column}
    question: dict[str, Any] = {"function": function}
    if function in _LISTS or (function == "histogram" and rng.random() < 0.5):
        arguments["k"] = question["k"] = rng.choice([1, 2, 3, 10])
    if function == "count_distinct" and rng.random() < 0.5:
        arguments["limit"] = question["limit"] = rng.choice([1, 2, 5])
    if function not in {*_LISTS, "histogram"} and rng.random() < 0.25:
        arguments["by"] = "by"
        question["by"] = True
    if rng.random() < 0.15:
        arguments["where"] = "tame > 0"
    question["kind"] = "int" if column == "num" else "float"
    return arguments, question


def versions(rng: random.Random, key: int, events: int, span: int = 3 * DAY) -> list[Version]:
    """Return the versions of a key's events, in the order in which they were learnt."""
    result: list[Version] = []
    for number in range(events):
        instant = _instant(rng, span)
        name = f"e{number}"
        created = instant + _lateness(rng)
        first = Version(key, name, 1, instant, created, deleted=False, values=_values(rng))
        result.append(first)
        for version in range(2, 2 + rng.choice([0, 0, 0, 1, 1, 2])):
            created += rng.choice([1, SECOND, HOUR, 12 * HOUR])
            moved = rng.random() < 0.3
            gone = rng.random() < 0.4
            at = _instant(rng, span) if moved else instant
            result.append(Version(key, name, version, at, created, gone, _values(rng)))
    result.sort(key=lambda v: (v.created, v.id, v.version))
    return result


def _instant(rng: random.Random, span: int) -> int:
    step = rng.choice(_STEPS)
    instant = START + rng.randrange(span) // step * step
    if rng.random() < 0.3:
        instant += rng.choice([-1, 1])
    return instant


def _lateness(rng: random.Random) -> int:
    return rng.choice([0, 0, 1, SECOND, 5 * MINUTE, HOUR, DAY, -SECOND])


def _values(rng: random.Random) -> dict[str, Any]:
    items = [rng.choice(_TAME) for _ in range(rng.choice([0, 1, 2, 3]))]
    pairs = {k: rng.choice(_TAME) for k in rng.sample(["p", "q", "r"], rng.choice([0, 1, 2]))}
    return {
        "num": rng.choice(_INTS),
        "dbl": rng.choice(_FLOATS),
        "tame": rng.choice(_TAME),
        "txt": rng.choice(_TEXTS),
        "lst": None if rng.random() < 0.2 else items,
        "vec": None if rng.random() < 0.3 else [rng.choice([0.5, 1.5, -3.0]) for _ in range(2)],
        "mp": None if rng.random() < 0.2 else pairs,
        "by": rng.choice(_KEYS),
    }


def questions(rng: random.Random, found: list[Version], count: int) -> list[int]:
    """Return instants to ask at: on events, beside them, on edges, and anywhere."""
    chosen = []
    for _ in range(count):
        base = rng.choice(found).instant if found and rng.random() < 0.5 else _instant(rng, 4 * DAY)
        chosen.append(base + rng.choice([0, 1, -1, HOUR, DAY, 90 * SECOND]))
    return sorted(chosen)


def events_of(found: list[Version], feature: Feature) -> list[Event]:
    """Return versions as the reference takes them for one feature."""
    return [
        Event(
            id=v.id,
            version=v.version,
            instant=v.instant,
            created=v.created,
            deleted=v.deleted,
            value=_input(v, feature),
            by=v.values["by"] if feature.by else None,
        )
        for v in found
    ]


def _input(version: Version, feature: Feature) -> Any:
    if feature.where:
        tame = version.values["tame"]
        # In the engine, NaN is larger than every number.
        if tame is None or not (math.isnan(tame) or tame > 0):
            return None
    return True if feature.column is None else version.values[feature.column]


def bits(value: Any) -> Any:
    """Return a value such that equality means equal bits; all NaN are alike."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], tuple):
            return {key: bits(item) for key, item in value}
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return value
