"""Rows of files as events: identity, version and deletion (law W1), and what is refused."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import Aggregate, Entity, FeatureView, FileSource
from featurestore.compile.plan import EVENT_COLUMNS, ViewPlan
from featurestore.errors import DefinitionError, SourceSchemaError
from tests.unit.world import INSTANT, NOON, World

CARD = Entity(name="card", join_keys=["card_id"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a folder with an engine."""
    return World(tmp_path)


def _view(**source: Any) -> FeatureView:
    arguments = {"name": "payments", "path": "payments.parquet", "event_timestamp": "at"} | source
    return FeatureView(
        name="spend",
        entities=[CARD],
        source=FileSource(**arguments),
        features=[
            Aggregate("sum", column="amount", windows=["1h", "1d"]),
            Aggregate("count", windows=["1h"]),
            Aggregate("max", column="amount", windows=["1h"], where="amount < 100"),
        ],
    )


def _payments(world: World, name: str = "payments.parquet", **columns: Any) -> None:
    amounts = columns.pop("amount", [5.0, 7.0])
    given = {
        "card_id": pa.array([1] * len(amounts), pa.int64()),
        "at": pa.array([NOON] * len(amounts), INSTANT),
        "amount": pa.array(amounts, pa.float64()),
    }
    world.write(name, **(given | columns))


def _log(world: World, view: FeatureView) -> pa.Table:
    plan = world.compile(view).views[view.name]
    return world.plan_rows(plan.log)


def _ids(table: pa.Table) -> list[str]:
    return table["_event_id"].to_pylist()


def test_the_log_of_a_view(world: World) -> None:
    """Its columns are the keys, both timestamps, the event's own and the inputs, each once."""
    _payments(world, id=["a", "b"], version=[3, 4], gone=[False, True])
    view = _view(event_id="id", version="version", deleted="gone")
    plan: ViewPlan = world.compile(view).views["spend"]
    assert [f.name for f in plan.features] == [
        "amount_sum_1h",
        "amount_sum_1d",
        "count_1h",
        "amount_max_1h",
    ]
    assert [f.dtype for f in plan.features] == ["float64", "float64", "int64", "float64"]
    assert len(plan.inputs) == 2
    rows = world.plan_rows(plan.log)
    assert rows.column_names == [
        "card_id",
        "event_timestamp",
        "created_timestamp",
        *EVENT_COLUMNS,
        "_input_0",
        "_input_1",
    ]
    assert _ids(rows) == ["a", "b"]
    assert rows["_version"].to_pylist() == [3, 4]
    assert rows["_deleted"].to_pylist() == [False, True]
    assert rows["_input_0"].to_pylist() == [5.0, 7.0]


def test_ids_that_are_numbers_keep_their_order(world: World) -> None:
    """Events of one instant are ordered by id, and 10 comes after 9."""
    _payments(world, id=pa.array([10, 9], pa.int32()), version=[1, 1])
    rows = _log(world, _view(event_id="id", version="version"))
    assert sorted(_ids(rows)) == _ids(rows)[::-1]


def test_equal_rows_of_a_file_are_two_events(world: World) -> None:
    """Nothing else tells them apart, and both happened."""
    _payments(world, amount=[5.0, 5.0, 7.0])
    ids = _ids(_log(world, _view()))
    assert len(set(ids)) == 3


def test_a_row_that_stands_in_two_files_is_one_event(world: World) -> None:
    """Files are exported anew and overlap; reading them apart or together gives the same ids."""
    _payments(world, "days/a.parquet", amount=[5.0, 7.0])
    alone = set(_ids(_log(world, _view(path="days/*.parquet"))))
    _payments(world, "days/b.parquet", amount=[7.0, 8.0])
    both = _ids(_log(world, _view(path="days/*.parquet")))
    assert len(both) == 4
    assert len(set(both)) == 3
    assert alone < set(both)


def test_the_order_of_rows_does_not_name_them(world: World) -> None:
    """A file that is sorted otherwise holds the same events."""
    _payments(world, amount=[5.0, 5.0, 7.0])
    before = set(_ids(_log(world, _view())))
    _payments(world, amount=[7.0, 5.0, 5.0])
    assert set(_ids(_log(world, _view()))) == before


def test_versions_follow_created_timestamps(world: World) -> None:
    """What was learnt later is the later version, to the microsecond."""
    learnt = [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(milliseconds=1), None]
    _payments(
        world,
        amount=[1.0, 2.0, 3.0, 4.0],
        id=["a"] * 4,
        learnt=pa.array(learnt, INSTANT),
    )
    rows = _log(world, _view(event_id="id", created_timestamp="learnt"))
    versions = dict(zip(rows["_input_0"].to_pylist(), rows["_version"].to_pylist(), strict=True))
    assert versions[4.0] < versions[1.0] < versions[2.0] < versions[3.0]


def test_versions_follow_the_rows_of_a_single_file(world: World) -> None:
    """The position in the source's log, where nothing else is declared."""
    _payments(world, amount=[9.0, 5.0, 2.0], id=["a", "b", "a"])
    rows = _log(world, _view(event_id="id"))
    versions = dict(zip(rows["_input_0"].to_pylist(), rows["_version"].to_pylist(), strict=True))
    assert versions[9.0] < versions[5.0] < versions[2.0]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"event_id": "ident"}, "no column 'ident'"),
        ({"event_id": "id", "version": "amount"}, "cannot be the version"),
        ({"event_id": "amount"}, "cannot be the event_id"),
        ({"event_id": "id", "deleted": "id"}, "cannot be the deleted"),
    ],
)
def test_columns_that_tell_nothing(world: World, source: dict[str, str], told: str) -> None:
    """Refused when the definitions are compiled."""
    _payments(world, id=["a", "b"])
    with pytest.raises(SourceSchemaError, match=told):
        world.compile(_view(**source))


def test_versions_of_many_files_need_an_order(world: World) -> None:
    """Which file is the later one cannot be told; a wrong guess would cost a value silently."""
    _payments(world, "days/a.parquet", id=["a", "b"])
    with pytest.raises(DefinitionError, match="versions of an event cannot be ordered"):
        world.compile(_view(path="days/*.parquet", event_id="id"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"function": "sums", "column": "amount"}, "Did you mean 'sum'"),
        ({"function": "sum"}, "sum needs a column"),
        ({"function": "sum", "column": "note"}, "sum"),
        ({"function": "sum", "column": "amont"}, "Did you mean 'amount'"),
        ({"function": "sum", "column": "amount", "hop": "7m"}, "does not divide"),
        ({"function": "top_k", "column": "amount"}, "k"),
        ({"function": "sum", "column": "amount", "default": "none"}, "does not fit"),
        ({"function": "sum", "column": "amount", "k": 3}, "k"),
        ({"function": "last_k", "column": "amount", "k": 3, "by": "note"}, "by"),
        ({"function": "sum", "column": "amount", "where": "amount +"}, "refused by the engine"),
        ({"function": "sum", "column": "sum(amount)", "name": "x"}, "refused by the engine"),
        ({"function": "sum", "column": "random()", "name": "x"}, "another value each time"),
    ],
)
def test_aggregates_that_make_no_sense(world: World, arguments: dict[str, Any], told: str) -> None:
    """Each is refused when compiled, by name."""
    _payments(world, note=["x", "y"])
    aggregate = Aggregate(**{"windows": ["1h"], **arguments})
    source = FileSource(name="payments", path="payments.parquet", event_timestamp="at")
    view = FeatureView(name="spend", entities=[CARD], source=source, features=[aggregate])
    with pytest.raises((DefinitionError, SourceSchemaError), match=told):
        world.compile(view)


def test_a_window_more_is_another_table_and_a_default_is_not(world: World) -> None:
    """Online states follow from the aggregates; what stands for null is put in when read."""
    _payments(world)
    source = FileSource(name="payments", path="payments.parquet", event_timestamp="at")

    def fingerprint(**arguments: Any) -> str:
        aggregate = Aggregate("sum", column="amount", name="s", **arguments)
        view = FeatureView(name="spend", entities=[CARD], source=source, features=[aggregate])
        return world.compile(view).views["spend"].table_fingerprint

    plain = fingerprint(windows=["1h"])
    assert fingerprint(windows=["1h"], default=0) == plain
    assert fingerprint(windows=["2h"]) != plain
