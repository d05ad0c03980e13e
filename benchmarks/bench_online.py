"""Online reads in process, and the memory that a feature takes in Redis.

Floors: the same keys read from the bare store, undecoded. Peer: Feast's SDK on SQLite and Redis.
Every side answers the same random entities; the values are compared before anything is timed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bench_materialize import materialize
from benchmarks.common import (
    Sizes,
    Table,
    Timing,
    View,
    fresh,
    make_repository,
    make_views,
    micros,
    number,
    peer,
    require_equal,
    workplace,
)
from featurestore.testing.valkey import ValkeyServer

BATCHES = (1, 10, 100, 500)
CHECKED = [3, 1, 4]
BAR_LMDB_MICROS = 25
BAR_BYTES_A_FEATURE = 6.5
_MEMORY_FEATURES = 50


def run(sizes: Sizes) -> list[Table]:
    """Time lookups of 60 features in 3 views, then weigh 50 features in Redis."""
    return [_reads(sizes), _memory(sizes)]


def _reads(sizes: Sizes) -> Table:
    rows = sizes.pick(5_000, 20_000)
    table = Table(
        f"Online reads in process: 60 float32 features in 3 views, {rows:,} entities, microseconds",
        [
            "store",
            "entities",
            "ours p50",
            "p99",
            "with to_dict() p50",
            "p99",
            "bare store p50",
            "times the bare store",
            "Feast p50",
            "with to_dict() p50",
            "times Feast",
        ],
    )
    with workplace() as folder, ExitStack() as stack:
        views = make_views(folder, rows, [20, 20, 20])
        ours, theirs = (stack.enter_context(ValkeyServer()) for _ in range(2))
        requests = _requests(rows, sizes.pick(2_000, 10_000))
        redis = f"127.0.0.1:{theirs.port}"
        for store, url, address in (
            ("LMDB", "lmdb:data/online", None),
            ("Valkey", ours.url, redis),
        ):
            mine = _ours(folder / f"ours-{store}", views, url, requests)
            beside: dict[str, Any] = {}
            if sizes.feast:
                beside = _feast(sizes.feast, folder / f"feast-{store}", views, address, requests)
                names = [name for view in views for name in view.features]
                require_equal(mine["values"], beside["values"], names)
            for batch in BATCHES:
                _add(table, store, str(batch), mine["timings"], beside.get("timings"))
    table.notes += [
        "Feast reads SQLite in the rows of LMDB, and its own Redis layout in those of Valkey.",
        "Before: an answer of ours and of Feast was compared.",
        f"Bar: LMDB, 1 entity, p50 <= {BAR_LMDB_MICROS} microseconds.",
    ]
    return table


def _requests(rows: int, count: int) -> dict[str, list[list[int]]]:
    """Return random entities for each batch size; fewer requests of the large ones."""
    choose = random.Random(7)  # noqa: S311
    return {
        str(batch): [
            [choose.randrange(rows) for _ in range(batch)] for _ in range(max(100, count // batch))
        ]
        for batch in BATCHES
    }


def _add(table: Table, store: str, batch: str, ours: Any, theirs: Any) -> None:
    answer, full, bare = (Timing(ours[batch][k]) for k in ("answer", "to_dict", "bare"))
    cells = [micros(answer.p50), micros(answer.p99), micros(full.p50), micros(full.p99)]
    cells += [micros(bare.p50), f"{answer.p50 / bare.p50:.3g}"]
    if theirs is None:
        cells += ["", "", ""]
    else:
        plain, converted = (Timing(theirs[batch][k]) for k in ("answer", "to_dict"))
        cells += [micros(plain.p50), micros(converted.p50), f"{converted.p50 / full.p50:.3g} x"]
    table.add(store, batch, *cells)


def _ours(folder: Path, views: list[View], url: str, requests: dict[str, Any]) -> dict[str, Any]:
    repository = str(make_repository(folder, views, url))
    fresh(materialize, folder=repository, kind="all")
    found = fresh(look_up, folder=repository, requests=requests, check=CHECKED)
    bare = fresh(read_bare, folder=repository, requests=requests)["timings"]
    for batch, timings in found["timings"].items():
        timings["bare"] = bare[batch]
    return found


def _feast(
    python: str, repo: Path, views: list[View], redis: str | None, requests: dict[str, Any]
) -> dict[str, Any]:
    declared = [view.for_peer() for view in views]
    peer(python, "apply", repo=str(repo), views=declared, redis=redis)
    peer(python, "materialize", repo=str(repo))
    # A tenth of the requests of one entity tells the median as well.
    few = {batch: lists[: max(50, len(lists) // 10)] for batch, lists in requests.items()}
    return peer(python, "online", repo=str(repo), requests=few, check=CHECKED)


def _memory(sizes: Sizes) -> Table:
    rows = sizes.pick(50_000, 200_000)
    table = Table(
        f"Memory in Valkey: {rows:,} entities x {_MEMORY_FEATURES} float32 features",
        ["layout", "bytes an entity", "bytes a feature", "bar", "reached"],
    )
    with workplace() as folder, ExitStack() as stack:
        view = make_views(folder, rows, [_MEMORY_FEATURES])[0]
        ours, theirs = (stack.enter_context(ValkeyServer()) for _ in range(2))
        repository = make_repository(folder / "ours", [view], ours.url)
        before = _used(ours)
        fresh(materialize, folder=str(repository), kind="all")
        each = (_used(ours) - before) / rows
        share = each / _MEMORY_FEATURES
        reached = "yes" if share <= BAR_BYTES_A_FEATURE else "NO"
        table.add("ours, with an expiry", number(each), number(share), BAR_BYTES_A_FEATURE, reached)
        if sizes.feast:
            repo, redis = str(folder / "feast"), f"127.0.0.1:{theirs.port}"
            peer(sizes.feast, "apply", repo=repo, views=[view.for_peer()], redis=redis)
            before = _used(theirs)
            peer(sizes.feast, "materialize", repo=repo)
            other = (_used(theirs) - before) / rows
            table.add("Feast, no expiry", number(other), number(other / _MEMORY_FEATURES), "", "")
            table.notes.append(f"Feast takes {other / each:.3g} times as much.")
    table.notes.append("The difference of INFO memory's used_memory, keys and table included.")
    return table


def _used(server: ValkeyServer) -> int:
    info = server.command("INFO", "memory").splitlines()
    return next(int(line.split(":")[1]) for line in info if line.startswith("used_memory:"))


# -- steps, each in a process of its own


def look_up(folder: str, requests: dict[str, list[list[int]]], check: list[int]) -> dict[str, Any]:
    """Time lookups by this project; `check` is answered with its values."""
    from featurestore import FeatureStore

    timings = {}
    with FeatureStore(folder) as store:
        values = store.get_online_features("service", _rows(check)).to_dict()
        for size, batches in requests.items():
            _time_answers(store, batches[:20])
            timings[size] = _time_answers(store, batches)
    return {"values": values, "timings": timings}


def read_bare(folder: str, requests: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Time the drivers alone on the same keys: gets in one transaction of LMDB, or one MGET."""
    from featurestore import FeatureStore

    with FeatureStore(folder) as store:
        url = store.services.settings.online.url
        keys = {size: [_keys(store, ids) for ids in lists] for size, lists in requests.items()}
    read = _lmdb_reader(Path(folder) / url[5:]) if url.startswith("lmdb:") else _redis_reader(url)
    timings: dict[str, list[float]] = {size: [] for size in keys}
    for size, batches in keys.items():
        for batch in batches:
            started = time.perf_counter()
            found = read(batch)
            timings[size].append(time.perf_counter() - started)
            if None in found:
                raise RuntimeError("a key that was materialized is not there")
    return {"timings": timings}


def _time_answers(store: Any, batches: list[list[int]]) -> dict[str, list[float]]:
    plain, full = [], []
    for ids in batches:
        rows = _rows(ids)
        started = time.perf_counter()
        response = store.get_online_features("service", rows)
        between = time.perf_counter()
        response.to_dict()
        full.append(time.perf_counter() - started)
        plain.append(between - started)
    return {"answer": plain, "to_dict": full}


def _rows(ids: list[int]) -> list[dict[str, int]]:
    return [{"entity_id": number_} for number_ in ids]


def _keys(store: Any, ids: list[int]) -> list[bytes]:
    """Return the keys that answering for these entities reads."""
    from featurestore.dtypes import parse
    from featurestore.semantics.keys import encode_key, namespace

    views = store.services.state.get().catalog.views.values()
    int64 = parse("int64")
    leads = [namespace(store.project, view.name, view.table_fingerprint) for view in views]
    return [lead + (encode_key([i], [int64]) or b"") for lead in leads for i in dict.fromkeys(ids)]


def _lmdb_reader(path: Path) -> Callable[[list[bytes]], list[Any]]:
    import lmdb

    environment = lmdb.open(str(path), readonly=True)

    def read(keys: list[bytes]) -> list[Any]:
        with environment.begin() as transaction:
            return list(map(transaction.get, keys))

    return read


def _redis_reader(url: str) -> Callable[[list[bytes]], list[Any]]:
    import redis

    client: Any = redis.Redis.from_url(url, protocol=2)
    read: Callable[[list[bytes]], list[Any]] = client.mget
    return read
