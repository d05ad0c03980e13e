"""Scopes and the one function that decides: what is not named is denied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.access.scopes import (
    ACTIONS,
    ALL,
    KINDS,
    Principal,
    Resource,
    Scope,
    authorize,
    authorize_any,
    parse_scopes,
)
from featurestore.errors import AccessDeniedError, RequestError

SERVICE = Resource("flights", "service", "departure_delay")


@pytest.mark.parametrize(
    ("scope", "covers"),
    [
        ("read_online:flights/service/departure_delay", True),
        ("read_online:flights/service/departure_*", True),
        ("read_online:flights/service/*_delay", True),
        ("read_online:flights/service", True),
        ("read_online:flights/*/departure_delay", True),
        ("read_online:flights", True),
        ("read_online:fl*", True),
        ("read_online:*", True),
        ("*:flights", True),
        ("read_online:flights/service/departure", False),
        ("read_online:flights/service/departure_delay_2", False),
        ("read_online:flights/view/departure_delay", False),
        ("read_online:flight", False),
        ("read_online:other", False),
        ("read_offline:flights", False),
        ("write:flights", False),
        ("apply:*", False),
    ],
)
def test_what_a_scope_covers(scope, covers):
    assert Scope.parse(scope).covers("read_online", SERVICE) is covers


@pytest.mark.parametrize(
    "text",
    ["", "read_online", "read_online:", "read:flights", ":flights", "read_online:a/b/c/d",
     "read_online:a/tables/c", "read_online:a//c", "read_online:a/view/", "read_online:a b",
     "read_online:a/view/x\n", "READ_ONLINE:a", "read_online:[a]", "**:a"],
)  # fmt: skip
def test_what_is_no_scope_is_refused(text):
    with pytest.raises(RequestError, match="no scope") as caught:
        Scope.parse(text)
    assert "action:project/kind/name" in caught.value.allowed


def test_a_dot_in_a_pattern_is_a_dot():
    scope = Scope.parse("write:p/source/a.b")
    assert scope.covers("write", Resource("p", "source", "a.b"))
    assert not scope.covers("write", Resource("p", "source", "axb"))


@given(
    st.sampled_from(["read_online:a/view/*", "read_online:a/*/x", "read_online:a/view/x*"]),
    st.text(max_size=8),
    st.sampled_from(KINDS),
    st.sampled_from(ACTIONS),
)
@settings(max_examples=200, deadline=None)
def test_no_name_reaches_out_of_its_part(scope, name, kind, action):
    covers = Scope.parse(scope).covers(action, Resource("a", kind, name))
    fits = {
        "read_online:a/view/*": kind == "view" and "/" not in name,
        "read_online:a/*/x": name == "x",
        "read_online:a/view/x*": kind == "view" and name.startswith("x") and "/" not in name,
    }[scope]
    assert covers is (fits and action == "read_online")
    assert not Scope.parse(scope).covers(action, Resource("b", kind, name))


def test_a_denied_call_is_told_which_scope_is_missing():
    ann = Principal("token:ann", parse_scopes(["write:flights"]))
    with pytest.raises(AccessDeniedError) as caught:
        authorize(ann, "read_online", SERVICE)
    assert caught.value.allowed == "read_online:flights/service/departure_delay"
    assert "write:flights" in caught.value.got
    assert "token:ann" in caught.value.what
    authorize(ann, "write", Resource("flights", "source", "x"))


def test_nothing_is_allowed_by_default_and_everything_where_access_is_not_restricted():
    with pytest.raises(AccessDeniedError, match="may not") as caught:
        authorize(Principal("key:1"), "read_online", SERVICE)
    assert caught.value.got == "no scopes"
    authorize(Principal("anyone", None), "apply", SERVICE)


def test_a_principal_that_tries_names_fills_no_memory():
    ann = Principal("ann", parse_scopes(["read_online:p/view/a*"]))
    for number in range(5_000):
        assert not ann.may("read_online", Resource("p", "view", f"b{number}"))
    assert len(ann._decided) <= 1_024
    assert ann.may("read_online", Resource("p", "view", "a"))


@pytest.mark.parametrize(
    ("scope", "kind", "covers"),
    [
        ("write:flights", "view", True),
        ("write:flights/view", "view", True),
        ("write:flights/view/*", "view", True),
        ("write:flights/*/*", "view", True),
        ("write:flights/view/a*", "view", False),
        ("write:flights/source", "view", False),
        ("write:flights", "*", True),
        ("write:flights/*", "*", True),
        ("*:*", "*", True),
        ("write:flights/view", "*", False),
        ("apply:flights", "*", False),
    ],
)
def test_all_of_a_kind_and_of_a_project_take_a_scope_that_leaves_no_name(scope, kind, covers):
    principal = Principal("ann", parse_scopes([scope]))
    assert principal.may("write", Resource("flights", kind, ALL)) is covers


@pytest.mark.parametrize(
    ("kind", "what", "allowed"),
    [("view", "every view", "write:flights/view/*"), ("*", "the whole project", "write:flights")],
)
def test_the_scope_for_all_of_them_is_named(kind, what, allowed):
    with pytest.raises(AccessDeniedError, match=f"may not write {what}") as denied:
        authorize(Principal("ann"), "write", Resource("flights", kind, ALL))
    assert denied.value.allowed == allowed
    Scope.parse(allowed)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["apply:flights/view/x"], True),
        (["write:other", "read_online:fl*"], True),
        (["*:*"], True),
        (["*:flight", "*:flights2", "*:other"], False),
        ([], False),
    ],
)
def test_whether_anything_is_allowed_in_a_project(scopes, allowed):
    principal = Principal("ann", parse_scopes(scopes))
    if allowed:
        authorize_any(principal, "flights")
        return
    with pytest.raises(AccessDeniedError, match="may not do anything in the project 'flights'"):
        authorize_any(principal, "flights")
