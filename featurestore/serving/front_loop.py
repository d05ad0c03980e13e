"""A front's own event loop on a thread: it listens, serves, and drains beside the gRPC server.

How connections speak is the front's matter. How they are begun and how they end is here, once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from featurestore.serving.shared_port import BACKLOG, listening

# Who has connected already gets so long to ask, before those who send nothing are let go.
_SETTLE_SECONDS = 0.05


class FrontLoop(ABC):
    """Serves one address from a thread of its own.

    Args:
        name: Names the thread.
        address: host:port; port 0 takes a free one.
        setting: Where the address is set, for errors.
        seconds: How long a handshake may take.
        context: For TLS; None is plain text.
        share_port: Whether other processes listen on the address too.

    Attributes:
        address: Where it listens, once it has begun.
    """

    def __init__(
        self,
        name: str,
        address: str | None,
        setting: str,
        *,
        seconds: float,
        context: ssl.SSLContext | None,
        share_port: bool,
    ) -> None:
        self.address = address or ""
        self._name = name
        self._setting = setting
        self._handshake_seconds = seconds
        self._context = context
        self._share_port = share_port
        self._thread: threading.Thread | None = None
        self._end: Callable[[], None] | None = None

    @abstractmethod
    def connections_of(self, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of a connection; called once, on the loop."""

    @abstractmethod
    def ending(self) -> None:
        """Hear that no further connections are taken; called on the loop."""

    @abstractmethod
    async def wind_up(self) -> None:
        """Finish what was begun, in the time for draining; then let go of all connections."""

    def start(self) -> str:
        """Begin to serve; return the address that is listened on.

        Raises:
            SettingsError: The address cannot be listened on.
        """
        listener, host = listening(self.address, self._setting, share=self._share_port)
        begun: concurrent.futures.Future[Callable[[], None]] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, begun)), name=self._name, daemon=True
        )
        self._thread.start()
        self._end = begun.result()
        self.address = f"{host}:{listener.getsockname()[1]}"
        return self.address

    def drain(self) -> Callable[[], None]:
        """Take no more requests, and finish those in flight; return what waits for that."""
        if self._thread is None or self._end is None:
            return lambda: None
        self._end()
        return self._thread.join

    async def _serve(
        self, listener: socket.socket, begun: concurrent.futures.Future[Callable[[], None]]
    ) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        server = await loop.create_server(
            self.connections_of(loop),
            sock=listener,
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else self._handshake_seconds,
        )

        def end() -> None:
            loop.call_soon_threadsafe(ended.set)

        begun.set_result(end)
        await ended.wait()
        self.ending()
        # A connection that is being taken when asyncio closes a server is forgotten, neither served
        # nor closed: so first no more are taken, and those at hand come to their end.
        loop.remove_reader(listener.fileno())
        await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(_SETTLE_SECONDS)
        await self.wind_up()
