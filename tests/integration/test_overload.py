"""Too much, too slow, or nonsense: a server sheds it, stays up, and gives back what it took."""

from __future__ import annotations

import os
import random
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.clock import SystemClock
from featurestore.errors import OverloadedError, UnavailableError
from featurestore.serving.client import OnlineClient
from featurestore.serving.client_calls import SERVICE
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import ServerProcess, health
from tests.integration.grpc_server import open_store
from tests.integration.raw_http2 import RawConnection, frame
from tests.served import NOW_US, on_demand, publish, push, select, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
GATED = on_demand("gated", [select("users", "score")], {"passed": "float64"})
GET = f"/{SERVICE}/GetOnlineFeatures"
CLOCK = SystemClock()
ROWS = [{"user": 1}]


class Project:
    """A registry and a store on LMDB, and servers of them."""

    def __init__(self, folder):
        self.gate, self.calls = folder / "gate", folder / "calls"
        self.url, self.online = f"sqlite:///{folder / 'registry.db'}", f"lmdb:{folder / 'online'}"
        publish(SqlRegistry(self.url), state([USERS], [GATED]))
        store = open_store(self.online)
        push(store, USERS, [((1,), NOW_US, (0.5,))])
        store.close()

    def serve(self, **settings):
        return ServerProcess(
            online=self.online,
            registry=self.url,
            gate=str(self.gate),
            calls=str(self.calls),
            settings={"refresh_seconds": 0.2, **settings},
        )

    def begun(self):
        return self.calls.stat().st_size if self.calls.exists() else 0


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def score(client, **options):
    return client.get_online_features(["users:score"], ROWS, **options).to_dict()["score"][0]


def used(server):
    """Return the threads, the open files and the resident MiB of a server."""
    folder = Path(f"/proc/{server.process.pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    files = len(list((folder / "fd").iterdir()))
    return int(status["Threads"]), files, int(status["VmRSS"].split()[0]) / 1024


def test_what_is_too_much_is_refused_at_once_and_undecoded(project):
    with (
        project.serve(threads=2, max_concurrent_requests=6) as server,
        OnlineClient(server.address, timeout=20) as client,
        ThreadPoolExecutor(12) as threads,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert score(client) == 0.5

        def ask():
            return threads.submit(client.get_online_features, ["gated:passed"], ROWS)

        taken = [ask() for _ in range(2)]
        wait_until(lambda: project.begun() == 2, what="both threads to be busy")
        begun = CLOCK.monotonic()
        more = [ask() for _ in range(10)]
        wait_until(lambda: sum(f.done() for f in more) == 6, what="what is too much to be refused")
        for future in filter(Future.done, more):
            with pytest.raises(OverloadedError, match="more requests than it takes on") as caught:
                future.result()
            assert "Try again" in caught.value.hint
            assert caught.value.retry_seconds == 1.0
        waiting = taken + [future for future in more if not future.done()]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(GET)(b"\xff no message", timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert health(channel) == "SERVING"
        assert CLOCK.monotonic() - begun < 10
        assert not any(future.done() for future in waiting)
        project.gate.touch()
        assert [f.result(20).to_dict()["passed"] for f in waiting] == [[1.5]] * 6
        assert score(client) == 0.5


def test_slow_senders_hold_nobody_up_and_are_let_go(project):
    with (
        project.serve(threads=2, receive_seconds=1.0) as server,
        OnlineClient(server.address, timeout=20) as client,
    ):
        assert score(client) == 0.5
        before, _, _ = used(server)
        with RawConnection(server.address, GET) as slow:
            streams = slow.open(40)
            for stream in streams[:20]:
                slow.data(stream, b"\x00\x00\x00\x00\x10half")
            begun = CLOCK.monotonic()
            assert score(client) == 0.5
            assert CLOCK.monotonic() - begun < 5
            for _ in range(50):
                assert score(client, timeout=5) == 0.5
            wait_until(lambda: used(server)[0] <= before + 4, what="the spare threads to end")
            assert not slow.closed.is_set()
            assert score(client) == 0.5


@pytest.mark.parametrize(
    "method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch",
               "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"],
)  # fmt: skip
def test_slow_askers_of_the_standard_services_hold_nobody_up(project, method):
    with (
        project.serve(threads=2, receive_seconds=1.0) as server,
        OnlineClient(server.address, timeout=20) as client,
        grpc.insecure_channel(server.address) as channel,
        RawConnection(server.address, f"/{method}") as slow,
    ):
        slow.open(40)
        begun = CLOCK.monotonic()
        assert score(client) == 0.5
        assert CLOCK.monotonic() - begun < 10
        assert health(channel) == "SERVING"


def test_ten_thousand_streams_neither_crash_nor_leak(project):
    with (
        project.serve(threads=4, max_concurrent_requests=200, receive_seconds=0.5) as server,
        OnlineClient(server.address, timeout=20) as client,
    ):
        assert score(client) == 0.5
        threads, files, memory = used(server)
        connections = [RawConnection(server.address, GET) for _ in range(50)]
        for _ in range(10):
            for connection in connections:
                connection.open(20)
        most, _, grown = used(server)
        assert most <= threads + 64 + 4
        assert grown < memory + 150
        # While they are there callers are answered, if not at the first try.
        begun = CLOCK.monotonic()
        wait_until(lambda: is_answered(client), what="an answer")
        assert CLOCK.monotonic() - begun < 20
        for connection in connections:
            connection.close()
        wait_until(lambda: used(server)[0] <= threads + 4, what="the threads to end")
        wait_until(lambda: used(server)[1] <= files + 2, what="the connections to end")
        assert score(client) == 0.5
        assert used(server)[2] < memory + 150
        assert [line for line in server.logs if line.get("level") == "error"] == []


def is_answered(client):
    try:
        return score(client, timeout=2) == 0.5
    except UnavailableError:
        return False


def valid():
    """Return a valid message of each method."""
    column = pb.Column(name="user", int64s={"values": [1, 2]})
    reference = pb.FeatureReference(view="users", features=["score"])
    asked = pb.GetOnlineFeaturesRequest(
        references={"references": [reference]}, entity_rows=[column], as_of=NOW_US
    )
    pushed = pb.PushRequest(source="clicks", columns={"columns": [column]})
    return {"GetOnlineFeatures": asked, "Push": pushed, "GetServingInfo": pb.PushRequest()}


FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}


def test_bytes_that_make_no_sense_are_the_callers_fault_and_nothing_else(project):
    chance = random.Random(3)  # noqa: S311
    with project.serve() as server, grpc.insecure_channel(server.address) as channel:
        seen = set()
        for method, message in valid().items():
            call = channel.unary_unary(f"/{SERVICE}/{method}")
            whole = message.SerializeToString()
            for number in range(400):
                data = bytearray(whole if number % 2 else chance.randbytes(chance.randrange(80)))
                for _ in range(chance.randrange(4)):
                    if data:
                        data[chance.randrange(len(data))] = chance.randrange(256)
                seen.add(status(call, bytes(data[: chance.randrange(len(data) + 1) or None])))
        assert seen <= FINE
        assert {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK} <= seen
        assert [line for line in server.logs if line.get("level") == "error"] == []
        assert health(channel) == "SERVING"


def status(call, data):
    try:
        call(data, timeout=10)
    except grpc.RpcError as failure:
        return failure.code()
    return grpc.StatusCode.OK


def test_connections_of_noise_do_no_harm(project):
    chance = random.Random(5)  # noqa: S311
    with project.serve(receive_seconds=0.5) as server, OnlineClient(server.address) as client:
        assert score(client) == 0.5
        _, files, _ = used(server)
        host, _, port = server.address.rpartition(":")
        for _ in range(100):
            with socket.create_connection((host, int(port)), timeout=10) as noise:
                noise.sendall(os.urandom(chance.randrange(1, 2_000)))
        for _ in range(100):
            with RawConnection(server.address, GET) as connection:
                for stream in connection.open(2):
                    connection.data(stream, chance.randbytes(chance.randrange(60)))
                kind, flags = chance.randrange(12), chance.randrange(256)
                payload = chance.randbytes(chance.randrange(40))
                connection.send(frame(kind, flags, chance.randrange(9), payload))
        assert score(client, timeout=10) == 0.5
        wait_until(lambda: used(server)[1] <= files + 2, what="the connections to end")


def test_a_call_without_a_message_and_one_with_two(project):
    with project.serve() as server, grpc.insecure_channel(server.address) as channel:
        call = channel.stream_unary(GET)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "without a message" in caught.value.details()
        message = valid()["GetOnlineFeatures"].SerializeToString()
        assert len(call(iter([message, message]), timeout=10)) > 10
