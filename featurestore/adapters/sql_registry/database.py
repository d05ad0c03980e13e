"""Opens the registry's database on first use and runs transactions on it.

Here live the connection pool, the creation of the tables, and the check of who wrote them. Writers
of a SQLite file queue for its lock before they read, so that none fails half-way. A SQLite file
must not lie on a network folder: teams take PostgreSQL.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, inspect, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from featurestore.adapters.sql_registry.failures import is_locked, translate
from featurestore.adapters.sql_registry.location import Location
from featurestore.adapters.sql_registry.schema import SCHEMA_VERSION, metadata, schema_version
from featurestore.clock import Clock
from featurestore.errors import SettingsError, StorageError

_BEGIN = "featurestore_begin"
_LOCK_PAUSE_SECONDS = 0.01
# "featreg" as a number: the lock under which a PostgreSQL registry's tables are created.
_SCHEMA_LOCK = 0x66656174726567


class Database:
    """A database that opens itself, in this process and for the file that is there now.

    Args:
        location: Which database.
        timeout_seconds: How long to wait for a lock or a connection.
        clock: Measures that wait where the driver cannot.
    """

    def __init__(self, location: Location, timeout_seconds: float, clock: Clock) -> None:
        self.location = location
        self._timeout = timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._opened_for: tuple[int, ...] = ()
        self._inherited: list[Engine] = []

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for one consistent read."""
        with self._mapped(), self._open().begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that is committed unless the block raises."""
        with self._mapped(), self._writing(self._open()) as connection:
            yield connection

    @contextmanager
    def _writing(self, engine: Engine) -> Iterator[Connection]:
        if self.location.path is None:
            begin = f"SET LOCAL lock_timeout = {max(1, round(self._timeout * 1000))}"
        else:
            begin = "BEGIN IMMEDIATE"
        options = {_BEGIN: begin}
        with engine.connect() as connection, connection.execution_options(**options).begin():
            yield connection

    def close(self) -> None:
        """Let go of all connections; the next use opens new ones."""
        with self._lock:
            self._forget()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise translate(error, self.location, self._timeout) from error

    def _open(self) -> Engine:
        with self._lock:
            if self._engine is None or self._opened_for != self._current():
                self._forget()
                engine = self._create()
                try:
                    self._prepare(engine)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine, self._opened_for = engine, self._current()
            return self._engine

    def _current(self) -> tuple[int, ...]:
        """Return what connections belong to: this process, and the file under the path.

        A fork must not use its parent's connections. Somebody may have deleted the file: what
        is written to a deleted file is lost.
        """
        if self.location.path is None:
            return (os.getpid(),)
        try:
            found = self.location.path.stat()
        except OSError:
            return (os.getpid(),)
        return (os.getpid(), found.st_dev, found.st_ino)

    def _forget(self) -> None:
        if self._engine is None:
            return
        if self._opened_for[0] == os.getpid():
            self._engine.dispose()
        else:
            # Closing them would end the parent's sessions: they are kept, unused.
            self._inherited.append(self._engine)
        self._engine = None

    def _create(self) -> Engine:
        wait = {"pool_timeout": self._timeout, "hide_parameters": True}
        if self.location.path is None:
            return self._postgres(wait)
        _make_folder(self.location.path.parent)
        arguments = {"timeout": self._timeout, "isolation_level": None, "check_same_thread": False}
        engine = create_engine(
            self.location.url, poolclass=QueuePool, connect_args=arguments, **wait
        )
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgres(self, wait: dict[str, Any]) -> Engine:
        milliseconds = max(1, round(self._timeout * 1000))
        arguments = {
            "connect_timeout": max(2, round(self._timeout)),  # libpq takes no less
            "tcp_user_timeout": milliseconds,
            "application_name": "featurestore",
            "prepare_threshold": None,  # statements prepared by name break behind poolers
        }
        url = self.location.url
        try:
            engine = create_engine(
                url,
                connect_args={k: v for k, v in arguments.items() if k not in url.query},
                pool_pre_ping=True,
                **wait,
            )
        except ImportError as error:
            raise SettingsError(
                "A PostgreSQL registry needs the driver psycopg, which is not installed.",
                where=self.location.label,
                got=str(error),
                hint="Install it with: pip install 'featurestore[postgres]'",
            ) from error
        event.listen(engine, "begin", _begin_postgres)
        return engine

    def _prepare(self, engine: Engine) -> None:
        if self.location.path is not None:
            self._use_wal(engine)
        with engine.connect() as connection:
            found = self._schema_version(connection)
        if found is None:
            found = self._create_tables(engine)
        if found != SCHEMA_VERSION:
            raise StorageError(
                "The registry was written by another version of featurestore.",
                where=self.location.label,
                got=f"schema version {found}",
                allowed=f"schema version {SCHEMA_VERSION}",
                hint="Install the newest featurestore here: pip install --upgrade featurestore",
            )

    def _use_wal(self, engine: Engine) -> None:
        """Let readers go on beside a writer; the file remembers it.

        SQLite answers "locked" at once, whatever its timeout, when two processes switch a new file
        together: so this is tried until the time is over.
        """
        end = self._clock.monotonic() + self._timeout
        while not self._switched(engine, last=self._clock.monotonic() >= end):
            time.sleep(_LOCK_PAUSE_SECONDS)

    def _switched(self, engine: Engine, *, last: bool) -> bool:
        try:
            with engine.connect().execution_options(**{_BEGIN: ""}) as connection:
                connection.execute(text("PRAGMA journal_mode=WAL"))
        except OperationalError as error:
            if last or not is_locked(error):
                raise
            return False
        return True

    def _schema_version(self, connection: Connection) -> int | None:
        if not inspect(connection).has_table(schema_version.name):
            return None
        return connection.scalar(select(schema_version.c.version))

    def _create_tables(self, engine: Engine) -> int | None:
        """Create what is missing, one process at a time; return the version that is there then."""
        with self._writing(engine) as connection:
            if self.location.path is None:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})"))
            found = self._schema_version(connection)
            if found is None:
                metadata.create_all(connection)
                connection.execute(schema_version.insert(), {"id": 1, "version": SCHEMA_VERSION})
                found = SCHEMA_VERSION
        return found


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            "The registry's folder cannot be created.",
            where=str(folder),
            got=error.strerror or str(error),
            hint="Create it, or point [registry] url elsewhere.",
        ) from error


def _begin_sqlite(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN, "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def _begin_postgres(connection: Connection) -> None:
    # The driver begins by itself; there is only something to say about locks.
    statement = connection.get_execution_options().get(_BEGIN)
    if statement:
        connection.exec_driver_sql(statement)
