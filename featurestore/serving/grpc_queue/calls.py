"""One lookup over gRPC, from the event of its head to that of its end.

Its events come on the queue's thread and its answer may come on another: whatever is begun for it
is counted under a lock of its own, so that nothing is begun for a call that is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import grpc

from featurestore.errors import FeatureStoreError
from featurestore.serving.exchange import Exchange, Manner
from featurestore.serving.grpc_queue.inside import (
    Ended,
    message_of,
    send,
    wait_for_close,
    wait_for_message,
    was_cancelled,
)
from featurestore.serving.handling import LONGEST_DETAILS
from featurestore.serving.replies import Reply
from featurestore.serving.security.headers import REQUEST_ID
from featurestore.serving.status import metadata_of

_OK: int = grpc.StatusCode.OK.value[0]
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]


class QueuedCall:
    """A lookup.

    Args:
        call: As grpcio has it.
        exchange: The same as all fronts have it.
        came: Hears, on the queue's thread, of the message: None if there is none.
    """

    __slots__ = ("_call", "_came", "_due", "_is_over", "_lock", "exchange")

    def __init__(
        self, call: Any, exchange: Exchange, came: Callable[[QueuedCall, bytes | None], None]
    ) -> None:
        self.exchange = exchange
        self._call = call
        self._came = came
        self._lock = threading.Lock()
        self._is_over = False
        self._due = 1
        wait_for_close(call, self._closed)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self._is_over

    def ask(self) -> bool:
        """Ask for its message; return whether it may still come."""
        with self._lock:
            if self._is_over:
                return False
            wait_for_message(self._call, self._received)
            self._due += 1
        return True

    def answer(self, reply: Reply) -> None:
        """Send its answer, if somebody waits for it."""
        is_good = reply.status == HTTPStatus.OK
        status, details = (_OK, b"") if is_good else (reply.status, reply.body)
        metadata = [
            (name, value.encode() if name.endswith("-bin") else value)
            for name, value in reply.headers.items()
        ]
        with self._lock:
            if not self._is_over:
                message = reply.body if is_good else None
                send(self._call, status, details, message, metadata, self._sent)
                self._due += 1

    def cancel(self) -> None:
        """Give it up: its caller takes too long."""
        self._call.cancel()

    def _received(self, event: Any) -> Ended:
        try:
            self._came(self, message_of(event))
        finally:
            ended = self._over()
        return ended

    def _sent(self, _event: Any) -> Ended:
        return self._over()

    def _closed(self, event: Any) -> Ended:
        if was_cancelled(event):
            self.exchange.leave()
        with self._lock:
            self._is_over = True
        return self._over()

    def _over(self) -> Ended:
        """Count what was begun and has ended; tell the server of the call once that is all."""
        with self._lock:
            self._due -= 1
            return (None if self._due else self), ()


def _failure(
    error: FeatureStoreError, request_id: str, code_of: Callable[[FeatureStoreError], Any]
) -> Reply:
    """Return an error as a status, its details, and all of it in trailing metadata."""
    told = {REQUEST_ID: request_id}
    for name, value in metadata_of(error):
        told[name] = value if isinstance(value, str) else value.decode()
    return Reply(
        code_of(error).value[0], str(error)[:LONGEST_DETAILS].encode(errors="replace"), told
    )


def _breakdown(what: str, request_id: str) -> Reply:
    return Reply(_INTERNAL, what.encode(), {REQUEST_ID: request_id})


GRPC = Manner("grpc", _failure, _breakdown)
