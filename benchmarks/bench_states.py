"""Online reads of windowed features, and what the state of an entity weighs.

One view of ten features, one window each, over entities with few, some and many events. The floor
is a bare read of the state's recent field: what any answer costs at least. Values are compared with
a training set of the same instant before anything is timed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import Sizes, Table, fresh, measure, micros, number, times, workplace
from featurestore.testing.valkey import ValkeyServer

WINDOWS = ("5m", "30m", "1h", "3h", "6h", "12h", "24h", "3d", "7d", "30d")
FUNCTIONS = ("sum", "mean", "count", "max", "last")
NOW_US = 1_706_659_200_000_000
_SPAN_US = 30 * 86_400_000_000
_BATCHES = (1, 100)
_ROUNDS = 200


def run(sizes: Sizes) -> list[Table]:
    """Time reads from LMDB and Valkey, and weigh states in Valkey."""
    reads = Table(
        "Online reads in process: 10 features, one window each from 5 minutes to 30 days",
        [
            "store",
            "events an entity",
            "entities",
            "ours p50, us",
            "p99",
            "bare field p50",
            "of it",
        ],
    )
    weights = Table(
        "Memory in Valkey of windowed states: a double and an id of each event",
        ["events an entity", "entities", "bytes an entity", "bytes an event"],
    )
    cases = sizes.pick(
        [(5, 2_000), (50, 1_000), (600, 200)], [(5, 20_000), (50, 10_000), (600, 2_000)]
    )
    for events, keys in cases:
        for store in ("LMDB", "Valkey"):
            with workplace() as folder, ExitStack() as stack:
                server = stack.enter_context(ValkeyServer()) if store == "Valkey" else None
                url = server.url if server else "lmdb:online"
                before = _used(server) if server else 0
                fresh(fill, folder=str(folder), url=url, events=events, keys=keys)
                if server:
                    weight = (_used(server) - before) / keys
                    weights.add(f"{events:,}", f"{keys:,}", number(weight), number(weight / events))
                found = fresh(look_up, folder=str(folder), url=url, keys=keys)
                for size in _BATCHES:
                    p50, p99, bare = found[str(size)]
                    ratio = times(bare, p50)
                    cells = (f"{size:,}", micros(p50), micros(p99), micros(bare), ratio)
                    reads.add(store, f"{events:,}", *cells)
    reads.notes.append(
        f"{_ROUNDS} lookups of random entities each; functions: {', '.join(FUNCTIONS)}."
    )
    weights.notes.append("The difference of INFO memory's used_memory, keys and table included.")
    return [reads, weights]


def _used(server: ValkeyServer) -> int:
    info = server.command("INFO", "memory").splitlines()
    return next(int(line.split(":")[1]) for line in info if line.startswith("used_memory:"))


# -- steps, each in a process of its own


def fill(folder: str, url: str, events: int, keys: int) -> dict[str, Any]:
    """Write events and materialize them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = np.random.default_rng(7)
    count = events * keys
    table = pa.table(
        {
            "card": np.repeat(np.arange(keys), events),
            "id": [f"event-{n:012d}" for n in range(count)],
            "amount": chance.normal(50.0, 20.0, count).round(2),
            "at": pa.array(
                NOW_US - chance.integers(1, _SPAN_US, count), pa.timestamp("us", tz="UTC")
            ),
            "version": np.ones(count, dtype=np.int64),
        }
    )
    pq.write_table(table, Path(folder) / "events.parquet")
    with _open(folder, url) as store:
        store.apply(_declarations())
        store.materialize_incremental()
    return {}


def look_up(folder: str, url: str, keys: int) -> dict[str, Any]:
    """Time lookups; the first ones are compared with a training set."""
    import pyarrow as pa

    chance = random.Random(3)  # noqa: S311
    features = [f"spend:f{i}" for i in range(len(WINDOWS))]
    timings = {}
    with _open(folder, url) as store:
        some = chance.sample(range(keys), 50)
        online = store.get_online_features(features, {"card": some}).to_dict()
        instants = pa.array([NOW_US] * len(some), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        rows = pa.table({"card": some, "event_timestamp": instants})
        offline = store.get_historical_features(rows, features).to_arrow().to_pydict()
        if any(online[f"f{i}"] != offline[f"f{i}"] for i in range(len(WINDOWS))):
            raise ValueError("online and offline differ; nothing is timed")
        for size in _BATCHES:
            asked = iter([chance.choices(range(keys), k=size) for _ in range(_ROUNDS + 20)])

            def ask(asked: Iterator[list[int]] = asked) -> object:
                return store.get_online_features(features, {"card": next(asked)})

            found = measure(ask, times=_ROUNDS, warmup=20)
            timings[str(size)] = (found.p50, found.p99, _bare(store, keys, size, chance))
    return timings


def _bare(store: Any, keys: int, size: int, chance: random.Random) -> float:
    from featurestore.dtypes import parse
    from featurestore.ports.online import StateRead
    from featurestore.semantics.keys import encode_key, namespace

    view = store.services.registry.state(store.project).serving["spend"]
    lead = namespace(store.project, view.name, view.table_fingerprint)
    names = [lead + (encode_key([k], [parse("int64")]) or b"") for k in range(keys)]
    asked = iter(
        [[StateRead(k, [b"r"]) for k in chance.choices(names, k=size)] for _ in range(_ROUNDS + 20)]
    )
    online = store.services.online_store
    return measure(lambda: online.read_states(next(asked)), times=_ROUNDS, warmup=20).p50


def _open(folder: str, url: str) -> Any:
    from featurestore import FeatureStore
    from featurestore.clock import FixedClock
    from featurestore.model.settings import Settings

    settings = Settings.model_validate({"project": "states", "online": {"url": url}})
    return FeatureStore(folder, settings=settings, clock=FixedClock(NOW_US))


def _declarations() -> Any:
    from featurestore import Aggregate, Entity, FeatureView, FileSource
    from featurestore.compile.declared import Declarations

    features: list[Any] = [
        Aggregate(FUNCTIONS[i % len(FUNCTIONS)], column="amount", windows=[window], name=f"f{i}")
        for i, window in enumerate(WINDOWS)
    ]
    source = FileSource(
        name="events",
        path="events.parquet",
        event_timestamp="at",
        event_id="id",
        version="version",
        tags={},
    )
    cards = Entity(name="card", join_keys=("card",), tags={})
    view = FeatureView(
        name="spend", entities=(cards,), source=source, features=tuple(features), tags={}
    )
    return Declarations.of(view)
