"""Two threads, one of which leads; the other takes over when the first has long been busy.

Whoever takes in events may as well answer them on the spot, as long as that takes next to no time:
nothing is handed from thread to thread. That is tried only while the other thread stands by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from featurestore.clock import Clock

_LOOK_SECONDS = 0.005
# After so many looks in vain the thread that stands by sleeps until there is something to see.
_LOOKS = 20


class Leader(Protocol):
    """What is to be done by one thread at a time."""

    def __call__(self) -> bool:
        """Do it until this thread `leads` no more, or all is over; return whether that is so."""
        ...


class Lead:
    """Says which of two threads leads.

    Args:
        serve: What the one that leads does.
        clock: Measures how long it is busy.
    """

    def __init__(self, serve: Leader, clock: Clock) -> None:
        self._serve = serve
        self._clock = clock
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._pause = threading.Event()
        self._since: float | None = None
        self._leader = 0
        self._stands_by = self._is_over = False

    def start(self, spawn: Callable[[Callable[[], None]], None]) -> None:
        """Begin; `spawn` starts the thread that leads first."""
        spawn(self._be_leader)
        threading.Thread(target=self._run, name="grpc-standby", daemon=True).start()

    @property
    def is_watched(self) -> bool:
        """Whether another thread would take over."""
        return self._stands_by

    @property
    def is_mine(self) -> bool:
        """Whether this thread leads."""
        return self._leader == threading.get_ident()

    def here(self, work: Callable[[], None]) -> bool:
        """Do work on this thread, which leads; return False if nobody could take over meanwhile."""
        if not self._stands_by:
            return False
        self._since = self._clock.monotonic()
        if not self._busy.is_set():
            self._busy.set()
        try:
            work()
        finally:
            with self._lock:
                if self.is_mine:
                    self._since = None
        return True

    def _be_leader(self) -> None:
        self._leader = threading.get_ident()
        self._lead()

    def _run(self) -> None:
        self._stand_by()
        self._lead()

    def _lead(self) -> None:
        while not self._is_over:
            try:
                self._is_over = self._serve()
            except Exception:  # noqa: BLE001  (a thread that ended here would leave nobody)
                self._pause.wait(_LOOK_SECONDS)
                continue
            if not self._is_over:
                self._stand_by()
        self._busy.set()

    def _stand_by(self) -> None:
        """Return once this thread leads, or all is over."""
        self._stands_by, idle = True, 0
        while not self._is_over:
            self._busy.wait()
            self._pause.wait(_LOOK_SECONDS)
            if self._takes_over():
                return
            idle = 0 if self._since is not None else idle + 1
            if idle >= _LOOKS:
                idle = 0
                self._busy.clear()
                if self._since is not None:
                    # It has begun since; it may not have seen that we sleep.
                    self._busy.set()

    def _takes_over(self) -> bool:
        """Take the lead from a thread that has been busy for too long; return whether it was."""
        since = self._since
        if since is None or self._clock.monotonic() - since < _LOOK_SECONDS:
            return False
        with self._lock:
            if self._since != since:
                return False
            self._since, self._stands_by = None, False
            self._leader = threading.get_ident()
        return True
