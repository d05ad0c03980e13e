"""Trying again what is gone for now: with pauses that double up to a limit, told once each time.

Troubles are kept apart by what is in the way, so that a stream which answers does not hide a store
that does not. Waits end at once when the work is to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypeVar

from featurestore.errors import FeatureStoreError

_FIRST_PAUSE = 0.05
_T = TypeVar("_T")
Kind = Literal["trouble", "recovered"]


class Stopped(Exception):  # noqa: N818  (no error: the way out of a wait)
    """The work is to stop, and what it waited for has not come back."""


class Patience:
    """Tries on behalf of one worker; for any number of threads.

    Args:
        stopping: Is set when the work is to stop.
        longest: The longest pause, seconds.
        tell: Is called with ("trouble", text) and ("recovered", text).
    """

    def __init__(
        self, stopping: threading.Event, longest: float, tell: Callable[[Kind, str], None]
    ) -> None:
        self._stopping = stopping
        self._longest = longest
        self._tell = tell
        self._troubles: dict[str, tuple[FeatureStoreError, int]] = {}

    @property
    def trouble(self) -> str | None:
        """What is in the way, None when nothing is."""
        error = self.error
        return None if error is None else _text(error)

    @property
    def error(self) -> FeatureStoreError | None:
        """The error that is in the way."""
        return next((error for error, _ in list(self._troubles.values())), None)

    def attempt(self, what: str, action: Callable[[], _T], otherwise: _T) -> _T:
        """Try once; when it fails, pause and return something else.

        Args:
            what: What may be gone, in a word.
            action: What to do.
            otherwise: What to return when that fails.
        """
        try:
            result = action()
        except FeatureStoreError as error:
            self._stopping.wait(self._failed(what, error))
            return otherwise
        self._worked(what)
        return result

    def until_done(self, what: str, action: Callable[[], _T]) -> _T:
        """Try until it works.

        Raises:
            Stopped: The work is to stop.
        """
        while True:
            try:
                result = action()
            except FeatureStoreError as error:
                if self._stopping.wait(self._failed(what, error)):
                    raise Stopped from error
            else:
                self._worked(what)
                return result

    def _failed(self, what: str, error: FeatureStoreError) -> float:
        _, tries = self._troubles.get(what, (error, 0))
        self._troubles[what] = (error, tries + 1)
        if tries == 0:
            self._tell("trouble", _text(error))
        return min(self._longest, _FIRST_PAUSE * 2.0 ** min(tries, 20))

    def _worked(self, what: str) -> None:
        if what in self._troubles:
            del self._troubles[what]
            self._tell("recovered", what)


def _text(error: FeatureStoreError) -> str:
    return error.what + (f" ({error.got})" if error.got else "")
