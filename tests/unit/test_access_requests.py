"""What a call needs permission for, and what the audit says of it."""

from __future__ import annotations

import pytest

from featurestore.access.requests import as_list, changed, filled, names_of, told, told_names
from featurestore.access.scopes import Resource
from featurestore.compile.diff import ApplyPlan, ChangeItem
from featurestore.model.declarations import FeatureSelection
from featurestore.ports.registry import RetiredTable
from tests.served import PROJECT, on_demand, select, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
ITEMS = view("items", {"item": "int64"}, {"price": "float64"})
MIXED = on_demand("mixed", [select("users", "score"), select("items", "price")], {"m": "float64"})
NESTED = on_demand("nested", [select("mixed", "m")], {"n": "float64"})
STATE = state([USERS, ITEMS], [MIXED, NESTED], {"all": [select("nested", "n")]})


@pytest.mark.parametrize(
    ("features", "views"),
    [
        ("all", ["items", "users"]),
        ("nothing", []),
        (["users:score"], ["users"]),
        (["mixed:m"], ["items", "users"]),
        ([FeatureSelection(view="items", features=None, alias_name="users")], ["items"]),
        (["nothing:at_all"], []),
    ],
)
def test_what_a_request_may_ask_to_materialize(features, views):
    assert filled(features, STATE.answering) == views


@pytest.mark.parametrize("features", [[], None, ()])
def test_nothing_names_nothing(features):
    assert names_of(as_list(features)) == ("view", frozenset())


def test_an_entity_belongs_to_its_views_or_to_all_where_none_has_it():
    def plan(entity):
        item = ChangeItem(action="changed", kind="entity", name=entity)
        return ApplyPlan(project=PROJECT, base_revision=0, changes=(item,))

    before = state([USERS])
    assert changed(plan("user"), before, before.catalog) == [Resource(PROJECT, "view", "users")]
    assert changed(plan("item"), before, STATE.catalog)[0] == Resource(PROJECT, "view", "items")
    assert changed(plan("ghost"), before, before.catalog) == [Resource(PROJECT, "view", "*")]


def test_a_table_that_a_removed_view_left_belongs_to_that_view():
    left = [RetiredTable(view=name, table_fingerprint="x", retired_at_us=1) for name in "ab"]
    before = state([USERS]).model_copy(update={"retired": (*left, left[0])})
    after = state([USERS, view("b", {}, {"x": "int64"})]).catalog
    plan = ApplyPlan(project=PROJECT, base_revision=0)
    assert changed(plan, before, after) == [Resource(PROJECT, "view", "a")]


def test_names_in_the_audit_are_cut():
    long = "x" * 1000
    assert told(long) == {"service": "x" * 100}
    assert told([f"{long}:a", f"{long}:b"]) == {"views": ["x" * 100]}
    assert len(told([f"v{n}:f" for n in range(5_000)])["views"]) == 1_000
    assert told_names("source", [long]) == {"source": "x" * 100}
    assert told_names("source", ["a", "b"]) == {"sources": ["a", "b"]}
    assert told_names("view", ["a"]) == {"views": ["a"]}
    assert told_names("*", ["*"]) == {}
