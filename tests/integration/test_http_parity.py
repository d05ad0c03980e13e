"""The same answer over HTTP and over gRPC, bit for bit: all types, as features and as keys."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import KEY_SCALARS, parse
from tests.http_values import SCALARS, as_documented, bits, columns_text, values
from tests.integration.http_front import Fronts
from tests.integration.test_grpc_serving import EVERY, STATE
from tests.served import EVERY_TYPE, NOW, NOW_US, publish, state, view

KEYS = {f"key_{name}": name for name in KEY_SCALARS}
KEYED = view("keyed", KEYS, {"found": "int64"})
STAMPS = itertools.count(NOW_US - 10_000)
AS_OF = "2024-06-01T12:00:00Z"

ROWS = st.lists(
    st.tuples(*(values(parse(dtype)) for dtype in EVERY_TYPE.values())), min_size=1, max_size=3
)
KEY = st.tuples(*(SCALARS[name] for name in KEY_SCALARS))

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="module")
def world():
    fronts = Fronts()
    publish(fronts.served.registry, state([*STATE.catalog.views.values(), KEYED]))
    fronts.served.clock.advance(2_000_000)
    fronts.served.state.refresh()
    with fronts.client() as client:
        yield fronts, client
    fronts.stop()


def same(answer, there, types):
    found = answer.json
    expected = there.to_dict()
    assert [*found["entity_keys"], *found["values"]] == list(expected)
    for name, column in {**found["entity_keys"], **found["values"]}.items():
        read = [as_documented(value, types[name]) for value in column]
        assert read == [bits(value) for value in expected[name]], name
    assert found["statuses"] == there.statuses
    stamps = {
        name: [as_documented(stamp, "timestamp") for stamp in column]
        for name, column in found["event_timestamps"].items()
    }
    assert stamps == there.event_timestamps
    assert found["fingerprints"] == there.fingerprints
    assert found["rows"] == there.rows
    assert as_documented(found["as_of"], "timestamp") == there.as_of


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_features_of_every_type(world, rows):
    fronts, client = world
    for number, row in enumerate(rows):
        # Each is newer than those before it, which it takes the place of.
        fronts.served.push(EVERY, ((number,), next(STAMPS), row))
    keys = [*range(len(rows)), -1, None]
    answer = fronts.look_up({"features": ["every"], "entity_rows": {"k": keys}, "as_of": AS_OF})
    there = client.get_online_features(["every"], {"k": keys}, as_of=NOW)
    same(answer, there, {"k": "int64", **EVERY_TYPE})


@settings(max_examples=25, deadline=None)
@given(keys=st.lists(KEY, min_size=1, max_size=3), strangers=st.lists(KEY, max_size=2))
def test_keys_of_every_type(world, keys, strangers):
    fronts, client = world
    for number, key in enumerate(keys):
        fronts.served.push(KEYED, (key, NOW_US, (number,)))
    asked = [*keys, *strangers]
    columns = {name: [key[i] for key in asked] for i, name in enumerate(KEYS)}
    # As a caller would write them, by the same rules as values.
    text = columns_text(columns, [parse(dtype) for dtype in KEYS.values()]).decode()
    body = f'{{"features": ["keyed"], "entity_rows": {text}, "as_of": "{AS_OF}"}}'
    answer = fronts.look_up(body.encode())
    there = client.get_online_features(["keyed"], columns, as_of=NOW)
    same(answer, there, {**KEYS, "found": "int64"})
    assert answer.json["statuses"]["found"][: len(keys)] == ["PRESENT"] * len(keys)
