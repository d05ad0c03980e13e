"""SQL of a snapshot: every entity known at an instant, as entity rows for a join.

Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.compile.join_sql import read_files
from featurestore.compile.request import Join
from featurestore.compile.table_sql import instant, quote


def entities(sources: Sequence[tuple[Join, Sequence[str]]], as_of: int, *, known: bool) -> str:
    """Return the SELECT of all keys that have a row up to an instant, sorted, with the instant.

    A key of an aggregated view is known by any version of an event before the instant.

    Args:
        sources: (view to join, its table's files); all are joined by the same columns.
        as_of: The instant.
        known: Whether a row counts only when it had been learnt by then.
    """
    selects = []
    for join, files in sources:
        columns = [
            f"CAST({quote(key.name)} AS {key.type.duckdb}) AS {quote(name)}"
            for name, key in zip(join.key_columns, join.view.join_keys, strict=True)
        ]
        # A window does not see an event at its own instant.
        before = "<" if join.view.aggregates else "<="
        conditions = [f"event_timestamp {before} {instant(as_of)}"]
        conditions += [f"{quote(key.name)} IS NOT NULL" for key in join.view.join_keys]
        if known and join.view.source.tells_created:
            conditions.append(f"created_timestamp {before} {instant(as_of)}")
        if files:
            rows = f"FROM {read_files(files)} WHERE {' AND '.join(conditions)}"
        else:
            rows = "WHERE false"
            columns = [
                f"CAST(NULL AS {key.type.duckdb}) AS {quote(name)}"
                for name, key in zip(join.key_columns, join.view.join_keys, strict=True)
            ]
        selects.append(f"SELECT DISTINCT {', '.join(columns) or '1 AS one'} {rows}")
    names = [quote(name) for name in sources[0][0].key_columns]
    order = f" ORDER BY {', '.join(names)}" if names else ""
    return (
        f"SELECT {''.join(f'{name}, ' for name in names)}{instant(as_of)} AS event_timestamp"
        f" FROM ({' UNION '.join(selects)}){order}"
    )
