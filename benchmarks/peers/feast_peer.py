"""Feast doing what our benchmarks do: run by the interpreter of Feast's own environment.

    echo '{"repo": ..., ...}' | python feast_peer.py COMMAND

prints one line of JSON. The benchmarks make the data, the Redis server and the requests, so that
both sides work on the same bytes. Imports nothing of ours: the two environments never mix.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2020, 1, 1, tzinfo=UTC)
END = datetime(2025, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 1, tzinfo=UTC)


def peak_rss() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def store_at(repo: str) -> Any:
    """Open the repository."""
    from feast import FeatureStore

    return FeatureStore(repo_path=repo)


def apply(
    repo: str, views: list[dict[str, Any]], redis: str | None, offline: str = "file"
) -> dict[str, Any]:
    """Make a repository with these views over Parquet files, online in SQLite or in Redis."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32

    folder = Path(repo)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    online = "{type: sqlite, path: data/online.db}"
    if redis:
        online = f'{{type: redis, connection_string: "{redis}"}}'
    (folder / "feature_store.yaml").write_text(
        "project: bench\nprovider: local\nregistry: data/registry.db\n"
        f"online_store: {online}\noffline_store: {{type: {offline}}}\n"
        "entity_key_serialization_version: 3\n",
        encoding="utf-8",
    )
    key = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.INT64)
    declared = [
        FeatureView(
            name=view["name"],
            entities=[key],
            ttl=timedelta(days=view["ttl_days"]),
            schema=[Field(name=name, dtype=Float32) for name in view["features"]],
            source=FileSource(
                name=f"source_of_{view['name']}",
                path=view["path"],
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
        )
        for view in views
    ]
    service = FeatureService(name="service", features=declared)
    store_at(repo).apply([key, *declared, service])
    return {}


def versions() -> dict[str, Any]:
    """Return the versions that matter."""
    from importlib.metadata import version

    names = ("feast", "grpcio", "redis", "pandas", "pyarrow")
    return {name: version(name) for name in names}


def materialize(repo: str) -> dict[str, Any]:
    """Materialize all that there is; then ask for what is new, which is nothing."""
    store = store_at(repo)
    started, cpu = time.perf_counter(), time.process_time()
    store.materialize(START, END)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    store.materialize_incremental(LATER)
    return {"seconds": seconds, "cpu": cpu, "again_seconds": time.perf_counter() - started}


def online(repo: str, requests: dict[str, list[list[int]]], check: list[int]) -> dict[str, Any]:
    """Time lookups: for each batch size a list of requests; `check` is answered with its values."""
    store = store_at(repo)
    service = store.get_feature_service("service")

    def look_up(ids: list[int]) -> Any:
        return store.get_online_features(
            features=service, entity_rows=[{"entity_id": i} for i in ids]
        )

    values = look_up(check).to_dict()
    timings: dict[str, dict[str, list[float]]] = {}
    for size, batches in requests.items():
        plain, full = [], []
        for ids in batches:
            started = time.perf_counter()
            response = look_up(ids)
            between = time.perf_counter()
            response.to_dict()
            plain.append(between - started)
            full.append(time.perf_counter() - started)
        timings[size] = {"answer": plain, "to_dict": full}
    return {"timings": timings, "values": values}


def historical(repo: str, entity_rows: str, result: str, rounds: int = 1) -> dict[str, Any]:
    """Join the service's features to the entity rows of a Parquet file; write the result."""
    import pandas as pd
    import pyarrow.parquet as pq

    store = store_at(repo)
    rows = pd.read_parquet(entity_rows)
    service = store.get_feature_service("service")
    samples, table = [], None
    for _ in range(rounds):
        started, cpu = time.perf_counter(), time.process_time()
        table = store.get_historical_features(entity_df=rows, features=service).to_arrow()
        samples.append((time.perf_counter() - started, time.process_time() - cpu))
    held = peak_rss()
    pq.write_table(table, result)
    seconds, cpu = min(samples)
    return {"seconds": seconds, "cpu": cpu, "rss": held}


def grpc_body(path: str, features: list[str] | None, ids: list[int]) -> dict[str, Any]:
    """Write a request of `feast listen` as it travels: by references, or by the service."""
    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesRequest

    request = GetOnlineFeaturesRequest()
    if features is None:
        request.feature_service = "service"
    else:
        request.features.val.extend(features)
    for number in ids:
        request.entities["entity_id"].val.add().int64_val = number
    Path(path).write_bytes(request.SerializeToString())
    return {"method": "/GrpcFeatureServer/GetOnlineFeatures"}


def grpc_values(path: str) -> dict[str, Any]:
    """Return the values of a response of `feast listen` that was saved as it travelled."""
    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

    response = GetOnlineFeaturesResponse.FromString(Path(path).read_bytes())
    names = response.metadata.feature_names.val
    return {
        name: [getattr(value, value.WhichOneof("val")) for value in column.values]
        for name, column in zip(names, response.results, strict=True)
    }


COMMANDS: dict[str, Any] = {
    "apply": apply,
    "versions": versions,
    "materialize": materialize,
    "online": online,
    "historical": historical,
    "grpc_body": grpc_body,
    "grpc_values": grpc_values,
}


def main() -> None:
    """Run one command."""
    found = COMMANDS[sys.argv[1]](**json.load(sys.stdin))
    sys.stdout.write(f"\n{json.dumps({**found, 'peak_rss': peak_rss()})}\n")


if __name__ == "__main__":
    main()
