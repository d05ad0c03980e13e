"""The tables suite against every adapter, and what only Delta can get wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import deltalake
import pytest

from featurestore.adapters.delta import DeltaTables
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import SystemClock
from featurestore.errors import StorageError
from featurestore.ports.tables import Tables
from featurestore.testing.tables import TablesSuite, table_schema, write_file

_ID = "project/view/0123456789abcdef"


class TestMemory(TablesSuite):
    @pytest.fixture
    def tables(self, tmp_path: Path) -> Tables:
        return MemoryTables(tmp_path)


class TestDelta(TablesSuite):
    @pytest.fixture
    def tables(self, tmp_path: Path) -> Tables:
        return DeltaTables(tmp_path, SystemClock())

    def test_any_delta_reader_reads_it(self, tables: Tables) -> None:
        file = write_file(tables, _ID, "a.parquet", [1, 2])
        tables.commit(_ID, table_schema(), read_version=-1, add=[file], metadata={})
        table = deltalake.DeltaTable(tables.folder(_ID))
        assert table.to_pyarrow_table()["k"].to_pylist() == [1, 2]

    def test_a_writer_who_died_after_creating_the_table_blocks_nobody(self, tables: Tables) -> None:
        deltalake.DeltaTable.create(
            tables.folder(_ID), table_schema(), partition_by=["event_period"]
        )
        assert tables.snapshot(_ID).files == ()
        file = write_file(tables, _ID, "a.parquet", [1])
        tables.commit(_ID, table_schema(), read_version=0, add=[file], metadata={})
        assert tables.snapshot(_ID).rows == 1

    def test_a_damaged_log_is_told(self, tables: Tables) -> None:
        file = write_file(tables, _ID, "a.parquet", [1])
        tables.commit(_ID, table_schema(), read_version=-1, add=[file], metadata={})
        log = Path(tables.folder(_ID)) / "_delta_log"
        for entry in log.glob("*.json"):
            entry.write_text("{ this is no log", encoding="utf-8")
        with pytest.raises(StorageError):
            tables.snapshot(_ID)
        shutil.rmtree(log)
        assert tables.snapshot(_ID).version == -1

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        blocker = tmp_path / "file"
        blocker.write_text("not a folder", encoding="utf-8")
        tables = DeltaTables(blocker, SystemClock())
        with pytest.raises(StorageError):
            tables.commit(_ID, table_schema(), read_version=-1, add=[], metadata={})
