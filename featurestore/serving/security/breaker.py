"""A circuit breaker: an online store that fails again and again is left alone for a while.

Calls are then told so at once, with when to try again, instead of each waiting for its own failure.
When the pause is over one call tries; the others go on being told. Only failures that are the
store's count: a caller who gave it no time says nothing about it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from featurestore.clock import Clock
from featurestore.errors import OnlineStoreUnavailableError

Result = TypeVar("Result")

_LONGEST_PAUSE = 30.0
_LEAST_PATIENCE = 0.25


class Breaker:
    """Stands before a store.

    Args:
        clock: Measures pauses.
        failures: How many in a row open it; 0 never does.
        seconds: The first pause; each failed try doubles it, up to half a minute.
    """

    def __init__(self, clock: Clock, failures: int, seconds: float) -> None:
        self._clock = clock
        self._limit = failures
        self._first_pause = seconds
        self._lock = threading.Lock()
        self._failed = 0
        self._open = False
        self._trying = False
        self._pause = seconds
        self._until = 0.0
        self._where: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are refused now, but for one that tries."""
        return self._open

    def run(self, read: Callable[[], Result], patience: float | None) -> Result:
        """Return what a read of the store returns.

        Args:
            read: Reads the store.
            patience: Seconds that it gives the store; None is the store's own limit.

        Raises:
            OnlineStoreUnavailableError: The store has failed, just now or too often; in the latter
                case it was not asked, and `retry_seconds` says when it will be.
        """
        tries = self._open and self._enter()
        counts = patience is None or patience >= _LEAST_PATIENCE
        try:
            result = read()
        except OnlineStoreUnavailableError as error:
            if counts and self._limit:
                self._fail(error, tries=tries)
            elif tries:
                self._trying = False
            raise
        except BaseException:
            # Nothing was learnt about the store; the next call may try.
            if tries:
                self._trying = False
            raise
        if tries:
            self._close()
        elif self._failed and not self._open:
            self._failed = 0
        return result

    def _enter(self) -> bool:
        """Return whether this call is the one that tries; refuse it if it is not."""
        with self._lock:
            if not self._open:
                return False
            left = self._until - self._clock.monotonic()
            if left <= 0 and not self._trying:
                self._trying = True
                return True
        left = max(left, 0.1)
        error = OnlineStoreUnavailableError(
            "The online store keeps failing and is left alone for a moment.",
            where=self._where,
            hint=f"Try again in {left:.1f} s.",
        )
        error.retry_seconds = left
        raise error

    def _fail(self, error: OnlineStoreUnavailableError, *, tries: bool) -> None:
        with self._lock:
            self._failed += 1
            self._where = error.where
            if tries:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
                self._trying = False
            elif self._open or self._failed < self._limit:
                return
            self._open = True
            self._until = self._clock.monotonic() + self._pause

    def _close(self) -> None:
        with self._lock:
            self._open = self._trying = False
            self._failed = 0
            self._pause = self._first_pause
