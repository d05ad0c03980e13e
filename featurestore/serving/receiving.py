"""Takes in the messages of calls, and lets go of callers who do not send them.

gRPC hands a call over when its head has come; its message may take for ever. Calls are therefore
taken as streams, which tells us of them at once: whoever may not call is refused before its message
is read, a thread that waits too long is replaced meanwhile, and in the end the call is cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from featurestore.clock import Clock
from featurestore.serving.pool import DaemonPool

if TYPE_CHECKING:
    import grpc

Message = TypeVar("Message")

_LOOK_SECONDS = 0.1
_MAX_SPARE_THREADS = 64


class Receiver:
    """Waits for messages, for a limited time.

    Args:
        pool: Whose threads wait; it gets others while they do.
        clock: Measures the wait.
        seconds: How long a message may take.
    """

    def __init__(self, pool: DaemonPool, clock: Clock, seconds: float) -> None:
        self._pool = pool
        self._clock = clock
        self._seconds = seconds
        self._waiting: dict[grpc.ServicerContext, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="receive", daemon=True)

    def start(self) -> None:
        """Begin to look at those who wait."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def receive(self, messages: Iterator[Message], context: grpc.ServicerContext) -> Message:
        """Return the next message of a call.

        Raises:
            StopIteration: There is none.
            grpc.RpcError: The call was cancelled, by the caller or for taking too long.
        """
        self._waiting[context] = self._clock.monotonic()
        try:
            return next(messages)
        finally:
            del self._waiting[context]

    def stream(
        self, messages: Iterator[Message], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        """Yield the messages of a call; each may take as long as any other."""
        while True:
            try:
                yield self.receive(messages, context)
            except StopIteration:
                return

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        now = self._clock.monotonic()
        slow = sorted(
            (began, id(context), context)
            for context, began in self._waiting.copy().items()
            if now - began >= _LOOK_SECONDS
        )
        self._pool.replace(min(len(slow), _MAX_SPARE_THREADS))
        # With no thread left to lend, those who have waited longest make room.
        crowd = len(slow) - _MAX_SPARE_THREADS if self._pool.is_behind else 0
        for place, (began, _, context) in enumerate(slow):
            if now - began >= self._seconds or place < crowd:
                context.cancel()
