"""Writing a view's table: one read of the source, then only what is new, in one commit (M2, M3).

The staging table of a session holds the source's rows of this run. What the table does not hold yet
is written as sorted Parquet files and committed at once; when another run committed in between,
what is new is computed again. Nothing is visible before the commit, nothing is lost after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.compile import table_sql
from featurestore.compile.live_sql import live_relation
from featurestore.compile.source_sql import view_rows
from featurestore.errors import ConflictError, DataError
from featurestore.ports.tables import TableFile
from featurestore.semantics.timeline import Interval

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.engine import EngineSession, SourceListing, Sources
    from featurestore.ports.registry import Ledger, Run
    from featurestore.ports.tables import Tables, TableSnapshot
    from featurestore.services import intervals

ATTEMPTS = 8
_MERGE_FILES = 8
_DAY_US = 86_400_000_000


@dataclass
class Work:
    """One run of one view as it goes on.

    Attributes:
        view: What the table holds (`ViewPlan.log`).
        applied: The view itself.
        history: Whether the source's history is read, and not its stream alone.
        applied_live: {stream partition: (first, last position)} of events that are online already.
    """

    view: ViewPlan
    applied: ViewPlan
    table_id: str
    run: Run
    interval: Interval
    listing: SourceListing
    reads: intervals.Reads
    ledger: Ledger
    recover: bool
    explicit: bool
    history: bool
    rows_read: int = 0
    rows_written: int = 0
    rows_pushed: int = 0
    rows_rejected: int = 0
    rows_tied: int = 0
    fresh: str = "staged"
    applied_live: Mapping[str, tuple[int, int]] = field(default_factory=dict)


class TableWriter:
    """Stages and commits.

    Args:
        sources: Gives the relation over a source's files.
        tables: Holds the table.
        clock: Tells which uncommitted files are old enough to be swept.
        target_file_size: Bytes that files should have.
    """

    def __init__(
        self, sources: Sources, tables: Tables, clock: Clock, target_file_size: int
    ) -> None:
        self._sources = sources
        self._tables = tables
        self._clock = clock
        self._target = target_file_size

    def stage(self, work: Work, session: EngineSession) -> None:
        """Read the source once, and count what belongs to no entity or no instant."""
        parts = []
        for read in work.reads:
            live = read.after is not None
            relation = self._relation(work, read)
            if relation is not None:
                rows = view_rows(work.view, relation, session.schema, live=live)
                parts.append((rows, read.intervals))
        if not parts:
            return
        session.run(table_sql.stage(parts))
        reject = table_sql.rejected(work.view)
        counts = session.fetch(
            f"SELECT count(*) AS n, count(*) FILTER (WHERE {reject}) AS bad FROM staged"
        ).to_pylist()[0]
        if counts["bad"]:
            session.run(f"DELETE FROM staged WHERE {reject}")
        work.rows_read, work.rows_rejected = counts["n"] - counts["bad"], counts["bad"]
        broken = table_sql.broken_vectors(work.view)
        if broken and session.fetch(f"SELECT 1 FROM staged WHERE {broken} LIMIT 1").num_rows:
            raise DataError(
                f"A vector of the view '{work.view.name}' has another length, or a null item.",
                got=str(
                    session.fetch(f"SELECT * FROM staged WHERE {broken} LIMIT 1").to_pylist()[0]
                ),
                allowed="as many numbers as declared, or null as a whole",
                hint="Filter such rows by where=, or mend them by an expression.",
            )

    def _relation(self, work: Work, read: intervals.Read) -> str | None:
        listing = work.listing
        if read.after is not None:
            files = listing.live.unread(read.after) if listing.live else []
            return live_relation(listing.relation, files, read.after) if files else None
        if listing.opaque:
            return listing.relation
        return self._sources.relation(work.view.source, read.files)

    def commit(self, work: Work, session: EngineSession) -> None:
        """Add the rows that are new; when another run was first, look again at what is new."""
        for attempt in range(ATTEMPTS):
            snapshot = self._tables.snapshot(work.table_id)
            try:
                self._commit_once(work, session, snapshot)
            except ConflictError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def _commit_once(self, work: Work, session: EngineSession, snapshot: TableSnapshot) -> None:
        view = work.view
        existing = self._overlapping(view, session, snapshot)
        work.fresh = "staged"
        if existing is not None:
            work.fresh = "fresh"
            fresh = table_sql.fresh(view, existing)
            session.run(f"CREATE OR REPLACE TEMP TABLE fresh AS {fresh}")
        span = session.fetch(
            "SELECT count(*) AS n, epoch_us(min(event_timestamp)) AS low,"
            f" epoch_us(max(event_timestamp)) AS high FROM {work.fresh}"
        ).to_pylist()[0]
        work.rows_written = span["n"]
        if not span["n"]:
            return
        unique = self._check_ties(work, session, existing) and (
            snapshot.version < 1 or snapshot.metadata.get("unique") == "true"
        )
        granularity = snapshot.metadata.get("granularity") or table_sql.choose_granularity(
            view, span["n"], span["high"] - span["low"], self._target
        )
        self._write(
            work, session, snapshot, {"unique": str(unique).lower(), "granularity": granularity}
        )

    def _overlapping(
        self, view: ViewPlan, session: EngineSession, snapshot: TableSnapshot
    ) -> str | None:
        """Return the table's rows that could equal staged ones: those of the same time span."""
        span = session.fetch(
            "SELECT epoch_us(min(event_timestamp)) AS low, epoch_us(max(event_timestamp)) AS high"
            " FROM staged"
        ).to_pylist()[0]
        low, high = span["low"], span["high"]
        files = [f.path for f in snapshot.files if f.max_event >= low and f.min_event <= high]
        if not files:
            return None
        bounds = table_sql.within([Interval(low, high + 1)])
        return f"SELECT * FROM ({table_sql.table_rows(view, files)}) WHERE {bounds}"

    @staticmethod
    def _check_ties(work: Work, session: EngineSession, existing: str | None) -> bool:
        """Return whether (key, event) stays unique; count rows that tie with other values."""
        rows = f"SELECT {', '.join(table_sql.columns(work.view))} FROM {work.fresh}"
        if existing is not None:
            group = table_sql.identity(work.view)
            match = " AND ".join(f"o.{name} = f.{name}" for name in group)
            rows += (
                f" UNION ALL SELECT o.* FROM ({existing}) AS o WHERE EXISTS"
                f" (SELECT 1 FROM {work.fresh} AS f WHERE {match})"
            )
        if not session.fetch(table_sql.repeated_events(work.view, rows)).num_rows:
            return True
        work.rows_tied = session.fetch(table_sql.tied_rows(work.view, rows))["tied"][0].as_py()
        return False

    def _write(
        self, work: Work, session: EngineSession, snapshot: TableSnapshot, metadata: dict[str, str]
    ) -> None:
        """Write files and commit them; many small files of a period become one on the way."""
        view = work.view
        granularity: Any = metadata["granularity"]
        periods = session.fetch(
            f"SELECT DISTINCT {table_sql.period(granularity)} AS p FROM {work.fresh}"
        )["p"].to_pylist()
        merged = _small_files(snapshot, set(periods), self._target)
        rows = f"SELECT {', '.join(table_sql.columns(view))} FROM {work.fresh}"
        if merged:
            rows += f" UNION ALL {table_sql.table_rows(view, [file.path for file in merged])}"
        query = table_sql.sorted_rows(view, rows, granularity)
        folder = self._tables.folder(work.table_id)
        written = session.write_parquet(query, folder)
        try:
            self._tables.commit(
                work.table_id,
                session.schema(query),
                read_version=snapshot.version,
                add=[
                    TableFile(w.path, w.period, w.rows, w.bytes, w.min_event, w.max_event)
                    for w in written
                ],
                remove=merged,
                metadata={**metadata, "run": work.run.id},
            )
        except BaseException:
            for file in written:
                (Path(folder) / file.path).unlink(missing_ok=True)
            raise
        self._tables.vacuum(work.table_id, before_us=self._clock.now_us() - _DAY_US)


def _small_files(snapshot: TableSnapshot, periods: set[str], target: int) -> list[TableFile]:
    """Return the small files of periods that have too many of them."""
    by_period: dict[str, list[TableFile]] = {}
    for file in snapshot.files:
        if file.period in periods and file.bytes < target // 2:
            by_period.setdefault(file.period, []).append(file)
    return [f for files in by_period.values() if len(files) >= _MERGE_FILES - 1 for f in files]
