"""Threads that serve requests and do not keep the process alive.

The standard pool's threads are waited for when the interpreter ends, so that one call that hangs,
in a user's function for example, would outlast any limit on draining. These are not.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class DaemonPool(ThreadPoolExecutor):
    """A fixed number of daemon threads that take calls in the order in which they come.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, name=f"serve-{i}", daemon=True)
            for i in range(threads)
        ]
        for worker in self._workers:
            worker.start()

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

        self._calls.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002
        """End the threads once they have made the calls that are queued."""
        for _ in self._workers:
            self._calls.put(None)
        for worker in self._workers if wait else ():
            worker.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
