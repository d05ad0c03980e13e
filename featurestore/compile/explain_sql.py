"""SQL of what one value comes from: the rows, or the events and their versions, of one entity.

The table `asked` has one row with the entity's keys k0, k1 ... Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.compile.join_sql import key_type
from featurestore.compile.plan import EVENT_ID, VERSION, ViewPlan
from featurestore.compile.table_sql import instant, quote, table_rows

ASKED = "asked"


def events(view: ViewPlan, files: Sequence[str], low: int | None, high: int) -> str:
    """Return the SELECT of all versions of events of which some version lies in a window.

    Args:
        view: The aggregated view.
        files: Those of its log.
        low: The first instant in the window, None for no beginning.
        high: The one behind its last.
    """
    inside = f"event_timestamp < {instant(high)}"
    if low is not None:
        inside += f" AND event_timestamp >= {instant(low)}"
    rows = f"SELECT * FROM ({table_rows(view.log, files)}) AS r WHERE {_of_entity(view)}"
    return (
        f"WITH found AS ({rows}) SELECT * FROM found WHERE {quote(EVENT_ID)} IN"
        f" (SELECT {quote(EVENT_ID)} FROM found WHERE {inside})"
        f" ORDER BY event_timestamp, {quote(EVENT_ID)}, {quote(VERSION)}"
    )


def rows(view: ViewPlan, files: Sequence[str], feature: str, as_of: int, limit: int) -> str:
    """Return the SELECT of the newest rows that had happened by an instant.

    Its columns are instant, learnt and value.
    """
    return (
        "SELECT epoch_us(event_timestamp) AS instant, epoch_us(created_timestamp) AS learnt,"
        f" {quote(feature)} AS value FROM ({table_rows(view, files)}) AS r"
        f" WHERE {_of_entity(view)} AND event_timestamp <= {instant(as_of)}"
        " ORDER BY event_timestamp DESC, created_timestamp DESC NULLS LAST"
        f" LIMIT {limit}"
    )


def _of_entity(view: ViewPlan) -> str:
    same = [
        f"CAST(r.{quote(key.name)} AS {key_type(key)}) = (SELECT k{i} FROM {ASKED})"
        for i, key in enumerate(view.join_keys)
    ]
    return " AND ".join(same) or "true"
