"""Versioned tables of Parquet files: the offline side (laws M2, M3).

A table is named by a relative id such as `project/view/fingerprint`. Engines write files into its
folder; nothing is visible until `commit` adds them, all at once. Each commit says which version it
was computed from: when another commit came between, `ConflictError` is raised and nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class TableFile:
    """One data file of a table.

    Attributes:
        path: Absolute when read from a snapshot; a commit takes it relative to the table's folder.
        period: The value of the partition column `event_period`.
        rows: The number of rows in it.
        bytes: Its size.
        min_event: The smallest event timestamp in it, microseconds; in the log of a stream, whose
            columns are the source's own, the first instant at which the stream took one of them.
        max_event: The largest, or the last.
        last_position: In the log of a stream, the newest position in it; None elsewhere.
    """

    path: str
    period: str
    rows: int
    bytes: int
    min_event: int
    max_event: int
    last_position: int | None = None


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """A table at one version.

    Attributes:
        table_id: The table's id.
        version: Counts commits; -1 when the table does not exist.
        files: Its data files.
        metadata: What the last commit of ours said, such as {"unique": "true"}.
    """

    table_id: str
    version: int
    files: tuple[TableFile, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class TableVersion:
    """One commit of ours to a table, and what it said."""

    version: int
    metadata: Mapping[str, str]


class Tables(Protocol):
    """Versioned tables. `StorageError` tells of full disks, missing rights and damaged logs."""

    def snapshot(self, table_id: str) -> TableSnapshot:
        """Return the newest version of a table; version -1 and no files when there is none."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the ids of all tables whose ids begin with a prefix and a slash, sorted."""
        ...

    def history(self, table_id: str) -> list[TableVersion]:
        """Return the commits of ours that are still known, the newest first."""
        ...

    def at(self, table_id: str, version: int) -> TableSnapshot:
        """Return a version of `history`; some of its files may have been deleted since."""
        ...

    def folder(self, table_id: str) -> str:
        """Return the absolute folder into which engines write the table's new files."""
        ...

    def commit(
        self,
        table_id: str,
        schema: pa.Schema,
        *,
        read_version: int,
        add: Sequence[TableFile],
        remove: Sequence[TableFile] = (),
        metadata: Mapping[str, str],
    ) -> int:
        """Make files visible and others invisible in one step; return the new version.

        Args:
            table_id: The table; it is created when `read_version` is -1.
            schema: All columns, `event_period` (string, the partition column) last.
            read_version: The version that the change was computed from.
            add: New files, paths relative to the table's folder.
            remove: Files of the snapshot that the new ones replace.
            metadata: Short texts kept with the commit.

        Raises:
            ConflictError: Another commit was made since `read_version`; nothing changed.
        """
        ...

    def drop(self, table_id: str) -> None:
        """Delete a table with its files; nothing happens when there is none."""
        ...

    def vacuum(self, table_id: str, *, before_us: int) -> int:
        """Delete data files that the newest version does not refer to; return how many.

        Args:
            table_id: The table.
            before_us: Files written after this instant stay: a run may be about to commit them.
        """
        ...
