"""A plan is data: what is added, changed and removed, and what that does to tables."""

from __future__ import annotations

import json

import pytest

from featurestore.compile.diff import ApplyPlan, FieldChange, SchemaChange, diff
from featurestore.compile.fingerprints import definition_fingerprint, table_fingerprint
from featurestore.compile.plan import (
    Catalog,
    Column,
    EntityPlan,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.services.plan_text import duration, plan_lines

SOURCE = SourcePlan(name="s", kind="parquet", path="p.parquet", event_timestamp="t")
A, B = FeaturePlan(name="a", dtype="int64"), FeaturePlan(name="b", dtype="string")


def sealed(plan):
    if isinstance(plan, ViewPlan):
        plan = plan.model_copy(update={"table_fingerprint": table_fingerprint(plan)})
    return plan.model_copy(update={"fingerprint": definition_fingerprint(plan)})


def view(name="v", **changes):
    values = {
        "name": name,
        "entities": ("e",),
        "join_keys": (Column(name="k", dtype="int64"),),
        "features": (A, B),
        "source": SOURCE,
    }
    return sealed(ViewPlan(**values | changes))


def service(*references):
    return sealed(ServicePlan(name="svc", features=references))


def catalog(*plans):
    held: dict = {"entities": {}, "views": {}, "on_demand": {}, "services": {}}
    kinds = {
        EntityPlan: "entities",
        ViewPlan: "views",
        OnDemandPlan: "on_demand",
        ServicePlan: "services",
    }
    for plan in plans:
        held[kinds[type(plan)]][plan.name] = plan
    return Catalog(project="p", **held)


def compare(before, after, *, serving=None, filled=()):
    """Return what makes one catalog of another; the tables of the plans `filled` hold rows."""
    full = {plan.table_fingerprint for plan in filled}
    return diff(
        before,
        after,
        base_revision=7,
        serving=before.views if serving is None else {plan.name: plan for plan in serving},
        has_data=lambda plan: plan.table_fingerprint in full,
    )


def only(plan):
    (item,) = plan.changes
    return item


def test_equal_catalogs_need_no_change():
    plan = compare(catalog(view()), catalog(view()))
    assert plan == ApplyPlan(project="p", base_revision=7)
    assert plan_lines(plan) == ["Project 'p' is as declared (revision 7); nothing to apply."]


def test_added_and_removed_definitions_come_by_kind_and_name():
    entity = EntityPlan(name="e", join_keys=(Column(name="k", dtype="int64"),))
    before = catalog(view("z"), view("c"))
    after = catalog(
        view("z"), view("b"), entity, service(Selection(view="b", features=("a",), alias="b"))
    )
    plan = compare(before, after)
    assert [(i.action, i.kind, i.name) for i in plan.changes] == [
        ("added", "entity", "e"),
        ("added", "feature_view", "b"),
        ("removed", "feature_view", "c"),
        ("added", "feature_service", "svc"),
    ]
    assert [(f.feature, f.action, f.after) for f in plan.changes[1].features] == [
        ("a", "added", "int64"),
        ("b", "added", "string"),
    ]
    assert not any(item.rebuild or item.destructive for item in plan.changes)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ttl_us": 5}, FieldChange(path="ttl_us", before=None, after=5)),
        ({"online": False}, FieldChange(path="online", before=True, after=False)),
        ({"owner": "me"}, FieldChange(path="owner", before="", after="me")),
        ({"tags": {"a": "b"}}, FieldChange(path="tags.a", before=None, after="b")),
        (
            {"features": (A.model_copy(update={"description": "An a."}), B)},
            FieldChange(path="features.a.description", before="", after="An a."),
        ),
    ],
)
def test_what_does_not_touch_the_rows_rebuilds_nothing(change, field):
    item = only(compare(catalog(view()), catalog(view(**change)), filled=[view()]))
    assert (item.action, item.fields, item.features) == ("changed", (field,), ())
    assert not item.rebuild
    assert not item.destructive


@pytest.mark.parametrize(
    ("change", "fields", "features", "reason", "losses"),
    [
        ({"where": "a > 1"}, [("where", None, "a > 1")], [], "where differs", ""),
        (
            {"source": SOURCE.model_copy(update={"path": "q.parquet"})},
            [("source.path", "p.parquet", "q.parquet")],
            [],
            "source.path differs",
            "",
        ),
        (
            {"features": (A,)},
            [],
            [("b", "removed", "string", None)],
            "feature 'b' is removed",
            "the values of 'b' are dropped",
        ),
        (
            {"features": (A, B, FeaturePlan(name="c", dtype="bool"))},
            [],
            [("c", "added", None, "bool")],
            "feature 'c' is added",
            "",
        ),
        (
            {"features": (FeaturePlan(name="a", dtype="float64"), B)},
            [],
            [("a", "retyped", "int64", "float64")],
            "feature 'a' is retyped",
            "the values of 'a' as int64 are dropped",
        ),
        (
            {"features": (FeaturePlan(name="a", dtype="int64", expression="x + 1"), B)},
            [],
            [("a", "re-expressed", "column a", "x + 1")],
            "feature 'a' is re-expressed",
            "",
        ),
        (
            {"features": (B, A)},
            [("features.order", ["a", "b"], ["b", "a"])],
            [],
            "the features are in another order",
            "",
        ),
        (
            {"join_keys": (Column(name="k", dtype="string"),)},
            [("join_keys.k.dtype", "int64", "string")],
            [],
            "join_keys.k.dtype differs",
            "rows are kept by other join keys",
        ),
        (
            {"join_keys": (Column(name="k2", dtype="int64"),)},
            [("join_keys", ["k"], ["k2"])],
            [],
            "join_keys differs",
            "rows are kept by other join keys",
        ),
    ],
)
def test_what_touches_the_rows_rebuilds_the_table(change, fields, features, reason, losses):
    before, after = catalog(view()), catalog(view(**change))
    item = only(compare(before, after, filled=[view()]))
    assert [(f.path, f.before, f.after) for f in item.fields] == fields
    assert [(f.feature, f.action, f.before, f.after) for f in item.features] == features
    assert (item.rebuild, item.rebuild_reason) == (True, reason)
    assert (item.destructive, item.destructive_reason) == (bool(losses), losses)
    # Nothing is dropped where there is nothing yet.
    assert not only(compare(before, after)).destructive


def test_a_removed_view_is_destructive_once_it_holds_data():
    item = only(compare(catalog(view()), catalog(), filled=[view()]))
    assert (item.action, item.destructive) == ("removed", True)
    assert "table and its online values are deleted" in item.destructive_reason
    assert not only(compare(catalog(view()), catalog())).destructive


def test_a_source_may_be_renamed_freely():
    renamed = SOURCE.model_copy(update={"name": "other"})
    item = only(compare(catalog(view()), catalog(view(source=renamed)), filled=[view()]))
    assert [f.path for f in item.fields] == ["source.name"]
    assert not item.rebuild


def test_going_back_to_what_still_serves_rebuilds_nothing():
    first, second = view(), view(features=(A,))
    going_back = compare(catalog(second), catalog(first), serving=[first], filled=[first])
    assert not only(going_back).rebuild
    assert not only(going_back).destructive


def test_what_serves_counts_beside_what_is_applied():
    """While a table is rebuilt, the former one holds the data that a further change would drop."""
    first, second, third = view(), view(where="a > 1"), view(features=(A,))
    item = only(compare(catalog(second), catalog(third), serving=[first], filled=[first]))
    assert item.destructive_reason == "the values of 'b' are dropped"
    removed = only(compare(catalog(second), catalog(), serving=[first], filled=[first]))
    assert removed.destructive


def test_references_are_told_one_by_one():
    before = service(Selection(view="v", features=("a", "b"), alias="v"))
    after = service(
        Selection(view="v", features=("a",), alias="v"),
        Selection(view="v", features=("b",), alias="w", join_keys={"k": "other"}),
    )
    plan = compare(catalog(view(), before), catalog(view(), after))
    assert only(plan).fields == (
        FieldChange(
            path="features", before=["v:a", "v:b"], after=["v:a", "w:b (alias of v by k=other)"]
        ),
    )
    assert plan_lines(plan)[1:-1] == [
        "~ feature service svc",
        "    ~ features:",
        "        - v:b",
        "        + w:b (alias of v by k=other)",
    ]


def test_on_demand_views_tell_code_inputs_and_fields():
    def made(**changes):
        values = {
            "name": "od",
            "inputs": (Selection(view="v", features=("a",), alias="v"),),
            "request": (),
            "features": (
                FeaturePlan(name="x", dtype="int64"),
                FeaturePlan(name="y", dtype="int64"),
            ),
            "code_fingerprint": "1" * 16,
        }
        return sealed(OnDemandPlan(**values | changes))

    after = made(
        code_fingerprint="2" * 16,
        request=(Column(name="r", dtype="bool"),),
        features=(FeaturePlan(name="x", dtype="float64"), FeaturePlan(name="z", dtype="int64")),
    )
    plan = compare(catalog(made()), catalog(after))
    assert [(f.path, f.before, f.after) for f in only(plan).fields] == [
        ("request.r", None, "bool"),
        ("features.x.dtype", "int64", "float64"),
        ("features.y", "int64", None),
        ("features.z", None, "int64"),
        ("code", "1" * 16, "2" * 16),
    ]
    assert "    ~ code: changed" in plan_lines(plan)


def test_a_plan_reads_well():
    before = catalog(view(ttl_us=6 * 3_600_000_000), view("gone"))
    after = catalog(
        view(
            ttl_us=None,
            where="a > 1",
            features=(
                FeaturePlan(name="a", dtype="int64", expression="x"),
                FeaturePlan(name="c", dtype="bool"),
            ),
            owner="ops",
        ),
        view("new", features=(A,)),
    )
    filled = [before.views["v"], before.views["gone"]]
    reason = "feature 'a' is re-expressed; feature 'c' is added; feature 'b' is removed"
    reason += "; where differs"
    assert plan_lines(compare(before, after, filled=filled)) == [
        "Plan for project 'p' (from revision 7):",
        "- feature view gone",
        "    DROPS DATA: its table and its online values are deleted",
        "+ feature view new",
        "    + a: int64",
        "~ feature view v",
        "    ~ a: column a -> x",
        "    + c: bool",
        "    - b: string",
        "    ~ where: (none) -> a > 1",
        "    ~ ttl: 6h -> for ever",
        "    ~ owner: (none) -> ops",
        f"    rebuilds its table: {reason};",
        "        what serves now goes on until 'materialize' has covered as much",
        "    DROPS DATA: the values of 'b' are dropped",
        "1 to add, 1 to change, 1 to remove.",
        "It drops data: apply it with --allow-destructive.",
    ]


def test_lists_in_another_order_are_told_whole():
    before, after = view(entities=("e", "f")), view(entities=("f", "e"))
    assert "    ~ entities: e, f -> f, e" in plan_lines(compare(catalog(before), catalog(after)))


def test_a_plan_survives_json():
    plan = compare(catalog(view()), catalog(view(features=(A,), ttl_us=5)), filled=[view()])
    assert ApplyPlan.model_validate_json(plan.to_json()) == plan
    first = json.loads(plan.to_json())["changes"][0]
    assert first["features"] == [
        SchemaChange(feature="b", action="removed", before="string").model_dump()
    ]
    assert plan.destructive == plan.changes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (86_400_000_000, "1d"),
        (90_000_000_000, "25h"),
        (90_000_000, "90s"),
        (1_500_000, "1500000us"),
    ],
)
def test_durations_are_short(value, text):
    assert duration(value) == text
