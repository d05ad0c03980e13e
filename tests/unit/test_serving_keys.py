"""Keys of lookups over gRPC: read as values where they are few, repeated as they came."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from featurestore.dtypes import KEY_SCALARS, parse
from featurestore.errors import RequestError
from featurestore.services.columns import InputRows
from featurestore.serving.conversion import read_columns, write_arrow
from featurestore.serving.requests import read_request, write_request
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import writer_of
from tests.served import NOW_US, Served, state, view

VALUES = {
    "bool": [True, False],
    "int32": [-(2**31), 0, 7],
    "int64": [-(2**63), 2**53 + 1, 1],
    "string": ["", "größe", "1"],
    "bytes": [b"", b"\x00\xff", b"1"],
    "date": [date(1969, 12, 31), date(2024, 1, 1)],
    "timestamp": [datetime(2024, 1, 1, 1, 1, 1, 1, UTC), datetime(1960, 1, 1, tzinfo=UTC)],
}
VIEWS = {kind: view(f"by_{kind}", {"key": kind}, {"score": "float64"}) for kind in KEY_SCALARS}
AS_VALUES = {"bool", "int32", "int64", "string", "bytes"}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def served():
    served = Served(state(VIEWS.values()))
    for kind, plan in VIEWS.items():
        served.push(plan, *(((v,), NOW_US, (float(i),)) for i, v in enumerate(VALUES[kind])))
    return served


def request(kind, column):
    """Return a request as it came over the wire."""
    message, _ = write_request(
        [f"by_{kind}"], InputRows.of({"key": column}), None, None, full_feature_names=False
    )
    return pb.GetOnlineFeaturesRequest.FromString(message.SerializeToString())


def answer(served, message):
    """Return what a request was read as, the answer, and its bytes with the keys repeated."""
    asked = read_request(message, LIMIT)
    found = served.read(asked.features, asked.entity_rows)
    return asked, found, writer_of(found.layout).write(found, asked.sent)


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("kind", KEY_SCALARS)
def test_keys_are_repeated_as_arrow_would_have_them(served, kind, times):
    values = VALUES[kind] * times
    column = pa.array(values, parse(kind).arrow)
    asked, found, raw = answer(served, request(kind, column))
    assert isinstance(asked.entity_rows.columns["key"], list) == (times == 1 and kind in AS_VALUES)
    assert found.to_dict()["score"] == [float(i) for i in range(len(VALUES[kind]))] * times
    assert raw == writer_of(found.layout).write(found)
    (key,) = pb.GetOnlineFeaturesResponse.FromString(raw).entity_keys
    expected = pb.Column(name="key")
    write_arrow(expected, column)
    assert key == expected


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("int64", pa.array([1, 7], pa.int32())),
        ("int32", pa.array([0, 7], pa.int64())),
        ("int32", pa.array([0, 2**40], pa.int64())),
        ("int64", pa.array([1, None], pa.int64())),
        ("int64", pa.array([None], pa.int64())),
        ("string", pa.array(["1", None])),
        ("string", pa.array([], pa.string())),
        ("int64", pa.array([1.0, 3.0])),
    ],
    ids=range(8),
)
def test_keys_of_other_types_and_nulls_are_told_as_they_were_understood(served, kind, column):
    _, found, raw = answer(served, request(kind, column))
    assert raw == writer_of(found.layout).write(found)
    assert len(found) == len(column)


@pytest.mark.parametrize("values", [["1"], [1.5], [True]])
def test_few_keys_of_a_wrong_type_are_refused_as_many_are(served, values):
    errors = []
    for times in (1, 20):
        asked = read_request(request("int64", values * times), LIMIT)
        with pytest.raises(RequestError) as caught:
            served.read(asked.features, asked.entity_rows)
        errors.append((type(caught.value), caught.value.what, caught.value.where))
    assert errors[0] == errors[1]


def test_what_a_later_protocol_adds_to_a_column_is_not_repeated(served):
    message = request("int64", [1])
    later = b"\xfa\x07\x03new"  # field 127
    raw = message.entity_rows[0].SerializeToString() + later
    message.entity_rows[0].ParseFromString(raw)
    assert message.entity_rows[0].SerializeToString() == raw
    _, found, told = answer(served, message)
    assert told == writer_of(found.layout).write(found)
    assert b"new" not in told


def test_columns_are_read_as_values_only_where_nothing_is_lost():
    def read(column, few):
        message = pb.Column(name="x")
        write_arrow(message, column)
        return read_columns([message], "entity_rows", few)["x"]

    for kind, values in VALUES.items():
        column = pa.array(values, parse(kind).arrow)
        for few in (0, len(values) - 1, len(values)):
            found = read(column, few)
            is_list = kind in AS_VALUES and few == len(values)
            assert isinstance(found, list) == is_list
            assert (found if is_list else found.to_pylist()) == values
    for column in (pa.array([], pa.int64()), pa.array([None, 1]), pa.array([1.0])):
        assert isinstance(read(column, 8), pa.Array)
