"""The conformance suite of registries: every sentence of the port as a test.

Subclass `RegistrySuite` with a fixture `registry`, and run `registry_machine(factory).TestCase`
beside it. Each test works in projects of its own, whose names nobody else has, and deletes them:
the registry may be a shared one. The suite looks at a registry only through its port.
"""

# A test's name says what it shows, and its numbers are made up.

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.compile.plan import Catalog, ViewPlan
from featurestore.errors import ConflictError, StorageError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Change, Ledger, ProjectState, Registry
from featurestore.testing.registry_machine import registry_machine
from featurestore.testing.registry_records import RecordsSuite
from featurestore.testing.registry_samples import (
    ADA,
    BOB,
    NOON,
    NOON_US,
    TEXT,
    apply,
    full_run,
    full_state,
    view_plan,
    with_views,
)

__all__ = ["RegistrySuite", "registry_machine"]


class RegistrySuite(RecordsSuite):
    """What every registry must do. A subclass has a fixture `registry`, fresh or shared."""

    def test_an_unknown_project_is_empty_at_revision_0(
        self, registry: Registry, project: str
    ) -> None:
        assert registry.revision(project) == 0
        assert registry.state(project) == ProjectState(catalog=Catalog(project=project))
        assert registry.versions(project) == []
        assert registry.changes(project) == []
        assert registry.runs(project) == []
        assert registry.ledger(project, "v", "t") == Ledger()
        registry.delete_ledger(project, "v", "t")
        registry.delete_project(project)

    def test_a_state_comes_back_with_every_field(self, registry: Registry, project: str) -> None:
        state = full_state(project)
        returned = apply(registry, state)
        assert returned == state.model_copy(update={"revision": 1})
        assert registry.state(project) == returned
        again = registry.state(project)
        assert list(again.catalog.views) == list(state.catalog.views)
        assert again.catalog.views["weather"].row_schema == view_plan().row_schema

    def test_what_was_published_cannot_be_reached_into(
        self, registry: Registry, project: str
    ) -> None:
        state = full_state(project)
        apply(registry, state)
        state.catalog.views.clear()
        registry.state(project).serving.clear()
        expected = full_state(project, revision=1)
        assert registry.state(project) == expected

    def test_each_change_adds_one_to_the_revision(self, registry: Registry, project: str) -> None:
        state = registry.state(project)
        for revision in (1, 2, 3):
            state = apply(registry, state)
            assert state.revision == registry.revision(project) == revision
            assert registry.state(project).revision == revision

    def test_a_stale_publisher_is_told_who_won_when_and_what(
        self, registry: Registry, project: str
    ) -> None:
        stale = apply(registry, full_state(project))
        apply(registry, with_views(stale), by=BOB, at=NOON_US, what="drop 'weather'")
        with pytest.raises(ConflictError) as caught:
            apply(registry, with_views(stale, view_plan("mine", "abad")), by=ADA, what="never")
        for part in (project, BOB, NOON, "drop 'weather'", "revision 2", "revision 1"):
            assert part in str(caught.value)
        state = registry.state(project)
        assert (state.revision, state.catalog.views) == (2, {})
        assert registry.versions(project, "feature_view", "mine") == []
        assert [change.applied_by for change in registry.changes(project)] == [BOB, ADA]

    def test_the_conflict_names_the_change_that_came_first_after_the_stale_revision(
        self, registry: Registry, project: str
    ) -> None:
        first = apply(registry, full_state(project), by="carol", what="first words")
        apply(registry, first, by=BOB, what="second words")
        with pytest.raises(ConflictError) as caught:
            apply(registry, full_state(project), by=ADA)
        assert "carol" in str(caught.value)
        assert "first words" in str(caught.value)
        assert "revision 2" in str(caught.value)

    def test_a_revision_from_the_future_or_of_a_deleted_project_conflicts(
        self, registry: Registry, project: str
    ) -> None:
        with pytest.raises(ConflictError, match="deleted or never applied"):
            apply(registry, full_state(project, revision=4))
        apply(registry, full_state(project))
        with pytest.raises(ConflictError, match="revision 1"):
            apply(registry, full_state(project, revision=4))
        assert registry.revision(project) == 1

    def test_of_publishers_at_once_exactly_one_wins(self, registry: Registry, project: str) -> None:
        state = apply(registry, full_state(project))
        barrier = threading.Barrier(4)

        def publish(name: str) -> str | ConflictError:
            barrier.wait(timeout=30)
            try:
                apply(registry, state, by=name, what=f"by {name}")
            except ConflictError as error:
                return error
            return name

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(publish, ["t1", "t2", "t3", "t4"]))
        winners = [name for name in results if isinstance(name, str)]
        assert len(winners) == 1
        assert registry.revision(project) == 2
        assert [change.applied_by for change in registry.changes(project)] == [winners[0], ADA]
        assert all(f"by {winners[0]}" in str(e) for e in results if not isinstance(e, str))

    def test_every_definition_becomes_a_version(self, registry: Registry, project: str) -> None:
        state = apply(registry, full_state(project), by=BOB, at=NOON_US)
        catalog = state.catalog
        found = {(v.kind, v.name): v for v in registry.versions(project)}
        bodies = {key: version.body for key, version in found.items()}
        assert bodies == {
            ("entity", "origin"): catalog.entities["origin"].model_dump_json(),
            ("feature_view", "weather"): catalog.views["weather"].model_dump_json(),
            ("on_demand_feature_view", "wind_per_mile"): catalog.on_demand[
                "wind_per_mile"
            ].model_dump_json(),
            ("feature_service", "delays"): catalog.services["delays"].model_dump_json(),
        }
        assert {(v.applied_by, v.applied_at_us, v.revision) for v in found.values()} == {
            (BOB, NOON_US, 1)
        }
        assert found["feature_view", "weather"].fingerprint == "00112233aabbccdd"
        assert found["feature_service", "delays"].fingerprint == "5e41ce"
        assert found["on_demand_feature_view", "wind_per_mile"].fingerprint == "d0d0"

    def test_a_definition_without_fingerprint_is_told_by_its_body(
        self, registry: Registry, project: str
    ) -> None:
        state = apply(registry, full_state(project))
        entity = state.catalog.entities["origin"].model_copy(update={"owner": "carol"})
        catalog = state.catalog.model_copy(update={"entities": {"origin": entity}})
        apply(registry, state.model_copy(update={"catalog": catalog}))
        found = registry.versions(project, "entity", "origin")
        assert [version.revision for version in found] == [1, 2]
        assert len({version.fingerprint for version in found}) == 2
        assert all(len(bytes.fromhex(version.fingerprint)) == 8 for version in found)

    def test_versions_are_made_once_immutable_and_oldest_first(
        self, registry: Registry, project: str
    ) -> None:
        state = apply(registry, full_state(project), by="first")
        other = view_plan(fingerprint="aa").model_copy(update={"ttl_us": 7})
        state = apply(registry, with_views(state, other), by="second")
        changed = view_plan().model_copy(update={"owner": "another body, the same fingerprint"})
        state = apply(registry, with_views(state, changed, view_plan("b", "bb")), by="third")
        apply(registry, with_views(state), by="fourth")
        found = registry.versions(project, "feature_view")
        assert [(v.name, v.fingerprint, v.revision, v.applied_by) for v in found] == [
            ("weather", "00112233aabbccdd", 1, "first"),
            ("weather", "aa", 2, "second"),
            ("b", "bb", 3, "third"),
        ]
        assert ViewPlan.model_validate_json(found[0].body) == view_plan()

    def test_versions_are_chosen_by_kind_and_name(self, registry: Registry, project: str) -> None:
        state = full_state(project)
        apply(registry, with_views(state, view_plan(), view_plan("origin", "cc")))
        kinds = [version.kind for version in registry.versions(project)]
        assert kinds == [
            "entity",
            "feature_view",
            "feature_view",
            "on_demand_feature_view",
            "feature_service",
        ]
        assert [v.name for v in registry.versions(project, "feature_view")] == ["weather", "origin"]
        by_name = registry.versions(project, name="origin")
        assert [v.kind for v in by_name] == ["entity", "feature_view"]
        assert len(registry.versions(project, "entity", "origin")) == 1
        assert registry.versions(project, "entity", "weather") == []
        assert registry.versions(project, "nothing") == []

    def test_the_audit_is_newest_first(self, registry: Registry, project: str) -> None:
        state = registry.state(project)
        for revision in range(1, 12):
            at = NOON_US - revision
            state = apply(registry, state, by=BOB, at=at, what=f"{revision} {TEXT}")
        found = registry.changes(project)
        assert found == [
            Change(revision=n, applied_by=BOB, applied_at_us=NOON_US - n, summary=f"{n} {TEXT}")
            for n in range(11, 0, -1)
        ]
        assert registry.changes(project, limit=2) == found[:2]
        assert registry.changes(project, limit=0) == []

    def test_projects_with_the_same_names_inside_do_not_meet(
        self, registry: Registry, project: str, app: str
    ) -> None:
        apply(registry, full_state(project))
        assert registry.revision(app) == 0
        apply(registry, with_views(full_state(app), view_plan(fingerprint="aa")), by=BOB)
        _fill(registry, project, "one")
        assert registry.ledger(app, "weather", "t") == Ledger()
        assert registry.runs(app) == []
        snapshot = _fill(registry, app, "two")
        with pytest.raises(StorageError):
            registry.load_snapshot(project, snapshot)
        assert registry.state(project).catalog.views["weather"] == view_plan()
        assert registry.state(app).catalog.views["weather"].fingerprint == "aa"
        assert len(registry.versions(project, "feature_view")) == 1
        assert [change.applied_by for change in registry.changes(project)] == [ADA]
        assert [run.host for run in registry.runs(project)] == ["one"]

    def test_deleting_a_project_forgets_all_of_it_and_nothing_else(
        self, registry: Registry, project: str, app: str
    ) -> None:
        snapshots = {}
        for name in (project, app):
            apply(registry, full_state(name))
            snapshots[name] = _fill(registry, name, name)
        before = _everything(registry, app, snapshots[app])
        registry.delete_project(project)
        assert _everything(registry, app, snapshots[app]) == before
        assert registry.revision(project) == 0
        assert registry.state(project) == ProjectState(catalog=Catalog(project=project))
        assert registry.versions(project) == []
        assert registry.changes(project) == []
        assert registry.runs(project) == []
        assert registry.ledger(project, "weather", "t") == Ledger()
        with pytest.raises(StorageError):
            registry.load_snapshot(project, snapshots[project])
        assert apply(registry, full_state(project)).revision == 1

    def test_closing_lets_go_and_keeps_what_was_published(
        self, registry: Registry, project: str
    ) -> None:
        apply(registry, full_state(project))
        registry.close()
        registry.close()
        assert registry.state(project) == full_state(project, revision=1)

    def test_readers_see_whole_states_while_one_publishes(
        self, registry: Registry, project: str
    ) -> None:
        """Each state holds as many views as its revision says, and is never older than before."""
        apply(registry, with_views(full_state(project), view_plan("v1", "01")))

        def publish() -> None:
            for revision in range(1, 15):
                state = registry.state(project)
                views = [view_plan(f"v{n}", f"{n:02x}") for n in range(1, revision + 2)]
                apply(registry, with_views(state, *views))

        def watch(stop: Callable[[], bool]) -> list[tuple[int, int]]:
            seen = []
            while True:
                last = stop()
                state = registry.state(project)
                seen.append((state.revision, len(state.catalog.views)))
                if last:
                    return seen

        with ThreadPoolExecutor(2) as pool:
            publisher = pool.submit(publish)
            seen = pool.submit(watch, publisher.done).result(timeout=60)
            publisher.result(timeout=60)
        assert all(revision == views for revision, views in seen)
        assert seen == sorted(seen)
        assert seen[-1] == (15, 15)


def _fill(registry: Registry, project: str, mark: str) -> str:
    """Give a project a ledger, a run and a snapshot that carry a mark; return the snapshot."""
    registry.write_ledger(project, "weather", "t", Ledger())
    registry.save_run(project, full_run().model_copy(update={"host": mark}))
    return registry.save_snapshot(project, [SourceFile("/data/a", mark)])


def _everything(registry: Registry, project: str, snapshot: str) -> list[object]:
    return [
        registry.state(project),
        registry.versions(project),
        registry.changes(project),
        registry.ledger(project, "weather", "t"),
        registry.runs(project),
        registry.load_snapshot(project, snapshot),
    ]
