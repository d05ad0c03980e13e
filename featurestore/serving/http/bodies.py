"""Bodies as they come in: each bounded in size and time, and all of them together in size."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aiohttp import web

from featurestore.serving.http.statuses import crowded, too_large
from featurestore.serving.replies import RefusedError

# Bodies up to this size are read before it is known who calls: they cost next to nothing.
SMALL = 64 * 1024
_SHARES = 8
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Bodies:
    """Reads bodies.

    Args:
        limit: The bytes of the largest one; that many times eight may be held at once.
        seconds: How long one may take to come.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._budget = _SHARES * limit
        self._held = 0

    def check(self, request: web.BaseRequest) -> None:
        """Return if a body is not said to be too large.

        Raises:
            RefusedError: It is.
        """
        length = request.content_length
        if length is not None and length > self._limit:
            raise too_large("body", f"{length} bytes", self._limit)

    async def read(self, request: web.BaseRequest) -> bytes:
        """Return the body of a request, which counts as held until it is released.

        Raises:
            RefusedError: It is too large, breaks off, or does not come in time.
            OverloadedError: Too much of others is held already.
        """
        if request.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(_CONTINUE)
            request.writer.output_size = 0
        if request.content.is_eof():
            return await self._all(request)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._all(request)
        except TimeoutError as error:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                "CANCELLED",
                "The body did not come in time.",
                allowed=f"{self._seconds:g} s",
                hint="Send it at once; serving.receive_seconds is the limit.",
            ) from error

    def release(self, body: bytes) -> None:
        """Hear that a body is needed no more."""
        self._held -= len(body)

    async def _all(self, request: web.BaseRequest) -> bytes:
        body, whole = bytearray(), False
        try:
            while chunk := await request.content.readany():
                body += chunk
                self._held += len(chunk)
                if len(body) > self._limit:
                    raise too_large("body", f"more than {self._limit} bytes", self._limit)
                if self._held > self._budget:
                    raise crowded()
            whole = True
        except (web.RequestPayloadError, ConnectionResetError) as error:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                "INVALID_ARGUMENT",
                "The body breaks off, or its chunks are none.",
            ) from error
        finally:
            if not whole:
                self._held -= len(body)
        return bytes(body)
