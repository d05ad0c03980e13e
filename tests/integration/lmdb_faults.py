"""What tests of LMDB's faults share: workers that are killed, forks, stuck writers, threads."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.errors import OnlineStoreUnavailableError
from tests.integration.worker_process import DEADLINE, WorkerProcess


class Worker(WorkerProcess):
    """A process of `lmdb_worker` at work."""

    program = Path(__file__).with_name("lmdb_worker.py")

    def kill_within(self, chance: random.Random, longest: float) -> None:
        """Kill it at any moment within so many seconds."""
        moment = time.monotonic() + chance.uniform(0, longest)
        while time.monotonic() < moment:
            pass
        self.kill()
        assert self.process.returncode == -signal.SIGKILL


def opened(path: Path) -> Iterator[LmdbOnlineStore]:
    """Yield a store, which is closed in the end."""
    store = LmdbOnlineStore(path, timeout=10)
    yield store
    store.close()


def fork(child: Callable[[], bool]) -> None:
    """Fail unless what a forked child does is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(_in_child(child))
    assert os.waitpid(pid, 0)[1] == 0


def _in_child(child: Callable[[], bool]) -> int:
    signal.alarm(DEADLINE)
    try:
        right = child()
    except Exception:  # noqa: BLE001 - the status tells
        traceback.print_exc()
        return 2
    return 0 if right else 1


@contextlib.contextmanager
def meanwhile(*works: Callable[[], Any]) -> Iterator[None]:
    """Do each work again and again in a thread of its own."""
    done, errors = threading.Event(), []

    def repeat(work: Callable[[], Any]) -> None:
        try:
            while not done.is_set():
                work()
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert not errors, str(errors[0])


@contextlib.contextmanager
def a_writer_that_does_not_end(path: Path, write: Callable[[], Any]) -> Iterator[None]:
    """See that a write is given up in time, as another process holds the lock inside the block."""
    with Worker("hold_write_lock", path) as writer:
        assert writer.line() == "locked"
        os.kill(writer.process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(OnlineStoreUnavailableError, match=r"within 0\.2 s"):
            write()
        assert time.monotonic() - start < 5
        yield
        writer.kill()


def finds_no_room(job: str, path: Path) -> None:
    """Let a worker fill its disk, and see that it is told so."""
    with Worker(job, path) as worker:
        assert worker.line() == "The online store finds no room."
        worker.finish()
