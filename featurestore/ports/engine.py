"""The engine that runs compiled SQL, and the eyes that see what a source consists of.

A session is one job's work space with its own memory limit and spill folder. SQL is compiled for
the engine's dialect in `compile`; Arrow comes and goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
class LiveFile:
    """A file of a stream's log.

    Attributes:
        path: Absolute.
        last_position: The newest position in it, of whatever partition; None when it is unknown.
    """

    path: str
    last_position: int | None = None


@dataclass(frozen=True, slots=True)
class LiveRows:
    """The log of a source's live events, as far as it was written.

    Attributes:
        files: Its files.
        positions: How far each partition of the stream has been logged.
        claims: For each partition that somebody reads, the generations of the views which get all
            of its events beyond `positions` online.
    """

    files: tuple[LiveFile, ...] = ()
    positions: Mapping[str, int] = field(default_factory=dict)
    claims: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def unread(self, after: Mapping[str, int]) -> list[str]:
        """Return the files that may hold rows behind positions of partitions."""
        new = self.positions.keys() - after.keys()
        read = -1 if new else min(after.values(), default=-1)
        return [f.path for f in self.files if f.last_position is None or f.last_position > read]


@dataclass(frozen=True, slots=True)
class SourceListing:
    """What a source consists of now.

    Attributes:
        files: Its files, sorted by path; empty for a query, whose files cannot be told.
        relation: The SQL of a relation over all of its files, under the source's own column names.
        opaque: Whether some of the files cannot be read on their own, or changes cannot be told by
            files, so that each run reads everything.
        live: The log of its stream; None where it has none. All else is about its history.
    """

    files: tuple[SourceFile, ...]
    relation: str
    opaque: bool = False
    live: LiveRows | None = None


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
    """A Parquet file that a session wrote, path relative to the folder that it was asked for.

    For the other attributes see `ports.tables.TableFile`.
    """

    path: str
    period: str
    rows: int
    bytes: int
    min_event: int
    max_event: int
    last_position: int | None = None


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

    def feed(self, name: str, schema: pa.Schema) -> Callable[[pa.Table], None]:
        """Make a name readable whose data come later, and again and again; return who takes them.

        Args:
            name: The name; there are no data until some are given.
            schema: The columns that they all have.
        """
        ...

    def prepare(self, sql: str) -> Callable[[], pa.Table]:
        """Return a function that runs a query; for one that runs often, over what is fed by then.

        It raises what `fetch` does.
        """
        ...

    def register_canonical(
        self, name: str, function: Callable[[pa.Array], pa.Array], struct_type: str
    ) -> None:
        """Make a vectorized function of one struct column to BLOB callable from SQL."""
        ...

    def write_parquet(self, sql: str, folder: str) -> list[WrittenFile]:
        """Write a query's rows, in order, as zstd Parquet partitioned by column `event_period`.

        The query has columns `event_period` and `event_timestamp`, or for the log of a stream
        `_accepted_at` and `_position`; file names are new each time.
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
