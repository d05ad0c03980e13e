"""A feature server with both fronts in this process, and plain ways to speak to the HTTP one."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import RequestError
from featurestore.model.settings import ServingSettings
from featurestore.services.pushing_events import PushReceipt
from featurestore.serving.client import OnlineClient
from featurestore.serving.server import FeatureServer
from tests.integration.grpc_server import functions
from tests.integration.test_grpc_serving import (
    EMPTY,
    EVERY,
    FULL,
    NULLS,
    PAIRS,
    STATE,
    USERS,
    WORLD,
)
from tests.served import HOUR_US, NOW_US, Served

JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Recorder:
    """An observer that remembers."""

    def __init__(self):
        self.heard: list[tuple[str, ...]] = []

    def begun(self, call):
        self.heard.append(("begun", call.method, call.front))

    def answered(self, call, asked, answer):
        self.heard.append(("answered", call.method, asked.features, answer.rows))

    def ended(self, call, status, error):
        self.heard.append(("ended", call.method, status, type(error).__name__))

    def close(self):
        self.heard.append(("closed",))


class Sink:
    """Takes events as a store does, and remembers them."""

    def __init__(self):
        self.pushed: list[Any] = []

    def push(self, source, events, *, timeout=None):
        self.pushed.append((source, events, timeout))
        return PushReceipt(events.num_rows, {f"{source}/0": 2**53 + 1})

    def read(self, source, objects):
        import pyarrow as pa

        if source != "clicks":
            raise RequestError(f"No source is called '{source}'.")
        return pa.table({"id": [item["id"] for item in objects]})


class Fronts:
    """A server; see `tests.integration.test_grpc_serving` for what it serves."""

    def __init__(
        self, folder: Path | None = None, gate: Path | None = None, **settings: Any
    ) -> None:
        self.served = Served(STATE, functions(gate))
        self.served.push(EVERY, ((1,), NOW_US, FULL), ((2,), NOW_US, NULLS), ((3,), NOW_US, EMPTY))
        self.served.push(
            USERS,
            ((1,), NOW_US - 1, (0.5, "one")),
            ((2,), NOW_US - 2, (None, "two")),
            ((3,), NOW_US - HOUR_US - 1, (3.0, "old")),
        )
        self.served.push(PAIRS, (("12", 3), NOW_US, (2.0,)))
        self.served.push(WORLD, ((), NOW_US, (9.0,)))
        self.recorder, self.sink = Recorder(), Sink()
        given = {"refresh_seconds": 0.05, "address": "127.0.0.1:0", "http_address": "127.0.0.1:0"}
        self.server = FeatureServer(
            self.served.reader,
            ServingSettings(**{**given, **settings}),
            events=self.sink,
            event_reader=self.sink.read,
            folder=folder or Path(),
            observers=[self.recorder],
        )
        self.address = self.server.start()
        self.http_address = self.server.http_address or ""
        self.host, _, port = self.http_address.rpartition(":")
        self.port = int(port or 0)

    def client(self, **options: Any) -> OnlineClient:
        return OnlineClient(self.address, **options)

    def ask(
        self,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        verb: str | None = None,
        **options: Any,
    ) -> Answer:
        """Ask once, over a connection of its own."""
        kind = http.client.HTTPSConnection if "context" in options else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=20, **options)
        try:
            return ask(connection, path, body, headers, verb)
        finally:
            connection.close()

    def look_up(self, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("/v1/get-online-features", body, headers)

    def raw(self, data: bytes, *, end: bool = False) -> bytes:
        """Send bytes, and return all that comes until the server hangs up."""
        with socket.create_connection((self.host, self.port), timeout=20) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    def stop(self) -> None:
        self.server.stop()


@contextmanager
def held_store(fronts: Fronts) -> Iterator[None]:
    """Hold reads of a server's store until `fronts.open` is set; `fronts.reads` has their keys."""
    reads: list[int] = []
    read, opened = fronts.served.store.read, threading.Event()

    def slow(keys, **options):
        reads.append(len(keys))
        opened.wait(20)
        return read(keys, **options)

    fronts.served.store.read = slow
    fronts.open, fronts.reads = opened, reads
    try:
        yield
    finally:
        opened.set()


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    verb: str | None = None,
) -> Answer:
    """Ask over a connection that stays."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    verb = verb or ("GET" if data is None else "POST")
    kind = {} if data is None else JSON
    connection.request(verb, path, data, {**kind, **(headers or {})})
    answer = connection.getresponse()
    named = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, named, answer.read())


def read_all(connection: socket.socket) -> bytes:
    """Return all that comes until the other end hangs up."""
    found = b""
    try:
        while chunk := connection.recv(1 << 16):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with some of them changed, cut or repeated."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(found))
        kind = chance.randrange(3)
        if kind == 0:
            found[place] = chance.randrange(256)
        elif kind == 1:
            del found[place : place + chance.randint(1, 20)]
        else:
            found[place:place] = found[place : place + 30] * chance.randint(1, 5)
    return bytes(found)


def parsed(raw: bytes) -> Answer:
    """Return the first answer of a stream of them."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, rest[: int(headers.get("content-length", 0))])
