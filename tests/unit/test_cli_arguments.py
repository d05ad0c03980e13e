"""Texts of the command line become features, join keys and request fields of declared types."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from featurestore.cli.arguments import feature_list, records
from featurestore.dtypes import parse
from featurestore.errors import RequestError


def types(**named):
    return {name: parse(dtype) for name, dtype in named.items()}


def read(text, dtype):
    (record,) = records("--entity", [f"k={text}"], types(k=dtype), exact=True)
    return record["k"]


@pytest.mark.parametrize(
    ("text", "dtype", "value"),
    [
        ("17", "int64", 17),
        ("-1", "int32", -1),
        ("0.5", "float64", 0.5),
        ("1e3", "float32", 1000.0),
        ("True", "bool", True),
        ("false", "bool", False),
        ("17", "string", "17"),
        ("", "string", ""),
        ("null", "string", "null"),
        ("null", "int64", None),
        ("a=b", "string", "a=b"),
        ("a, b", "string", "a, b"),
        ("AP8=", "bytes", b"\x00\xff"),
        ("2013-01-31", "date", date(2013, 1, 31)),
        ("2013-01-31T12:00:00+01:00", "timestamp", datetime(2013, 1, 31, 11, tzinfo=UTC)),
        ("[1, 2]", "list<int64>", [1, 2]),
        ('["a", "b"]', "list<string>", ["a", "b"]),
        ("[0.5, 1]", "vector<float32, 2>", [0.5, 1.0]),
        ("[]", "list<int64>", []),
        ('[1, null, "2"]', "list<int64>", [1, None, 2]),
        ('["a", null]', "list<string>", ["a", None]),
        ('{"a": 1, "b": null}', "map<string, int64>", {"a": 1, "b": None}),
        ('{"-1": "x", "2": "null"}', "map<int64, string>", {-1: "x", 2: "null"}),
        ('{"true": 0.5}', "map<bool, float64>", {True: 0.5}),
        ('{"2013-01-31": "AP8="}', "map<date, bytes>", {date(2013, 1, 31): b"\x00\xff"}),
        ("{}", "map<string, string>", {}),
        ("null", "map<string, string>", None),
    ],
)
def test_values_are_read_as_their_type(text, dtype, value):
    found = read(text, dtype)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "dtype", "allowed"),
    [
        ("x", "int64", "int64"),
        ("1.5", "int64", "int64"),
        ("", "int64", "int64"),
        ("yes", "bool", "true or false"),
        ("31.1.2013", "date", "2013-01-31"),
        ('{"a": 1}', "list<string>", "a JSON list of string"),
        ("1", "list<int64>", "a JSON list of int64"),
        ("[1]", "map<string, int64>", "a JSON object of int64, each key a string"),
        ('[["a", 1]]', "map<string, int64>", "a JSON object"),
        ('{"a": {"b": 1}}', "map<string, int64>", "a JSON object"),
        ('{"1": 1, "01": 2}', "map<int64, int64>", "a JSON object"),
        ('{"a": 1, "a": 2}', "map<string, int64>", "a JSON object"),
        ('{"x": 1}', "map<int64, int64>", "a JSON object"),
        ("2013-01-31T12:00:00", "timestamp", "zone"),
        ("no base64!", "bytes", "base64"),
        ("1,2", "list<int64>", "JSON list"),
        ('["x"]', "list<int64>", "JSON list"),
        ("7", "list<int64>", "JSON list"),
    ],
)
def test_what_cannot_be_read_says_what_can(text, dtype, allowed):
    with pytest.raises(RequestError, match=f"'k' cannot be read as {dtype}") as caught:
        read(text, dtype)
    assert allowed in str(caught.value.allowed)
    assert caught.value.where == f"--entity k={text}"


def test_several_pairs_and_several_texts():
    found = records("--entity", ["a=1,b=x,y", "b=z, a=2"], types(a="int64", b="string"), exact=True)
    assert found == [{"a": 1, "b": "x,y"}, {"b": "z", "a": 2}]


def test_a_missing_name_is_told():
    with pytest.raises(RequestError, match="lacks b") as caught:
        records("--entity", ["a=1"], types(a="int64", b="string"), exact=True)
    assert caught.value.hint == "Write --entity a=...,b=...."


def test_a_name_that_nobody_needs_is_told():
    with pytest.raises(RequestError, match="do not need 'cutsomer'") as caught:
        records("--entity", ["cutsomer=1"], types(customer="int64"), exact=True)
    assert caught.value.hint == "Did you mean 'customer'?"


def test_a_text_without_a_value_is_told():
    with pytest.raises(RequestError, match="takes name=value"):
        records("--entity", ["customer"], types(customer="int64"), exact=True)


def test_where_types_are_not_known_a_value_is_what_it_looks_like():
    texts = ["a=1,b=0.5,c=true,d=null,e=x y,f=[1],g=2013-01-01,h={}"]
    assert records("--entity", texts, types(a="string"), exact=False) == [
        {"a": "1", "b": 0.5, "c": True, "d": None, "e": "x y", "f": [1], "g": "2013-01-01",
         "h": "{}"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("ranking", "ranking"),
        (" ranking ", "ranking"),
        ("unknown", "unknown"),
        ("stats", ["stats"]),
        ("both", "both"),
        ("stats:x", ["stats:x"]),
        ("stats:x, other", ["stats:x", "other"]),
    ],
)
def test_features_are_a_service_or_references(text, features):
    assert feature_list(text, {"ranking", "both"}, {"stats", "both"}) == features
