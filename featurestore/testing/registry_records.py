"""The part of the registries' suite about ledgers, file listings and runs (laws M1, M4, M6)."""

# A test's name says what it shows, and its numbers are made up.

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from featurestore.errors import ConflictError, StorageError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Ledger, LedgerEntry, Registry, Run
from featurestore.testing.registry_samples import FIRST_INSTANT_US, LAST_INSTANT_US, full_run


class RecordsSuite:
    """What a registry must do with the records of jobs, and the projects that tests work in."""

    @pytest.fixture
    def project(self, registry: Registry) -> Iterator[str]:
        """A project that nobody else has, deleted afterwards."""
        name = f"p{uuid.uuid4().hex[:12]}"
        yield name
        registry.delete_project(name)

    @pytest.fixture
    def app(self, registry: Registry, project: str) -> Iterator[str]:
        """A second project, whose name begins with that of the first."""
        name = f"{project}_app"
        yield name
        registry.delete_project(name)

    def test_a_ledger_comes_back_and_counts_its_versions(
        self, registry: Registry, project: str
    ) -> None:
        ledger = Ledger(
            entries=(
                LedgerEntry(start=FIRST_INSTANT_US, end=0, snapshot="ab"),
                LedgerEntry(start=0, end=LAST_INSTANT_US, logged={"größe": 2**53}, history=False),
            ),
            pushed_until_us=-1,
            open_runs=("r1", "r2"),
        )
        first = registry.write_ledger(project, "weather", "t", ledger)
        assert first == ledger.model_copy(update={"version": 1})
        assert registry.ledger(project, "weather", "t") == first
        second = registry.write_ledger(project, "weather", "t", first)
        assert second.version == 2
        assert registry.ledger(project, "weather", "t") == second
        assert registry.ledger(project, "weather", "other") == Ledger()
        assert registry.ledger(project, "other", "t") == Ledger()

    def test_a_ledger_is_written_by_compare_and_swap(
        self, registry: Registry, project: str
    ) -> None:
        first = registry.write_ledger(project, "weather", "t", Ledger())
        second = registry.write_ledger(project, "weather", "t", first)
        for stale in (Ledger(), first, second.model_copy(update={"version": 9})):
            with pytest.raises(ConflictError) as caught:
                registry.write_ledger(project, "weather", "t", stale)
            for part in ("weather", "version 2", f"version {stale.version}"):
                assert part in str(caught.value)
        assert registry.ledger(project, "weather", "t") == second

    def test_a_forgotten_ledger_begins_anew(self, registry: Registry, project: str) -> None:
        held = registry.write_ledger(project, "weather", "t", Ledger())
        registry.write_ledger(project, "weather", "u", Ledger(open_runs=("r1", "r2")))
        registry.delete_ledger(project, "weather", "t")
        assert registry.ledger(project, "weather", "t") == Ledger()
        assert registry.ledger(project, "weather", "u").version == 1
        with pytest.raises(ConflictError, match="deleted or never written"):
            registry.write_ledger(project, "weather", "t", held)
        assert registry.write_ledger(project, "weather", "t", Ledger()).version == 1

    def test_the_same_files_give_the_same_snapshot(self, registry: Registry, project: str) -> None:
        files = [SourceFile("/data/a", "1"), SourceFile("/data/b größe\udcff", "2\x00")]
        snapshot = registry.save_snapshot(project, files)
        assert snapshot
        assert registry.save_snapshot(project, files[::-1]) == snapshot
        assert registry.load_snapshot(project, snapshot) == {f.path: f.token for f in files}

    def test_other_files_give_another_snapshot(self, registry: Registry, project: str) -> None:
        listings = [
            [],
            [SourceFile("a", "1")],
            [SourceFile("a", "2")],
            [SourceFile("b", "1")],
            [SourceFile("a1", "")],
            [SourceFile("", "a1")],
            [SourceFile("a", "1b2")],
            [SourceFile("a", "1"), SourceFile("b", "2")],
            [SourceFile("a", "2"), SourceFile("b", "1")],
        ]
        ids = [registry.save_snapshot(project, files) for files in listings]
        assert len({*ids, ""}) == len(listings) + 1
        for snapshot, files in zip(ids, listings, strict=True):
            assert registry.load_snapshot(project, snapshot) == {f.path: f.token for f in files}

    def test_no_snapshot_is_no_file_and_an_unknown_one_is_an_error(
        self, registry: Registry, project: str
    ) -> None:
        assert registry.load_snapshot(project, "") == {}
        with pytest.raises(StorageError, match="00ff00ff"):
            registry.load_snapshot(project, "00ff00ff")

    def test_a_snapshot_of_thousands_of_files_comes_back(
        self, registry: Registry, project: str
    ) -> None:
        files = [SourceFile(f"/data/day={n}/part-{n:06d}.parquet", f"{n}") for n in range(5_000)]
        snapshot = registry.save_snapshot(project, files)
        assert registry.load_snapshot(project, snapshot) == {f.path: f.token for f in files}

    def test_a_run_comes_back_with_every_field_and_is_replaced(
        self, registry: Registry, project: str
    ) -> None:
        begun = Run(id="r1", view="weather", table_fingerprint="t", kind="k", started_at_us=5)
        registry.save_run(project, begun)
        assert registry.runs(project) == [begun]
        registry.save_run(project, full_run("r2"))
        registry.save_run(project, full_run("r1", view="other"))
        assert registry.runs(project) == [full_run("r2"), full_run("r1", view="other")]
        assert registry.runs(project, "weather") == [full_run("r2")]
        assert registry.runs(project, state="running") == []

    def test_only_a_run_that_is_running_is_buried(self, registry: Registry, project: str) -> None:
        begun = Run(id="r1", view="weather", table_fingerprint="t", kind="k", started_at_us=5)
        dead = begun.model_copy(update={"state": "failed", "error": "died", "finished_at_us": 9})
        assert not registry.bury_run(project, dead)
        assert registry.runs(project) == []
        registry.save_run(project, begun)
        assert registry.bury_run(project, dead)
        assert registry.runs(project) == [dead]
        ended = begun.model_copy(update={"state": "succeeded", "finished_at_us": 8})
        registry.save_run(project, ended)
        assert not registry.bury_run(project, dead)
        assert registry.runs(project) == [ended]

    def test_runs_are_ordered_chosen_and_limited(self, registry: Registry, project: str) -> None:
        for number, started in enumerate((-3, 9, 4, 4, LAST_INSTANT_US)):
            view = "a" if number % 2 else "b"
            run = full_run(f"r{number}", started_at_us=started, view=view)
            state = "succeeded" if number == 2 else "failed"
            registry.save_run(project, run.model_copy(update={"state": state}))
        assert [run.id for run in registry.runs(project)] == ["r4", "r1", "r3", "r2", "r0"]
        assert [run.id for run in registry.runs(project, limit=2)] == ["r4", "r1"]
        assert registry.runs(project, limit=0) == []
        assert [run.id for run in registry.runs(project, "b")] == ["r4", "r2", "r0"]
        assert [run.id for run in registry.runs(project, "b", state="failed")] == ["r4", "r0"]
        assert [run.id for run in registry.runs(project, state="succeeded")] == ["r2"]
        assert [run.id for run in registry.runs(project, "b", limit=1)] == ["r4"]
        assert registry.runs(project, "c") == []
