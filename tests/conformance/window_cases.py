"""The cases of `vectors/windows.json` as repositories with one view."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conformance.repository import instant, unique

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "windows.json").read_text(encoding="utf-8")
)["cases"]
INSTANT = pa.timestamp("us", tz="UTC")
_TYPES = {
    "num": pa.int64(),
    "dbl": pa.float64(),
    "s": pa.string(),
    "b": pa.string(),
    "lst": pa.list_(pa.float64()),
    "m": pa.map_(pa.string(), pa.float64()),
    "vec": pa.list_(pa.float64()),
}
KEY = "it"


def _duration(microseconds: int) -> str:
    return f"{'-' if microseconds < 0 else ''}{abs(microseconds)}us"


def _aggregate(number: int, aggregation: dict[str, Any]) -> str:
    window = aggregation["window_us"]
    arguments: dict[str, Any] = {
        "column": aggregation["column"],
        "windows": ["lifetime" if window is None else _duration(window)],
        "name": f"f{number}",
        **aggregation.get("params", {}),
    }
    hops = {"tail_hop_us": "hop", "head_hop_us": "head_hop", "offset_us": "offset"}
    for given, argument in hops.items():
        if aggregation.get(given):
            arguments[argument] = _duration(aggregation[given])
    for argument in ("by", "element_wise"):
        if argument in aggregation:
            arguments[argument] = aggregation[argument]
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"Aggregate({aggregation['function']!r}, {listed})"


def write(
    cases: Sequence[dict[str, Any]], folder: Path, online: str = "memory:", stream: str = ""
) -> None:
    """Write a repository with a view for each case, named after it, over a file of its own.

    Args:
        cases: The cases.
        folder: Where to write.
        online: The online store's URL.
        stream: Begins the URLs of streams, `live_{case}`; the files are empty then.
    """
    lines = [
        "from featurestore import Aggregate, Entity, FeatureView, FileSource, StreamSource",
        "entity = Entity(name='entity', join_keys=['key'])",
    ]
    for case in cases:
        name, table = case["id"], events_table(case)
        source = "event_id='event_id', version='version', deleted='deleted'"
        if "created" in table.column_names:
            source += ", created_timestamp='created'"
        listed = ", ".join(_aggregate(i, each) for i, each in enumerate(case["aggregations"]))
        lines.append(
            f"file_{name} = FileSource(name='file_{name}', path='{name}.parquet',"
            f" event_timestamp='ts', {source})"
        )
        if stream:
            lines.append(
                f"live_{name} = StreamSource(name='live_{name}', batch=file_{name},"
                f" stream='{stream}-{name}')"
            )
        fed_by = f"{'live' if stream else 'file'}_{name}"
        lines.append(
            f"{name} = FeatureView(name='{name}', entities=[entity], source={fed_by},"
            f" features=[{listed}])"
        )
        pq.write_table(table.slice(0, 0) if stream else table, folder / f"{name}.parquet")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "cases.py").write_text("\n".join(lines), encoding="utf-8")
    (folder / "featurestore.toml").write_text(
        f'project = "{unique("windows")}"\n[online]\nurl = "{online}"\n'
    )


def events_table(case: dict[str, Any]) -> pa.Table:
    """Return the events of a case, versions in the order in which they arrived."""
    events = case["events"]
    created = any("created_timestamp_us" in event for event in events)
    columns = {
        "key": pa.array([KEY] * len(events)),
        "ts": pa.array([instant(e["event_timestamp_us"]) for e in events], INSTANT),
        "event_id": pa.array([e["event_id"] for e in events]),
        "version": pa.array(range(len(events)), pa.int64()),
        "deleted": pa.array([e.get("deleted", False) for e in events]),
    }
    if created:
        learnt = [instant(e.get("created_timestamp_us")) for e in events]
        columns["created"] = pa.array(learnt, INSTANT)
    for name, kind in _TYPES.items():
        values = [e.get(name) for e in events]
        if pa.types.is_map(kind):
            values = [None if v is None else list(v.items()) for v in values]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def same(got: Any, expected: Any) -> bool:
    """Whether a value is the expected one: floats to 1e-12, all else exactly."""
    if isinstance(got, float) and isinstance(expected, float | int):
        return math.isclose(got, expected, rel_tol=1e-12)
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    return type(got) is type(expected) and bool(got == expected)
