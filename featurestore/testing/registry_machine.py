"""A state machine that drives any registry and a small model of it together.

Hypothesis makes up changes, stale revisions, ledgers, listings, runs and deletions in two projects;
after each step everything that a registry tells must be what the model holds.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from featurestore.compile.plan import Catalog, Column, EntityPlan, ServicePlan, ViewPlan
from featurestore.errors import ConflictError, StorageError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import (
    Change,
    Ledger,
    LedgerEntry,
    ProjectState,
    Registry,
    Run,
    Version,
)
from featurestore.testing.registry_samples import FIRST_INSTANT_US, LAST_INSTANT_US, view_plan

_TEXTS = st.text(max_size=8)
_NAMES = st.sampled_from(["a", "b", "ab"])
_FINGERPRINTS = st.sampled_from(["00aa", "11bb", ""])
_INSTANTS = st.integers(FIRST_INSTANT_US, LAST_INSTANT_US)
_WHICH = st.integers(0, 1)
_BEHIND = st.sampled_from([0, 0, 0, 1, -1])

_entities = st.builds(
    lambda name, text: EntityPlan(
        name=name, join_keys=(Column(name=name, dtype="int64"),), description=text
    ),
    _NAMES,
    _TEXTS,
)
_views = st.builds(view_plan, _NAMES, _FINGERPRINTS)
_services = st.builds(
    lambda name, text, fingerprint: ServicePlan(
        name=name, features=(), tags={"note": text}, fingerprint=fingerprint
    ),
    _NAMES,
    _TEXTS,
    _FINGERPRINTS,
)
_definitions = st.lists(st.one_of(_entities, _views, _services), max_size=4)
_ledgers = st.builds(
    Ledger,
    entries=st.lists(
        st.builds(LedgerEntry, start=_INSTANTS, end=_INSTANTS, snapshot=_TEXTS), max_size=3
    ).map(tuple),
    pushed_until_us=st.none() | _INSTANTS,
    open_runs=st.lists(_TEXTS, max_size=2).map(tuple),
)
_files = st.lists(st.builds(SourceFile, _TEXTS, _TEXTS), max_size=4, unique_by=lambda f: f.path)
_runs = st.builds(
    Run,
    id=st.sampled_from(["r1", "r2", "R3", "ä"]),
    view=_NAMES,
    table_fingerprint=_FINGERPRINTS,
    kind=st.just("materialize"),
    state=st.sampled_from(["running", "succeeded", "failed"]),
    started_at_us=st.sampled_from([FIRST_INSTANT_US, -1, 0, 1, LAST_INSTANT_US]),
    error=st.none() | _TEXTS,
)


class _Expected:
    """All that a registry should tell of one project."""

    def __init__(self, project: str) -> None:
        self.state = ProjectState(catalog=Catalog(project=project))
        self.versions: list[Version] = []
        self.changes: list[Change] = []
        self.ledgers: dict[tuple[str, str], Ledger] = {}
        self.snapshots: dict[str, dict[str, str]] = {}
        self.runs: dict[str, Run] = {}

    def publish(self, state: ProjectState, change: Change) -> None:
        """Take a state in."""
        self.state = state
        self.changes.insert(0, change)
        catalog = state.catalog
        plans = [
            *(("entity", plan.name, "", plan) for plan in catalog.entities.values()),
            *(("feature_view", p.name, p.fingerprint, p) for p in catalog.views.values()),
            *(("feature_service", p.name, p.fingerprint, p) for p in catalog.services.values()),
        ]
        for kind, name, fingerprint, plan in plans:
            body = plan.model_dump_json()
            told_by = fingerprint or hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
            if (kind, name, told_by) not in {
                (v.kind, v.name, v.fingerprint) for v in self.versions
            }:
                self.versions.append(
                    Version(
                        kind=kind,
                        name=name,
                        fingerprint=told_by,
                        body=body,
                        **change.model_dump(exclude={"summary"}),
                    )
                )


class RegistryMachine(RuleBasedStateMachine):
    """The machine; `registry_machine` makes one for a registry."""

    factory: ClassVar[Callable[[], Registry]]

    def __init__(self) -> None:
        super().__init__()
        self.registry = type(self).factory()
        # Other runs may use the same server; one name begins with the other.
        first = f"p{uuid.uuid4().hex[:12]}"
        self.projects = (first, f"{first}_app")
        self.expected = [_Expected(project) for project in self.projects]

    @rule(which=_WHICH, behind=_BEHIND, definitions=_definitions, by=_TEXTS, at=_INSTANTS)
    def publish(
        self,
        which: int,
        behind: int,
        definitions: Sequence[EntityPlan | ViewPlan | ServicePlan],
        by: str,
        at: int,
    ) -> None:
        """Publish from the newest revision, or from another one, which must conflict."""
        expected = self.expected[which]
        state = _state(self.projects[which], expected.state.revision - behind, definitions)
        if state.revision < 0:
            return
        if behind:
            with pytest.raises(ConflictError) as caught:
                self.registry.publish(state, applied_by=by, applied_at_us=at, summary=by)
            if behind > 0:
                assert expected.changes[0].applied_by in str(caught.value)
            return
        after = self.registry.publish(state, applied_by=by, applied_at_us=at, summary=by[::-1])
        assert after == state.model_copy(update={"revision": state.revision + 1})
        change = Change(revision=after.revision, applied_by=by, applied_at_us=at, summary=by[::-1])
        expected.publish(after, change)

    @rule(which=_WHICH, behind=_BEHIND, view=_NAMES, table=_FINGERPRINTS, ledger=_ledgers)
    def write_ledger(self, which: int, behind: int, view: str, table: str, ledger: Ledger) -> None:
        """Write a ledger over the version that is there, or over another one."""
        held = self.expected[which].ledgers
        version = held.get((view, table), Ledger()).version - behind
        if version < 0:
            return
        ledger = ledger.model_copy(update={"version": version})
        if behind:
            with pytest.raises(ConflictError):
                self.registry.write_ledger(self.projects[which], view, table, ledger)
            return
        after = self.registry.write_ledger(self.projects[which], view, table, ledger)
        assert after == ledger.model_copy(update={"version": version + 1})
        held[view, table] = after

    @rule(which=_WHICH, view=_NAMES, table=_FINGERPRINTS)
    def delete_ledger(self, which: int, view: str, table: str) -> None:
        """Forget a ledger, whether there is one or not."""
        self.registry.delete_ledger(self.projects[which], view, table)
        self.expected[which].ledgers.pop((view, table), None)

    @rule(which=_WHICH, files=_files)
    def save_snapshot(self, which: int, files: list[SourceFile]) -> None:
        """Keep a listing; its id is known exactly when the same files were kept before."""
        held = self.expected[which].snapshots
        snapshot = self.registry.save_snapshot(self.projects[which], files)
        tokens = {file.path: file.token for file in files}
        assert (snapshot in held) == (tokens in held.values())
        assert held.setdefault(snapshot, tokens) == tokens

    @rule(which=_WHICH, run=_runs)
    def save_run(self, which: int, run: Run) -> None:
        """Insert or replace a run."""
        self.registry.save_run(self.projects[which], run)
        self.expected[which].runs[run.id] = run

    @rule(which=_WHICH, run=_runs)
    def bury_run(self, which: int, run: Run) -> None:
        """Replace a run if it is running."""
        held = self.expected[which].runs
        running = run.id in held and held[run.id].state == "running"
        assert self.registry.bury_run(self.projects[which], run) == running
        if running:
            held[run.id] = run

    @rule(which=_WHICH)
    def delete_project(self, which: int) -> None:
        """Forget a project; its snapshots are gone too."""
        self.registry.delete_project(self.projects[which])
        for snapshot in self.expected[which].snapshots:
            with pytest.raises(StorageError):
                self.registry.load_snapshot(self.projects[which], snapshot)
        self.expected[which] = _Expected(self.projects[which])

    @rule()
    def close(self) -> None:
        """Let go of connections; the next step takes new ones."""
        self.registry.close()

    @invariant()
    def tells_what_was_kept(self) -> None:
        """Compare all that the registry tells of both projects."""
        for project, expected in zip(self.projects, self.expected, strict=True):
            _compare(self.registry, project, expected)

    def teardown(self) -> None:
        """Leave nothing behind."""
        for project in self.projects:
            self.registry.delete_project(project)
        self.registry.close()


def _state(
    project: str, revision: int, definitions: Sequence[EntityPlan | ViewPlan | ServicePlan]
) -> ProjectState:
    entities: dict[str, EntityPlan] = {}
    views: dict[str, ViewPlan] = {}
    services: dict[str, ServicePlan] = {}
    for plan in definitions:
        if isinstance(plan, EntityPlan):
            entities[plan.name] = plan
        elif isinstance(plan, ServicePlan):
            services[plan.name] = plan
        else:
            views[plan.name] = plan
    catalog = Catalog(project=project, entities=entities, views=views, services=services)
    return ProjectState(revision=revision, catalog=catalog, serving=views)


def _compare(registry: Registry, project: str, expected: _Expected) -> None:
    assert registry.revision(project) == expected.state.revision
    assert registry.state(project) == expected.state
    assert registry.versions(project) == expected.versions
    assert registry.changes(project) == expected.changes[:100]
    for (view, table), ledger in expected.ledgers.items():
        assert registry.ledger(project, view, table) == ledger
    for snapshot, tokens in expected.snapshots.items():
        assert registry.load_snapshot(project, snapshot) == tokens
    newest = sorted(expected.runs.values(), key=lambda r: (r.started_at_us, r.id), reverse=True)
    assert registry.runs(project) == newest
    assert (
        registry.runs(project, "a", state="failed", limit=2)
        == [run for run in newest if run.view == "a" and run.state == "failed"][:2]
    )


def registry_machine(factory: Callable[[], Registry]) -> type[RegistryMachine]:
    """Return a machine for a registry; its `TestCase` is what a test runner collects.

    Args:
        factory: Returns an empty or a shared registry, which the machine closes.

    >>> from hypothesis.stateful import RuleBasedStateMachine
    >>> issubclass(registry_machine(lambda: ...), RuleBasedStateMachine)
    True
    """
    return type("ThisRegistryMachine", (RegistryMachine,), {"factory": staticmethod(factory)})
