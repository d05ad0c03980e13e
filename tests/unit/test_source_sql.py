"""The rows that a view reads from its source: names, instants, types, on a real engine."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from featurestore.compile.source_sql import mapped_relation
from featurestore.compile.table_sql import quote
from featurestore.errors import DefinitionError, SourceSchemaError
from featurestore.model.columns import Field
from featurestore.model.declarations import Entity
from tests.unit.world import DRIVER, INSTANT, NOON, World, source, stats


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def naive(unit):
    return pa.timestamp(unit)


def test_rows_have_keys_both_timestamps_and_features_of_their_exact_types(world):
    world.drivers()
    view = stats(source=source(created_timestamp="learnt"), features=["trips", "rate"])
    rows = world.rows(view)
    assert rows.schema == pa.schema(
        [
            ("driver_id", pa.int64()),
            ("event_timestamp", INSTANT),
            ("created_timestamp", INSTANT),
            ("trips", pa.int32()),
            ("rate", pa.float64()),
        ]
    )
    assert [list(row.values()) for row in rows.to_pylist()] == [[1, NOON, NOON, 7, 0.5]]


def test_without_a_created_column_it_is_null(world):
    world.drivers()
    column = world.rows(stats())["created_timestamp"]
    assert (column.type, column.to_pylist()) == (INSTANT, [None])


def test_a_global_view_has_no_keys(world):
    world.drivers()
    assert world.rows(stats(entities=[])).column_names == [
        "event_timestamp",
        "created_timestamp",
        "rate",
    ]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_naive_timestamps_are_read_in_the_declared_zone(world, unit):
    local = datetime(2024, 7, 1, 12)  # noqa: DTZ001
    world.write("drivers.parquet", driver_id=[1], ts=pa.array([local], naive(unit)), rate=[1.0])
    rows = world.rows(stats(source=source(timezone="America/New_York")))
    assert rows["event_timestamp"].to_pylist() == [datetime(2024, 7, 1, 16, tzinfo=UTC)]


def test_wall_clock_times_at_changes_of_the_clock(world):
    zone = "America/New_York"
    local = [datetime(2024, 11, 3, 1, 30), datetime(2024, 3, 10, 2, 30)]  # noqa: DTZ001
    world.write(
        "drivers.parquet", driver_id=[1, 2], ts=pa.array(local, naive("us")), rate=[1.0, 1.0]
    )
    rows = world.rows(stats(source=source(timezone=zone)))
    # Twice there: the later one. Never there: as if the clocks were not put forward.
    later = local[0].replace(tzinfo=ZoneInfo(zone), fold=1)
    assert rows["event_timestamp"].to_pylist() == [
        later.astimezone(UTC),
        datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
    ]


def test_a_date_is_its_midnight_in_the_declared_zone_and_stays_a_date_elsewhere(world):
    world.write("drivers.parquet", driver_id=[1], ts=[date(2024, 1, 1)], rate=[1.0])
    zone = source(timezone="Asia/Tokyo", created_timestamp="ts")
    features = ["ts", Field(name="weekday", expression="isodow(ts)")]
    rows = world.rows(stats(source=zone, features=features))
    midnight = datetime(2023, 12, 31, 15, tzinfo=UTC)
    assert [list(row.values())[1:] for row in rows.to_pylist()] == [
        [midnight, midnight, date(2024, 1, 1), 1]
    ]


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_nanoseconds_are_cut_off_towards_the_past(world, zone):
    counts = [1_999, 1_000, 999, 0, -1, -1_000, -1_001, None]
    column = pa.array(counts, pa.timestamp("ns", tz=None if zone else "UTC"))
    world.write("drivers.parquet", driver_id=[*range(8)], ts=column, rate=[1.0] * 8)
    features = ["ts", Field(name="pair", expression="[ts, ts]")]
    rows = world.rows(stats(source=source(timezone=zone), features=features))
    micros = [1, 1, 0, 0, -1, -1, -2, None]
    assert rows["event_timestamp"].cast(pa.int64()).to_pylist() == micros
    assert rows["ts"].cast(pa.int64()).to_pylist() == micros
    assert rows["pair"].type == pa.list_(INSTANT)
    assert [pair[0] for pair in rows["pair"].to_pylist()] == rows["ts"].to_pylist()


def test_naive_features_become_instants_in_expressions_too(world):
    local = datetime(2024, 7, 1, 12)  # noqa: DTZ001
    world.write(
        "drivers.parquet",
        driver_id=[1],
        ts=[NOON],
        seen=pa.array([local], naive("us")),
        visits=pa.array([[local, None]], pa.list_(naive("us"))),
    )
    features = ["seen", "visits", Field(name="again", expression="seen"),
                Field(name="hour", expression="hour(timezone('Europe/Paris', seen))")]  # fmt: skip
    rows = world.rows(stats(source=source(timezone="Europe/Paris"), features=features))
    instant = datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert [list(row.values())[3:] for row in rows.to_pylist()] == [
        [instant, [instant, None], instant, 12]
    ]


def test_an_expression_that_makes_a_naive_timestamp_needs_the_zone(world):
    world.drivers()
    features = [Field(name="local", expression="timezone('Europe/Paris', ts)")]
    with pytest.raises(SourceSchemaError, match=r"'local' has a type that no feature") as caught:
        world.rows(stats(features=features))
    assert "timezone=" in str(caught.value.hint)
    rows = world.rows(stats(source=source(timezone="Europe/Paris"), features=features))
    assert rows["local"].to_pylist() == [NOON]


def test_instants_of_any_zone_are_the_same_instants(world):
    column = pa.array([NOON], pa.timestamp("ms", tz="Asia/Tokyo"))
    world.write("drivers.parquet", driver_id=[1], ts=column, rate=[1.0])
    assert world.rows(stats())["event_timestamp"].to_pylist() == [NOON]


def test_renamed_columns_are_known_by_their_new_names(world):
    world.write("drivers.parquet", id=[1], when=[NOON], first=[2.0], second=[3.0])
    mapped = source(
        event_timestamp="when",
        field_mapping={"id": "driver_id", "when": "at", "first": "second", "second": "first"},
    )
    features = ["first", Field(name="gap", expression="first - second"), "at"]
    rows = world.rows(stats(source=mapped, features=features, where="first > second"))
    assert [list(row.values()) for row in rows.to_pylist()] == [[1, NOON, None, 3.0, 1.0, NOON]]
    by_new_name = mapped.model_copy(update={"event_timestamp": "at"})
    assert world.rows(stats(source=by_new_name, features=features)).num_rows == 1


def test_names_that_need_quotes(world):
    world.write(
        "drivers.parquet", **{'dri"ver id': [1], "select": [NOON], "from": [2.0], "A b": ["x"]}
    )
    entity = Entity(name="driver", join_keys=["key"])
    mapped = source(event_timestamp="select", field_mapping={'dri"ver id': "key", "A b": "ab"})
    features = ["from", "ab", Field(name="order", expression='"from" + 1')]
    rows = world.rows(stats(entities=[entity], source=mapped, features=features))
    assert [list(row.values()) for row in rows.to_pylist()] == [[1, NOON, None, 2.0, "x", 3.0]]


def test_expressions_do_not_see_each_other_nor_where_the_features(world):
    world.write("drivers.parquet", driver_id=[1], ts=[NOON], a=[1], b=[10])
    swapped = [Field(name="a", expression="b"), Field(name="b", expression="a")]
    rows = world.rows(stats(features=swapped, where="a = 1"))
    assert [list(row.values())[3:] for row in rows.to_pylist()] == [[10, 1]]
    with pytest.raises(DefinitionError, match="'y' is refused") as caught:
        world.rows(
            stats(features=[Field(name="x", expression="a"), Field(name="y", expression="x")])
        )
    assert '"x" not found' in str(caught.value)


def test_comments_and_line_breaks_in_sql_do_no_harm(world):
    world.drivers()
    features = [Field(name="x", expression="\n    rate -- half\n    * 2 -- twice")]
    rows = world.rows(stats(features=features, where="true -- ) AND false"))
    assert rows["x"].to_pylist() == [1.0]


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        (pa.array([1, None], pa.int8()), None, pa.int32()),
        (pa.array([1, None], pa.uint16()), None, pa.int32()),
        (pa.array([2**32 - 1, None], pa.uint32()), None, pa.int64()),
        (pa.array([1, None], pa.int32()), "int64", pa.int64()),
        (pa.array([1, None], pa.int32()), "float64", pa.float64()),
        (pa.array([1.5, None], pa.float32()), "float64", pa.float64()),
        (pa.array(["x", None]).dictionary_encode(), None, pa.string()),
        (pa.array(["x", None], pa.large_string()), None, pa.string()),
        (pa.array([b"x", None]), None, pa.binary()),
        (pa.array([True, None]), None, pa.bool_()),
        (pa.array([[1], None], pa.list_(pa.int16())), None, pa.list_(pa.int32())),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32())), "vector<float32, 2>",
         pa.list_(pa.float32())),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)), None, pa.list_(pa.float32())),
        (pa.nulls(2), "date", pa.date32()),
    ],
)  # fmt: skip
def test_columns_get_their_value_type_without_loss(world, column, dtype, expected):
    world.write("drivers.parquet", driver_id=[1, 2], ts=[NOON, NOON], x=column)
    rows = world.rows(stats(features=[Field(name="x", dtype=dtype)]))
    assert rows["x"].type == expected
    assert rows["x"].to_pylist() == pa.chunked_array([column]).to_pylist()


def test_csv_cells_are_read_as_the_declared_numbers(world):
    (world.folder / "drivers.csv").write_text("driver_id,ts,rate\n1,2024-01-01 12:00:00Z,1\n")
    plan = world.compile(
        stats(source=source(path="drivers.csv"), features=[Field(name="rate", dtype="float64")])
    ).views["stats"]
    assert plan.source.kind == "csv"
    assert world.plan_rows(plan)["rate"].to_pylist() == [1.0]


@pytest.mark.parametrize("end", ["", ";", "  -- all of them", " ;\n "])
def test_a_query_is_a_source_whatever_it_ends_with(world, end):
    world.drivers()
    query = f"\n    SELECT driver_id, ts, rate * 2 AS rate\n    FROM 'drivers.parquet'{end}"
    view = stats(source=source(path=None, query=query))
    assert world.rows(view)["rate"].to_pylist() == [1.0]


def test_a_source_that_changed_since_apply_is_refused_and_not_misread(world):
    world.drivers()
    plan = world.compile(stats(features=["rate", "trips"])).views["stats"]
    world.write(
        "drivers.parquet", driver_id=[1], ts=[NOON], rate=["high"], trips=pa.array([1], pa.int16())
    )
    with pytest.raises(SourceSchemaError) as caught:
        world.plan_rows(plan)
    assert "'rate' is applied as float64" in str(caught.value)
    assert "FeatureView 'stats'" in str(caught.value.where)
    assert "apply" in str(caught.value.hint)
    world.write("drivers.parquet", driver_id=[1], ts=[NOON], trips=pa.array([1], pa.int16()))
    with pytest.raises(SourceSchemaError, match="has no column 'rate'"):
        world.plan_rows(plan)


def test_a_source_whose_columns_widen_without_loss_is_read_on(world):
    world.write("drivers.parquet", driver_id=[1], ts=[NOON], rate=[1.5])
    plan = world.compile(stats()).views["stats"]
    world.write(
        "drivers.parquet",
        driver_id=pa.array([1], pa.int16()),
        ts=pa.array([NOON], pa.timestamp("ns", tz="UTC")),
        rate=pa.array([1.5], pa.float32()),
    )
    assert world.plan_rows(plan)["rate"].to_pylist() == [1.5]


def test_rows_outside_of_the_condition_are_no_rows(world):
    world.write("drivers.parquet", driver_id=[1, 2, 3], ts=[NOON] * 3, rate=[1.0, None, 3.0])
    rows = world.rows(stats(where="rate < 2 OR rate IS NULL"))
    assert rows["driver_id"].to_pylist() == [1, 2]


def test_a_mapped_relation_is_the_relation_itself_when_nothing_is_renamed(world):
    plan = world.compile(stats_over(world)).views["stats"].source
    schema = pa.schema([("ts", INSTANT), ("rate", pa.float64())])
    assert mapped_relation(plan, "r", schema) == "r"
    renamed = plan.model_copy(update={"field_mapping": {"rate": 'ra"te'}})
    assert mapped_relation(renamed, "r", schema) == (
        '(SELECT "ts" AS "ts", "rate" AS "ra""te" FROM r)'
    )
    zoned = plan.model_copy(update={"timezone": "UTC"})
    local = pa.schema([("ts", naive("us"))])
    assert mapped_relation(zoned, "r", local) == '(SELECT timezone(\'UTC\', "ts") AS "ts" FROM r)'


def stats_over(world):
    world.drivers()
    return stats()


def test_join_keys_of_every_key_type_are_read(world):
    keys = {
        "a": pa.array([True]),
        "b": pa.array([2**40]),
        "c": ["x"],
        "d": [b"y"],
        "e": [date(2024, 1, 1)],
        "f": [NOON + timedelta(microseconds=1)],
    }
    world.write("drivers.parquet", ts=[NOON], rate=[1.0], **keys)
    rows = world.rows(stats(entities=[Entity(name="all", join_keys=list(keys))]))
    assert [f.type for f in rows.schema][:6] == [
        pa.bool_(), pa.int64(), pa.string(), pa.binary(), pa.date32(), INSTANT,
    ]  # fmt: skip
    assert DRIVER.join_keys[0] not in rows.column_names


def test_quoting_keeps_any_name_whole():
    assert quote('a"b') == '"a""b"'
