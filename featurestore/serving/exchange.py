"""One call, from its head to its answer: guarded, in time, heard of by observers.

What `serving/handling.py` is for calls that grpcio gives a thread of their own. The front waits for
it elsewhere, so that a caller who goes away, or whose time is over, is let go while a thread still
works.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.clock import Clock
from featurestore.errors import DeadlineExceededError, FeatureStoreError
from featurestore.serving.handling import overloaded
from featurestore.serving.methods import Method
from featurestore.serving.observing import Observer
from featurestore.serving.pool import DaemonPool
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.security.calls import Call
from featurestore.serving.security.guard import Guard
from featurestore.serving.security.headers import REQUEST_ID

_LATE = "There was no answer before the deadline."
_SLACK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all calls need.

    Attributes:
        guard: Says who may call, and hears how calls end.
        pool: Whose threads answer.
        clock: Measures deadlines.
        log: Told of what nobody foresaw.
        observers: Hear how calls come and go.
    """

    guard: Guard
    pool: DaemonPool
    clock: Clock
    log: Any
    observers: Sequence[Observer]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a front tells callers of errors.

    Attributes:
        front: What observers and the audit call it.
        failure: Returns the answer to a call that failed by an error of ours.
        breakdown: Returns the answer to one that failed in a way that nobody foresaw.
    """

    front: str
    failure: Callable[[FeatureStoreError, str, Callable[[FeatureStoreError], Any]], Reply]
    breakdown: Callable[[str, str], Reply]


class Exchange:
    """A call from when its head came to when it was answered.

    Args:
        around: What all calls need.
        call: The call.
        code_of: The gRPC status of an error of its method.
        seconds: Until the caller's deadline; None without one.
        peer: Who called from where.
        certificate: The first name in the caller's certificate, if it showed one.
        manner: How its front tells errors.

    Attributes:
        gone: Whether nobody waits for the answer any more; set by who waited.
        handed_over: Whether a thread has it, or will; set by who hands it over.
    """

    def __init__(  # noqa: PLR0917
        self,
        around: Surroundings,
        call: Call,
        code_of: Callable[[FeatureStoreError], Any],
        seconds: float | None,
        peer: str,
        certificate: str | None,
        manner: Manner,
    ) -> None:
        self.call = call
        call.front = manner.front
        self._manner = manner
        self.gone = self.handed_over = False
        self._around = around
        self._code_of = code_of
        self._peer = peer
        self._certificate = certificate
        self._admitted = self._heard_of = self._is_over = False
        self._deadline = None if seconds is None else around.clock.monotonic() + seconds
        around.guard.note(call)

    def admit(self) -> Reply | None:
        """Find out who calls, before a body is read; return the answer if it may not."""
        return self.attempt(self._admit)

    def answer(self, method: Method, body: bytes) -> Reply:
        """Return the answer to a body."""

        def answered() -> Reply:
            self.begin()
            return self.succeed(method(body, self.time_left(), self.call))

        if self.gone:
            return self.forgo()
        reply = self.attempt(answered)
        assert reply is not None  # noqa: S101  (only `admit` has none)
        return reply

    def begin(self) -> None:
        """Have the call heard of and let in; raises what speaks against it."""
        self._begun()
        self._admit()

    def succeed(self, data: bytes) -> Reply:
        """Return an answer, and end the call: as one that nobody got, if it comes too late."""
        if not self._is_unheard():
            self._ended("OK", None)
        return Reply(200, data, {REQUEST_ID: self.call.id})

    def leave(self) -> None:
        """Note that nobody waits any more: the caller went away, or gRPC has ended its time.

        Its clock and ours are not the same.
        """
        if self._deadline is None:
            self.gone = True
            return
        now = self._around.clock.monotonic()
        if self._deadline - now > _SLACK_SECONDS:
            self.gone = True
        else:
            self._deadline = min(now, self._deadline)

    def forgo(self) -> Reply:
        """End a call that nobody waits for any more."""
        self._begun()
        if not self._is_unheard():
            self._ended("CANCELLED", None)
        return Reply(499, b"")

    def fail(self, error: FeatureStoreError) -> Reply:
        """Return the answer to a call that failed, and end it."""
        self._begun()
        code = error.code if isinstance(error, RefusedError) else self._code_of(error).name
        self._ended(code, error)
        return self._manner.failure(error, self.call.id, self._code_of)

    def late(self) -> Reply:
        """Return the answer to a caller whose time is over; a thread that works ends the call."""
        error = DeadlineExceededError(_LATE)
        if not self.handed_over:
            return self.fail(error)
        return self._manner.failure(error, self.call.id, self._code_of)

    def attempt(self, step: Callable[[], Reply | None]) -> Reply | None:
        """Return what a step of the answer returns, or the answer if it fails; raises nothing."""
        try:
            return step()
        except FeatureStoreError as error:
            known = error
        except Exception as error:  # noqa: BLE001  (the caller must not see our insides)
            return self._broken(error)
        try:
            self._around.guard.access.discreet(self.call.principal, known)
            return self.fail(known)
        except Exception as error:  # noqa: BLE001  (it cannot be told)
            return self._broken(error)

    def refuse(self, error: FeatureStoreError) -> Reply:
        """Return the answer to a call that fails by an error, and end it; raises nothing."""

        def refused() -> Reply:
            raise error

        reply = self.attempt(refused)
        assert reply is not None  # noqa: S101  (the step has no other end)
        return reply

    def check_place(self) -> None:
        """Return if this thread answers calls.

        Raises:
            OverloadedError: It only refuses them, as there are too many.
        """
        if self._around.pool.is_refusing():
            raise overloaded()

    def _broken(self, error: Exception) -> Reply:
        """Return the answer to a call that failed in a way that nobody foresaw, and end it."""
        reference = uuid.uuid4().hex[:8]
        # Whoever hears of it may be what has failed.
        with contextlib.suppress(Exception):
            self._around.log.error(
                "request failed", reference=reference, request_id=self.call.id, exc_info=error
            )
            self._begun()
            self._ended("INTERNAL", None)
        what = f"The server failed; its log has the reason as {reference}."
        return self._manner.breakdown(what, self.call.id)

    def _admit(self) -> None:
        """Let a call in, if it was not before its body was read.

        Raises:
            OverloadedError: There are too many.
            UnauthenticatedError: It does not say who makes it.
            DeadlineExceededError: It has waited too long.
        """
        self.check_place()
        if not self._admitted:
            self._around.guard.admit(self.call)
            self._admitted = True
        self.time_left()

    def _begun(self) -> None:
        if not self._heard_of:
            self._heard_of = True
            for observer in self._around.observers:
                observer.begun(self.call)

    def time_left(self) -> float | None:
        """Return the seconds until the deadline, None without one.

        Raises:
            DeadlineExceededError: It is over.
        """
        if self._deadline is None:
            return None
        left = self._deadline - self._around.clock.monotonic()
        if left <= 0:
            raise DeadlineExceededError("The request waited past its deadline.")
        return left

    def _is_unheard(self) -> bool:
        """Return whether an answer comes too late, and end the call if so."""
        if self.gone:
            self._ended("CANCELLED", None)
        elif self._is_overdue():
            self._ended("DEADLINE_EXCEEDED", DeadlineExceededError(_LATE))
        else:
            return False
        return True

    def _is_overdue(self) -> bool:
        return self._deadline is not None and self._around.clock.monotonic() >= self._deadline

    def _ended(self, status: str, error: FeatureStoreError | None) -> None:
        guard, call = self._around.guard, self.call
        if self._is_over:
            # Its time was over while a thread still asked who calls.
            return
        self._is_over = True
        for observer in self._around.observers:
            observer.ended(call, status, error)
        if guard.audited:
            call.facts["front"] = call.front
            if self._certificate is not None:
                call.facts["certificate"] = self._certificate
            guard.ended(call, status, error, self._peer)
        elif error is not None and status in {"PERMISSION_DENIED", "UNAUTHENTICATED"}:
            self._around.log.warning(
                "call refused",
                request_id=call.id,
                method=call.method,
                who=call.principal.name,
                peer=self._peer,
                error=error.what,
                missing=error.allowed,
            )
