"""Answers that come when nobody waits any more: observers hear what the caller saw."""

import socket
import struct

import grpc
import pytest

from featurestore.testing.valkey import wait_until
from tests.integration.connect_front import KIND, LOOKUP, ONE, ConnectFronts
from tests.integration.http_front import Fronts, held_store, parsed, read_all

PATHS = {"http": "/v1/get-online-features", "connect": LOOKUP}
BODIES = {"http": b'{"features": ["users:score"], "entity_rows": [{"user": 1}]}', "connect": ONE}
KINDS = {"http": "application/json", "connect": KIND}
DEADLINES = {"http": "x-request-timeout: 0.05\r\n", "connect": "connect-timeout-ms: 50\r\n"}

pytestmark = pytest.mark.usefixtures("logs")


def calls_of(fronts):
    """Return the calls over gRPC that have not ended, as grpcio has them."""
    return fronts.server._server._state.rpc_states


class Asker:
    """A caller of one front who does not wait to the end."""

    def __init__(self, kind):
        self.kind = kind
        self.fronts = ConnectFronts() if kind == "connect" else Fronts()

    def ask(self, *, hasty):
        """Ask once."""
        fronts = self.fronts
        if self.kind == "grpc":
            self._channel = grpc.insecure_channel(fronts.address)
            method = self._channel.unary_unary(LOOKUP)
            self._call = method.future(ONE, timeout=0.05 if hasty else None)
            return
        body = BODIES[self.kind]
        head = f"POST {PATHS[self.kind]} HTTP/1.1\r\nhost: x\r\n"
        head += f"content-type: {KINDS[self.kind]}\r\ncontent-length: {len(body)}\r\n"
        head += f"connection: close\r\n{DEADLINES[self.kind] if hasty else ''}\r\n"
        self._connection = socket.create_connection((fronts.host, fronts.port), timeout=20)
        self._connection.sendall(head.encode() + body)

    def is_told(self):
        """Wait to be told that the time is over; return what was told."""
        if self.kind == "grpc":
            wait_until(lambda: not calls_of(self.fronts), what="the end of the call")
            return self._call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return parsed(read_all(self._connection)).status == 504

    def leave(self):
        """Go away, and wait until the server knows."""
        if self.kind == "grpc":
            self._call.cancel()
            wait_until(lambda: not calls_of(self.fronts), what="the end of the call")
            return
        # Not just the end of what it sends, after which it could still listen.
        linger = struct.pack("ii", 1, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._connection.close()
        server = self.fronts.server
        front = server._connect if self.kind == "connect" else server._front._server
        wait_until(lambda: not front.connections, what="the end of the connection")

    def close(self):
        if self.kind == "grpc":
            self._channel.close()
        else:
            self._connection.close()
        self.fronts.stop()

    @property
    def ended(self):
        return [heard[2:] for heard in self.fronts.recorder.heard if heard[0] == "ended"]


@pytest.fixture(params=["grpc", "http", "connect"])
def asker(request):
    asker = Asker(request.param)
    with held_store(asker.fronts):
        yield asker
    asker.close()


@pytest.mark.parametrize("hasty", [True, False])
def test_observers_hear_what_the_caller_saw(asker, hasty):
    asker.ask(hasty=hasty)
    wait_until(lambda: asker.fronts.reads, what="the lookup to be read")
    if hasty:
        assert asker.is_told()
    else:
        asker.leave()
    assert asker.ended == []
    asker.fronts.open.set()
    wait_until(lambda: asker.ended, what="the call to end")
    late, gone = ("DEADLINE_EXCEEDED", "DeadlineExceededError"), ("CANCELLED", "NoneType")
    assert asker.ended == [late if hasty else gone]
