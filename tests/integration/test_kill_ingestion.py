"""Real SIGKILLs while live events are ingested: whatever dies, each event counts exactly once.

The ingest process, the producer and the Valkey that holds stream and values are killed at moments
drawn at random, over and over. When all is quiet again, every event that was pushed counts once
online, is once in the stream's log for each entry of the stream, and once in the view's table.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.compile.plan import table_id
from featurestore.services.payloads import Decoder
from featurestore.testing.valkey import ValkeyServer
from tests.ingesting import SCHEMA
from tests.integration.ingest_producer import event

_SEED = 20240501
_KILLS = 8
_LAST_SECONDS = 120
DURABLE = ["--appendonly", "yes", "--appendfsync", "always"]
_DEFINITIONS = """
from featurestore import Aggregate, Entity, FeatureView, FileSource, StreamSource
user = Entity(name="user", join_keys=["user"])
clicks = StreamSource(
    name="clicks", event_id="id", stream="{stream}",
    batch=FileSource(name="files", path="clicks.parquet", event_timestamp="at",
                     created_timestamp="seen"),
)
counts = FeatureView(
    name="counts", entities=[user], source=clicks,
    features=[Aggregate("count", windows=["lifetime"], name="n"),
              Aggregate("sum", column="amount", windows=["lifetime"], name="total")],
)
last = FeatureView(name="last", entities=[user], source=clicks, features=["amount"])
"""
_SETTINGS = """
project = "killed"
[online]
url = "{online}"
[offline]
workers = 1
[serving]
refresh_seconds = 0.1
[streams]
flush_seconds = 0.05
log_seconds = 0.2
retry_seconds = 0.1
timeout_seconds = 1
"""


@dataclass
class Place:
    """A repository, and the server that it needs."""

    folder: Path
    server: ValkeyServer | None = None


def _write(folder: Path, online: str, stream: str) -> None:
    (folder / "definitions").mkdir(parents=True)
    definitions = _DEFINITIONS.format(stream=stream)
    (folder / "definitions" / "views.py").write_text(definitions, encoding="utf-8")
    settings = _SETTINGS.format(online=online)
    (folder / "featurestore.toml").write_text(settings, encoding="utf-8")
    pq.write_table(SCHEMA.empty_table(), folder / "clicks.parquet")
    with FeatureStore(folder) as store:
        store.apply()


@pytest.fixture(params=["lmdb", "valkey"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "lmdb":
        _write(tmp_path, "lmdb:data/online", "lmdb:data/stream/clicks")
        yield Place(tmp_path)
        return
    with ValkeyServer(options=DURABLE) as server:
        _write(tmp_path, server.url, f"{server.url}/clicks")
        yield Place(tmp_path, server)


def _start(folder: Path, *words: object, module: str = "featurestore.cli") -> Any:
    return subprocess.Popen(  # noqa: S603  (this interpreter, our own modules)
        [sys.executable, "-m", module, *map(str, words)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"FEATURESTORE_REPO": str(folder), "PATH": ""},
    )


def _ingest(folder: Path, *words: str) -> Any:
    return _start(folder, "ingest", "--repo", folder, *words)


def _until_idle(folder: Path) -> None:
    process = _ingest(folder, "--until-idle")
    _, errors = process.communicate(timeout=_LAST_SECONDS)
    assert process.returncode == 0, errors


def _wait(process: Any, seconds: float) -> bool:
    """Wait so long; return whether the process still runs."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill(process: Any) -> str:
    process.kill()
    output, _ = process.communicate()
    return str(output)


def _check(folder: Path, pushed: int) -> None:
    with FeatureStore(folder) as store:
        services = store.services
        features = ["counts:n_lifetime", "counts:total_lifetime", "last:amount"]
        asked = [f.replace("_lifetime", "") for f in features]
        found = store.get_online_features(asked, {"user": list(range(5))}).to_dict()
        rows = [event(number) for number in range(pushed)]
        by_user = [[row["amount"] for row in rows if row["user"] == user] for user in range(5)]
        assert found["n"] == [len(amounts) for amounts in by_user]
        assert found["total"] == [sum(amounts) for amounts in by_user]
        assert found["amount"] == [max(amounts) for amounts in by_user]
        stream = services.open_stream(services.state.get().catalog.views["last"].source.stream)
        entries = stream.consumer("auditor", "auditor").poll(1_000_000, 0.0)
        events, refused = Decoder(SCHEMA, None).decode(entries)
        assert refused == []
        sent = Counter(
            zip(*(events[n].to_pylist() for n in ("_position", "_index", "id")), strict=True)
        )
        assert set(events["id"].to_pylist()) == {row["id"] for row in rows}
        logged = _read([file.path for file in services.stream_log.live("clicks").files])
        assert Counter((r["_position"], r["_index"], r["id"]) for r in logged) == sent
        view = services.state.get().catalog.views["counts"]
        table = _read([f.path for f in services.tables.snapshot(table_id("killed", view)).files])
        versions = Counter((row["_event_id"], row["_version"]) for row in table)
        assert versions == Counter((i, p * 512 + n) for p, n, i in sent)
        assert store.verify(["counts:n", "counts:total", "last:amount"]).equal


def _read(files: list[str]) -> list[dict[str, Any]]:
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_killed_ingest_processes(place: Place) -> None:
    chance = random.Random(_SEED)  # noqa: S311
    pushed = killed = 0
    with FeatureStore(place.folder) as store:
        for _ in range(_KILLS):
            process = _ingest(place.folder)
            running = True
            end = chance.uniform(0.3, 2.0)
            while running and end > 0:
                store.push("clicks", [event(n) for n in range(pushed, pushed + 7)])
                pushed += 7
                running = _wait(process, 0.05)
                end -= 0.05
            killed += running
            _kill(process)
    assert killed == _KILLS
    _until_idle(place.folder)
    _check(place.folder, pushed)


def test_a_killed_producer_pushes_again_what_was_not_acknowledged(place: Place) -> None:
    chance = random.Random(_SEED)  # noqa: S311
    first, last = 0, 120
    ingest = _ingest(place.folder)
    for _ in range(_KILLS):
        producer = _start(
            place.folder, place.folder, first, last, module="tests.integration.ingest_producer"
        )
        running = _wait(producer, chance.uniform(0.8, 1.6))
        taken = [
            int(line) for line in _kill(producer).splitlines(keepends=True) if line[-1] == "\n"
        ]
        # From where it was, and a little before: the same event may well be pushed twice.
        first = max(0, max(taken, default=first - 1) - 1)
        if not running:
            break
    with FeatureStore(place.folder) as store:
        store.push("clicks", [event(number) for number in range(first, last)])
    _kill(ingest)
    _until_idle(place.folder)
    _check(place.folder, last)


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(_SEED)  # noqa: S311
    with ValkeyServer(options=DURABLE) as server:
        _write(tmp_path, server.url, f"{server.url}/clicks")
        ingest = _ingest(tmp_path)
        producer = _start(tmp_path, tmp_path, 0, 400, module="tests.integration.ingest_producer")
        for _ in range(_KILLS // 2):
            assert _wait(ingest, chance.uniform(0.3, 1.0))
            server.stop()
            server.start()
        producer.communicate(timeout=_LAST_SECONDS)
        ingest.terminate()
        _, errors = ingest.communicate(timeout=_LAST_SECONDS)
        assert ingest.returncode == 0, errors
        assert producer.returncode == 0
        _until_idle(tmp_path)
        _check(tmp_path, 400)
