"""SQL of the point-in-time join: one view at a time, narrow first, features last (laws T2, T3, J).

The entity rows stand in the temporary table `entity`: `row` (0, 1, 2 ...), `instant` (microseconds)
and one column a join key. A join finds for each of them the *position* of its newest visible row, a
file and a row number, and reads features only at those positions, in the order of the entity rows.

Only instants go through an ASOF join, never features: rows that tie in their instant are the same
row there (law J3). Which of them is newest is decided among the rows at the instants that were
found: by `created_timestamp`, and where that ties as well, by the canonical bytes (law T2). A table
that promises unique instants needs no such step. With knowledge "known", the newest row that had
been learnt by an instant is a running maximum over the order in which rows became known.

Instants are 64-bit integers here, within the years 1 to 9999; no difference of them overflows.
Dialect: DuckDB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.compile.plan import Column, ViewPlan
from featurestore.compile.request import Join
from featurestore.compile.table_sql import instant, literal, quote
from featurestore.semantics.rows import NULL_CREATED
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT

# A position is the file's index in the list of files and the row's number in the file.
_ROW_BITS = 40
_ROW_MASK = (1 << _ROW_BITS) - 1
# Longer than any two instants are apart; `timedelta.max` would not fit 64 bits.
_MAX_TTL_US = MAX_INSTANT - MIN_INSTANT
# (event, created) as one 128-bit number in the same order: both are shifted to be positive.
_EVENT_SHIFT = 1 << 60
_CREATED_SHIFT = 1 << 63
_WIDE_KEYS = {"int32": "BIGINT"}


@dataclass(frozen=True)
class JoinSpec:
    """One view to join.

    Attributes:
        number: Tells the temporary tables of one join from those of another.
        join: The view, its alias and the features to fetch.
        keys: The columns of `entity` that hold the join keys, in declared order.
        files: The table's files that may hold visible rows; their order is part of positions.
        low: The smallest instant among the entity rows.
        high: The largest.
        oldest: The smallest event timestamp in the files.
        rows: How many rows they hold.
        unique: Whether no two rows share keys and event timestamp; in a log, event and version.
        known: Whether rows count only from their `created_timestamp` on.
        timestamps: Whether the matched row's own timestamps are fetched too.
        applied: Whether rows of a stream count only as far as the table `applied` tells.
    """

    number: int
    join: Join
    keys: tuple[str, ...]
    files: tuple[str, ...]
    low: int
    high: int
    oldest: int
    rows: int
    unique: bool
    known: bool
    timestamps: bool
    applied: bool = False

    @property
    def view(self) -> ViewPlan:
        """The view."""
        return self.join.view

    @property
    def ttl(self) -> int | None:
        """The view's ttl, no longer than time itself."""
        return None if self.view.ttl_us is None else min(self.view.ttl_us, _MAX_TTL_US)

    @property
    def limited(self) -> bool:
        """Whether rows are limited to the instants that matter for their key.

        That pays where the ttl is short against the time that there is. Expired rows are hidden.
        """
        return self.ttl is not None and self.ttl < (self.high - self.oldest) // 2

    @property
    def direct(self) -> bool:
        """Whether the ASOF join finds the row itself, because nothing can tie."""
        return self.unique and not self.known

    @property
    def has_block(self) -> bool:
        """Whether there are features of it; of no events, windowed ones have a value, too."""
        return bool(self.files or self.view.aggregates)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The features to fetch, with their types."""
        wanted = set(self.join.features)
        return tuple(feature for feature in self.view.features if feature.name in wanted)

    def name(self, table: str) -> str:
        """Return the name of a temporary table of this join."""
        return f"{table}_{self.number}"


def key_type(column: Column) -> str:
    """Return the type in which a join key is compared: every integer by its value (law K1)."""
    return _WIDE_KEYS.get(column.dtype, column.type.duckdb)


def spans(spec: JoinSpec) -> str:
    """Return the statement that numbers the keys that are asked for.

    Later stages compare the numbers, which is faster than comparing long or composite keys. They
    are in the keys' order, which is that of the table's files: sorted runs are what the engine
    sorts fastest.
    """
    keys = ", ".join(_keys(spec))
    given = " AND ".join(f"{key} IS NOT NULL" for key in _keys(spec))
    limits = ""
    if spec.limited:
        limits = f", min(instant) - {spec.ttl} AS low, max(instant) AS high"
    return (
        f"CREATE TEMP TABLE {spec.name('spans')} AS SELECT {keys}{limits},"
        f" (row_number() OVER (ORDER BY {keys}))::INTEGER AS key FROM ({_entity(spec)})"
        f" WHERE {given} GROUP BY {keys}"
    )


def probes(spec: JoinSpec) -> str:
    """Return the statement that gives each entity row the number of its key, null without one."""
    if spec.keys:
        source = f"({_entity(spec)}) AS e LEFT JOIN {spec.name('spans')} AS s ON {_on(spec, 'e')}"
    else:
        source = "(SELECT row, instant, 0 AS key FROM entity) AS e"
    return f"CREATE TEMP TABLE {spec.name('probes')} AS SELECT row, instant, key FROM {source}"


def matches(spec: JoinSpec) -> str:
    """Return the statement that finds each entity row's position where nothing can tie."""
    position = _within_ttl(spec, "n.moment", "n.position")
    rows = _near(spec, "event AS moment, position", "event")
    return (
        f"CREATE TEMP TABLE {spec.name('matches')} AS SELECT e.row, {position} AS position"
        f" FROM {spec.name('probes')} AS e {_asof(rows)}"
    )


def found(spec: JoinSpec) -> str:
    """Return the statement that finds each entity row's place: where its newest rows stand.

    A place is the event timestamp; with "known" it is (event, created) as one number.
    """
    if spec.known:
        rows = (
            "SELECT key, moment, max(place) OVER (PARTITION BY key ORDER BY moment) AS place"
            f" FROM ({_near(spec, f'known AS moment, {_PLACE} AS place', 'known')})"
        )
        event = f"((n.place >> 64)::BIGINT - {_EVENT_SHIFT})"
    else:
        rows = _near(spec, "event AS moment, event AS place", "event")
        event = "n.moment"
    place = _within_ttl(spec, event, "n.place")
    return (
        f"CREATE TEMP TABLE {spec.name('found')} AS SELECT e.row, e.key, {place} AS place"
        f" FROM {spec.name('probes')} AS e {_asof(rows)}"
    )


def candidates(spec: JoinSpec) -> str:
    """Return the statement that collects all rows at the places that were found."""
    # With "known" all rows at one place were created at the same instant.
    columns = f"{_PLACE} AS place, 0 AS created" if spec.known else "event AS place, created"
    rows = _near(spec, f"{columns}, position", "known" if spec.known else "event")
    return (
        f"CREATE TEMP TABLE {spec.name('candidates')} AS SELECT n.* FROM ({rows}) AS n"
        f" SEMI JOIN {spec.name('found')} AS f ON {_same_place('n', 'f')}"
    )


def winners(spec: JoinSpec) -> str:
    """Return the statement that takes the row created last at each place (law T2).

    `copies` tells how many rows tie fully; where it is more than one, `settle` decides.
    """
    return (
        f"CREATE TEMP TABLE {spec.name('winners')} AS SELECT key, place, max(created) AS created,"
        " arg_max(position, created) AS position, arg_max(copies, created) AS copies"
        " FROM (SELECT key, place, created, min(position) AS position, count(*) AS copies"
        f" FROM {spec.name('candidates')} GROUP BY key, place, created) GROUP BY key, place"
    )


def full_ties(spec: JoinSpec) -> str:
    """Return a SELECT of how many places have rows that tie fully."""
    return f"SELECT count(*) AS n FROM {spec.name('winners')} WHERE copies > 1"


def tied(spec: JoinSpec) -> str:
    """Return the statement that reads all features of the rows that tie fully."""
    features = spec.view.features
    values = ", ".join(f"v{i} := s.v{i}" for i in range(len(features)))
    rows = (
        f"SELECT c.key, c.place, c.position, {_address('c.position')}"
        f" FROM {spec.name('candidates')} AS c JOIN {spec.name('winners')} AS w"
        f" ON {_same_place('c', 'w')} WHERE w.copies > 1 AND c.created = w.created"
    )
    return (
        f"CREATE TEMP TABLE {spec.name('tied')} AS SELECT t.key, t.place, t.position,"
        f" struct_pack({values}) AS features FROM ({rows}) AS t"
        f" JOIN ({_wide(spec, features)}) AS s ON {_same_address(spec, 't')}"
    )


def tied_type(view: ViewPlan) -> str:
    """Return the type of the column `features` of the table of `tied`."""
    return f"STRUCT({', '.join(f'v{i} {f.type.duckdb}' for i, f in enumerate(view.features))})"


def settle(spec: JoinSpec, canonical: str) -> str:
    """Return the statement that takes of fully tied rows the one of the largest canonical bytes.

    Args:
        spec: The join.
        canonical: The function from the features to their canonical bytes.
    """
    return (
        f"CREATE TEMP TABLE {spec.name('settled')} AS SELECT key, place,"
        f" arg_max(position, {canonical}(features)) AS position"
        f" FROM {spec.name('tied')} GROUP BY key, place"
    )


def chosen(spec: JoinSpec, *, ties: bool) -> str:
    """Return the statement that gives each entity row the position of its place's newest row.

    Args:
        spec: The join.
        ties: Whether some rows tie fully, so that `settle` was run.
    """
    join = f" LEFT JOIN {spec.name('winners')} AS w ON {_same_place('f', 'w')}"
    position = "w.position"
    if ties:
        join += f" LEFT JOIN {spec.name('settled')} AS s ON {_same_place('f', 's')}"
        position = "coalesce(s.position, w.position)"
    return (
        f"CREATE TEMP TABLE {spec.name('matches')} AS SELECT f.row, {position} AS position"
        f" FROM {spec.name('found')} AS f{join}"
    )


def block(spec: JoinSpec, first: int, last: int) -> list[str]:
    """Return statements that write the features of entity rows `[first, last)`, in their order.

    The first range makes the table; each further one adds to it.
    """
    columns = [f"s.v{i}" for i in range(len(spec.columns))]
    if spec.timestamps:
        columns += ["s.event_timestamp", "s.created_timestamp"]
    rows = (
        f"SELECT {', '.join(columns)} FROM (SELECT row, {_address('position')}"
        f" FROM {spec.name('matches')} WHERE row >= {first} AND row < {last}) AS m"
        f" LEFT JOIN ({_wide(spec, spec.columns)}) AS s ON {_same_address(spec, 'm')}"
        " ORDER BY m.row"
    )
    if first == 0:
        return [f"CREATE TEMP TABLE {spec.name('block')} AS {rows}"]
    return [f"INSERT INTO {spec.name('block')} {rows}"]


def drop(spec: JoinSpec) -> list[str]:
    """Return statements that let go of all of a join's tables but its block."""
    tables = ["spans", "probes", "found", "candidates", "winners", "tied", "settled", "matches"]
    return [f"DROP TABLE IF EXISTS {spec.name(table)}" for table in tables]


def result(specs: Sequence[JoinSpec], given: Sequence[str]) -> str:
    """Return the SELECT of the result, in the order of the entity rows.

    Args:
        specs: The joins, whose blocks are there.
        given: Columns of the table `given` that come first; none when the caller holds them.
    """
    columns = [f"given.{quote(name)} AS g{i}" for i, name in enumerate(given)]
    for spec in specs:
        columns += _block_columns(spec)
    source = "given" if given else "entity"
    blocks = "".join(f" POSITIONAL JOIN {spec.name('block')}" for spec in specs if spec.has_block)
    return f"SELECT {', '.join(columns) or 'entity.row'} FROM {source}{blocks}"


def _block_columns(spec: JoinSpec) -> list[str]:
    names = [f"v{i}" for i in range(len(spec.columns))]
    types = [column.type.duckdb for column in spec.columns]
    if spec.timestamps:
        names += ["event_timestamp", "created_timestamp"]
        types += ["TIMESTAMPTZ", "TIMESTAMPTZ"]
    as_names = [f"j{spec.number}_{i}" for i in range(len(names))]
    values = (
        [f"{spec.name('block')}.{name}" for name in names]
        if spec.has_block
        else [f"CAST(NULL AS {kind})" for kind in types]
    )
    return [f"{value} AS {name}" for value, name in zip(values, as_names, strict=True)]


_PLACE = (
    f"(((event + {_EVENT_SHIFT})::HUGEINT << 64) + (created::HUGEINT + {_CREATED_SHIFT}::HUGEINT))"
)


def _address(position: str) -> str:
    file = f"({position} >> {_ROW_BITS})::UBIGINT AS file"
    return f"{file}, ({position} & {_ROW_MASK}::BIGINT) AS number"


def _same_address(spec: JoinSpec, table: str) -> str:
    same = f"s.file_row_number = {table}.number"
    # One column is enough for one file, and lets the engine skip rows before it decodes them.
    return same if len(spec.files) == 1 else f"s.file_index = {table}.file AND {same}"


def _keys(spec: JoinSpec) -> list[str]:
    return [f"k{i}" for i in range(len(spec.keys))]


def _on(spec: JoinSpec, table: str, condition: str = "") -> str:
    same = [f"{table}.k{i} = s.k{i}" for i in range(len(spec.keys))]
    return " AND ".join([*same, *([condition] if condition else [])])


def _same_place(left: str, right: str) -> str:
    return f"{left}.key = {right}.key AND {left}.place = {right}.place"


def _asof(rows: str) -> str:
    return f"ASOF LEFT JOIN ({rows}) AS n ON e.key = n.key AND e.instant >= n.moment"


def _entity(spec: JoinSpec) -> str:
    keys = "".join(f", {name} AS k{i}" for i, name in enumerate(spec.keys))
    return f"SELECT row, instant{keys} FROM entity"


def _within_ttl(spec: JoinSpec, event: str, value: str) -> str:
    if spec.ttl is None:
        return value
    return f"CASE WHEN e.instant - {event} <= {spec.ttl} THEN {value} END"


def read_files(files: Sequence[str]) -> str:
    """Return the relation over files of a table."""
    return f"read_parquet([{', '.join(literal(f) for f in files)}], hive_partitioning = false)"


def _narrow(spec: JoinSpec) -> str:
    """The table's rows without features: keys, instants as integers, and their position."""
    columns = [
        f"CAST({quote(key.name)} AS {key_type(key)}) AS k{i}"
        for i, key in enumerate(spec.view.join_keys)
    ]
    columns.append("epoch_us(event_timestamp) AS event")
    created = str(NULL_CREATED)
    if spec.view.source.tells_created:
        created = f"coalesce(epoch_us(created_timestamp), {NULL_CREATED})"
    columns.append(f"({created})::BIGINT AS created")
    columns.append(f"(file_index::BIGINT << {_ROW_BITS}) + file_row_number AS position")
    bounds = [f"event_timestamp <= {instant(spec.high)}"]
    if spec.ttl is not None and spec.low - spec.ttl > MIN_INSTANT:
        bounds.append(f"event_timestamp >= {instant(spec.low - spec.ttl)}")
    if spec.known:
        bounds.append("created_timestamp IS NOT NULL")
    return f"SELECT {', '.join(columns)} FROM {read_files(spec.files)} WHERE {' AND '.join(bounds)}"


def _near(spec: JoinSpec, columns: str, upper: str) -> str:
    """Rows of keys that were asked for, within the instants that matter for each key."""
    rows = _narrow(spec)
    if spec.known:
        rows = f"SELECT *, greatest(event, created) AS known FROM ({rows})"
    if not spec.keys:
        return f"SELECT 0 AS key, {columns} FROM ({rows}) WHERE {upper} <= {spec.high}"
    limits = f"{upper} <= s.high AND event >= s.low" if spec.limited else ""
    numbered = f"{spec.name('spans')} AS s ON {_on(spec, 'r', limits)}"
    return f"SELECT s.key, {columns} FROM ({rows}) AS r JOIN {numbered}"


def _wide(spec: JoinSpec, features: Sequence[Column]) -> str:
    columns = ["file_index", "file_row_number"]
    columns += [
        f"CAST({quote(feature.name)} AS {feature.type.duckdb}) AS v{i}"
        for i, feature in enumerate(features)
    ]
    if spec.timestamps:
        columns += ["event_timestamp", "created_timestamp"]
    return f"SELECT {', '.join(columns)} FROM {read_files(spec.files)}"
