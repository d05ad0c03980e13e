"""The log of a stream: appended to once whoever appends, and read as of one version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.adapters import delta
from featurestore.adapters.delta import DeltaTables
from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import FixedClock
from featurestore.errors import ConflictError
from featurestore.ports.engine import EngineSession
from featurestore.services.payloads import live_schema
from featurestore.services.stream_log import StreamLog, log_id

COLUMNS = live_schema(pa.schema([("id", pa.string())]))
CLOCK = FixedClock(1_714_564_800_000_000)


@pytest.fixture(params=["delta", "memory"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> DeltaTables | MemoryTables:
    if request.param == "memory":
        return MemoryTables(tmp_path / "offline")
    return DeltaTables(tmp_path / "offline", CLOCK)


@pytest.fixture
def log(tables: DeltaTables | MemoryTables) -> StreamLog:
    return StreamLog("p", tables, CLOCK, target_file_size=1 << 20)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[EngineSession]:
    engine = DuckDBEngine(
        tmp_path, memory_limit=300_000_000, threads=1, temp_path=tmp_path / "spill"
    )
    with engine.session() as session:
        yield session


def rows(*positions: int, partition: str = "0") -> pa.Table:
    return pa.table(
        {
            "id": [f"e{position}" for position in positions],
            "_partition": [partition] * len(positions),
            "_position": pa.array(positions, pa.int64()),
            "_index": pa.array([0] * len(positions), pa.int32()),
            "_accepted_at": pa.array([CLOCK.now_us()] * len(positions), pa.timestamp("us", "UTC")),
        },
        schema=COLUMNS,
    )


def held(log: StreamLog) -> list[str]:
    files = [file.path for file in log.live("c").files]
    return sorted(i for file in files for i in pq.ParquetFile(file).read()["id"].to_pylist())


def append(log, session, table, member="m", views=("v/1",), **positions):
    return log.append(session, "c", table, positions=positions, member=member, views=views)


def test_what_is_in_the_log_is_not_appended_again(log, session):
    assert append(log, session, rows(1, 2, 3), **{"0": 3}).rows == 3
    assert append(log, session, rows(2, 3, 4), member="zombie", **{"0": 4}).rows == 1
    assert append(log, session, rows(1, partition="other"), other=1).rows == 1
    assert append(log, session, rows(4), **{"0": 4}).rows == 0
    assert held(log) == ["e1", "e1", "e2", "e3", "e4"]
    assert log.live("c").positions == {"0": 4, "other": 1}


def test_positions_never_fall_and_count_without_events(log, session):
    append(log, session, rows(5), **{"0": 9})
    append(log, session, rows(), **{"0": 7})
    assert log.live("c").positions == {"0": 9}


def test_claims_are_changed_by_who_made_them(log, session):
    log.claim(session, "c", COLUMNS, member="a", claims={"0": ["v/1"], "1": ["v/1"]})
    log.claim(session, "c", COLUMNS, member="b", claims={"1": ["v/1"]})
    found = append(log, session, rows(1), member="a", views=("v/1", "v/2"), **{"0": 1})
    assert (found.own, dict(found.before)) == ({"0"}, {})
    assert log.live("c").claims == {"0": {"v/1", "v/2"}, "1": {"v/1"}}
    append(log, session, rows(), member="a", views=None)
    assert log.live("c").claims == {"1": {"v/1"}}


def test_two_who_append_at_once_append_each_event_once(log, session, tables, monkeypatch):
    """Between the look and the commit of the one, the other one commits."""
    original, others = tables.commit, [rows(1, 2)]

    def commit(*arguments, **more):
        if others:
            append(log, session, others.pop(), member="other", **{"0": 2})
            session.register("_appended", rows(1, 2, 3))
        return original(*arguments, **more)

    monkeypatch.setattr(tables, "commit", commit)
    assert append(log, session, rows(1, 2, 3), **{"0": 3}).rows == 1
    assert held(log) == ["e1", "e2", "e3"]
    folder = Path(tables.folder(log_id("p", "c")))
    assert len(list(folder.glob("event_period=*/*.parquet"))) == 2


def test_a_merge_gives_way_to_an_append(log, session, tables, monkeypatch):
    for n in range(9):
        append(log, session, rows(n), **{"0": n})
    original = tables.commit

    def commit(*_, **__):
        raise ConflictError("Another run committed first.")

    monkeypatch.setattr(tables, "commit", commit)
    log.tidy(session, "c")
    monkeypatch.setattr(tables, "commit", original)
    before = log.live("c")
    assert len(before.files) == 9
    log.tidy(session, "c")
    after = log.live("c")
    assert len(after.files) == 1
    assert (after.positions, after.claims) == (before.positions, before.claims)
    assert held(log) == [f"e{n}" for n in range(9)]
    assert after.files[0].last_position == 8


def test_files_and_positions_are_of_one_version(tmp_path, session, monkeypatch):
    """A commit that comes while a version is looked at must not lend it its positions."""
    tables = DeltaTables(tmp_path / "offline", CLOCK)
    log = StreamLog("p", tables, CLOCK, target_file_size=1 << 20)
    append(log, session, rows(1), **{"0": 1})
    original, more = delta._files, [rows(2)]

    def files(*arguments):
        found = list(original(*arguments))
        if more:
            append(log, session, more.pop(), **{"0": 2})
        return found

    monkeypatch.setattr(delta, "_files", files)
    live = log.live("c")
    assert ([file.last_position for file in live.files], live.positions) == ([1], {"0": 1})
    assert log.live("c").positions == {"0": 2}


def test_another_programs_commit_does_not_hide_the_positions(tmp_path, session):
    import deltalake

    tables = DeltaTables(tmp_path / "offline", CLOCK)
    log = StreamLog("p", tables, CLOCK, target_file_size=1 << 20)
    append(log, session, rows(1), **{"0": 1})
    table = deltalake.DeltaTable(tables.folder(log_id("p", "c")))
    table.alter.set_table_description("seen")
    assert log.live("c").positions == {"0": 1}
    assert append(log, session, rows(1), **{"0": 1}).rows == 0


def test_columns_that_come_later_are_declared(tmp_path, session):
    import deltalake

    tables = DeltaTables(tmp_path / "offline", CLOCK)
    log = StreamLog("p", tables, CLOCK, target_file_size=1 << 20)
    append(log, session, rows(1), **{"0": 1})
    more = rows(2).append_column("extra", pa.array([1.5])).append_column(
        "clock", pa.array([60_000_000], pa.time64("us"))
    )  # fmt: skip
    append(log, session, more, **{"0": 2})
    table = deltalake.DeltaTable(tables.folder(log_id("p", "c")))
    types = {field.name: field.type.type for field in table.schema().fields}
    assert (types["extra"], types["clock"]) == ("double", "string")
    assert held(log) == ["e1", "e2"]
