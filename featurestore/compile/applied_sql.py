"""SQL of what had been applied of a stream: from which rows of a log an answer was made (law V2).

An answer names, for each entity, how far each partition of the stream had been applied to it. Rows
of the log beyond that are not to be looked at; rows of the history, which have no position, are.
Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.compile.join_sql import key_type, read_files
from featurestore.compile.plan import PARTITION, POSITION
from featurestore.compile.table_sql import quote

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.request import Join

WANTED = "wanted_positions"
PLACE = [f"{quote(PARTITION)} AS part", f"{quote(POSITION)} AS position"]
"""Columns of a log's rows that `applied_rows` needs beside their keys k0, k1 ..."""


def positions(keys: Sequence[pa.Array], partition: str, found: Any, places: Any) -> pa.Table:
    """Return a table of how far a partition had been applied: k0, k1 ..., part, position, place."""
    import pyarrow as pa

    columns = {f"k{i}": _wide(key) for i, key in enumerate(keys)}
    part = pa.array([partition]).take(pa.array([0] * len(places), pa.int64()))
    return pa.table({**columns, "part": part, "position": found, "place": places})


def no_positions(join: Join) -> pa.Table:
    """Return such a table without rows."""
    import pyarrow as pa

    keys = [_wide(pa.array([], key.type.arrow)) for key in join.view.join_keys]
    empty = pa.array([], pa.int64())
    return positions(keys, "", empty, empty)


def is_one(wanted: pa.Table) -> bool:
    """Whether no entity has two positions of one partition."""
    if not wanted.num_rows:
        return True
    names = [name for name in wanted.column_names if name not in {"position", "place"}]
    grouped = wanted.group_by(names).aggregate([("position", "min"), ("position", "max")])
    return bool(grouped["position_min"].equals(grouped["position_max"]))


def limits(wanted: pa.Table) -> pa.Table:
    """Return each entity's positions once, only where anything had been applied."""
    import pyarrow.compute as pc

    names = [name for name in wanted.column_names if name not in {"position", "place"}]
    grouped = wanted.group_by(names).aggregate([("position", "max")])
    renamed = grouped.rename_columns([*names, "position"])
    return renamed.filter(pc.greater_equal(renamed["position"], 0))


def applied_rows(rows: str, limits: str, keys: int) -> str:
    """Return the SELECT of those rows of a log that had been applied.

    Args:
        rows: A SELECT of rows with their keys and `PLACE`.
        limits: The table of `limits`.
        keys: How many join keys there are.
    """
    names = [*(f"k{i}" for i in range(keys)), "part"]
    same = " AND ".join(f"l.{name} = a.{name}" for name in names)
    return (
        f"SELECT l.* EXCLUDE (part, position) FROM ({rows}) AS l LEFT JOIN {limits} AS a"
        f" ON {same} WHERE l.part IS NULL OR l.position <= a.position"
    )


def behind(join: Join, files: Sequence[str]) -> str:
    """Return the SELECT of the places for which a table lacks what had been applied.

    Args:
        join: The view.
        files: The table's files.
    """
    count = len(join.view.join_keys)
    keys = [f"k{i}" for i in range(count)]
    if not files:
        return f"SELECT place FROM {WANTED} WHERE position >= 0"
    typed = [
        f"CAST({quote(key.name)} AS {key_type(key)}) AS k{i}"
        for i, key in enumerate(join.view.join_keys)
    ]
    columns = ", ".join([*typed, *PLACE])
    group = ", ".join([*keys, "part"])
    held = (
        f"SELECT {group}, max(position) AS held FROM (SELECT {columns} FROM {read_files(files)}"
        f" WHERE {quote(PARTITION)} IS NOT NULL) GROUP BY {group}"
    )
    same = " AND ".join(f"w.{name} = h.{name}" for name in [*keys, "part"])
    return (
        f"SELECT DISTINCT w.place FROM {WANTED} AS w LEFT JOIN ({held}) AS h ON {same}"
        " WHERE w.position >= 0 AND coalesce(h.held, -1) < w.position"
    )


def _wide(key: pa.Array) -> pa.Array:
    import pyarrow as pa

    return key.cast(pa.int64()) if pa.types.is_integer(key.type) else key
