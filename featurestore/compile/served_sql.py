"""SQL of audits of what was served: which rows a table ever held for an entity (law L4).

What is asked for is registered under `WANTED`: k0, k1 ..., event (microseconds) and place.
Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.compile.join_sql import key_type, read_files
from featurestore.compile.plan import PARTITION
from featurestore.compile.table_sql import quote

if TYPE_CHECKING:
    from featurestore.compile.request import Join

WANTED = "wanted_rows"


def row_versions(join: Join, files: Sequence[str]) -> str:
    """Return the SELECT of all rows of a plain view at wanted instants: place, and the features."""
    features = ", ".join(f"r.{quote(name)}" for name in join.features)
    same = " AND ".join([*_same(join), "epoch_us(r.event_timestamp) = w.event"])
    return (
        f"SELECT w.place, {features} FROM {WANTED} AS w"
        f" JOIN {read_files(files)} AS r ON {same} ORDER BY w.place"
    )


def has_history(join: Join, files: Sequence[str]) -> str:
    """Return the SELECT of the places whose entities have rows that came from no stream."""
    same = " AND ".join([*_same(join), f"r.{quote(PARTITION)} IS NULL"])
    return f"SELECT DISTINCT w.place FROM {WANTED} AS w JOIN {read_files(files)} AS r ON {same}"


def _same(join: Join) -> list[str]:
    return [
        f"CAST(r.{quote(key.name)} AS {key_type(key)}) = w.k{i}"
        for i, key in enumerate(join.view.join_keys)
    ]
