"""SQL over the log of a source's live events: the rows behind what was read, as the history's.

The log has the columns that the history had when each file was written. Columns that came later are
null in older files, and types are those that hold both. Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from featurestore.compile.event_sql import ACCEPTED, INDEX
from featurestore.compile.plan import PARTITION, POSITION
from featurestore.compile.table_sql import literal, quote

if TYPE_CHECKING:
    from featurestore.compile.plan import SourcePlan

LIVE_COLUMNS = (PARTITION, POSITION, INDEX, ACCEPTED)
"""What the log has beside the source's own columns: where the stream had a row, and since when."""

ROW, REASON = "_row", "_reason"


def behind(positions: Mapping[str, int]) -> str:
    """Return the condition that a row of a log lies behind positions of its partitions.

    >>> behind({"0": 7})
    "NOT ((_partition = '0' AND _position <= 7))"
    """
    seen = [
        f"({PARTITION} = {literal(name)} AND {POSITION} <= {position})"
        for name, position in sorted(positions.items())
    ]
    return f"NOT ({' OR '.join(seen)})" if seen else "true"


def unapplied(ranges: Mapping[str, tuple[int, int]]) -> str:
    """Return the condition that an event of a view's log lies outside of ranges of positions.

    Args:
        ranges: {partition: (first, last position)}.
    """
    inside = [
        f"({PARTITION} IS NOT DISTINCT FROM {literal(name)}"
        f" AND {POSITION} BETWEEN {first} AND {last})"
        for name, (first, last) in sorted(ranges.items())
    ]
    return f"NOT coalesce({' OR '.join(inside)}, false)" if inside else "true"


def live_relation(history: str, files: Sequence[str], after: Mapping[str, int]) -> str:
    """Return SQL, to stand behind FROM, of a log's rows behind positions.

    Args:
        history: The relation over the source's history, for its columns.
        files: Files of the log, one or more.
        after: {partition: position} of what is not wanted any more.
    """
    names = ", ".join(literal(name) for name in files)
    rows = f"SELECT * FROM read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
    return f"(SELECT * FROM {history} WHERE false UNION ALL BY NAME {rows} WHERE {behind(after)})"


def rejection(conditions: Mapping[str, str]) -> str:
    """Return the SQL of why a row is refused: the first condition that holds, or null.

    Args:
        conditions: {reason: condition}.
    """
    cases = " ".join(f"WHEN {sql} THEN {literal(why)}" for why, sql in conditions.items())
    return f"CASE {cases} END AS {quote(REASON)}"


def raw_name(source: SourcePlan, name: str) -> str:
    """Return the name that a column has in the source itself, before `field_mapping`."""
    return next((raw for raw, new in source.field_mapping.items() if new == name), name)
