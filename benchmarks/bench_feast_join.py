"""The point-in-time join beside Feast's, on a size that Feast does in seconds.

Feast takes part twice: with its default local engine and with DuckDB. Every side reads the same
Parquet files of events and the same entity rows; ours reads its tables, which it wrote before from
those files. `bench_point_in_time` has the large size, beside the engines themselves.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bench_materialize import materialize
from benchmarks.common import (
    Sizes,
    Table,
    View,
    fresh,
    make_repository,
    mebibytes,
    number,
    peer,
    times,
    workplace,
)

ROUNDS = 3
_VIEWS, _FEATURES = 3, 10
_SPAN_US = 30 * 86_400_000_000
_FIRST = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1_000_000)


def run(sizes: Sizes) -> list[Table]:
    """Join, compare every value, and time."""
    asked, events, entities = sizes.pick((20_000, 200_000, 20_000), (100_000, 1_000_000, 100_000))
    table = Table(
        f"Point-in-time join: {asked:,} entity rows, {_VIEWS} views x {events:,} rows x"
        f" {_FEATURES} float32 features",
        ["who", "seconds", "entity rows/s", "peak RSS MiB", "rows returned", "ours is faster by"],
    )
    with workplace() as folder:
        views = [_view(folder, index, events, entities) for index in range(_VIEWS)]
        rows = _entity_rows(folder / "entity_rows.parquet", asked, entities)
        repository = make_repository(folder / "ours", views, "memory:")
        fresh(materialize, folder=str(repository), kind="all")
        mine = fresh(join, folder=str(repository), entity_rows=str(rows), result=str(folder / "o"))
        _add(table, "ours", asked, mine, "")
        if sizes.feast:
            for engine, name in (
                ("file", "Feast, its default engine"),
                ("duckdb", "Feast, DuckDB"),
            ):
                repo, result = str(folder / f"feast-{engine}"), folder / f"{engine}.parquet"
                declared = [view.for_peer() for view in views]
                peer(sizes.feast, "apply", repo=repo, views=declared, redis=None, offline=engine)
                asked_for = {"repo": repo, "entity_rows": str(rows), "result": str(result)}
                found = peer(sizes.feast, "historical", rounds=ROUNDS, **asked_for)
                _compare(folder / "o", result, views)
                _add(table, name, asked, found, times(mine["seconds"], found["seconds"]))
    table.notes += [
        f"The fastest of {ROUNDS} joins in one process, result in memory as Arrow.",
        "Before: every value that Feast returned was compared with ours.",
        "Feast's default engine leaves out entity rows for which a view has no row.",
    ]
    return [table]


def _add(table: Table, who: str, asked: int, found: dict[str, Any], faster: str) -> None:
    seconds, memory = found["seconds"], mebibytes(found["peak_rss"])
    table.add(who, f"{seconds:.2f}", number(asked / seconds), memory, f"{found['rows']:,}", faster)


def _view(folder: Path, index: int, events: int, entities: int) -> View:
    """Write a view with many rows an entity, in no order."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"f{index}_{i:02d}" for i in range(_FEATURES)]
    view = View(f"view{index}", folder / "sources" / f"view{index}", names)
    view.folder.mkdir(parents=True)
    random, utc = np.random.default_rng(index), pa.timestamp("us", tz="UTC")
    # No two rows of an entity in one instant: Feast would take any of them.
    at = _FIRST + random.choice(_SPAN_US // 1_000_000, events, replace=False) * 1_000_000
    columns = {
        "entity_id": pa.array(random.integers(0, entities, events)),
        "event_timestamp": pa.array(at).cast(utc),
        "created_timestamp": pa.array(at + 1_000_000).cast(utc),
    }
    columns |= {name: pa.array(random.random(events, dtype=np.float32)) for name in names}
    pq.write_table(pa.table(columns), view.file, row_group_size=100_000)
    return view


def _entity_rows(path: Path, count: int, entities: int) -> Path:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, utc = np.random.default_rng(42), pa.timestamp("us", tz="UTC")
    at = _FIRST + random.integers(0, _SPAN_US, count)
    columns = {
        "row": pa.array(np.arange(count)),
        "entity_id": pa.array(random.integers(0, entities, count)),
        "event_timestamp": pa.array(at).cast(utc),
    }
    pq.write_table(pa.table(columns), path)
    return path


def _compare(ours: Path, theirs: Path, views: list[View]) -> None:
    """Stop unless every row that the peer returned has the values of ours."""
    import polars as pl

    names = [name for view in views for name in view.features]
    left = pl.read_parquet(ours).select("row", *names)
    right = pl.read_parquet(theirs).select("row", *names).sort("row")
    right = right.with_columns(pl.col(names).cast(pl.Float32).fill_nan(None))
    same = left.join(right.select("row"), on="row", how="semi").sort("row")
    if not right.height or not same.equals(right):
        raise RuntimeError("the peer's training set has other values than ours")
    left_out = left.join(right.select("row"), on="row", how="anti").select(names)
    empty = [pl.all_horizontal(pl.col(view.features).is_null()) for view in views]
    if not left_out.select(pl.any_horizontal(empty).all()).item():
        raise RuntimeError("the peer left out rows that have values in every view")


def join(folder: str, entity_rows: str, result: str) -> dict[str, Any]:
    """Join some times, write the result (a step in a process of its own)."""
    import pyarrow.parquet as pq

    from featurestore import FeatureStore

    samples, table = [], None
    with FeatureStore(folder) as store:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            table = store.get_historical_features(entity_rows, "service").to_arrow()
            samples.append(time.perf_counter() - started)
    pq.write_table(table, result)
    return {"seconds": min(samples), "rows": table.num_rows if table else 0}
