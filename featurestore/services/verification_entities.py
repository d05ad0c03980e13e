"""Who is asked in a verification: entities from the views' tables, or those that a caller names.

A service may join views by several keys; each view's keys go round as often as it takes until the
longest list of them is through, so that every key is asked for. A sample is the same for the same
seed and tables. Request fields that nobody gives are made up: both sides get the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.compile.plan import Column, table_id
from featurestore.compile.table_sql import literal, quote
from featurestore.errors import RequestError
from featurestore.semantics.timeline import to_datetime
from featurestore.services.columns import InputRows

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.request import Join, RequestPlan
    from featurestore.dtypes import DType
    from featurestore.ports.engine import Engine
    from featurestore.ports.tables import Tables

_READERS = {".parquet": "read_parquet", ".csv": "read_csv"}


def from_tables(
    plan: RequestPlan,
    project: str,
    *,
    tables: Tables,
    engine: Engine,
    sample: int | None,
    seed: int,
) -> dict[str, pa.Array]:
    """Return join key columns of entities that the tables know; without a sample, of all of them.

    Args:
        plan: The resolved request.
        project: The project's name.
        tables: Holds the views' tables.
        engine: Reads them.
        sample: How many keys of each kind.
        seed: Which ones.

    Raises:
        RequestError: The sample is not positive.
    """
    if sample is not None and sample < 1:
        raise RequestError("A sample has one entity or more.", got=str(sample))
    types = dict(plan.key_columns)
    found: list[pa.Table] = []
    for names, joins in _groups(plan.joins):
        selects = []
        for join in joins:
            files = tables.snapshot(table_id(project, join.view)).files
            if files:
                selects.append(_keys(join, [file.path for file in files]))
        if selects:
            with engine.session() as session:
                found.append(session.fetch(_chosen(names, selects, sample, seed)))
    rows = max((table.num_rows for table in found), default=0 if types else 1)
    columns: dict[str, pa.Array] = {}
    for table in found:
        for name in table.column_names:
            if table.num_rows and name not in columns:
                columns[name] = _repeated(table.column(name), rows)
    return {name: _typed(columns.get(name), key.type, rows) for name, key in types.items()}


def from_caller(entities: Any, engine: Engine) -> InputRows:
    """Return the rows of a file or table that a caller names.

    Args:
        entities: A .parquet or .csv file, or a table as `entity_rows` takes it.
        engine: Reads files.

    Raises:
        RequestError: It is no such file or table.
    """
    if not isinstance(entities, str | Path):
        return InputRows.of(entities, "entities")
    path = Path(entities)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            "'entities' is no file that can be read.", got=str(path), allowed=".parquet or .csv"
        )
    with engine.session() as session:
        table = session.fetch(f"SELECT * FROM {reader}({literal(str(path))})")
    return InputRows.of(table, "entities")


def made_up(fields: Sequence[Column], rows: int, as_of: int, seed: int) -> dict[str, list[Any]]:
    """Return values for request fields, the same for the same arguments.

    Args:
        fields: The fields.
        rows: How many values each.
        as_of: Instants among them are near this one.
        seed: Which ones.
    """
    return {
        field.name: [_value(field.type, random.Random(f"{seed} {field.name} {row}"), as_of)  # noqa: S311
                     for row in range(rows)]
        for field in fields
    }  # fmt: skip


def _groups(joins: Sequence[Join]) -> list[tuple[tuple[str, ...], list[Join]]]:
    """Return joins by their key columns, the longest keys first."""
    groups: dict[tuple[str, ...], list[Join]] = {}
    for join in joins:
        if join.key_columns:
            groups.setdefault(join.key_columns, []).append(join)
    return sorted(groups.items(), key=lambda item: -len(item[0]))


def _keys(join: Join, files: Sequence[str]) -> str:
    pairs = zip(join.view.join_keys, join.key_columns, strict=True)
    columns = [f"CAST({quote(k.name)} AS {k.type.duckdb}) AS {quote(c)}" for k, c in pairs]
    listed = ", ".join(literal(file) for file in files)
    return f"SELECT {', '.join(columns)} FROM read_parquet([{listed}], hive_partitioning = false)"


def _chosen(names: Sequence[str], selects: Sequence[str], sample: int | None, seed: int) -> str:
    listed = ", ".join(quote(name) for name in names)
    distinct = f"SELECT DISTINCT {listed} FROM ({' UNION ALL '.join(selects)})"
    if sample is None:
        return f"{distinct} ORDER BY {listed}"
    drawn = f"md5(CAST(ROW({listed}) AS VARCHAR) || '#{seed}')"
    return f"SELECT {listed} FROM ({distinct}) ORDER BY {drawn}, {listed} LIMIT {sample}"


def _repeated(column: pa.ChunkedArray, rows: int) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    places = np.arange(rows) % len(column)
    return column.combine_chunks().take(pa.array(places))


def _typed(column: pa.Array | None, dtype: DType, rows: int) -> pa.Array:
    import pyarrow as pa

    if column is None:
        return pa.nulls(rows, dtype.arrow)
    return column if column.type.equals(dtype.arrow) else column.cast(dtype.arrow)


def _value(dtype: DType, chance: random.Random, as_of: int) -> Any:
    if dtype.container == "map":
        return {_scalar(dtype.key, chance, as_of): _scalar(dtype.scalar, chance, as_of)}
    if dtype.container:
        length = dtype.length or chance.randrange(4)
        return [_scalar(dtype.scalar, chance, as_of) for _ in range(length)]
    return _scalar(dtype.scalar, chance, as_of)


def _scalar(name: str, chance: random.Random, as_of: int) -> Any:
    moment = to_datetime(as_of) + timedelta(minutes=chance.randrange(600))
    makers: Mapping[str, Any] = {
        "bool": lambda: chance.random() < 0.5,  # noqa: PLR2004
        "int32": lambda: chance.randrange(1, 1000),
        "int64": lambda: chance.randrange(1, 1000),
        # Eighths are exact in both float types.
        "float32": lambda: chance.randrange(1, 8000) / 8,
        "float64": lambda: chance.randrange(1, 8000) / 8,
        "string": lambda: chance.choice("abcdef"),
        "bytes": lambda: chance.choice("abcdef").encode(),
        "date": lambda: date.fromordinal(moment.toordinal()),
        "timestamp": lambda: moment,
    }
    return makers[name]()
