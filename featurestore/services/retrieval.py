"""Running a point-in-time join: stages in one engine session, features back in batches (law J).

One view after the other is joined and its features written, in the order of the entity rows, to a
temporary table of the engine, which spills to disk; the tables are then read side by side. So
memory is bounded by the engine's limit, however many rows there are. DuckDB's joins and sorts of
narrow rows spill by themselves. A sort of wide rows must not outgrow memory; so features are
written range by range of the entity rows where they are large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.compile import join_sql, window_sql
from featurestore.compile.join_sql import JoinSpec
from featurestore.compile.plan import ViewPlan
from featurestore.compile.request import Join, RequestPlan, slot
from featurestore.compile.table_sql import literal, quote
from featurestore.semantics.rows import payloads
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, Interval
from featurestore.services import window_retrieval
from featurestore.services.entity_needs import EntityRows, Loaded
from featurestore.services.lossless import exact
from featurestore.services.on_demand import OnDemandFunctions, run_steps
from featurestore.services.window_retrieval import Budget

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import EngineSession
    from featurestore.ports.tables import TableSnapshot

# A range of entity rows has features of at most this part of the session's memory.
_RANGE_PART = 4
_MIN_RANGE_ROWS = 2_048
_SAMPLE_ROWS = 2_048
_BATCH_BYTES = 16 * 1024 * 1024
TIMESTAMPS = ("event_timestamp", "created_timestamp")
CANONICAL = "canonical_{0}"


@dataclass(frozen=True)
class JoinTable:
    """A view to join, the version of its table, and what that was materialized from.

    Attributes:
        join: The view, its alias and features.
        snapshot: The table's files; version -1 when nothing was ever materialized.
        covered: The intervals that were materialized.
    """

    join: Join
    snapshot: TableSnapshot
    covered: tuple[Interval, ...]


@dataclass(frozen=True)
class Retrieval:
    """A checked request, ready to run.

    Attributes:
        plan: The resolved request.
        entity: The entity rows.
        tables: One for each join of the plan.
        known: Whether rows count only from when they were learnt.
        timestamps: Whether the matched rows' timestamps are part of the result.
        memory_limit: Bytes that the session may use.
        functions: The functions of on-demand views.
        applied: {alias of a windowed view: how far its stream is to be looked at, by entity
            (`applied_sql.limits`)}; others are looked at whole.
    """

    plan: RequestPlan
    entity: EntityRows
    tables: tuple[JoinTable, ...]
    known: bool
    timestamps: bool
    memory_limit: int
    functions: OnDemandFunctions
    applied: Mapping[str, pa.Table] = field(default_factory=dict)

    def outside(self, session: EngineSession, loaded: Loaded) -> dict[str, int]:
        """Return for each view how many entity rows fall outside what was materialized."""
        views = {table.join.view.name: table for table in self.tables}
        if not loaded.rows or not views:
            return dict.fromkeys(views, 0)
        counts = []
        for i, table in enumerate(views.values()):
            inside = [_inside(table.join.view, interval) for interval in table.covered]
            counts.append(f"count(*) FILTER (WHERE NOT ({' OR '.join(inside) or 'false'})) AS v{i}")
        row = session.fetch(f"SELECT {', '.join(counts)} FROM entity").to_pylist()[0]
        return dict(zip(views, row.values(), strict=True))

    def specs(self, loaded: Loaded) -> list[JoinSpec]:
        """Return the joins with the files that may hold rows for these entity rows."""
        columns = [name for name, _ in self.plan.key_columns]
        return [self._spec(i, table, columns, loaded) for i, table in enumerate(self.tables)]

    def _spec(
        self, number: int, table: JoinTable, columns: Sequence[str], loaded: Loaded
    ) -> JoinSpec:
        view = table.join.view
        reach = oldest_needed(view)
        low = None if reach is None else loaded.low - reach
        # A later version of an event may stand at any instant.
        anywhere = bool(view.aggregates) and window_sql.is_corrected(view)
        files = [
            file
            for file in table.snapshot.files
            if anywhere
            or (file.min_event <= loaded.high and (low is None or file.max_event >= low))
        ]
        return JoinSpec(
            number=number,
            join=table.join,
            keys=tuple(f"key_{columns.index(name)}" for name in table.join.key_columns),
            files=tuple(file.path for file in files) if loaded.rows else (),
            rows=sum(file.rows for file in files),
            low=loaded.low,
            high=loaded.high,
            oldest=min((file.min_event for file in files), default=loaded.high),
            unique=table.snapshot.metadata.get("unique") == "true",
            # Without a declared column a row counts as created when it happened.
            known=self.known and view.source.tells_created,
            timestamps=self.timestamps,
            applied=table.join.alias in self.applied,
        )

    def run(self, session: EngineSession, loaded: Loaded, batch_rows: int) -> Iterator[Batch]:
        """Join and return the result batch by batch; the session stays in use until the end."""
        specs = self.specs(loaded)
        widths = [row_width(session, spec, loaded.rows) for spec in specs]
        for spec, width in zip(specs, widths, strict=True):
            parts = ranges(loaded.rows, width, self.memory_limit)
            if spec.view.aggregates:
                if spec.applied:
                    session.register(spec.name("applied"), self.applied[spec.join.alias])
                budget = Budget.of(spec, self.memory_limit)
                window_retrieval.fill(session, spec, loaded.rows, parts, budget)
            elif spec.files:
                self._join(session, spec, parts)
        width = max(1, sum(widths))
        limited = max(1, min(batch_rows, _BATCH_BYTES // width))
        sql = join_sql.result(specs, self.entity.given)
        first = 0
        for batch in session.stream(sql, limited):
            for part in _cut(batch, limited):
                yield Batch(first, part, self._features(specs, part, first))
                first += part.num_rows

    def _join(
        self, session: EngineSession, spec: JoinSpec, parts: Sequence[tuple[int, int]]
    ) -> None:
        if spec.keys:
            session.run(join_sql.spans(spec))
        session.run(join_sql.probes(spec))
        if spec.direct:
            session.run(join_sql.matches(spec))
        else:
            self._reduce_ties(session, spec)
        for first, last in parts:
            for statement in join_sql.block(spec, first, last):
                session.run(statement)
        for statement in join_sql.drop(spec):
            session.run(statement)

    def _reduce_ties(self, session: EngineSession, spec: JoinSpec) -> None:
        for stage in (join_sql.found, join_sql.candidates, join_sql.winners):
            session.run(stage(spec))
        ties = session.fetch(join_sql.full_ties(spec))["n"][0].as_py() > 0
        if ties:
            session.run(join_sql.tied(spec))
            name = CANONICAL.format(spec.number)
            session.register_canonical(name, _canonical(spec.view), join_sql.tied_type(spec.view))
            session.run(join_sql.settle(spec, name))
        session.run(join_sql.chosen(spec, ties=ties))

    def _features(
        self, specs: Sequence[JoinSpec], batch: pa.RecordBatch, first: int
    ) -> dict[str, pa.Array]:
        """Return the result's columns behind those of the entity rows, of their exact types."""
        import pyarrow as pa

        from featurestore.semantics.nan import with_one_nan

        position = len(self.entity.given)
        slots: dict[str, pa.Array] = {}
        instants: dict[str, pa.Array] = {}
        for spec in specs:
            for column in spec.columns:
                name = slot(spec.join.alias, column.name)
                slots[name] = with_one_nan(exact(batch.column(position), column.type.arrow))
                position += 1
            for column_name in TIMESTAMPS if self.timestamps else ():
                name = slot(spec.join.alias, column_name)
                instants[name] = exact(batch.column(position), pa.timestamp("us", tz="UTC"))
                position += 1
        if self.plan.steps:
            request = self.entity.request(batch, first)
            slots = run_steps(self.plan, slots, request, batch.num_rows, self.functions)
        return {output.name: slots[output.slot] for output in self.plan.outputs} | instants

    @property
    def feature_schema(self) -> pa.Schema:
        """The columns that the result has behind those of the entity rows."""
        import pyarrow as pa

        fields = [(output.name, output.column.type.arrow) for output in self.plan.outputs]
        for table in self.tables if self.timestamps else ():
            instant = pa.timestamp("us", tz="UTC")
            fields += [(slot(table.join.alias, name), instant) for name in TIMESTAMPS]
        return pa.schema(fields)


@dataclass(frozen=True)
class Batch:
    """Some rows of a result.

    Attributes:
        first: The number of the first row.
        raw: What the engine returned.
        features: The columns behind those of the entity rows.
    """

    first: int
    raw: pa.RecordBatch
    features: Mapping[str, pa.Array]


def oldest_needed(view: ViewPlan) -> int | None:
    """Return how long before an instant rows of a view can matter for it; None without an end."""
    return window_sql.reach(view.aggregates) if view.aggregates else view.ttl_us


def _inside(view: ViewPlan, interval: Interval) -> str:
    """Return the condition that what an entity row sees of a view was materialized."""
    if not view.aggregates:
        return f"(instant >= {interval.start} AND instant < {interval.end})"
    reach = window_sql.reach(view.aggregates)
    if interval.start <= MIN_INSTANT:
        start = MIN_INSTANT
    else:
        start = MAX_INSTANT + 1 if reach is None else interval.start + reach
    # An event at the instant itself is not seen.
    return f"(instant >= {start} AND instant <= {interval.end})"


def ranges(rows: int, width: int, memory_limit: int) -> list[tuple[int, int]]:
    """Return ranges `[first, last)` of entity rows whose features fit memory well.

    >>> ranges(10_000, 1_000, 20_000_000)
    [(0, 5000), (5000, 10000)]
    """
    allowed = max(_MIN_RANGE_ROWS, memory_limit // _RANGE_PART // max(1, width))
    step = math.ceil(rows / math.ceil(rows / allowed)) if rows else 1
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def row_width(session: EngineSession, spec: JoinSpec, rows: int) -> int:
    """Return about how many bytes the features of a row take; texts and lists are sampled."""
    fixed = sum(column.type.width or 0 for column in spec.columns) + 16 * spec.timestamps
    varying = [column for column in spec.columns if column.type.width is None]
    if not varying or not spec.files or spec.view.aggregates or rows < _SAMPLE_ROWS:
        return fixed + 16 * len(varying)
    lengths = [f"avg(strlen(CAST({quote(column.name)} AS VARCHAR)))" for column in varying]
    total = " + ".join(f"coalesce({length}, 0)" for length in lengths)
    names = ", ".join(quote(column.name) for column in varying)
    sample = session.fetch(
        f"SELECT ceil({total})::BIGINT AS n FROM (SELECT {names} FROM read_parquet("
        f"{literal(spec.files[-1])}, hive_partitioning = false) LIMIT {_SAMPLE_ROWS})"
    )
    return fixed + 16 * len(varying) + int(sample["n"][0].as_py())


def _cut(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for first in range(0, batch.num_rows, rows):
        yield batch.slice(first, rows)


def _canonical(view: ViewPlan) -> Any:
    """Return the function from an array of a view's features to their canonical bytes."""

    def call(features: pa.Array) -> pa.Array:
        import pyarrow as pa

        columns = [
            exact(column, feature.type.arrow)
            for column, feature in zip(features.flatten(), view.features, strict=True)
        ]
        return pa.array(payloads(view.row_schema, columns, len(features)), pa.binary())

    return call
