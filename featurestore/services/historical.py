"""Training sets and batch scoring: features of entity rows as of each row's instant (laws T, K, J).

What can be known to be wrong is told when a job is made; the join runs when a result is asked for.
A job sees the tables as they were when it was made, so that asking twice gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from featurestore.compile import snapshot_sql
from featurestore.compile.plan import table_id
from featurestore.compile.request import FeaturesArgument, Join, RequestPlan, resolve, slot
from featurestore.errors import MissingColumnError, NameClashError, RequestError, listing
from featurestore.semantics.timeline import (
    MAX_INSTANT,
    MIN_INSTANT,
    Interval,
    difference,
    format_instant,
)
from featurestore.services.entity_needs import EntityRows, Needs
from featurestore.services.entity_query import QueryRows
from featurestore.services.entity_rows import read
from featurestore.services.intervals import covered
from featurestore.services.retrieval import TIMESTAMPS, JoinTable, Retrieval, oldest_needed
from featurestore.services.retrieval_job import RetrievalJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.engine import Engine
    from featurestore.ports.registry import Registry
    from featurestore.ports.tables import Tables
    from featurestore.services.on_demand import OnDemandFunctions
    from featurestore.services.state import StateCache

__all__ = ["HistoricalReader", "RetrievalJob"]

Knowledge = Literal["healed", "known"]
Materialize = Callable[[str, int, int], object]


class HistoricalReader:
    """Makes retrieval jobs of one project.

    Args:
        project: The project's name.
        state: The applied definitions.
        engine: Runs the joins.
        tables: Holds the views' rows.
        functions: The functions of on-demand views.
        registry: Tells what has been materialized.
        clock: Tells how far materializing can go.
        memory_limit: Bytes that a join may use before it spills.
        materialize: Called with (view, start, end) to fill what is missing, on request.
    """

    def __init__(
        self,
        project: str,
        *,
        state: StateCache,
        engine: Engine,
        tables: Tables,
        functions: OnDemandFunctions,
        registry: Registry,
        clock: Clock,
        memory_limit: int,
        materialize: Materialize | None = None,
    ) -> None:
        self._project = project
        self._state = state
        self._engine = engine
        self._tables = tables
        self._functions = functions
        self._registry = registry
        self._clock = clock
        self._memory_limit = memory_limit
        self._materialize = materialize

    def get_historical_features(
        self,
        entity_rows: Any,
        features: FeaturesArgument,
        *,
        timestamp_column: str = "event_timestamp",
        knowledge: Knowledge = "healed",
        full_feature_names: bool = False,
        include_timestamps: bool = False,
        materialize_missing: bool = False,
        applied: Mapping[str, pa.Table] | None = None,
    ) -> RetrievalJob:
        """Return the job that joins features to entity rows.

        Args:
            entity_rows: A pyarrow, polars or pandas table, a list of dicts, a Parquet path
                (relative to the repository) or a SQL string.
            features: A service, its name, or a list of `view:feature` references.
            timestamp_column: The entity rows' column of instants, aware.
            knowledge: "healed" uses all that the tables hold; "known" only what had been learnt by
                each row's instant (law J4).
            full_feature_names: Name result columns `view__feature`.
            include_timestamps: Add `view__event_timestamp` and `view__created_timestamp` of the
                rows that were matched.
            materialize_missing: Fill first, when the job runs, what the entity rows need and was
                never materialized.
            applied: {alias of a windowed view: how far its stream is to be looked at, by entity},
                for verification.

        Raises:
            FeatureNotFoundError: A reference names nothing.
            MissingColumnError: The entity rows lack a column.
            NameClashError: Two result columns would share a name.
            NaiveTimestampError: The instants have no time zone.
            RequestError: Something else about the entity rows or the arguments is wrong.
        """
        known = _is_known(knowledge)

        def prepare() -> Retrieval:
            plan = self._resolve(features, full_names=full_feature_names)
            entity = read(entity_rows, Needs.of(plan, timestamp_column), self._engine)
            tables = [self._table(join) for join in plan.joins]
            made = self._retrieval(plan, entity, tables, known=known, timestamps=include_timestamps)
            return made if applied is None else replace(made, applied=applied)

        fill = self._fill if materialize_missing else None
        return RetrievalJob(prepare, self._engine, fill, quiet=applied is not None)

    def get_snapshot(
        self,
        features: FeaturesArgument,
        *,
        as_of: int,
        knowledge: Knowledge = "healed",
        full_feature_names: bool = False,
        include_timestamps: bool = False,
    ) -> RetrievalJob:
        """Return the job that fetches the features of every entity known at an instant.

        Known is an entity that has a row in one of the views up to the instant, expired or not, or
        an event of an aggregated view before it, perhaps one that was taken away later; with
        `knowledge="known"` that must have been learnt by then. The result is sorted by key
        and has the instant as its column `event_timestamp`.

        Args:
            features: A service, its name, or a list of references; their views share one key.
            as_of: The instant, microseconds since the epoch.
            knowledge: As in `get_historical_features`.
            full_feature_names: Name result columns `view__feature`.
            include_timestamps: Add the timestamps of the rows that were matched.

        Raises:
            RequestError: The views have different join keys, or a feature needs a request field.
        """
        known = _is_known(knowledge)
        if not MIN_INSTANT <= as_of <= MAX_INSTANT:
            raise RequestError("'as_of' is outside the years 1 to 9999.", got=str(as_of))

        def prepare() -> Retrieval:
            plan = self._resolve(features, full_names=full_feature_names)
            tables = [self._table(join) for join in plan.joins]
            relation = _entities(plan, tables, as_of, known=known)
            needs = Needs.of(plan, "event_timestamp")
            what = f"every entity known at {format_instant(as_of)}"
            entity = QueryRows(f"({relation})", needs, self._engine, what)
            return self._retrieval(plan, entity, tables, known=known, timestamps=include_timestamps)

        return RetrievalJob(prepare, self._engine, None)

    def _resolve(self, features: FeaturesArgument, *, full_names: bool) -> RequestPlan:
        state = self._state.get()
        return resolve(state.answering, state.serving, features, full_feature_names=full_names)

    def _retrieval(
        self,
        plan: RequestPlan,
        entity: EntityRows,
        tables: Sequence[JoinTable],
        *,
        known: bool,
        timestamps: bool,
    ) -> Retrieval:
        _refuse_clashes(plan, entity.names, timestamps=timestamps)
        for step in plan.steps:
            # Code that is missing or another one is told now rather than after the join.
            self._functions.get(step.plan)
        return Retrieval(
            plan=plan,
            entity=entity,
            tables=tuple(tables),
            known=known,
            timestamps=timestamps,
            memory_limit=self._memory_limit,
            functions=self._functions,
        )

    def _table(self, join: Join) -> JoinTable:
        view = join.view
        ledger = self._registry.ledger(self._project, view.name, view.table_fingerprint)
        # After the ledger: a run commits to the table first, so nothing is counted that is not
        # there.
        snapshot = self._tables.snapshot(table_id(self._project, view))
        return JoinTable(join, snapshot, tuple(covered(ledger.entries)))

    def _fill(self, retrieval: Retrieval, outside: Mapping[str, int], low: int, high: int) -> bool:
        """Materialize what entity rows from `low` to `high` need; return whether there was any."""
        if self._materialize is None:
            raise RequestError(
                "This store cannot materialize.", hint="Leave materialize_missing out."
            )
        now = self._clock.now_us()
        done = set()
        for table in retrieval.tables:
            view = table.join.view
            if not outside[view.name] or view.name in done:
                continue
            done.add(view.name)
            needed = oldest_needed(view)
            start = MIN_INSTANT if needed is None else max(MIN_INSTANT, low - needed)
            # A window does not see its own instant; what is ahead of now cannot be there yet.
            end = min(high if view.aggregates else high + 1, now)
            for gap in _gaps(table.covered, start, end):
                self._materialize(view.name, gap.start, gap.end)
        if done:
            self._state.invalidate()
        return bool(done)


def _gaps(covered_intervals: Sequence[Interval], start: int, end: int) -> tuple[Interval, ...]:
    return difference([Interval(start, end)], covered_intervals)


def _is_known(knowledge: str) -> bool:
    if knowledge not in {"healed", "known"}:
        raise RequestError("'knowledge' is unknown.", got=repr(knowledge), allowed="healed, known")
    return knowledge == "known"


def _refuse_clashes(plan: RequestPlan, names: Sequence[str], *, timestamps: bool) -> None:
    made = {output.name: output.reference for output in plan.outputs}
    for join in plan.joins if timestamps else ():
        made |= {slot(join.alias, name): f"{name} of '{join.alias}'" for name in TIMESTAMPS}
    for name in names:
        if name in made:
            raise NameClashError(
                f"A feature and a column of the entity rows would share the name '{name}'.",
                got=made[name],
                hint="Ask with full_feature_names=True, or rename the column.",
            )


def _entities(plan: RequestPlan, tables: Sequence[JoinTable], as_of: int, *, known: bool) -> str:
    """Return the SELECT of all keys that are known at an instant, with the instant."""
    if plan.request_fields:
        raise MissingColumnError(
            "A snapshot has no request fields, which an on-demand view needs.",
            got=listing(field.name for field in plan.request_fields),
            hint="Ask by get_historical_features, with these columns in the entity rows.",
        )
    keyed = [table for table in tables if table.join.key_columns] or list(tables)
    if not keyed:
        raise RequestError(
            "A snapshot has no view to take entities from.",
            got=listing(output.reference for output in plan.outputs),
            allowed="features of one feature view or more",
        )
    names = [table.join.key_columns for table in keyed]
    if len(set(names)) > 1:
        raise RequestError(
            "The views of a snapshot have different join keys.",
            got="; ".join(f"{t.join.alias}: {', '.join(t.join.key_columns)}" for t in keyed),
            allowed="one key for all of them; views without keys go with any",
            hint="Ask for them apart, or use get_historical_features.",
        )
    sources = [
        (table.join, [file.path for file in table.snapshot.files if file.min_event <= as_of])
        for table in keyed
    ]
    return snapshot_sql.entities(sources, as_of, known=known)
