"""Reads over a connection's own socket: the same answers, deadlines and errors as the driver's."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.redis import store as rooms
from featurestore.errors import OnlineStoreUnavailableError, StorageError
from featurestore.testing.online import packed
from featurestore.testing.valkey import ValkeyServer
from tests.integration.wire import Listener

GONE = OnlineStoreUnavailableError
SLACK = 1.0  # for a machine that is busy with other tests
KEYS = [b"\x00*space\xff%d" % i for i in range(300)]
TWO = b"*2\r\n$3\r\nabc\r\n$-1\r\n"


@pytest.fixture
def direct(monkeypatch):
    """Return a function after which the driver reads nothing any more."""

    def refuse(*_args, **_options):
        raise AssertionError("the driver was asked")

    return lambda: monkeypatch.setattr(rooms, "exchange", refuse)


def speaking(*replies):
    """Return what answers each PING, and the reads of each connection so, in pieces, then ends."""

    def handle(connection: socket.socket, closing: threading.Event) -> None:
        left = list(replies)
        while asked := connection.recv(1 << 16):
            if b"PING" in asked:
                connection.sendall(b"+PONG\r\n")
                continue
            for piece in left.pop(0) if left else ():
                connection.sendall(piece)
                closing.wait(0.01)
            if not left:
                return

    return handle


def opened(server, timeout=5.0):
    """Return a store with one open connection."""
    store = RedisOnlineStore.from_url(server.url, timeout=timeout)
    store.ping()
    return store


def test_it_reads_what_was_written(direct):
    with ValkeyServer() as server:
        store = RedisOnlineStore.from_url(server.url, timeout=5)
        values = [packed(1, payload=b"%d" % i) for i in range(len(KEYS))]
        values[7] = packed(1, payload=b"x" * 3_000_000)
        assert store.write(KEYS, values, None) == len(KEYS)
        direct()
        assert store.read(KEYS) == values
        assert store.read([KEYS[3], b"not there", KEYS[3]]) == [values[3], None, values[3]]
        assert store.read([]) == []
        assert store.read(KEYS[:1], timeout=1) == values[:1]
        store.close()


def test_driver_and_direct_reads_share_a_connection():
    with ValkeyServer() as server:
        store = RedisOnlineStore.from_url(server.url, timeout=5)
        for event in range(1, 5):
            rows = [packed(event)] * 3
            assert store.write(KEYS[:3], rows, None) == 3
            assert store.read(KEYS[:3]) == rows
            store.ping()
        assert int(server.command("INFO", "clients").partition("connected_clients:")[2][0]) <= 2
        store.close()


def test_an_answer_in_pieces(direct):
    pieces = [TWO[:1], TWO[1:9], TWO[9:]]
    with Listener(speaking(pieces, [TWO])) as server:
        store = opened(server)
        direct()
        for _ in range(2):
            assert store.read([b"a", b"b"]) == [b"abc", None]
        assert server.accepted == 1
        store.close()


def test_an_answer_that_drips_ends_at_the_deadline():
    with Listener(speaking([b"*1\r\n$1000\r\n", *[b"x"] * 500])) as server:
        store = opened(server, timeout=30)
        began = time.monotonic()
        with pytest.raises(GONE, match=r"[Tt]imeout"):
            store.read(KEYS[:2], timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 0.3 + SLACK
        assert server.accepted == 1
        store.close()


def test_no_answer_within_the_deadline_closes_the_connection():
    with Listener(speaking([], [TWO])) as server:
        store = opened(server, timeout=30)
        began = time.monotonic()
        with pytest.raises(GONE):
            store.read(KEYS[:2], timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 0.2 + SLACK
        with pytest.raises(GONE):
            # Through another connection: what was given up may still be answered on the first.
            store.read(KEYS[:2], timeout=0.2)
        assert server.accepted == 2
        store.close()


@pytest.mark.parametrize("last", [(), ([TWO[:9]],)], ids=["before", "amid"])
def test_a_server_that_hangs_up_is_asked_once_more(last):
    with Listener(speaking(*last)) as server:
        store = opened(server)
        with pytest.raises(GONE, match="cannot be reached"):
            store.read(KEYS[:2])
        assert server.accepted == 2
        store.close()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("WRONGTYPE Operation against a key", StorageError),
        ("LOADING Redis is loading the dataset in memory", GONE),
    ],
)
def test_an_error_has_the_drivers_meaning(text, error):
    reply = [f"-{text}\r\n".encode()]
    with Listener(speaking(reply, reply, reply, reply)) as server:
        store = opened(server)
        with pytest.raises(error, match=text.split(maxsplit=1)[1]) as caught:
            store.read(KEYS[:2])
        assert type(caught.value) is error
        store.close()


def test_an_answer_of_no_meaning():
    with Listener(speaking([b"HTTP/1.1 400 Bad Request\r\n\r\n"])) as server:
        store = opened(server, timeout=1)
        with pytest.raises((GONE, StorageError)):
            store.read(KEYS[:2])
        store.close()
