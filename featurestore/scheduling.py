"""The scheduler: views with `schedule=` are materialized when they are due (cron, UTC).

APScheduler keeps the time; this room says what a run is. One run of a view at a time: a lock file
in the offline folder keeps a second scheduler of the repository from doing the work twice, and the
table's compare-and-swap makes it harmless where the lock does not reach. A failed run is tried
again after pauses that double, at most `scheduling.max_retries` times, with at most one try waiting
for a view; the next due time takes its place. A due time that was missed while no scheduler ran is
made up for at the start when it is no older than `scheduling.misfire_grace_seconds`.

It decides nothing about rows, and never reads the clock for them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from apscheduler import events
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from featurestore.errors import FeatureNotFoundError, FeatureStoreError, StorageError
from featurestore.model.cron import Cron, parse_cron
from featurestore.model.settings import Settings, parse_size
from featurestore.semantics.timeline import format_instant, to_datetime, to_instant
from featurestore.wiring import FeatureStore, load_settings

if TYPE_CHECKING:
    from featurestore.services.materialization import ViewReport
    from featurestore.store import BaseStore

_SECOND_US = 1_000_000
_INTERRUPT_SECONDS = 0.1

EventKind = Literal[
    "scheduled", "unscheduled", "started", "succeeded", "failed", "gave up", "skipped", "stopped",
    "unreachable", "reachable", "bug",
]  # fmt: skip
TriggerFactory = Callable[[str], BaseTrigger]


@dataclass(frozen=True)
class SchedulerEvent:
    """Something that the scheduler did; instants are microseconds since the epoch.

    Attributes:
        kind: What happened.
        at_us: When.
        view: The view it happened to, None for the scheduler as a whole.
        attempt: The try that it was, from 1.
        next_us: When the view runs next, where that is known.
        report: What a run that succeeded did.
        error: Why a run failed, or what is not reachable.
        text: More about it, for people.
    """

    kind: EventKind
    at_us: int
    view: str | None = None
    attempt: int = 1
    next_us: int | None = None
    report: ViewReport | None = None
    error: BaseException | None = None
    text: str = ""


class CronTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """A `Cron` as APScheduler asks for it, so that `status` and the scheduler mean the same."""

    def __init__(self, cron: Cron) -> None:
        self._cron = cron

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Return the first due time after `previous`; without one, the first from now on."""
        after = to_instant(previous) if previous is not None else to_instant(now) - 1
        due = self._cron.next_after(after)
        return None if due is None else to_datetime(due)

    def __str__(self) -> str:
        return "cron"


def open_store(folder: str | Path) -> FeatureStore:
    """Open a repository for a scheduler, whose workers share the memory and threads of one process.

    Raises:
        SettingsError: The settings are missing or wrong.
    """
    root = Path(folder).resolve()
    return FeatureStore(root, settings=worker_share(load_settings(root)))


def worker_share(settings: Settings) -> Settings:
    """Return settings under which each of `offline.workers` runs takes its part and no more."""
    offline = settings.offline
    workers = max(1, offline.workers)
    threads = offline.threads or os.cpu_count() or 1
    share = {
        "memory_limit": f"{parse_size(offline.memory_limit) // workers}B",
        "threads": max(1, threads // workers),
    }
    return settings.model_copy(update={"offline": offline.model_copy(update=share)})


class Scheduler:
    """Runs the scheduled views of a store until it is told to stop.

    Args:
        store: The store, opened by `open_store`.
        tell: Called with each event, from any thread.
        trigger: Makes APScheduler's trigger of a cron expression; tests hand in quicker ones.
        refresh_seconds: How often newly applied definitions are looked for.
        drain_seconds: How long runs may go on after a stop before they are interrupted.
    """

    def __init__(
        self,
        store: BaseStore,
        *,
        tell: Callable[[SchedulerEvent], None] = lambda _: None,
        trigger: TriggerFactory = lambda text: CronTrigger(parse_cron(text)),
        refresh_seconds: float = 5.0,
        drain_seconds: float = 20.0,
    ) -> None:
        services = store.services
        self._store = store
        self._clock = services.clock
        self._registry = services.registry
        self._settings = services.settings.scheduling
        self._locks = services.folder / services.settings.offline.path / ".locks"
        self._tell = tell
        self._trigger = trigger
        self._refresh_seconds = refresh_seconds
        self._drain_seconds = drain_seconds
        self._revision: int | None = None
        self._schedules: dict[str, str] = {}
        self._unreachable = False
        self._running: set[str] = set()
        self._stopping = False
        # Signal handlers may interrupt whoever holds a lock; a SimpleQueue takes that.
        self._orders: queue.SimpleQueue[Literal["stop", "ended"]] = queue.SimpleQueue()
        workers = max(1, services.settings.offline.workers)
        self._jobs = BackgroundScheduler(
            timezone=UTC, executors={"default": ThreadPoolExecutor(workers)}
        )
        self._jobs.add_listener(self._heard, events.EVENT_JOB_ERROR | _NOT_RUN)

    @property
    def schedules(self) -> dict[str, str]:
        """The scheduled views and their cron expressions."""
        return dict(self._schedules)

    def waiting(self) -> dict[str, datetime]:
        """Return when each waiting job is due: a view's name, or `retry:` and its name."""
        due = {job.id: getattr(job, "next_run_time", None) for job in self._jobs.get_jobs()}
        return {name: moment for name, moment in due.items() if moment is not None}

    def run(self) -> None:
        """Schedule until `stop`, SIGTERM or SIGINT; a second signal interrupts what still runs.

        Raises:
            FeatureStoreError: The registry or the offline folder is of no use at the start.
        AccessDeniedError: A view may not be written by whoever opened the store.
        """
        self.refresh()
        with self._store.gate.changing("schedule", "write", "view", list(self._schedules)):
            pass  # told at once; each run asks again, and what is applied later is asked for then
        self._store.services.materializer  # noqa: B018  made here, once, not by two workers
        with self._signals():
            self._jobs.start()
            try:
                while self._order(self._refresh_seconds) != "stop":
                    self._refresh_if_reachable()
            finally:
                self._drain()

    def stop(self) -> None:
        """Make `run` return; from any thread or signal handler."""
        self._orders.put("stop")

    def refresh(self) -> None:
        """Schedule what is applied now.

        Raises:
            RegistryUnavailableError: The registry does not answer.
        """
        revision = self._registry.revision(self._store.project)
        if revision == self._revision:
            return
        catalog = self._registry.state(self._store.project).catalog
        wanted = {view.name: view.schedule for view in catalog.views.values() if view.schedule}
        for view in sorted(self._schedules.keys() - wanted.keys()):
            self._unschedule(view)
        for view, schedule in sorted(wanted.items()):
            if self._schedules.get(view) != schedule:
                self._schedule(view, schedule)
        self._revision = revision

    def run_view(self, view: str, attempt: int = 1) -> None:
        """Materialize what is new of one view, unless somebody else does so at this moment."""
        if attempt == 1:
            self._forget(f"retry:{view}")
        try:
            with self._claim(view) as claimed:
                if not claimed:
                    self._event("skipped", view, attempt, text="another run of the view goes on")
                elif not self._stopping:
                    self._run_claimed(view, attempt)
        except StorageError as error:
            self._failed(view, attempt, error)

    def _run_claimed(self, view: str, attempt: int) -> None:
        self._event("started", view, attempt)
        try:
            report = self._store.materialize_incremental(views=[view], attempt=attempt)
        except FeatureNotFoundError as error:
            self._event("skipped", view, attempt, error=error, text="it is applied no more")
        except FeatureStoreError as error:
            self._failed(view, attempt, error)
        except KeyboardInterrupt:
            self._event("stopped", view, attempt, text="its interval is not marked done")
        else:
            self._event("succeeded", view, attempt, report=report.views[0])

    def _schedule(self, view: str, schedule: str) -> None:
        now = self._clock.now_us()
        options: dict[str, Any] = {}
        if self._missed(view, schedule, now):
            options["next_run_time"] = to_datetime(now)
        self._jobs.add_job(
            self.run_view,
            self._trigger(schedule),
            args=[view],
            id=view,
            replace_existing=True,
            max_instances=1,
            coalesce=True,
            misfire_grace_time=max(1, self._settings.misfire_grace_seconds),
            **options,
        )
        self._schedules[view] = schedule
        due = now if options else parse_cron(schedule).next_after(now)
        self._event("scheduled", view, next_us=due, text=schedule)

    def _unschedule(self, view: str) -> None:
        self._forget(view)
        self._forget(f"retry:{view}")
        del self._schedules[view]
        self._event("unscheduled", view)

    def _missed(self, view: str, schedule: str, now: int) -> bool:
        due = parse_cron(schedule).last_at(now)
        if due is None or now - due > self._settings.misfire_grace_seconds * _SECOND_US:
            return False
        runs = self._registry.runs(self._store.project, view, state="succeeded", limit=1)
        return not runs or runs[0].started_at_us < due

    def _failed(self, view: str, attempt: int, error: FeatureStoreError) -> None:
        if attempt > self._settings.max_retries or self._stopping or view not in self._schedules:
            tries = "1 try" if attempt == 1 else f"{attempt} tries"
            self._event("gave up", view, attempt, error=error, text=f"after {tries}")
            return
        pause = self._settings.retry_seconds * 2 ** (attempt - 1)
        due = self._clock.now_us() + int(pause * _SECOND_US)
        self._forget(f"retry:{view}")  # one waiting try a view: the newest
        self._jobs.add_job(
            self.run_view,
            "date",
            run_date=to_datetime(due),
            args=[view, attempt + 1],
            id=f"retry:{view}",
            replace_existing=True,
            misfire_grace_time=None,
        )
        self._event("failed", view, attempt, error=error, next_us=due)

    def _forget(self, job: str) -> None:
        # A job that will not run again is gone by itself.
        with contextlib.suppress(JobLookupError):
            self._jobs.remove_job(job)

    @contextlib.contextmanager
    def _claim(self, view: str) -> Iterator[bool]:
        """Hold the view's lock file; gives False when another run holds it."""
        import fcntl

        path = self._locks / f"{quote(self._store.project, safe='')}.{view}"
        with contextlib.ExitStack() as held:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(path.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise StorageError(
                    "The view's lock file cannot be made.", where=str(path), got=str(error)
                ) from error
            self._running.add(view)
            try:
                yield True
            finally:
                self._running.discard(view)
                self._orders.put("ended")

    def _refresh_if_reachable(self) -> None:
        """Look for new definitions; what is scheduled goes on while the registry is away."""
        try:
            self.refresh()
        except FeatureStoreError as error:
            if not self._unreachable:
                self._event("unreachable", error=error)
            self._unreachable = True
            return
        if self._unreachable:
            self._event("reachable")
        self._unreachable = False

    def _drain(self) -> None:
        """Take no new runs; let the present ones end, and interrupt those that take too long."""
        self._stopping = True
        self._jobs.remove_all_jobs()
        self._jobs.shutdown(wait=False)
        end = self._clock.monotonic() + self._drain_seconds
        interrupting = False
        while self._running:
            left = end - self._clock.monotonic()
            order = self._order(_INTERRUPT_SECONDS if interrupting else max(left, 0.0))
            interrupting = interrupting or order == "stop" or end <= self._clock.monotonic()
            if interrupting:
                # A run may be between two statements: ask again until it has heard.
                self._store.services.materializer.interrupt()

    def _order(self, seconds: float) -> Literal["stop", "ended"] | None:
        try:
            return self._orders.get(timeout=seconds)
        except queue.Empty:
            return None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = (signal.SIGTERM, signal.SIGINT)
        former = {name: signal.signal(name, lambda *_: self.stop()) for name in names}
        try:
            yield
        finally:
            for name, handler in former.items():
                signal.signal(name, handler)

    def _heard(self, event: Any) -> None:
        """Tell what APScheduler says of a job that did not run, or ended in an unexpected way."""
        view = str(event.job_id).removeprefix("retry:")
        if event.code == events.EVENT_JOB_ERROR:
            self._event("bug", view, error=event.exception, text="this is a bug of featurestore")
        elif event.code == events.EVENT_JOB_MAX_INSTANCES:
            self._event("skipped", view, text="its former run still goes on")
        else:
            due = format_instant(to_instant(event.scheduled_run_time))
            self._event("skipped", view, text=f"it was due at {due}, too long ago")

    def _event(
        self, kind: EventKind, view: str | None = None, attempt: int = 1, **more: Any
    ) -> None:
        self._tell(SchedulerEvent(kind, self._clock.now_us(), view, attempt, **more))


_NOT_RUN = events.EVENT_JOB_MISSED | events.EVENT_JOB_MAX_INSTANCES
