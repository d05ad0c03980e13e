"""What of grpcio's inside lookups are taken by as events: all of it is in this room.

grpcio's own server in Python has a thread wait for every call, from its head to its answer, and
hands each from thread to thread four times. Below it calls are events of one queue, which has no
public name. These are the parts that `grpc/_server.py` is made of; where that is not the code that
was tried with them they are not used, and lookups are answered by its threads as all else is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

inside: Any = None
cygrpc: Any = None
# Where there are none the inside is not known, and nothing here is used.
with contextlib.suppress(ImportError):
    inside = importlib.import_module("grpc._server")
    cygrpc = importlib.import_module("grpc._cython.cygrpc")

# Of `grpc/_server.py` as it was when the whole suite was run with what is done here: that of grpcio
# 1.85. CONTRIBUTING.md says how to try another.
KNOWN_DIGESTS = frozenset({"6aef08d2b8a57cfd993c4a704588ea11"})

_NO_FLAGS = 0

# What a tag returns: the call once it has ended, and what is to be called then.
Ended = tuple[object, Iterable[Callable[[], None]]]
# Hears of an event.
Tag = Callable[[Any], Ended]


def digest() -> str | None:
    """Return what tells the code of `grpc/_server.py` from any other, None if it is not there."""
    try:
        code = Path(inside.__file__).read_bytes()
    except (AttributeError, OSError):
        return None
    return hashlib.blake2b(code, digest_size=16).hexdigest()


def is_known() -> bool:
    """Whether the inside of grpcio, as it is installed, is the one that is used here."""
    return digest() in KNOWN_DIGESTS


class Inside:
    """The inside of a server that has not been started.

    Args:
        server: Made by `grpc.server`; its services and ports may be added before and after.
    """

    def __init__(self, server: grpc.Server) -> None:
        self._state = server._state  # noqa: SLF001

    def start(self, serve: Callable[[], None]) -> None:
        """Begin to take calls, as `server.start()` does, and have a thread of ours serve them."""
        state = self._state
        with state.lock:
            state.server.start()
            state.stage = inside._ServerStage.STARTED  # noqa: SLF001
            for method in state.registered_method_handlers:
                inside._request_registered_call(state, method)  # noqa: SLF001
            inside._request_call(state)  # noqa: SLF001
        threading.Thread(target=serve, name="grpc-queue", daemon=True).start()

    def next(self, now: float, wait: float) -> Any | None:
        """Return the next event, or None where none comes in so many seconds.

        Args:
            now: Seconds since 1970, by the system's clock, as gRPC counts deadlines.
            wait: Seconds; 0 takes what is there.
        """
        event = self._state.completion_queue.poll(now + wait if wait else 0.0)
        if self._state.server_deallocated:
            inside._begin_shutdown_once(self._state)  # noqa: SLF001
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return None
        return event

    @staticmethod
    def is_call_of(event: Any, method: bytes) -> bool:
        """Whether an event is a new call of a method."""
        is_call = event.tag is inside._REQUEST_CALL_TAG and event.success  # noqa: SLF001
        return bool(is_call and event.call_details.method == method)

    def take_another(self) -> None:
        """Be ready for the next call, as an event has told of one."""
        state = self._state
        with state.lock:
            state.due.remove(inside._REQUEST_CALL_TAG)  # noqa: SLF001
            if state.stage is inside._ServerStage.STARTED:  # noqa: SLF001
                inside._request_call(state)  # noqa: SLF001

    def keep(self, call: object) -> None:
        """Take on a call: the server does not end before one of its tags has returned it."""
        with self._state.lock:
            self._state.rpc_states.add(call)

    def handle(self, event: Any) -> bool:
        """Have grpcio handle an event; return whether the server goes on."""
        going: bool = inside._process_event_and_continue(self._state, event)  # noqa: SLF001
        return going


def wait_for_close(call: Any, told: Tag) -> None:
    """Have a tag hear when the call is over; see `was_cancelled`."""
    _begin(call, [cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)], told)


def was_cancelled(event: Any) -> bool:
    """Whether a call that is over was given up by its caller, or its time has run out."""
    return bool(event.batch_operations[0].cancelled())


def wait_for_message(call: Any, told: Tag) -> None:
    """Have a tag hear of the call's message; see `message_of`."""
    _begin(call, [cygrpc.ReceiveMessageOperation(_NO_FLAGS)], told)


def message_of(event: Any) -> bytes | None:
    """Return the message that came, None if none does."""
    message: bytes | None = event.batch_operations[0].message()
    return message


def send(  # noqa: PLR0917
    call: Any,
    status: int,
    details: bytes,
    message: bytes | None,
    metadata: Sequence[tuple[str, str | bytes]],
    told: Tag,
) -> None:
    """Send all of an answer; a tag hears when it is gone."""
    operations = [
        cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
        cygrpc.SendStatusFromServerOperation(metadata, status, details, _NO_FLAGS),
    ]
    if message is not None:
        operations.append(cygrpc.SendMessageOperation(message, _NO_FLAGS))
    _begin(call, operations, told)


def _begin(call: Any, operations: Sequence[Any], told: Tag) -> None:
    """Begin operations of a call.

    Raises:
        RuntimeError: gRPC refuses them; their tag hears nothing.
    """
    refused = call.start_server_batch(operations, told)
    if refused:
        raise RuntimeError(f"gRPC does not take what is to be done for a call: {refused}")


def peer_of(call: Any) -> str:
    """Return who calls from where."""
    peer: bytes = call.peer()
    return peer.decode(errors="replace")


def certificate_of(call: Any) -> str | None:
    """Return the first name in the caller's certificate, if it showed one."""
    identities = cygrpc.peer_identities(call)
    return bytes(identities[0]).decode(errors="replace")[:100] if identities else None
