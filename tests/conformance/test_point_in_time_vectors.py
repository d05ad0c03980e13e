"""`vectors/point_in_time.json` through the public API: offline, and online in every store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import AsOfBeforeRowError
from tests.conformance.repository import CaseView, Repository, instant, same

CASES = json.loads((Path(__file__).parent / "vectors" / "point_in_time.json").read_text())["cases"]


def _type_of(values: list[Any]) -> str:
    found = {type(value) for value in values if value is not None}
    return {int: "int64", str: "string", float: "float64"}[found.pop()] if found else "int64"


def _view(case: dict[str, Any]) -> CaseView:
    rows = [*case["source_rows"], *case["entity_rows"]]
    online = [query["key"] for query in case.get("online", [])]
    return CaseView(
        name="view",
        join_keys={k: _type_of([r.get(k) for r in [*rows, *online]]) for k in case["join_keys"]},
        features={f: _type_of([r.get(f) for r in case["source_rows"]]) for f in case["features"]},
        ttl_us=case["ttl_us"],
        created=any("created_timestamp_us" in row for row in case["source_rows"]),
    )


def _rows(case: dict[str, Any], order: str) -> list[dict[str, Any]]:
    rows = [
        {
            **{k: v for k, v in row.items() if not k.endswith("_us")},
            "event_timestamp": instant(row["event_timestamp_us"]),
            "created": instant(row.get("created_timestamp_us")),
        }
        for row in case["source_rows"]
    ]
    return rows if order == "as listed" else rows[::-1]


def _repository(case: dict[str, Any], order: str, folder: Path, online: str) -> Repository:
    repository = Repository(folder, online)
    view = _view(case)
    rows = _rows(case, order)
    for row in rows:
        if not view.created:
            row.pop("created")
    repository.define(view)
    if order == "in several files":
        repository.append(view, [], rewrite=False)
        for row in rows:
            repository.append(view, [row], rewrite=False)
    else:
        repository.append(view, rows, rewrite=True)
    repository.store.apply()
    if order == "in several runs" and rows:
        middle = sorted(row["event_timestamp"] for row in rows)[len(rows) // 2]
        repository.store.materialize("1900-01-01T00:00:00Z", middle)
        repository.store.materialize_incremental()
    repository.materialize_everything()
    return repository


def _entity_rows(case: dict[str, Any], view: CaseView) -> pa.Table:
    extra = [k for row in case["entity_rows"] for k in row]
    names = list(dict.fromkeys([*view.join_keys, *(k for k in extra if not k.endswith("_us"))]))
    columns: dict[str, Any] = {
        name: [row.get(name) for row in case["entity_rows"]] for name in names
    }
    for name, dtype in view.join_keys.items():
        arrow = {"int64": pa.int64(), "string": pa.string()}[dtype]
        columns[name] = pa.array(columns[name], type=arrow)
    columns["event_timestamp"] = pa.array(
        [instant(row["event_timestamp_us"]) for row in case["entity_rows"]],
        type=pa.timestamp("us", tz="UTC"),
    )
    return pa.table(columns)


@pytest.mark.parametrize("order", ["as listed", "reversed", "in several files", "in several runs"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_offline(case: dict[str, Any], order: str, tmp_path: Path) -> None:
    repository = _repository(case, order, tmp_path, "memory:")
    entity_rows = _entity_rows(case, repository.views["view"])
    references = [f"view:{feature}" for feature in case["features"]]
    result = repository.store.get_historical_features(
        entity_rows, references, knowledge=case.get("knowledge", "healed")
    ).to_arrow()
    assert result.column_names == [*entity_rows.column_names, *case["features"]]
    found = [[row[f] for f in case["features"]] for row in result.to_pylist()]
    assert found == case["expected"]
    assert result.select(entity_rows.column_names).equals(entity_rows)


@pytest.mark.parametrize("case", [c for c in CASES if "online" in c], ids=lambda case: case["id"])
def test_online(case: dict[str, Any], online_url: str, tmp_path: Path) -> None:
    store = _repository(case, "as listed", tmp_path, online_url).store
    references = [f"view:{feature}" for feature in case["features"]]
    for query, expected in zip(case["online"], case["expected_online"], strict=True):
        response = store.get_online_features(
            references, [query["key"]], as_of=instant(query["as_of_us"])
        )
        values = response.to_dict()
        found = [[values[f][0], response.statuses[f][0]] for f in case["features"]]
        assert found == expected


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.get("knowledge", "healed") == "healed"], ids=lambda c: c["id"]
)
def test_online_equals_offline_wherever_it_can_answer(
    case: dict[str, Any], online_url: str, tmp_path: Path
) -> None:
    """Law V1: for each entity row, online gives what offline gives, or refuses by name."""
    repository = _repository(case, "as listed", tmp_path, online_url)
    now = repository.store.services.clock.now_us()
    references = [f"view:{feature}" for feature in case["features"]]
    for row, expected in zip(case["entity_rows"], case["expected"], strict=True):
        key = {name: row[name] for name in case["join_keys"]}
        pushed = [
            source["event_timestamp_us"]
            for source in case["source_rows"]
            if all(source[k] == v and v is not None for k, v in key.items())
            and source["event_timestamp_us"] <= now
        ]
        as_of = row["event_timestamp_us"]
        if pushed and max(pushed) > as_of:
            with pytest.raises(AsOfBeforeRowError):
                repository.store.get_online_features(references, [key], as_of=instant(as_of))
        elif as_of <= now:
            response = repository.store.get_online_features(references, [key], as_of=instant(as_of))
            found = [response.to_dict()[f][0] for f in case["features"]]
            assert all(same(a, b) for a, b in zip(found, expected, strict=True))
