"""Live ingestion: a process that takes the events of streams online, into their logs and tables.

One worker a source and member (`ingest_worker`); the *supervisor* looks for new definitions, and
the *follower* runs the incremental job of the views over streams, so that their tables follow the
logs.

**A changed definition without a gap.** A view whose rows change gets a new generation: another
table and other online values, which serve once they are complete (`registration.complete`). Its
job reads history and log, and puts their events online. Events that come in meanwhile must be in
the new generation as well when it begins to serve. So:

1. A worker feeds every generation that is applied or serves; a former one for a minute more, as
   readers may know of the change a little later.
2. Each commit of a log says how far each partition is in it, and, as *claims*, which generations
   get all that comes behind these positions. The worker promises only what it feeds already, and
   stops feeding only what the last commit no longer promises.
3. A job that has read a log may let a generation serve only when every claim of that commit
   promises to feed it: what it read, and what comes behind, is then all that there is. Otherwise
   the former generation goes on serving, and gets all events too, until the next flush and job.
4. Whoever begins to read a partition claims it first, then asks the registry, then takes events. A
   generation that served before that claim is known then; one that did not cannot begin to serve
   while the claim does not name it. A member that lost a partition finds another one's claim, and
   changes it no more.

A process that is killed leaves its claims; until somebody reads the partitions again, no generation
that they do not name can begin to serve, and none should: events are online in the former one that
are in no log. Whoever stops in good order takes its claims back.

Nothing here decides what is newer or counts twice: online states and tables tell versions of events
apart, and are the same after any order and number of deliveries.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import FeatureNotFoundError, FeatureStoreError, listing, near_miss
from featurestore.services.ingest_definitions import Definitions
from featurestore.services.ingest_status import IngestEvent, SourceStatus
from featurestore.services.ingest_worker import SourceWorker, WorkerParts
from featurestore.services.patience import Patience

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.model.settings import StreamsSettings
    from featurestore.ports.engine import Engine
    from featurestore.ports.registry import ProjectState
    from featurestore.ports.streams import EventStream
    from featurestore.services.jobs import Materializer
    from featurestore.services.live_views import OnlineApplier
    from featurestore.services.materialization import AppliedLive
    from featurestore.services.source_columns import SourceColumns
    from featurestore.services.state import StateCache
    from featurestore.services.stream_log import StreamLog

_LOOK_SECONDS = 0.05
_GIVE_UP_SECONDS = 30.0

Tell = Callable[[IngestEvent], None]


@dataclass(frozen=True)
class IngestParts:
    """What ingestion is made of.

    Attributes:
        group: Returns the consumer group of a source.
        open_stream: Returns the stream of a URL.
        refresh_seconds: How often the registry is asked for new definitions.
        drain_seconds: How long the follower's job may take to end when all is to stop.
    """

    group: Callable[[str], str]
    state: StateCache
    engine: Engine
    columns: SourceColumns
    log: StreamLog
    applier: OnlineApplier
    materializer: Materializer
    open_stream: Callable[[str], EventStream]
    settings: StreamsSettings
    clock: Clock
    refresh_seconds: float = 1.0
    drain_seconds: float = 30.0


class Ingestor:
    """Ingests the streams of a project until it is stopped.

    Args:
        parts: What it is made of.
        member: Names this process in consumer groups; no other one has this name.
        sources: The sources to ingest; all when there are none.
        workers: Members a source.
        tell: Is told what is worth a line.

    Attributes:
        definitions: The views that are fed.
        finished: What workers that have ended did.

    Raises:
        FeatureNotFoundError: A source is not there, or has no stream.
        RegistryUnavailableError: The registry does not answer.
    """

    def __init__(
        self,
        parts: IngestParts,
        member: str,
        *,
        sources: Sequence[str] = (),
        workers: int = 1,
        tell: Tell = lambda _: None,
    ) -> None:
        self._parts = parts
        self._member = member
        self._count = max(1, workers)
        self._tell = tell
        self._stopping = threading.Event()
        self._grown = threading.Event()
        self._eager = False
        self._grown.set()
        self._workers: dict[str, list[SourceWorker]] = {}
        self.finished: list[SourceStatus] = []
        self._running: dict[SourceWorker, Future[None]] = {}
        self._following: Future[None] | None = None
        self._followed_at = float("-inf")
        self._patience = Patience(
            self._stopping,
            parts.settings.retry_seconds,
            lambda kind, text: tell(IngestEvent(kind, "", text)),
        )
        self.definitions = Definitions(parts.state, parts.clock, sources)
        self.definitions.look()
        for name in sources:
            if name not in self.definitions.sources:
                raise _no_stream(name, parts.state.get())

    def run(self, *, until_idle: bool = False) -> None:
        """Ingest until `stop`, or until everything that is in the streams is everywhere.

        Args:
            until_idle: Whether to return when there is nothing left to do.

        Raises:
            FeatureStoreError: With `until_idle`, what has been in the way for half a minute.
        """
        self._eager = until_idle
        with ThreadPoolExecutor(64, thread_name_prefix="ingest") as pool:
            try:
                self._supervise(pool, until_idle=until_idle)
            finally:
                self._wind_up()

    def stop(self) -> None:
        """Make `run` flush, commit, leave the groups and return; from any thread or signal."""
        self._stopping.set()

    def status(self) -> list[SourceStatus]:
        """Return how far each worker is; from any thread."""
        return [worker.status() for workers in list(self._workers.values()) for worker in workers]

    def follow(self) -> None:
        """Let the tables follow the logs once.

        Raises:
            FeatureStoreError: A view's job failed.
        """
        names = [*self.definitions.applied]
        if not names:
            return
        self._grown.clear()
        waiting = self.definitions.waiting
        try:
            self._parts.materializer.materialize_incremental(
                views=names, applied_live=self._applied_live()
            )
        except BaseException:
            self._grown.set()
            raise
        self.definitions.look()
        for name in sorted(waiting - self.definitions.waiting):
            self._tell(IngestEvent("serving", "", f"{name} serves from its new table"))

    def worker(self, source: str, member: str) -> SourceWorker:
        """Return a new worker of a source; whoever runs it or drives it by hand closes it."""
        plan = self.definitions.sources[source]
        parts = self._parts
        shared = WorkerParts(
            settings=parts.settings,
            group=parts.group(source),
            clock=parts.clock,
            engine=parts.engine,
            columns=parts.columns,
            log=parts.log,
            applier=parts.applier,
            views=self.definitions.views,
            look_again=self.definitions.look,
            flushed=self._grown.set,
            tell=self._tell,
        )
        stream = parts.open_stream(str(plan.stream))
        return SourceWorker(plan, f"{self._member}-{member}", stream, shared)

    def _supervise(self, pool: ThreadPoolExecutor, *, until_idle: bool) -> None:
        clock = self._parts.clock
        looked = troubled = clock.monotonic()
        self._staff(pool)
        while not self._stopping.wait(_LOOK_SECONDS):
            now = clock.monotonic()
            for future in [f for f in (*self._running.values(), self._following) if f]:
                if future.done():
                    future.result()  # a bug ends all of them
            if now >= looked + self._parts.refresh_seconds:
                looked = now
                revision = self.definitions.revision
                self._patience.attempt("registry", self._look, otherwise=False)
                if self.definitions.revision != revision:
                    self._tell(IngestEvent("definitions", "", "took over changed definitions"))
                    self._staff(pool)
            if self._follow_due(now, at_once=until_idle and self._are_idle()):
                self._following = pool.submit(self._follow_patiently)
            error = self._error()
            troubled = troubled if error is not None else now
            if until_idle and error is not None and now > troubled + _GIVE_UP_SECONDS:
                raise error
            if until_idle and self._is_all_done():
                return

    def _look(self) -> bool:
        self.definitions.look()
        return True

    def _staff(self, pool: ThreadPoolExecutor) -> None:
        """Have workers for the sources that there are, as they are declared now."""
        sources = self.definitions.sources
        for name, workers in list(self._workers.items()):
            if sources.get(name) != workers[0].source:
                self._dismiss(name)
        for name in sources:
            if name not in self._workers:
                hired = [self.worker(name, str(number)) for number in range(self._count)]
                for worker in hired:
                    worker.eager = self._eager
                self._workers[name] = hired
                self._running |= {worker: pool.submit(worker.run) for worker in hired}
                self._tell(IngestEvent("started", name))

    def _dismiss(self, name: str) -> None:
        workers = self._workers.pop(name)
        for worker in workers:
            worker.stop()
        for worker in workers:
            self._running.pop(worker).result()
            self.finished.append(worker.status())
        self._tell(IngestEvent("stopped", name))

    def _follow_due(self, now: float, *, at_once: bool) -> bool:
        if self._following is not None:
            if not self._following.done():
                return False
            self._following = None
        ahead = self._parts.applier.ahead_until_us > self._parts.clock.now_us()
        due = now >= self._followed_at + self._parts.settings.log_seconds
        if not (self._grown.is_set() or (ahead and due)):
            return False
        if not (due or at_once or self._can_switch()):
            return False
        self._followed_at = now
        return True

    def _can_switch(self) -> bool:
        """Whether a generation that waits to serve is promised by all workers' last commits."""
        views = [self.definitions.applied[name] for name in self.definitions.waiting]
        return any(
            all(view.generation in worker.promised for worker in self._workers[view.source.name])
            for view in views
            if view.source.name in self._workers
        )

    def _follow_patiently(self) -> None:
        self._patience.attempt("tables", self._follow_once, otherwise=False)

    def _follow_once(self) -> bool:
        with contextlib.suppress(KeyboardInterrupt):  # from `Materializer.interrupt`
            self.follow()
        return True

    def _applied_live(self) -> AppliedLive:
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for workers in self._workers.values():
            for worker in workers:
                for view, ranges in worker.applied.get().items():
                    found.setdefault(view, {}).update(ranges)
        return found

    def _are_idle(self) -> bool:
        return all(worker.is_idle for workers in self._workers.values() for worker in workers)

    def _is_all_done(self) -> bool:
        busy = self._following is not None and not self._following.done()
        return not (busy or self._grown.is_set() or self._error()) and self._are_idle()

    def _error(self) -> FeatureStoreError | None:
        workers = [worker for each in self._workers.values() for worker in each]
        errors = [self._patience.error, *(worker.error for worker in workers)]
        return next((error for error in errors if error is not None), None)

    def _wind_up(self) -> None:
        """Stop the workers, then the follower; its job may end, but not take for ever."""
        self._stopping.set()
        for name in list(self._workers):
            self._dismiss(name)
        following = self._following
        if following is not None:
            wait([following], timeout=self._parts.drain_seconds)
            while not following.done():
                self._parts.materializer.interrupt()
                wait([following], timeout=_LOOK_SECONDS)


def _no_stream(name: str, state: ProjectState) -> FeatureNotFoundError:
    views = state.catalog.views.values()
    streams = {plan.source.name for plan in views if plan.source.stream is not None}
    return FeatureNotFoundError(
        f"No applied view has a stream source called '{name}'.",
        allowed=listing(streams),
        hint=near_miss(name, streams) or "Run 'featurestore apply' if it is new.",
    )
