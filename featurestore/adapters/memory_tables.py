"""Tables whose versions are kept in memory: the model that other table adapters are compared with.

Data files are still files, since engines write and read them; only the log is in this process.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ConflictError
from featurestore.ports.tables import TableFile, TableSnapshot, TableVersion

if TYPE_CHECKING:
    import pyarrow as pa


class MemoryTables:
    """Tables below a folder, their versions in a dictionary.

    Args:
        folder: Where engines write the data files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: dict[str, TableSnapshot] = {}
        self._former: dict[str, list[TableSnapshot]] = {}
        self._lock = threading.Lock()

    def snapshot(self, table_id: str) -> TableSnapshot:
        """Return the newest version; -1 when there is none."""
        with self._lock:
            return self._tables.get(table_id, TableSnapshot(table_id, -1))

    def names(self, prefix: str) -> list[str]:
        """Return the tables below a prefix."""
        with self._lock:
            return sorted(name for name in self._tables if name.startswith(f"{prefix}/"))

    def history(self, table_id: str) -> list[TableVersion]:
        """Return all versions, the newest first."""
        with self._lock:
            held = self._former.get(table_id, [])
            return [TableVersion(s.version, s.metadata) for s in reversed(held) if s.metadata]

    def at(self, table_id: str, version: int) -> TableSnapshot:
        """Return a version."""
        with self._lock:
            return next(s for s in self._former[table_id] if s.version == version)

    def folder(self, table_id: str) -> str:
        """Return the absolute folder of a table."""
        return str(self._folder / table_id)

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
        """Replace the newest version if it is still the one that was read."""
        del schema
        folder = self._folder / table_id
        with self._lock:
            old = self._tables.get(table_id, TableSnapshot(table_id, -1))
            if old.version != read_version:
                raise ConflictError(
                    "Another run committed to the table first; nothing of this run was added.",
                    where=table_id,
                    got=f"version {old.version} where {read_version} was read",
                    hint="Run it again: what is there already is not written twice.",
                )
            gone = {file.path for file in remove}
            kept = [file for file in old.files if file.path not in gone]
            added = [replace(file, path=str(folder / file.path)) for file in add]
            # Like a Delta table, whose version 0 is its creation.
            version = max(0, old.version) + 1
            self._tables[table_id] = TableSnapshot(
                table_id, version, (*kept, *added), dict(metadata)
            )
            self._former.setdefault(table_id, []).append(self._tables[table_id])
            return version

    def drop(self, table_id: str) -> None:
        """Forget a table and delete its folder."""
        with self._lock:
            self._tables.pop(table_id, None)
            self._former.pop(table_id, None)
        shutil.rmtree(self._folder / table_id, ignore_errors=True)

    def vacuum(self, table_id: str, *, before_us: int) -> int:
        """Delete older data files that the newest version does not refer to."""
        known = {file.path for file in self.snapshot(table_id).files}
        folder = self._folder / table_id
        old = [
            path
            for path in folder.glob("event_period=*/*.parquet")
            if str(path) not in known and path.stat().st_mtime_ns // 1000 < before_us
        ]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)
