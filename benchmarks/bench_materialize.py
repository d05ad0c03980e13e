"""Materialization: Parquet rows become the offline table and the newest of them go online.

Floors: DuckDB sorting and writing the same file, and the bare store taking values of equal size.
Peer: Feast, which writes the online store only. Each step is a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Sizes,
    Table,
    View,
    cpu_seconds,
    fresh,
    make_repository,
    make_views,
    mebibytes,
    number,
    peer,
    require_equal,
    workplace,
    write_rows,
)
from featurestore.testing.valkey import ValkeyServer

START, END = "2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z"
BAR_ROWS_A_CORE = 200_000
_BATCH = 5_000
_LATE = 100  # one entity in so many has a late row
_COLUMNS = ["step", "seconds", "rows/s", "rows/s a core", "peak RSS MiB", "times Feast"]
_STAGES = ("reading the source", "writing the table", "pushing online")


def run(sizes: Sizes) -> list[Table]:
    """Materialize views of one row an entity."""
    tables = []
    # (rows, features, rounds, whether Feast takes part)
    for rows, features, rounds, with_peer in sizes.pick(
        [(50_000, 20, 2, True)], [(100_000, 20, 3, True), (1_000_000, 20, 2, False)]
    ) + sizes.pick([], [(1_000_000, 60, 1, False)]):
        with workplace() as folder, ExitStack() as stack:
            server = stack.enter_context(ValkeyServer())
            view = make_views(folder, rows, [features])[0]
            case = _Case(folder, view, rows, rounds, server)
            case.floors(_value_bytes(features))
            if sizes.feast and with_peer:
                case.feast(sizes.feast)
            for store in ("LMDB", "Valkey"):
                case.ours(store)
            tables += [case.table, case.stages]
    return tables


@dataclass
class _Case:
    """One size: its files, its Valkey, and the tables that it fills."""

    folder: Path
    view: View
    rows: int
    rounds: int
    server: ValkeyServer
    peers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = f"{self.rows:,} rows x {len(self.view.features)} float32 features"
        self.table = Table(f"Materialize {size}", _COLUMNS)
        self.table.notes += [
            f"The fastest of {self.rounds} rounds.",
            "Ours writes the Delta table and the online store; Feast the online store only.",
            "A core: rows by the processor time of the process and, with Valkey, of the server.",
            f"Bar: {BAR_ROWS_A_CORE:,} rows/s a core, read and pushed online.",
            "Before: a sample of the online values was compared with the source.",
        ]
        columns = ["store", *_STAGES, "rows/s online: read and pushed"]
        self.stages = Table(f"Seconds of each stage: {size}", columns)

    def floors(self, size: int) -> None:
        """Measure what the parts below ours take."""
        target = str(self.folder / "floor.parquet")
        found = self._best(lambda: fresh(copy_sorted, source=str(self.view.file), target=target))
        self._add("floor: DuckDB sorts and writes the Parquet", self.rows, found)
        places = (str(self.folder / f"floor-{number}") for number in range(self.rounds))
        found = self._best(lambda: fresh(put_lmdb, folder=next(places), rows=self.rows, size=size))
        self._add("floor: bare LMDB puts, sorted", self.rows, found)
        port = self.server.port
        found = self._best(lambda: fresh(set_redis, port=port, rows=self.rows, size=size))
        self._add("floor: bare Valkey MSET", self.rows, found)

    def feast(self, python: str) -> None:
        """Let Feast do the same."""
        redis = f"127.0.0.1:{self.server.port}"
        for ours, name, address in (("LMDB", "SQLite", None), ("Valkey", "Valkey", redis)):
            repos = (str(self.folder / f"feast-{name}-{number}") for number in range(self.rounds))

            def step(repos: Any = repos, address: str | None = address) -> dict[str, Any]:
                repo = next(repos)
                peer(python, "apply", repo=repo, views=[self.view.for_peer()], redis=address)
                return peer(python, "materialize", repo=repo)

            found = self._best(step)
            self._add(f"Feast, {name} only", self.rows, found)
            again = {**found, "seconds": found["again_seconds"]}
            self._add(f"Feast, {name} only: again, nothing new", 0, again)
            self.peers[f"{ours} all"] = found["seconds"]
            self.peers[f"{ours} again"] = found["again_seconds"]

    def ours(self, store: str) -> None:
        """Materialize all, then nothing new, then late rows."""
        late = self.view.folder / "late.parquet"
        late.unlink(missing_ok=True)
        url = self.server.url if store == "Valkey" else "lmdb:data/online"
        repositories = [
            make_repository(self.folder / f"ours-{store}-{number}", [self.view], url)
            for number in range(self.rounds)
        ]
        turns = iter(repositories)
        found = self._best(lambda: fresh(materialize, folder=str(next(turns)), kind="all"))
        self._add_ours(f"ours, Delta + {store}", self.rows, found, self.peers.get(f"{store} all"))
        self._add_stages(store, found)
        last = repositories[-1]
        _check(last, self.view)
        again = {**found, "seconds": found["again_seconds"], "rows": found["again_rows"]}
        name = f"ours, Delta + {store}: again, nothing new"
        self._add_ours(name, 0, again, self.peers.get(f"{store} again"))
        ids = range(0, self.rows, _LATE)
        write_rows(self.view, late, ids, seed=99, late=True)
        found = self._once(lambda: fresh(materialize, folder=str(last), kind="new"))
        self._add_ours(f"ours, Delta + {store}: 1 % late rows", len(ids), found, None)
        _check(last, self.view)

    def _best(self, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the fastest of the rounds, each on an empty Valkey."""
        rounds = []
        for _ in range(self.rounds):
            self.server.command("FLUSHALL", "SYNC")
            rounds.append(self._once(step))
        return min(rounds, key=lambda found: float(found["seconds"]))

    def _once(self, step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        before = cpu_seconds(self.server.pid)
        found = step()
        found["cpu"] += cpu_seconds(self.server.pid) - before
        return found

    def _add_ours(self, what: str, count: int, found: dict[str, Any], other: float | None) -> None:
        if found["rows"] != count:
            raise RuntimeError(f"{what}: {found['rows']} rows were written, not {count}")
        self._add(what, count, found, f"{other / found['seconds']:.3g} x" if other else "")

    def _add(self, what: str, rows: int, found: dict[str, Any], faster: str = "") -> None:
        seconds, cpu = found["seconds"], found["cpu"]
        rate, core = (number(rows / seconds), number(rows / cpu)) if rows else ("", "")
        memory = mebibytes(found["peak_rss"])
        self.table.add(what, f"{seconds:.3f}", rate, core, memory, faster)

    def _add_stages(self, store: str, found: dict[str, Any]) -> None:
        seconds = [found["stages"][stage] for stage in _STAGES]
        online = number(self.rows / (seconds[0] + seconds[2]))
        self.stages.add(store, *(f"{each:.2f}" for each in seconds), online)


def _value_bytes(features: int) -> int:
    from featurestore.semantics.rows import HEADER_BYTES

    return HEADER_BYTES + (features + 7) // 8 + 4 * features


def _check(repository: Path, view: View) -> None:
    """Stop unless a sample of what is online is the newest of the source's rows."""
    import duckdb

    from featurestore import FeatureStore

    ids = list(range(0, 1_000, 10))
    newest = (
        duckdb.connect()
        .sql(
            f"SELECT * FROM read_parquet('{view.folder}/*.parquet') WHERE entity_id IN {tuple(ids)}"
            " QUALIFY row_number() OVER (PARTITION BY entity_id"
            " ORDER BY event_timestamp DESC, created_timestamp DESC) = 1 ORDER BY entity_id"
        )
        .to_arrow_table()
    )
    with FeatureStore(repository) as store:
        answer = store.get_online_features("service", {"entity_id": ids}).to_dict()
    require_equal(answer, newest.to_pydict(), view.features)


# -- steps, each in a process of its own


def materialize(folder: str, kind: str) -> dict[str, Any]:
    """Materialize all, or what is new; return the rows written, seconds and processor time."""
    from featurestore import FeatureStore

    marks: list[tuple[str, float]] = []
    with FeatureStore(folder) as store:
        if kind == "all":
            store.apply()
        # Its drivers are loaded now: how long imports take is the business of bench_import.
        _ = store.services.materializer
        started, cpu = time.perf_counter(), time.process_time()

        def progress(_view: str, stage: str) -> None:
            marks.append((stage, time.perf_counter()))

        if kind == "all":
            report = store.materialize(START, END, progress=progress)
        else:
            report = store.materialize_incremental(progress=progress)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        again = store.materialize_incremental()
        again_seconds = time.perf_counter() - ended
    marks.append(("", ended))
    stages = {name: after - at for (name, at), (_, after) in pairwise(marks)}
    return {
        "seconds": ended - started,
        "cpu": cpu,
        "rows": report.rows_written,
        "stages": stages,
        "again_seconds": again_seconds,
        "again_rows": again.rows_written,
    }


def copy_sorted(source: str, target: str) -> dict[str, Any]:
    """Let DuckDB read, sort and write the rows as the table holds them."""
    import duckdb

    started, cpu = time.perf_counter(), time.process_time()
    duckdb.sql(
        f"COPY (SELECT * FROM read_parquet('{source}') ORDER BY entity_id, event_timestamp,"
        f" created_timestamp) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    )
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def _pairs(rows: int, size: int) -> list[list[tuple[bytes, bytes]]]:
    """Return batches of keys and values of equal size to ours, in the order of the keys."""
    value = bytes(size)
    pairs = [(b"namespace" + i.to_bytes(8, "big"), value) for i in range(rows)]
    return [pairs[at : at + _BATCH] for at in range(0, rows, _BATCH)]


def put_lmdb(folder: str, rows: int, size: int) -> dict[str, Any]:
    """Put the values, a durable transaction a batch."""
    import lmdb

    batches = _pairs(rows, size)
    with lmdb.open(folder, map_size=16 << 30) as env:
        started, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(batch)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu}


def set_redis(port: int, rows: int, size: int) -> dict[str, Any]:
    """Set the values, an MSET a batch."""
    import redis

    batches = [dict(batch) for batch in _pairs(rows, size)]
    with redis.Redis("127.0.0.1", port, protocol=2) as client:
        client.ping()
        started, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            client.mset(batch)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu}
