"""Plan and apply: definitions become the applied ones, and reads go over to complete tables only.

A publication is one compare-and-swap of the whole project state. A view whose rows change keeps
serving from its former table until the new one covers as much (`complete`), and services that ask
for more than that are answered as before. Tables that nobody needs any more are `retired`, and
deleted after a while (`sweep`). Only what is this project's own is ever deleted (law M7), and only
after the publication that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.compile.answering import former_references
from featurestore.compile.catalog import SourceEyes, compile_catalog
from featurestore.compile.diff import ApplyPlan, diff
from featurestore.compile.plan import Catalog, ViewPlan
from featurestore.errors import ConflictError, DestructiveChangeError, FeatureStoreError
from featurestore.ports.registry import Ledger, ProjectState, RetiredTable
from featurestore.semantics.timeline import Interval, covers
from featurestore.services.table_disposal import TableDisposal

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.declared import Declarations
    from featurestore.ports.engine import Engine, Sources
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Registry
    from featurestore.ports.tables import Tables
    from featurestore.services.table_disposal import LiveDisposal

_ATTEMPTS = 10
_SYSTEM = "featurestore"
_MAX_SUMMARY = 500


@dataclass(frozen=True)
class PlannedChange:
    """A plan with all that is needed to apply it.

    Attributes:
        plan: What would change.
        catalog: The new definitions, compiled.
        base: The state that the plan was made from.
    """

    plan: ApplyPlan
    catalog: Catalog
    base: ProjectState


@dataclass(frozen=True)
class ApplyResult:
    """What an apply did.

    Attributes:
        plan: What changed.
        revision: The project's revision afterwards.
        published: Whether there was anything to publish.
        rebuilding: Views that serve from their former table until the new one is complete.
        deleted: Ids of tables that were deleted with their online values.
    """

    plan: ApplyPlan
    revision: int
    published: bool
    rebuilding: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


class Registration:
    """Plans, applies, completes and tears down one project.

    Args:
        project: The project's name.
        registry: Keeps the project's state.
        engine: Tells what queries would return.
        sources: Tells what sources consist of.
        clock: Stamps what is done.
        tables: The offline side.
        online: The online side.
        live: Deletes what the project keeps of its streams.
    """

    def __init__(
        self,
        project: str,
        *,
        registry: Registry,
        engine: Engine,
        sources: Sources,
        clock: Clock,
        tables: Tables,
        online: OnlineStore,
        live: LiveDisposal | None = None,
    ) -> None:
        self._project = project
        self._registry = registry
        self._engine = engine
        self._sources = sources
        self._clock = clock
        self._tables = tables
        self._disposal = TableDisposal(project, registry, tables, online, live)

    def plan(self, declarations: Declarations) -> PlannedChange:
        """Return what `apply` would do; nothing is written.

        Raises:
            DefinitionError: A declaration is wrong; names file and line.
            SourceError: A source cannot be read, or differs from what is declared.
        """
        base = self._registry.state(self._project)
        with self._engine.session() as session:
            eyes = SourceEyes(
                describe=session.schema,
                relation=lambda source: self._sources.listing(source).relation,
                kind=self._sources.kind,
            )
            catalog = compile_catalog(self._project, declarations, eyes)
        return self._planned(base, catalog)

    def apply(
        self,
        change: Declarations | PlannedChange,
        *,
        allow_destructive: bool = False,
        applied_by: str,
    ) -> ApplyResult:
        """Publish definitions, all at once; delete what removed views leave behind.

        Applying what is applied already publishes nothing. What an earlier apply could not delete
        is deleted now.

        Args:
            change: Declarations, or a plan of them. Either is applied only as long as nobody else
                has changed the definitions. That a view serves from its new table changes none.
            allow_destructive: Whether data may be dropped.
            applied_by: Who applies, for the audit.

        Raises:
            DestructiveChangeError: Data would be dropped and that is not allowed.
            ConflictError: Somebody else changed the definitions since the plan was made.
        """
        planned = change if isinstance(change, PlannedChange) else self.plan(change)
        if planned.plan.destructive and not allow_destructive:
            raise _destructive(planned.plan)
        state, changes = planned.base, planned.plan.changes
        if changes:
            state = self._publish(planned, applied_by)
        try:
            deleted, state = self._delete_removed(state, applied_by)
        except FeatureStoreError as error:
            error.hint = (
                "The definitions are applied; only deleting what removed views left failed. Run"
                " 'featurestore apply' again to finish it."
            )
            raise
        waiting = [n for n, v in state.catalog.views.items() if not _is_same(v, state.serving[n])]
        return ApplyResult(planned.plan, state.revision, bool(changes), tuple(waiting), deleted)

    def complete(self, view: ViewPlan, *, applied_by: str = _SYSTEM) -> bool:
        """Let a view serve from its new table once that covers all that the former one does.

        Args:
            view: The plan whose table was written to.
            applied_by: Who, for the audit.

        Returns:
            Whether the view serves from this table.

        Raises:
            ConflictError: Others kept changing the project.
        """

        def switched(state: ProjectState) -> ProjectState | None:
            applied, serving = state.catalog.views.get(view.name), state.serving.get(view.name)
            if applied is None or serving is None or not _is_same(applied, view):
                return None
            if serving == applied or not self._takes_over(serving, applied):
                return None
            return self._with_serving(state, state, {**state.serving, view.name: applied})

        state = self._change(switched, applied_by, f"'{view.name}' serves from its new table")
        serving = state.serving.get(view.name)
        return serving is not None and _is_same(serving, view)

    def sweep(self, now_us: int, keep_us: int) -> tuple[str, ...]:
        """Delete tables that retired long enough ago; return their ids.

        Args:
            now_us: The instant.
            keep_us: How long readers of an older state may need them.
        """
        state = self._registry.state(self._project)
        due = [table for table in state.retired if table.retired_at_us <= now_us - keep_us]
        return self._dispose(due, _SYSTEM, "deleted former tables")[0]

    def teardown(self) -> tuple[str, ...]:
        """Delete the project's tables, online values and registry rows, and nothing else (M7).

        Returns:
            The ids of the tables. What fails half-way is finished by running it again.
        """
        state = self._registry.state(self._project)
        versions = self._registry.versions(self._project, kind="feature_view")
        deleted = self._disposal.delete_all(state, versions)
        self._registry.delete_project(self._project)
        return deleted

    def _planned(self, base: ProjectState, catalog: Catalog) -> PlannedChange:
        plan = diff(
            base.catalog,
            catalog,
            base_revision=base.revision,
            serving=base.serving,
            has_data=self._has_data,
        )
        return PlannedChange(plan, catalog, base)

    def _publish(self, planned: PlannedChange, applied_by: str) -> ProjectState:
        """Publish a plan, again where others came first and it means the same as before."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._registry.publish(
                    self._next_state(planned),
                    applied_by=applied_by,
                    applied_at_us=self._clock.now_us(),
                    summary=_summary(planned.plan),
                )
            except ConflictError:
                again = self._planned(self._registry.state(self._project), planned.catalog)
                same = again.base.catalog == planned.base.catalog
                if (
                    attempt == _ATTEMPTS - 1
                    or not same
                    or again.plan.changes != planned.plan.changes
                ):
                    raise
                planned = again
        raise AssertionError

    def _next_state(self, planned: PlannedChange) -> ProjectState:
        base, views = planned.base, planned.catalog.views
        serving: dict[str, ViewPlan] = {}
        for name, new in views.items():
            old = base.serving.get(name)
            serving[name] = new if old is None or self._takes_over(old, new) else old
        state = base.model_copy(update={"catalog": planned.catalog})
        return self._with_serving(base, state, serving)

    def _with_serving(
        self, base: ProjectState, state: ProjectState, serving: dict[str, ViewPlan]
    ) -> ProjectState:
        """Return a state with other pointers; tables that nothing points to any more retire."""
        used = {_key(plan) for plan in (*state.catalog.views.values(), *serving.values())}
        retired = {(table.view, table.table_fingerprint): table for table in base.retired}
        for plan in (*base.catalog.views.values(), *base.serving.values()):
            retired.setdefault(
                _key(plan),
                RetiredTable(
                    view=plan.name,
                    table_fingerprint=plan.table_fingerprint,
                    retired_at_us=self._clock.now_us(),
                ),
            )
        kept = tuple(table for key, table in retired.items() if key not in used)
        services, on_demand = former_references(state.catalog, base.answering, serving)
        return state.model_copy(
            update={
                "serving": serving,
                "retired": kept,
                "former_services": services,
                "former_on_demand": on_demand,
            }
        )

    def _takes_over(self, old: ViewPlan, new: ViewPlan) -> bool:
        """Whether a view may serve from another plan's table without losing anything."""
        if _is_same(old, new) or not self._has_data(old):
            return True
        done = _intervals(self._ledger(new))
        return bool(done) and covers(done, _intervals(self._ledger(old)))

    def _has_data(self, plan: ViewPlan) -> bool:
        return bool(self._ledger(plan).entries) or self._disposal.has_files(plan)

    def _ledger(self, plan: ViewPlan) -> Ledger:
        return self._registry.ledger(self._project, plan.name, plan.table_fingerprint)

    def _delete_removed(
        self, state: ProjectState, applied_by: str
    ) -> tuple[tuple[str, ...], ProjectState]:
        removed = [table for table in state.retired if table.view not in state.catalog.views]
        if not removed:
            return (), state
        return self._dispose(removed, applied_by, "deleted the tables of removed views")

    def _dispose(
        self, tables: Iterable[RetiredTable], applied_by: str, summary: str
    ) -> tuple[tuple[str, ...], ProjectState]:
        """Delete retired tables, then say so: dying in between, the next time does it again."""
        deleted: list[RetiredTable] = []
        ids: list[str] = []
        for table in tables:
            # Somebody may have applied a definition since that takes the table back.
            if table in self._registry.state(self._project).retired:
                ids.append(self._disposal.delete(table.view, table.table_fingerprint))
                deleted.append(table)

        def without(state: ProjectState) -> ProjectState | None:
            kept = tuple(table for table in state.retired if table not in deleted)
            return state.model_copy(update={"retired": kept}) if kept != state.retired else None

        return tuple(ids), self._change(without, applied_by, summary)

    def _change(
        self,
        change: Callable[[ProjectState], ProjectState | None],
        applied_by: str,
        summary: str,
    ) -> ProjectState:
        """Publish a change of the newest state, again if others come first; None is no change."""
        for attempt in range(_ATTEMPTS):
            state = self._registry.state(self._project)
            changed = change(state)
            if changed is None:
                return state
            try:
                return self._registry.publish(
                    changed,
                    applied_by=applied_by,
                    applied_at_us=self._clock.now_us(),
                    summary=summary,
                )
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError


def _key(plan: ViewPlan) -> tuple[str, str]:
    return plan.name, plan.table_fingerprint


def _is_same(one: ViewPlan, other: ViewPlan) -> bool:
    """Whether two plans of a view have the same table."""
    return one.table_fingerprint == other.table_fingerprint


def _intervals(ledger: Ledger) -> list[Interval]:
    return [Interval(entry.start, entry.end) for entry in ledger.entries]


def _destructive(plan: ApplyPlan) -> DestructiveChangeError:
    items = plan.destructive
    return DestructiveChangeError(
        f"The plan drops data of {len(items)} feature view{'s' if len(items) > 1 else ''};"
        " nothing was applied.",
        where=f"project '{plan.project}'",
        got="; ".join(f"'{item.name}': {item.destructive_reason}" for item in items),
        hint="Apply it with --allow-destructive (allow_destructive=True), or keep the definition.",
    )


def _summary(plan: ApplyPlan) -> str:
    text = "; ".join(f"{item.action} {item.kind} {item.name}" for item in plan.changes)
    return text if len(text) <= _MAX_SUMMARY else text[: _MAX_SUMMARY - 3] + "..."
