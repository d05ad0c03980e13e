"""The log of what was served: which answers and which bits; what does not fit, what fails."""

from __future__ import annotations

import random
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import structlog
from structlog.testing import capture_logs

from featurestore.adapters.delta import DeltaTables
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.errors import (
    ConflictError,
    NameClashError,
    RequestError,
    SettingsError,
    StorageError,
)
from featurestore.model.declarations import FeatureSelection
from featurestore.model.settings import ServingSettings
from featurestore.services.columns import InputRows
from featurestore.services.comparison import differing
from featurestore.services.served_log import ServedLog
from featurestore.services.served_log_reading import ServedReader
from featurestore.serving.metrics import families
from featurestore.serving.metrics.recorder import Metrics
from featurestore.serving.observers import observers_of
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.served_log import ServedLogObserver
from featurestore.testing.valkey import wait_until
from tests.served import (
    CODE,
    EVERY_TYPE,
    HOUR_US,
    NOW,
    NOW_US,
    PROJECT,
    Served,
    on_demand,
    publish,
    select,
    state,
    view,
)

INSTANT = datetime(1960, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
FULL = {
    "a_bool": False,
    "a_int32": -(2**31),
    "a_int64": 2**53 + 1,
    "a_float32": float("nan"),
    "a_float64": -0.0,
    "a_string": "größe\x00",
    "a_bytes": b"\x00\xff",
    "a_date": date(1959, 12, 31),
    "a_timestamp": INSTANT,
    "many_bools": [True, None, False],
    "many_ints": [1, None, -(2**63)],
    "many_floats": [-0.0, None, float("nan")],
    "many_strings": ["", None, "x"],
    "many_bytes": [b"", b"\x00"],
    "many_dates": [date(1900, 2, 28), None],
    "many_timestamps": [datetime(9999, 12, 31, tzinfo=UTC), None],
    "embedding": [1.0, -0.0, 3.5],
    "wide": [0.1, float("inf")],
    "by_string": {"": 0.5, "Z": None, "é": -0.0},
    "by_day": {date(1, 1, 1): None, date(1970, 1, 2): 7},
    "by_number": {-(2**63): b"", -1: None, 300: b"x"},
    "by_bytes": {b"": None, b"\x00": INSTANT},
    "by_bool": {False: "", True: None},
}
EMPTY = {n: {"list": [], "map": {}}.get(t.partition("<")[0]) for n, t in EVERY_TYPE.items()}
EVERY = view("every", {"k": "int64"}, EVERY_TYPE)
USERS = view("users", {"user": "int32"}, {"score": "float64", "name": "string"}, ttl_us=HOUR_US)
PLACES = view("places", {"city": "string"}, {"score": "float64"})
ALONE = view("alone", {}, {"rate": "float32"})
DOUBLED = on_demand(
    "doubled", [select("users", "score")], {"twice": "float64"}, {"amount": "float64"}
)
CHANGED = view("users", {"user": "int32"}, {"score": "int64"}, version="2")
SERVICES = {
    "every": [select("every", *EVERY_TYPE)],
    "mixed": [
        select("users", "score", "name"),
        select("users", "name", alias="friends", user="friend"),
        select("alone", "rate"),
        select("doubled", "twice"),
    ],
    "clashing": [select("users", "score")],
}
APPLIED = state([EVERY, USERS, PLACES, ALONE], [DOUBLED], SERVICES)


def twice(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(twice=pl.col("score") * 2 + pl.col("amount"))


class World:
    """A project in memory whose answers are logged to tables in a folder.

    Args:
        folder: Where.
        kind: The tables.
        settings: Settings of serving beside those that log everything at once.
    """

    def __init__(self, folder: Path, kind=MemoryTables, draw=None, **settings) -> None:
        self.served = Served(APPLIED, {"doubled": (twice, CODE)})
        self.served.push(
            EVERY,
            ((1,), NOW_US, tuple(FULL.values())),
            ((2,), NOW_US - 5, (None,) * len(EVERY_TYPE)),
            ((3,), NOW_US - 6, tuple(EMPTY.values())),
        )
        self.served.push(
            USERS,
            ((1,), NOW_US - 1, (0.5, "a")),
            ((2,), NOW_US - 2, (None, "b")),
            ((3,), NOW_US - HOUR_US - 1, (-0.0, None)),
        )
        self.served.push(PLACES, (("x",), NOW_US - 1, (1.0,)))
        self.served.push(ALONE, ((), NOW_US - 1, (0.25,)))
        self.tables = kind(folder, self.served.clock) if kind is DeltaTables else kind(folder)
        self.log = ServedLog(
            PROJECT, self.tables, self.served.clock, target_file_size=10**8, retention_days=30.0
        )
        self.reader = ServedReader(PROJECT, self.tables)
        given = {"served_log_sample": 1.0, "served_log_seconds": 0.05} | settings
        self.observer = ServedLogObserver(
            self.log,
            self.served.state.get,
            ServingSettings(**given),
            self.served.clock,
            structlog.get_logger(),
            draw=draw,
        )

    def ask(self, features, rows, request=None, request_id="r", **more):
        """Look up and tell the observer, as a server does."""
        given = InputRows.of(rows)
        fields = None if request is None else InputRows.of_request(request, given.rows)
        answer = self.served.read(features, given, request=fields, **more)
        asked = ReadRequest(
            features, given, fields, None, more.get("full_feature_names", False), {}
        )
        call = Call("GetOnlineFeatures", [("x-request-id", request_id)])
        self.observer.answered(call, asked, answer)
        return answer

    def job(self, features, **options):
        options = {"full_feature_names": False, "include_metadata": False} | options
        start, end = options.pop("start", None), options.pop("end", None)
        return self.reader.job(features, start, end, **options)


@pytest.fixture(params=[MemoryTables, DeltaTables], ids=["memory", "delta"])
def world(request, tmp_path):
    made = World(tmp_path, request.param)
    yield made
    made.observer.close()


def same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    """Whether two columns hold the same bits."""
    return not differing(left.combine_chunks(), right.combine_chunks()).any()


def test_l1_every_type_comes_back_bit_for_bit(world):
    answers = [world.ask("every", {"k": keys}) for keys in ([1], [2], [3, 9, 1, 1], [9], [3])]
    answers.append(world.ask("every", {"k": list(range(20))}))
    world.observer.close()
    found = world.job("every").to_arrow()
    expected = pa.concat_tables([answer.to_arrow() for answer in answers])
    assert found.column_names == ["k", "as_of", *EVERY_TYPE]
    for name in expected.column_names:
        assert found.schema.field(name).type == expected.schema.field(name).type
        assert same(found[name], expected[name]), name
    assert found["as_of"].to_pylist() == [NOW] * 28
    batches = list(world.job("every").to_batches(3))
    assert max(batch.num_rows for batch in batches) <= 3
    assert pa.Table.from_batches(batches).num_rows == 28


def test_l1_a_row_says_all_that_is_needed_to_compute_it_again(world):
    rows = {"user": [1, 2, 3, 4, None], "friend": [2, 1, None, 9, 3]}
    answer = world.ask("mixed", rows, {"amount": 1.5}, "one", full_feature_names=True)
    world.observer.close()
    found = world.job("mixed", full_feature_names=True, include_metadata=True).to_arrow()
    for name in answer.feature_names:
        assert same(found[name], answer.to_arrow()[name]), name
    assert found["user"].to_pylist() == rows["user"]
    assert found["friend"].to_pylist() == rows["friend"]
    assert found["amount"].to_pylist() == [1.5] * 5
    assert found["users__status"].to_pylist() == [
        *("PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NOT_FOUND")
    ]
    us = timedelta(microseconds=1)
    stamps = [NOW - us, NOW - 2 * us, NOW - timedelta(hours=1) - us, None, None]
    assert found["users__event_timestamp"].to_pylist() == stamps
    assert found["request_id"].to_pylist() == ["one"] * 5
    assert found["request_row"].to_pylist() == [0, 1, 2, 3, 4]
    assert found["served_at"].to_pylist() == [NOW] * 5
    (table,) = world.reader.find("mixed", None, None)
    (batch,) = table.batches()
    assert batch["fingerprints"].to_pylist()[0] == {
        "users": USERS.fingerprint,
        "friends": USERS.fingerprint,
        "alone": ALONE.fingerprint,
        "doubled": DOUBLED.fingerprint,
    }
    assert set(batch["_front"].to_pylist()) == {"grpc"}


def test_references_and_views_without_entities_are_logged_too(world):
    world.ask(["alone:rate"], [{}])
    aliased = FeatureSelection(
        view="users", features=("name",), alias_name="friends", join_keys={"user": "friend"}
    )
    world.ask([aliased, "alone"], {"friend": [1]})
    world.ask(["users:score", "users:name"], {"user": [1]})
    world.observer.close()
    assert world.job(["alone:rate"]).to_arrow().to_pylist() == [{"as_of": NOW, "rate": 0.25}]
    assert world.job([aliased, "alone"]).to_polars()["name"].to_list() == ["a"]
    assert world.job(["users"]).to_pandas()["score"].tolist() == [0.5]
    with pytest.raises(RequestError, match="Nothing was logged"):
        world.job(["users:score"])
    with pytest.raises(RequestError, match="Nothing was logged"):
        world.job("every")


def test_l1_whole_answers_are_drawn(tmp_path):
    chance = random.Random(5)  # noqa: S311
    world = World(tmp_path, draw=chance.random, served_log_sample=0.25)
    for number in range(400):
        world.ask("every", {"k": [1, 2, 3]}, request_id=str(number))
    world.observer.close()
    drawn = world.job("every", include_metadata=True).to_polars()["request_id"].to_list()
    chance = random.Random(5)  # noqa: S311
    expected = [str(number) for number in range(400) if chance.random() < 0.25]
    assert drawn == [number for number in expected for _ in range(3)]
    assert 60 < len(expected) < 140


def test_what_became_of_rows_is_counted_in_the_metrics(tmp_path):
    world = World(tmp_path)
    settings = ServingSettings(served_log_sample=1.0, metrics_address="127.0.0.1:0")
    clock, log = world.served.clock, structlog.get_logger()
    made = observers_of(
        settings, tmp_path, world.served.reader, clock, log, served_log=lambda: world.log
    )
    world.observer.close()
    world.observer = made[0]
    metrics = next(each for each in made if isinstance(each, Metrics))
    world.ask("every", {"k": [1, 2, 3]})
    world.observer.close()
    place = metrics._board.place(families.SERVED_LOG, "logged")
    assert metrics._board.values[place] == 3
    for observer in made[1:]:
        observer.close()


def test_nothing_is_drawn_at_zero_and_all_at_one(tmp_path):
    for rate, rows in ((0.0, 0), (1.0, 50)):
        world = World(tmp_path, served_log_sample=rate)
        for _ in range(50):
            world.ask("every", {"k": [1]})
        world.observer.close()
        assert world.observer.counts == (rows, 0, 0)


class Held(MemoryTables):
    """Tables whose commits wait until they are let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.free = threading.Event()
        self.waiting = threading.Event()

    def commit(self, *arguments, **options):
        self.waiting.set()
        assert self.free.wait(20)
        return super().commit(*arguments, **options)


def test_l2_what_does_not_fit_is_dropped_counted_and_told_once(tmp_path):
    with capture_logs() as logs:
        world = World(tmp_path, Held, served_log_rows=10)
        world.ask("every", {"k": [1]})
        assert world.tables.waiting.wait(20)
        for _ in range(5):
            world.ask("every", {"k": [1, 2, 3]})  # 1 + 9 rows are held, 6 do not fit
        assert world.observer.counts == (0, 6, 0)
        world.tables.free.set()
        wait_until(lambda: world.observer.counts.logged == 10, what="the queue to be written")
        world.ask("every", {"k": [1] * 10})
        world.observer.close()
    assert world.observer.counts == (20, 6, 0)
    assert world.job("every").to_arrow().num_rows == 20
    told = [line for line in logs if line["event"] == "served log behind"]
    assert sum(line["dropped"] for line in told) == 6
    assert len(told) == 1


class Failing(MemoryTables):
    """Tables that cannot be written, until they can."""

    broken = True

    def commit(self, *arguments, **options):
        if self.broken:
            raise StorageError("The disk is full.")
        return super().commit(*arguments, **options)


def test_l2_what_cannot_be_written_is_tried_again_and_lookups_go_on(tmp_path):
    with capture_logs() as logs:
        world = World(tmp_path, Failing, served_log_rows=100)
        for _ in range(30):
            world.ask("every", {"k": [1, 2]})
        wait_until(lambda: any("disk" in str(line.get("error")) for line in logs), what="the error")
        assert world.observer.counts.logged == 0
        # There is one for a moment whenever it is tried again.
        wait_until(lambda: not list(tmp_path.rglob("*.parquet")), what="the files to be gone")
        world.tables.broken = False
        wait_until(lambda: world.observer.counts.logged == 60, what="the next try")
    world.observer.close()
    assert world.job("every").to_arrow().num_rows == 60
    assert world.observer.counts == (60, 0, 0)


def test_what_is_never_written_is_told_at_the_end(tmp_path):
    world = World(tmp_path, Failing)
    world.ask("every", {"k": [1, 2]})
    with capture_logs() as logs:
        world.observer.close()
        world.ask("every", {"k": [1]})
    assert world.observer.counts == (0, 1, 2)
    assert [line["failed"] for line in logs if line["event"] == "served log behind"][-1] == 2


def test_what_nobody_foresaw_is_given_up_and_the_log_goes_on(tmp_path, monkeypatch):
    with capture_logs() as logs:
        world = World(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(world.log, "convert", lambda _: 1 / 0)
            world.ask("every", {"k": [1, 2]})
            wait_until(lambda: world.observer.counts.failed == 2, what="the failure")
        world.ask("every", {"k": [3]})
        world.observer.close()
    assert world.observer.counts == (1, 0, 2)
    assert any(line["event"] == "the served log failed" for line in logs)


def test_l3_another_definition_has_a_table_of_its_own(world):
    world.ask(["users"], {"user": [1]})
    wait_until(lambda: world.observer.counts.logged == 1, what="the first row")
    changed = view("users", {"user": "int32"}, {"score": "float64", "age": "int64"}, version="2")
    publish(world.served.registry, state([changed]))
    world.served.state.invalidate()
    world.served.push(changed, ((1,), NOW_US, (7.0, 40)))
    world.ask(["users"], {"user": [1]})
    world.observer.close()
    found = world.job(["users:score", "users:age"]).to_arrow()
    assert found.to_pylist() == [{"user": 1, "as_of": NOW, "score": 7.0, "age": 40}]
    both = world.job(["users"]).to_arrow()
    assert both.column_names == ["user", "as_of", "score", "age", "name"]
    assert both.select(["score", "age", "name"]).to_pylist() == [
        {"score": 0.5, "age": None, "name": "a"},
        {"score": 7.0, "age": 40, "name": None},
    ]


def test_definitions_that_change_while_an_answer_is_given_are_told_from_the_new_ones(tmp_path):
    world = World(tmp_path)
    before = world.served.state.get()
    world.ask(["users"], {"user": [1]})
    given = InputRows.of({"user": [1]})
    late = world.served.read(["users:score"], given)
    publish(world.served.registry, state([CHANGED]))
    world.served.state.invalidate()
    assert world.served.state.get() is not before
    asked = ReadRequest(["users:score"], given, None, None, full_feature_names=False, sent={})
    world.observer.answered(Call("GetOnlineFeatures", ()), asked, late)
    world.observer.close()
    assert world.observer.counts == (2, 0, 0)
    assert world.job(["users:score"]).to_arrow()["score"].to_pylist() == [0.5]


def test_definitions_that_nobody_has_seen_are_counted(tmp_path):
    world = World(tmp_path)
    given = InputRows.of({"user": [1]})
    late = world.served.read(["users:score"], given)
    publish(world.served.registry, state([CHANGED]))
    world.served.state.invalidate()
    asked = ReadRequest(["users:score"], given, None, None, full_feature_names=False, sent={})
    with capture_logs() as logs:
        world.observer.answered(Call("GetOnlineFeatures", ()), asked, late)
        world.observer.close()
    assert world.observer.counts == (0, 0, 1)
    assert any("definitions changed" in str(line.get("error")) for line in logs)


def test_columns_of_one_name_are_refused(world):
    world.ask(
        ["users:score", "places:score"], {"user": [1], "city": ["x"]}, full_feature_names=True
    )
    world.observer.close()
    asked = ["users:score", "places:score"]
    with pytest.raises(NameClashError, match="score"):
        world.job(asked)
    assert world.job(asked, full_feature_names=True).to_arrow()["places__score"].to_pylist() == [
        1.0
    ]


def test_a_column_that_changed_its_type_is_refused(world):
    for number, kind in enumerate(["float64", "int64"]):
        plan = view("users", {"user": "int32"}, {"score": kind}, version=str(number))
        publish(world.served.registry, state([plan]))
        world.served.state.invalidate()
        world.ask(["users:score"], {"user": [1]})
        wait_until(lambda: world.observer.counts.logged > number, what="the row")  # noqa: B023
    with pytest.raises(RequestError, match="changed its type"):
        world.job(["users:score"])


def test_a_span_is_half_open_and_files_outside_of_it_are_not_read(world):
    for hour in range(5):
        world.ask("every", {"k": [hour]})
        wait_until(lambda: world.observer.counts.logged > hour, what="the row")  # noqa: B023
        world.served.clock.advance(HOUR_US)
    world.observer.close()
    span = {"start": NOW + timedelta(hours=1), "end": NOW + timedelta(hours=3)}
    assert world.job("every", **span).to_arrow()["k"].to_pylist() == [1, 2]
    (table,) = world.reader.find("every", span["start"], span["end"])
    assert len(table.files) == 2


def test_l3_small_files_are_merged_and_old_rows_forgotten(world):
    world.observer.close()
    shapes = []
    for number in range(20):
        rows = InputRows.of({"k": [number]})
        served = _served(world, rows)
        ((shape, made),), *_ = world.log.convert([served])
        world.log.append(shape, made)
        shapes.append(shape)
        world.log.tidy([shape])
    (table,) = world.reader.find("every", None, None)
    assert len(table.files) < 8
    assert sorted(world.job("every").to_arrow()["k"].to_pylist()) == list(range(20))
    world.served.clock.advance(31 * 24 * HOUR_US)
    ((shape, made),), *_ = world.log.convert([_served(world, InputRows.of({"k": [99]}))])
    world.log.append(shape, made)
    world.log.tidy([])
    assert world.job("every").to_arrow()["k"].to_pylist() == [99]
    assert {s.id for s in shapes} == {shape.id}


def test_rows_of_two_days_are_in_two_partitions(world):
    world.observer.close()
    served = [_served(world, InputRows.of({"k": [1]}))]
    world.served.clock.advance(13 * HOUR_US)
    served.append(_served(world, InputRows.of({"k": [2]})))
    ((shape, made),), *_ = world.log.convert(served)
    world.log.append(shape, made)
    (table,) = world.reader.find("every", None, None)
    assert [file.period for file in table.files] == ["2024-06-01", "2024-06-02"]
    assert world.job("every").to_arrow()["k"].to_pylist() == [1, 2]


class Slow(MemoryTables):
    """Tables to which somebody else always commits first, so many times."""

    others = 3

    def commit(self, table_id, *arguments, **options):
        if self.others:
            self.others -= 1
            raise ConflictError("Another run committed to the table first.")
        return super().commit(table_id, *arguments, **options)


def test_l3_whoever_finds_another_one_first_commits_again(tmp_path):
    world = World(tmp_path, Slow)
    world.ask("every", {"k": [1, 2]})
    world.observer.close()
    assert world.observer.counts == (2, 0, 0)
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_a_table_that_was_made_and_never_filled_harms_nothing(tmp_path):
    world = World(tmp_path, DeltaTables)
    world.observer.close()
    ((shape, made),), *_ = world.log.convert([_served(world, InputRows.of({"k": [1]}))])
    # A process that was killed between making the table and committing to it.
    DeltaTables._create(world.tables.folder(f"{PROJECT}/_served/every/{shape.id}"), shape.schema)
    with pytest.raises(RequestError, match="Nothing was logged"):
        world.job("every")
    world.log.tidy([shape])
    world.log.append(shape, made)
    assert world.job("every").to_arrow().num_rows == 1


class Stumbling(MemoryTables):
    """Tables whose commit is made, and then fails."""

    def commit(self, *arguments, **options):
        super().commit(*arguments, **options)
        raise StorageError("The checkpoint cannot be written.")


def test_a_commit_that_fails_after_it_was_made_is_not_made_twice(tmp_path):
    world = World(tmp_path, Stumbling)
    world.ask("every", {"k": [1, 2]})
    world.observer.close()
    assert world.observer.counts == (2, 0, 0)
    assert world.job("every").to_arrow().num_rows == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("served_log_sample", 1.5),
        ("served_log_sample", -0.1),
        ("served_log_rows", 0),
        ("served_log_seconds", 0.0),
        ("served_log_retention_days", -1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, name, value):
    with pytest.raises(SettingsError, match=name):
        World(tmp_path, **{name: value})


def test_an_answer_that_is_logged_is_handed_over_as_it_is(tmp_path, monkeypatch):
    """Nothing is converted on the thread that answers."""
    world = World(tmp_path, served_log_seconds=1000.0)
    answer = world.served.read("every", given := InputRows.of({"k": [1, 2, 3]}))
    converted = []
    for block in answer.blocks:
        monkeypatch.setattr(block, "array", converted.append, raising=False)
        monkeypatch.setattr(block, "plains", converted.append, raising=False)
    asked = ReadRequest("every", given, None, None, full_feature_names=False, sent={})
    world.observer.answered(Call("GetOnlineFeatures", ()), asked, answer)
    assert converted == []
    monkeypatch.undo()
    world.observer.close()
    assert world.observer.counts == (3, 0, 0)


def test_positions_of_streams_are_kept_by_partition():
    from featurestore.services.served_log_columns import _applied
    from featurestore.services.served_log_rows import LoggedBlock, _positions

    def block(**held):
        return LoggedBlock([], b"", b"", {n: np.array(p, "<i8").tobytes() for n, p in held.items()})

    blocks = [block(a=[1, -1], b=[-1, 5]), block(), block(b=[7])]
    found = _applied(blocks, np.array([2, 1, 1]))
    rows = [[("a", 1)], [("b", 5)], [], [("b", 7)]]
    assert found.to_pylist() == rows
    back = {name: np.frombuffer(held, "<i8").tolist() for name, held in _positions(found).items()}
    assert back == {"a": [1, -1, -1, -1], "b": [-1, 5, -1, 7]}
    part = _positions(found.slice(1, 3))
    assert {n: np.frombuffer(held, "<i8").tolist() for n, held in part.items()} == {"b": [5, -1, 7]}


def _served(world, rows):
    from featurestore.services.served_log import Served as Entry

    answer = world.served.read("every", rows)
    now = world.served.clock.now_us()
    return Entry(answer, "every", rows, None, "r", "grpc", world.served.state.get(), 0.0, now)
