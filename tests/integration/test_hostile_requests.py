"""Callers who mean harm: whatever they send, the server answers others and gives back what it took.

One server for all; after each attack it must answer a lookup, and threads, files and memory be what
they were, nearly. `test_overload` has those who send too much or too slowly.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.serving.client import OnlineClient
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import SERVICE
from tests.integration.raw_http2 import RawConnection, frame
from tests.integration.test_overload import (
    FINE,
    GET,
    Project,
    is_answered,
    score,
    status,
    used,
    valid,
)

LIMIT = 1_000_000
MIB = 1 << 20
# What the allocator keeps of ten thousand streams, once: more rounds of them add next to nothing.
KEPT_MIB = 120
GROWTH_MIB = 60
SEARCH = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
_PRIORITY, _GOAWAY, _WINDOW, _CONTINUATION = 2, 7, 8, 9


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("hostile"))
    limits = {"threads": 4, "max_concurrent_requests": 100, "receive_seconds": 0.5}
    with project.serve(max_message_bytes=LIMIT, **limits) as server:
        with OnlineClient(server.address) as client:
            for _ in range(200):
                score(client)
        yield server


@pytest.fixture
def server(serving):
    """The server; the test fails if it is not as before in the end."""
    threads, files, memory = used(serving)
    yield serving
    with OnlineClient(serving.address, timeout=10) as client:
        wait_until(lambda: is_answered(client), what="an answer")
        assert score(client) == 0.5
    wait_until(lambda: used(serving)[0] <= threads + 4, what="the threads to end")
    wait_until(lambda: used(serving)[1] <= files + 3, what="the connections to end")
    assert used(serving)[2] < memory + KEPT_MIB
    assert [line for line in serving.logs if line.get("level") == "error"] == []
    assert serving.process.poll() is None


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


names = st.sampled_from(["users", "users:score", "", "doubled", "x" * 300, "\x00", "ä:ö"])
columns = st.builds(
    lambda name, kind, values, count: pb.Column(name=name, **{kind: {"values": values[:count]}}),
    st.sampled_from(["user", "", "score", "y" * 200]),
    st.sampled_from(["int64s", "int32s"]),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6),
    st.integers(0, 6),
)
requests = st.builds(
    lambda views, features, rows, as_of, service: pb.GetOnlineFeaturesRequest(
        **(
            {"service": service}
            if service
            else {"references": {"references": [
                pb.FeatureReference(view=view, features=features) for view in views]}}
        ),
        entity_rows=rows,
        as_of=as_of,
    ),
    st.lists(names, max_size=3),
    st.lists(names, max_size=3),
    st.lists(columns, max_size=3),
    st.integers(-(2**63), 2**63 - 1),
    st.one_of(st.none(), names),
)  # fmt: skip


@st.composite
def mutated(draw):
    """The bytes of a request with some of them changed, cut out, repeated or cut off."""
    message = draw(st.one_of(requests, st.sampled_from(list(valid().values()))))
    data = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        place, other = draw(st.integers(0, len(data) - 1)), draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "repeat", "end"]))
        if kind == "change":
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place:other]
        elif kind == "repeat":
            data[place:place] = data[place:other]
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("method", ["GetOnlineFeatures", "Push", "GetServingInfo"])
def test_any_bytes_are_answered_or_the_callers_fault(channel, method):
    call = channel.unary_unary(f"/{SERVICE}/{method}")
    seen = set()

    @SEARCH
    @given(st.one_of(st.binary(max_size=200), mutated()))
    def ask(data):
        seen.add(status(call, data))
        assert seen <= FINE

    ask()
    assert len(seen) > (method == "GetOnlineFeatures")


def test_messages_that_are_too_large_are_not_taken_in(server, channel):
    before = _peak(server)
    call = channel.unary_unary(GET)
    for size in (LIMIT + 1, 20 * MIB):
        assert status(call, b"\0" * size) is grpc.StatusCode.RESOURCE_EXHAUSTED
    # One who says that four gigabytes come, and sends a few bytes.
    for size in (LIMIT + 1, 1 << 31, (1 << 32) - 1):
        with RawConnection(server.address, GET) as liar:
            (stream,) = liar.open()
            liar.data(stream, struct.pack(">BI", 0, size) + b"x" * 100)
            with OnlineClient(server.address) as client:
                assert score(client) == 0.5
    assert _peak(server) < before + GROWTH_MIB


def test_a_bomb_is_not_unpacked(server, channel):
    """96 MiB of nothing in a tenth of a megabyte: packed it is small enough."""
    before = _peak(server)
    call = channel.unary_unary(GET)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\0" * (96 * MIB), timeout=20, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _peak(server) < before + GROWTH_MIB


def test_what_is_said_to_be_packed_and_is_not(server):
    for encoding in ("gzip", "deflate", "identity", "snappy", "x" * 100):
        with RawConnection(server.address, GET, grpc_encoding=encoding) as odd:
            for stream in odd.open(3):
                odd.data(stream, struct.pack(">BI", 1, 20) + os.urandom(20), end=True)


def test_streams_that_break_off_at_any_byte(server):
    """Head and message of a call, cut off anywhere, the connection closed or left."""
    message = valid()["GetOnlineFeatures"].SerializeToString()
    left = []
    with RawConnection(server.address, GET) as probe:
        head = probe.head
    body = struct.pack(">BI", 0, len(message)) + message
    whole = frame(1, 4, 1, head) + frame(0, 1, 1, body)
    for cut in range(1, len(whole), 3):
        connection = RawConnection(server.address, GET)
        connection.send(whole[:cut])
        if cut % 2:
            connection.close()
        else:
            left.append(connection)
    with OnlineClient(server.address, timeout=10) as client:
        wait_until(lambda: is_answered(client), what="an answer")
    for connection in left:
        connection.close()


def test_ten_thousand_streams_of_one_connection_taken_back_at_once(server):
    """Rapid resets: each call is begun and taken back, so that no limit of open ones is met."""
    with RawConnection(server.address, GET) as rude, OnlineClient(server.address) as client:
        for _ in range(100):
            rude.reset(rude.open(100))
        wait_until(lambda: is_answered(client), what="an answer")


def test_ten_thousand_streams_of_a_hundred_connections(server):
    connections = [RawConnection(server.address, GET) for _ in range(100)]
    for connection in connections:
        streams = connection.open(100)
        for stream in streams[::2]:
            connection.data(stream, b"\0\0\0\0\x08half")
        connection.reset(streams[::4])
    with OnlineClient(server.address) as client:
        wait_until(lambda: is_answered(client), what="an answer")
    for connection in connections:
        connection.close()


FLOODS = {
    "pings": frame(6, 0, 0, b"12345678"),
    "settings": frame(4, 0, 0, b""),
    "priorities": frame(_PRIORITY, 0, 1, b"\0\0\0\0\x10"),
    "windows": frame(_WINDOW, 0, 0, struct.pack(">I", 1)),
    "unknown frames": frame(0xBE, 0xFF, 0, b"x" * 30),
    "empty data": frame(0, 0, 1, b""),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_floods_of_frames(server, kind):
    with RawConnection(server.address, GET) as flood, OnlineClient(server.address) as client:
        flood.open()
        for _ in range(20):
            flood.send(FLOODS[kind] * 500)
        wait_until(lambda: is_answered(client), what="an answer")


def test_heads_without_end(server):
    """Headers that go on and on, one frame after the other, are not kept, and hold nobody up."""
    before = _peak(server)
    with RawConnection(server.address, GET) as endless:
        endless.send(frame(1, 0, 1, endless.head))
        piece = b"".join(
            b"\x00\x04" + b"x%03d" % i + b"\x7f" + b"\x51" + b"v" * 208 for i in range(30)
        )
        for _ in range(2_000):
            endless.send(frame(_CONTINUATION, 0, 1, piece))
            if endless.closed.is_set():
                break
        with OnlineClient(server.address) as client:
            wait_until(lambda: is_answered(client), what="an answer")
    assert _peak(server) < before + GROWTH_MIB


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 2_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(_GOAWAY, 0, 0, b"\0" * 8)
        + frame(0, 1, 1, b"x"),
        b"*1\r\n$4\r\nPING\r\n",
        b"",
    ],
    ids=["http/1", "tls", "preface and noise", "farewell first", "redis", "nothing"],
)
def test_other_tongues(server, noise):
    host, _, port = server.address.rpartition(":")
    for _ in range(10):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), timeout=5) as stranger,
        ):
            stranger.sendall(noise)


def _peak(server) -> float:
    """Return the most MiB that a server ever had."""
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as file:  # noqa: PTH123
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
