"""The conformance suite of versioned tables (laws M2, M3): subclass it and give a `tables` fixture.

The suite writes real Parquet files and reads them back with pyarrow, behind the adapter's back, so
that a wrong path or a lost file shows.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from featurestore.errors import ConflictError
from featurestore.ports.tables import TableFile, Tables

if TYPE_CHECKING:
    import pyarrow as pa

_ID = "project/view/0123456789abcdef"
_FUTURE_US = 4_102_444_800_000_000


def table_schema() -> pa.Schema:
    """Return the schema of the suite's table: a key, both timestamps, values and the partition."""
    import pyarrow as pa

    instant = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            ("k", pa.int64()),
            ("event_timestamp", instant),
            ("created_timestamp", instant),
            ("x", pa.float32()),
            ("tags", pa.list_(pa.string())),
            ("vector", pa.list_(pa.float32(), 2)),
            ("shares", pa.map_(pa.string(), pa.float64())),
            ("event_period", pa.string()),
        ]
    )


def write_file(tables: Tables, table_id: str, name: str, keys: list[int]) -> TableFile:
    """Write a data file with one row a key and return it as a commit takes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    events = [datetime.fromtimestamp(1_700_000_000 + key, tz=UTC) for key in keys]
    columns: dict[str, Any] = {
        "k": keys,
        "event_timestamp": events,
        "created_timestamp": [None] * len(keys),
        "x": [float(key) for key in keys],
        "tags": [["a"]] * len(keys),
        "vector": [[1.0, 2.0]] * len(keys),
        "shares": [[("a", 1.0), ("b", None)]] * len(keys),
    }
    schema = table_schema()
    plain = pa.schema([field for field in schema if field.name != "event_period"])
    path = Path(tables.folder(table_id)) / "event_period=2023" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=plain), path)
    first, last = (1_700_000_000 + min(keys)) * 10**6, (1_700_000_000 + max(keys)) * 10**6
    return TableFile(
        f"event_period=2023/{name}", "2023", len(keys), path.stat().st_size, first, last
    )


def keys_in(tables: Tables, table_id: str) -> list[int]:
    """Return all keys of a table's newest version, read from its files."""
    import pyarrow.parquet as pq

    found: list[int] = []
    for file in tables.snapshot(table_id).files:
        found += pq.ParquetFile(file.path).read(["k"])["k"].to_pylist()
    return sorted(found)


class TablesSuite(ABC):
    """Every sentence of `ports.tables.Tables` as a test."""

    @pytest.fixture
    @abstractmethod
    def tables(self) -> Tables:
        """Return empty tables."""

    def test_no_table(self, tables: Tables) -> None:
        snapshot = tables.snapshot(_ID)
        assert (snapshot.version, snapshot.files, snapshot.rows) == (-1, (), 0)
        tables.drop(_ID)

    def test_files_are_invisible_until_committed(self, tables: Tables) -> None:
        file = write_file(tables, _ID, "a.parquet", [1, 2])
        assert tables.snapshot(_ID).version == -1
        version = self._commit(tables, -1, [file])
        snapshot = tables.snapshot(_ID)
        assert snapshot.version == version
        assert keys_in(tables, _ID) == [1, 2]

    def test_a_file_comes_back_as_it_was_committed(self, tables: Tables) -> None:
        file = write_file(tables, _ID, "a.parquet", [3, 9])
        self._commit(tables, -1, [file])
        (found,) = tables.snapshot(_ID).files
        assert Path(found.path) == Path(tables.folder(_ID)) / file.path
        assert (found.period, found.rows, found.bytes) == (file.period, file.rows, file.bytes)
        assert (found.min_event, found.max_event) == (file.min_event, file.max_event)

    def test_metadata_is_that_of_the_last_commit(self, tables: Tables) -> None:
        first = self._commit(tables, -1, [write_file(tables, _ID, "a.parquet", [1])], run="one")
        assert tables.snapshot(_ID).metadata == {"run": "one"}
        self._commit(tables, first, [write_file(tables, _ID, "b.parquet", [2])], run="two")
        assert tables.snapshot(_ID).metadata == {"run": "two"}

    def test_add_and_remove_in_one_step(self, tables: Tables) -> None:
        old = write_file(tables, _ID, "a.parquet", [1])
        version = self._commit(tables, -1, [old])
        new = write_file(tables, _ID, "b.parquet", [1, 2])
        removed = tables.snapshot(_ID).files
        tables.commit(
            _ID, table_schema(), read_version=version, add=[new], remove=removed, metadata={}
        )
        assert keys_in(tables, _ID) == [1, 2]

    def test_a_commit_from_an_older_version_is_refused(self, tables: Tables) -> None:
        version = self._commit(tables, -1, [write_file(tables, _ID, "a.parquet", [1])])
        self._commit(tables, version, [write_file(tables, _ID, "b.parquet", [2])])
        with pytest.raises(ConflictError):
            self._commit(tables, version, [write_file(tables, _ID, "c.parquet", [3])])
        with pytest.raises(ConflictError):
            self._commit(tables, -1, [write_file(tables, _ID, "d.parquet", [4])])
        assert keys_in(tables, _ID) == [1, 2]

    def test_of_writers_at_once_one_wins(self, tables: Tables) -> None:
        version = self._commit(tables, -1, [write_file(tables, _ID, "0.parquet", [0])])
        files = [write_file(tables, _ID, f"{n}.parquet", [n]) for n in range(1, 9)]
        won: list[int] = []
        barrier = threading.Barrier(len(files))

        def write(file: TableFile) -> None:
            barrier.wait()
            try:
                won.append(self._commit(tables, version, [file]))
            except ConflictError:
                return

        threads = [threading.Thread(target=write, args=(file,)) for file in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(keys_in(tables, _ID)) == 2

    def test_tables_do_not_know_each_other(self, tables: Tables) -> None:
        other = "app/view/0123456789abcdef"
        self._commit(tables, -1, [write_file(tables, _ID, "a.parquet", [1])])
        file = write_file(tables, other, "a.parquet", [2])
        tables.commit(other, table_schema(), read_version=-1, add=[file], metadata={})
        tables.drop(_ID)
        assert tables.snapshot(_ID).version == -1
        assert not Path(tables.folder(_ID)).exists()
        assert keys_in(tables, other) == [2]

    def test_tables_are_found_by_how_their_ids_begin(self, tables: Tables) -> None:
        assert tables.names("project") == []
        for table_id in ("project/view/b", "project/view/a", "project/other/c", "projects/x/d"):
            file = write_file(tables, table_id, "a.parquet", [1])
            tables.commit(table_id, table_schema(), read_version=-1, add=[file], metadata={})
        found = ["project/other/c", "project/view/a", "project/view/b"]
        assert tables.names("project") == found
        assert tables.names("project/view") == found[1:]
        tables.drop("project/view/a")
        assert tables.names("project/view") == ["project/view/b"]

    def test_former_versions_are_told_with_what_their_commits_said(self, tables: Tables) -> None:
        assert tables.history(_ID) == []
        first = self._commit(tables, -1, [write_file(tables, _ID, "a.parquet", [1])], run="one")
        second = self._commit(tables, first, [write_file(tables, _ID, "b.parquet", [2])], run="two")
        removed = tables.snapshot(_ID).files
        new = [write_file(tables, _ID, "c.parquet", [1, 2, 3])]
        third = tables.commit(
            _ID, table_schema(), read_version=second, add=new, remove=removed, metadata={"run": "3"}
        )
        told = [(known.version, known.metadata["run"]) for known in tables.history(_ID)]
        assert told == [(third, "3"), (second, "two"), (first, "one")]
        assert [file.rows for file in tables.at(_ID, first).files] == [1]
        assert {file.path for file in tables.at(_ID, second).files} == {f.path for f in removed}
        assert tables.at(_ID, third) == tables.snapshot(_ID)

    def test_vacuum_spares_what_is_referred_to_or_new(self, tables: Tables) -> None:
        self._commit(tables, -1, [write_file(tables, _ID, "a.parquet", [1])])
        write_file(tables, _ID, "orphan.parquet", [2])
        assert tables.vacuum(_ID, before_us=0) == 0
        assert tables.vacuum(_ID, before_us=_FUTURE_US) == 1
        assert tables.vacuum(_ID, before_us=_FUTURE_US) == 0
        assert keys_in(tables, _ID) == [1]

    @staticmethod
    def _commit(tables: Tables, read_version: int, add: list[TableFile], run: str = "r") -> int:
        return tables.commit(
            _ID, table_schema(), read_version=read_version, add=add, metadata={"run": run}
        )
