"""Clients that connect to a busy server, or to one that hangs: they wait, but not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading

import pytest

from featurestore import AsyncOnlineClient, OnlineClient
from featurestore.model.settings import ServingSettings
from featurestore.serving.server import FeatureServer
from tests.integration.wire import Listener
from tests.served import NOW_US, Served, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
SCORE = ["users:score"]
ROWS = {"user": [1]}
ANSWER = {"user": [1], "score": [0.5]}


@pytest.fixture
def port():
    served = Served(state([USERS]))
    served.push(USERS, ((1,), NOW_US, (0.5,)))
    server = FeatureServer(served.reader, ServingSettings(address="127.0.0.1:0"))
    address = server.start()
    yield int(address.rpartition(":")[2])
    server.stop()


def door(port, *, seconds=0.0, deaf=0, broken=0):
    """Return a listener that passes connections on to a port.

    Args:
        port: Where the server listens.
        seconds: How long it lets each wait before it hears anything.
        deaf: How many, from the first, never hear anything.
        broken: How many, from the first, are reset.
    """
    first = ["deaf"] * deaf + ["broken"] * broken

    def handle(connection, closing):
        fate = first.pop() if first else None
        if fate == "deaf":
            closing.wait()
        elif fate == "broken":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif not closing.wait(seconds):
            with socket.create_connection(("127.0.0.1", port)) as server:
                back = threading.Thread(target=pass_on, args=(server, connection))
                back.start()
                pass_on(connection, server)
                back.join(10)

    return Listener(handle)


def pass_on(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    # Whoever reads there is to end too.
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def blocking(address):
    with OnlineClient(address, timeout=10) as client:
        return client.get_online_features(SCORE, ROWS).to_dict()


def in_a_loop(address):
    async def ask():
        async with AsyncOnlineClient(address, timeout=10) as client:
            return (await client.get_online_features(SCORE, ROWS)).to_dict()

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [blocking, in_a_loop])
def test_a_server_that_is_slow_to_greet_is_waited_for(port, ask):
    """A client that gives up early comes again, and is work for a server that has too much."""
    with door(port, seconds=0.5) as slow:
        assert ask(f"127.0.0.1:{slow.port}") == ANSWER
    assert slow.accepted == 1


@pytest.mark.parametrize("ask", [blocking, in_a_loop])
def test_a_server_that_goes_as_a_client_comes_is_followed_by_another(port, ask):
    """Who waits to be taken in when a worker ends is cut off; the next worker may be busy."""
    with door(port, seconds=0.3, broken=1) as changing:
        assert ask(f"127.0.0.1:{changing.port}") == ANSWER
    assert changing.accepted == 2


def test_a_server_that_hangs_is_left_for_another_in_time(port):
    with door(port, deaf=1) as hung:
        assert blocking(f"127.0.0.1:{hung.port}") == ANSWER
    assert hung.accepted == 2
