"""Log lines of calls that failed by the server's fault, were refused at once, or were slow.

Each carries the call's id, by which its caller can ask after it. A failure that repeats is told at
most once a second a status, with how many were left out: a store that is gone does not
flood the log. What a caller did wrong is told to the caller alone.
"""

from __future__ import annotations

import threading
from typing import Any

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, OverloadedError
from featurestore.services.response import OnlineResponse
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call

# INTERNAL without an error of ours is logged with its traceback where it is caught.
_FAULTS = frozenset(
    {"UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "ABORTED"}
)
_PAUSE_SECONDS = 1.0


class CallLog:
    """An observer that writes log lines.

    Args:
        slow_seconds: What takes longer is slow; 0 is never.
        clock: Measures.
        log: Where lines go.
    """

    def __init__(self, slow_seconds: float, clock: Clock, log: Any) -> None:
        self._slow = slow_seconds or float("inf")
        self._now = clock.monotonic
        self._log = log
        self._lock = threading.Lock()
        self._due: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def begun(self, call: Call) -> None:
        """See `Observer.begun`."""

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """See `Observer.answered`."""

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """See `Observer.ended`."""
        if error is not None:
            if isinstance(error, OverloadedError):
                self._tell("call shed", call, status, error)
            elif status in _FAULTS:
                self._tell("call failed", call, status, error)
        seconds = self._now() - call.begun
        if seconds > self._slow:
            self._log.warning(
                "slow call",
                request_id=call.id,
                method=call.method,
                rows=call.rows,
                status=status,
                latency_ms=round(seconds * 1e3, 3),
            )

    def close(self) -> None:
        """See `Observer.close`."""

    def _tell(self, event: str, call: Call, status: str, error: FeatureStoreError) -> None:
        now, key = self._now(), (event, status)
        with self._lock:
            if now < self._due.get(key, float("-inf")):
                self._left_out[key] = self._left_out.get(key, 0) + 1
                return
            self._due[key] = now + _PAUSE_SECONDS
            left_out = self._left_out.pop(key, 0)
        self._log.warning(
            event,
            request_id=call.id,
            method=call.method,
            status=status,
            error=error.what,
            where=error.where,
            left_out=left_out,
        )
