"""The server of the Connect protocol: a loop of its own on a thread, beside the gRPC server.

It takes requests in and sends answers; everything that may wait or compute runs on the threads that
answer lookups. What one caller may make it hold is bounded, and all that all of them may.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC
from email.utils import format_datetime
from http import HTTPStatus
from typing import TypeVar

from featurestore.errors import FeatureStoreError
from featurestore.model.settings import ServingSettings
from featurestore.semantics.timeline import to_datetime
from featurestore.serving.connect.connections import Connection
from featurestore.serving.connect.protocol import (
    CONNECT,
    MESSAGE_TYPE,
    check_head,
    failure,
    seconds_of,
)
from featurestore.serving.connect.requests import Request
from featurestore.serving.connect.routes import Routes
from featurestore.serving.exchange import Exchange, Surroundings
from featurestore.serving.front_loop import FrontLoop
from featurestore.serving.http.gathering import Gathering
from featurestore.serving.http.heads import certificate_of, peer_of
from featurestore.serving.http.statuses import JSON_TYPE, crowded, too_large
from featurestore.serving.http.tls import HttpTls
from featurestore.serving.methods import Methods
from featurestore.serving.replies import Reply
from featurestore.serving.security.calls import Call
from featurestore.serving.security.headers import REQUEST_ID
from featurestore.serving.status import code_of

_LOOK_SECONDS = 0.1
# Bodies up to this size are taken in before it is known who calls: they cost next to nothing.
_SMALL = 64 * 1024
# So many of the largest bodies may be held at once.
_SHARES = 8
_GOOD = f"HTTP/1.1 200 OK\r\ncontent-type: {MESSAGE_TYPE}\r\n"
_TAIL = "server: featurestore\r\ncache-control: no-store\r\n"
Answer = TypeVar("Answer")


class ConnectFront(FrontLoop):
    """Serves the Connect protocol.

    Args:
        settings: The address and the limits; port 0 takes a free one.
        routes: What answers which path.
        methods: Answer lookups.
        around: What all calls need.
        tls: The certificate; None is plain text.
        share_port: Whether other processes listen on the address too.

    Attributes:
        loop: Where it runs.
        seconds: How long a head, and then a body, may take to come.
        connections: Those that are there.
        is_draining: Whether connections end with their next answer.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        settings: ServingSettings,
        routes: Routes,
        methods: Methods,
        around: Surroundings,
        *,
        tls: HttpTls | None,
        share_port: bool,
    ) -> None:
        super().__init__(
            "connect",
            settings.connect_address,
            "serving.connect_address",
            seconds=settings.receive_seconds,
            context=None if tls is None else tls.context,
            share_port=share_port,
        )
        self.seconds = settings.receive_seconds
        self.connections: set[Connection] = set()
        self.is_draining = False
        self._routes = routes
        self._methods = methods
        self._around = around
        self._drain_seconds = settings.drain_seconds
        self._limit = settings.max_message_bytes
        self._budget = _SHARES * settings.max_message_bytes
        self._most_lookups = settings.max_concurrent_requests
        self._restricted = around.guard.access.restricted
        self._held = 0
        self._tail = b""

    def connections_of(self, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
        """See `FrontLoop.connections_of`."""
        self.loop = loop
        self._gathering = Gathering(self._methods, self._around.pool, loop, self._most_lookups)
        self._look()
        return lambda: Connection(self)

    def ending(self) -> None:
        """See `FrontLoop.ending`."""
        self.is_draining = True

    async def wind_up(self) -> None:
        """See `FrontLoop.wind_up`."""
        until = self.loop.time() + self._drain_seconds
        while self.connections and self.loop.time() < until:
            for connection in list(self.connections):
                connection.wind_up()
            await asyncio.sleep(_LOOK_SECONDS / 10)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    # -- what connections tell

    def headed(self, connection: Connection, request: Request, verb: str) -> None:
        """Look at a head that has come: refuse it, or make a call of it."""
        headers = request.headers
        try:
            path = request.path.partition(b"?")[0]
            request.route = route = self._routes.of(path, verb)
            check_head(headers)
            seconds = seconds_of(headers)
            limit = self._limit if route.told is None else _SMALL
            length = request.length
            if length is not None and length > limit:
                raise too_large("message", f"{length} bytes", limit)
        except FeatureStoreError as error:
            # Refused by its head alone: no call of a method has begun.
            told = failure(error, Call("", headers.items()).id, code_of)
            connection.refuse(request, told)
            return
        if route.told is None:
            self._begin(connection, request, seconds)
        if not connection.is_deaf and headers.get("expect", "").lower() == "100-continue":
            connection.go_on()

    def takes(self, connection: Connection, request: Request, part: bytes) -> bool:
        """Return whether a part of a body may be held; refuse the request if not."""
        size, exchange = len(part), request.exchange
        error: FeatureStoreError | None = None
        limit = self._limit if exchange is not None else _SMALL
        if request.held + size > limit:
            error = too_large("message", f"more than {limit} bytes", limit)
        elif self._held + size > self._budget:
            error = crowded()
        if error is None:
            request.held += size
            self._held += size
            return True
        request_id = Call("", request.headers.items()).id
        told = exchange.fail(error) if exchange else failure(error, request_id, code_of)
        connection.refuse(request, told)
        return False

    def call(self, connection: Connection, request: Request) -> None:
        """Have a request answered."""
        route, exchange = request.route, request.exchange
        assert route is not None  # noqa: S101  (its head was looked at)
        if exchange is None:
            self._tell(connection, request)
            return
        exchange.handed_over = True
        body, method = bytes(request.body), route.method

        def told(reply: Reply) -> None:
            self.release(request)
            connection.answered(request, reply)

        if method is None:
            self._gathering.put(exchange, body, told)
        else:
            self._on_a_thread(lambda: exchange.answer(method, body), told)

    def release(self, request: Request) -> None:
        """Hear that the body of a request is needed no more."""
        self._held -= request.held
        request.held, request.body = 0, b""

    def failed(self, error: Exception) -> None:
        """Write down what nobody foresaw."""
        self._around.log.error("request failed", exc_info=error)

    def written(self, reply: Reply, *, closes: bool) -> bytes:
        """Return the bytes of an answer."""
        first = _GOOD if reply.status == HTTPStatus.OK else _bad(reply.status)
        said = "".join([f"{name}: {value}\r\n" for name, value in reply.headers.items()])
        last = "connection: close\r\n" if closes else ""
        head = f"{first}content-length: {len(reply.body)}\r\n{said}{last}"
        return b"".join((head.encode("latin-1", "replace"), self._tail, reply.body))

    # -- within

    def _begin(self, connection: Connection, request: Request, seconds: float | None) -> None:
        """Make a call of a request; with a large body to come, find out first who calls."""
        route, transport = request.route, connection.transport
        assert route is not None  # noqa: S101
        assert transport is not None  # noqa: S101
        exchange = request.exchange = Exchange(
            self._around,
            Call(route.name, request.headers.items()),
            route.code_of,
            seconds,
            peer_of(transport),
            certificate_of(transport),
            CONNECT,
        )
        if seconds is not None:
            request.timer = self.loop.call_later(seconds, self._late, connection, request)
        length = request.length
        if not self._restricted or (length is not None and length <= _SMALL):
            return
        request.waits = True
        connection.pause()

        def admitted(refused: Reply | None) -> None:
            if refused is None:
                connection.admitted(request)
            else:
                self.release(request)
                connection.answered(
                    request, Reply(refused.status, refused.body, refused.headers, closes=True)
                )

        self._on_a_thread(exchange.admit, admitted)

    def _late(self, connection: Connection, request: Request) -> None:
        """Tell a caller that its time is over; a thread that works ends the call."""
        exchange = request.exchange
        assert exchange is not None  # noqa: S101
        if not exchange.handed_over:
            self.release(request)
        connection.answered(request, exchange.late())

    def _tell(self, connection: Connection, request: Request) -> None:
        """Answer what everybody is told."""
        request_id = Call("", request.headers.items()).id
        told = request.route.told if request.route is not None else None
        assert told is not None  # noqa: S101
        try:
            reply = Reply(200, told(bytes(request.body)), {REQUEST_ID: request_id})
        except FeatureStoreError as error:
            reply = failure(error, request_id, code_of)
        self.release(request)
        connection.answered(request, reply)

    def _on_a_thread(self, work: Callable[[], Answer], told: Callable[[Answer], None]) -> None:
        def worked() -> None:
            answer = work()
            # Without the loop draining took too long, and nobody is there to be told.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(told, answer)

        self._around.pool.submit(worked)

    def _look(self) -> None:
        """Let go of connections that were waited for in vain; write down the time of answers."""
        now = self.loop.time()
        instant = to_datetime(self._around.clock.now_us()).astimezone(UTC)
        date = format_datetime(instant, usegmt=True)
        self._tail = f"{_TAIL}date: {date}\r\n\r\n".encode()
        for connection in list(self.connections):
            if connection.due <= now:
                connection.expire()
        self.loop.call_later(_LOOK_SECONDS, self._look)


def _bad(status: int) -> str:
    """Return what leads the answer to a call that failed."""
    known = status in {each.value for each in HTTPStatus}
    phrase = HTTPStatus(status).phrase if known else "Client Closed Request"
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {JSON_TYPE}\r\n"
