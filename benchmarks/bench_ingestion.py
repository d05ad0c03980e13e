"""Live events: how many a second one process takes, and how soon one can be read after its push.

Throughput: a stream that is full is drained by one ingest process, online values, log and tables
included. Latency: one process pushes at a steady rate, another ingests, and this one reads the same
entity over and over until it sees the event.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import (
    ROOT,
    Sizes,
    Table,
    Timing,
    clean_environment,
    fresh,
    number,
    workplace,
)
from featurestore.testing.valkey import ValkeyServer

BAR_EVENTS = 20_000
BAR_MILLIS = 10.0
_DURABLE = ["--appendonly", "yes", "--appendfsync", "everysec"]
_LONGEST = 10.0
# Between two reads, so that the reader does not take a core from those it waits for.
_PAUSE = 0.0005
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
    features=[Aggregate("count", windows=["1h", "24h"]),
              Aggregate("sum", column="amount", windows=["1h", "24h"])],
)
last = FeatureView(name="last", entities=[user], source=clicks, features=["amount"])
"""
_VIEWS = {"newest row": ["last"], "windows": ["counts"], "both": ["counts", "last"]}


def run(sizes: Sizes) -> list[Table]:
    """Measure LMDB and Valkey, both as the stream and as the online store."""
    tables = []
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer(options=_DURABLE))
        places = {
            "LMDB": ("lmdb:data/online", "lmdb:data/stream/clicks"),
            "Valkey": (server.url, f"{server.url}/clicks"),
        }
        tables.append(_throughput(sizes, places, server))
        tables.append(_latency(sizes, places, server))
    return tables


def _throughput(sizes: Sizes, places: dict[str, tuple[str, str]], server: ValkeyServer) -> Table:
    events, users = sizes.pick(100_000, 1_000_000), sizes.pick(10_000, 100_000)
    table = Table(
        f"Draining {events:,} events of {users:,} users with one ingest process",
        ["store", "views", "a push", "events/s", "a core", "online only, events/s", "peak RSS MiB"],
    )
    for store, (online, stream) in places.items():
        for views, batch in (("newest row", 512), ("windows", 512), ("both", 512), ("both", 1)):
            count = events if batch > 1 else events // 2
            with workplace() as folder:
                server.command("FLUSHALL")
                _write(folder, online, stream, _VIEWS[views])
                fresh(_fill, folder=str(folder), count=count, users=users, batch=batch)
                found = fresh(_drain, folder=str(folder))
            rate, core = count / found["seconds"], count / found["cpu"]
            table.add(
                store,
                views,
                str(batch),
                number(rate),
                number(core),
                number(count / found["online"]),
                number(found["peak_rss"] / 2**20),
            )
    table.notes += [
        f"To reach: {BAR_EVENTS:,} events/s a core, sustained.",
        "Online only: until the last event can be read; events/s: until log and tables have all.",
        "A core: by the processor time of the ingest process, log and tables included.",
        "windows: count and sum over 1h and 24h, events spread over two days.",
    ]
    return table


def _latency(sizes: Sizes, places: dict[str, tuple[str, str]], server: ValkeyServer) -> Table:
    samples = sizes.pick(1_000, 5_000)
    table = Table(
        f"From the begin of a push to the moment that it is read, {samples:,} pushes, milliseconds",
        ["store", "beside, events/s", "p50", "p99", "largest", "push p50", "<= 10 ms p99"],
    )
    for store, (online, stream) in places.items():
        with workplace() as folder:
            server.command("FLUSHALL")
            _write(folder, online, stream, _VIEWS["both"])
            found = fresh(_in_turn, folder=str(folder), samples=samples)
        _add(table, f"{store}, in turn", "0", found)
        used = Timing(found["used"])
        table.notes.append(
            f"{store}: the processor time of push, step and read together is"
            f" {number(used.p50 * 1e3)} ms, p99 {number(used.p99 * 1e3)} ms."
        )
        for load in (0, 1_000):
            with workplace() as folder:
                server.command("FLUSHALL")
                _write(folder, online, stream, _VIEWS["both"])
                found = _measured(folder, samples, load)
            _add(table, store, f"{load:,}", found)
    table.notes += [
        "One process ingests (log every 2 s, tables every 10 s), one produces the load beside, and",
        "one pushes an event and reads every 0.5 ms until it sees it; the push is part of that.",
        "In turn: one process pushes, ingests and reads, so that nothing is waited for.",
    ]
    return table


def _add(table: Table, store: str, beside: str, found: dict[str, Any]) -> None:
    read, push = Timing(found["read"]), Timing(found["push"])
    table.add(
        store,
        beside,
        number(read.p50 * 1e3),
        number(read.p99 * 1e3),
        number(max(read.samples) * 1e3),
        number(push.p50 * 1e3),
        "reached" if read.p99 * 1e3 <= BAR_MILLIS else "NOT reached",
    )


def _measured(folder: Path, samples: int, load: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "featurestore.cli", "ingest", "--repo", str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    processes = [subprocess.Popen(command, **quiet, env=clean_environment())]  # type: ignore[call-overload]  # noqa: S603
    try:
        if load:
            code = f"from benchmarks.bench_ingestion import load; load({str(folder)!r}, {load})"
            beside = [sys.executable, "-c", code]
            processes.append(subprocess.Popen(beside, **quiet, env=clean_environment()))  # type: ignore[call-overload]  # noqa: S603
        return fresh(_ask, folder=str(folder), samples=samples)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


def _write(folder: Path, online: str, stream: str, views: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore import FeatureStore

    text = _DEFINITIONS.format(stream=stream)
    for name in {"counts", "last"} - set(views):
        text = "\n".join(_without(text.splitlines(), f"{name} = FeatureView("))
    (folder / "definitions").mkdir()
    (folder / "definitions" / "views.py").write_text(text, encoding="utf-8")
    (folder / "featurestore.toml").write_text(
        f'project = "bench"\n[online]\nurl = "{online}"\n', encoding="utf-8"
    )
    instant = pa.timestamp("us", tz="UTC")
    names = [("id", pa.int64()), ("user", pa.int64()), ("at", instant), ("seen", instant)]
    schema = pa.schema([*names, ("amount", pa.float64())])
    pq.write_table(schema.empty_table(), folder / "clicks.parquet")
    with FeatureStore(folder) as store:
        store.apply()


def _without(lines: list[str], start: str) -> list[str]:
    """Leave out a statement of several lines, or of one."""
    kept, inside = [], False
    for line in lines:
        inside = inside or line.startswith(start)
        if not inside:
            kept.append(line)
        inside = inside and not line.endswith(")")
        if line == ")":
            inside = False
    return kept


def _events(first: int, count: int, users: int, days: float = 2) -> Any:
    import numpy as np
    import pyarrow as pa

    chance = np.random.default_rng(first)
    now = int(datetime.now(UTC).timestamp() * 1e6)  # noqa: TID251  (a producer of its own)
    at = now - chance.integers(1, int(days * 86_400e6), count)
    return pa.table(
        {
            "id": np.arange(first, first + count),
            "user": chance.integers(0, users, count),
            "at": pa.array(at).cast(pa.timestamp("us", tz="UTC")),
            "amount": chance.random(count),
        }
    )


def _fill(folder: str, count: int, users: int, batch: int) -> dict[str, Any]:
    from featurestore import FeatureStore
    from featurestore.services.payloads import encode

    with FeatureStore(folder) as store:
        stream = store.services.open_stream(
            store.services.registry.state("bench").catalog.views.popitem()[1].source.stream
        )
        for first in range(0, count, 10_000):
            events = _events(first, min(10_000, count - first), users)
            pieces = [events.slice(n, batch) for n in range(0, events.num_rows, batch)]
            stream.append([encode(piece) for piece in pieces])
    return {}


def _drain(folder: str) -> dict[str, Any]:
    from featurestore import FeatureStore

    with FeatureStore(folder) as store:
        ingestor = store.services.ingestor("bench")
        worker = ingestor.worker("clicks", "0")
        begun, used = time.perf_counter(), time.process_time()
        while worker.step() or not worker.status().events:
            pass
        online = time.perf_counter() - begun
        worker.settle()
        ingestor.follow()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        worker.close()
    return {"seconds": seconds, "cpu": cpu, "online": online}


def load(folder: str, rate: int) -> None:
    """Push events at a steady rate until killed, in pushes of ten."""
    from featurestore import FeatureStore

    with FeatureStore(folder) as store:
        due, first = time.perf_counter(), 10**9
        while True:
            store.push("clicks", _events(first, 10, 10_000, days=0.01))
            first += 10
            due += 10 / rate
            time.sleep(max(0.0, due - time.perf_counter()))


def _ask(folder: str, samples: int) -> dict[str, Any]:
    from featurestore import FeatureStore

    read: list[float] = []
    pushed: list[float] = []
    with FeatureStore(folder) as store:
        for number_ in range(-100, samples):
            user = 10**6 + number_ % 997
            at = datetime.now(UTC) - timedelta(seconds=1)  # noqa: TID251
            begun = time.perf_counter()
            event = {"id": 2 * 10**9 + number_, "user": user, "at": at, "amount": float(number_)}
            store.push("clicks", [event])
            taken = time.perf_counter()
            while _value(store, user) != float(number_):
                time.sleep(_PAUSE)
                if time.perf_counter() > begun + (60 if number_ < 0 else _LONGEST):
                    raise TimeoutError(f"event {number_} was not seen")
            if number_ >= 0:
                read.append(time.perf_counter() - begun)
                pushed.append(taken - begun)
    return {"read": read, "push": pushed}


def _in_turn(folder: str, samples: int) -> dict[str, Any]:
    from featurestore import FeatureStore

    read: list[float] = []
    pushed: list[float] = []
    used: list[float] = []
    with FeatureStore(folder) as store:
        worker = store.services.ingestor("bench").worker("clicks", "0")
        for number_ in range(-50, samples):
            user = 10**6 + number_ % 997
            at = datetime.now(UTC) - timedelta(seconds=1)  # noqa: TID251
            begun, processor = time.perf_counter(), time.thread_time()
            store.push(
                "clicks",
                [{"id": 2 * 10**9 + number_, "user": user, "at": at, "amount": float(number_)}],
            )
            taken = time.perf_counter()
            while _value(store, user) != float(number_):
                worker.step()
            if number_ >= 0:
                read.append(time.perf_counter() - begun)
                used.append(time.thread_time() - processor)
                pushed.append(taken - begun)
        worker.close()
    return {"read": read, "push": pushed, "used": used}


def _value(store: Any, user: int) -> Any:
    features = ["last:amount", "counts:count_24h"]
    return store.get_online_features(features, [{"user": user}]).to_dict()["amount"][0]
