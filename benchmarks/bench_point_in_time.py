"""Training sets: features of entity rows from three views as of each row's instant.

Peers, over the very files of our tables: one DuckDB query of three chained ASOF joins, and Polars'
scan, sort and `join_asof`, eager and lazy; with `--feast`, Feast over the source files. Each side
is a process of its own, and no time is reported before its values equalled ours.

    python -m benchmarks.bench_point_in_time [--rows N] [--entities N] [--keys N] [--feast PYTHON]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Sizes,
    Table,
    View,
    fresh,
    machine,
    make_repository,
    mebibytes,
    number,
    peak_rss,
    peer,
    times,
    versions,
    workplace,
)

VIEWS, FEATURES = 3, 10
START, END = "2023-01-01T00:00:00Z", "2027-01-01T00:00:00Z"
SMALL_MEMORY = "512MiB"
_COLUMNS = ["side", "seconds", "ours is", "processor s", "peak RSS MiB"]
_FIRST_US = 1_704_067_200_000_000
_YEAR_US = 31_536_000_000_000


@dataclass(frozen=True)
class Case:
    """One size."""

    rows: int
    entities: int
    keys: int
    rounds: int


def run(sizes: Sizes) -> list[Table]:
    """Join with three views of 10 float32 features, their rows spread over a year."""
    case = sizes.pick(
        Case(rows=1_000_000, entities=100_000, keys=20_000, rounds=3),
        Case(rows=5_000_000, entities=500_000, keys=100_000, rounds=3),
    )
    # Feast's default engine would need more memory for the large size than many machines have.
    return [compare(case, sizes.feast, sizes.pick(("file", "duckdb"), ("duckdb",)))]


def compare(case: Case, feast: str | None, engines: Sequence[str] = ("file", "duckdb")) -> Table:
    """Make the data, run all sides and compare; Feast with some of its engines."""
    table = Table(
        f"Training set of {case.entities:,} rows from {VIEWS} views x {case.rows:,} rows x"
        f" {FEATURES} float32 features, {case.keys:,} entities",
        _COLUMNS,
    )
    with workplace() as folder:
        made = fresh(make_data, folder=str(folder), **vars(case))
        sides: dict[str, dict[str, Any]] = {}
        for name, function, more in _sides():
            result = str(folder / f"{function.__name__}{len(sides)}.parquet")
            sides[name] = fresh(
                function, files=made["files"], folder=str(folder), result=result,
                rounds=case.rounds, **more,
            )  # fmt: skip
            _require_same(result, str(folder / "ours0.parquet"), name)
        if feast:
            for engine in engines:
                name = "its default engine" if engine == "file" else "DuckDB"
                sides[f"Feast, {name}"] = _feast(feast, folder, engine)
        ours = sides["ours"]["seconds"]
        for name, side in sides.items():
            table.add(
                name,
                number(side["seconds"]),
                "" if name.startswith("ours") else times(ours, side["seconds"]),
                number(side["cpu"]),
                mebibytes(side["rss"]),
            )
    table.notes += [
        f"The fastest of {case.rounds} rounds, one process a side, from files to an Arrow table.",
        "With the memory limit: to a Parquet file. Peak RSS: without writing results to compare.",
        "Before: all sides gave the same rows, in the same order, of the same values.",
        "Feast: one round, in any order; its default engine leaves out rows that a view lacks.",
        f"Our tables took {made['seconds']:.0f} s to materialize, {made['parts']} files a view.",
    ]
    return table


def _sides() -> list[tuple[str, Any, dict[str, Any]]]:
    return [
        ("ours", ours, {}),
        (f"ours, {SMALL_MEMORY} of memory", ours, {"memory": SMALL_MEMORY}),
        ("DuckDB, three ASOF joins", duckdb_chained, {}),
        ("Polars join_asof, lazy", polars_asof, {"lazy": True}),
        ("Polars join_asof, eager", polars_asof, {"lazy": False}),
    ]


def _names(view: int) -> list[str]:
    return [f"f{view}_{i:02d}" for i in range(FEATURES)]


# -- steps


def make_data(folder: str, rows: int, entities: int, keys: int, rounds: int) -> dict[str, Any]:
    """Write sources and entity rows, and materialize; return the tables' files."""
    import duckdb

    from featurestore import FeatureStore

    del rounds
    root = Path(folder)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    views = []
    for index in range(VIEWS):
        view = View(f"view{index}", root / "sources" / f"view{index}", _names(index))
        view.folder.mkdir(parents=True)
        numbers = ", ".join(
            f"(hash(i, {index}, {n}) % 1000003 / 1000)::FLOAT AS {name}"
            for n, name in enumerate(view.features)
        )
        connection.execute(
            f"COPY (SELECT *, event_timestamp + INTERVAL 1 SECOND AS created_timestamp FROM"
            f" (SELECT {_key('i', index, keys)}, {_at('i', index)}, {numbers}"
            f" FROM range({rows}) r(i))) TO '{view.file}' (FORMAT parquet, COMPRESSION zstd)"
        )
        views.append(view)
    connection.execute(
        f"COPY (SELECT {_key('i', 8, keys)}, {_at('i', 8)}, i AS row FROM range({entities}) r(i))"
        f" TO '{root / 'entities.parquet'}' (FORMAT parquet)"
    )
    connection.close()
    make_repository(root / "repository", views, "memory:")
    definitions = root / "repository" / "definitions" / "views.py"
    text = definitions.read_text().replace("ttl=", "online=False, ttl=")
    definitions.write_text(text)
    started = time.perf_counter()
    with FeatureStore(root / "repository") as store:
        store.apply()
        store.materialize(START, END)
    seconds = time.perf_counter() - started
    tables = root / "repository" / "data" / "offline" / "bench"
    files = [sorted(map(str, (tables / view.name).rglob("*.parquet"))) for view in views]
    return {"files": files, "seconds": seconds, "parts": len(files[0])}


def _key(row: str, seed: int, keys: int) -> str:
    return f"(hash({row}, {seed}, 'key') % {keys})::BIGINT AS entity_id"


def _at(row: str, seed: int) -> str:
    # Microseconds, so that no two rows of an entity tie: peers could not settle that.
    at = f"{_FIRST_US} + (hash({row}, {seed}, 'at') % {_YEAR_US})::BIGINT"
    return f"make_timestamptz({at}) AS event_timestamp"


def ours(
    files: list[list[str]], folder: str, result: str, rounds: int, memory: str | None = None
) -> dict[str, Any]:
    """Join with this project; with a memory limit, straight to a Parquet file."""
    import os

    import pyarrow.parquet as pq

    from featurestore import FeatureStore

    del files
    if memory:
        os.environ["FEATURESTORE_OFFLINE_MEMORY_LIMIT"] = memory
    rows = str(Path(folder) / "entities.parquet")
    with FeatureStore(Path(folder) / "repository") as store:

        def join() -> Any:
            job = store.get_historical_features(rows, "service")
            return job.to_parquet(result) if memory else job.to_arrow()

        table, found = _timed(join, rounds)
    if not memory:
        pq.write_table(table, result)
    return found


def duckdb_chained(files: list[list[str]], folder: str, result: str, rounds: int) -> dict[str, Any]:
    """Join in one DuckDB query of chained ASOF joins of whole rows."""
    import duckdb
    import pyarrow.parquet as pq

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
    joins = " ".join(
        f"ASOF LEFT JOIN read_parquet({files[v]!r}, hive_partitioning = false) AS v{v}"
        f" ON e.entity_id = v{v}.entity_id AND e.event_timestamp >= v{v}.event_timestamp"
        for v in range(VIEWS)
    )
    columns = ", ".join(f"v{v}.{name}" for v in range(VIEWS) for name in _names(v))
    rows = Path(folder) / "entities.parquet"
    sql = f"SELECT e.*, {columns} FROM read_parquet('{rows}') AS e {joins} ORDER BY e.row"
    table, found = _timed(lambda: connection.sql(sql).to_arrow_table(), rounds)
    pq.write_table(table, result)
    return found


def polars_asof(
    files: list[list[str]], folder: str, result: str, rounds: int, *, lazy: bool
) -> dict[str, Any]:
    """Join with Polars: scan, sort by time, join_asof by entity, sort back."""
    import polars as pl

    def join() -> pl.DataFrame:
        frame = pl.scan_parquet(Path(folder) / "entities.parquet").sort("event_timestamp")
        for v in range(VIEWS):
            view = pl.scan_parquet(files[v], hive_partitioning=False)
            view = view.drop("created_timestamp").sort("event_timestamp")
            if not lazy:
                frame, view = frame.collect().lazy(), view.collect().lazy()
            frame = frame.join_asof(
                view, on="event_timestamp", by="entity_id", check_sortedness=False
            )
        return frame.sort("row").collect()

    table, found = _timed(join, rounds)
    table.write_parquet(result)
    return found


def _timed(action: Any, rounds: int) -> tuple[Any, dict[str, Any]]:
    """Return the last result, the shortest time with its processor time, and the memory held."""
    best = (float("inf"), 0.0)
    result: Any = None
    for _ in range(rounds):
        result = None
        started, cpu = time.perf_counter(), time.process_time()
        result = action()
        best = min(best, (time.perf_counter() - started, time.process_time() - cpu))
    return result, {"seconds": best[0], "cpu": best[1], "rss": peak_rss()}


def _feast(python: str, folder: Path, engine: str) -> dict[str, Any]:
    views = [
        View(f"view{i}", folder / "sources" / f"view{i}", _names(i)).for_peer()
        for i in range(VIEWS)
    ]
    repo, result = str(folder / f"feast-{engine}"), str(folder / f"feast-{engine}.parquet")
    peer(python, "apply", repo=repo, views=views, redis=None, offline=engine)
    rows = str(folder / "entities.parquet")
    found = peer(python, "historical", repo=repo, entity_rows=rows, result=result)
    _require_same(result, str(folder / "ours0.parquet"), "Feast")
    return found


def _require_same(result: str, reference: str, side: str) -> None:
    """Stop unless a result has the rows of ours, with the same values, in the same order."""
    import pyarrow.parquet as pq

    names = [name for view in range(VIEWS) for name in _names(view)]
    ours_, theirs = pq.read_table(reference), pq.read_table(result)
    if side == "Feast":
        theirs = theirs.sort_by("row")
        ours_ = _kept(ours_, theirs)
    for name in ("row", "entity_id", *names):
        if not ours_[name].combine_chunks().equals(theirs[name].combine_chunks()):
            raise RuntimeError(f"{side} and ours differ in {name}")
    if ours_[names[0]].null_count == len(ours_):
        raise RuntimeError("nothing was joined")


def _kept(ours_: Any, theirs: Any) -> Any:
    """Return our rows without those that the peer leaves out: where a view has no row."""
    import polars as pl

    mine, rows = pl.DataFrame(ours_), pl.DataFrame(theirs)["row"]
    left_out = mine.filter(~pl.col("row").is_in(rows.implode()))
    empty = [pl.col(_names(view)[0]).is_null() for view in range(VIEWS)]
    if not left_out.select(pl.any_horizontal(empty).all()).item():
        raise RuntimeError("Feast left out rows that have values in every view")
    return ours_.filter(mine["row"].is_in(rows.implode()).to_arrow())


def main() -> int:
    """Run one size that is given by flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each view")
    parser.add_argument("--entities", type=int, default=100_000, help="entity rows")
    parser.add_argument("--keys", type=int, default=None, help="entities (rows / 50)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feast", metavar="PYTHON", help="an interpreter that has Feast")
    found = parser.parse_args()
    case = Case(found.rows, found.entities, found.keys or max(1, found.rows // 50), found.rounds)
    table = compare(case, found.feast)
    sys.stdout.write(f"Machine: {machine()}.\n\nVersions: {versions(found.feast)}.\n\n{table}\n")
    return 0


if __name__ == "__main__":
    # Steps are found by the name of their module, which `__main__` is not.
    raise SystemExit(importlib.import_module("benchmarks.bench_point_in_time").main())
