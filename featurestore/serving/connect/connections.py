"""One connection of the Connect front: HTTP/1.1 in, answers out, and an end to every patience.

llhttp reads what comes, strictly. Requests of one connection are answered one after the other, and
while one is being answered no more is read. Whoever sends or reads too slowly is let go, as is
whoever sends what is no HTTP; each is told so where that can be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import httptools

from featurestore.serving.connect.refusals import in_vain, no_http, noise
from featurestore.serving.connect.requests import Request
from featurestore.serving.replies import Reply

KEEPALIVE_SECONDS = 75.0
WRITE_SECONDS = 30.0
_LINGERING_SECONDS = 0.5
_NEVER = float("inf")
# Requests that come at once are taken up to so many, and then no more.
_MOST_QUEUED = 100
# Bytes that are neither a head yet nor a body: long lines, trailers, what chunks say of themselves.
_MOST_BARREN = 64 * 1024


class Front(Protocol):
    """What a connection needs of its front."""

    loop: asyncio.AbstractEventLoop
    seconds: float
    connections: set[Connection]

    def headed(self, connection: Connection, request: Request, verb: str) -> None:
        """Look at a head that has come, before its body does."""
        ...

    def takes(self, connection: Connection, request: Request, part: bytes) -> bool:
        """Return whether a part of a body may be held; refuse the request if not."""
        ...

    def call(self, connection: Connection, request: Request) -> None:
        """Have a request answered."""
        ...

    def release(self, request: Request) -> None:
        """Hear that the body of a request is needed no more."""
        ...

    def failed(self, error: Exception) -> None:
        """Hear of what nobody foresaw."""
        ...

    def written(self, reply: Reply, *, closes: bool) -> bytes:
        """Return the bytes of an answer."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether connections end with their next answer."""
        ...


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        front: Answers its requests.

    Attributes:
        due: When its patience ends, by the loop's clock.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._coming: Request | None = None
        self._answering: Request | None = None
        self._queue: deque[Request] = deque()
        self._later: list[bytes] = []
        self._barren = 0
        self._again = b""
        self._is_deaf = self._is_ending = self._is_clogged = self._is_closing = False
        self.due = _NEVER

    # -- what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a first request, but not for ever."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._front.connections.add(self)
        self._allow(self._front.seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget all that was to be done for it; what a thread has goes on to its end."""
        del exc
        self._transport, self._is_deaf = None, True
        self._front.connections.discard(self)
        left = [self._coming, self._answering, *self._queue]
        self._coming = self._answering = None
        self._queue.clear()
        for request in left:
            if request is None:
                continue
            request.forget()
            if request.exchange is not None:
                request.exchange.gone = True
            if request.exchange is None or not request.exchange.handed_over:
                self._front.release(request)

    def data_received(self, data: bytes) -> None:
        """Take in what has come; what comes while an answer is awaited waits as well."""
        if self._is_deaf:
            return
        if self._answering is not None or self._is_clogged:
            self._later.append(data)
            self.pause()
            return
        self._feed(data)

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are still to come, and no longer."""
        self._is_closing = True
        waits = self._answering is not None and not self._is_ending
        return waits and self._transport is not None and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """Wait for who does not read, but not for ever."""
        self._is_clogged = True
        self._allow(WRITE_SECONDS)

    def resume_writing(self) -> None:
        """Go on: the other end reads."""
        self._is_clogged = False
        if self._is_ending:
            self._allow(_LINGERING_SECONDS)
        elif self._answering is None:
            self._go_on()

    # -- what llhttp tells

    def on_message_begin(self) -> None:
        """Hear that a request begins; its head must follow soon."""
        self._coming = Request()
        self._allow(self._front.seconds)

    def on_url(self, part: bytes) -> None:
        """Take in a part of the path."""
        if self._coming is not None:
            self._coming.add_path(part)

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """Take in a header; trailers are of no use to anybody."""
        if self._coming is not None and not self._coming.is_headed:
            self._coming.add_header(name, value)

    def on_headers_complete(self) -> None:
        """Look at a head, before its body is taken in."""
        request = self._coming
        if request is None or self._is_deaf:
            return
        verb = self._parser.get_method().decode("latin-1")
        if request.is_fat:
            self.refuse(request, no_http("", too_large=True))
        elif self._parser.should_upgrade() and verb != "CONNECT":
            # llhttp reads no body after that: it gets the same once more without such words.
            self._again = request.without_upgrade(verb)
        else:
            request.is_headed = True
            self._allow(self._front.seconds)
            self._front.headed(self, request, verb)

    def on_body(self, part: bytes) -> None:
        """Take in a part of a body, if it may be held."""
        self._barren = 0
        request = self._coming
        if request is None or self._is_deaf:
            return
        if self._front.takes(self, request, part):
            request.add_body(part)

    def on_message_complete(self) -> None:
        """Have a request answered, in its turn."""
        request, self._coming = self._coming, None
        self._barren = 0
        if request is None or self._is_deaf or self._again:
            return
        request.is_whole = True
        request.stays = self._parser.should_keep_alive()
        self._take(request)

    # -- what the front tells

    @property
    def transport(self) -> asyncio.Transport | None:
        """The way to the other end; None once it is gone."""
        return self._transport

    @property
    def is_deaf(self) -> bool:
        """Whether nothing more is taken in."""
        return self._is_deaf

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being asked or answered."""
        return self._answering is None and self._coming is None

    def pause(self) -> None:
        """Read no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._later:
            self._transport.resume_reading()

    def go_on(self) -> None:
        """Write into the connection that a body may come."""
        if self._transport is not None and self._answering is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def admitted(self, request: Request) -> None:
        """Go on with a request whose caller may call."""
        request.waits = False
        if request is self._answering:
            self._front.call(self, request)
        elif not self._is_deaf:
            self._allow(self._front.seconds)
            self.resume()

    def answered(self, request: Request, reply: Reply) -> None:
        """Send an answer, in its turn; a request that has one already gets no other."""
        if request is self._coming:
            self.refuse(request, reply)
        elif request.end(reply) and request is self._answering:
            self._write(reply, stays=request.stays)

    def refuse(self, request: Request, reply: Reply) -> None:
        """Answer a request of which more may come, and take in no more of anything."""
        self._is_deaf = True
        if self._coming is request:
            self._coming = None
        request.stays = False
        if request.end(reply):
            self._front.release(request)
            self._take(request)

    def expire(self) -> None:
        """Let go of who was waited for in vain."""
        request = self._coming
        if self._transport is None:
            return
        if self._is_clogged or self._is_closing:
            self._transport.abort()
        elif self._is_ending or request is None:
            self._shut()
        elif not request.waits:
            self.refuse(request, in_vain(request, self._front.seconds))

    def wind_up(self) -> None:
        """End with the answer that is being awaited, or at once."""
        if self.is_idle and not self._is_ending:
            self._shut()

    def abort(self) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()

    # -- within

    def _allow(self, seconds: float) -> None:
        if not self._is_clogged or seconds == WRITE_SECONDS:
            self.due = self._front.loop.time() + seconds

    def _feed(self, data: bytes) -> None:
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as reached:
            again, self._again = self._again, b""
            if again and not self._is_deaf:
                self._parser = httptools.HttpRequestParser(self)
                self._feed(again + data[reached.args[0] :])
                return
        except httptools.HttpParserCallbackError as error:
            # It is not what came that is wrong.
            self._front.failed(error)
            self.abort()
        except httptools.HttpParserError as error:
            self._refuse_noise(str(error))
        if self._barren > _MOST_BARREN and self._coming is not None and not self._is_deaf:
            self._refuse_noise("", too_large=not self._coming.is_headed)
        if self._coming is None:
            self._barren = 0

    def _refuse_noise(self, got: str, *, too_large: bool = False) -> None:
        """Refuse what is no HTTP; after requests that end the connection it is not even that."""
        last = self._queue[-1] if self._queue else self._answering
        if self._is_deaf or self._is_ending or (last is not None and not last.stays):
            self._is_deaf = True
            return
        request = self._coming or Request()
        if request.exchange is None:
            self.refuse(request, no_http(got, too_large=too_large))
        else:
            self.refuse(request, request.exchange.fail(noise(got, too_large=too_large)))

    def _take(self, request: Request) -> None:
        if self._answering is None and not self._is_clogged:
            self._start(request)
            return
        self._queue.append(request)
        if len(self._queue) >= _MOST_QUEUED:
            self._is_deaf, request.stays = True, False

    def _start(self, request: Request) -> None:
        self._answering, self.due = request, _NEVER
        if request.reply is not None:
            self._write(request.reply, stays=request.stays)
        elif not request.waits:
            self._front.call(self, request)

    def _write(self, reply: Reply, *, stays: bool) -> None:
        self._answering = None
        if self._transport is None:
            return
        ends = reply.closes or not stays or self._front.is_draining
        ends = ends or (self._is_closing and not self._queue)
        self._allow(KEEPALIVE_SECONDS)
        self._transport.write(self._front.written(reply, closes=ends))
        if ends:
            self._end()
        elif not self._is_clogged:
            self._go_on()

    def _go_on(self) -> None:
        """Take up what has come meanwhile."""
        if self._queue:
            self._start(self._queue.popleft())
        elif self._later:
            data = b"".join(self._later)
            self._later.clear()
            self._feed(data)
            if self._transport is not None and not self._is_ending:
                self._transport.resume_reading()

    def _end(self) -> None:
        """Close once the answer is sent; who still sends gets to read it first."""
        self._queue.clear()
        self._later.clear()
        transport, lingers = self._transport, self._is_deaf
        self._is_deaf = self._is_ending = True
        if transport is None or not lingers or self._is_closing or not _ended(transport):
            self._shut()
            return
        transport.resume_reading()
        self._allow(_LINGERING_SECONDS)

    def _shut(self) -> None:
        self._is_deaf = self._is_ending = self._is_closing = True
        self._allow(WRITE_SECONDS)
        if self._transport is not None:
            self._transport.close()


def _ended(transport: asyncio.Transport) -> bool:
    """Say that nothing more is sent; return whether that could be said."""
    if transport.is_closing() or not transport.can_write_eof():
        return False
    try:
        transport.write_eof()
    except OSError:
        # The other end has hung up already.
        return False
    return True
