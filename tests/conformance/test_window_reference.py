"""The reference of windowed aggregates against cases written by hand (laws W1-W6)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from featurestore.semantics.reference_windows import Event, Question, value

_FILE = Path(__file__).parent / "vectors" / "windows.json"
CASES: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))["cases"]
# An approximate count of a few values is exact.
_EXACT = {"approx_count_distinct": "count_distinct"}
_KINDS = {"num": "int", "m": "map"}


def _event(position: int, event: dict[str, Any], aggregation: dict[str, Any]) -> Event:
    return Event(
        id=event["event_id"],
        version=position,
        instant=event["event_timestamp_us"],
        created=event.get("created_timestamp_us", event["event_timestamp_us"]),
        deleted=event.get("deleted", False),
        value=event.get(aggregation["column"]),
        by=event.get(aggregation.get("by", "")),
    )


def _question(aggregation: dict[str, Any]) -> Question:
    params = aggregation.get("params", {})
    function = aggregation["function"]
    return Question(
        _EXACT.get(function, function),
        aggregation["window_us"],
        aggregation.get("tail_hop_us") or 1,
        aggregation.get("head_hop_us") or 1,
        aggregation.get("offset_us", 0),
        by="by" in aggregation,
        k=params.get("k"),
        limit=params.get("limit"),
        element_wise=aggregation.get("element_wise", False),
        kind=_KINDS.get(aggregation["column"], "float"),
    )


def _same(got: Any, expected: Any) -> bool:
    if isinstance(got, float) and isinstance(expected, float | int):
        return math.isclose(got, expected, rel_tol=1e-12)
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_same(got[k], expected[k]) for k in got)
    return bool(got == expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_reference(case: dict[str, Any]) -> None:
    """Every expected value, both kinds of knowledge."""
    compared = 0
    for knowledge, expected in case["expected"].items():
        for asked, row in zip(case["queries_us"], expected, strict=True):
            for aggregation, wanted in zip(case["aggregations"], row, strict=True):
                events = [_event(i, e, aggregation) for i, e in enumerate(case["events"])]
                got = value(events, _question(aggregation), asked, knowledge)
                assert _same(got, wanted), (aggregation, asked, knowledge, got, wanted)
                compared += 1
    assert compared
