"""The logs of streams: each live event of a source once, in a Delta table, in the source's columns.

A log is `{project}/_streams/{source}`; it outlives what the stream itself keeps, and every view is
built anew from the history and from it. Its newest commit tells

- `positions`: how far each partition of the stream is in it. Entries at or below are never appended
  again, and a commit is a compare-and-swap, so that whoever reads a partition still though it was
  taken away cannot append twice;
- `claims`: who reads each partition, and the generations of the views that get all of its
  events beyond these positions online (see `services.ingestion`).

Events that cannot be taken are in `{project}/_quarantine/{source}` with the reason, once as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.compile.event_sql import ACCEPTED, INDEX
from featurestore.compile.live_sql import behind
from featurestore.compile.plan import PARTITION, POSITION
from featurestore.compile.table_sql import literal
from featurestore.errors import ConflictError
from featurestore.ports.engine import LiveFile, LiveRows
from featurestore.ports.tables import TableFile, TableSnapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.engine import EngineSession
    from featurestore.ports.tables import Tables

_ATTEMPTS = 20
_MERGE_FILES = 8
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_PERIOD = f"strftime({ACCEPTED} AT TIME ZONE 'UTC', '%Y-%m-%d') AS event_period"
_ORDER = f"ORDER BY event_period, {PARTITION}, {POSITION}, {INDEX}"
_APPENDED = "_appended"

# Changes the claims of a log, {partition: {"member": ..., "views": [...]}}, in place.
ChangeClaims = Callable[[dict[str, Any]], None]


def log_id(project: str, source: str) -> str:
    """Return the id of the table that holds the live events of a source."""
    return f"{project}/_streams/{source}"


def quarantine_id(project: str, source: str) -> str:
    """Return the id of the table that holds what was refused of a source's live events."""
    return f"{project}/_quarantine/{source}"


@dataclass(frozen=True)
class Appended:
    """What an append found and did.

    Attributes:
        rows: The events that were not in the log yet.
        own: The partitions that the log says this member reads.
        before: How far each partition was in the log before.
    """

    rows: int
    own: frozenset[str]
    before: Mapping[str, int]


class StreamLog:
    """The logs of a project's streams.

    Args:
        project: The project.
        tables: Holds them.
        clock: Tells what is old.
        target_file_size: Bytes that files should have in the end.
        retention_days: How long events are kept; None for ever.
    """

    def __init__(
        self,
        project: str,
        tables: Tables,
        clock: Clock,
        *,
        target_file_size: int,
        retention_days: float | None = None,
    ) -> None:
        self._project = project
        self._tables = tables
        self._clock = clock
        self._target = target_file_size
        self._retention_us = None if retention_days is None else int(retention_days * _DAY_US)
        self._swept: dict[str, int] = {}

    def live(self, source: str) -> LiveRows:
        """Return what the log of a source consists of now."""
        snapshot = self._tables.snapshot(log_id(self._project, source))
        claims = _loaded(snapshot, "claims")
        return LiveRows(
            tuple(LiveFile(file.path, file.last_position) for file in snapshot.files),
            _loaded(snapshot, "positions"),
            {name: frozenset(claim["views"]) for name, claim in claims.items()},
        )

    def claim(
        self,
        session: EngineSession,
        source: str,
        columns: pa.Schema,
        *,
        member: str,
        claims: Mapping[str, Iterable[str]],
    ) -> None:
        """Say that a member reads partitions from now on, and which views it feeds.

        Args:
            session: Writes nothing here; tells the columns of a log that is new.
            source: The source.
            columns: The log's columns.
            member: The member of the consumer group.
            claims: {partition: generations of views}.
        """

        def change(held: dict[str, Any]) -> None:
            for name, views in claims.items():
                held[name] = {"member": member, "views": sorted(views)}

        self._append(session, log_id(self._project, source), columns.empty_table(), {}, change)

    def append(
        self,
        session: EngineSession,
        source: str,
        rows: pa.Table,
        *,
        positions: Mapping[str, int],
        member: str,
        views: Iterable[str] | None,
    ) -> Appended:
        """Append events that are not in the log yet.

        Args:
            session: Writes the file.
            source: The source.
            rows: The source's columns and those of `compile.live_sql.LIVE_COLUMNS`.
            positions: How far each partition is in the log with them, entries without events too.
            member: Who appends. Claims of partitions that another member has taken stay.
            views: The generations of the views that this member feeds all that comes behind; None
                when it stops, and claims nothing any more.
        """
        fed = None if views is None else sorted(views)
        own: frozenset[str] = frozenset()

        def change(held: dict[str, Any]) -> None:
            nonlocal own
            own = frozenset(name for name, claim in held.items() if claim["member"] == member)
            for name in own:
                if fed is None:
                    del held[name]
                else:
                    held[name] = {"member": member, "views": fed}

        table_id = log_id(self._project, source)
        count, before = self._append(session, table_id, rows, positions, change)
        return Appended(count, own, before)

    def quarantine(
        self, session: EngineSession, source: str, rows: pa.Table, positions: Mapping[str, int]
    ) -> int:
        """Keep events that were refused; return how many were not there yet."""
        return self._append(session, quarantine_id(self._project, source), rows, positions)[0]

    def quarantined(self, source: str) -> int:
        """Return how many events of a source were ever refused and are still kept."""
        return self._tables.snapshot(quarantine_id(self._project, source)).rows

    def drop(self, source: str) -> tuple[str, ...]:
        """Delete a source's log and its quarantine; return their ids."""
        ids = log_id(self._project, source), quarantine_id(self._project, source)
        for table_id in ids:
            self._tables.drop(table_id)
        return ids

    def tidy(self, session: EngineSession, source: str) -> None:
        """Merge small files and forget what is older than is to be kept.

        Files of about one size are merged when there are eight of them, so each event is written
        again a few times only, however many commits there are.
        """
        for table_id in (log_id(self._project, source), quarantine_id(self._project, source)):
            snapshot = self._tables.snapshot(table_id)
            old = self._outdated(snapshot)
            small = alike(snapshot, self._target, {file.path for file in old})
            if not (old or small):
                continue
            try:
                self._replace(session, snapshot, small, [*old, *small])
            except ConflictError:
                continue  # Somebody appended meanwhile; the next time will do.

    def _outdated(self, snapshot: TableSnapshot) -> list[TableFile]:
        now = self._clock.now_us()
        due = self._swept.setdefault(snapshot.table_id, now + _HOUR_US)
        if now >= due:
            # What was taken out of the table an hour ago, no run reads any more.
            self._swept[snapshot.table_id] = now + _HOUR_US
            self._tables.vacuum(snapshot.table_id, before_us=now - _HOUR_US)
        if self._retention_us is None:
            return []
        return [file for file in snapshot.files if file.max_event < now - self._retention_us]

    def _replace(
        self,
        session: EngineSession,
        snapshot: TableSnapshot,
        merged: Sequence[TableFile],
        gone: Sequence[TableFile],
    ) -> None:
        names = ", ".join(literal(file.path) for file in (merged or gone))
        rows = f"read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
        query = f"SELECT *, {_PERIOD} FROM {rows} WHERE {'true' if merged else 'false'} {_ORDER}"
        self._write(session, snapshot, query, snapshot.metadata, gone)

    def _append(
        self,
        session: EngineSession,
        table_id: str,
        rows: pa.Table,
        positions: Mapping[str, int],
        change: ChangeClaims = lambda _: None,
    ) -> tuple[int, Mapping[str, int]]:
        session.register(_APPENDED, rows)
        try:
            for attempt in range(_ATTEMPTS):
                snapshot = self._tables.snapshot(table_id)
                try:
                    return self._append_once(session, snapshot, positions, change)
                except ConflictError:
                    if attempt == _ATTEMPTS - 1:
                        raise
        finally:
            session.register(_APPENDED, rows.schema.empty_table())
        raise AssertionError

    def _append_once(
        self,
        session: EngineSession,
        snapshot: TableSnapshot,
        positions: Mapping[str, int],
        change: ChangeClaims,
    ) -> tuple[int, Mapping[str, int]]:
        held, former = _loaded(snapshot, "positions"), _loaded(snapshot, "claims")
        claims = dict(former)
        change(claims)
        reached = held | {n: max(at, held.get(n, -1)) for n, at in positions.items()}
        if reached == held and claims == former and snapshot.version >= 0:
            return 0, held
        query = f"SELECT *, {_PERIOD} FROM {_APPENDED} WHERE {behind(held)} {_ORDER}"
        metadata = {"positions": json.dumps(reached), "claims": json.dumps(claims)}
        return self._write(session, snapshot, query, metadata), held

    def _write(
        self,
        session: EngineSession,
        snapshot: TableSnapshot,
        query: str,
        metadata: Mapping[str, str],
        remove: Sequence[TableFile] = (),
    ) -> int:
        folder = self._tables.folder(snapshot.table_id)
        written = session.write_parquet(query, folder)
        try:
            self._tables.commit(
                snapshot.table_id,
                session.schema(query),
                read_version=snapshot.version,
                add=[
                    TableFile(
                        w.path, w.period, w.rows, w.bytes, w.min_event, w.max_event, w.last_position
                    )
                    for w in written
                ],
                remove=remove,
                metadata=metadata,
            )
        except BaseException:
            for file in written:
                (Path(folder) / file.path).unlink(missing_ok=True)
            raise
        return sum(file.rows for file in written)


def _loaded(snapshot: TableSnapshot, name: str) -> dict[str, Any]:
    return dict(json.loads(snapshot.metadata.get(name) or "{}"))


def alike(snapshot: TableSnapshot, target: int, gone: set[str]) -> list[TableFile]:
    """Return the files of each period and size of which there are too many, all of them small."""
    groups: dict[tuple[str, int], list[TableFile]] = {}
    for file in snapshot.files:
        if file.bytes < target // 2 and file.path not in gone:
            tier = int(math.log(file.rows + 1, _MERGE_FILES))
            groups.setdefault((file.period, tier), []).append(file)
    return [f for files in groups.values() if len(files) >= _MERGE_FILES for f in files]
