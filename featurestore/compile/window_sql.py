"""SQL of windowed features: the events that matter for the entity rows, sorted (laws W1, W4, J4).

The table of an aggregated view is the log of its events. The engine does what it is best at: it
reads the columns and instants that matter, for the keys that are asked for, settles which version
of an event counts, and sorts, spilling where it must. What windows hold is found by the kernel
(`semantics.windowing`). Keys are numbered, and entity rows get their key's number, by the same
statements as for other joins (`join_sql`).

Most events have one version. Those that seem to have several (their hashes are counted) are
settled apart, exactly. A later version may stand at any instant, so where a source tells events by
an id of theirs, the whole log is looked at for them; otherwise an event is its row, and its only
version.

With knowledge "known", a version counts for instants after it was learnt, up to the first one at
which a version that outranks it had been learnt. Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.compile import applied_sql
from featurestore.compile.join_sql import JoinSpec, key_type, read_files
from featurestore.compile.plan import DELETED, EVENT_ID, VERSION, AggregatePlan, ViewPlan
from featurestore.compile.table_sql import instant, quote
from featurestore.dtypes import DType
from featurestore.semantics.rows import RowSchema
from featurestore.semantics.timeline import MIN_INSTANT

NEVER = 2**63 - 1


def wanted(spec: JoinSpec) -> list[AggregatePlan]:
    """Return the aggregates of the features that are asked for, in declared order."""
    names = set(spec.join.features)
    pairs = zip(spec.view.features, spec.view.aggregates, strict=True)
    return [plan for feature, plan in pairs if feature.name in names]


def reach(plans: Sequence[AggregatePlan]) -> int | None:
    """Return how long before an instant an event can count for aggregates; None without an end."""
    reaches = [plan.window.reach for plan in plans]
    return None if None in reaches else max((r for r in reaches if r is not None), default=0)


def inputs(spec: JoinSpec) -> list[int]:
    """Return the indexes of the view's inputs that the features read."""
    read = {index for plan in wanted(spec) for index in (plan.input, plan.by)}
    return sorted(index for index in read if index is not None)


def is_corrected(view: ViewPlan) -> bool:
    """Whether an event of the view may have versions that differ."""
    return view.source.event_id is not None or view.source.stream is not None


def spans(spec: JoinSpec) -> str:
    """Return the statement that numbers the keys that are asked for, as `join_sql.spans` does.

    Where windows are short against the time that there is, with the instants that matter for each.
    """
    names = [f"k{i}" for i in range(len(spec.keys))]
    keys = ", ".join(names)
    given = " AND ".join(f"{name} IS NOT NULL" for name in names)
    columns = ", ".join(f"{key} AS {name}" for key, name in zip(spec.keys, names, strict=True))
    limits = ""
    if _limited(spec):
        limits = f", min(instant) - {reach(wanted(spec))} AS low, max(instant) AS high"
    return (
        f"CREATE TEMP TABLE {spec.name('spans')} AS SELECT {keys}{limits},"
        f" (row_number() OVER (ORDER BY {keys}))::INTEGER AS key FROM"
        f" (SELECT instant, {columns} FROM entity) WHERE {given} GROUP BY {keys}"
    )


def order(spec: JoinSpec) -> str:
    """Return the statement that sorts the entity rows by the number of their key, then instant."""
    return (
        f"CREATE TEMP TABLE {spec.name('asked')} AS SELECT row, instant, key::BIGINT AS key"
        f" FROM {spec.name('probes')} ORDER BY key NULLS LAST, instant"
    )


def keyed(spec: JoinSpec) -> str:
    """Return the SELECT of the sorted entity rows that have a key (law K2)."""
    return f"SELECT * FROM {spec.name('asked')} WHERE key IS NOT NULL"


def contested(spec: JoinSpec) -> str:
    """Return the statement that finds events which seem to have more than one version."""
    rows = _log(spec, bounded=not is_corrected(spec.view))
    return (
        f"CREATE TEMP TABLE {spec.name('contested')} AS SELECT h FROM"
        f" (SELECT {_HASH} AS h FROM {rows}) GROUP BY h HAVING count(*) > 1"
    )


def versions(spec: JoinSpec) -> str:
    """Return the statement that reads all versions of contested events.

    `copies` tells how many of them share event and version; which of these counts is for `settled`.
    """
    every = range(len(spec.view.inputs))
    rows = _log(spec, bounded=not is_corrected(spec.view), inputs=every)
    columns = ["key", "instant", "id", "version", "gone", "learnt", *(f"i{i}" for i in every)]
    return (
        f"CREATE TEMP TABLE {spec.name('versions')} AS SELECT {', '.join(columns)},"
        f" count(*) OVER (PARTITION BY key, id, version) AS copies FROM {rows}"
        f" WHERE {_HASH} IN (FROM {spec.name('contested')})"
    )


def ties(spec: JoinSpec) -> str:
    """Return a SELECT of a row if two versions share event and version number, else of none."""
    return f"SELECT 1 AS tied FROM {spec.name('versions')} WHERE copies > 1 LIMIT 1"


def settled(spec: JoinSpec, canonical: str | None) -> str:
    """Return the statement that keeps the versions which count (law W1).

    Args:
        spec: The join.
        canonical: The function that ranks versions which tie, by their canonical bytes; None where
            none do.
    """
    values = ["make_timestamptz(instant)", "gone", *(f"i{i}" for i in range(len(spec.view.inputs)))]
    packed = ", ".join(f"v{i} := {value}" for i, value in enumerate(values))
    rank = f"CASE WHEN copies > 1 THEN {canonical}(struct_pack({packed})) END" if canonical else "0"
    ranked = f"SELECT *, {rank} AS rank FROM {spec.name('versions')}"
    over = "PARTITION BY key, id ORDER BY version DESC NULLS LAST, rank DESC"
    if spec.known:
        higher = f"min(learnt) OVER ({over} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        kept = f"SELECT *, coalesce({higher}, {NEVER}) AS until FROM ({ranked})"
        condition = "learnt < until"
    else:
        kept = f"SELECT *, row_number() OVER ({over}) AS place FROM ({ranked})"
        condition = "place = 1"
    return (
        f"CREATE TEMP TABLE {spec.name('settled')} AS SELECT {_columns(spec, 'id')} FROM ({kept})"
        f" WHERE {condition} AND NOT gone AND {_within(spec, 'instant')}"
    )


def events(spec: JoinSpec, *, apart: bool) -> str:
    """Return the SELECT of all versions that count, sorted by number of key, instant and event id.

    Its columns are key, instant, i0, i1 ... of the inputs that are read, and with knowledge "known"
    `learnt` and `until`.

    Args:
        spec: The join.
        apart: Whether contested events were settled apart.
    """
    rows = f"SELECT *, {NEVER} AS until FROM {_log(spec, bounded=True, inputs=inputs(spec))}"
    condition = f" AND {_HASH} NOT IN (FROM {spec.name('contested')})" if apart else ""
    found = f"SELECT {_columns(spec, 'id')} FROM ({rows}) WHERE NOT gone{condition}"
    if apart:
        found += f" UNION ALL SELECT * FROM {spec.name('settled')}"
    return f"SELECT {_columns(spec)} FROM ({found}) ORDER BY key, instant, id"


def kept_events(spec: JoinSpec, *, apart: bool) -> str:
    """Return the statement that keeps the result of `events`, in its order, where it may spill."""
    return f"CREATE TEMP TABLE {spec.name('events')} AS {events(spec, apart=apart)}"


def counts(table: str) -> str:
    """Return the SELECT of how many rows of a sorted table each key has, by the keys' numbers."""
    return f"SELECT key, count(*) AS n FROM {table} WHERE key IS NOT NULL GROUP BY key ORDER BY key"


def part(spec: JoinSpec, table: str, rows: tuple[int, int], condition: str = "true") -> str:
    """Return the SELECT of the rows `[first, last)` of a sorted table, in its order."""
    first, last = rows
    return (
        f"SELECT * FROM {spec.name(table)} WHERE rowid >= {first} AND rowid < {last}"
        f" AND {condition}"
    )


def seen(spec: JoinSpec, first: int, last: int) -> str:
    """Return the condition of events that entity rows from `first` to `last` can see."""
    longest = reach(wanted(spec))
    low = "true" if longest is None else f"instant >= {first - longest}"
    return f"{low} AND instant < {last}"


def features(spec: JoinSpec) -> str:
    """Return the statement that makes the table of results, with the rows that have no key."""
    values = [
        f"CAST(NULL AS {column.type.duckdb}) AS v{i}" for i, column in enumerate(spec.columns)
    ]
    return (
        f"CREATE TEMP TABLE {spec.name('features')} AS SELECT row, NULL::BIGINT AS instant,"
        f" {', '.join(values)} FROM {spec.name('asked')} WHERE key IS NULL"
    )


def block(spec: JoinSpec, table: str, rows: tuple[int, int] | None) -> str:
    """Return the statement that writes features in the order of the entity rows.

    Args:
        spec: The join.
        table: Has a column a feature, `row` and `instant`.
        rows: A range of entity rows, the first of which makes the block; None where the table has
            all of them in order.
    """
    columns = [
        f"CAST(v{i} AS {column.type.duckdb}) AS v{i}" for i, column in enumerate(spec.columns)
    ]
    if spec.timestamps:
        columns.append("make_timestamptz(instant) AS event_timestamp")
        columns.append("CAST(NULL AS TIMESTAMPTZ) AS created_timestamp")
    select = f"SELECT {', '.join(columns)} FROM {table}"
    if rows is not None:
        select += f" WHERE row >= {rows[0]} AND row < {rows[1]} ORDER BY row"
    if rows is None or rows[0] == 0:
        return f"CREATE TEMP TABLE {spec.name('block')} AS {select}"
    return f"INSERT INTO {spec.name('block')} {select}"


def packed_type(view: ViewPlan) -> str:
    """Return the type of the structs that `settled` ranks."""
    types = ["TIMESTAMPTZ", "BOOLEAN", *(each.type.duckdb for each in view.inputs)]
    return f"STRUCT({', '.join(f'v{i} {kind}' for i, kind in enumerate(types))})"


def packed_schema(view: ViewPlan) -> RowSchema:
    """Return the columns whose canonical bytes rank versions of an event that tie."""
    names = ("instant", "deleted", *(each.name for each in view.inputs))
    types = (DType("timestamp"), DType("bool"), *(each.type for each in view.inputs))
    return RowSchema(names, types, b"")


def drop(spec: JoinSpec) -> list[str]:
    """Return statements that let go of all of a join's tables but its block."""
    tables = ["spans", "probes", "asked", "contested", "versions", "settled", "events", "features"]
    return [f"DROP TABLE IF EXISTS {spec.name(table)}" for table in tables]


_HASH = "hash(key, id)"


def _columns(spec: JoinSpec, *more: str) -> str:
    known = ("learnt", "until") if spec.known else ()
    return ", ".join(["key", "instant", *(f"i{i}" for i in inputs(spec)), *known, *more])


def _log(spec: JoinSpec, *, bounded: bool, inputs: Sequence[int] = ()) -> str:
    """Return the relation of the versions of the keys that are asked for.

    Its columns are key, id, version, gone, instant, learnt and the inputs.

    Args:
        spec: The join.
        bounded: Whether only instants within reach of the entity rows matter.
        inputs: Indexes of the inputs to read.
    """
    view = spec.view
    columns = [
        f"{quote(EVENT_ID)} AS id",
        f"{quote(VERSION)} AS version",
        f"{quote(DELETED)} AS gone",
        "epoch_us(event_timestamp) AS instant",
        "epoch_us(created_timestamp) AS learnt",
    ]
    for i in inputs:
        each = view.inputs[i]
        columns.append(f"CAST({quote(each.name)} AS {each.type.duckdb}) AS i{i}")
    keys = [
        f"CAST({quote(key.name)} AS {key_type(key)}) AS k{i}"
        for i, key in enumerate(view.join_keys)
    ]
    conditions = [_within(spec, "event_timestamp")] if bounded else []
    if spec.known:  # a version that was never learnt is left out, too
        conditions.append(f"created_timestamp < {instant(spec.high)}")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    if spec.applied:
        columns += applied_sql.PLACE
    rows = f"SELECT {', '.join([*keys, *columns])} FROM {read_files(spec.files)}{where}"
    if spec.applied:
        rows = applied_sql.applied_rows(rows, spec.name("applied"), len(keys))
    if not view.join_keys:
        return f"(SELECT 0::BIGINT AS key, * FROM ({rows}))"
    same = [f"r.k{i} = s.k{i}" for i in range(len(keys))]
    if bounded and _limited(spec):
        same.append("r.instant >= s.low AND r.instant < s.high")
    numbers = f"{spec.name('spans')} AS s ON {' AND '.join(same)}"
    return f"(SELECT s.key::BIGINT AS key, r.* FROM ({rows}) AS r JOIN {numbers})"


def _limited(spec: JoinSpec) -> bool:
    """Whether the instants that matter are told for each key; long windows need all of them."""
    longest = reach(wanted(spec))
    return longest is not None and longest < (spec.high - spec.oldest) // 2


def _within(spec: JoinSpec, column: str) -> str:
    """Return the condition that an instant is within reach of the entity rows."""
    low, high = horizon(spec)
    literals = [str(low), str(high)] if column == "instant" else [instant(low), instant(high)]
    return f"{column} >= {literals[0]} AND {column} < {literals[1]}"


def horizon(spec: JoinSpec) -> tuple[int, int]:
    """Return the instants `[first, last)` of events that can count."""
    longest = reach(wanted(spec))
    low = MIN_INSTANT if longest is None else max(MIN_INSTANT, spec.low - longest)
    return low, max(low, spec.high)
