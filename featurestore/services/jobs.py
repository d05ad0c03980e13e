"""Materializing several views side by side, within a set number of workers and a set memory.

Each view is its own run: one that fails does not stop the others, and its error is raised when all
have ended. An interrupt stops all of them, and each says so in the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.compile.plan import table_id
from featurestore.errors import (
    FeatureNotFoundError,
    FeatureStoreError,
    RequestError,
    listing,
    near_miss,
)
from featurestore.semantics.timeline import MAX_INSTANT, format_instant
from featurestore.services.materialization import AppliedLive, Progress, ViewJob, ViewReport

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.registry import Registry
    from featurestore.services.registration import Registration

_KEEP_RETIRED_US = 3_600_000_000


@dataclass(frozen=True)
class MaterializationReport:
    """What a call did, view by view."""

    views: tuple[ViewReport, ...]
    seconds: float

    @property
    def rows_written(self) -> int:
        """All rows that were new to their tables."""
        return sum(view.rows_written for view in self.views)


class Materializer:
    """Runs the jobs of a project's views.

    Args:
        project: The project.
        job: Runs one view.
        registry: Tells which views are applied.
        registration: Switches a view to its new table when that is complete.
        clock: Tells now.
        workers: How many views run side by side.
        memory_limit: Bytes for all of them together.
        threads: Threads for all of them together.
    """

    def __init__(
        self,
        project: str,
        *,
        job: ViewJob,
        registry: Registry,
        registration: Registration,
        clock: Clock,
        workers: int,
        memory_limit: int,
        threads: int,
    ) -> None:
        self._project = project
        self._job = job
        self._registry = registry
        self._registration = registration
        self._clock = clock
        self._workers = max(1, workers)
        self._memory_limit = memory_limit
        self._threads = threads

    def materialize(
        self,
        start_us: int,
        end_us: int,
        views: Sequence[str] | None = None,
        *,
        attempt: int = 1,
        progress: Progress = lambda *_: None,
    ) -> MaterializationReport:
        """Materialize the interval `[start, end)` of the views; rerunning it changes nothing.

        Raises:
            RequestError: The interval is empty.
            FeatureNotFoundError: A view does not exist.
            FeatureStoreError: A run failed; the others have ended.
        """
        if start_us >= end_us:
            raise RequestError(
                "The interval to materialize is empty.",
                got=f"[{format_instant(start_us)}, {format_instant(min(end_us, MAX_INSTANT))})",
                allowed="a start before the end; the end is not part of it",
            )
        return self._run(self._views(views), start_us, end_us, attempt, progress)

    def materialize_incremental(
        self,
        end_us: int | None = None,
        views: Sequence[str] | None = None,
        *,
        attempt: int = 1,
        progress: Progress = lambda *_: None,
        applied_live: AppliedLive | None = None,
    ) -> MaterializationReport:
        """Materialize all that is new up to `end`: the first run takes all history (law M6).

        An end ahead of now counts as now. Late rows are found by new or changed files, and in the
        logs of streams.

        Args:
            end_us: The first instant that is not wanted; None is now.
            views: Names of views; None takes all.
            attempt: Which try of the same work it is.
            progress: Is told the stages.
            applied_live: What the caller has put online itself, of live events.
        """
        now = self._clock.now_us()
        end = now if end_us is None else min(end_us, now)
        return self._run(
            self._views(views), None, end, attempt, progress, applied_live=applied_live
        )

    def interrupt(self) -> None:
        """Stop the runs of this process, from any thread; each fails and says so."""
        self._job.interrupt()

    def _views(self, names: Sequence[str] | None) -> list[ViewPlan]:
        applied = self._registry.state(self._project).catalog.views
        for name in names or ():
            if name not in applied:
                raise FeatureNotFoundError(
                    f"'{name}' names no applied feature view.",
                    allowed=listing(applied),
                    hint=near_miss(name, applied) or "Run 'featurestore apply' if it is new.",
                )
        return [applied[name] for name in (names or applied)]

    def _run(
        self,
        views: list[ViewPlan],
        start_us: int | None,
        end_us: int,
        attempt: int,
        progress: Progress,
        *,
        applied_live: AppliedLive | None = None,
    ) -> MaterializationReport:
        started = self._clock.monotonic()
        side_by_side = max(1, min(self._workers, len(views)))

        def one(view: ViewPlan) -> ViewReport:
            report = self._job.run(
                view,
                table_id(self._project, view),
                start_us,
                end_us,
                attempt=attempt,
                memory_limit=self._memory_limit // side_by_side,
                threads=max(1, self._threads // side_by_side) if self._threads else None,
                progress=progress,
                applied_live=applied_live,
            )
            if report.fed:
                self._registration.complete(view)
            progress(view.name, "done")
            return report

        with ThreadPoolExecutor(side_by_side, thread_name_prefix="materialize") as pool:
            futures = {pool.submit(one, view): view for view in views}
            self._await(pool, set(futures))
        reports = _gather(futures)
        self._registration.sweep(self._clock.now_us(), _KEEP_RETIRED_US)
        return MaterializationReport(tuple(reports), self._clock.monotonic() - started)

    def _await(self, pool: ThreadPoolExecutor, pending: set[Future[ViewReport]]) -> None:
        """Wait for all runs; an interrupt stops them, waits for their last words and goes on."""
        try:
            while pending:
                # Not for ever: once Polars is loaded, Ctrl-C does not end a wait without a limit.
                _, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while pending:
                # A run may be between two statements: ask again until it has heard.
                self._job.interrupt()
                _, pending = wait(pending, timeout=0.1)
            raise


def _gather(futures: dict[Future[ViewReport], ViewPlan]) -> list[ViewReport]:
    reports: list[ViewReport] = []
    failed: list[tuple[str, BaseException]] = []
    for future, view in futures.items():
        error = future.exception()
        if error is None:
            reports.append(future.result())
        else:
            failed.append((view.name, error))
    if not failed:
        return reports
    name, first = failed[0]
    if isinstance(first, FeatureStoreError):
        first.where = f"FeatureView '{name}'" + (f", {first.where}" if first.where else "")
        if len(failed) > 1:
            others = "; ".join(f"{n}: {str(e).splitlines()[0]}" for n, e in failed[1:])
            first.hint = f"{first.hint or ''} Other views failed too: {others}.".strip()
    raise first
