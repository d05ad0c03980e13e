"""Messages of the serving protocol: columns, requests, answers and errors, there and back."""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime

import grpc
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import errors
from featurestore.dtypes import parse
from featurestore.errors import (
    FeatureStoreError,
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
)
from featurestore.model.declarations import FeatureSelection, FeatureService
from featurestore.semantics import maps
from featurestore.services.columns import InputRows
from featurestore.serving import status
from featurestore.serving.conversion import read_arrow, read_columns, write_arrow
from featurestore.serving.info import read_info, write_info
from featurestore.serving.requests import explain_missing, read_request, write_request
from featurestore.serving.responses import read_response
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import writer_of
from tests.served import EVERY_TYPE, NOW, NOW_US, Served, array, on_demand, select, state, view

LIMIT = 1 << 20
instants = st.integers(-(2**55), 2**55)
SCALARS = {
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "float64": st.floats(allow_nan=False),
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5),
    "date": st.dates(),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
}


def values_of(dtype: str):
    kind = parse(dtype)
    if kind.container == "list":
        return st.lists(st.none() | SCALARS[kind.scalar], max_size=3)
    if kind.container == "vector":
        size = kind.length
        return st.lists(SCALARS[kind.scalar], min_size=size, max_size=size)
    if kind.container == "map":
        return st.dictionaries(SCALARS[kind.key], st.none() | SCALARS[kind.scalar], max_size=3)
    return SCALARS[kind.scalar]


columns = st.sampled_from(sorted(EVERY_TYPE.values())).flatmap(
    lambda dtype: st.tuples(
        st.just(dtype), st.lists(st.none() | values_of(dtype), max_size=10), st.integers(0, 3)
    )
)


def sent(column: pa.Array) -> pa.Array:
    message = pb.Column(name="x")
    write_arrow(message, column)
    return read_arrow(pb.Column.FromString(message.SerializeToString()))


@settings(max_examples=150, deadline=None)
@given(columns)
def test_columns_there_and_back(case):
    dtype, values, start = case
    column = array(values, dtype)[start:]
    if pa.types.is_map(column.type):
        column = maps.in_order(column, "x")
    found = sent(column)
    found.validate(full=True)
    assert found.type == column.type
    assert found.equals(column)


def test_the_bits_of_floats_go_through():
    bits = np.array([0x7FA00001, 0xFFC00001, 0x80000000], dtype=np.uint32)
    assert sent(pa.array(bits.view(np.float32))).to_numpy().view(np.uint32).tolist() == list(bits)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(bits.view(np.float32)), 3)
    assert sent(vectors).flatten().to_numpy().view(np.uint32).tolist() == list(bits)
    wide = np.array([0x7FF4000000000001, 2**63], dtype=np.uint64)
    assert sent(pa.array(wide.view(np.float64))).to_numpy().view(np.uint64).tolist() == list(wide)


def test_nulls_without_a_type_travel_as_nulls():
    assert sent(pa.nulls(3)).null_count == 3
    assert sent(pa.array([[], None])).to_pylist() == [[], None]
    empty = pa.array([[("a", None)], None, []], pa.map_(pa.string(), pa.null()))
    assert sent(empty).to_pylist() == [[("a", None)], None, []]


def test_fields_of_a_later_protocol_do_not_shift_the_numbers():
    message = pb.Column(name="x", int64s=pb.Int64Values(values=[1, 2]))
    message.int64s.MergeFromString(struct.pack("<BBQ", 0x7A, 8, 2**64 - 1))
    assert read_arrow(message).to_pylist() == [1, 2]


def test_unpacked_and_split_numbers_are_read():
    one, two = struct.pack("<Bd", 0x09, 1.5), b"\x0a\x08" + struct.pack("<d", 2.5)
    values = pb.DoubleValues.FromString(one + two + two)
    assert read_arrow(pb.Column(doubles=values)).to_pylist() == [1.5, 2.5, 2.5]


def entries(lengths, keys, values):
    return pb.Column(name="x", maps=pb.MapValues(lengths=lengths, keys=keys, values=values))


BROKEN = {
    "no values": pb.Column(name="x"),
    "short validity": pb.Column(name="x", validity=b"\xff", int64s={"values": [0] * 9}),
    "long validity": pb.Column(name="x", validity=b"\xff\xff", int64s={"values": [0] * 8}),
    "validity of text": pb.Column(name="x", validity=b"\xff\xff", strings={"values": ["a"]}),
    "lists that do not add up": pb.Column(
        name="x",
        lists=pb.ListValues(lengths=[1, 2], items=pb.Column(int64s={"values": [1, 2]})),
    ),
    "lists of lists": pb.Column(
        name="x",
        lists=pb.ListValues(lengths=[0], items=pb.Column(lists=pb.ListValues())),
    ),
    "lists without items": pb.Column(name="x", lists=pb.ListValues(lengths=[0])),
    "vectors without length": pb.Column(
        name="x", vectors=pb.VectorValues(floats={"values": [1.0]})
    ),
    "vectors without items": pb.Column(name="x", vectors=pb.VectorValues(length=1)),
    "vectors that are not full": pb.Column(
        name="x", vectors=pb.VectorValues(length=2, floats={"values": [1.0]})
    ),
    "maps without keys": pb.Column(name="x", maps=pb.MapValues(values={"int64s": {}})),
    "maps without values": pb.Column(name="x", maps=pb.MapValues(keys={"int64s": {}})),
    "maps by floats": entries([1], {"doubles": {"values": [1.0]}}, {"int64s": {"values": [1]}}),
    "maps of vectors": entries(
        [1], {"int64s": {"values": [1]}}, {"vectors": {"length": 1, "floats": {"values": [1.0]}}}
    ),
    "maps with few keys": entries([2], {"int64s": {"values": [1]}}, {"int64s": {"values": [1, 2]}}),
    "maps with few values": entries([1], {"int64s": {"values": [1]}}, {"int64s": {}}),
    "maps with too much": entries([0], {"int64s": {"values": [1]}}, {"int64s": {"values": [1]}}),
    "endless maps": entries([2**32 - 1] * 2, {"int64s": {}}, {"int64s": {}}),
    "a key twice": entries(
        [3], {"int64s": {"values": [1, 2, 1]}}, {"int64s": {"values": [1, 2, 3]}}
    ),
    "a key that is null": entries(
        [1], {"int64s": {"values": [0]}, "validity": b"\x00"}, {"int64s": {"values": [1]}}
    ),
    "short validity of maps": pb.Column(
        name="x",
        validity=b"\x01\x01",
        maps=pb.MapValues(lengths=[0], keys={"int64s": {}}, values={"int64s": {}}),
    ),
    "endless vectors": pb.Column(
        name="x", vectors=pb.VectorValues(length=2**32 - 1, doubles={"values": [1.0]})
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_columns_are_refused(case):
    with pytest.raises(RequestError, match="breaks the protocol"):
        read_columns([BROKEN[case]], "entity_rows")


def test_two_columns_of_a_name_are_refused():
    column = pb.Column(name="x", int64s={"values": [1]})
    with pytest.raises(RequestError, match="share a name"):
        read_columns([column, column], "entity_rows")


# -------------------------------------------------------------------------------------- requests


def asked(features, rows=None, request=None, as_of=None, *, full_feature_names=False):
    rows = InputRows.of(rows if rows is not None else [{"k": 1}])
    fields = None if request is None else InputRows.of_request(request, rows.rows)
    message, left_out = write_request(
        features, rows, fields, as_of, full_feature_names=full_feature_names
    )
    raw = message.SerializeToString()
    return read_request(pb.GetOnlineFeaturesRequest.FromString(raw), LIMIT), left_out


def test_a_service_goes_by_its_name():
    service = FeatureService(name="s", features=("v:x",))
    assert asked("s")[0].features == asked(service)[0].features == "s"


def test_references_keep_their_order_and_meaning():
    alias = FeatureSelection(
        view="v", features=("b", "a"), alias_name="w", join_keys={"k": "other", "l": "m"}
    )
    rekeyed = FeatureSelection(view="v", features=("a",), join_keys={"k": "other"})
    features = ["v:a", "v:b", "u:c", "v:c", "w", alias, "v:d", rekeyed, "v:e", "v"]
    found, _ = asked(features)
    assert found.features == [
        FeatureSelection(view="v", features=("a", "b")),
        "u:c",
        "v:c",
        "w",
        alias,
        "v:d",
        rekeyed,
        "v:e",
        "v",
    ]


@pytest.mark.parametrize("features", [[7], 7, None])
def test_what_names_no_features_is_refused_by_the_client(features):
    with pytest.raises(RequestError):
        asked(features)


def test_an_empty_list_is_left_to_the_server():
    assert asked([])[0].features == []


def test_rows_and_requests_and_the_rest():
    found, left_out = asked(
        "s",
        {"k": [1, None], "name": ["a", "b"]},
        {"amount": 2.5},
        -5,
        full_feature_names=True,
    )
    assert found.entity_rows.rows == 2
    assert found.entity_rows.columns["k"].to_pylist() == [1, None]
    assert found.request.columns["amount"].to_pylist() == [2.5, 2.5]
    assert (found.as_of, found.full_feature_names, left_out) == (-5, True, {})
    plain, _ = asked("s", [{}, {}, {}])
    assert (plain.entity_rows.rows, plain.request, plain.as_of) == (3, None, None)


def test_maps_are_sent_as_dicts_pairs_or_structs():
    rows = {
        "dicts": [{"b": 1, "a": None}, None],
        "days": [{date(2024, 1, 1): NOW}, {}],
        "empty": [{}, None],
        "polars": pl.Series([[{"key": "a", "value": 1}], None]),
        "arrow": pa.array([[("a", 1)], None], pa.map_(pa.large_string(), pa.int8())),
        "pandas": pd.Series([{"a": 1.5}, None], dtype="object"),
    }
    found, left_out = asked("s", rows)
    assert left_out == {}
    columns = found.entity_rows.columns
    assert {name: column.to_pylist() for name, column in columns.items()} == {
        "dicts": [[("a", None), ("b", 1)], None],
        "days": [[(date(2024, 1, 1), NOW)], []],
        "empty": [[], None],
        "polars": [[("a", 1)], None],
        "arrow": [[("a", 1)], None],
        "pandas": [[("a", 1.5)], None],
    }
    wanted = parse("map<int64, string>")
    assert found.entity_rows.column("empty", wanted, "v", rounding=True).to_pylist() == [[], None]


def test_columns_that_cannot_be_sent_are_left_out_and_explained():
    naive = datetime(2024, 1, 1)  # noqa: DTZ001  (that is the point)
    rows = {
        "ok": [1, 2],
        "naive": [naive, naive],
        "half": [NOW, naive],
        "mixed": [1, "a"],
        "days": [date(2024, 1, 1), NOW],
        "decimal": pa.array([1, 2], pa.decimal128(5, 2)),
        "arrow": pa.array([1, 2], pa.timestamp("us")),
        "pandas": pd.Series([naive, NOW], dtype="object"),
        "odd maps": [{"a": 1}, {"b": "x"}],
        "halves": [{"a": 1}, 7],
        "keys": [{1.5: 1}, {}],
        "lists": [{"a": [1]}, {}],
    }
    found, left_out = asked("s", rows)
    assert list(found.entity_rows.columns) == ["ok"]
    assert left_out.keys() == rows.keys() - {"ok"}

    def explained(name):
        return explain_missing(MissingColumnError("lacks", where="v", allowed=name), left_out)

    for name in ("naive", "half", "arrow", "pandas"):
        assert type(explained(name)) is NaiveTimestampError
    for name in ("mixed", "days", "decimal", "odd maps", "halves", "keys", "lists"):
        error = explained(name)
        assert type(error) is RequestError
        assert name in error.what
        assert error.got
    assert type(explained("other")) is MissingColumnError


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (pb.GetOnlineFeaturesRequest(), "neither a service nor references"),
        (
            pb.GetOnlineFeaturesRequest(
                service="s",
                entity_rows=[
                    pb.Column(name="a", int64s={"values": [1]}),
                    pb.Column(name="b", int64s={"values": [1, 2]}),
                ],
            ),
            "differ in length",
        ),
        (
            pb.GetOnlineFeaturesRequest(
                service="s", rows=2, entity_rows=[pb.Column(name="a", int64s={"values": [1]})]
            ),
            "differ in length",
        ),
        (
            pb.GetOnlineFeaturesRequest(
                service="s", rows=2, request=[pb.Column(name="a", int64s={"values": [1]})]
            ),
            "another length",
        ),
        (pb.GetOnlineFeaturesRequest(service="s", rows=2**32 - 1), "larger than the server"),
        (
            pb.GetOnlineFeaturesRequest(
                references={"references": [pb.FeatureReference(view="v", alias="no name")]}
            ),
            "makes no sense",
        ),
    ],
    ids=["no features", "lengths", "rows", "request", "too many", "alias"],
)
def test_broken_requests_are_refused(message, says):
    with pytest.raises(RequestError, match=says):
        read_request(message, LIMIT)


# --------------------------------------------------------------------------------------- answers

EVERY = view("every", {"k": "int64"}, EVERY_TYPE, ttl_us=10)
WORLD = view("world", {}, {"rate": "float64"})
MADE = on_demand("made", [select("every", "a_int64")], {"more": "int64", "text": "string"})


@pytest.fixture(scope="module")
def served():
    def make(frame):
        import polars as pl

        return frame.select(more=pl.col("a_int64") + 1, text=pl.col("a_int64").cast(pl.String))

    served = Served(state([EVERY, WORLD], [MADE]), {"made": (make, MADE.code_fingerprint)})
    rng = np.random.default_rng(1)
    full = {
        "bool": True,
        "int32": -1,
        "int64": 2**53 + 1,
        "float32": 1.5,
        "float64": -0.0,
        "string": "é\x00",
        "bytes": b"\x00",
        "date": date(1960, 1, 1),
        "timestamp": datetime(1960, 1, 1, tzinfo=UTC),
    }

    def value(dtype):
        kind = parse(dtype)
        if kind.container == "list":
            return [None, full[kind.scalar]][: rng.integers(0, 3)]
        if kind.container == "map":
            return {full[kind.key]: [None, full[kind.scalar]][rng.integers(0, 2)]}
        if kind.container == "vector":
            return rng.random(kind.length).astype(kind.numpy).tolist()
        return full[kind.scalar]

    def row(present):
        return tuple(value(t) if present(i) else None for i, t in enumerate(EVERY_TYPE.values()))

    served.push(
        EVERY,
        ((1,), NOW_US, row(lambda _: True)),
        ((2,), NOW_US - 10, row(lambda _: False)),
        ((3,), NOW_US - 11, row(lambda _: True)),
        ((4,), NOW_US, row(lambda i: i % 2)),
        ((5,), NOW_US, row(lambda _: True)),
    )
    return served


@pytest.mark.parametrize("keys", [[], [1], [2], [3], [9], [1, 5], [1, 2, 3, 4, 9, None, 1, 5, 4]])
def test_the_client_sees_the_answer_that_the_server_gave(served, keys):
    features = ["made", "every", "world"]
    answer = served.read(features, {"k": pa.array(keys, pa.int64())})
    raw = writer_of(answer.layout).write(answer)
    assert writer_of(answer.layout).write(answer) == raw
    message = pb.GetOnlineFeaturesResponse.FromString(raw)
    assert not message.entity_keys or message.entity_keys[0].name == "k"
    found = read_response(message)
    assert found.to_arrow().equals(answer.to_arrow())
    assert found.to_arrow().schema.equals(answer.to_arrow().schema)
    assert found.to_dict() == answer.to_dict()
    assert found.statuses == answer.statuses
    assert found.event_timestamps == answer.event_timestamps
    assert found.fingerprints == answer.fingerprints
    assert (found.as_of, found.service, len(found)) == (answer.as_of, None, len(keys))
    # Generated code agrees on every byte that it would have written.
    assert len(message.SerializeToString()) <= len(raw)
    assert pb.GetOnlineFeaturesResponse.FromString(message.SerializeToString()) == message


@pytest.mark.parametrize("keys", [[], [1], [1, 2, 9]])
def test_what_had_been_applied_goes_through(served, keys):
    answer = served.read(["every:a_int64", "world"], {"k": keys})
    positions = [2**53, -1, 0][: len(keys)]
    answer.blocks[0].applied = {
        "größe/0": struct.pack(f"<{len(keys)}q", *positions),
        "b": struct.pack(f"<{len(keys)}q", *[-1] * len(keys)),
    }
    raw = writer_of(answer.layout).write(answer)
    message = pb.GetOnlineFeaturesResponse.FromString(raw)
    assert [item.partition for item in message.sources[0].applied] == ["größe/0", "b"]
    assert list(message.sources[0].applied[0].positions) == positions
    found = read_response(message)
    assert found.applied == answer.applied
    assert found.applied["every"]["größe/0"] == [2**53, None, 0][: len(keys)]
    assert found.applied.keys() == {"every"}
    assert pb.GetOnlineFeaturesResponse.FromString(message.SerializeToString()) == message


def test_answers_without_keys(served):
    answer = served.read(["world:rate"], [{}, {}])
    found = read_response(
        pb.GetOnlineFeaturesResponse.FromString(writer_of(answer.layout).write(answer))
    )
    assert found.to_dict() == {"rate": [None, None]}
    assert found.statuses == {"rate": ["NOT_FOUND", "NOT_FOUND"]}


def test_many_sizes_of_answers_do_not_pile_up(served):
    writer = None
    for rows in range(150):
        answer = served.read(["every:a_int64"], {"k": [1] * rows})
        writer = writer_of(answer.layout)
        writer.write(answer)
    assert len(writer._frames) <= 64


def broken_answers():
    column = pb.Column(name="x", int64s={"values": [1]})
    source = pb.Source(view="v", statuses=[1], event_timestamps=[5])

    def answer(**changes):
        fields = {"rows": 1, "features": [column], "feature_sources": [0], "sources": [source]}
        return pb.GetOnlineFeaturesResponse(**{**fields, **changes})

    def applied(*parts):
        return answer(
            sources=[pb.Source(view="v", statuses=[1], event_timestamps=[5], applied=parts)]
        )

    return {
        "no origin": answer(feature_sources=[]),
        "another origin": answer(feature_sources=[1]),
        "no values": answer(features=[pb.Column(name="x")]),
        "unknown status": answer(sources=[pb.Source(view="v", statuses=[9], event_timestamps=[5])]),
        "status zero": answer(sources=[pb.Source(view="v", statuses=[0], event_timestamps=[5])]),
        "huge status": answer(sources=[pb.Source(view="v", statuses=[300], event_timestamps=[5])]),
        "few statuses": answer(rows=2),
        "no timestamps": answer(sources=[pb.Source(view="v", statuses=[1])]),
        "few values": answer(
            rows=2, sources=[pb.Source(view="v", statuses=[1, 1], event_timestamps=[5, 5])]
        ),
        "few applied": applied(pb.AppliedPartition(partition="p")),
        "odd applied": applied(pb.AppliedPartition(partition="p", positions=[-2])),
        "applied twice": applied(*[pb.AppliedPartition(partition="p", positions=[1])] * 2),
        "short validity": answer(
            features=[pb.Column(name="x", validity=b"\x01\x01", int64s={"values": [1]})]
        ),
    }


@pytest.mark.parametrize("case", broken_answers())
def test_broken_answers_are_told(case):
    with pytest.raises(FeatureStoreError, match="server's answer"):
        read_response(broken_answers()[case]).to_dict()


def test_what_is_served_is_what_requests_are_answered_by():
    former = on_demand("made", [select("every", "a_int64")], {"old": "int64"}, code="old")
    wanted = state([EVERY], [MADE], {"s": [select("every", "a_bool")]}, revision=7)
    before = wanted.model_copy(update={"former_on_demand": {"made": former}})
    info = read_info(write_info(before))
    assert (info.project, info.revision, info.services.keys()) == ("shop", 7, {"s"})
    assert info.views["made"].fingerprint == former.fingerprint
    assert info.views["made"].features == {"old": "int64"}
    assert read_info(write_info(wanted)).views["made"].fingerprint == MADE.fingerprint


# ---------------------------------------------------------------------------------------- errors


class Failure:
    def __init__(self, code, details="", metadata=()):
        self._parts = (code, details, metadata)

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


CLASSES = sorted(
    (
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, FeatureStoreError)
    ),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself(cls):
    error = cls("Größe.", where="a\nb", got="g", allowed=None, hint="h")
    code = status.code_of(error)
    assert code is not grpc.StatusCode.OK
    assert code is not grpc.StatusCode.UNKNOWN
    back = status.error_of(Failure(code, "", status.metadata_of(error)), "here:1")
    assert type(back) is cls
    assert (back.what, back.where, back.got, back.allowed, back.hint) == (
        "Größe.",
        "a\nb",
        "g",
        None,
        "h",
    )


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.FeatureNotFoundError, "NOT_FOUND"),
        (errors.MissingColumnError, "INVALID_ARGUMENT"),
        (errors.AsOfBeforeRowError, "OUT_OF_RANGE"),
        (errors.NotMaterializedError, "FAILED_PRECONDITION"),
        (errors.OnlineStoreUnavailableError, "UNAVAILABLE"),
        (errors.DeadlineExceededError, "DEADLINE_EXCEEDED"),
        (errors.StorageError, "INTERNAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_statuses(cls, code):
    assert status.code_of(cls("x")).name == code


def test_an_error_of_a_subclass_comes_back_as_the_known_class():
    class Special(errors.DataError):
        pass

    back = status.error_of(Failure(None, "", status.metadata_of(Special("x"))), "here:1")
    assert type(back) is errors.DataError


def test_long_errors_fit_the_metadata():
    error = RequestError("ü" * 10_000, where="ü" * 10_000, got="ü" * 10_000, hint="ü" * 10_000)
    ((_, value),) = status.metadata_of(error)
    assert len(value) < 6_000
    back = status.error_of(Failure(None, "", status.metadata_of(error)), "here:1")
    assert back.got.startswith("üüü")


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("UNAVAILABLE", errors.UnavailableError),
        ("CANCELLED", errors.UnavailableError),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceededError),
        ("INVALID_ARGUMENT", RequestError),
        ("RESOURCE_EXHAUSTED", RequestError),
        ("UNAUTHENTICATED", errors.UnauthenticatedError),
        ("PERMISSION_DENIED", errors.AccessDeniedError),
        ("UNIMPLEMENTED", FeatureStoreError),
        ("INTERNAL", FeatureStoreError),
    ],
)
@pytest.mark.parametrize(
    "metadata",
    [
        (),
        None,
        ((status.METADATA_KEY, b"no json"),),
        ((status.METADATA_KEY, b"[]"),),
        ((status.METADATA_KEY, b"{}"),),
    ],
    ids=["none", "null", "text", "list", "empty"],
)
def test_failures_of_the_way_name_the_address(code, cls, metadata):
    error = status.error_of(Failure(grpc.StatusCode[code], "why", metadata), "here:1")
    assert type(error) is cls
    assert "here:1" in error.what
    assert error.where == "here:1"
