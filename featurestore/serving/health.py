"""The standard health service, which also lets go of those who watch it when the server ends.

A watcher's stream has no end of its own: left open, it would hold up the draining of the server for
as long as draining may take.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from grpc_health.v1 import health, health_pb2

SERVICE_NAME: str = health.SERVICE_NAME
_Send = Callable[[Any], None]


class Health(health.HealthServicer):  # type: ignore[misc]
    """Tells whether services are served.

    Args:
        names: The services; the server as a whole is one more.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = ("", *names)
        self._told: bool | None = None
        self._streams: set[_Send] = set()
        self._streams_lock = threading.Lock()

    def tell(self, *, serving: bool) -> None:
        """Say whether lookups can be answered now; watchers hear of changes only."""
        if serving is not self._told:
            self._told = serving
            answer = health_pb2.HealthCheckResponse
            for name in self._names:
                self.set(name, answer.SERVING if serving else answer.NOT_SERVING)

    def end(self) -> None:
        """Say for good that nothing is served, and end the streams of all watchers."""
        self.enter_graceful_shutdown()
        with self._streams_lock:
            streams = list(self._streams)
        for send in streams:
            send(None)

    def Watch(self, request: Any, context: Any, send_response_callback: _Send) -> None:  # noqa: N802
        """Tell a watcher the health now and whenever it changes."""
        ended = threading.Event()

        def send(response: Any) -> None:
            if not ended.is_set():
                if response is None:
                    ended.set()
                send_response_callback(response)

        with self._streams_lock:
            self._streams.add(send)
        context.add_callback(lambda: self._forget(send))
        super().Watch(request, context, send)

    def _forget(self, send: _Send) -> None:
        with self._streams_lock:
            self._streams.discard(send)
