"""The log of what was served: answers are appended to Delta tables, a table a shape (laws L1-L3).

A batch becomes visible in one commit or not at all. Several processes append to one table: whoever
finds that another one was first, commits again. What is older than is to be kept is forgotten, and
small files are merged.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from featurestore.errors import ConflictError, FeatureStoreError, StorageError
from featurestore.ports.tables import TableFile
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.served_log_columns import Served, rows_of
from featurestore.services.served_log_shape import PERIOD, SERVED_AT, Shape, served_id
from featurestore.services.stream_log import alike

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.registry import ProjectState
    from featurestore.ports.tables import Tables, TableSnapshot
    from featurestore.services.response import Layout

__all__ = ["Converted", "Served", "ServedLog"]

_ATTEMPTS = 50
_REMEMBERED = 256
_STATES = 4
_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000


class Converted(NamedTuple):
    """Answers as rows.

    Attributes:
        batches: Rows, those of each shape together.
        refused: How many rows could not be told apart from those of other definitions.
        error: Why.
    """

    batches: list[tuple[Shape, pa.Table]]
    refused: int
    error: FeatureStoreError | None


class ServedLog:
    """The served logs of a project, as one process writes them. Not for two threads at once.

    Args:
        project: The project.
        tables: Hold them.
        clock: Tells what is old.
        target_file_size: Bytes that files should have in the end.
        retention_days: How long answers are kept; None for ever.
    """

    def __init__(
        self,
        project: str,
        tables: Tables,
        clock: Clock,
        *,
        target_file_size: int,
        retention_days: float | None,
    ) -> None:
        self._project = project
        self._tables = tables
        self._clock = clock
        self._target = target_file_size
        self._retention_us = None if retention_days is None else int(retention_days * _DAY_US)
        self._server = f"{socket.gethostname()}:{os.getpid()}"
        self._shapes: dict[Layout, Shape] = {}
        self._states: deque[ProjectState] = deque(maxlen=_STATES)
        # Once when it begins, for a server may be renewed more often than that.
        self._sweep_due = clock.now_us()

    def convert(self, served: Sequence[Served]) -> Converted:
        """Return answers as rows; those whose definitions cannot be told are counted."""
        grouped: dict[str, tuple[Shape, list[Served]]] = {}
        refused, reason = 0, None
        for each in served:
            try:
                shape = self._shape(each)
            except FeatureStoreError as error:
                refused, reason = refused + len(each.response), error
                continue
            grouped.setdefault(shape.id, (shape, []))[1].append(each)
        batches = [(shape, rows_of(shape, held, self._server)) for shape, held in grouped.values()]
        return Converted(batches, refused, reason)

    def append(self, shape: Shape, rows: pa.Table) -> None:
        """Append rows to the table of their shape, in one commit.

        Raises:
            StorageError: They cannot be written; nothing was added.
            ConflictError: Others were always faster; nothing was added.
        """
        table_id = f"{served_id(self._project, shape.name)}/{shape.id}"
        written = [self._write(table_id, period, [part]) for period, part in _by_period(rows)]
        for attempt in range(_ATTEMPTS):
            snapshot = self._tables.snapshot(table_id)
            try:
                self._commit(shape, snapshot, written)
            except ConflictError:
                if attempt < _ATTEMPTS - 1:
                    continue
                self._discard(table_id, written)
                raise
            except BaseException:
                if self._is_there(table_id, written):
                    return  # What went wrong came after the commit.
                self._discard(table_id, written)
                raise
            return

    def tidy(self, shapes: Sequence[Shape]) -> None:
        """Merge the small files of tables; every hour forget what is old, in all of them."""
        ids = {f"{served_id(self._project, shape.name)}/{shape.id}" for shape in shapes}
        now = self._clock.now_us()
        if now >= self._sweep_due:
            self._sweep_due = now + _HOUR_US
            for table_id in self._tables.names(served_id(self._project)):
                self._tidy(table_id, forgetting=True)
                # What was taken out of the table an hour ago, nobody reads any more.
                self._tables.vacuum(table_id, before_us=now - _HOUR_US)
            return
        for table_id in sorted(ids):
            self._tidy(table_id, forgetting=False)

    def _tidy(self, table_id: str, *, forgetting: bool) -> None:
        snapshot = self._tables.snapshot(table_id)
        kept = self._retention_us
        oldest = None if kept is None or not forgetting else self._clock.now_us() - kept
        old = [f for f in snapshot.files if oldest is not None and f.max_event < oldest]
        small = alike(snapshot, self._target, {file.path for file in old})
        if not (old or small):
            return
        shape = Shape.model_validate_json(snapshot.metadata["shape"])
        merged: list[TableFile] = []
        try:
            for period in sorted({file.period for file in small}):
                files = [file for file in small if file.period == period]
                merged.append(self._write(table_id, period, _read(files)))
            self._commit(shape, snapshot, merged, [*old, *small])
        except BaseException as error:
            self._discard(table_id, merged)
            if not isinstance(error, ConflictError):
                raise
            # Somebody appended meanwhile; the next time will do.

    def _commit(
        self,
        shape: Shape,
        snapshot: TableSnapshot,
        add: Sequence[TableFile],
        remove: Sequence[TableFile] = (),
    ) -> None:
        self._tables.commit(
            snapshot.table_id,
            shape.schema,
            read_version=snapshot.version,
            add=add,
            remove=remove,
            metadata={"shape": shape.text},
        )

    def _write(self, table_id: str, period: str, parts: Iterable[pa.Table]) -> TableFile:
        """Write rows of one day, in as many tables of one schema as there are."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = f"{PERIOD}={period}/part-{uuid.uuid4().hex}.parquet"
        target = Path(self._tables.folder(table_id)) / path
        rows, span = 0, Span()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            writer: pq.ParquetWriter | None = None
            try:
                for part in parts:
                    writer = writer or pq.ParquetWriter(target, part.schema, compression="zstd")
                    writer.write_table(part)
                    rows, span = rows + part.num_rows, span.with_rows(part)
            finally:
                if writer is not None:
                    writer.close()
            size = target.stat().st_size
        except BaseException as error:
            _remove(target)
            if isinstance(error, OSError | pa.ArrowException):
                raise _unwritable(target.parent, error) from error
            raise
        return TableFile(path, period, rows, size, span.first, span.last)

    def _is_there(self, table_id: str, written: Sequence[TableFile]) -> bool:
        try:
            known = {file.path for file in self._tables.snapshot(table_id).files}
        except FeatureStoreError:
            return False
        folder = Path(self._tables.folder(table_id))
        return all(str(folder / file.path) in known for file in written)

    def _discard(self, table_id: str, written: Sequence[TableFile]) -> None:
        for file in written:
            _remove(Path(self._tables.folder(table_id)) / file.path)

    def _shape(self, served: Served) -> Shape:
        layout = served.response.layout
        found = self._shapes.get(layout)
        if found is None:
            if not self._states or self._states[0] is not served.state:
                self._states.appendleft(served.state)
            found = self._fitting(served)
            if len(self._shapes) >= _REMEMBERED:
                self._shapes.clear()
            self._shapes[layout] = found
        return found

    def _fitting(self, served: Served) -> Shape:
        """Return the shape under the definitions that answered: those of now, or just before."""
        for state in self._states:
            shape = Shape.of(state, served.features)
            if shape.fits(served.response.layout.sources):
                return shape
        raise ConflictError(
            "The definitions changed while a request was answered; it is not logged.",
            where=served.response.service,
        )


class Span(NamedTuple):
    """The first and the last instant of some rows."""

    first: int = MAX_INSTANT
    last: int = MIN_INSTANT

    def with_rows(self, rows: pa.Table) -> Span:
        """Return the span of more rows."""
        import pyarrow.compute as pc

        found = pc.min_max(rows[SERVED_AT].cast("int64"))
        return Span(min(self.first, found["min"].as_py()), max(self.last, found["max"].as_py()))


def _remove(path: Path) -> None:
    """Delete a file that nobody refers to; where that fails, a later sweep does it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(folder: Path, error: Exception) -> StorageError:
    return StorageError(
        "The served log cannot be written.",
        where=str(folder),
        got=getattr(error, "strerror", None) or str(error),
        hint="Check the folder, its rights and the space that is left.",
    )


def _by_period(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of each day, without the column that names it."""
    import pyarrow.compute as pc

    periods = rows[PERIOD].unique().to_pylist()
    data = rows.drop_columns([PERIOD])
    for period in periods:
        yield period, data if len(periods) == 1 else data.filter(pc.equal(rows[PERIOD], period))


def _read(files: Sequence[TableFile]) -> Iterator[pa.Table]:
    """Yield the rows of files, no more of them in memory than a file has in a group."""
    import pyarrow.parquet as pq

    for file in files:
        with pq.ParquetFile(file.path) as source:
            for group in range(source.num_row_groups):
                yield source.read_row_group(group)
