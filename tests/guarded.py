"""A repository that asks for API keys: made once, copied for each test, and opened by any key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from featurestore.access.keys import KeyFile
from featurestore.clock import Clock, SystemClock

AT = datetime(2024, 5, 1, 11, tzinfo=UTC)
AS_OF = "2024-05-02T00:00:00Z"
KEY_OF_ENTITY = 987_654_321_234
DEFINITIONS = '''
"""Users, what they pay, and what they click."""

import polars as pl

from featurestore import (
    Entity, FeatureService, FeatureView, Field, FileSource, StreamSource, on_demand_feature_view,
)

user = Entity(name="user", join_keys=["user"])
files = FileSource(name="files", path="clicks/*.parquet", event_timestamp="at",
                   created_timestamp="seen")
clicks = StreamSource(name="clicks", batch=files, stream="lmdb:data/stream/clicks", event_id="id")
users = FeatureView(name="users", entities=[user], features=["score"], schedule="0 0 1 1 *",
                    source=FileSource(name="scores", path="scores.parquet", event_timestamp="at"))
pays = FeatureView(name="pays", entities=[user], features=["amount"],
                   source=FileSource(name="bills", path="bills.parquet", event_timestamp="at"))
last = FeatureView(name="last", entities=[user], source=clicks, features=["note"])

@on_demand_feature_view(sources=[users["score"]], features=[Field(name="twice", dtype="float64")])
def doubled(inputs: pl.DataFrame) -> pl.DataFrame:
    """The score twice."""
    return inputs.select(twice=pl.col("score") * 2)

ranking = FeatureService(name="ranking", features=[users, doubled])
billing = FeatureService(name="billing", features=[pays])
'''
SETTINGS = """
project = "shop"
[offline]
workers = 1
threads = 1
[streams]
poll_seconds = 0.01
flush_seconds = 0.05
log_seconds = 0.1
[serving]
refresh_seconds = 0.0
"""
ACCESS = """
[access]
keys_file = "keys/keys.json"
audit_log = "audit.jsonl"
"""
_INSTANT = pa.timestamp("us", tz="UTC")


class Guarded:
    """A repository whose definitions are applied and materialized.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.definitions = folder / "definitions" / "all.py"

    @classmethod
    def make(cls, folder: Path) -> Guarded:
        """Write a new one, which asks nobody yet."""
        for name in ("definitions", "clicks"):
            (folder / name).mkdir(parents=True)
        made = cls(folder)
        made.definitions.write_text(DEFINITIONS, encoding="utf-8")
        (folder / "featurestore.toml").write_text(SETTINGS, encoding="utf-8")
        users = [1, KEY_OF_ENTITY]
        at = pa.array([AT, AT], _INSTANT)
        for name, column in (("scores", "score"), ("bills", "amount")):
            pq.write_table(
                pa.table({"user": users, "at": at, column: [0.5, 1.5]}), folder / f"{name}.parquet"
            )
        clicks = {"id": ["a"], "user": [1], "at": at[:1], "seen": at[:1], "note": ["planted note"]}
        pq.write_table(pa.table(clicks), folder / "clicks" / "a.parquet")
        with FeatureStore(folder) as store:
            store.apply()
            store.materialize_incremental()
        return made

    def copy(self, folder: Path) -> Guarded:
        """Return a copy that asks for keys."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        with (folder / "featurestore.toml").open("a", encoding="utf-8") as file:
            file.write(ACCESS)
        return Guarded(folder)

    def keys(self, clock: Clock | None = None) -> KeyFile:
        """Return the file of its keys."""
        return KeyFile(self.folder / "keys" / "keys.json", clock or SystemClock())

    def key(self, *scopes: str) -> str:
        """Return a new key with these scopes."""
        return self.keys().create("tests", scopes)[0]

    def open(self, *scopes: str) -> FeatureStore:
        """Open it by a new key."""
        return FeatureStore(self.folder, api_key=self.key(*scopes))

    def audit(self) -> list[dict[str, Any]]:
        """Return the lines of the audit, of stores that were closed."""
        path = self.folder / "audit.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def click(self, name: str) -> dict[str, Any]:
        """Return an event."""
        return {"id": name, "user": KEY_OF_ENTITY, "at": AT, "note": "planted note"}


def entity_rows(*users: int) -> pa.Table:
    """Return entity rows at one instant."""
    at = pa.array([datetime(2024, 5, 2, tzinfo=UTC)] * len(users), _INSTANT)
    return pa.table({"user": list(users), "event_timestamp": at})


def training(store: FeatureStore, features: Any, **options: Any) -> dict[str, list[Any]]:
    """Return a training set's columns."""
    rows = entity_rows(1, KEY_OF_ENTITY)
    return store.get_historical_features(rows, features, **options).to_arrow().to_pydict()


Verb = Callable[[FeatureStore], Any]
# Each verb as (name, a call of it, a scope that allows it and nothing more than it takes).
VERBS: list[tuple[str, Verb, str]] = [
    ("teardown", lambda s: s.teardown(), "apply:shop"),
    ("materialize", lambda s: s.materialize(AT, AS_OF, ["users"]), "write:shop/view/users"),
    ("materialize", lambda s: s.materialize(AT, AS_OF), "write:shop/view/*"),
    (
        "materialize_incremental",
        lambda s: s.materialize_incremental(views=["pays"]),
        "write:shop/view/pays",
    ),
    ("materialize_incremental", lambda s: s.materialize_incremental(), "write:shop/view/*"),
    ("push", lambda s: s.push("clicks", [_CLICK]), "write:shop/source/clicks"),
    (
        "get_historical_features",
        lambda s: training(s, "ranking"),
        "read_offline:shop/service/ranking",
    ),
    (
        "get_historical_features",
        lambda s: training(s, ["users:score"]),
        "read_offline:shop/view/users",
    ),
    (
        "get_snapshot",
        lambda s: s.get_snapshot(["pays"], as_of=AS_OF).to_arrow(),
        "read_offline:shop/view/pays",
    ),
    (
        "get_online_features",
        lambda s: s.get_online_features(["users:score"], [{"user": 1}]),
        "read_online:shop/view/users",
    ),
    (
        "get_online_features",
        lambda s: s.get_online_features("billing", [{"user": 1}]),
        "read_online:shop/service/billing",
    ),
    ("verify", lambda s: s.verify("billing"), "read_offline:shop/service/billing"),
    (
        "explain",
        lambda s: s.explain("users:score", {"user": KEY_OF_ENTITY}),
        "read_offline:shop/view/users",
    ),
]
_CLICK = {"id": "b", "user": KEY_OF_ENTITY, "at": AT, "note": "planted note"}
