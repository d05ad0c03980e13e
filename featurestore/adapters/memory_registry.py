"""A registry in this process's memory: the model that the others are compared with.

For tests and for trying things out; it forgets everything with the process. States and ledgers are
kept as JSON, so that nobody can reach into what was published.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from featurestore.compile.plan import Catalog
from featurestore.errors import StorageError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Change, Ledger, ProjectState, Run, RunState, Version
from featurestore.ports.registry_laws import (
    definition_versions,
    ledger_conflict,
    listing_id,
    listing_tokens,
    publish_conflict,
)

_WHERE = "memory:"


class _Project:
    """All that one project has."""

    def __init__(self) -> None:
        self.revision = 0
        self.state: str | None = None
        self.versions: dict[tuple[str, str, str], Version] = {}
        self.changes: list[Change] = []
        self.ledgers: dict[tuple[str, str], str] = {}
        self.snapshots: dict[str, dict[str, str]] = {}
        self.runs: dict[str, Run] = {}


class MemoryRegistry:
    """Keeps projects in dictionaries, under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._projects: dict[str, _Project] = {}

    def revision(self, project: str) -> int:
        """See `Registry.revision`."""
        with self._lock:
            return self._find(project).revision

    def state(self, project: str) -> ProjectState:
        """See `Registry.state`."""
        with self._lock:
            body = self._find(project).state
        if body is None:
            return ProjectState(catalog=Catalog(project=project))
        return ProjectState.model_validate_json(body)

    def publish(
        self, state: ProjectState, *, applied_by: str, applied_at_us: int, summary: str
    ) -> ProjectState:
        """See `Registry.publish`."""
        name = state.catalog.project
        after = state.model_copy(update={"revision": state.revision + 1})
        change = Change(
            revision=after.revision,
            applied_by=applied_by,
            applied_at_us=applied_at_us,
            summary=summary,
        )
        with self._lock:
            project = self._find(name)
            if project.revision != state.revision:
                raise self._lost(name, state.revision)
            project.state, project.revision = after.model_dump_json(), after.revision
            for version in definition_versions(after, applied_by, applied_at_us):
                key = (version.kind, version.name, version.fingerprint)
                project.versions.setdefault(key, version)
            project.changes.append(change)
            self._projects[name] = project
        return after

    def versions(
        self, project: str, kind: str | None = None, name: str | None = None
    ) -> list[Version]:
        """See `Registry.versions`."""
        with self._lock:
            return [
                version
                for version in self._find(project).versions.values()
                if kind in {None, version.kind} and name in {None, version.name}
            ]

    def changes(self, project: str, limit: int = 100) -> list[Change]:
        """See `Registry.changes`."""
        with self._lock:
            return self._find(project).changes[::-1][: max(limit, 0)]

    def ledger(self, project: str, view: str, table_fingerprint: str) -> Ledger:
        """See `Registry.ledger`."""
        with self._lock:
            body = self._find(project).ledgers.get((view, table_fingerprint))
        return Ledger() if body is None else Ledger.model_validate_json(body)

    def write_ledger(
        self, project: str, view: str, table_fingerprint: str, ledger: Ledger
    ) -> Ledger:
        """See `Registry.write_ledger`."""
        after = ledger.model_copy(update={"version": ledger.version + 1})
        with self._lock:
            ledgers = self._projects.setdefault(project, _Project()).ledgers
            body = ledgers.get((view, table_fingerprint))
            found = 0 if body is None else Ledger.model_validate_json(body).version
            if found != ledger.version:
                raise ledger_conflict(view, table_fingerprint, ledger.version, found, _WHERE)
            ledgers[view, table_fingerprint] = after.model_dump_json()
        return after

    def delete_ledger(self, project: str, view: str, table_fingerprint: str) -> None:
        """See `Registry.delete_ledger`."""
        with self._lock:
            self._find(project).ledgers.pop((view, table_fingerprint), None)

    def save_snapshot(self, project: str, files: Sequence[SourceFile]) -> str:
        """See `Registry.save_snapshot`."""
        tokens = listing_tokens(files)
        snapshot = listing_id(tokens)
        with self._lock:
            self._projects.setdefault(project, _Project()).snapshots[snapshot] = tokens
        return snapshot

    def load_snapshot(self, project: str, snapshot: str) -> dict[str, str]:
        """See `Registry.load_snapshot`."""
        if not snapshot:
            return {}
        with self._lock:
            tokens = self._find(project).snapshots.get(snapshot)
        if tokens is None:
            raise StorageError(
                f"Project '{project}' has no file listing '{snapshot}'.", where=_WHERE
            )
        return dict(tokens)

    def save_run(self, project: str, run: Run) -> None:
        """See `Registry.save_run`."""
        with self._lock:
            self._projects.setdefault(project, _Project()).runs[run.id] = run

    def bury_run(self, project: str, run: Run) -> bool:
        """See `Registry.bury_run`."""
        with self._lock:
            held = self._find(project).runs
            running = run.id in held and held[run.id].state == "running"
            if running:
                held[run.id] = run
            return running

    def runs(
        self,
        project: str,
        view: str | None = None,
        *,
        state: RunState | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """See `Registry.runs`."""
        with self._lock:
            found = [
                run
                for run in self._find(project).runs.values()
                if view in {None, run.view} and state in {None, run.state}
            ]
        found.sort(key=lambda run: (run.started_at_us, run.id), reverse=True)
        return found[: max(limit, 0)]

    def delete_project(self, project: str) -> None:
        """See `Registry.delete_project`."""
        with self._lock:
            self._projects.pop(project, None)

    def close(self) -> None:
        """See `Registry.close`; what was kept stays."""

    def _find(self, project: str) -> _Project:
        """Return a project, an empty one that is not kept when it is unknown."""
        return self._projects.get(project) or _Project()

    def _lost(self, name: str, expected: int) -> Exception:
        project = self._find(name)
        winner = next((c for c in project.changes if c.revision == expected + 1), None)
        return publish_conflict(name, expected, project.revision, winner, _WHERE)
