"""How each view is doing: fresh or stale, on time or late, healthy or failing.

Reads only; a part that cannot be reached is told in a note and leaves the rest standing. The
figures are those of the table that serves; while a changed view is rebuilt, that is still its
former table.

A scheduled view is *late* when a due time has passed, by more than a grace, since which no run of
its present table began and succeeded. The grace is one period of the schedule, at most
`scheduling.misfire_grace_seconds`. Due times before the definition was applied do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from featurestore.compile.plan import table_id
from featurestore.errors import FeatureStoreError, UnavailableError
from featurestore.model.cron import parse_cron
from featurestore.semantics import keys
from featurestore.services.freshness import last_success
from featurestore.services.intervals import covered
from featurestore.services.runs import is_dead

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Ledger, ProjectState, Registry, Run
    from featurestore.ports.tables import Tables, TableSnapshot

_SECOND_US = 1_000_000
_RUNS = 100

TableState = Literal["serving", "rebuilding", "empty"]


@dataclass(frozen=True)
class ViewStatus:
    """One view at one instant; instants are microseconds since the epoch, UTC.

    Attributes:
        view: The view's name.
        at_us: The instant at which it was looked at.
        fingerprint: Of the applied definition.
        state: "serving"; "rebuilding" while the applied definition's table is not complete and the
            former one serves; "empty" when nothing was ever materialized.
        newest_event_us: The newest event that is not ahead of now, None without rows.
        freshness_seconds: From that event to now.
        covered: The intervals that were materialized, as text.
        last_run: The run that was started last; one whose process died counts as failed.
        last_success: The run of the applied definition's table that succeeded last.
        failed_runs: Runs that failed since the last success, at most 100.
        schedule: The cron expression, None without one.
        next_run_us: When the schedule is due next.
        late: Whether a due time passed without success (see the module).
        rows_offline: Rows of the table, None when it cannot be read.
        rows_online: Entities in the online store, None when it cannot be reached or the view is
            not online.
        online: Whether the view is pushed to the online store.
        notes: What could not be told, and why.
    """

    view: str
    at_us: int
    fingerprint: str
    state: TableState
    newest_event_us: int | None
    freshness_seconds: float | None
    covered: tuple[str, ...]
    last_run: Run | None
    last_success: Run | None
    failed_runs: int
    schedule: str | None
    next_run_us: int | None
    late: bool
    rows_offline: int | None
    rows_online: int | None
    online: bool
    notes: tuple[str, ...] = ()


class StatusReader:
    """Looks at every view of a project.

    Args:
        project: The project.
        registry: Holds definitions, ledgers and runs.
        tables: Holds the views' tables.
        online: Holds their newest rows.
        clock: Tells now.
        misfire_grace_seconds: The longest grace before a view is late.
        refused: Tells how many live events of a source are in quarantine.
    """

    def __init__(
        self,
        project: str,
        *,
        registry: Registry,
        tables: Tables,
        online: OnlineStore,
        clock: Clock,
        misfire_grace_seconds: float = 3600,
        refused: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._project = project
        self._registry = registry
        self._tables = tables
        self._online = online
        self._clock = clock
        self._refused = refused
        self._grace_us = int(misfire_grace_seconds * _SECOND_US)

    def views(self) -> list[ViewStatus]:
        """Return the status of every applied view, by name.

        Raises:
            RegistryUnavailableError: Without the registry nothing can be told.
        """
        state = self._registry.state(self._project)
        counter = _OnlineCounter(self._project, self._online)
        views = sorted(state.catalog.views.values(), key=lambda view: view.name)
        cautions = counter.cautions() if any(view.online for view in views) else []
        return [self._view(view, state, counter, cautions) for view in views]

    def _view(
        self, view: ViewPlan, state: ProjectState, counter: _OnlineCounter, cautions: list[str]
    ) -> ViewStatus:
        now = self._clock.now_us()
        shown = state.serving.get(view.name, view)
        notes: list[str] = []
        snapshot = self._snapshot(shown, notes)
        newest = _newest_event(snapshot, now) if snapshot else None
        self._note_refused(view, notes)
        notes += cautions if view.online else []
        runs = [
            _as_known(run) for run in self._registry.runs(self._project, view.name, limit=_RUNS)
        ]
        success = last_success(self._registry, self._project, view, _RUNS)
        ledger = self._registry.ledger(self._project, shown.name, shown.table_fingerprint)
        return ViewStatus(
            view=view.name,
            at_us=now,
            fingerprint=view.fingerprint,
            state=_table_state(view, shown, ledger, snapshot),
            newest_event_us=newest,
            freshness_seconds=None if newest is None else (now - newest) / _SECOND_US,
            covered=tuple(str(interval) for interval in covered(ledger.entries)),
            last_run=runs[0] if runs else None,
            last_success=success,
            failed_runs=_failed_since_success(runs),
            schedule=view.schedule,
            next_run_us=parse_cron(view.schedule).next_after(now) if view.schedule else None,
            late=self._is_late(view, success, now),
            rows_offline=snapshot.rows if snapshot else None,
            rows_online=counter.count(shown, notes) if view.online else None,
            online=view.online,
            notes=tuple(notes),
        )

    def _snapshot(self, view: ViewPlan, notes: list[str]) -> TableSnapshot | None:
        try:
            return self._tables.snapshot(table_id(self._project, view))
        except FeatureStoreError as error:
            notes.append(f"The table cannot be read: {error.what}")
            return None

    def _note_refused(self, view: ViewPlan, notes: list[str]) -> None:
        if view.source.stream is None:
            return
        name = view.source.name
        try:
            number = self._refused(name)
        except FeatureStoreError as error:
            notes.append(f"The quarantine of '{name}' cannot be read: {error.what}")
        else:
            if number:
                events = "1 live event" if number == 1 else f"{number:,} live events"
                notes.append(f"{events} of '{name}' in quarantine.")

    def _runs(self, view: ViewPlan) -> list[Run]:
        runs = self._registry.runs(self._project, view.name, limit=_RUNS)
        return [_as_known(run) for run in runs]

    def _is_late(self, view: ViewPlan, success: Run | None, now: int) -> bool:
        due = last_missed_due(view.schedule, now, self._grace_us) if view.schedule else None
        if due is None or due < self._applied_at(view):
            return False
        return success is None or success.started_at_us < due

    def _applied_at(self, view: ViewPlan) -> int:
        versions = self._registry.versions(self._project, "feature_view", view.name)
        found = (v.applied_at_us for v in versions if v.fingerprint == view.fingerprint)
        return next(found, 0)


def last_missed_due(schedule: str, now_us: int, longest_grace_us: int) -> int | None:
    """Return the last due instant whose grace is over by now, None if there was none.

    The grace is one period of the schedule, at most `longest_grace_us`.

    >>> hour = 3_600_000_000
    >>> last_missed_due("0 * * * *", 5 * hour + 1, hour) == 4 * hour
    True
    """
    cron = parse_cron(schedule)
    due = cron.last_at(now_us)
    while due is not None:
        following = cron.next_after(due)
        period = longest_grace_us if following is None else following - due
        if due + min(period, longest_grace_us) <= now_us:
            return due
        due = cron.last_at(due - 1)
    return None


class _OnlineCounter:
    """Counts entities; a store that did not answer once is not waited for again."""

    def __init__(self, project: str, online: OnlineStore) -> None:
        self._project = project
        self._online = online
        self._failure: str | None = None

    def cautions(self) -> list[str]:
        try:
            return self._online.cautions()
        except UnavailableError as error:
            self._failure = _uncounted(error)
            return []
        except FeatureStoreError as error:
            return [f"Whether the online store keeps all rows cannot be told: {error.what}"]

    def count(self, view: ViewPlan, notes: list[str]) -> int | None:
        if self._failure is None:
            lead = keys.namespace(self._project, view.name, view.table_fingerprint)
            try:
                return self._online.count(lead)
            except FeatureStoreError as error:
                self._failure = _uncounted(error)
        notes.append(self._failure)
        return None


def _uncounted(error: FeatureStoreError) -> str:
    return f"The online store cannot be counted: {error.what}"


def _table_state(
    view: ViewPlan, shown: ViewPlan, ledger: Ledger, snapshot: TableSnapshot | None
) -> TableState:
    if shown.table_fingerprint != view.table_fingerprint:
        return "rebuilding"
    return "serving" if ledger.entries or (snapshot and snapshot.files) else "empty"


def _newest_event(snapshot: TableSnapshot, now: int) -> int | None:
    # A file that also holds rows dated ahead of now tells at least its oldest event.
    instants = (
        file.max_event if file.max_event <= now else file.min_event for file in snapshot.files
    )
    return max((instant for instant in instants if instant <= now), default=None)


def _as_known(run: Run) -> Run:
    if run.state != "running" or not is_dead(run):
        return run
    error = f"the process {run.pid} died in mid-run"
    return run.model_copy(update={"state": "failed", "error": error})


def _failed_since_success(runs: list[Run]) -> int:
    failed = 0
    for run in runs:
        if run.state == "succeeded":
            break
        failed += run.state == "failed"
    return failed
