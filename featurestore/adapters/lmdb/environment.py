"""An LMDB file as one process has it open: shared, grown and locked.

LMDB lets a process open a file once, waits for its write lock without end, must not change its
memory map under a transaction, and does not survive a fork. So all stores of a process that name a
folder share an environment; a lock file of ours stands before LMDB's own; two locks keep the map
whole; and a forked child opens the file anew.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from featurestore.adapters.lmdb.failures import (
    ONLINE_STORE,
    Subject,
    busy,
    folder_error,
    replaced,
    translate,
)
from featurestore.clock import Clock

_MAX_READERS = 1024
_POLL_SECONDS = 0.001
# The named database that holds states. Its name stands among the keys of rows, which are longer.
_STATES = b"states"

_T = TypeVar("_T")

_shared: dict[str, Environment] = {}
_live: list[Environment] = []  # with those whose file was replaced
_sharing = threading.Lock()


class Environment:
    """An LMDB environment. `acquire` gives it out, `release` takes it back.

    Locks are taken in this order, any of them left out: `write_lock`, `exclusive`, `gate`. Each
    read holds `gate`, so that a process takes one reader slot at a time; a write holds the first
    two; who changes the map holds the last two. The driver's object is touched under
    these locks only, and no frame outlives them that refers to it: a forked child could not open
    the file again while somebody remembers the parent's.

    Args:
        path: The folder.
        map_size: Bytes of address space to begin with.
        subject: What the file holds.
    """

    def __init__(self, path: Path, map_size: int, subject: Subject) -> None:
        self.path = path
        self.subject = subject
        self.users = 0
        self._map_size = map_size
        self._gate = threading.Lock()
        self._exclusive = threading.Lock()
        self._env: Any = None
        self._states: Any = None
        self._file: tuple[int, int] | None = None
        self._lock_files: set[int] = set()

    @property
    def replaced(self) -> bool:
        """Whether the file was deleted, and perhaps made anew, since it was opened."""
        return self._file != _identity(self.path)

    def handle(self) -> Any:
        """Return the driver's object, opened.

        Raises:
            StorageError: The file cannot be made or written, or is no LMDB file.
        """
        with self._gate:
            return self._opened()

    def close(self) -> None:
        """Close the file once nobody reads or writes."""
        with self._exclusive, self._gate:
            if self._env is not None:
                self._env.close()
                self._env = self._states = None

    def read(self, work: Callable[[Any], _T], timeout: float) -> _T:
        """Return what `work` makes of a read transaction.

        Args:
            work: Called again if the map had to change.
            timeout: Seconds to wait at most when another process has grown the file.

        Raises:
            StorageError: The file is damaged.
            OnlineStoreUnavailableError: More processes read than the file has slots for.
        """
        try:
            try:
                with self._gate:
                    return self._transact(work, write=False)
            except (lmdb.MapResizedError, lmdb.ReadersFullError) as error:
                with self.exclusive(timeout):
                    self._mend(error)
                with self._gate:
                    return self._transact(work, write=False)
        except lmdb.Error as error:
            raise translate(error, self.path, self.subject) from error.with_traceback(None)

    def states(self, txn: Any) -> Any:
        """Return the database of states for `work` of `read` and `write`, None where there is none.

        Args:
            txn: The transaction that `work` was given.
        """
        if self._states is not None:
            return self._states
        try:
            # Good for this transaction only: the driver ends each reader's as if it had failed.
            return self._env.open_db(_STATES, txn=txn, create=False)
        except lmdb.NotFoundError:
            return None

    def write(
        self,
        work: Callable[[Any], _T],
        timeout: float,
        clock: Clock,
        *,
        make_states: bool = False,
    ) -> _T:
        """Return what `work` makes of a write transaction that was committed and is on disk.

        Args:
            work: Called again if the map had to grow.
            timeout: Seconds to wait for other writers.
            clock: Measures them.
            make_states: Whether to make the database of states where there is none.

        Raises:
            OnlineStoreUnavailableError: Other writers did not end in time.
            StorageError: The disk is full, or the file read-only or damaged; nothing was changed.
        """
        with self.write_lock(timeout, clock), self.exclusive(timeout):
            if self.replaced:
                raise replaced(self.path, self.subject)
            try:
                # A reader that was killed would keep old pages from being used again.
                self.handle().reader_check()
                while True:
                    try:
                        self._keep_states(create=make_states)
                        return self._transact(work, write=True)
                    except (lmdb.MapFullError, lmdb.MapResizedError) as error:
                        self._mend(error)
            except lmdb.Error as error:
                raise translate(error, self.path, self.subject) from error.with_traceback(None)

    @contextmanager
    def exclusive(self, timeout: float) -> Iterator[None]:
        """Keep other threads of this process from writing and from changing the map.

        Raises:
            OnlineStoreUnavailableError: They did not end within so many seconds.
        """
        if not self._exclusive.acquire(timeout=timeout):
            raise busy(self.path, timeout, self.subject)
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
        with self._gate:  # no fork sees a file that is open and not noted
            lock_file = self._open_lock_file()
            self._lock_files.add(lock_file)
        try:
            self._wait_for(lock_file, timeout, clock)
            yield
        finally:
            with self._gate:
                self._lock_files.discard(lock_file)
                os.close(lock_file)

    def hold(self, stack: ExitStack) -> None:
        """Hold the locks of this process until the stack closes: no transaction is open then."""
        stack.enter_context(self._exclusive)
        stack.enter_context(self._gate)

    def disown(self) -> None:
        """Let go of what belongs to the parent process, in a forked child."""
        # Dropped, never closed: closing would free the parent's reader slot.
        self._env = self._states = None
        # An open descriptor would keep a lock of the parent's, even when that is killed.
        for lock_file in self._lock_files:
            os.close(lock_file)
        self._lock_files.clear()

    def _opened(self) -> Any:
        if self._env is not None:
            return self._env
        try:
            # No spare transactions: a forked child would end the parent's when it drops them.
            env = lmdb.open(
                str(self.path),
                map_size=self._map_size,
                max_readers=_MAX_READERS,
                max_spare_txns=0,
                max_dbs=1,
            )
            env.reader_check()
        except OSError as error:
            raise folder_error(self.path, error, self.subject) from error
        except lmdb.Error as error:
            raise translate(error, self.path, self.subject) from error.with_traceback(None)
        self._env, self._file = env, _identity(self.path)
        return env

    def _keep_states(self, *, create: bool) -> None:
        """Open the database of states for good. Needs the locks of a writer."""
        if self._states is None:
            # Not amid a read: LMDB takes a handle from one transaction of a process at a time.
            with self._gate, suppress(lmdb.NotFoundError):
                self._states = self._opened().open_db(_STATES, create=create)

    def _transact(self, work: Callable[[Any], _T], *, write: bool) -> _T:
        # A function of its own, so that its frame is gone before the caller lets go of its locks.
        with self._opened().begin(write=write) as txn:
            return work(txn)

    def _mend(self, error: Exception) -> None:
        """Double a full map, take over one that was grown, or free slots. Needs `exclusive`."""
        with self._gate:
            if isinstance(error, lmdb.ReadersFullError):
                self._opened().reader_check()
            elif isinstance(error, lmdb.MapFullError):
                self._opened().set_mapsize(2 * self._opened().info()["map_size"])
            else:
                self._opened().set_mapsize(0)

    def _open_lock_file(self) -> int:
        try:
            return os.open(self.path / "write.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise folder_error(self.path, error, self.subject) from error

    def _wait_for(self, lock_file: int, timeout: float, clock: Clock) -> None:
        pause = threading.Event()
        end = clock.monotonic() + timeout
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() > end:
                    raise busy(self.path, timeout, self.subject) from None
                pause.wait(_POLL_SECONDS)
            except OSError as error:
                raise folder_error(self.path, error, self.subject) from error
            else:
                return


def acquire(path: Path, map_size: int, subject: Subject = ONLINE_STORE) -> Environment:
    """Return the environment of a folder, opened; the folder is made when it is missing.

    Args:
        path: The folder.
        map_size: Bytes of address space to begin with.
        subject: What the file holds, for messages.

    Raises:
        StorageError: It cannot be made or written, or holds something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path = path.resolve(strict=True)
    except OSError as error:
        raise folder_error(path, error, subject) from error
    with _sharing:
        environment = _shared.get(str(path))
        if environment is None or environment.replaced:
            environment = Environment(path, map_size, subject)
            environment.handle()
            _live.append(environment)
            _shared[str(path)] = environment
        environment.users += 1
    return environment


def release(environment: Environment) -> None:
    """Take an environment back and close it after its last user."""
    with _sharing:
        environment.users -= 1
        if not environment.users:
            _live.remove(environment)
            if _shared.get(str(environment.path)) is environment:
                del _shared[str(environment.path)]
            environment.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = (path / "data.mdb").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


# A fork copies memory but not threads: meanwhile no lock may be held and no transaction open.
_forking = ExitStack()


def _before_fork() -> None:
    _forking.enter_context(_sharing)
    for environment in _live:
        environment.hold(_forking)


def _after_fork_in_child() -> None:
    for environment in _live:
        environment.disown()
    _forking.close()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_forking.close,
    after_in_child=_after_fork_in_child,
)
