"""Declarations are compiled to plans, or refused with the place and the next step."""

from __future__ import annotations

from datetime import date, timedelta

import pyarrow as pa
import pytest

from featurestore.compile.catalog import source_plan
from featurestore.compile.declared import Declarations, Declared
from featurestore.compile.plan import Catalog, Selection
from featurestore.errors import (
    CyclicReferenceError,
    DefinitionError,
    DuplicateNameError,
    FeatureStoreError,
    SourceNotFoundError,
    SourceSchemaError,
    UnknownReferenceError,
)
from featurestore.model.columns import Field
from featurestore.model.declarations import (
    Entity,
    FeatureService,
    FeatureView,
    on_demand_feature_view,
)
from featurestore.model.sources import RequestSource
from tests.unit.world import DRIVER, NOON, World, source, stats

FLOAT = [Field(name="made", dtype="float64")]
REQUEST = RequestSource(name="request", fields=[Field(name="distance", dtype="float64")])


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.drivers()
    return world


def refused(world, declarations, kind, *words):
    """Compile declarations as if each stood in a line of its own, and return the error."""
    items = tuple(Declared(d, f"definitions/d.py:{i}") for i, d in enumerate(declarations, 1))
    with pytest.raises(kind) as caught:
        world.compile_all(Declarations(items))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert type(caught.value) is kind
    return caught.value


def made(sources, name="made_view", features=FLOAT):
    def compute(inputs):
        return inputs

    return on_demand_feature_view(sources=sources, features=features, name=name)(compute)


def test_a_view_is_compiled_with_types_and_fingerprints(world):
    view = stats(
        source=source(created_timestamp="learnt"),
        features=["rate", Field(name="half", expression=" rate / 2 ", description="Half of it.")],
        where="rate > 0",
        ttl=timedelta(days=1, microseconds=1),
        online=False,
        schedule="*/5 * * * *",
        description="Rates.",
        owner="ops",
        tags={"tier": "1"},
    )
    catalog = world.compile(view)
    plan = catalog.views["stats"]
    assert [(c.name, c.dtype) for c in plan.join_keys] == [("driver_id", "int64")]
    assert [(f.name, f.dtype, f.expression, f.description) for f in plan.features] == [
        ("rate", "float64", None, ""),
        ("half", "float64", "rate / 2", "Half of it."),
    ]
    assert (plan.ttl_us, plan.where, plan.online) == (86_400_000_001, "rate > 0", False)
    assert (plan.schedule, plan.description, plan.owner) == ("*/5 * * * *", "Rates.", "ops")
    assert (plan.entities, plan.tags) == (("driver",), {"tier": "1"})
    assert (plan.source.kind, plan.source.created_timestamp) == ("parquet", "learnt")
    assert len(plan.fingerprint) == len(plan.table_fingerprint) == 16
    assert plan.row_schema.fingerprint == bytes.fromhex(plan.table_fingerprint)[:4]
    assert catalog.entities["driver"].join_keys == plan.join_keys
    assert Catalog.model_validate_json(catalog.model_dump_json()) == catalog


def test_compiling_again_gives_the_same(world):
    assert world.compile(stats()) == world.compile(stats())


def test_what_is_referred_to_is_found_without_being_declared_itself(world):
    service = FeatureService(name="all", features=[made([stats(), REQUEST])])
    catalog = world.compile(service)
    assert [*catalog.entities, *catalog.views, *catalog.on_demand, *catalog.services] == [
        "driver",
        "stats",
        "made_view",
        "all",
    ]


@pytest.mark.parametrize(
    ("path", "declared", "found", "expected"),
    [
        ("a.parquet", None, "parquet", "parquet"),
        ("a.csv", None, "csv", "csv"),
        ("a.csv", "parquet", "csv", "parquet"),
        ("folder", None, "delta", "delta"),
        ("folder", "delta", "parquet", "delta"),
        (None, None, "csv", "query"),
    ],
)
def test_the_kind_of_a_source_is_declared_or_told_from_the_path(path, declared, found, expected):
    query = None if path else "SELECT 1"
    plan = source_plan(source(path=path, query=query, format=declared), lambda _: found)
    assert (plan.kind, plan.path, plan.query) == (expected, path, query)


# --- columns and types -------------------------------------------------------------------------


def test_a_column_that_the_source_lacks(world):
    error = refused(
        world,
        [stats(features=["rat"])],
        SourceSchemaError,
        "has no column 'rat', declared as a feature",
    )
    assert error.where == "FeatureView 'stats', definitions/d.py:1"
    assert error.hint == "Did you mean 'rate'?"
    assert "driver_id, learnt, note, rate, trips, ts" in error.allowed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"event_timestamp": "tss"}, ["no column 'tss', declared as its event_timestamp", "'ts'"]),
        ({"created_timestamp": "learned"}, ["its created_timestamp", "'learnt'"]),
        ({"field_mapping": {"rte": "x"}}, ["no column 'rte', renamed by field_mapping=", "'rate'"]),
        ({"field_mapping": {"note": "rate"}}, ["gives two columns the name 'rate'"]),
        ({"field_mapping": {"note": "Rate"}}, ["gives two columns the name", "case"]),
        ({"field_mapping": {"rate": "speed"}}, ["no column 'rate'", "calls it 'speed'"]),
    ],
)
def test_a_source_whose_columns_are_not_as_declared(world, change, words):
    refused(world, [stats(source=source(**change))], SourceSchemaError, *words)


def test_a_join_key_that_the_source_lacks(world):
    entity = Entity(name="car", join_keys=["drivr_id"])
    error = refused(world, [stats(entities=[entity])], SourceSchemaError, "declared as a join key")
    assert error.hint == "Did you mean 'driver_id'?"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            Field(name="rate", dtype="float32"),
            [
                "'rate' is declared as float32",
                "holds float64",
                "CAST(rate AS FLOAT)",
                "dtype='float64'",
            ],
        ),
        (Field(name="trips", dtype="float32"), ["holds int32", "CAST(trips AS FLOAT)"]),
        (Field(name="note", dtype="int64"), ["'note' is declared as int64", "holds string"]),
        (Field(name="trips", dtype="string"), ["holds int32", "got: int32 (int16)"]),
        (
            Field(name="price", expression="CAST(rate AS DECIMAL(9, 2))"),
            [
                "'price' has a type that no feature can have",
                "decimal128(9, 2)",
                "CAST(x AS DOUBLE)",
            ],
        ),
        (
            Field(name="price", dtype="float64", expression="CAST(rate AS DECIMAL(9, 2))"),
            ["holds decimal128(9, 2)", "CAST(price AS DOUBLE)"],
        ),
        (Field(name="nothing", expression="NULL"), ["'nothing' cannot be told", "dtype="]),
        (Field(name="nothing", expression="[]"), ["'nothing' cannot be told", "dtype="]),
    ],
)
def test_a_type_that_does_not_fit(world, field, words):
    error = refused(world, [stats(features=[field])], SourceSchemaError, *words)
    assert error.where == "FeatureView 'stats', definitions/d.py:1"


def test_an_all_null_column_takes_the_declared_type(world):
    fields = [Field(name="a", dtype="int64", expression="NULL"),
              Field(name="b", dtype="list<string>", expression="[]")]  # fmt: skip
    plan = world.compile(stats(features=fields)).views["stats"]
    assert [f.dtype for f in plan.features] == ["int64", "list<string>"]


def test_naive_timestamps_are_refused_and_the_zone_is_asked_for(world):
    local = pa.array([NOON.replace(tzinfo=None)], pa.timestamp("us"))
    world.write("local.parquet", driver_id=[1], ts=local, day=[date(2024, 1, 1)], rate=[1.0])
    for column in ("ts", "day"):
        view = stats(source=source(path="local.parquet", event_timestamp=column))
        error = refused(
            world,
            [view],
            SourceSchemaError,
            "event_timestamp",
            "has no time zone",
            "timezone='UTC'",
        )
        assert error.where == "FeatureView 'stats', definitions/d.py:1"
    features = ["ts", Field(name="t2", dtype="timestamp", expression="ts")]
    text = "SELECT *, TIMESTAMPTZ '2024-01-01 00:00:00Z' AS at FROM 'local.parquet'"
    query = source(path=None, query=text, event_timestamp="at")
    for feature in features:
        refused(world, [stats(source=query, features=[feature])], SourceSchemaError, "timezone=")


@pytest.mark.parametrize("column", ["rate", "note", "trips"])
def test_an_event_timestamp_that_is_no_timestamp(world, column):
    refused(
        world,
        [stats(source=source(event_timestamp=column))],
        SourceSchemaError,
        "The event_timestamp of FileSource 'drivers' is no timestamp",
        "query=",
    )


def test_a_key_of_a_type_that_identifies_nothing(world):
    entity = Entity(name="odd", join_keys=["rate"])
    view = stats(entities=[entity], features=["trips"])
    refused(
        world, [view], SourceSchemaError, "join key 'rate'", "got: float64", "CAST(rate AS BIGINT)"
    )


def test_a_key_without_values_has_no_type(world):
    world.write("drivers.parquet", driver_id=pa.nulls(1), ts=[NOON], rate=[1.0])
    query = source(path=None, query="SELECT NULL AS driver_id, ts, rate FROM 'drivers.parquet'")
    refused(
        world,
        [stats(source=query)],
        SourceSchemaError,
        "join key 'driver_id' cannot be told",
        "query=",
    )


def test_an_entity_has_one_type_in_all_views(world):
    world.write("other.parquet", driver_id=["1"], ts=[NOON], rate=[1.0])
    other = stats(name="other", source=source(name="other", path="other.parquet"))
    error = refused(
        world, [stats(), other], DefinitionError, "join key 'driver_id' of Entity 'driver'"
    )
    assert error.where == (
        "FeatureView 'stats', definitions/d.py:1; FeatureView 'other', definitions/d.py:2"
    )
    assert error.got == "int64 in 'stats', string in 'other'"


def test_widths_of_integer_keys_do_not_matter(world):
    world.write("other.parquet", driver_id=pa.array([1], pa.int64()), ts=[NOON], rate=[1.0])
    other = stats(name="other", source=source(name="other", path="other.parquet"))
    catalog = world.compile(stats(), other)
    assert catalog.views["stats"].table_fingerprint != catalog.views["other"].table_fingerprint
    assert catalog.entities["driver"].join_keys[0].dtype == "int64"


# --- SQL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("rte * 2", ["The expression of 'x' is refused", '"rte" not found', "rate"]),
        ("rate *", ["is refused", "syntax error"]),
        ("upper(rate, 1)", ["is refused", "upper"]),
        ("sum(rate)", ["it may look at one row only, so no aggregates"]),
        ("sum(rate) OVER ()", ["it may look at one row only, so no window functions"]),
        ("unnest([1, 2])", ["UNNEST"]),
        ("random()", ["another value each time", "got: random in: random()"]),
        ("rate + epoch(now())", ["another value each time", "on-demand view"]),
        ("ts - CURRENT_TIMESTAMP", ["another value each time"]),
    ],
)
def test_an_expression_that_does_not_work(world, expression, words):
    view = stats(features=["rate", Field(name="x", expression=expression)])
    error = refused(world, [view], DefinitionError, *words)
    assert error.where == "FeatureView 'stats', definitions/d.py:1"
    assert "read_parquet" not in str(error)  # only the user's own SQL


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("rte > 1", ["The condition where= is refused", '"rte" not found']),
        ("rate", ["The condition where= is neither true nor false", "double: rate"]),
        ("row_number() OVER () = 1", ["so no window functions"]),
        ("random() < 0.5", ["The condition where= gives another value each time"]),
    ],
)
def test_a_condition_that_does_not_work(world, where, words):
    refused(world, [stats(where=where)], DefinitionError, *words)


def test_words_in_texts_names_and_comments_are_no_calls(world):
    expression = "note || 'now()' || \"note\" /* random() */ -- today()"
    world.compile(stats(features=[Field(name="x", expression=expression)]))


def test_a_query_that_does_not_work(world):
    view = stats(source=source(path=None, query="SELECT nope FROM 'drivers.parquet'"))
    error = refused(
        world,
        [view, view.source],
        DefinitionError,
        "refuses the query of FileSource 'drivers'",
        "nope",
    )
    assert error.where == "FileSource 'drivers', definitions/d.py:2"


def test_a_source_without_files_names_path_and_declaration(world):
    view = stats(source=source(path="drivrs.parquet"))
    error = refused(
        world, [view, view.source], SourceNotFoundError, "has no files", "drivers.parquet"
    )
    assert str(world.folder / "drivrs.parquet") in error.where
    assert "FileSource 'drivers', definitions/d.py:2" in error.where


# --- names -------------------------------------------------------------------------------------


def test_two_views_of_one_name(world):
    error = refused(
        world,
        [stats(), stats(features=["trips"])],
        DuplicateNameError,
        "Two declarations are called 'stats'",
    )
    assert error.where == (
        "FeatureView 'stats', definitions/d.py:1; FeatureView 'stats', definitions/d.py:2"
    )


def test_the_same_view_made_twice(world):
    error = refused(world, [stats(), stats()], DuplicateNameError)
    assert "import it" in error.hint


def test_names_that_differ_in_case_only(world):
    refused(
        world,
        [stats(), stats(name="Stats")],
        DuplicateNameError,
        "'stats' and 'Stats' differ in case",
    )


def test_a_view_and_an_on_demand_view_of_one_name(world):
    refused(
        world, [stats(), made([stats()], name="stats")], DuplicateNameError, "share their names"
    )


def test_two_services_of_one_name(world):
    pair = [FeatureService(name="s", features=[f"stats:{f}"]) for f in ("rate", "trips")]
    refused(world, [stats(features=["rate", "trips"]), *pair], DuplicateNameError, "'s'")


def test_a_service_may_be_called_like_a_view(world):
    catalog = world.compile(stats(), FeatureService(name="stats", features=["stats"]))
    assert [*catalog.views, *catalog.services] == ["stats", "stats"]


@pytest.mark.parametrize("kind", ["entity", "source"])
def test_different_things_of_one_name(world, kind):
    if kind == "entity":
        other = stats(name="b", entities=[Entity(name="driver", join_keys=["trips"])])
    else:
        other = stats(name="b", source=source(event_timestamp="learnt"))
    refused(
        world, [stats(name="a"), other], DuplicateNameError, "Two declarations are called 'driver"
    )


def test_equal_entities_and_sources_may_be_made_again(world):
    twin = Entity(name="driver", join_keys=["driver_id"])
    catalog = world.compile(stats(), stats(name="b", entities=[twin], source=source()), twin)
    assert [*catalog.views] == ["stats", "b"]


def test_an_old_object_of_a_view_is_not_mistaken_for_the_new_one(world):
    service = FeatureService(name="s", features=[stats(features=["trips"])])
    refused(world, [stats(), service], DuplicateNameError, "old object")


# --- references --------------------------------------------------------------------------------


def test_services_refer_by_object_by_view_by_feature_and_by_alias(world):
    view = stats(features=["rate", "trips"])
    other = view.alias("rival", join_keys={"driver_id": "rival_id"})["rate"]
    on_demand = made([view["rate"], REQUEST])
    service = FeatureService(
        name="s",
        features=[view, "stats", "stats:trips", view["rate"], other, on_demand, "made_view:made"],
    )
    found = world.compile(service).services["s"].features
    both = Selection(view="stats", features=("rate", "trips"), alias="stats")
    computed = Selection(view="made_view", features=("made",), alias="made_view")
    assert found == (
        both,
        both,
        both.model_copy(update={"features": ("trips",)}),
        both.model_copy(update={"features": ("rate",)}),
        Selection(
            view="stats", features=("rate",), alias="rival", join_keys={"driver_id": "rival_id"}
        ),
        computed,
        computed,
    )


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("stat:rate", ["'stat' names no feature view", "allowed: stats", "Did you mean 'stats'?"]),
        ("stats:rat", ["'stats:rat' names no feature", "'stats' has: rate", "'stats:rate'"]),
    ],
)
def test_a_service_that_names_what_does_not_exist(world, reference, words):
    service = FeatureService(name="s", features=[reference])
    error = refused(world, [stats(), service], UnknownReferenceError, *words)
    assert error.where == "FeatureService 's', definitions/d.py:2"


def test_an_on_demand_view_that_names_what_does_not_exist(world):
    error = refused(world, [stats(), made(["stats:nope"])], UnknownReferenceError, "'stats:nope'")
    assert error.where == "OnDemandFeatureView 'made_view', definitions/d.py:2"


def test_an_alias_that_makes_no_sense(world):
    view, on_demand = stats(), made(["stats"])
    for item, words in [
        (view.alias("rival", join_keys={"drivr": "x"}), ["maps 'drivr'", "no join key of 'stats'"]),
        (on_demand["made"].alias("other"), ["on-demand view 'made_view' cannot have an alias"]),
    ]:
        service = FeatureService(name="s", features=[item])
        error = refused(world, [view, on_demand, service], DefinitionError, *words)
        assert error.where == "FeatureService 's', definitions/d.py:3"


def test_one_alias_for_two_joins_is_refused(world):
    view = stats()
    pair = [view.alias("rival", join_keys={"driver_id": k}) for k in ("a", "b")]
    error = refused(
        world,
        [view, FeatureService(name="s", features=pair)],
        DefinitionError,
        "two different joins",
    )
    assert error.where == "FeatureService 's', definitions/d.py:2"


def test_a_service_whose_result_names_clash_can_be_asked_with_full_names(world):
    world.compile(FeatureService(name="s", features=[stats(name="a"), stats(name="b")]))


def test_one_column_cannot_be_a_key_of_two_types(world):
    world.write("other.parquet", driver_id=["1"], ts=[NOON], score=[1.0])
    other = stats(
        name="other",
        entities=[Entity(name="rival", join_keys=["driver_id"])],
        source=source(name="other", path="other.parquet"),
        features=["score"],
    )
    service = FeatureService(name="s", features=[stats(), other])
    refused(
        world,
        [service],
        DefinitionError,
        "The column 'driver_id' is to be a join key of two types",
        "int64 in 'stats', string in 'other'",
        "alias(",
    )
    aliased = other.alias("rival", join_keys={"driver_id": "rival_id"})
    world.compile(stats(), other, FeatureService(name="s", features=["stats", aliased]))


# --- on-demand views ---------------------------------------------------------------------------


def test_an_on_demand_view_is_compiled(world):
    view = stats(features=["rate", "trips"])
    catalog = world.compile(view, made([view["rate"], "stats:trips", "stats:rate", REQUEST]))
    plan = catalog.on_demand["made_view"]
    assert plan.inputs == (Selection(view="stats", features=("rate", "trips"), alias="stats"),)
    assert [(c.name, c.dtype) for c in plan.request] == [("distance", "float64")]
    assert [(f.name, f.dtype) for f in plan.features] == [("made", "float64")]
    assert len(plan.code_fingerprint) == len(plan.fingerprint) == 16


def test_chains_of_on_demand_views_are_compiled_in_their_order(world):
    last = made(["middle", REQUEST], name="last", features=[Field(name="z", dtype="float64")])
    middle = made(["first"], name="middle", features=[Field(name="y", dtype="float64")])
    first = made([stats()], name="first", features=[Field(name="x", dtype="float64")])
    assert [*world.compile(last, middle, first).on_demand] == ["first", "middle", "last"]


def test_circles_of_on_demand_views(world):
    circle = [made(["b"], name="a"), made(["c:made"], name="b"), made(["a"], name="c")]
    error = refused(world, circle, CyclicReferenceError, "in a circle")
    assert error.got in {"a -> b -> c -> a", "b -> c -> a -> b", "c -> a -> b -> c"}
    assert error.where.count("OnDemandFeatureView") == 3
    refused(world, [made(["self"], name="self")], CyclicReferenceError, "self -> self")


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["a", "b"], ["two inputs called 'rate'", "a:rate and b:rate", "alias("]),
        (["a", RequestSource(name="r", fields=[Field(name="rate", dtype="int64")])],
         ["a:rate and the request field 'rate'"]),
        ([REQUEST, RequestSource(name="r", fields=[Field(name="distance", dtype="int64")])],
         ["two inputs called 'distance'"]),
    ],
)  # fmt: skip
def test_inputs_of_one_name(world, sources, words):
    views = [stats(name="a"), stats(name="b"), made(sources)]
    error = refused(world, views, DefinitionError, *words)
    assert error.where == "OnDemandFeatureView 'made_view', definitions/d.py:3"


def test_an_aliased_input_has_a_name_of_its_own(world):
    view = stats()
    rival = view.alias("rival", join_keys={"driver_id": "rival_id"})
    plan = world.compile(view, made([view, rival])).on_demand["made_view"]
    assert [item.alias for item in plan.inputs] == ["stats", "rival"]


def test_an_on_demand_view_of_the_request_alone(world):
    assert world.compile(made([REQUEST])).on_demand["made_view"].inputs == ()


def test_what_computes_an_on_demand_view_is_a_function(world):
    class Model:
        def __call__(self, inputs):
            return inputs

    Model.__name__ = "model"
    view = on_demand_feature_view(sources=[REQUEST], features=FLOAT, name="m")(Model())
    error = refused(world, [view], DefinitionError, "no plain Python function")
    assert error.where == "OnDemandFeatureView 'm', definitions/d.py:1"


def test_only_declarations_can_be_declared():
    with pytest.raises(DefinitionError, match="no declaration of its own"):
        Declarations.of(Field(name="x"))


def test_every_error_of_compiling_is_one_of_ours(world):
    """A source that is no Parquet at all, to see the engine's errors pass as ours."""
    (world.folder / "drivers.parquet").write_text("no parquet")
    with pytest.raises(FeatureStoreError) as caught:
        world.compile(stats())
    assert "FileSource 'drivers'" in caught.value.where


def test_an_entity_without_views_has_no_types_and_is_left_out(world):
    assert world.compile(DRIVER) == Catalog(project="shop")
    assert isinstance(stats(), FeatureView)
