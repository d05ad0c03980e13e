"""`vectors/conformance.json` through the public API: retrieval offline, steps in every store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import FeatureNotFoundError, NameClashError
from tests.conformance.repository import CaseView, Repository, decode, instant, same, unique

_FILE = Path(__file__).parent / "vectors" / "conformance.json"
CASES = json.loads(_FILE.read_text())["cases"]
OFFLINE = [case for case in CASES if case["kind"] == "offline_pit"]
ONLINE = [case for case in CASES if case["kind"] == "online"]
_TYPES = {"timestamp_us": "timestamp"}
_STATUSES = {"present": "PRESENT", "null": "NULL_VALUE", "not_found": "NOT_FOUND"}


def test_every_case_has_a_known_kind() -> None:
    assert len(OFFLINE) + len(ONLINE) == len(CASES)


def _view(view: dict[str, Any], rows: list[Any]) -> CaseView:
    mapping = view.get("rename_columns", {})
    back = {new: old for old, new in mapping.items()}

    def key_type(name: str) -> str:
        values = [row.get(back.get(name, name)) for row in rows]
        return "string" if any(isinstance(value, str) for value in values) else "int64"

    return CaseView(
        name=view["name"],
        join_keys={key: key_type(key) for key in view["join_keys"]},
        features={name: _TYPES.get(t, t) for name, t in view["features"].items()},
        # The cases read a ttl of 0 as unlimited; a declaration refuses it.
        ttl_us=view["ttl_us"] or None,
        created=view["created_column"] is not None,
        mapping=mapping,
    )


def _source_rows(view: dict[str, Any], case_view: CaseView, rows: list[Any]) -> list[Any]:
    types = {**case_view.join_keys, **case_view.features}
    result = []
    for row in rows:
        decoded = {
            name: decode(value, types.get(case_view.mapping.get(name, name), "string"))
            for name, value in row.items()
            if name not in {view["timestamp_column"], view["created_column"]}
        }
        decoded["event_timestamp"] = instant(row[view["timestamp_column"]])
        if case_view.created:
            decoded["created"] = instant(row[view["created_column"]])
        result.append(decoded)
    return result


def _entity_table(case: dict[str, Any]) -> pa.Table:
    time = case["entity_timestamp_column"]
    names = list(dict.fromkeys(name for row in case["entity_rows"] for name in row))
    columns: dict[str, Any] = {n: [row.get(n) for row in case["entity_rows"]] for n in names}
    columns[time] = pa.array(
        [instant(value) for value in columns[time]], type=pa.timestamp("us", tz="UTC")
    )
    return pa.table(columns)


def _offline_store(case: dict[str, Any], folder: Path) -> Repository:
    repository = Repository(folder, "memory:")
    views = [_view(view, view["rows"]) for view in case["views"]]
    repository.define(*views)
    for view, case_view in zip(case["views"], views, strict=True):
        rows = _source_rows(view, case_view, view["rows"])
        repository.append(case_view, rows, rewrite=True)
    repository.store.apply()
    repository.materialize_everything()
    return repository


def _features(case: dict[str, Any], repository: Repository) -> list[Any]:
    aliases = {alias["alias"]: alias for alias in case["options"].get("aliases", [])}
    if not aliases:
        return list(case["request"])
    definitions = repository.store.services.declarations()
    views = {view.name: view for view in definitions.views}
    result = []
    for reference in case["request"]:
        name, feature = reference.split(":")
        alias = aliases[name]
        result.append(views[alias["view"]].alias(name, join_keys=alias["key_map"])[feature])
    return result


@pytest.mark.parametrize("case", OFFLINE, ids=lambda case: case["id"])
def test_offline(case: dict[str, Any], tmp_path: Path) -> None:
    repository = _offline_store(case, tmp_path)
    options = case["options"]
    arguments = {
        "timestamp_column": case["entity_timestamp_column"],
        "knowledge": "known" if options.get("as_known_at_entity_time") else "healed",
        "full_feature_names": options.get("full_feature_names", False),
    }
    features = _features(case, repository)
    entity_rows = _entity_table(case)
    # F44 is not normative: here a clash with a column of the entity rows is always an error.
    if case.get("expected_error") == "name collision" or case["id"] == "F44":
        with pytest.raises(NameClashError):
            repository.store.get_historical_features(entity_rows, features, **arguments)
        return
    result = repository.store.get_historical_features(entity_rows, features, **arguments).to_arrow()
    types = {n: _TYPES.get(t, t) for view in case["views"] for n, t in view["features"].items()}
    assert result.num_rows == len(case["expected"])
    for row, expected in zip(result.to_pylist(), case["expected"], strict=True):
        for name, value in expected.items():
            dtype = types.get(name.rpartition("__")[2], "")
            if isinstance(value, dict) and "any_of" in value:
                assert row[name] in value["any_of"]
            else:
                assert same(row[name], decode(value, dtype)), name


class _Steps:
    """Runs the steps of an online case; each project is a repository of its own."""

    def __init__(self, case: dict[str, Any], folder: Path, url: str, *, rewrite: bool) -> None:
        self.case = case
        self.folder = folder
        self.url = url
        self.rewrite = rewrite
        self.repositories: dict[str, Repository] = {}
        rows = [r for s in case["steps"] if s["op"] == "append_source" for r in s["rows"]]
        self.rows = rows
        self.suffix = unique("")

    def repository(self, step: dict[str, Any]) -> Repository:
        project = step.get("project", "vectors")
        if project not in self.repositories:
            # "p" stays a suffix of "app".
            made = Repository(self.folder / project, self.url, project + self.suffix)
            made.define(_view(self.case["view"], self.rows))
            self.repositories[project] = made
        return self.repositories[project]

    def run(self, step: dict[str, Any]) -> None:
        getattr(self, step["op"])(step)

    def append_source(self, step: dict[str, Any]) -> None:
        repository = self.repository(step)
        view = repository.views["v"]
        rows = _source_rows(self.case["view"], view, step["rows"])
        first = not view.rows
        repository.append(view, rows, rewrite=self.rewrite)
        if first:
            repository.store.apply()

    def write_online(self, step: dict[str, Any]) -> None:
        self.append_source(step)
        self.repository(step).store.materialize_incremental()

    def materialize(self, step: dict[str, Any]) -> None:
        self.repository(step).store.materialize(step["start"], step["end"])

    def materialize_incremental(self, step: dict[str, Any]) -> None:
        self.repository(step).store.materialize_incremental(step["end"])

    def add_feature(self, step: dict[str, Any]) -> None:
        repository = self.repository(step)
        view = repository.views["v"]
        view.features = {**view.features, **step["feature"]}
        repository.define(view)
        repository.store.apply()

    def delete_view(self, step: dict[str, Any]) -> None:
        repository = self.repository(step)
        repository.define()
        repository.store.apply(allow_destructive=True)

    def read(self, step: dict[str, Any]) -> None:
        repository = self.repository(step)
        (key,) = self.case["view"]["join_keys"]
        view = repository.views.get("v") or _view(self.case["view"], self.rows)
        references = [f"v:{name}" for name in view.features]
        arrow = pa.string() if view.join_keys[key] == "string" else pa.int64()
        keys = pa.table({key: pa.array(step["entities"], type=arrow)})
        as_of = instant(step.get("at"))
        if "expected_error" in step:
            with pytest.raises(FeatureNotFoundError):
                repository.store.get_online_features(references, keys, as_of=as_of)
            return
        response = repository.store.get_online_features(references, keys, as_of=as_of)
        columns = response.to_dict()
        for index, expected in enumerate(step["expected"]):
            for name, value in expected.items():
                wanted = decode(value, view.features[name])
                assert same(columns[name][index], wanted), (name, index)
        statuses = [_STATUSES[s] for s in step.get("statuses", [])]
        if step.get("status") == "expired":
            statuses = ["OUTSIDE_MAX_AGE"]
        for name in view.features:
            if statuses:
                assert response.statuses[name] == statuses


@pytest.mark.parametrize("rewrite", [True, False], ids=["file rewritten", "file added"])
@pytest.mark.parametrize("case", ONLINE, ids=lambda case: case["id"])
def test_online(case: dict[str, Any], rewrite: bool, online_url: str, tmp_path: Path) -> None:  # noqa: FBT001
    steps = _Steps(case, tmp_path, online_url, rewrite=rewrite)
    for step in case["steps"]:
        steps.run(step)
