"""Materialization: source rows become a view's table, and its newest rows go online (laws M1-M6).

One run of one view reads its source once into a session's staging table, adds the rows that the
table does not hold yet in one commit, pushes, and then writes the ledger. Dying at any point leaves
an older state that is whole; running again gives what would have been. The order matters:

    ledger: run open -> stage -> commit -> push -> ledger: interval done, run closed -> switch

A run that was left open tells the next one to push whatever the table holds. This file refuses to
decide what is newer, visible or late: that is `semantics`, `services.intervals` and `compile`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile import table_sql
from featurestore.compile.live_sql import unapplied
from featurestore.errors import ConflictError
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, Interval
from featurestore.services import intervals
from featurestore.services.table_writing import ATTEMPTS, TableWriter, Work

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.engine import Engine, EngineSession, Sources
    from featurestore.ports.registry import Ledger, Registry, Run
    from featurestore.ports.tables import Tables
    from featurestore.services.pushing import Pusher
    from featurestore.services.runs import RunLog
    from featurestore.services.states import StateWriter

# One mark is enough to make the next run push everything; more only tell the story.
_OPEN_RUNS = 8

# {generation of a view: {stream partition: (first, last position)}}: what the caller itself has put
# online of a stream, every entry between included.
AppliedLive = Mapping[str, Mapping[str, tuple[int, int]]]
# Called with (view, stage) as a run goes on, for progress bars.
Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class ViewReport:
    """What one run did for one view: rows, seconds, and the error if it failed.

    Attributes:
        fed: Whether all live events behind what the run has read get online for this very table. A
            view whose source has a stream may serve from the table only then.
    """

    view: str
    rows_read: int = 0
    rows_written: int = 0
    rows_pushed: int = 0
    rows_rejected: int = 0
    rows_tied: int = 0
    seconds: float = 0.0
    intervals: tuple[str, ...] = ()
    error: str | None = None
    fed: bool = True


class ViewJob:
    """Runs one view.

    Args:
        project: The project.
        engine: Opens sessions.
        sources: Lists what the source consists of.
        tables: Holds the view's table.
        registry: Holds the ledger.
        runs: Records the run.
        pusher: Writes rows online; used for views that are online.
        states: Applies events online, for aggregated views.
        clock: Tells now.
        target_file_size: Bytes that files should have.
    """

    def __init__(
        self,
        project: str,
        *,
        engine: Engine,
        sources: Sources,
        tables: Tables,
        registry: Registry,
        runs: RunLog,
        pusher: Pusher,
        states: StateWriter,
        clock: Clock,
        target_file_size: int,
    ) -> None:
        self._project = project
        self._engine = engine
        self._sources = sources
        self._tables = tables
        self._registry = registry
        self._runs = runs
        self._pusher = pusher
        self._states = states
        self._clock = clock
        self._writer = TableWriter(sources, tables, clock, target_file_size)
        self._open: set[Any] = set()

    def interrupt(self) -> None:
        """Stop the statements that run now; their runs fail and say so."""
        for session in list(self._open):
            session.interrupt()

    def run(
        self,
        view: ViewPlan,
        table_id: str,
        start_us: int | None,
        end_us: int,
        *,
        attempt: int = 1,
        memory_limit: int | None = None,
        threads: int | None = None,
        progress: Progress = lambda *_: None,
        applied_live: AppliedLive | None = None,
    ) -> ViewReport:
        """Materialize one view; without a start, everything that is new up to the end.

        Args:
            view: The view.
            table_id: Its table.
            start_us: The first instant; None for all that is new.
            end_us: The first instant that is not wanted.
            attempt: Which try of the same work it is.
            memory_limit: Bytes for the run.
            threads: Threads for the run.
            progress: Is told the stages.
            applied_live: Live events that are online already, and need not be put there again.

        Raises:
            FeatureStoreError: The run failed; it is recorded as failed and its interval is not
                marked done (law M4).
        """
        started = self._clock.monotonic()
        kind = "materialize-incremental" if start_us is None else "materialize"
        run = self._runs.begin(view, kind, start_us, end_us, attempt)
        try:
            progress(view.name, "listing the source")
            following = applied_live is not None
            work = self._plan(view, table_id, run, start_us, end_us, following=following)
            work.applied_live = (applied_live or {}).get(view.generation, {})
            if work.reads or work.recover or self._waiting(work):
                with self._session(memory_limit, threads) as session:
                    self._execute(work, session, progress)
            self._close(work)
        except BaseException as error:
            self._runs.finish(run, error)
            raise
        self._runs.finish(_counted(run, work))
        return _report(work, self._clock.monotonic() - started)

    def _plan(
        self,
        view: ViewPlan,
        table_id: str,
        run: Run,
        start_us: int | None,
        end_us: int,
        *,
        following: bool,
    ) -> Work:
        """Decide what to read, and mark the run open in the ledger before anything is written."""
        interval = Interval(MIN_INSTANT if start_us is None else start_us, end_us)
        listing = self._sources.listing(view.source)
        ledger = self._mark_open(view, run)
        history = not (following and intervals.passes_history(listing, ledger.entries))
        if start_us is None:
            kept = {entry.snapshot for entry in ledger.entries}
            snapshots = {s: self._registry.load_snapshot(self._project, s) for s in kept}
            # A version of an event that is dated ahead takes the event from where it was, now.
            until = MAX_INSTANT + 1 if view.aggregates else end_us
            reads = intervals.reads_of_new(
                listing, ledger.entries, snapshots, until, history=history
            )
        else:
            reads = intervals.reads_of_all(listing, interval)
        return Work(
            view=view.log,
            applied=view,
            table_id=table_id,
            run=run,
            interval=interval,
            listing=listing,
            reads=reads,
            ledger=ledger,
            recover=any(name != run.id for name in ledger.open_runs),
            explicit=start_us is not None,
            history=history,
        )

    def _mark_open(self, view: ViewPlan, run: Run) -> Ledger:
        return self._change_ledger(
            view,
            lambda old: old.model_copy(
                update={"open_runs": (*old.open_runs[-_OPEN_RUNS:], run.id)}
            ),
        )

    def _change_ledger(self, view: ViewPlan, change: Callable[[Ledger], Ledger]) -> Ledger:
        for attempt in range(ATTEMPTS):
            old = self._registry.ledger(self._project, view.name, view.table_fingerprint)
            try:
                return self._registry.write_ledger(
                    self._project, view.name, view.table_fingerprint, change(old)
                )
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    @contextlib.contextmanager
    def _session(self, memory_limit: int | None, threads: int | None) -> Iterator[EngineSession]:
        with self._engine.session(memory_limit=memory_limit, threads=threads) as session:
            self._open.add(session)
            try:
                yield session
            finally:
                self._open.discard(session)

    def _execute(self, work: Work, session: EngineSession, progress: Progress) -> None:
        name = work.view.name
        if work.reads:
            progress(name, "reading the source")
            self._writer.stage(work, session)
        progress(name, "writing the table")
        if work.rows_read:
            self._writer.commit(work, session)
            work.recover = work.recover or self._is_overtaken(work)
        if work.view.online:
            progress(name, "pushing online")
            self._push(work, session)

    def _is_overtaken(self, work: Work) -> bool:
        """Whether a run that goes on may have written rows of ours, and not have pushed them yet.

        One that began before us was seen when we began; this one began later and was faster.
        """
        if work.rows_written == work.rows_read:
            return False
        view = work.view
        ledger = self._registry.ledger(self._project, view.name, view.table_fingerprint)
        return any(name != work.run.id for name in ledger.open_runs)

    def _waiting(self, work: Work) -> bool:
        """Whether rows that were dated ahead may have come of age since the last push."""
        if work.applied.aggregates:
            return False  # a window does not see an event before its time
        pushed = work.ledger.pushed_until_us
        ends = [entry.end for entry in work.ledger.entries]
        return work.view.online and pushed is not None and max(ends, default=MIN_INSTANT) > pushed

    def _push(self, work: Work, session: EngineSession) -> None:
        now = self._clock.now_us()
        selects = []
        if work.recover or self._waiting(work):
            selects.append(self._unpushed(work))
        if not work.recover and work.rows_read and (work.explicit or work.rows_written):
            # An explicit run pushes all it read: that is how a lost online store is filled again.
            source = "staged" if work.explicit else work.fresh
            rows = f"SELECT {', '.join(table_sql.columns(work.view))} FROM {source}"
            if work.applied.aggregates and not work.explicit and work.applied_live:
                rows += f" WHERE {unapplied(work.applied_live)}"
            selects.append(rows)
        for rows in selects:
            if work.applied.aggregates:
                work.rows_pushed += self._apply(work, session, rows, now)
                continue
            query = table_sql.newest(work.view, rows, now)
            reader = session.stream(query, self._pusher.batch_rows)
            work.rows_pushed += self._pusher.push(work.view, reader, now)
        work.ledger = work.ledger.model_copy(update={"pushed_until_us": now})

    def _apply(self, work: Work, session: EngineSession, rows: str, now: int) -> int:
        import pyarrow as pa

        done = 0
        for batch in session.stream(table_sql.events(work.view, rows), self._pusher.batch_rows):
            table = pa.Table.from_batches([batch])
            done += self._states.apply(work.applied, table, now).changed
        return done

    def _unpushed(self, work: Work) -> str:
        """Return rows of the table that nobody may have pushed: all, or those come of age since."""
        files = self._tables.snapshot(work.table_id).files
        pushed = work.ledger.pushed_until_us
        if work.recover or pushed is None:
            return table_sql.table_rows(work.view, [file.path for file in files])
        rows = table_sql.table_rows(work.view, [f.path for f in files if f.max_event > pushed])
        return f"SELECT * FROM ({rows}) WHERE event_timestamp > {table_sql.instant(pushed)}"

    def _close(self, work: Work) -> None:
        """Write the interval into the ledger; take this run, and dead ones, off the open list."""
        listing, snapshot = work.listing, ""
        if not listing.opaque:
            snapshot = self._registry.save_snapshot(self._project, listing.files)
        logged = listing.live.positions if listing.live else None
        over = {work.run.id}
        if work.recover:
            others = [name for name in work.ledger.open_runs if name != work.run.id]
            over |= {name for name in others if self._runs.is_over(name)}

        def change(old: Ledger) -> Ledger:
            pushed = work.ledger.pushed_until_us
            known = [p for p in (old.pushed_until_us, pushed) if p is not None]
            return old.model_copy(
                update={
                    "entries": intervals.record(
                        old.entries, work.interval, snapshot, logged, history=work.history
                    ),
                    "open_runs": tuple(name for name in old.open_runs if name not in over),
                    "pushed_until_us": max(known, default=None),
                }
            )

        work.ledger = self._change_ledger(work.view, change)


def _counted(run: Run, work: Work) -> Run:
    return run.model_copy(
        update={
            "rows_read": work.rows_read,
            "rows_written": work.rows_written,
            "rows_pushed": work.rows_pushed,
            "rows_rejected": work.rows_rejected,
            "rows_tied": work.rows_tied,
        }
    )


def _report(work: Work, seconds: float) -> ViewReport:
    live = work.listing.live
    claims = [] if live is None or not work.applied.online else live.claims.values()
    return ViewReport(
        view=work.view.name,
        fed=all(work.applied.generation in claim for claim in claims),
        rows_read=work.rows_read,
        rows_written=work.rows_written,
        rows_pushed=work.rows_pushed,
        rows_rejected=work.rows_rejected,
        rows_tied=work.rows_tied,
        seconds=seconds,
        intervals=tuple(str(i) for i in intervals.covered(work.ledger.entries)),
    )
