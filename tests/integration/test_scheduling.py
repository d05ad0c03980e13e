"""The scheduler: what runs when, retries, one run at a time, new definitions, and its end.

All but the last test call what the scheduler calls, with a clock that stands still; the last one is
a real process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.interval import IntervalTrigger

from featurestore import FeatureStore
from featurestore.cli.scaffold import write_repository
from featurestore.clock import FixedClock, SystemClock
from featurestore.errors import RegistryUnavailableError
from featurestore.model.cron import parse_cron
from featurestore.model.settings import Settings, parse_size
from featurestore.scheduling import CronTrigger, Scheduler, open_store, worker_share
from featurestore.semantics.timeline import to_datetime, to_instant

HOUR = 3_600_000_000
SECOND = 1_000_000
NOON = to_instant(datetime(2024, 1, 1, 12, tzinfo=UTC))
VIEW = "customer_activity"
DEADLINE = 30.0


class Told(list):
    """The events of a scheduler, in order."""

    def __init__(self):
        super().__init__()
        self._more = threading.Condition()

    def __call__(self, event):
        with self._more:
            self.append(event)
            self._more.notify_all()

    def kinds(self):
        return [event.kind for event in self]

    def wait_for(self, kind, number=1):
        with self._more:
            assert self._more.wait_for(lambda: self.kinds().count(kind) >= number, DEADLINE)


@pytest.fixture
def clock():
    return FixedClock(NOON + 60 * SECOND)


@pytest.fixture
def store(tmp_path, clock):
    write_repository(tmp_path / "shop", clock)
    with FeatureStore(tmp_path / "shop", clock=clock) as opened:
        opened.apply()
        yield opened


@pytest.fixture
def live(tmp_path):
    """A store of now: APScheduler has its own clock, and would make up for years otherwise."""
    write_repository(tmp_path / "shop", SystemClock())
    with FeatureStore(tmp_path / "shop") as opened:
        opened.apply()
        yield opened


@pytest.fixture
def told():
    return Told()


def runs(store, view=VIEW):
    return [
        (run.state, run.attempt) for run in store.services.registry.runs(store.project, view)[::-1]
    ]


def hide(store, name="sources/activity.parquet"):
    path = store.services.folder / name
    path.rename(path.with_suffix(".away"))


def show(store, name="sources/activity.parquet"):
    path = store.services.folder / name
    path.with_suffix(".away").rename(path)


def redefine(store, before, after):
    """Change the text of the definitions and apply them."""
    path = store.services.folder / "definitions" / "customers.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    store.apply(allow_destructive=True)


@contextlib.contextmanager
def running(scheduler):
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        yield thread
    finally:
        scheduler.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_scheduled_views_are_scheduled_and_no_others(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    assert scheduler.schedules == {VIEW: "0 * * * *"}
    assert told.kinds() == ["scheduled"]


def test_a_run_materializes_what_is_new(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    scheduler.run_view(VIEW)
    scheduler.run_view(VIEW)
    assert told.kinds() == ["scheduled", "started", "succeeded", "started", "succeeded"]
    assert [told[2].report.rows_written, told[4].report.rows_written] == [1120, 0]
    assert runs(store) == [("succeeded", 1)] * 2


def test_a_due_time_that_was_missed_is_made_up_for(store, told):
    # It is a minute past the hour, and nothing has run since the hour.
    Scheduler(store, tell=told).refresh()
    assert told[0].next_us == NOON + 60 * SECOND


def test_a_due_time_that_was_served_is_not_run_again(store, told):
    store.materialize_incremental(views=[VIEW])
    Scheduler(store, tell=told).refresh()
    assert told[0].next_us == NOON + HOUR


def test_a_success_before_the_due_time_does_not_serve_it(store, told, clock):
    clock.set(NOON - SECOND)
    store.materialize_incremental(views=[VIEW])
    clock.set(NOON)
    Scheduler(store, tell=told).refresh()
    assert told[0].next_us == NOON


def test_a_due_time_too_long_ago_is_left_to_the_next(store, told, clock):
    redefine(store, '"0 * * * *"', '"0 0 * * *"')
    clock.set(NOON - 11 * HOUR + SECOND)
    Scheduler(store, tell=told).refresh()
    assert told[0].next_us == NOON + 12 * HOUR


def test_a_failed_run_is_tried_again_with_pauses_that_double(store, told, clock):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    hide(store)
    for attempt in (1, 2, 3):
        clock.advance(SECOND)
        scheduler.run_view(VIEW, attempt)
        assert told[-1].kind == "failed"
        assert told[-1].next_us - clock.now_us() == 10 * SECOND * 2 ** (attempt - 1)
        assert type(told[-1].error).__name__ == "SourceNotFoundError"
        assert retries(scheduler) == [[VIEW, attempt + 1]]
        scheduler._jobs.remove_job(f"retry:{VIEW}")  # as APScheduler does when it runs it
    clock.advance(SECOND)
    scheduler.run_view(VIEW, 4)
    assert (told[-1].kind, told[-1].text) == ("gave up", "after 4 tries")
    assert retries(scheduler) == []
    assert runs(store) == [("failed", 1), ("failed", 2), ("failed", 3), ("failed", 4)]


def test_one_try_waits_at_most(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    hide(store)
    for _ in range(5):
        scheduler.run_view(VIEW, 2)
    assert retries(scheduler) == [[VIEW, 3]]


def test_the_next_due_time_takes_the_place_of_a_waiting_try(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    hide(store)
    scheduler.run_view(VIEW)
    assert retries(scheduler) == [[VIEW, 2]]
    show(store)
    scheduler.run_view(VIEW)
    assert retries(scheduler) == []
    assert told[-1].kind == "succeeded"


def retries(scheduler):
    return [list(job.args) for job in scheduler._jobs.get_jobs() if job.id.startswith("retry:")]


def test_a_view_that_another_run_works_on_is_left_alone(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.run_view(VIEW)
    (lock,) = (store.services.folder / "data/offline/.locks").iterdir()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        scheduler.run_view(VIEW)
        assert told[-1].kind == "skipped"
        scheduler.run_view("customer_profile")
        assert told[-1].kind == "succeeded"
    scheduler.run_view(VIEW)
    assert told[-1].kind == "succeeded"


def test_a_lock_that_cannot_be_made_is_a_failure_that_is_told(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    (store.services.folder / "data" / "offline" / ".locks").write_text("in the way")
    scheduler.run_view(VIEW)
    assert told[-1].kind == "failed"
    assert "lock file" in told[-1].error.what


def test_newly_applied_definitions_are_picked_up(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    redefine(store, '"0 * * * *"', '"*/5 * * * *"')
    scheduler.refresh()
    assert scheduler.schedules == {VIEW: "*/5 * * * *"}
    hide(store)
    scheduler.run_view(VIEW)
    show(store)
    redefine(store, 'schedule="*/5 * * * *",', "")
    scheduler.refresh()
    assert (told[-1].kind, scheduler.schedules, retries(scheduler)) == ("unscheduled", {}, [])
    redefine(store, "source=profiles,", 'source=profiles, schedule="1 1 * * *",')
    scheduler.refresh()
    assert scheduler.schedules == {"customer_profile": "1 1 * * *"}


def test_nothing_is_scheduled_anew_while_nothing_changes(store, told, monkeypatch):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()
    monkeypatch.setattr(store.services.registry, "state", None)  # asked, it would fail
    scheduler.refresh()
    assert told.kinds() == ["scheduled"]


def test_a_view_that_is_gone_when_its_run_begins_is_no_failure(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler.run_view("no_such_view")
    assert (told[-1].kind, told[-1].text) == ("skipped", "it is applied no more")


def test_a_registry_that_goes_away_is_told_once_and_the_schedule_stands(store, told, monkeypatch):
    scheduler = Scheduler(store, tell=told)
    scheduler.refresh()

    def gone(_):
        raise RegistryUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(store.services.registry, "revision", gone)
        scheduler._refresh_if_reachable()
        scheduler._refresh_if_reachable()
    scheduler._refresh_if_reachable()
    scheduler._refresh_if_reachable()
    assert told.kinds() == ["scheduled", "unreachable", "reachable"]
    assert scheduler.schedules == {VIEW: "0 * * * *"}


def test_it_does_not_start_without_a_registry(store, monkeypatch):
    def gone(_):
        raise RegistryUnavailableError("gone")

    monkeypatch.setattr(store.services.registry, "revision", gone)
    with pytest.raises(RegistryUnavailableError):
        Scheduler(store).run()


def quick(_):
    return IntervalTrigger(seconds=0.05, timezone=UTC)


def test_views_run_again_and_again_until_it_is_stopped(live, told):
    scheduler = Scheduler(live, tell=told, trigger=quick)
    with running(scheduler):
        told.wait_for("succeeded", 3)
    # The runs take longer than the pauses: what is due meanwhile is left out, not queued.
    assert [kind for kind in told.kinds() if kind != "skipped"][:5] == [
        "scheduled", "started", "succeeded", "started", "succeeded",
    ]  # fmt: skip
    assert {state for state, _ in runs(live)} == {"succeeded"}


def test_what_nobody_foresaw_is_told_and_the_next_run_goes_on(live, told, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    calls = iter(range(1000))
    real = live.materialize_incremental

    def faulty(**arguments):
        if next(calls) == 0:
            raise ZeroDivisionError("oops")
        return real(**arguments)

    monkeypatch.setattr(live, "materialize_incremental", faulty)
    with running(Scheduler(live, tell=told, trigger=quick)):
        told.wait_for("succeeded")
    assert "oops" in str(next(event for event in told if event.kind == "bug").error)


class SlowStore:
    """A store whose runs go on until they are interrupted, or told to end."""

    def __init__(self, store):
        self.services = SlowServices(store.services, self)
        self.project, self.gate = store.project, store.gate
        self.ended = threading.Event()
        self.interrupted = threading.Event()

    def materialize_incremental(self, **_):
        assert self.ended.wait(DEADLINE)
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        raise RegistryUnavailableError("failed while stopping")

    def interrupt(self):
        self.interrupted.set()
        self.ended.set()


class SlowServices:
    def __init__(self, services, slow):
        self.settings, self.folder = services.settings, services.folder
        self.clock, self.registry = SystemClock(), services.registry
        self.materializer = slow


def test_a_run_that_takes_too_long_after_a_stop_is_interrupted(store, told):
    slow = SlowStore(store)
    with running(Scheduler(slow, tell=told, trigger=quick, drain_seconds=0.05)):
        told.wait_for("started")
    assert told[-1].kind == "stopped"
    assert slow.interrupted.is_set()


def test_a_second_stop_interrupts_at_once(store, told):
    slow = SlowStore(store)
    scheduler = Scheduler(slow, tell=told, trigger=quick, drain_seconds=DEADLINE * 2)
    with running(scheduler):
        told.wait_for("started")
        scheduler.stop()
    assert told[-1].kind == "stopped"


def test_a_run_that_ends_in_time_is_not_interrupted_and_not_tried_again(store, told):
    slow = SlowStore(store)
    scheduler = Scheduler(slow, tell=told, trigger=quick, drain_seconds=DEADLINE)
    with running(scheduler) as thread:
        told.wait_for("started")
        scheduler.stop()
        deadline = time.monotonic() + DEADLINE
        while not scheduler._stopping and time.monotonic() < deadline:
            thread.join(0.01)
        slow.ended.set()
        thread.join(DEADLINE)
        assert not slow.interrupted.is_set()
    assert told[-1].kind == "gave up"


def test_a_run_that_is_due_after_the_stop_does_not_begin(store, told):
    scheduler = Scheduler(store, tell=told)
    scheduler._stopping = True
    scheduler.run_view(VIEW)
    assert told == []


def test_the_trigger_tells_every_due_time_in_turn():
    trigger = CronTrigger(parse_cron("*/20 * * * *"))
    now = to_datetime(NOON + 61 * 60 * SECOND)
    first = to_datetime(NOON)
    later = [first + timedelta(minutes=20 * i) for i in range(1, 4)]
    found = [first]
    for _ in later:
        found.append(trigger.get_next_fire_time(found[-1], now))
    assert found[1:] == later
    assert trigger.get_next_fire_time(None, first) == first
    assert trigger.get_next_fire_time(None, now) == first + timedelta(minutes=80)


def test_workers_share_the_memory_and_threads_of_the_process():
    settings = Settings.model_validate(
        {"project": "p", "offline": {"workers": 4, "memory_limit": "1GiB", "threads": 6}}
    )
    shared = worker_share(settings).offline
    assert parse_size(shared.memory_limit) == 2**28
    assert (shared.threads, shared.workers) == (1, 4)
    alone = Settings.model_validate({"project": "p", "offline": {"workers": 1}})
    assert worker_share(alone).offline.threads == (os.cpu_count() or 1)


def test_the_store_of_a_scheduler_has_the_shared_settings(store):
    with open_store(store.services.folder) as opened:
        assert opened.services.settings == worker_share(store.services.settings)


def test_a_real_scheduler_runs_what_is_due_takes_up_changes_and_ends_at_sigterm(tmp_path):
    write_repository(tmp_path / "shop", SystemClock())
    with FeatureStore(tmp_path / "shop") as store:
        redefine(store, '"0 * * * *"', '"* * * * *"')
        process = subprocess.Popen(
            [sys.executable, "-m", "featurestore.cli", "schedule", "--output", "json"],
            cwd=tmp_path / "shop",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            timer = threading.Timer(DEADLINE, process.kill)
            timer.start()
            events = (json.loads(line) for line in process.stdout)
            done = next(event for event in events if event["event"] == "succeeded")
            assert (done["view"], done["report"]["rows_written"]) == (VIEW, 1120)
            assert store.status()[0].last_success is not None
            redefine(store, 'schedule="* * * * *"', "schedule=None")
            assert next(event for event in events if event["event"] == "unscheduled")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
    assert (process.returncode, errors) == (0, "")
