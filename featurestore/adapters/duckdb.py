"""DuckDB as the engine: one session a job, with its own memory limit and spill folder.

Translates only: SQL comes compiled, Arrow comes and goes, driver errors become ours. The laws stand
elsewhere. Sessions run in UTC and without extensions from outside.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from duckdb.func import FunctionNullHandling, PythonUDFType

from featurestore.compile.event_sql import ACCEPTED
from featurestore.compile.plan import POSITION
from featurestore.errors import (
    DataError,
    FeatureStoreError,
    OutOfMemoryError,
    RequestError,
    SourceCorruptError,
    SourceNotFoundError,
    StorageError,
)
from featurestore.ports.engine import WrittenFile
from featurestore.semantics.timeline import to_instant

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_GROUP_ROWS = 122_880


class DuckDBEngine:
    """Opens DuckDB sessions.

    Args:
        folder: The repository's folder; relative paths in SQL start there.
        memory_limit: Bytes that all sessions of this engine may use together; a session that is
            opened with none of its own takes all of it.
        threads: Threads of a session; 0 takes every core.
        temp_path: The folder in which sessions spill.
    """

    def __init__(self, folder: Path, *, memory_limit: int, threads: int, temp_path: Path) -> None:
        self._folder = folder
        self._memory_limit = memory_limit
        self._threads = threads
        self._temp_path = temp_path

    @contextlib.contextmanager
    def session(
        self, *, memory_limit: int | None = None, threads: int | None = None
    ) -> Iterator[DuckDBSession]:
        """Open a session; its spill folder is deleted at the end.

        Raises:
            StorageError: The spill folder cannot be made.
        """
        try:
            self._temp_path.mkdir(parents=True, exist_ok=True)
            spill = Path(tempfile.mkdtemp(prefix="spill-", dir=self._temp_path))
        except OSError as error:
            raise StorageError(
                "The spill folder cannot be made.",
                where=str(self._temp_path),
                got=error.strerror,
                hint="Set offline.temp_path to a folder that can be written.",
            ) from error
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{memory_limit or self._memory_limit}B",
            "temp_directory": str(spill),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        count = threads or self._threads
        if count:
            config["threads"] = str(count)
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET file_search_path = {_literal(str(self._folder))}")
            connection.execute("SET enable_progress_bar = false")
            yield DuckDBSession(connection)
        finally:
            connection.close()
            shutil.rmtree(spill, ignore_errors=True)


class DuckDBSession:
    """One connection to an in-memory DuckDB; see `ports.engine.EngineSession`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def run(self, sql: str) -> None:
        """Run a statement."""
        with _translated(sql):
            self._connection.execute(sql)

    def fetch(self, sql: str) -> pa.Table:
        """Return the result of a query as one table."""
        with _translated(sql):
            return self._connection.sql(sql).to_arrow_table()

    def stream(self, sql: str, batch_rows: int = 65_536) -> pa.RecordBatchReader:
        """Return the result of a query batch by batch; errors of later batches are ours too."""
        import pyarrow as pa

        with _translated(sql):
            reader = self._connection.sql(sql).to_arrow_reader(batch_rows)

        def batches() -> Iterator[Any]:
            while True:
                with _translated(sql):
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        return
                    except pa.ArrowInvalid as error:
                        raise _error_from_text(str(error), sql) from error
                yield batch

        return pa.RecordBatchReader.from_batches(reader.schema, batches())

    def schema(self, sql: str) -> pa.Schema:
        """Return the columns of a query without running it."""
        with _translated(sql):
            return self._connection.sql(f"SELECT * FROM ({sql}) LIMIT 0").to_arrow_table().schema

    def register(self, name: str, data: pa.Table | pa.RecordBatchReader) -> None:
        """Make Arrow data readable under a name."""
        with _translated(name):
            self._connection.register(name, data)

    def feed(self, name: str, schema: pa.Schema) -> Callable[[pa.Table], None]:
        """Make a name readable whose data come later; return who takes them."""
        fed = _Fed(schema.empty_table())
        with _translated(name):
            self._connection.register(name, fed)
        return fed.take

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        """Return a function that runs a query, planned once."""
        name = f"q{hashlib.blake2b(sql.encode(), digest_size=8).hexdigest()}"
        # It says to take `sql` instead, which costs more here than the copy of a few rows.
        warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
        with _translated(sql):
            self._connection.execute(f"PREPARE {name} AS {sql}")

        def run() -> pa.Table:
            with _translated(sql):
                return self._connection.execute(f"EXECUTE {name}").to_arrow_table()

        return run

    def register_canonical(
        self, name: str, function: Callable[[pa.Array], pa.Array], struct_type: str
    ) -> None:
        """Make a vectorized function of one struct column to BLOB callable from SQL."""
        import pyarrow as pa

        def call(column: Any) -> Any:
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            return function(column)

        with _translated(name):
            self._connection.create_function(
                name,
                call,
                [duckdb.sqltype(struct_type)],
                duckdb.sqltype("BLOB"),
                type=PythonUDFType.ARROW,
                null_handling=FunctionNullHandling.SPECIAL,
            )

    def write_parquet(self, sql: str, folder: str) -> list[WrittenFile]:
        """Write a query's rows as Parquet files, one partition an `event_period`."""
        target = Path(folder)
        token = uuid.uuid4().hex[:12]
        statement = (
            f"COPY ({sql}) TO {_literal(folder)} (FORMAT parquet, COMPRESSION zstd,"
            f" PARTITION_BY (event_period), FILENAME_PATTERN {_literal(f'part-{token}-{{i}}')},"
            f" ROW_GROUP_SIZE {_ROW_GROUP_ROWS}, OVERWRITE_OR_IGNORE, RETURN_STATS)"
        )
        try:
            target.mkdir(parents=True, exist_ok=True)
            with _translated(statement):
                rows = self._connection.execute(statement).fetchall()
        except BaseException as error:
            _remove_begun(target, token)
            if isinstance(error, OSError) and not isinstance(error, FeatureStoreError):
                raise StorageError(
                    "The table's folder cannot be written.", where=folder, got=error.strerror
                ) from error
            raise
        return [_written(row, target) for row in rows]

    def interrupt(self) -> None:
        """Stop the running statement."""
        self._connection.interrupt()


class _Fed:
    """Arrow data that change: each scan reads what is there then."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def take(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._table.schema.__arrow_c_schema__()


def _written(row: tuple[Any, ...], folder: Path) -> WrittenFile:
    path, count, size, _, stats, partition = row[:6]
    # A stream's log has the source's own columns: there our stamp tells the span.
    event = stats.get(f'"{ACCEPTED}"') or stats['"event_timestamp"']
    position = stats.get(f'"{POSITION}"', {}).get("max") if f'"{ACCEPTED}"' in stats else None
    return WrittenFile(
        path=str(Path(path).relative_to(folder)),
        period=str(next(iter(partition.values()))),
        rows=int(count),
        bytes=int(size),
        min_event=_stat_instant(event["min"]),
        max_event=_stat_instant(event["max"]),
        last_position=None if position is None else int(position),
    )


def _stat_instant(text: str) -> int:
    return to_instant(text, "event_timestamp")


def _remove_begun(folder: Path, token: str) -> None:
    for path in folder.glob(f"event_period=*/part-{token}-*"):
        path.unlink(missing_ok=True)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def _translated(sql: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise _error_from(error, sql) from error


def _error_from(error: duckdb.Error, sql: str) -> FeatureStoreError | KeyboardInterrupt:
    text = str(error)
    for kind, build in _BY_CLASS.items():
        if isinstance(error, kind):
            return build(text, sql)
    return _error_from_text(text, sql)


def _error_from_text(text: str, sql: str) -> FeatureStoreError | KeyboardInterrupt:
    lowered = text.lower()
    if "interrupted" in lowered:
        return KeyboardInterrupt("The job was stopped.")
    if "out of memory" in lowered:
        return _memory(text, sql)
    if "conversion error" in lowered or "out of range" in lowered:
        return _conversion(text, sql)
    if "map keys" in lowered or "duplicate key" in lowered:
        return _map_keys(text)
    if any(word in lowered for word in ("no magic bytes", "parquet", "thrift", "snappy", "zstd")):
        return _corrupt(text)
    return RequestError("The engine refused a statement.", got=_first(text))


def _io(text: str, sql: str) -> FeatureStoreError | KeyboardInterrupt:
    lowered = text.lower()
    if "no files found" in lowered or "no such file" in lowered:
        return SourceNotFoundError("A file of a source does not exist.", got=_first(text))
    if "no space left" in lowered or "disk quota" in lowered:
        return StorageError(
            "The disk is full; nothing was changed.",
            got=_first(text),
            hint="Free space, or set offline.path or offline.temp_path to another disk.",
        )
    if "permission denied" in lowered or "read-only file system" in lowered:
        return StorageError("A file or folder cannot be used.", got=_first(text))
    if "max_temp_directory_size" in lowered:
        return _memory(text, sql)
    return _corrupt(text)


def _corrupt(text: str) -> FeatureStoreError:
    return SourceCorruptError(
        "A file is not readable as its format.",
        got=_first(text),
        hint="Write the file again; nothing was materialized from it.",
    )


def _memory(text: str, _: str) -> FeatureStoreError:
    return OutOfMemoryError(
        "The work needs more memory than offline.memory_limit and the spill space give.",
        got=_first(text),
        hint="Raise offline.memory_limit, or point offline.temp_path to a disk with more room.",
    )


def _conversion(text: str, _: str) -> FeatureStoreError:
    return DataError(
        "A value cannot be converted to the declared type.",
        got=_first(text),
        hint="Filter such rows by where=, or convert them by an expression (TRY_CAST).",
    )


def _map_keys(text: str) -> FeatureStoreError:
    return DataError(
        "A map holds a key twice, or a key that is null.",
        got=_first(text),
        allowed="each key once, and none null",
        hint="Filter such rows by where=, or mend them by an expression.",
    )


def _binder(text: str, _: str) -> FeatureStoreError:
    return RequestError("The SQL names something that does not exist or does not fit.", got=text)


def _syntax(text: str, _: str) -> FeatureStoreError:
    return RequestError("The SQL cannot be parsed.", got=text)


def _interrupted(_: str, __: str) -> KeyboardInterrupt:
    return KeyboardInterrupt("The job was stopped.")


def _first(text: str) -> str:
    return text.strip().split("\n")[0]


_BY_CLASS: Mapping[
    type[duckdb.Error], Callable[[str, str], FeatureStoreError | KeyboardInterrupt]
] = {
    duckdb.IOException: _io,
    duckdb.OutOfMemoryException: _memory,
    duckdb.ConversionException: _conversion,
    duckdb.OutOfRangeException: _conversion,
    duckdb.BinderException: _binder,
    duckdb.CatalogException: _binder,
    duckdb.ParserException: _syntax,
    duckdb.InterruptException: _interrupted,
}
