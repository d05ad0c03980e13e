"""Laws M1-M4, M6 and O1 on a real repository: DuckDB, Delta, SQLite and a store in memory."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import FeatureStore
from featurestore.clock import FixedClock
from featurestore.compile.plan import ViewPlan, table_id
from featurestore.errors import DataError, FeatureNotFoundError, RequestError, SourceCorruptError
from featurestore.ports.engine import LiveFile, LiveRows, SourceFile, SourceListing
from featurestore.ports.registry import LedgerEntry
from featurestore.semantics.timeline import Interval, difference, to_instant, union
from featurestore.services import intervals
from featurestore.services.pushing import Pusher
from featurestore.services.table_writing import TableWriter
from tests.conformance.repository import CaseView, Repository

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def _view(**changes: Any) -> CaseView:
    arguments: dict[str, Any] = {"join_keys": {"k": "int64"}, "features": {"x": "int64"}}
    return CaseView(name="v", **{**arguments, **changes})


def _row(key: int | None, day: float, value: int | None, **more: Any) -> dict[str, Any]:
    return {"k": key, "event_timestamp": DAY + timedelta(days=day), "x": value, **more}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path, "memory:")
    made.define(_view())
    return made


def _begin(repository: Repository, rows: list[dict[str, Any]]) -> CaseView:
    view = repository.views["v"]
    repository.append(view, rows, rewrite=False)
    repository.store.apply()
    return view


def _plan(store: FeatureStore) -> ViewPlan:
    return store.services.registry.state(store.project).catalog.views["v"]


def _online(store: FeatureStore, *keys: int) -> list[Any]:
    return store.get_online_features(["v:x"], {"k": list(keys)}).to_dict()["x"]


def _table(store: FeatureStore) -> list[tuple[Any, ...]]:
    snapshot = store.services.tables.snapshot(table_id(store.project, _plan(store)))
    files = [file.path for file in snapshot.files]
    if not files:
        return []
    names = ", ".join(f"'{name}'" for name in files)
    with store.services.engine.session() as session:  # type: ignore[attr-defined]
        table = session.fetch(
            "SELECT k, event_timestamp, x"
            f" FROM read_parquet([{names}], hive_partitioning = false) ORDER BY ALL"
        )
    return [tuple(row.values()) for row in table.to_pylist()]


# M1 ------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.sampled_from("abc")), max_size=12)
)
@settings(deadline=None, max_examples=200)
def test_m1_the_ledger_has_neither_gap_nor_overlap(steps: list[tuple[int, int, str]]) -> None:
    entries: tuple[LedgerEntry, ...] = ()
    newest: dict[int, str] = {}
    for start, length, snapshot in steps:
        entries = intervals.record(entries, Interval(start, start + length), snapshot)
        newest.update(dict.fromkeys(range(start, start + length), snapshot))
    told = {t: entry.snapshot for entry in entries for t in range(entry.start, entry.end)}
    assert told == newest
    assert sum(entry.end - entry.start for entry in entries) == len(newest)
    for left, right in pairwise(entries):
        assert left.end <= right.start
        assert left.end < right.start or left.snapshot != right.snapshot


def test_m1_intervals_are_half_open(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 10), _row(1, 1, 11), _row(1, 2, 12)])
    repository.store.materialize(DAY, DAY + timedelta(days=1))
    assert [row[2] for row in _table(repository.store)] == [10]
    repository.store.materialize(DAY + timedelta(days=1), DAY + timedelta(days=2))
    assert [row[2] for row in _table(repository.store)] == [10, 11]


def test_m1_an_empty_interval_is_refused(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 10)])
    with pytest.raises(RequestError, match="empty"):
        repository.store.materialize(DAY, DAY)


# M3 ------------------------------------------------------------------------------------------


def test_m3_running_again_changes_nothing(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 10), _row(2, 0, None), _row(1, 1, 11)])
    repository.materialize_everything()
    before = _table(repository.store)
    report = repository.store.materialize(DAY, DAY + timedelta(days=9))
    assert (report.views[0].rows_read, report.views[0].rows_written) == (3, 0)
    repository.store.materialize_incremental()
    assert _table(repository.store) == before
    assert _online(repository.store, 1, 2) == [11, None]


def test_m3_running_twice_at_once_changes_nothing(repository: Repository) -> None:
    _begin(repository, [_row(k, d, k * 100 + d) for k in range(20) for d in range(20)])
    stores = [FeatureStore(repository.folder) for _ in range(4)]
    errors: list[BaseException] = []

    def run(store: FeatureStore) -> None:
        try:
            store.materialize_incremental()
        except BaseException as error:  # noqa: BLE001  (handed to the main thread)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(_table(repository.store)) == 400
    ledger = repository.store.services.registry.ledger(
        repository.store.project, "v", _plan(repository.store).table_fingerprint
    )
    assert ledger.open_runs == ()
    for store in stores:
        store.close()


def test_m3_a_run_whose_rows_another_one_is_still_pushing_pushes_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run has marked done is online, though another one was first to write it."""
    repository = Repository(tmp_path, "lmdb:data/online")
    repository.define(_view())
    _begin(repository, [_row(1, 0, 10), _row(2, 0, 20)])
    store, other = repository.store, FeatureStore(repository.folder)
    runs: list[threading.Thread] = []
    committed, go_on = threading.Event(), threading.Event()
    stage, push = TableWriter.stage, Pusher.push

    def staged(self: TableWriter, work: Any, session: Any) -> None:
        stage(self, work, session)
        if not runs:  # the first run lets another one overtake it
            runs.append(threading.Thread(target=other.materialize_incremental))
            runs[0].start()
            assert committed.wait(20)

    def pushed(self: Pusher, *arguments: Any) -> int:
        if self is other.services.pusher:
            committed.set()
            assert go_on.wait(20)
        return push(self, *arguments)

    monkeypatch.setattr(TableWriter, "stage", staged)
    monkeypatch.setattr(Pusher, "push", pushed)
    try:
        store.materialize_incremental()
        assert _online(store, 1, 2) == [10, 20]
    finally:
        go_on.set()
        runs[0].join()
        other.close()
    assert _online(store, 1, 2) == [10, 20]
    fingerprint = _plan(store).table_fingerprint
    assert store.services.registry.ledger(store.project, "v", fingerprint).open_runs == ()


def test_m3_zeros_of_either_sign_and_nan_are_told_apart_and_written_once(tmp_path: Path) -> None:
    repository = Repository(tmp_path, "memory:")
    repository.define(_view(features={"x": "float64", "v": "vector<float32, 2>"}))
    rows = [
        {"k": 1, "event_timestamp": DAY, "x": x, "v": v}
        for x in (0.0, -0.0, float("nan"), None)
        for v in ([0.0, 1.0], [-0.0, 1.0], None)
    ]
    _begin(repository, rows[:1])
    repository.materialize_everything()
    repository.append(repository.views["v"], rows, rewrite=False)
    for _ in range(2):
        repository.store.materialize_incremental()
        assert len(_table(repository.store)) == len(rows)


# M4 ------------------------------------------------------------------------------------------


def test_m4_a_failed_interval_is_visible_and_not_done(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 10)])
    repository.store.materialize_incremental()
    bad = repository.folder / "sources" / "v" / "part-9.parquet"
    bad.write_bytes(b"PAR1 this is no parquet file PAR1")
    before = _table(repository.store)
    with pytest.raises(SourceCorruptError) as caught:
        repository.store.materialize_incremental()
    assert "FeatureView 'v'" in str(caught.value)
    runs = repository.store.services.registry.runs(repository.store.project)
    assert runs[0].state == "failed"
    assert "SourceCorruptError" in (runs[0].error or "")
    assert _table(repository.store) == before
    bad.unlink()
    repository.append(repository.views["v"], [_row(1, 0.5, 11)], rewrite=False)
    repository.store.materialize_incremental()
    assert _online(repository.store, 1) == [11]


def test_m4_one_failed_view_does_not_stop_the_others(tmp_path: Path) -> None:
    repository = Repository(tmp_path, "memory:")
    good = _view()
    bad = CaseView(name="bad", join_keys={"k": "int64"}, features={"x": "int64"})
    repository.define(bad, good)
    for view in (bad, good):
        repository.append(view, [_row(1, 0, 10)], rewrite=False)
    repository.store.apply()
    (tmp_path / "sources" / "bad" / "part-1.parquet").write_bytes(b"nothing")
    with pytest.raises(SourceCorruptError):
        repository.store.materialize_incremental()
    assert _online(repository.store, 1) == [10]


def test_an_unknown_view_is_told_before_any_work(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 10)])
    with pytest.raises(FeatureNotFoundError):
        repository.store.materialize_incremental(views=["w"])
    assert repository.store.services.registry.runs(repository.store.project) == []


# M6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", [True, False], ids=["file rewritten", "file added"])
def test_m6_late_rows_are_found_by_arrival(repository: Repository, rewrite: bool) -> None:  # noqa: FBT001
    view = _begin(repository, [_row(1, 5, 10)])
    repository.store.materialize_incremental()
    repository.append(view, [_row(2, 1, 20), _row(1, 4, 9)], rewrite=rewrite)
    report = repository.store.materialize_incremental()
    assert report.rows_written == 2
    assert _online(repository.store, 1, 2) == [10, 20]
    assert len(_table(repository.store)) == 3


def test_m6_a_file_seen_by_one_interval_is_still_new_to_another(repository: Repository) -> None:
    """A later run over other instants must not make an earlier interval forget the file."""
    view = _begin(repository, [_row(1, 0, 10), _row(1, 5, 15)])
    repository.store.materialize(DAY, DAY + timedelta(days=3))
    repository.append(view, [_row(2, 1, 20), _row(2, 6, 26)], rewrite=False)
    repository.store.materialize(DAY + timedelta(days=3), DAY + timedelta(days=9))
    assert [row[2] for row in _table(repository.store)] == [10, 15, 26]
    repository.store.materialize_incremental()
    assert [row[2] for row in _table(repository.store)] == [10, 15, 20, 26]


def test_m6_the_first_run_takes_all_history_and_an_end_ahead_counts_as_now(tmp_path: Path) -> None:
    clock = FixedClock(to_instant(DAY + timedelta(days=10)))
    made = Repository(tmp_path, "memory:")
    made.store = FeatureStore(tmp_path, clock=clock)
    made.define(_view())
    _begin(made, [_row(1, -9000, 1), _row(2, 9, 2), _row(3, 11, 3)])
    made.store.materialize_incremental("2099-01-01T00:00:00Z")
    assert [row[2] for row in _table(made.store)] == [1, 2]
    clock.advance(to_instant(DAY + timedelta(days=2)) - to_instant(DAY))
    made.store.materialize_incremental()
    assert [row[2] for row in _table(made.store)] == [1, 2, 3]


def test_rows_dated_ahead_go_online_when_their_time_has_come(tmp_path: Path) -> None:
    clock = FixedClock(to_instant(DAY + timedelta(days=1)))
    made = Repository(tmp_path, "memory:")
    made.store = FeatureStore(tmp_path, clock=clock)
    made.define(_view())
    _begin(made, [_row(1, 0, 10), _row(1, 5, 15), _row(2, 6, 26)])
    made.materialize_everything()
    assert len(_table(made.store)) == 3
    assert _online(made.store, 1, 2) == [10, None]
    clock.set(to_instant(DAY + timedelta(days=5)))
    made.store.materialize_incremental()
    assert _online(made.store, 1, 2) == [15, None]
    clock.set(to_instant(DAY + timedelta(days=7)))
    made.store.materialize_incremental()
    assert _online(made.store, 1, 2) == [15, 26]


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.integers(0, 12), st.integers(1, 4)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 14),
)
@settings(deadline=None, max_examples=200)
def test_m6_an_incremental_run_reads_exactly_what_is_missing(
    history: list[tuple[str, int, int]], end: int
) -> None:
    """Against the obvious model: (file version, instant) pairs that were read before."""
    snapshots: dict[str, dict[str, str]] = {}
    entries: tuple[LedgerEntry, ...] = ()
    seen: set[tuple[str, str, int]] = set()
    tokens = {"A": 0, "B": 0}
    for number, (changed, start, length) in enumerate(history):
        tokens[changed] += 1
        listing = {name: str(token) for name, token in tokens.items()}
        snapshots[str(number)] = listing
        entries = intervals.record(entries, Interval(start, start + length), str(number))
        seen |= {(f, t, i) for f, t in listing.items() for i in range(start, start + length)}
    now = {name: str(token) for name, token in tokens.items()}
    files = tuple(SourceFile(name, token) for name, token in now.items())
    reads = intervals.reads_of_new(SourceListing(files, ""), entries, snapshots, end)
    read = {
        (name, i)
        for names, wanted, _ in reads
        for name in names
        for w in wanted
        for i in range(max(0, w.start), w.end)
    }
    missing = {(f, i) for f, t in now.items() for i in range(end) if (f, t, i) not in seen}
    # What was read from this very version of the file need not be read again, but an interval that
    # was read later from another listing may be: never less than what is missing.
    assert missing <= read
    assert all(union(wanted) == difference(wanted, []) for _, wanted, _ in reads)


@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 12)), max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4)), max_size=6),
    st.integers(0, 14),
)
@settings(deadline=None, max_examples=200)
def test_m6_an_incremental_run_reads_exactly_what_is_new_in_a_streams_log(
    log: list[tuple[str, int]], runs: list[tuple[int, int, int]], end: int
) -> None:
    """Rows are (partition, event instant), their places in the list their positions."""
    entries: tuple[LedgerEntry, ...] = ()
    seen: set[int] = set()
    for grown, start, length in sorted(runs):
        logged = {name: place for place, (name, _) in enumerate(log[:grown])}
        entries = intervals.record(entries, Interval(start, start + length), "", logged)
        seen |= {n for n, (_, at) in enumerate(log[:grown]) if start <= at < start + length}
    positions = {name: place for place, (name, _) in enumerate(log)}
    files = tuple(LiveFile(str(n), n) for n in range(len(log)))
    listing = SourceListing((), "", opaque=True, live=LiveRows(files, positions))
    reads = [r for r in intervals.reads_of_new(listing, entries, {}, end) if r.after is not None]
    found = [
        int(file)
        for read in reads
        for file in listing.live.unread(read.after)
        for name, at in [log[int(file)]]
        if any(w.start <= at < w.end for w in read.intervals)
        and int(file) > read.after.get(name, -1)
    ]
    assert len(found) == len(set(found))
    assert set(found) == {n for n, (_, at) in enumerate(log) if at < end} - seen


# Tables --------------------------------------------------------------------------------------


def test_small_runs_do_not_leave_many_files(repository: Repository) -> None:
    view = _begin(repository, [_row(1, 0, 0)])
    for number in range(1, 25):
        repository.append(view, [_row(number % 3, number, number)], rewrite=False)
        repository.store.materialize_incremental()
    snapshot = repository.store.services.tables.snapshot(
        table_id(repository.store.project, _plan(repository.store))
    )
    assert snapshot.rows == 25
    assert len(snapshot.files) < 9


def test_rows_without_key_or_instant_are_counted(repository: Repository) -> None:
    _begin(repository, [_row(None, 0, 1), _row(1, 0, 2), {"k": 1, "event_timestamp": None, "x": 3}])
    report = repository.store.materialize_incremental()
    assert (report.views[0].rows_rejected, report.views[0].rows_written) == (2, 1)


def test_full_ties_are_reported(repository: Repository) -> None:
    _begin(repository, [_row(1, 0, 1), _row(1, 0, 2), _row(2, 0, 5), _row(2, 0, 5)])
    report = repository.store.materialize_incremental()
    assert report.views[0].rows_tied == 2


@pytest.mark.parametrize("vector", [[1.0], [1.0, 2.0, 3.0], [1.0, None], []], ids=str)
def test_a_vector_that_is_none_is_refused_and_nothing_is_written(
    vector: list[float | None], tmp_path: Path
) -> None:
    repository = Repository(tmp_path, "memory:")
    view = CaseView(name="v", join_keys={"k": "int64"}, features={"x": "vector<float32, 2>"})
    repository.define(view)
    folder = tmp_path / "sources" / "v"
    folder.mkdir(parents=True)
    rows = {"k": [1, 2], "event_timestamp": [DAY, DAY], "x": [[1.0, 2.0], vector]}
    column = pa.array(rows["x"], pa.list_(pa.float32()))
    pq.write_table(pa.table({**rows, "x": column}), folder / "all.parquet")
    repository.store.apply()
    with pytest.raises(DataError, match="length"):
        repository.store.materialize_incremental()
    assert _table(repository.store) == []


def test_m6_late_rows_of_csv_files_whose_types_differ_by_file(tmp_path: Path) -> None:
    """One file holds whole numbers only, the other does not: together they are what they are."""
    repository = Repository(tmp_path, "memory:")
    (tmp_path / "definitions" / "case.py").write_text(
        "from featurestore import Entity, FeatureView, FileSource\n"
        'v = FeatureView(name="v", entities=[Entity(name="e", join_keys=["k"])], features=["x"],\n'
        '    source=FileSource(name="s", path="csv/*.csv", event_timestamp="at_time"))\n',
        encoding="utf-8",
    )
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "a.csv").write_text("k,at_time,x\n1,2024-01-01T00:00:00Z,1.5\n", encoding="utf-8")
    (folder / "b.csv").write_text("k,at_time,x\n2,2024-01-01T00:00:00Z,2\n", encoding="utf-8")
    repository.store.apply()
    repository.store.materialize_incremental()
    (folder / "c.csv").write_text("k,at_time,x\n3,2023-01-01T00:00:00Z,3\n", encoding="utf-8")
    assert repository.store.materialize_incremental().rows_written == 1
    assert _online(repository.store, 1, 2, 3) == [1.5, 2.0, 3.0]


def test_a_created_timestamp_of_infinity_is_none_on_both_sides(tmp_path: Path) -> None:
    repository = Repository(tmp_path, "memory:")
    (tmp_path / "definitions" / "case.py").write_text(
        "from featurestore import Entity, FeatureView, FileSource\n"
        "query = \"SELECT 1 AS k, TIMESTAMPTZ '2024-01-01 00:00:00+00' AS happened, x,\"\n"
        "query += \" seen::TIMESTAMPTZ AS seen FROM (VALUES (1, 'infinity'),\"\n"
        "query += \" (2, '2024-01-02 00:00:00+00'), (3, '-infinity')) t(x, seen)\"\n"
        'v = FeatureView(name="v", entities=[Entity(name="e", join_keys=["k"])], features=["x"],\n'
        '    source=FileSource(name="s", query=query, event_timestamp="happened",\n'
        '                      created_timestamp="seen"))\n',
        encoding="utf-8",
    )
    repository.store.apply()
    repository.store.materialize_incremental()
    assert _online(repository.store, 1) == [2]
    asked = pa.table({"k": [1], "event_timestamp": [DAY + timedelta(days=9)]})
    for knowledge in ("healed", "known"):
        job = repository.store.get_historical_features(asked, ["v:x"], knowledge=knowledge)
        assert job.to_arrow()["x"].to_pylist() == [2]
