"""Laws T1, T2, T3, K1, K2 on the functions that decide them, against their plain wording."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import KEY_SCALARS, DType, parse
from featurestore.errors import NaiveTimestampError, RequestError
from featurestore.semantics import reference, rows
from featurestore.semantics.keys import encode_columns, encode_key, namespace
from featurestore.semantics.reference import ReferenceRow
from featurestore.semantics.timeline import (
    MAX_INSTANT,
    MIN_INSTANT,
    format_instant,
    is_visible,
    to_datetime,
    to_instant,
)
from featurestore.testing import strategies

_SETTINGS = settings(deadline=None, max_examples=150)
_INSTANTS = st.integers(MIN_INSTANT, MAX_INSTANT)


# T1 ------------------------------------------------------------------------------------------


@given(_INSTANTS, st.integers(-14 * 60, 14 * 60))
@_SETTINGS
def test_t1_an_instant_is_the_same_whatever_its_zone(instant: int, minutes: int):
    here = to_datetime(instant)
    assert here.tzinfo is UTC
    assert to_instant(here) == instant
    assert to_instant(format_instant(instant)) == instant
    if MIN_INSTANT + 86_400_000_000 < instant < MAX_INSTANT - 86_400_000_000:
        there = here.astimezone(timezone(timedelta(minutes=minutes)))
        assert to_instant(there) == to_instant(there.isoformat()) == instant


@pytest.mark.parametrize("naive", [datetime(2013, 1, 31, 12), "2013-01-31T12:00:00", "2013-01-31"])  # noqa: DTZ001
def test_t1_a_naive_instant_is_an_error_and_never_guessed(naive: Any):
    with pytest.raises(NaiveTimestampError, match="no time zone"):
        to_instant(naive, "as_of")


def test_t1_what_is_no_instant_is_refused():
    with pytest.raises(RequestError, match="'as_of' is no instant"):
        to_instant("yesterday", "as_of")


# T2 ------------------------------------------------------------------------------------------


@st.composite
def _versions(draw: st.DrawFn) -> tuple[list[ReferenceRow], list[DType]]:
    dtypes = draw(st.lists(strategies.dtypes(), min_size=1, max_size=4))
    values = st.tuples(*(strategies.values(dtype) for dtype in dtypes))
    near = st.integers(-2, 2)
    made = st.builds(ReferenceRow, st.just((1,)), near, st.none() | near, values)
    return draw(st.lists(made, min_size=2, max_size=6)), dtypes


def _packed(versions: list[ReferenceRow], dtypes: list[DType], lead: bytes) -> list[bytes]:
    names = tuple(f"f{i}" for i in range(len(dtypes)))
    schema = rows.RowSchema(names, tuple(dtypes), lead)
    created = [rows.NULL_CREATED if row.created is None else row.created for row in versions]
    columns = [
        pa.array([row.values[i] for row in versions], dtype.arrow) for i, dtype in enumerate(dtypes)
    ]
    events = np.array([row.event for row in versions], dtype=np.int64)
    return rows.pack(schema, events, np.array(created, dtype=np.int64), columns)


@given(_versions())
@_SETTINGS
def test_t2_packed_rows_order_as_the_law_says(case: tuple[list[ReferenceRow], list[DType]]):
    versions, dtypes = case
    packed = _packed(versions, dtypes, b"abcd")
    for left, left_row in zip(packed, versions, strict=True):
        for right, right_row in zip(packed, versions, strict=True):
            newer = reference.order(left_row, dtypes) > reference.order(right_row, dtypes)
            assert rows.is_newer(left, right) == newer


@given(_versions())
@_SETTINGS
def test_t2_canonical_bytes_are_those_of_the_reference(
    case: tuple[list[ReferenceRow], list[DType]],
):
    versions, dtypes = case
    for value, row in zip(_packed(versions, dtypes, b"abcd"), versions, strict=True):
        assert value[rows.HEADER_BYTES :] == reference.canonical(row.values, dtypes)
        assert (rows.event_of(value), rows.created_of(value)) == (row.event, row.created)


def test_t2_a_null_created_timestamp_sorts_before_every_other():
    float64 = parse("float64")
    null, first = _packed(
        [ReferenceRow((1,), 5, None, (9.0,)), ReferenceRow((1,), 5, MIN_INSTANT, (1.0,))],
        [float64],
        b"abcd",
    )
    assert rows.is_newer(first, null)
    assert not rows.is_newer(null, first)


# T3 ------------------------------------------------------------------------------------------


@given(_INSTANTS, _INSTANTS, st.none() | st.integers(1, MAX_INSTANT))
@_SETTINGS
def test_t3_visible_between_the_event_and_its_ttl(event: int, as_of: int, ttl: int | None):
    last = MAX_INSTANT if ttl is None else event + ttl
    assert is_visible(event, as_of, ttl) == (event <= as_of <= max(last, event))


@pytest.mark.parametrize(
    ("as_of", "visible"), [(99, False), (100, True), (110, True), (111, False)]
)
def test_t3_both_ends_are_closed(as_of: int, visible: bool):  # noqa: FBT001
    assert is_visible(100, as_of, 10) is visible


# K1, K2 --------------------------------------------------------------------------------------


def _keys(scalar: str) -> st.SearchStrategy[Any]:
    return {
        "bool": st.booleans(),
        "int32": st.integers(-(2**31), 2**31 - 1),
        "int64": st.integers(-(2**63), 2**63 - 1),
        "string": st.text(max_size=6),
        "bytes": st.binary(max_size=6),
        "date": st.dates(),
        "timestamp": _INSTANTS.map(to_datetime),
    }[scalar]


@st.composite
def _two_keys(draw: st.DrawFn) -> tuple[list[DType], tuple[Any, ...], tuple[Any, ...]]:
    scalars = draw(st.lists(st.sampled_from(KEY_SCALARS), min_size=1, max_size=3))
    one = st.tuples(*(_keys(scalar) for scalar in scalars))
    return [parse(scalar) for scalar in scalars], draw(one), draw(one)


@given(_two_keys())
@settings(deadline=None, max_examples=400)
def test_k1_different_keys_never_share_bytes(
    case: tuple[list[DType], tuple[Any, ...], tuple[Any, ...]],
):
    dtypes, left, right = case
    first, second = encode_key(left, dtypes), encode_key(right, dtypes)
    assert first is not None
    assert second is not None
    assert (first == second) == (left == right)
    assert left == right or not first.startswith(second)


def test_k1_parts_are_not_glued_and_types_not_mixed():
    string, integer, flag = parse("string"), parse("int64"), parse("bool")
    glued = [("1", "23"), ("12", "3"), ("123", ""), ("", "123")]
    assert len({encode_key(key, [string, string]) for key in glued}) == len(glued)
    assert encode_key(["1"], [string]) != encode_key([1], [integer])
    with pytest.raises(RequestError, match="another type"):
        encode_key([True], [integer])
    assert encode_key([True], [flag]) != encode_key([1], [integer])


def test_k1_the_order_of_parts_counts_and_the_width_of_integers_does_not():
    string, integer = parse("string"), parse("int64")
    assert encode_key(["a", "b"], [string, string]) != encode_key(["b", "a"], [string, string])
    assert encode_key([7], [parse("int32")]) == encode_key([7], [integer])


def test_k1_the_same_key_of_two_views_or_projects_is_two_keys():
    spaces = [("p", "v", "t"), ("p", "v", "u"), ("p", "w", "t"), ("q", "v", "t"), ("pv", "", "t")]
    assert len({namespace(*space) for space in spaces}) == len(spaces)


@given(_two_keys())
@_SETTINGS
def test_k1_columns_are_encoded_as_their_rows_are(
    case: tuple[list[DType], tuple[Any, ...], tuple[Any, ...]],
):
    dtypes, left, right = case
    columns = [pa.array([left[i], None, right[i]], dtype.arrow) for i, dtype in enumerate(dtypes)]
    wanted = [encode_key(left, dtypes), None, encode_key(right, dtypes)]
    assert encode_columns(columns, dtypes) == wanted


def test_k2_a_null_part_is_no_key_at_all():
    string, day = parse("string"), parse("date")
    assert encode_key([None, date(2013, 1, 1)], [string, day]) is None
    assert encode_key(["", None], [string, day]) is None
    assert encode_key([], []) == b""
