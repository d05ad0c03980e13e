"""Values of all types through JSON and back: nothing is lost, and what does not fit is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import KEY_SCALARS, parse
from featurestore.dtypes import SCALARS as NAMES
from featurestore.errors import NaiveTimestampError, RequestError
from featurestore.serving.http.parsing import parse as parse_json
from featurestore.serving.http.values import read_column, read_instant
from tests.http_values import as_documented, bits, columns_text, values

TYPES = [
    *NAMES,
    *(f"list<{name}>" for name in NAMES),
    "vector<float32, 3>",
    "vector<float64, 2>",
    *(f"map<{key}, {value}>" for key in KEY_SCALARS for value in ("float64", "bytes")),
]


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_column_of_every_type_comes_back_bit_for_bit(dtype, data):
    kind = parse(dtype)
    column = data.draw(st.lists(values(kind), max_size=4))
    text = columns_text({"a": list(column), "b": [None]}, [kind, kind])
    # By a strict reader: no NaN, no key twice.
    found = parse_json(text)["a"]
    assert [as_documented(value, dtype) for value in found] == [bits(value) for value in column]
    again = read_column(found, kind, "column 'a'")
    assert [bits(value) for value in again] == [bits(value) for value in column]
    assert [type(value) for value in again] == [type(value) for value in column]


def test_floats_are_the_shortest_texts_that_read_back():
    text = columns_text({"a": [0.1, 1e22, 5e-324, -0.0, 100.0]}, [parse("float64")])
    assert text == b'{"a":[0.1,1e+22,5e-324,-0.0,100.0]}'
    # A float32 is written as the float64 that it is: so it reads back right by either.
    narrow = json.loads(columns_text({"a": [0.10000000149011612]}, [parse("float32")]))
    assert narrow == {"a": [0.10000000149011612]}


def test_a_text_that_looks_like_a_number_that_json_lacks_stays_a_text():
    columns = {"a": ["NaN", None], "b": [float("nan"), None]}
    text = columns_text(columns, [parse("string"), parse("float64")])
    assert json.loads(text) == {"a": ["NaN", None], "b": ["NaN", None]}


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("bool", 1),
        ("bool", "true"),
        ("int64", True),
        ("int64", "1"),
        ("int64", 1.5),
        ("int64", 9007199254740992.0),
        ("float64", True),
        ("float64", "1"),
        ("float64", "nan"),
        ("float64", 2**53 + 1),
        ("float64", 10**400),
        ("string", 1),
        ("bytes", "AA"),
        ("bytes", "A==="),
        ("bytes", "AA==\n"),
        ("bytes", "\u00e9"),
        ("date", "20240101"),
        ("date", "2024-02-30"),
        ("date", "2024-01-01T00:00:00Z"),
        ("date", 1),
        ("timestamp", 1),
        ("timestamp", "2024-01-01"),
        ("timestamp", "2024-01-01T00:00:00.0000001Z"),
        ("timestamp", "2024-01-01T24:00:00Z"),
        ("timestamp", "2024-01-01T00:00:60Z"),
        ("timestamp", "2024-01-01T00:00:00+25:00"),
        ("timestamp", "2024-01-01T00:00:00 +01:00"),
        ("list<int64>", {}),
        ("list<int64>", 1),
        ("list<int64>", ["1"]),
        ("vector<float32, 3>", "x"),
        ("map<int64, string>", [[1, "a"]]),
        ("map<int64, string>", {"01": "a"}),
        ("map<int64, string>", {"-0": "a"}),
        ("map<int64, string>", {"1.0": "a"}),
        ("map<int64, string>", {"1": 1}),
        ("map<bool, string>", {"True": "a"}),
        ("map<timestamp, int64>", {"2024-01-01T00:00:00Z": 1, "2024-01-01T01:00:00+01:00": 2}),
    ],
)
def test_what_is_of_another_type_is_refused_by_its_place(dtype, value):
    with pytest.raises(RequestError) as caught:
        read_column([None, value], parse(dtype), "column 'a' of 'entity_rows'")
    assert caught.value.where == "column 'a' of 'entity_rows', row 1"
    assert caught.value.got
    assert caught.value.allowed


def test_instants():
    assert read_instant("2024-01-01T02:00:00.1000000+02:00", "as_of") == datetime(
        2024, 1, 1, 0, 0, 0, 100_000, UTC
    )
    assert read_instant("2024-01-01t00:00:00z", "as_of") == datetime(2024, 1, 1, tzinfo=UTC)
    with pytest.raises(NaiveTimestampError, match="no time zone"):
        read_instant("2024-01-01T00:00:00", "as_of")
    with pytest.raises(NaiveTimestampError) as caught:
        read_column(["2024-01-01T00:00:00"], parse("timestamp"), "column 'a'")
    assert caught.value.where == "column 'a', row 0"


def test_whole_floats_are_integers_where_they_are_exact():
    assert read_column([1.0, -2.0, 3], parse("int64"), "c") == [1, -2, 3]
    assert read_column([1, 0.5, None], parse("float32"), "c") == [1.0, 0.5, None]
