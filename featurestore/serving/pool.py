"""Threads that serve requests and do not keep the process alive.

The standard pool's threads are waited for when the interpreter ends, so that one call that hangs,
in a user's function for example, would outlast any limit on draining. These are not. When more
calls wait than are taken on, the rest go to a thread that only refuses: `is_refusing` tells so.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_Calls = queue.SimpleQueue[Callable[[], None] | None]


class DaemonPool(ThreadPoolExecutor):
    """A number of daemon threads that take calls in the order in which they come.

    Args:
        threads: How many.
        waiting: How many calls may wait for a thread; None is any number.
    """

    def __init__(self, threads: int, waiting: int | None = None) -> None:
        super().__init__(threads)
        self._calls: _Calls = queue.SimpleQueue()
        self._refused: _Calls = queue.SimpleQueue()
        self._most_waiting = waiting
        self._lock = threading.Lock()
        self._spares = 0
        self._wanted_spares = 0
        self._workers = [self._thread(f"serve-{i}", self._work) for i in range(threads)]
        self._refuser: threading.Thread | None = None
        if waiting is not None:
            self._refuser = self._thread("refuse", self._refuse)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue a call; its result comes in the future."""
        future: Future[Any] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (whoever holds the future gets it)
                future.set_exception(error)

        if self._most_waiting is not None and self._calls.qsize() >= self._most_waiting:
            self._refused.put(call)
        else:
            self._calls.put(call)
        return future

    @property
    def is_behind(self) -> bool:
        """Whether calls wait for a thread."""
        return not self._calls.empty()

    def is_refusing(self) -> bool:
        """Whether this thread is the one that only refuses."""
        return threading.current_thread() is self._refuser

    def replace(self, count: int) -> None:
        """Have so many threads more, for those that wait; fewer once each has ended its call."""
        with self._lock:
            self._wanted_spares = count
            missing = max(0, count - self._spares)
            self._spares += missing
        for _ in range(missing):
            try:
                self._thread("serve-spare", self._work_a_while)
            except RuntimeError:
                # The system gives no more threads; those that wait go on as they are.
                with self._lock:
                    self._spares -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
        """End the threads once they have made the calls that are queued."""
        self.replace(0)
        for _ in self._workers:
            self._calls.put(None)
        self._refused.put(None)
        for worker in self._workers if wait else ():
            worker.join()

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _work_a_while(self) -> None:
        """Work until there is no need of this thread; calls that wait end that wait."""
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                call = _nothing
            if call is None:
                # It was meant for one of the others, which still waits for it.
                self._calls.put(None)
                call = _nothing
            call()
            with self._lock:
                if self._spares > self._wanted_spares:
                    self._spares -= 1
                    return

    def _refuse(self) -> None:
        while (call := self._refused.get()) is not None:
            call()


_IDLE_SECONDS = 0.2


def _nothing() -> None:
    """Do nothing."""
