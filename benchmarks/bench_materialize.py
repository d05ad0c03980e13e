"""Materialization: Parquet rows become the offline table and the newest of them go online.

Floors: DuckDB sorting and writing the same file, and the bare store taking values of equal size.
Peer: Feast, which writes the online store only. Each step is a process of its own.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
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
_COLUMNS = ["step", "seconds", "rows/s", "rows/s a core", "peak RSS MiB", "times its peer"]


def run(sizes: Sizes) -> list[Table]:
    """Materialize views of one row an entity."""
    cases = sizes.pick([(50_000, 20, True)], [(100_000, 20, True), (1_000_000, 60, False)])
    return [_case(sizes, rows, features, with_peer=p) for rows, features, p in cases]


def _case(sizes: Sizes, rows: int, features: int, *, with_peer: bool) -> Table:
    table = Table(f"Materialize {rows:,} rows x {features} float32 features", _COLUMNS)
    with workplace() as folder, ExitStack() as stack:
        view = make_views(folder, rows, [features])[0]
        size = _value_bytes(features)
        servers = [stack.enter_context(ValkeyServer()) for _ in range(3)]
        _floors(table, folder, view, rows, size, servers[0])
        peers: dict[str, float] = {}
        if sizes.feast and with_peer:
            peers = _feast(sizes.feast, table, folder, view, rows, servers[1])
        late = view.folder / "late.parquet"
        for store, url in (("LMDB", "lmdb:data/online"), ("Valkey", servers[2].url)):
            late.unlink(missing_ok=True)
            repository = make_repository(folder / f"ours-{store}", [view], url)
            _ours(table, repository, view, rows, servers[2], store, peers)
    table.notes += [
        "Ours writes the Delta table and the online store; Feast writes the online store only.",
        "A core: rows by the processor time of the process and, with Valkey, of the server."
        f" Bar: {BAR_ROWS_A_CORE:,} rows/s a core.",
        f"Checked before: a sample of the online values equals the source; {size} bytes a value.",
    ]
    return table


def _ours(
    table: Table,
    repository: Path,
    view: View,
    rows: int,
    server: ValkeyServer,
    store: str,
    peers: dict[str, float],
) -> None:
    def step(what: str, count: int, *, kind: str) -> None:
        before = cpu_seconds(server.pid)
        found = fresh(materialize, folder=str(repository), kind=kind)
        cpu = found["cpu"] + cpu_seconds(server.pid) - before
        if found["rows"] != count:
            raise RuntimeError(f"{what}: {found['rows']} rows were written, not {count}")
        _add(table, what, count, found, cpu, peers.get(f"{store} {kind}"))

    step(f"ours, Delta + {store}", rows, kind="all")
    _check(repository, view)
    step(f"ours, Delta + {store}: again, nothing new", 0, kind="new")
    write_rows(view, view.folder / "late.parquet", range(0, rows, 100), seed=99, late=True)
    step(f"ours, Delta + {store}: 1 % late rows", len(range(0, rows, 100)), kind="new")
    _check(repository, view)


def _feast(
    python: str, table: Table, folder: Path, view: View, rows: int, server: ValkeyServer
) -> dict[str, float]:
    """Let Feast do the same; return its seconds by store and kind of run."""
    seconds = {}
    for ours, name, redis in (
        ("LMDB", "SQLite", None),
        ("Valkey", "Valkey", f"127.0.0.1:{server.port}"),
    ):
        repo = str(folder / f"feast-{name}")
        peer(python, "apply", repo=repo, views=[view.for_peer()], redis=redis)
        before = cpu_seconds(server.pid)
        found = peer(python, "materialize", repo=repo)
        cpu = found["cpu"] + cpu_seconds(server.pid) - before
        _add(table, f"Feast, {name} only", rows, found, cpu, None)
        again = {**found, "seconds": found["again_seconds"]}
        _add(table, f"Feast, {name} only: again, nothing new", 0, again, 0, None)
        seconds[f"{ours} all"], seconds[f"{ours} new"] = found["seconds"], 0.0
    return seconds


def _floors(
    table: Table, folder: Path, view: View, rows: int, size: int, server: ValkeyServer
) -> None:
    found = fresh(copy_sorted, source=str(view.file), target=str(folder / "floor.parquet"))
    _add(table, "floor: DuckDB sorts and writes the Parquet", rows, found, found["cpu"], None)
    found = fresh(put_lmdb, folder=str(folder / "floor"), rows=rows, size=size)
    _add(table, "floor: bare LMDB puts", rows, found, found["cpu"], None)
    before = cpu_seconds(server.pid)
    found = fresh(set_redis, port=server.port, rows=rows, size=size)
    cpu = found["cpu"] + cpu_seconds(server.pid) - before
    _add(table, "floor: bare Valkey MSET", rows, found, cpu, None)


def _add(
    table: Table, what: str, rows: int, found: dict[str, Any], cpu: float, other: float | None
) -> None:
    seconds = found["seconds"]
    rate, core = (number(rows / seconds), number(rows / cpu)) if rows else ("", "")
    faster = f"{other / seconds:.3g} x" if other else ""
    table.add(what, f"{seconds:.3f}", rate, core, mebibytes(found["peak_rss"]), faster)


def _value_bytes(features: int) -> int:
    from featurestore.semantics.rows import HEADER_BYTES

    return HEADER_BYTES + (features + 7) // 8 + 4 * features


def _check(repository: Path, view: View) -> None:
    """Stop unless a sample of what is online is the newest of the source's rows."""
    import duckdb

    from featurestore import FeatureStore

    ids = list(range(0, 1_000, 10))
    newest = duckdb.sql(
        f"SELECT * FROM read_parquet('{view.folder}/*.parquet') WHERE entity_id IN {tuple(ids)}"
        " QUALIFY row_number() OVER (PARTITION BY entity_id"
        " ORDER BY event_timestamp DESC, created_timestamp DESC) = 1 ORDER BY entity_id"
    ).to_arrow_table()
    with FeatureStore(repository) as store:
        answer = store.get_online_features("service", {"entity_id": ids}).to_dict()
    require_equal(answer, newest.to_pydict(), view.features)


# -- steps, each in a process of its own


def materialize(folder: str, kind: str) -> dict[str, Any]:
    """Materialize all, or what is new; return the rows written, seconds and processor time."""
    from featurestore import FeatureStore

    with FeatureStore(folder) as store:
        if kind == "all":
            store.apply()
        # Its drivers are loaded now: how long imports take is the business of bench_import.
        _ = store.services.materializer
        started, cpu = time.perf_counter(), time.process_time()
        if kind == "all":
            report = store.materialize(START, END)
        else:
            report = store.materialize_incremental()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "rows": report.rows_written}


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
    pairs = [(b"namespac" + b"\x00" * 8 + i.to_bytes(8, "big"), value) for i in range(rows)]
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
