"""Entity rows: what callers hand in, read strictly, before any join (laws T1, K2, J1).

Accepted are tables in memory, Parquet files and queries. Refused, by name: missing columns,
instants that are null or have no zone, join keys that cannot be read as their type without loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.services.entity_memory import MemoryRows
from featurestore.services.entity_needs import EntityRows, Needs
from featurestore.services.entity_query import QueryRows

if TYPE_CHECKING:
    from featurestore.ports.engine import Engine


def read(entity_rows: Any, needs: Needs, engine: Engine) -> EntityRows:
    """Return entity rows of any accepted form, checked.

    Args:
        entity_rows: A pyarrow, polars or pandas table, a list of dicts, a Parquet path or SQL.
        needs: What the request reads from them.
        engine: Tells the columns of a file or query.

    Raises:
        MissingColumnError: A join key, the timestamp column or a request field is missing.
        NaiveTimestampError: The instants have no time zone.
        RequestError: They are of no accepted form, a join key has another type, or instants are
            null.
    """
    if isinstance(entity_rows, Path):
        return QueryRows.of_path(str(entity_rows), needs, engine)
    if isinstance(entity_rows, str):
        text = entity_rows.strip().rstrip(";")
        if text.lower().endswith(".parquet"):
            return QueryRows.of_path(text, needs, engine)
        return QueryRows(f"({text})", needs, engine, "a query")
    return MemoryRows(entity_rows, needs)
