"""A request means the same wherever it is asked: joins, steps, names and their order."""

from __future__ import annotations

import pytest

from featurestore.compile.plan import (
    Catalog,
    Column,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.compile.request import resolve, service_plan, slot
from featurestore.errors import (
    FeatureNotFoundError,
    NameClashError,
    NotMaterializedError,
    RequestError,
)
from featurestore.model.declarations import FeatureSelection, FeatureService
from tests.unit.world import stats

SOURCE = SourcePlan(name="s", kind="parquet", path="p", event_timestamp="t")


def view(name, features=("x", "y"), keys=("id",), key_type="int64", **dtypes):
    return ViewPlan(
        name=name,
        entities=(),
        join_keys=tuple(Column(name=key, dtype=key_type) for key in keys),
        features=tuple(FeaturePlan(name=f, dtype=dtypes.get(f, "float64")) for f in features),
        source=SOURCE,
        table_fingerprint="0" * 16,
    )


def whole(plan, *features, alias=None, keys=None):
    names = features or tuple(f.name for f in plan.features)
    return Selection(view=plan.name, features=names, alias=alias or plan.name, join_keys=keys or {})


def on_demand(name, inputs, features=("out",), request=()):
    return OnDemandPlan(
        name=name,
        inputs=tuple(inputs),
        request=tuple(Column(name=n, dtype=t) for n, t in request),
        features=tuple(FeaturePlan(name=f, dtype="float64") for f in features),
    )


A, B, G = view("a"), view("b", ("z",), ("id", "place")), view("g", ("total",), ())
FIRST = on_demand("first", [whole(A, "x")], ("one", "two"), [("distance", "float64")])
SECOND = on_demand("second", [whole(FIRST, "one"), whole(B)], ("three",), [("distance", "float64")])


def catalog(*services, views=(A, B, G), derived=(FIRST, SECOND)):
    return Catalog(
        project="p",
        views={v.name: v for v in views},
        on_demand={v.name: v for v in derived},
        services={s.name: s for s in services},
    )


def ask(features, *, full=False, serving=None, held=None):
    held = held or catalog()
    return resolve(held, serving or held.views, features, full_feature_names=full)


def names(plan):
    return [output.name for output in plan.outputs]


def test_columns_come_in_the_order_asked_for_and_each_view_is_joined_once():
    plan = ask(["b:z", "a:y", "g:total", "a:x"])
    assert names(plan) == ["z", "y", "total", "x"]
    assert [(j.alias, j.key_columns, j.features) for j in plan.joins] == [
        ("b", ("id", "place"), ("z",)),
        ("a", ("id",), ("x", "y")),
        ("g", (), ("total",)),
    ]
    assert plan.key_columns == (("id", A.join_keys[0]), ("place", B.join_keys[1]))
    assert (plan.service, plan.steps, plan.request_fields) == (None, (), ())


def test_a_view_without_features_means_all_of_them():
    assert names(ask(["a"])) == names(ask([FeatureSelection(view="a")])) == ["x", "y"]


def test_a_feature_asked_for_twice_comes_once():
    assert names(ask(["a:x", "a", "a:x"])) == ["x", "y"]
    assert names(ask([FeatureSelection(view="a", features=("y", "y"))])) == ["y"]


def test_objects_are_resolved_by_their_names():
    held = catalog(views=(view("stats", ("rate",)),), derived=())
    assert names(ask([stats()], held=held)) == ["rate"]
    assert names(ask([stats()["rate"]], held=held, full=True)) == ["stats__rate"]


def test_full_names_are_view_and_feature():
    plan = ask(["a:x", "b:z", "second:three"], full=True)
    assert names(plan) == ["a__x", "b__z", "second__three"]
    assert [output.slot for output in plan.outputs] == [slot("a", "x"), "b__z", "second__three"]


def test_two_features_of_one_name_need_full_names():
    held = catalog(views=(A, view("c", ("x",))), derived=())
    with pytest.raises(NameClashError, match="share the result column 'x'") as caught:
        ask(["a:x", "c:x"], held=held)
    assert (caught.value.got, "full_feature_names" in str(caught.value)) == ("a:x and c:x", True)
    assert names(ask(["a:x", "c:x"], held=held, full=True)) == ["a__x", "c__x"]


def test_a_view_joins_twice_under_an_alias():
    rival = FeatureSelection(
        view="a", features=("x",), alias_name="rival", join_keys={"id": "other"}
    )
    plan = ask(["a:x", rival], full=True)
    assert [(j.view.name, j.alias, j.key_columns) for j in plan.joins] == [
        ("a", "a", ("id",)),
        ("a", "rival", ("other",)),
    ]
    assert names(plan) == ["a__x", "rival__x"]
    assert [output.reference for output in plan.outputs] == ["a:x", "rival:x"]


def test_one_alias_cannot_be_two_joins():
    pair = [FeatureSelection(view="a", alias_name="r", join_keys={"id": k}) for k in ("m", "n")]
    with pytest.raises(NameClashError, match="'r' names two different joins"):
        ask(pair, full=True)
    with pytest.raises(NameClashError, match="'b' names two different joins"):
        ask(["b", FeatureSelection(view="a", alias_name="b")], full=True)


def test_one_column_cannot_be_a_key_of_two_types():
    held = catalog(views=(A, view("c", ("w",), key_type="string")), derived=())
    with pytest.raises(NameClashError, match="'id' is to be a join key of two types") as caught:
        ask(["a:x", "c:w"], held=held)
    assert caught.value.got == "int64 in 'a', string in 'c'"
    other = FeatureSelection(view="c", alias_name="c_2", join_keys={"id": "name"})
    assert ask(["a:x", other], held=held).key_columns[1][0] == "name"


def test_on_demand_views_are_computed_once_after_what_they_need():
    plan = ask(["second:three", "first:two", "second:three"])
    assert [(s.plan.name, s.features) for s in plan.steps] == [
        ("first", ("one", "two")),
        ("second", ("three",)),
    ]
    assert plan.steps[1].inputs == (("one", "first__one"), ("z", "b__z"))
    assert names(plan) == ["three", "two"]  # inputs are joined and not returned
    assert [j.alias for j in plan.joins] == ["a", "b"]
    assert [f.name for f in plan.request_fields] == ["distance"]


def test_an_aliased_input_has_the_alias_in_its_name():
    inputs = [whole(A, "x"), whole(A, "x", alias="rival", keys={"id": "other"})]
    plan = ask(["both"], held=catalog(derived=(on_demand("both", inputs),)))
    assert plan.steps[0].inputs == (("x", "a__x"), ("rival__x", "rival__x"))


def test_a_request_field_has_one_type():
    other = on_demand("other", [], ("w",), [("distance", "int64")])
    with pytest.raises(NameClashError, match="'distance' is declared with two types"):
        ask(["first:one", "other:w"], held=catalog(derived=(FIRST, other)))


def test_a_service_is_asked_by_name_or_object():
    service = ServicePlan(name="s", features=(whole(B), whole(A, "y")))
    held = catalog(service)
    plan = ask("s", held=held)
    assert (plan.service, names(plan)) == ("s", ["z", "y"])
    assert ask(FeatureService(name="s", features=["a"]), held=held) == plan
    assert service_plan(held, "s") == service


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (["c:x"], ["'c' names no feature view", "a, b, first, g, second", "featurestore apply"]),
        (["secnd:three"], ["Did you mean 'second'?"]),
        (["a:z1"], ["'a:z1' names no feature", "'a' has: x, y"]),
        (["second:tree"], ["Did you mean 'second:three'?"]),
        ("srv", ["'srv' names no applied feature service", "allowed: service_1"]),
        ("a:x", ["no applied feature service", "['a:x']"]),
    ],
)
def test_what_does_not_exist_is_not_found(features, words):
    held = catalog(ServicePlan(name="service_1", features=(whole(A),)))
    with pytest.raises(FeatureNotFoundError) as caught:
        ask(features, held=held)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([], ["asks for no feature"]),
        ([3], ["holds something that names no feature", "3"]),
        (stats(), ["come as a list"]),
        (
            [FeatureSelection(view="a", alias_name="r", join_keys={"idd": "z"})],
            ["no join key of 'a'", "'id'"],
        ),
        ([FeatureSelection(view="first", alias_name="r")], ["cannot have an alias"]),
    ],
)
def test_what_makes_no_sense_is_refused(features, words):
    with pytest.raises(RequestError) as caught:
        ask(features)
    assert type(caught.value) is RequestError
    for word in words:
        assert word in str(caught.value)


def test_a_view_that_is_being_rebuilt_answers_by_its_former_plan():
    former = view("a", ("x",), x="int64")
    plan = ask(["a:x"], serving={"a": former, "b": B})
    assert plan.joins[0].view is former
    assert plan.outputs[0].column.dtype == "int64"
    with pytest.raises(NotMaterializedError, match="'a:y' is applied, but its new table") as caught:
        ask(["a:y"], serving={"a": former})
    assert "materialize-incremental" in str(caught.value.hint)


def test_on_demand_inputs_must_be_served_too():
    former = view("a", ("y",))
    with pytest.raises(NotMaterializedError, match="'a:x'") as caught:
        ask(["first:one"], serving={"a": former})
    assert caught.value.where == "on-demand view 'first'"
