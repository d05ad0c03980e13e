"""Keeps the search for cyclic garbage from holding up a process that answers all the time.

Now and then Python looks at every object that it holds, and everything waits: tens of milliseconds
in a process with engines loaded, about once a second under load. What has been there for long is
therefore set apart (`gc.freeze`) and not looked at again. Where a search takes long all the same,
there is more that stays, such as new definitions: then all is searched once, and what is left is
set apart anew, so that nothing is kept for good that nobody needs. For processes of ours only:
whoever embeds a server decides for the whole process.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from typing import Any, Self

from featurestore.clock import Clock, SystemClock

# A search that takes longer is one too many objects.
_LONG_SECONDS = 0.01
# How often to look whether there was one, and so how often everything may be searched at most.
_LOOK_SECONDS = 1.0
_WHOLE = 2  # the generation of a search of everything


class ShortPauses:
    """Sets apart what stays, as long as it is entered.

    Args:
        clock: Measures searches.

    Attributes:
        settled: How often everything was searched and set apart.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pauses", daemon=True)
        self._begun = 0.0
        self._was_long = False
        self.settled = 0

    def __enter__(self) -> Self:
        self._settle()
        gc.callbacks.append(self._heard)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        gc.callbacks.remove(self._heard)
        self._ending.set()
        self._thread.join()
        gc.unfreeze()

    def _heard(self, phase: str, info: Mapping[str, Any]) -> None:
        """Hear of a search; it may come in the midst of anything, so that no lock is taken here."""
        if info["generation"] != _WHOLE:
            return
        now = self._clock.monotonic()
        if phase == "start":
            self._begun = now
        elif now - self._begun > _LONG_SECONDS:
            self._was_long = True

    def _watch(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            if self._was_long:
                self._settle()

    def _settle(self) -> None:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        # Its own search was a long one.
        self._was_long = False
        self.settled += 1
