"""Connections as aiohttp serves them, with an end to patience, and errors that are JSON.

aiohttp waits for ever for a head that comes byte by byte, and for a reader who reads no answers;
what is no HTTP it answers with plain text. Here each of these has a limit, and an error of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from featurestore.serving.http.statuses import JSON_TYPE, breakdown, refusal
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.security.calls import Call

KEEPALIVE_SECONDS = 75.0
_WRITE_SECONDS = 30.0
_LINGERING_SECONDS = 0.5
_SHOWN = 200
_HEADERS = {"server": "featurestore", "cache-control": "no-store"}

Respond = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def response_of(reply: Reply) -> web.Response:
    """Return a reply as aiohttp sends it."""
    response = web.Response(
        status=reply.status,
        body=reply.body,
        headers={**_HEADERS, **reply.headers},
        content_type=JSON_TYPE,
    )
    if reply.closes:
        response.force_close()
    return response


class Connection(web.RequestHandler):
    """One connection.

    Args:
        manager: The server.
        loop: Its loop.
        seconds: How long the head of a request may take to come.
        log: Told of what nobody foresaw.
    """

    def __init__(
        self, manager: Server, *, loop: asyncio.AbstractEventLoop, seconds: float, log: Any
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=_LINGERING_SECONDS,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
        )
        self._head_seconds = seconds
        self._logger = log
        self._limit: asyncio.TimerHandle | None = None
        self._busy = False
        self._began = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a first request, but not for ever."""
        super().connection_made(transport)
        self._allow(self._head_seconds, self._give_up)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the limits."""
        self._allow(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request; the rest of a head must follow soon."""
        if not self._busy and data:
            self._began = True
            if self._limit is None:
                self._allow(self._head_seconds, self._give_up)
        super().data_received(data)

    def close(self) -> None:
        """Take no more requests; without one in hand that is the end at once."""
        super().close()
        if not self._busy:
            self.force_close()

    def begin(self) -> None:
        """Hear that a head has come whole."""
        self._busy = True
        self._allow(None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; who does not read it is let go."""
        self._allow(_WRITE_SECONDS, self._cut)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._allow(None)
            self._busy = self._began = False

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  (as aiohttp calls it)
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and what failed where nobody foresaw it."""
        self.begin()
        call = Call("", ())
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._logger.error("request failed", request_id=call.id, exc_info=exc)
            reply = breakdown("The server failed; its log has the reason.", call.id)
            response = response_of(reply)
            response.force_close()
            return response
        long = isinstance(exc, LineTooLong)
        error = RefusedError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if long else HTTPStatus.BAD_REQUEST,
            "INVALID_ARGUMENT",
            "The head of the request is too large." if long else "The request is no HTTP/1.1.",
            got=" ".join(ascii(message or "").split())[:_SHOWN],
        )
        return response_of(refusal(error, call.id))

    def _allow(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        """Have something done after so many seconds, instead of what was to be done before."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if seconds is not None and then is not None:
            self._limit = asyncio.get_running_loop().call_later(seconds, then)

    def _give_up(self) -> None:
        """Let go of who sends no head; tell it so if it began."""
        self._limit = None
        if self._began and self.transport is not None:
            error = RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                "CANCELLED",
                "The head of the request did not come in time.",
                allowed=f"{self._head_seconds:g} s",
            )
            self.transport.write(_raw(refusal(error, Call("", ()).id)))
        self.force_close()

    def _cut(self) -> None:
        """Let go of who does not read."""
        self._limit = None
        if self.transport is not None:
            self.transport.abort()


class Server(web.Server):
    """Makes connections.

    Args:
        respond: Answers a request.
        loop: Where that runs.
        seconds: How long the head of a request may take to come.
        log: Told of what nobody foresaw.
    """

    def __init__(
        self, respond: Respond, *, loop: asyncio.AbstractEventLoop, seconds: float, log: Any
    ) -> None:
        super().__init__(respond, loop=loop, handler_cancellation=True)
        self._made_in = loop
        self._head_seconds = seconds
        self._logger = log

    def __call__(self) -> Connection:
        """Return a new connection."""
        return Connection(self, loop=self._made_in, seconds=self._head_seconds, log=self._logger)


def _raw(reply: Reply) -> bytes:
    """Return an answer to a request that is not there."""
    headers = {
        **_HEADERS,
        **reply.headers,
        "content-type": JSON_TYPE,
        "content-length": str(len(reply.body)),
        "connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    status = HTTPStatus(reply.status)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode() + reply.body
