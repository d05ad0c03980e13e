"""The engine that runs compiled SQL, and the eyes that see what a source consists of.

A session is one job's work space with its own memory limit and spill folder. SQL is compiled for
the engine's dialect in `compile`; Arrow comes and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from featurestore.compile.plan import SourcePlan

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source and what tells whether it has changed.

    Attributes:
        path: Absolute.
        token: Size, modification time and the like; another token means another content.
    """

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class SourceListing:
    """What a source consists of now.

    Attributes:
        files: Its files, sorted by path; empty for a query, whose files cannot be told.
        relation: The SQL of a relation over all of its files, under the source's own column names.
        opaque: Whether some of the files cannot be read on their own, or changes cannot be told by
            files, so that each run reads everything.
    """

    files: tuple[SourceFile, ...]
    relation: str
    opaque: bool = False


class Sources(Protocol):
    """Tells what sources consist of.

    Raises from its methods: `SourceNotFoundError`, `SourceCorruptError`, `SourceError`.
    """

    def listing(self, source: SourcePlan) -> SourceListing:
        """Return the source's files as of now."""
        ...

    def kind(self, path: str) -> Literal["parquet", "csv", "delta"]:
        """Return the format that a path has when the source does not say: by look and name."""
        ...

    def relation(self, source: SourcePlan, files: Sequence[str]) -> str:
        """Return the SQL of a relation over some of the source's files."""
        ...


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A Parquet file that a session wrote, path relative to the folder that it was asked for."""

    path: str
    period: str
    rows: int
    bytes: int
    min_event: int
    max_event: int


class EngineSession(Protocol):
    """One job's work space. Not for use by two threads, but for `interrupt`.

    Methods raise `SourceCorruptError`, `SourceNotFoundError`, `OutOfMemoryError`, `StorageError`,
    `DataError` (a value cannot be converted) and `RequestError` (the SQL names what is not there).
    """

    def run(self, sql: str) -> None:
        """Run a statement."""
        ...

    def fetch(self, sql: str) -> pa.Table:
        """Return the result of a query as one table."""
        ...

    def stream(self, sql: str, batch_rows: int = 65_536) -> pa.RecordBatchReader:
        """Return the result of a query batch by batch."""
        ...

    def schema(self, sql: str) -> pa.Schema:
        """Return the columns that a query would have, without running it."""
        ...

    def register(self, name: str, data: pa.Table | pa.RecordBatchReader) -> None:
        """Make Arrow data readable under a name."""
        ...

    def register_canonical(
        self, name: str, function: Callable[[pa.Array], pa.Array], struct_type: str
    ) -> None:
        """Make a vectorized function of one struct column to BLOB callable from SQL."""
        ...

    def write_parquet(self, sql: str, folder: str) -> list[WrittenFile]:
        """Write a query's rows, in order, as zstd Parquet partitioned by column `event_period`.

        The query has columns `event_period` and `event_timestamp`; file names are new each time.
        Files that were begun are deleted when the statement fails.
        """
        ...

    def interrupt(self) -> None:
        """Stop the running statement, from another thread or a signal handler."""
        ...


class Engine(Protocol):
    """Opens sessions."""

    def session(
        self, *, memory_limit: int | None = None, threads: int | None = None
    ) -> AbstractContextManager[EngineSession]:
        """Return a new session, closed with all it holds at the end of the `with` block.

        Args:
            memory_limit: Bytes; None takes the engine's setting.
            threads: None takes the engine's setting.
        """
        ...
