"""Events pushed over gRPC: a server in this process, before a store that remembers what came."""

from __future__ import annotations

import random
import threading
from datetime import UTC, date, datetime, timedelta, timezone

import grpc
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore.errors import (
    AuthenticationError,
    DataError,
    DeadlineExceededError,
    FeatureNotFoundError,
    FeatureStoreError,
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    SourceSchemaError,
    StreamUnavailableError,
    UnavailableError,
)
from featurestore.model.settings import ServingSettings
from featurestore.services.event_table import events_table
from featurestore.services.pushing_events import PushReceipt
from featurestore.serving.arrow_stream import read_stream, write_stream
from featurestore.serving.client import OnlineClient
from featurestore.serving.client_calls import SERVICE
from featurestore.serving.server import FeatureServer
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.v1.serving_pb2_grpc import FeatureServingStub
from tests.served import NOW, Served, state, view

LIMIT = 200_000
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001  (that is the point)
RECEIPT = PushReceipt(2, {"clicks/0": 2**53, "größe": 0})


class Sink:
    """Takes events, or raises what it is told to, or waits."""

    def __init__(self):
        self.pushed = []
        self.timeouts = []
        self.trouble = None
        self.gate = threading.Event()
        self.gate.set()

    def push(self, source, events, *, timeout):
        self.timeouts.append(timeout)
        assert self.gate.wait(20)
        if self.trouble is not None:
            raise self.trouble
        self.pushed.append((source, events))
        return RECEIPT


pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="module")
def address():
    sink = Sink()
    served = Served(state([view("users", {"user": "int64"}, {"name": "string"})]))
    settings = ServingSettings(address="127.0.0.1:0", max_message_bytes=LIMIT, threads=4)
    server = FeatureServer(served.reader, settings, events=sink)
    server.start()
    yield server.address, sink
    server.stop()


@pytest.fixture
def sink(address):
    sink = address[1]
    sink.pushed.clear()
    sink.trouble = None
    sink.gate.set()
    return sink


@pytest.fixture
def client(address, sink):  # noqa: ARG001  (a clean one)
    with OnlineClient(address[0]) as client:
        yield client


@pytest.fixture
def stub(address, sink):  # noqa: ARG001
    with grpc.insecure_channel(address[0]) as channel:
        yield FeatureServingStub(channel)


ROWS = [{"id": 1, "at": NOW, "kind": "a"}, {"id": 2**53 + 1, "at": NOW, "kind": None}]


@pytest.mark.parametrize(
    "events",
    [
        ROWS,
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        pa.Table.from_pylist(ROWS),
        pl.DataFrame(ROWS),
        pd.DataFrame({**{n: [r[n] for r in ROWS] for n in ROWS[0]}}),
    ],
    ids=["dicts", "lists", "arrow", "polars", "pandas"],
)
def test_events_arrive_as_they_were_pushed(client, sink, events):
    assert client.push("clicks", events) == RECEIPT
    ((source, table),) = sink.pushed
    assert source == "clicks"
    assert table.to_pylist() == ROWS
    assert table.column_names == ["id", "at", "kind"]


def test_types_that_features_have_not_arrive_too(client, sink):
    there = timezone(timedelta(hours=9))
    events = {
        "naive": [NAIVE, None],
        "zones": [NOW, NOW.astimezone(there)],
        "map": [{"b": 1, "a": None}, {}],
        "record": [{"a": 1, "b": "x"}, None],
        "list": [[1.5], []],
        "days": [date(1960, 1, 1), None],
        "small": pa.array([1, None], pa.int8()),
        "decimal": pa.array([1, None], pa.decimal128(5, 2)),
        "category": pd.Series(["x", "y"], dtype="category"),
        "enum": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])),
        "view": pa.array(["x", None], pa.string_view()),
        "chunks": pa.chunked_array([[b"\x00"], [None]]),
        "nothing": [None, None],
        "nan": np.array([0x7FF8000000000001, 0], np.uint64).view(np.float64),
    }
    client.push("clicks", events)
    ((_, table),) = sink.pushed
    types = {name: str(table.schema.field(name).type) for name in events}
    assert types == {
        "naive": "timestamp[us]",
        "zones": "timestamp[us, tz=UTC]",
        "map": "map<string, int64>",
        "record": "struct<a: int64, b: string>",
        "list": "list<item: double>",
        "days": "date32[day]",
        "small": "int8",
        "decimal": "decimal128(5, 2)",
        "category": types["category"],
        "enum": types["enum"],
        "view": "string",
        "chunks": "binary",
        "nothing": "null",
        "nan": "double",
    }
    assert {types["category"], types["enum"]} <= {"string", "large_string"}
    assert table["zones"].to_pylist() == [NOW, NOW]
    assert table["map"].to_pylist() == [[("b", 1), ("a", None)], []]
    assert table["category"].to_pylist() == table["enum"].to_pylist() == ["x", "y"]
    assert table["nan"].to_numpy().view(np.uint64)[0] == 0x7FF8000000000001


def test_no_events_are_no_trouble(client, sink):
    client.push("clicks", [])
    client.push("clicks", {"id": pa.array([], pa.int64())})
    assert [table.num_rows for _, table in sink.pushed] == [0, 0]
    assert sink.pushed[1][1].schema == pa.schema([("id", pa.int64())])


@pytest.mark.parametrize(
    ("events", "error", "says"),
    [
        (7, RequestError, "cannot be read as rows"),
        ([7], RequestError, "cannot be read as rows"),
        ([{}, {}], RequestError, "no columns"),
        ([{"a": 1}, {"b": 1}], MissingColumnError, "Row 1"),
        ({"a": [1], "b": [1, 2]}, RequestError, "differ in length"),
        ({"a": [1, "x"]}, RequestError, "different types"),
        ({"a": [NOW, NAIVE]}, NaiveTimestampError, "no time zone, and others do"),
        ({"a": [NOW, date(2024, 1, 1)]}, RequestError, "dates among instants"),
    ],
    ids=range(8),
)
def test_what_is_no_table_is_refused_before_it_is_sent(client, sink, events, error, says):
    with pytest.raises(error, match=says):
        client.push("clicks", events)
    with pytest.raises(error, match=says):
        events_table(events)
    assert sink.pushed == []


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FeatureNotFoundError("unknown source", allowed="clicks", hint="x"), "NOT_FOUND"),
        (RequestError("no stream", where="source 'clicks'"), "INVALID_ARGUMENT"),
        (MissingColumnError("lacks", got="a", allowed="b"), "INVALID_ARGUMENT"),
        (SourceSchemaError("another type", got="string"), "INVALID_ARGUMENT"),
        (DataError("event_id is null"), "INVALID_ARGUMENT"),
        (StreamUnavailableError("gone", where="redis://h"), "UNAVAILABLE"),
        (DeadlineExceededError("late"), "DEADLINE_EXCEEDED"),
        (AuthenticationError("refused"), "INTERNAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_of_the_store_come_back_as_their_class(client, stub, sink, error, code):
    sink.trouble = error
    with pytest.raises(FeatureStoreError) as caught:
        client.push("clicks", ROWS)
    assert type(caught.value) is type(error)
    assert caught.value.__dict__ == error.__dict__
    message = pb.PushRequest(source="clicks", columns={"columns": []})
    with pytest.raises(grpc.RpcError) as failure:
        stub.Push(message, timeout=5)
    assert failure.value.code().name == code


def test_what_goes_wrong_inside_stays_inside(client, sink, logs):
    sink.trouble = RuntimeError("the password is s3cret")
    with pytest.raises(FeatureStoreError) as caught:
        client.push("clicks", ROWS)
    assert "s3cret" not in repr(caught.value.__dict__)
    assert any(line["event"] == "request failed" for line in logs)


def test_a_stream_that_hangs_does_not_outlast_the_deadline(client, sink):
    sink.gate.clear()
    with pytest.raises(DeadlineExceededError):
        client.push("clicks", ROWS, timeout=0.2)
    with pytest.raises(DeadlineExceededError):
        client.push("clicks", ROWS, timeout=-1)
    sink.gate.set()
    assert client.push("clicks", ROWS) == RECEIPT


def test_the_stream_may_take_a_share_of_the_time_that_the_caller_waits(client, sink):
    client.push("clicks", ROWS, timeout=5)
    assert 3 < sink.timeouts[-1] < 4.5


def test_a_message_that_is_too_large_is_refused(client, stub, sink):
    events = {"x": ["y" * LIMIT]}
    with pytest.raises(RequestError, match="refused the request") as caught:
        client.push("clicks", events)
    assert "max_message_bytes" in caught.value.hint
    message = pb.PushRequest(source="s", arrow_ipc=bytes(LIMIT + 1))
    with pytest.raises(grpc.RpcError) as failure:
        stub.Push(message, timeout=5)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sink.pushed == []


def test_a_server_without_a_sink_says_so():
    served = Served(state([view("users", {"user": "int64"}, {"name": "string"})]))
    server = FeatureServer(served.reader, ServingSettings(address="127.0.0.1:0"))
    server.start()
    with OnlineClient(server.address) as client, pytest.raises(RequestError, match="takes no"):
        client.push("clicks", ROWS)
    server.stop()
    with OnlineClient(server.address) as client, pytest.raises(UnavailableError):
        client.push("clicks", ROWS)


def test_plain_generated_stubs(stub, sink):
    answer = stub.Push(
        pb.PushRequest(
            source="clicks",
            columns={
                "columns": [
                    pb.Column(name="id", int64s={"values": [1, 2]}),
                    pb.Column(name="at", validity=b"\x01", timestamps={"values": [5, 0]}),
                    pb.Column(
                        name="shares",
                        maps=pb.MapValues(
                            lengths=[2, 0],
                            keys=pb.Column(strings={"values": ["b", "a"]}),
                            values=pb.Column(validity=b"\x01", doubles={"values": [0.5, 0]}),
                        ),
                    ),
                ]
            },
        ),
        timeout=5,
    )
    assert answer.accepted == 2
    positions = {item.partition: item.position for item in answer.positions}
    assert positions == RECEIPT.positions
    ((source, table),) = sink.pushed
    assert source == "clicks"
    assert table.to_pylist() == [
        {"id": 1, "at": datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC),
         "shares": [("a", None), ("b", 0.5)]},
        {"id": 2, "at": None, "shares": []},
    ]  # fmt: skip
    assert (
        stub.Push(pb.PushRequest(source="clicks", arrow_ipc=write_stream(table)), timeout=5)
        == answer
    )
    assert sink.pushed[1][1].equals(table)


def ipc(table, **options):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


PLAIN = pa.table({"x": [1, 2, 3], "s": ["a", None, "c"], "l": [[1], [], None]})
STRANGE = pa.ExtensionArray.from_storage(pa.opaque(pa.int64(), "x", "y"), pa.array([1, 2, 3]))
LISTS = pa.ListArray.from_arrays([0, 1, 2, 3], pa.array(["a", "b", "c"]).dictionary_encode())
BAD_STREAMS = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "cut short": ipc(PLAIN)[:-20],
    "lz4": ipc(PLAIN, compression="lz4"),
    "zstd": ipc(PLAIN, compression="zstd"),
    "compressed dictionary": ipc(
        pa.table({"x": PLAIN["s"].dictionary_encode()}), compression="zstd"
    ),
    "dictionary": ipc(pa.table({"x": PLAIN["s"].dictionary_encode()})),
    "dictionary in lists": ipc(pa.table({"x": LISTS})),
    "views": ipc(pa.table({"x": PLAIN["s"].cast(pa.string_view())})),
    "extension": ipc(pa.table({"x": STRANGE})),
    "names": ipc(pa.table([PLAIN["x"], PLAIN["x"]], names=["x", "x"])),
    "rows of nothing": ipc(pa.table({"x": pa.nulls(10**9)})),
    "bad offsets": ipc(pa.table({"x": ["ab", "cd", "ef"]})).replace(
        b"\x00\x00\x00\x00\x02\x00\x00\x00\x04", b"\x00\x00\x00\x00\xff\xff\xff\x7f\x04"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_streams_that_are_no_plain_tables_are_refused(stub, sink, case):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Push(pb.PushRequest(source="s", arrow_ipc=BAD_STREAMS[case]), timeout=5)
    assert failure.value.code() is INVALID
    assert "'events'" in failure.value.details()
    assert sink.pushed == []


def test_damaged_streams_are_read_or_refused_and_nothing_else():
    chance = random.Random(7)  # noqa: S311
    whole = ipc(PLAIN)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_stream(bytes(data)).to_pylist()
        except RequestError:
            refused += 1
    assert 50 < refused < 500


@pytest.mark.parametrize(
    "message",
    [
        pb.PushRequest(),
        pb.PushRequest(source="clicks"),
        pb.PushRequest(arrow_ipc=ipc(PLAIN)),
        pb.PushRequest(source="clicks", columns={"columns": [pb.Column(name="x")]}),
        pb.PushRequest(
            source="clicks",
            columns={"columns": [pb.Column(name="x", int64s={"values": [1]})] * 2},
        ),
        pb.PushRequest(
            source="clicks",
            columns={
                "columns": [
                    pb.Column(name="x", int64s={"values": [1]}),
                    pb.Column(name="y", int64s={"values": [1, 2]}),
                ]
            },
        ),
    ],
    ids=["empty", "no events", "no source", "no values", "names", "lengths"],
)
def test_malformed_messages_are_invalid_arguments(stub, sink, message):
    with pytest.raises(grpc.RpcError) as failure:
        stub.Push(message, timeout=5)
    assert failure.value.code() is INVALID
    assert sink.pushed == []


def test_bytes_that_are_no_message_are_invalid_arguments(address, sink):
    with grpc.insecure_channel(address[0]) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Push")
        with pytest.raises(grpc.RpcError) as failure:
            call(b"\x0a\x02\xff\xff", timeout=5)
    assert failure.value.code() is INVALID
    assert sink.pushed == []
