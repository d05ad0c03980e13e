"""Scopes and the one function that decides: what is not named is denied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import AccessDeniedError, RequestError
from featurestore.serving.security.scopes import (
    ACTIONS,
    KINDS,
    Principal,
    Resource,
    Scope,
    authorize,
    parse_scopes,
)

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
