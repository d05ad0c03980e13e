"""SQL over a view's own table: reading its files, staging new rows, finding the newest (T2, M1-M6).

Dialect: DuckDB. Everything that is named is quoted. A table has the columns join keys,
`event_timestamp`, `created_timestamp` (null throughout where the source declares none), features
and `event_period`, the partition. The table of an aggregated view is the log of its events: there
`view` is `ViewPlan.log`, whose features are the events' own columns and the view's inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from featurestore.compile.plan import EVENT_ID, VERSION, ViewPlan
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, Interval, to_datetime

Granularity = Literal["all", "year", "month", "day"]
GRANULARITIES: tuple[Granularity, ...] = ("all", "year", "month", "day")
_FORMATS = {"year": "%Y", "month": "%Y-%m", "day": "%Y-%m-%d"}
_SECONDS = {"all": 0, "year": 31_556_952, "month": 2_629_746, "day": 86_400}
_VARYING_BYTES = 24
# zstd Parquet against the plain width of columns; a guess that only sizes partitions.
_COMPRESSION = 0.5


def quote(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a quoted text."""
    return "'" + text.replace("'", "''") + "'"


def instant(value: int) -> str:
    """Return the literal of an instant."""
    return f"TIMESTAMPTZ '{to_datetime(value).isoformat(sep=' ')}'"


def keys(view: ViewPlan) -> list[str]:
    """Return the quoted join keys."""
    return [quote(key.name) for key in view.join_keys]


def columns(view: ViewPlan) -> list[str]:
    """Return the quoted columns of the table in order, without the partition."""
    features = [quote(feature.name) for feature in view.features]
    return [*keys(view), "event_timestamp", "created_timestamp", *features]


def table_rows(view: ViewPlan, files: Sequence[str]) -> str:
    """Return a SELECT of the table's rows in some of its files, every column of its exact type."""
    typed = [
        *(f"CAST({quote(c.name)} AS {c.type.duckdb}) AS {quote(c.name)}" for c in view.join_keys),
        "event_timestamp",
        "created_timestamp",
        *(f"CAST({quote(f.name)} AS {f.type.duckdb}) AS {quote(f.name)}" for f in view.features),
    ]
    if not files:
        nulls = [
            *(f"CAST(NULL AS {c.type.duckdb}) AS {quote(c.name)}" for c in view.join_keys),
            "CAST(NULL AS TIMESTAMPTZ) AS event_timestamp",
            "CAST(NULL AS TIMESTAMPTZ) AS created_timestamp",
            *(f"CAST(NULL AS {f.type.duckdb}) AS {quote(f.name)}" for f in view.features),
        ]
        return f"SELECT {', '.join(nulls)} WHERE false"
    names = ", ".join(literal(name) for name in files)
    return f"SELECT {', '.join(typed)} FROM read_parquet([{names}], hive_partitioning = false)"


def within(intervals: Iterable[Interval]) -> str:
    """Return the condition that a row's event lies in one of the half-open intervals (law M1)."""
    parts = []
    for interval in intervals:
        bounds = []
        if interval.start > MIN_INSTANT:
            bounds.append(f"event_timestamp >= {instant(interval.start)}")
        if interval.end <= MAX_INSTANT:
            bounds.append(f"event_timestamp < {instant(interval.end)}")
        parts.append("(" + (" AND ".join(bounds) or "true") + ")")
    return "(" + (" OR ".join(parts) or "false") + ")"


def stage(parts: Sequence[tuple[str, Sequence[Interval]]]) -> str:
    """Return the statement that reads the source once into the temporary table `staged`.

    Args:
        parts: (SELECT of a view's rows from some files, the intervals wanted of them).
    """
    # A fact that is said to be learnt at "infinity" was not learnt at any instant.
    known = "CASE WHEN isfinite(created_timestamp) THEN created_timestamp END AS created_timestamp"
    selects = [
        f"SELECT * REPLACE ({known}) FROM ({rows})"
        f" WHERE {within(intervals)} OR event_timestamp IS NULL"
        for rows, intervals in parts
    ]
    return f"CREATE TEMP TABLE staged AS {' UNION ALL '.join(selects)}"


def rejected(view: ViewPlan) -> str:
    """Return the condition of rows that belong to no entity or no instant (laws T1, K2)."""
    conditions = [
        "event_timestamp IS NULL",
        "NOT isfinite(event_timestamp)",
        f"event_timestamp < {instant(MIN_INSTANT)}",
        f"event_timestamp > {instant(MAX_INSTANT)}",
        *(f"{key} IS NULL" for key in keys(view)),
    ]
    if view.is_log:
        conditions += [f"{EVENT_ID} IS NULL", f"{VERSION} IS NULL"]
    return "(" + " OR ".join(conditions) + ")"


def identity(view: ViewPlan) -> list[str]:
    """Return the columns by which two rows of a table speak of one fact (laws T2, W1)."""
    if view.is_log:
        return [*keys(view), EVENT_ID, VERSION]
    return [*keys(view), "event_timestamp"]


def broken_vectors(view: ViewPlan) -> str | None:
    """Return the condition of rows with a vector of another length or with a null item.

    None where the view has no vectors.
    """
    conditions = []
    for feature in view.features:
        if feature.type.container == "vector":
            name = quote(feature.name)
            conditions.append(f"len({name}) <> {feature.type.length}")
            conditions.append(f"len(list_filter({name}, lambda x: x IS NULL)) > 0")
    return " OR ".join(conditions) or None


def fresh(view: ViewPlan, existing: str | None) -> str:
    """Return the SELECT of staged rows that the table does not hold yet (law M3).

    A row is told by all of its columns, the sign of zeros included; so a row that comes again is
    not written again, and a row of other values is.

    Args:
        view: The view.
        existing: A SELECT of the table's rows that could be the same; None when there are none.
    """
    listed = ", ".join(columns(view))
    if existing is None:
        return f"SELECT {listed} FROM staged"
    # Signs are columns of their own: as functions of columns that are equal they would be
    # optimized away, and 0.0 equals -0.0.
    signs = [
        _sign(quote(feature.name), feature.type.container)
        for feature in view.features
        if feature.type.scalar in {"float32", "float64"}
    ]
    extra = "".join(f", {sign} AS sign_{number}" for number, sign in enumerate(signs))
    compared = [*columns(view), *(f"sign_{number}" for number in range(len(signs)))]
    same = " AND ".join(f"n.{column} IS NOT DISTINCT FROM e.{column}" for column in compared)
    return (
        f"SELECT {listed} FROM (SELECT {listed}{extra} FROM staged) AS n WHERE NOT EXISTS"
        f" (SELECT 1 FROM (SELECT {listed}{extra} FROM ({existing})) AS e WHERE {same})"
    )


def _sign(name: str, container: str) -> str:
    if not container:
        return f"signbit({name})"
    items = f"map_values({name})" if container == "map" else name
    return f"list_transform({items}, lambda x: signbit(x))"


def choose_granularity(view: ViewPlan, rows: int, span_us: int, target_bytes: int) -> Granularity:
    """Return the coarsest partitioning whose files stay within about twice the target size.

    Args:
        view: The view, for the width of its rows.
        rows: How many rows there are.
        span_us: The time between the first and the last of them.
        target_bytes: The wanted size of a file.
    """
    all_columns = (*view.join_keys, *view.features)
    width = 16 + sum(column.type.width or _VARYING_BYTES for column in all_columns)
    total = rows * width * _COMPRESSION
    for granularity in GRANULARITIES[:-1]:
        seconds = _SECONDS[granularity]
        parts = max(1.0, span_us / 1e6 / seconds) if seconds else 1.0
        if total / parts <= 2 * target_bytes:
            return granularity
    return GRANULARITIES[-1]


def period(granularity: Granularity) -> str:
    """Return the expression of the partition that a row falls in."""
    if granularity == "all":
        return "'all'"
    return f"strftime(event_timestamp AT TIME ZONE 'UTC', '{_FORMATS[granularity]}')"


def sorted_rows(view: ViewPlan, rows: str, granularity: Granularity) -> str:
    """Return rows with their partition, sorted as files hold them."""
    order = ["event_period", *keys(view), "event_timestamp", "created_timestamp NULLS FIRST"]
    return (
        f"SELECT {', '.join(columns(view))}, {period(granularity)} AS event_period"
        f" FROM ({rows}) ORDER BY {', '.join(order)}"
    )


def repeated_events(view: ViewPlan, rows: str) -> str:
    """Return a SELECT of one row if two rows speak of one fact, else of none."""
    group = ", ".join(identity(view))
    return f"SELECT 1 FROM ({rows}) GROUP BY {group} HAVING count(*) > 1 LIMIT 1"


def tied_rows(view: ViewPlan, rows: str) -> str:
    """Return the count of rows that tie fully with another of other values (law T2)."""
    group = ", ".join(dict.fromkeys([*identity(view), "created_timestamp"]))
    return (
        "SELECT coalesce(sum(n), 0)::BIGINT AS tied FROM (SELECT count(*) AS n FROM"
        f" (SELECT DISTINCT {', '.join(columns(view))} FROM ({rows})) GROUP BY {group}"
        " HAVING count(*) > 1)"
    )


def events(view: ViewPlan, rows: str) -> str:
    """Return the SELECT of a log's rows, those of an entity together."""
    listed = ", ".join(columns(view))
    order = ", ".join([*keys(view), "event_timestamp"])
    return f"SELECT {listed} FROM ({rows}) ORDER BY {order}"


def newest(view: ViewPlan, rows: str, until: int) -> str:
    """Return the SELECT of each entity's newest rows by (event, created) up to an instant.

    Rows that tie fully all come; the store settles them by their canonical bytes (law T2). They
    come sorted by key, since stores that keep keys in order are written several times faster so.
    """
    names = keys(view)
    seen = f"SELECT * FROM ({rows}) WHERE event_timestamp <= {instant(min(until, MAX_INSTANT))}"
    group = f" GROUP BY {', '.join(names)}" if names else ""
    tops = (
        f"SELECT {', '.join([*names, 'max(event_timestamp) AS newest_event'])} FROM ({seen}){group}"
    )
    match = " AND ".join([*(f"s.{n} = t.{n}" for n in names), "s.event_timestamp = t.newest_event"])
    partition = f"PARTITION BY {', '.join(names)} " if names else ""
    listed = ", ".join(columns(view))
    candidates = f"SELECT s.* FROM ({seen}) AS s JOIN ({tops}) AS t ON {match}"
    order = f" ORDER BY {', '.join(names)}" if names else ""
    return (
        f"SELECT {listed} FROM ({candidates}) QUALIFY rank() OVER"
        f" ({partition}ORDER BY created_timestamp DESC NULLS LAST) = 1{order}"
    )
