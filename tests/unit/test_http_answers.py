"""Answers as JSON: the values that `to_dict` has, whichever way they are written."""

from __future__ import annotations

import itertools
import json
import struct
from datetime import UTC, date, datetime

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import SCALARS, parse
from featurestore.semantics.packed import NOT_FOUND, NULL_VALUE, OUTSIDE_MAX_AGE, PRESENT
from featurestore.semantics.plain import from_arrow, pack_bits
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import (
    ArrowBlock,
    FeatureLayout,
    Layout,
    OnlineResponse,
    SourceLayout,
)
from featurestore.serving.http.answers import answer_writer, write_receipt
from featurestore.serving.http.parsing import parse as parse_json
from featurestore.serving.http.values import write_json
from tests.http_values import as_documented, bits, present, values
from tests.served import EVERY_TYPE, HOUR_US, NOW, NOW_US, Served, state, view

# Views whose columns are made in different ways: all that varies, numbers of one width, of several.
VIEWS = {
    "every": EVERY_TYPE,
    "floats": {f"x{i}": "float32" for i in range(9)},
    "wides": {"d": "float64", "i": "int64", "t": "timestamp", "e": "float64"},
    "fixed": {
        **{f"a_{name}": name for name in SCALARS if parse(name).width},
        "embedding": "vector<float32, 4>",
        "wide": "vector<float64, 2>",
    },
}
TYPES = {"k": "int64"} | {
    f"{name}__{feature}": dtype
    for name, features in VIEWS.items()
    for feature, dtype in features.items()
}
PLANS = {
    name: view(name, {"k": "int64"}, features, ttl_us=HOUR_US if name == "wides" else None)
    for name, features in VIEWS.items()
}
STAMPS = itertools.count(NOW_US - 10 * HOUR_US)
MINUTE_US = 60_000_000
SPECIAL = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 5e-324, 1.401298464324817e-45]


def one_row(features):
    """Values of a view, all of them there as often as not."""
    kinds = [parse(dtype) for dtype in features.values()]
    return st.tuples(*map(values, kinds)) | st.tuples(*map(present, kinds))


@pytest.fixture(scope="module")
def served():
    return Served(state(PLANS.values()))


def documented(columns, types):
    """Return columns of JSON as they are to be read."""
    return {
        name: [as_documented(value, types[name]) for value in column]
        for name, column in columns.items()
    }


def check(answer, types):
    """Hold the JSON of an answer against the answer; return it."""
    data = answer_writer(answer.layout).write(answer)
    found = parse_json(data)
    assert json.loads(data) == found
    expected = {name: [bits(v) for v in column] for name, column in answer.to_dict().items()}
    read = documented({**found["entity_keys"], **found["values"]}, types)
    assert read == expected
    assert list(read) == list(expected)
    assert found["statuses"] == answer.statuses
    stamps = {
        name: [as_documented(s, "timestamp") for s in column]
        for name, column in found["event_timestamps"].items()
    }
    assert stamps == answer.event_timestamps
    assert [*found["statuses"]] == [*found["event_timestamps"]] == answer.feature_names
    assert (found["rows"], found["service"]) == (answer.rows, answer.service)
    assert (found["fingerprints"], found["applied"]) == (answer.fingerprints, answer.applied)
    assert as_documented(found["as_of"], "timestamp") == answer.as_of
    return found


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_answer_is_what_to_dict_says_in_any_number_of_rows(served, data):
    for name, plan in PLANS.items():
        for key in range(3):
            # Those of one view may be too old.
            stamp = next(STAMPS) + key * 294 * MINUTE_US
            served.push(plan, ((key,), stamp, data.draw(one_row(VIEWS[name]))))
    known = st.lists(st.sampled_from([0, 1, 2]), max_size=40)
    asked = data.draw(known | st.lists(st.sampled_from([0, 1, 2, -1, None]), max_size=40))
    names = data.draw(st.permutations(list(VIEWS)))
    answer = served.read(names, {"k": asked}, as_of=NOW, full_feature_names=True)
    found = check(answer, TYPES)
    # Each alone is written another way, and so is what is Arrow: the values are the same.
    for key in set(asked):
        alone = served.read(names, {"k": [key]}, as_of=NOW, full_feature_names=True)
        written = check(alone, TYPES)
        row = asked.index(key)
        for part in ("values", "statuses", "event_timestamps"):
            assert {n: [c[row]] for n, c in found[part].items()} == written[part]
    arrows = OnlineResponse(
        answer.layout,
        answer.rows,
        answer.as_of_us,
        answer.keys,
        [Held(block, len(VIEWS[name])) for name, block in zip(names, answer.blocks, strict=True)],
    )
    assert check(arrows, TYPES) == found


@pytest.mark.parametrize("keys", [[0], [0, -1], [0] * 20])
def test_columns_stand_in_the_order_asked_for(served, keys):
    names = ["floats:x3", "wides:i", "every:a_string", "floats:x0", "wides:d"]
    answer = served.read(names, {"k": keys}, as_of=NOW)
    types = {"k": "int64", "x3": "float32", "i": "int64", "a_string": "string", "x0": "float32"}
    found = check(answer, {**types, "d": "float64"})
    for part in ("values", "statuses", "event_timestamps"):
        assert list(found[part]) == ["x3", "i", "a_string", "x0", "d"]


class Held(ArrowBlock):
    """A block's columns as Arrow, as views of windows and on-demand views have them."""

    def __init__(self, block, count):
        super().__init__(lambda: [block.array(i) for i in range(count)])
        self.statuses, self.events = block.statuses, block.events


def plain_answer(dtype, rows, columns, statuses=None):
    """Return an answer with plain columns of a type just as they are given."""

    class Plains(ArrowBlock):
        def plains(self, indexes):
            return [columns[i] for i in indexes]

        def wholes(self, indexes):
            whole = all(columns[i][1] is None for i in indexes)
            return [columns[i][0] for i in indexes] if whole else None

        def validity(self, index):
            return columns[index][1]

    block = Plains(list)
    block.statuses = bytes([PRESENT] * rows if statuses is None else statuses)
    block.events = struct.pack(f"<{rows}q", *range(rows))
    layout = Layout(
        None,
        (),
        tuple(FeatureLayout(f"f{i}", parse(dtype), 0, i) for i in range(len(columns))),
        (SourceLayout("v", "v", "f"),),
    )
    return OnlineResponse(layout, rows, NOW_US, ArrowBlock(list), [block])


def written(dtype, rows, columns, statuses=None):
    answer = plain_answer(dtype, rows, columns, statuses)
    return json.loads(answer_writer(answer.layout).write(answer))


@pytest.mark.parametrize("rows", [2, 15, 16, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_json_lacks_are_texts_wherever_they_are(rows, dtype):
    kind = parse(dtype).numpy
    whole = np.arange(rows).astype(kind)
    odd = np.resize(np.array(SPECIAL), rows).astype(kind)
    found = written(dtype, rows, [(a.tobytes(), None) for a in (whole, odd, whole)])["values"]
    assert found["f0"] == found["f2"] == whole.tolist()
    assert documented(found, dict.fromkeys(found, dtype))["f1"] == [bits(v) for v in odd.tolist()]
    last = whole.copy()
    last[-1] = np.nan
    assert written(dtype, rows, [(last.tobytes(), None)])["values"]["f0"] == [
        *whole[:-1].tolist(),
        "NaN",
    ]
    # Below a null nothing is told, whatever is there.
    valid = pack_bits(bytes([1] * (rows - 1) + [0]))
    found = written(dtype, rows, [(last.tobytes(), valid)])
    assert found["values"]["f0"] == [*whole[:-1].tolist(), None]
    assert found["statuses"]["f0"] == ["PRESENT"] * (rows - 1) + ["NULL_VALUE"]


@pytest.mark.parametrize("rows", [2, 40])
def test_every_float_is_written_as_what_it_is(rows):
    """Bits at random: most floats are none that a person would write."""
    chance = np.random.default_rng(rows)
    for dtype, unsigned in (("float32", np.uint32), ("float64", np.uint64)):
        numbers = chance.integers(0, np.iinfo(unsigned).max, rows * 50, unsigned, endpoint=True)
        floats = numbers.view(parse(dtype).numpy).reshape(50, rows)
        found = written(dtype, rows, [(column.tobytes(), None) for column in floats])["values"]
        read = documented(found, dict.fromkeys(found, dtype))
        with np.errstate(invalid="ignore"):
            wide = floats.astype(np.float64)
        assert list(read.values()) == [[bits(v) for v in column] for column in wide.tolist()]


@pytest.mark.parametrize("rows", [2, 20])
def test_a_nan_that_would_signal_is_one_like_any_other(rows):
    data = struct.pack("<I", 0x7F800001) * rows
    assert written("float32", rows, [(data, None)])["values"]["f0"] == ["NaN"] * rows


@pytest.mark.parametrize("rows", [2, 20])
def test_integers_at_their_ends_and_booleans_of_any_byte(rows):
    for dtype, ends in (("int32", (-(2**31), 2**31 - 1)), ("int64", (-(2**63), 2**63 - 1))):
        numbers = np.resize(np.array([*ends, -1, 2**31 - 1]), rows).astype(parse(dtype).numpy)
        found = written(dtype, rows, [(numbers.tobytes(), None)])["values"]["f0"]
        assert found == numbers.tolist()
        assert {type(number) for number in found} == {int}
    found = written("bool", rows, [(bytes([0, 1, 2, 255] * 5)[:rows], None)])["values"]["f0"]
    assert found == ([False, True, True, True] * 5)[:rows]


@pytest.mark.parametrize("rows", [2, 20])
def test_dates_and_instants_at_their_ends(rows):
    instants = np.resize(np.array([MIN_INSTANT, MAX_INSTANT, -1, 0, 10]), rows).astype("<i8")
    found = written("timestamp", rows, [(instants.tobytes(), None)])["values"]["f0"]
    assert found[:2] == ["0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"]
    first, last = date(1970, 1, 1) - date.min, date.max - date(1970, 1, 1)
    days = np.resize(np.array([-first.days, last.days, 0]), rows).astype("<i4")
    found = written("date", rows, [(days.tobytes(), None)])["values"]["f0"]
    assert found[:2] == ["0001-01-01", "9999-12-31"]


@pytest.mark.parametrize(("dtype", "kind"), [("timestamp", "<i8"), ("date", "<i4")])
def test_what_python_has_no_date_for_is_refused_as_to_dict_does(dtype, kind):
    data = np.array([0, np.iinfo(kind).max], dtype=kind).tobytes()
    with pytest.raises((OverflowError, ValueError)):
        written(dtype, 2, [(data, None)])


def test_statuses_where_values_are_null_and_rows_are_not_there():
    numbers = np.zeros(4, dtype="<f8").tobytes()
    codes = [PRESENT, PRESENT, NOT_FOUND, OUTSIDE_MAX_AGE]
    columns = [(numbers, pack_bits(bytes(valid))) for valid in ([1, 0, 0, 0], [0, 1, 0, 0])]
    found = written("float64", 4, columns, codes)
    gone = ["NOT_FOUND", "OUTSIDE_MAX_AGE"]
    assert found["statuses"] == {
        "f0": ["PRESENT", "NULL_VALUE", *gone],
        "f1": ["NULL_VALUE", "PRESENT", *gone],
    }
    assert found["values"] == {"f0": [0.0, None, None, None], "f1": [None, 0.0, None, None]}
    assert [stamp is None for stamp in found["event_timestamps"]["f0"]] == [
        False,
        False,
        True,
        False,
    ]
    assert NULL_VALUE not in codes


def test_vectors_with_nulls_and_floats_that_json_lacks():
    vectors = [[1.0, float("nan")], None, [float("-inf"), -0.0], [2.0, 3.0]] * 5
    kind = parse("vector<float32, 2>")
    plain = from_arrow(kind, pa.array(vectors, type=kind.arrow))
    found = written("vector<float32, 2>", 20, [plain])["values"]["f0"]
    assert found == [[1.0, "NaN"], None, ["-Infinity", -0.0], [2.0, 3.0]] * 5
    assert str(found[2][1]) == "-0.0"


def test_texts_keep_every_character():
    text = "".join(map(chr, [*range(0x80), 0x2028, 0xD7FF, 0xE000, 0xFFFF, 0x10FFFF])) + 'é日"\\'
    assert json.loads(write_json({text: [text]})) == {text: [text]}


def test_what_json_has_no_words_for_is_an_error_and_never_guessed():
    for value in (datetime(2024, 1, 1, tzinfo=UTC), date(2024, 1, 1), b"x", {1: 2}, 2**64):
        with pytest.raises(orjson.JSONEncodeError):
            write_json([value])


def test_receipts_have_all_digits():
    receipt = PushReceipt(3, {"clicks/0": 2**63 - 1})
    assert write_receipt(receipt) == b'{"accepted":3,"positions":{"clicks/0":9223372036854775807}}'
