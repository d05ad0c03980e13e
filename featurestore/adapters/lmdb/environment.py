"""An LMDB file as one process has it open: shared, grown and locked.

LMDB lets a process open a file once, waits for its write lock without end, must not change its
memory map under a transaction, and does not survive a fork. So all stores of a process that name one
folder share an environment; a lock file of ours stands before LMDB's own; two locks keep the map
whole; and a forked child opens the file anew.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lmdb

from featurestore.adapters.lmdb.failures import busy, folder_error, translate
from featurestore.clock import Clock

REMAP_ERRORS = (lmdb.MapFullError, lmdb.MapResizedError)

_MAX_READERS = 1024
_POLL_SECONDS = 0.001

_shared: dict[str, Environment] = {}
_sharing = threading.Lock()


class Environment:
    """An LMDB environment. `acquire` gives it out, `release` takes it back.

    Locks are taken in this order, any of them left out: `write_lock`, `exclusive`, `gate`. Each
    read holds `gate`, so that one reader slot serves the whole process and is kept; a write holds
    the first two. Only who holds `exclusive` may take `gate` to change the map.

    Attributes:
        path: The folder.
        gate: Held by each read, and while the map changes.
    """

    def __init__(self, path: Path, map_size: int) -> None:
        self.path = path
        self.gate = threading.Lock()
        self.users = 0
        self._exclusive = threading.Lock()
        self._map_size = map_size
        self._env: Any = None
        self._lock_files: set[int] = set()

    @property
    def handle(self) -> Any:
        """The driver's object. Not to be asked for under a lock."""
        if self._env is None:
            with _sharing:
                self.open()
        return self._env

    def open(self) -> None:
        """Open the file if it is not, under the lock of the shared environments.

        Raises:
            StorageError: It cannot be made or written, or is no LMDB file.
        """
        if self._env is not None:
            return
        try:
            env = lmdb.open(
                str(self.path), map_size=self._map_size, max_readers=_MAX_READERS, max_spare_txns=1
            )
            env.reader_check()
        except OSError as error:
            raise folder_error(self.path, error) from error
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        self._env = env

    def close(self) -> None:
        """Close the file once nobody reads or writes."""
        with self._exclusive, self.gate:
            if self._env is not None:
                self._env.close()
                self._env = None

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """Keep other threads of this process from writing and from changing the map.

        Raises:
            OnlineStoreUnavailableError: They did not end within so many seconds.
        """
        if not self._exclusive.acquire(timeout=timeout):
            raise busy(self.path, timeout)
        try:
            yield
        finally:
            self._exclusive.release()

    @contextmanager
    def write_lock(self, timeout: float, clock: Clock) -> Iterator[None]:
        """Keep all other writers out, of this process and of others.

        Raises:
            OnlineStoreUnavailableError: They did not end within so many seconds.
            StorageError: The lock file cannot be opened.
        """
        try:
            lock_file = os.open(self.path / "write.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise folder_error(self.path, error) from error
        self._lock_files.add(lock_file)
        try:
            self._wait_for(lock_file, timeout, clock)
            yield
        finally:
            self._lock_files.discard(lock_file)
            os.close(lock_file)

    def mend(self, error: Exception, timeout: float = 0) -> None:
        """Make room after an error that says there is none.

        Args:
            error: A full map is doubled, one that another process grew is taken over, and slots of
                readers that are dead are freed.
            timeout: Seconds to wait for `exclusive`; 0 when it is held already.
        """
        env = self.handle
        if isinstance(error, lmdb.ReadersFullError):
            env.reader_check()
            return
        grown = isinstance(error, lmdb.MapFullError)
        with ExitStack() as stack:
            if timeout:
                stack.enter_context(self.exclusive(timeout))
            stack.enter_context(self.gate)
            env.set_mapsize(2 * env.info()["map_size"] if grown else 0)

    def hold(self, stack: ExitStack) -> None:
        """Hold the locks of this process until the stack closes: no transaction is open then."""
        stack.enter_context(self._exclusive)
        stack.enter_context(self.gate)

    def disown(self) -> None:
        """Let go of what belongs to the parent process, in a forked child."""
        # Dropped, never closed: closing would free the parent's reader slot.
        self._env = None
        # An open descriptor would keep a lock of the parent's, even when that is killed.
        for lock_file in self._lock_files:
            os.close(lock_file)
        self._lock_files.clear()

    def _wait_for(self, lock_file: int, timeout: float, clock: Clock) -> None:
        pause = threading.Event()
        end = clock.monotonic() + timeout
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() > end:
                    raise busy(self.path, timeout) from None
                pause.wait(_POLL_SECONDS)
            except OSError as error:
                raise folder_error(self.path, error) from error
            else:
                return


def acquire(path: Path, map_size: int) -> Environment:
    """Return the environment of a folder, opened; the folder is made when it is missing.

    Raises:
        StorageError: It cannot be made or written, or holds something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path = path.resolve(strict=True)
    except OSError as error:
        raise folder_error(path, error) from error
    with _sharing:
        environment = _shared.get(str(path)) or Environment(path, map_size)
        environment.open()
        environment.users += 1
        _shared[str(path)] = environment
    return environment


def release(environment: Environment) -> None:
    """Take an environment back and close it after its last user."""
    with _sharing:
        environment.users -= 1
        if not environment.users:
            del _shared[str(environment.path)]
            environment.close()


# A fork copies memory but not threads: meanwhile no lock may be held and no transaction open.
_forking = ExitStack()


def _before_fork() -> None:
    _forking.enter_context(_sharing)
    for environment in _shared.values():
        environment.hold(_forking)


def _after_fork_in_child() -> None:
    for environment in _shared.values():
        environment.disown()
    _forking.close()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_forking.close,
    after_in_child=_after_fork_in_child,
)
