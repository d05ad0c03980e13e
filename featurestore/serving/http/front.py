"""The HTTP server: a loop of its own on a thread, beside the gRPC server and on its threads.

The loop takes requests in and sends answers; everything that may wait or compute runs on the
threads that answer lookups, and is refused when too much waits for these. It drains as the gRPC
server does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from featurestore.errors import FeatureStoreError
from featurestore.model.settings import ServingSettings
from featurestore.serving.exchange import Exchange, Surroundings
from featurestore.serving.front_loop import FrontLoop
from featurestore.serving.http.bodies import SMALL, Bodies
from featurestore.serving.http.connections import Connection, Server, response_of
from featurestore.serving.http.gathering import Gathering
from featurestore.serving.http.heads import (
    certificate_of,
    check_content,
    headers_of,
    peer_of,
    seconds_of,
)
from featurestore.serving.http.routes import Route, Routes
from featurestore.serving.http.statuses import JSON, failure
from featurestore.serving.http.tls import HttpTls
from featurestore.serving.replies import Reply
from featurestore.serving.security.calls import Call
from featurestore.serving.status import code_of
from featurestore.serving.together import LookupMethods

if TYPE_CHECKING:
    from aiohttp import web

Answer = TypeVar("Answer")


class HttpFront(FrontLoop):
    """Serves HTTP.

    Args:
        settings: The address and the limits; port 0 takes a free one.
        routes: What answers which path.
        lookups: Answers lookups.
        around: What all calls need.
        tls: The certificate; None is plain text.
        share_port: Whether other processes listen on the address too.
    """

    def __init__(
        self,
        settings: ServingSettings,
        routes: Routes,
        lookups: LookupMethods,
        around: Surroundings,
        *,
        tls: HttpTls | None,
        share_port: bool,
    ) -> None:
        super().__init__(
            "http",
            settings.http_address,
            "serving.http_address",
            seconds=settings.receive_seconds,
            context=None if tls is None else tls.context,
            share_port=share_port,
        )
        self._routes = routes
        self._lookups = lookups
        self._around = around
        self._seconds = settings.receive_seconds
        self._drain_seconds = settings.drain_seconds
        self._bodies = Bodies(settings.max_message_bytes, settings.receive_seconds)
        self._restricted = around.guard.access.restricted
        self._draining = False
        self._most_lookups = settings.max_concurrent_requests

    def connections_of(self, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
        """See `FrontLoop.connections_of`."""
        self._gathering = Gathering(self._lookups, self._around.pool, loop, self._most_lookups)
        self._server = Server(self._respond, loop=loop, seconds=self._seconds, log=self._around.log)
        return self._server

    def ending(self) -> None:
        """See `FrontLoop.ending`."""
        self._draining = True

    async def wind_up(self) -> None:
        """See `FrontLoop.wind_up`."""
        self._server.pre_shutdown()
        await self._server.shutdown(self._drain_seconds)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.begin()
        headers = dict(headers_of(request))
        try:
            route = self._routes.of(request)
            reply = await self._reply(route, request, headers)
        except FeatureStoreError as error:
            # Refused by its head alone: no call of a method has begun.
            reply = failure(error, Call("", headers.items()).id, code_of)
        response = response_of(reply)
        if self._draining:
            response.force_close()
        return response

    async def _reply(
        self, route: Route, request: web.BaseRequest, headers: dict[str, str]
    ) -> Reply:
        if route.told is not None:
            return route.told(Call(route.name, headers.items()).id)
        seconds = seconds_of(headers)
        if route.takes_body:
            check_content(headers)
            self._bodies.check(request)
        exchange = Exchange(
            self._around,
            Call(route.name, headers.items()),
            route.code_of,
            seconds,
            peer_of(request),
            certificate_of(request),
            JSON,
        )
        try:
            async with asyncio.timeout(seconds):
                return await self._exchanged(route, request, exchange)
        except TimeoutError:
            return exchange.late()
        except asyncio.CancelledError:
            exchange.gone = True
            raise

    async def _exchanged(self, route: Route, request: web.BaseRequest, exchange: Exchange) -> Reply:
        """Return the answer to a call; it may be given up at any point in between."""
        body = b""
        if route.takes_body:
            length = request.content_length
            early = self._restricted and (length is None or length > SMALL)
            refused = await self._on_a_thread(exchange.admit) if early else None
            if refused is not None:
                return Reply(refused.status, refused.body, refused.headers, closes=True)
            try:
                body = await self._bodies.read(request)
            except FeatureStoreError as error:
                return exchange.fail(error)
        method = route.method
        try:
            if method is None:
                return await self._looked_up(exchange, body)
            exchange.handed_over = True
            return await self._on_a_thread(lambda: exchange.answer(method, body))
        finally:
            self._bodies.release(body)

    async def _looked_up(self, exchange: Exchange, body: bytes) -> Reply:
        """Return the answer to a lookup, which is made together with others that wait."""
        exchange.handed_over = True
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def told(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        self._gathering.put(exchange, body, told)
        return await answer

    def _on_a_thread(self, work: Callable[[], Answer]) -> asyncio.Future[Answer]:
        # Shielded: what was begun ends in order, whoever waits for it.
        held: concurrent.futures.Future[Answer] = self._around.pool.submit(work)
        return asyncio.shield(asyncio.wrap_future(held))
