"""The registry: applied definitions, which table serves, the ledger and the runs (laws M1, M4).

All of a project's definitions and pointers are one `ProjectState` under one revision number,
changed by compare-and-swap: two appliers cannot both win. Every definition that was ever applied
stays as an immutable version. The ledger of a table is a small document with a version of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from featurestore.compile.plan import Catalog, OnDemandPlan, Plan, ServicePlan, ViewPlan
from featurestore.ports.engine import SourceFile

RunState = Literal["running", "succeeded", "failed"]


class RetiredTable(Plan):
    """A table that no longer serves and may be deleted after a while."""

    view: str
    table_fingerprint: str
    retired_at_us: int


class ProjectState(Plan):
    """What a project is at one revision.

    Attributes:
        revision: 0 before anything was applied; each change adds one.
        catalog: The applied definitions.
        serving: The view plans that reads are answered from. A view whose table is being rebuilt
            keeps its former plan here until the new table is complete.
        retired: Tables that served before.
        former_services: Services that ask for features of a table which is not complete yet, as
            they were before.
        former_on_demand: The same for on-demand views.
    """

    revision: int = 0
    catalog: Catalog
    serving: dict[str, ViewPlan] = {}
    retired: tuple[RetiredTable, ...] = ()
    former_services: dict[str, ServicePlan] = {}
    former_on_demand: dict[str, OnDemandPlan] = {}

    @property
    def answering(self) -> Catalog:
        """The definitions that requests are answered by: the applied ones as far as they can be."""
        if not self.former_services and not self.former_on_demand:
            return self.catalog
        return self.catalog.model_copy(
            update={
                "services": {**self.catalog.services, **self.former_services},
                "on_demand": {**self.catalog.on_demand, **self.former_on_demand},
            }
        )


class Version(Plan):
    """A definition as it was once applied: immutable.

    Attributes:
        kind: "entity", "feature_view", "on_demand_feature_view" or "feature_service".
        fingerprint: Of the definition.
        body: The plan as JSON.
        revision: The revision that brought it in first.
    """

    kind: str
    name: str
    fingerprint: str
    body: str
    revision: int
    applied_by: str
    applied_at_us: int


class Change(Plan):
    """A line of the audit: one revision, who made it, when, and what it was."""

    revision: int
    applied_by: str
    applied_at_us: int
    summary: str


class LedgerEntry(Plan):
    """An interval `[start, end)` that was materialized from one state of the source.

    Attributes:
        snapshot: The id of the source's file listing (`save_snapshot`), "" when it cannot be told.
        logged: How far each partition of the source's stream was in its log by then.
        history: Whether the source's history was read, and not its stream alone.
    """

    start: int
    end: int
    snapshot: str = ""
    logged: dict[str, int] = {}
    history: bool = True


class Ledger(Plan):
    """What a table holds: intervals without gap or overlap, sorted.

    Attributes:
        version: 0 when there is none yet; each write adds one.
        pushed_until_us: Rows up to this instant have been considered for the online store.
        open_runs: Runs that began and have not finished; the next run pushes all that they may
            have committed without pushing.
    """

    version: int = 0
    entries: tuple[LedgerEntry, ...] = ()
    pushed_until_us: int | None = None
    open_runs: tuple[str, ...] = ()


class Run(Plan):
    """One run of a job for one view.

    Attributes:
        id: Unique.
        kind: "materialize" or "materialize-incremental".
        start_us: The interval asked for; None where it is the job's own choice.
        rows_read: Rows of the source in the interval.
        rows_written: Rows new to the table.
        rows_pushed: Rows that became the newest of their entity online.
        rows_rejected: Rows without a key or an event timestamp, which belong to no entity or time.
        rows_tied: Rows that tie fully with another of other values (law T2: a data error).
        error: Why it failed, one line.
    """

    id: str
    view: str
    table_fingerprint: str
    kind: str
    state: RunState = "running"
    start_us: int | None = None
    end_us: int | None = None
    started_at_us: int
    finished_at_us: int | None = None
    host: str = ""
    pid: int = 0
    attempt: int = 1
    rows_read: int = 0
    rows_written: int = 0
    rows_pushed: int = 0
    rows_rejected: int = 0
    rows_tied: int = 0
    error: str | None = None


class Registry(Protocol):
    """Keeps everything above. One registry holds many projects; none sees another's.

    Every method raises `RegistryUnavailableError` when the registry is gone or locked for longer
    than its timeout, and `StorageError` when its disk is full or read-only.
    """

    def revision(self, project: str) -> int:
        """Return the revision of a project, 0 when it is unknown. Cheap: servers poll it."""
        ...

    def state(self, project: str) -> ProjectState:
        """Return the project's state; an empty catalog at revision 0 when it is unknown."""
        ...

    def publish(
        self, state: ProjectState, *, applied_by: str, applied_at_us: int, summary: str
    ) -> ProjectState:
        """Replace the project's state if it is still at `state.revision`; return the new state.

        The new state has the next revision. Definitions that were never applied before become
        versions; the change is written to the audit in the same transaction.

        Raises:
            ConflictError: Somebody else published first; says who, when and what.
        """
        ...

    def versions(
        self, project: str, kind: str | None = None, name: str | None = None
    ) -> list[Version]:
        """Return all versions ever applied, oldest first."""
        ...

    def changes(self, project: str, limit: int = 100) -> list[Change]:
        """Return the newest lines of the audit, newest first."""
        ...

    def ledger(self, project: str, view: str, table_fingerprint: str) -> Ledger:
        """Return a table's ledger; an empty one of version 0 when there is none."""
        ...

    def write_ledger(
        self, project: str, view: str, table_fingerprint: str, ledger: Ledger
    ) -> Ledger:
        """Replace a ledger if it is still at `ledger.version`; return it with the next version.

        Raises:
            ConflictError: Another run wrote it first.
        """
        ...

    def delete_ledger(self, project: str, view: str, table_fingerprint: str) -> None:
        """Forget a table's ledger."""
        ...

    def save_snapshot(self, project: str, files: Sequence[SourceFile]) -> str:
        """Keep a file listing and return its id: the same files give the same id."""
        ...

    def load_snapshot(self, project: str, snapshot: str) -> dict[str, str]:
        """Return {path: token} of a kept listing; empty for the id "".

        Raises:
            StorageError: No listing was kept under this id.
        """
        ...

    def save_run(self, project: str, run: Run) -> None:
        """Insert a run, or replace the one of the same id."""
        ...

    def bury_run(self, project: str, run: Run) -> bool:
        """Replace a run that is still told as running; return whether it was.

        One that has ended meanwhile stays as it ended, and one that is gone stays gone.
        """
        ...

    def runs(
        self,
        project: str,
        view: str | None = None,
        *,
        state: RunState | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """Return runs, the one started last first."""
        ...

    def delete_project(self, project: str) -> None:
        """Forget everything of one project and nothing of any other (law M7)."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
