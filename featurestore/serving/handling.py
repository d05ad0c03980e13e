"""A method of ours as gRPC calls it: guarded, in time, and whatever fails becomes a status."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import grpc

from featurestore.errors import (
    DeadlineExceededError,
    FeatureStoreError,
    OverloadedError,
    RequestError,
)
from featurestore.serving.methods import Method
from featurestore.serving.observing import Observer
from featurestore.serving.pool import DaemonPool
from featurestore.serving.receiving import Receiver
from featurestore.serving.security.calls import Call
from featurestore.serving.security.guard import Guard
from featurestore.serving.security.headers import REQUEST_ID
from featurestore.serving.status import code_of, metadata_of

LONGEST_DETAILS = 1000
_RETRY_SECONDS = 1.0

Handler = Callable[[Iterator[bytes], grpc.ServicerContext], bytes]


class Handling:
    """Makes handlers of methods.

    Args:
        guard: Says who may call, and hears how calls end.
        receiver: Takes in their messages.
        pool: Whose threads they run on.
        log: Told of what nobody foresaw.
        observers: Hear how calls come and go.
    """

    def __init__(
        self,
        guard: Guard,
        receiver: Receiver,
        pool: DaemonPool,
        log: Any,
        observers: Sequence[Observer],
    ) -> None:
        self._guard = guard
        self._receiver = receiver
        self._pool = pool
        self._log = log
        self._observers = observers

    def handler(
        self,
        name: str,
        method: Method,
        code: Callable[[FeatureStoreError], grpc.StatusCode] = code_of,
    ) -> Handler:
        """Return a method as a handler; requests that come too late are not begun.

        Args:
            name: What it is called by.
            method: What answers.
            code: The status of an error of ours.
        """

        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            call = Call(name, context.invocation_metadata() or ())
            self._guard.note(call)
            for observer in self._observers:
                observer.begun(call)
            try:
                data = self._answer(method, call, messages, context)
            except FeatureStoreError as error:
                self._guard.access.discreet(call.principal, error)
                self._fail(call, context, code(error), error)
            except grpc.RpcError:
                # Cancelled; gRPC knows its own exception, and says nothing more.
                self._ended(call, context, "CANCELLED", None)
                raise
            except Exception:  # noqa: BLE001  (the caller must not see our insides)
                self._fail(call, context, grpc.StatusCode.INTERNAL, None)
            if not context.is_active():
                self._unheard(call, context)
                return data
            context.set_trailing_metadata(((REQUEST_ID, call.id),))
            self._ended(call, context, "OK", None)
            return data

        return handle

    def _answer(
        self,
        method: Method,
        call: Call,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> bytes:
        """Answer a call; its message is read last, when all that can be said before was."""
        if self._pool.is_refusing():
            raise overloaded()
        self._guard.admit(call)
        time_left(context)
        try:
            request = self._receiver.receive(messages, context)
        except StopIteration:
            raise without_message() from None
        return method(request, time_left(context), call)

    def _unheard(self, call: Call, context: grpc.ServicerContext) -> None:
        """End a call whose answer came when nobody waited for it any more."""
        left: float | None = context.time_remaining()
        if left is None or left > 0:
            self._ended(call, context, "CANCELLED", None)
        else:
            error = DeadlineExceededError("There was no answer before the deadline.")
            self._ended(call, context, "DEADLINE_EXCEEDED", error)

    def _fail(
        self,
        call: Call,
        context: grpc.ServicerContext,
        status: grpc.StatusCode,
        error: FeatureStoreError | None,
    ) -> NoReturn:
        """End a call with a status; without an error of ours the log alone has the reason."""
        told: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID, call.id),)
        if error is None:
            reference = uuid.uuid4().hex[:8]
            self._log.exception("request failed", reference=reference, request_id=call.id)
            details = f"The server failed; its log has the reason as {reference}."
        else:
            told += metadata_of(error)
            # An error may show what came, and text that is none must not break its telling.
            details = str(error)[:LONGEST_DETAILS].encode(errors="replace").decode()
        context.set_trailing_metadata(told)
        self._ended(call, context, status.name, error)
        context.abort(status, details)
        raise AssertionError(details)  # abort has raised already

    def _ended(
        self,
        call: Call,
        context: grpc.ServicerContext,
        status: str,
        error: FeatureStoreError | None,
    ) -> None:
        for observer in self._observers:
            observer.ended(call, status, error)
        if self._guard.audited:
            call.facts["front"] = call.front
            identities = context.peer_identities()
            if identities:
                call.facts["certificate"] = bytes(identities[0]).decode(errors="replace")[:100]
            self._guard.ended(call, status, error, context.peer())
        elif error is not None and status in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
            self._log.warning(
                "call refused",
                request_id=call.id,
                method=call.method,
                who=call.principal.name,
                peer=context.peer(),
                error=error.what,
                missing=error.allowed,
            )


def time_left(context: grpc.ServicerContext) -> float | None:
    """Return the seconds until a request's deadline, None without one.

    Raises:
        DeadlineExceededError: It is over; nobody waits for the answer any more.
    """
    left: float | None = context.time_remaining()
    if left is not None and left <= 0:
        raise DeadlineExceededError("The request waited past its deadline.")
    return left


def without_message() -> RequestError:
    """Return the error of a call that has ended before its message came."""
    return RequestError(
        "The call came without a message.",
        got="the end of the call",
        allowed="one message",
        hint="Send the request before you end the call; an empty one has to be sent, too.",
    )


def overloaded() -> OverloadedError:
    """Return the error of a call that is one too many; nothing of it was begun."""
    error = OverloadedError(
        "The server has more requests than it takes on.",
        hint=f"Try again in {_RETRY_SECONDS:g} s; serving.max_concurrent_requests is the limit.",
    )
    error.retry_seconds = _RETRY_SECONDS
    return error
