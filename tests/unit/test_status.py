"""Status: what is served and how fresh, what ran and failed, what is late, what cannot be told."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import FixedClock
from featurestore.compile.plan import Catalog, FeaturePlan, SourcePlan, ViewPlan, table_id
from featurestore.errors import (
    AuthenticationError,
    OnlineStoreUnavailableError,
    RegistryUnavailableError,
    StorageError,
)
from featurestore.ports.registry import Ledger, LedgerEntry, ProjectState, Run
from featurestore.ports.tables import TableFile
from featurestore.semantics.keys import namespace
from featurestore.semantics.timeline import MIN_INSTANT, to_instant
from featurestore.services.status import StatusReader

MINUTE = 60_000_000
HOUR = 60 * MINUTE
NOON = to_instant(datetime(2024, 1, 1, 12, tzinfo=UTC))


class Counts:
    """An online store that can be counted, or not."""

    def __init__(self):
        self.by_namespace = {}
        self.error = None
        self.asked = 0
        self.evicts = False

    def count(self, lead):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.by_namespace.get(lead, 0)

    def cautions(self):
        if isinstance(self.error, AuthenticationError):
            raise self.error
        return ["It may evict."] if self.evicts else []


def plan(name="stats", table="aa" * 8, **changes):
    arguments = {
        "name": name,
        "entities": (),
        "join_keys": (),
        "features": (FeaturePlan(name="x", dtype="int64"),),
        "source": SourcePlan(name="s", kind="parquet", path="p", event_timestamp="t"),
        "fingerprint": f"{name}-{table}",
        "table_fingerprint": table,
    }
    return ViewPlan(**arguments | changes)


class Project:
    """A project in memory whose status is read."""

    def __init__(self, folder):
        self.registry = MemoryRegistry()
        self.tables = MemoryTables(folder)
        self.online = Counts()
        self.clock = FixedClock(NOON)
        self.runs = 0

    def apply(self, *views, serving=None, at=NOON - 48 * HOUR):
        state = self.registry.state("p")
        catalog = Catalog(project="p", views={view.name: view for view in views})
        served = {view.name: view for view in views} | (serving or {})
        state = state.model_copy(update={"catalog": catalog, "serving": served})
        self.registry.publish(state, applied_by="ada", applied_at_us=at, summary="x")

    def add(self, view, *files):
        """Add files of (rows, oldest event, newest event) to the view's table."""
        name = table_id("p", view)
        self.tables.commit(
            name,
            pa.schema([]),
            read_version=self.tables.snapshot(name).version,
            add=[TableFile(f"f{i}", "all", n, 1, lo, hi) for i, (n, lo, hi) in enumerate(files)],
            metadata={},
        )

    def cover(self, view, *entries):
        ledger = Ledger(entries=[LedgerEntry(start=start, end=end) for start, end in entries])
        self.registry.write_ledger("p", view.name, view.table_fingerprint, ledger)

    def ran(self, view, state, minutes_ago, **changes):
        self.runs += 1
        run = Run(
            id=f"r{self.runs}",
            view=view.name,
            table_fingerprint=view.table_fingerprint,
            kind="materialize-incremental",
            state=state,
            started_at_us=NOON - minutes_ago * MINUTE,
            **changes,
        )
        self.registry.save_run("p", run)
        return run

    def views(self, **options):
        reader = StatusReader(
            "p",
            registry=self.registry,
            tables=self.tables,
            online=self.online,
            clock=self.clock,
            **options,
        )
        return reader.views()

    def view(self):
        (found,) = self.views()
        return found


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_nothing_is_applied(project):
    assert project.views() == []


def test_a_view_that_was_never_materialized(project):
    project.apply(plan())
    status = project.view()
    assert (status.view, status.state, status.fingerprint) == ("stats", "empty", plan().fingerprint)
    assert (status.newest_event_us, status.freshness_seconds, status.covered) == (None, None, ())
    assert (status.last_run, status.last_success, status.failed_runs) == (None, None, 0)
    assert (status.rows_offline, status.rows_online) == (0, 0)
    assert (status.schedule, status.next_run_us, status.late) == (None, None, False)
    assert status.notes == ()
    assert status.at_us == NOON


def test_a_view_that_serves(project):
    view = plan()
    project.apply(view)
    project.add(view, (10, NOON - 9 * HOUR, NOON - 3 * HOUR), (5, NOON - 2 * HOUR, NOON - HOUR))
    project.cover(view, (MIN_INSTANT, NOON - HOUR))
    project.online.by_namespace[namespace("p", "stats", view.table_fingerprint)] = 7
    status = project.view()
    assert status.state == "serving"
    assert status.newest_event_us == NOON - HOUR
    assert status.freshness_seconds == 3600
    assert (status.rows_offline, status.rows_online) == (15, 7)
    assert status.covered == ("[beginning, 2024-01-01T11:00:00Z)",)


def test_an_interval_without_rows_serves_too(project):
    project.apply(plan())
    project.cover(plan(), (NOON - HOUR, NOON))
    assert project.view().state == "serving"


def test_rows_dated_ahead_of_now_are_not_fresh(project):
    view = plan()
    project.apply(view)
    project.add(view, (1, NOON - 2 * HOUR, NOON - 2 * HOUR), (1, NOON + HOUR, NOON + 2 * HOUR))
    assert project.view().freshness_seconds == 7200
    # A file of both tells its oldest event, which is known to be there.
    project.add(view, (2, NOON - HOUR, NOON + HOUR))
    assert project.view().freshness_seconds == 3600
    project.clock.set(NOON + HOUR)
    assert project.view().freshness_seconds == 0


def test_while_rebuilding_the_former_table_is_shown(project):
    old, new = plan(table="aa" * 8), plan(table="bb" * 8)
    project.apply(new, serving={"stats": old})
    project.add(old, (10, NOON - 9 * HOUR, NOON - 3 * HOUR))
    project.add(new, (99, NOON - HOUR, NOON - HOUR))
    project.online.by_namespace[namespace("p", "stats", old.table_fingerprint)] = 4
    project.cover(old, (0, NOON))
    project.ran(old, "succeeded", 30)
    status = project.view()
    assert (status.state, status.rows_offline, status.rows_online) == ("rebuilding", 10, 4)
    assert status.fingerprint == new.fingerprint
    assert len(status.covered) == 1
    # The former table's success is none of the new one.
    assert status.last_success is None
    assert status.last_run is not None


def test_a_view_that_is_not_online_is_not_counted(project):
    project.apply(plan(online=False))
    status = project.view()
    assert (status.online, status.rows_online, status.notes) == (False, None, ())
    assert project.online.asked == 0


def test_an_online_store_that_is_gone_is_told_and_asked_once(project):
    project.apply(plan("a"), plan("b"), plan("c"))
    project.online.error = OnlineStoreUnavailableError("Redis does not answer.")
    found = project.views()
    assert [status.rows_online for status in found] == [None] * 3
    assert all("Redis does not answer." in status.notes[0] for status in found)
    assert project.online.asked == 1
    assert [status.rows_offline for status in found] == [0] * 3


def test_what_threatens_the_online_store_is_noted_at_views_that_are_online(project):
    project.apply(plan("a"), plan("b", online=False))
    assert [status.notes for status in project.views()] == [(), ()]
    project.online.evicts = True
    assert [status.notes for status in project.views()] == [("It may evict.",), ()]
    project.online.error = AuthenticationError("It does not say.")
    assert "cannot be told: It does not say." in project.views()[0].notes[0]


def test_a_table_that_cannot_be_read_is_told(project, monkeypatch):
    def broken(_):
        raise StorageError("The table cannot be used.")

    project.apply(plan())
    monkeypatch.setattr(project.tables, "snapshot", broken)
    status = project.view()
    assert status.rows_offline is None
    assert "The table cannot be used." in status.notes[0]


def test_without_a_registry_there_is_no_status(project, monkeypatch):
    def gone(_):
        raise RegistryUnavailableError("gone")

    monkeypatch.setattr(project.registry, "state", gone)
    with pytest.raises(RegistryUnavailableError):
        project.views()


def test_views_come_by_name(project):
    project.apply(plan("b"), plan("a"))
    assert [status.view for status in project.views()] == ["a", "b"]


def test_failures_are_counted_since_the_last_success(project):
    view = plan()
    project.apply(view)
    project.ran(view, "failed", 50)
    project.ran(view, "succeeded", 40)
    project.ran(view, "failed", 30, error="first")
    project.ran(view, "failed", 20, error="second", attempt=2)
    project.ran(plan("other"), "failed", 10)
    status = project.view()
    assert status.failed_runs == 2
    assert (status.last_run.error, status.last_run.attempt) == ("second", 2)
    assert status.last_success.started_at_us == NOON - 40 * MINUTE


def test_a_run_whose_process_died_counts_as_failed(project):
    view = plan()
    project.apply(view)
    host = os.uname().nodename
    # This process has no such run; it must have been an earlier one of the same number.
    project.ran(view, "running", 10, host=host, pid=os.getpid())
    status = project.view()
    assert (status.last_run.state, status.failed_runs) == ("failed", 1)
    assert "died in mid-run" in status.last_run.error
    project.ran(view, "running", 5, host="elsewhere", pid=1)
    assert project.view().last_run.state == "running"


def test_the_next_run_follows_the_schedule(project):
    project.apply(plan(schedule="*/15 * * * *"))
    assert project.view().next_run_us == NOON + 15 * MINUTE


@pytest.mark.parametrize(
    ("schedule", "minutes_after_due", "late"),
    [
        # Due at noon each time; the grace is a period, at most the hour of the settings.
        ("*/15 * * * *", 0, False),
        ("*/15 * * * *", 14, False),
        ("*/15 * * * *", 15, True),
        ("0 */6 * * *", 59, False),
        ("0 */6 * * *", 60, True),
        ("0 12 * * *", 60, True),
    ],
)
def test_late_is_a_due_time_past_its_grace(project, schedule, minutes_after_due, late):
    view = plan(schedule=schedule)
    project.apply(view)
    project.ran(view, "succeeded", 1)  # a minute before noon: for the due time before
    project.clock.set(NOON + minutes_after_due * MINUTE)
    assert project.view().late is late


def test_a_success_since_the_due_time_is_not_late(project):
    view = plan(schedule="*/15 * * * *")
    project.apply(view)
    project.ran(view, "succeeded", 0)
    project.clock.set(NOON + 29 * MINUTE)
    assert not project.view().late
    project.clock.set(NOON + 30 * MINUTE)
    assert project.view().late


def test_failures_and_runs_that_go_on_do_not_make_up_for_a_success(project):
    view = plan(schedule="*/15 * * * *")
    project.apply(view)
    project.ran(view, "failed", 0)
    project.ran(view, "running", -1, host="elsewhere")
    project.clock.set(NOON + 15 * MINUTE)
    assert project.view().late


def test_a_view_is_not_late_for_what_was_due_before_it_was_applied(project):
    project.apply(plan(schedule="0 0 * * *"), at=NOON)
    assert not project.view().late
    project.clock.set(NOON + 13 * HOUR)
    assert project.view().late


def test_the_longest_grace_is_a_setting(project):
    project.apply(plan(schedule="0 12 * * *"))
    project.ran(plan(), "succeeded", 60)
    project.clock.set(NOON + 30 * MINUTE)
    assert [s.late for s in project.views(misfire_grace_seconds=1800)] == [True]
    assert [s.late for s in project.views(misfire_grace_seconds=1801)] == [False]


def test_a_view_without_a_schedule_is_never_late(project):
    project.apply(plan())
    project.clock.set(NOON + 10_000 * HOUR)
    assert not project.view().late


def test_another_project_is_not_seen(project):
    project.apply(plan())
    other = ProjectState(
        catalog=Catalog(project="q", views={"else": plan("else")}), serving={"else": plan("else")}
    )
    project.registry.publish(other, applied_by="bob", applied_at_us=NOON, summary="x")
    assert [status.view for status in project.views()] == ["stats"]
