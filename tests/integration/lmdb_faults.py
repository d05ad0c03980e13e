"""What tests of LMDB's faults share: workers that are killed, forks, stuck writers, threads."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.errors import OnlineStoreUnavailableError

WORKER = Path(__file__).with_name("lmdb_worker.py")
DEADLINE = 60


class Worker:
    """A process of `lmdb_worker` at work; killed at the end whatever happens."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our own script
            [sys.executable, str(WORKER), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._timer = threading.Timer(DEADLINE, self.process.kill)
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def finish(self) -> None:
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, output

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._timer.cancel()

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
