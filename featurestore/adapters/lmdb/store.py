"""The online store in an LMDB file: the newest packed row of each key, and states (T2, O1, M7).

A batch is one transaction: after a crash at any byte it is there whole or not at all, and it is on
disk before `write` returns. Readers wait for nobody and see the last committed state. Refuses
network file systems: LMDB's locks do not hold there. Ignores expiry: readers decide by law T3.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from featurestore.adapters.lmdb.environment import Environment, acquire, release
from featurestore.adapters.lmdb.states import delete_some, read_states, states_after, write_states
from featurestore.clock import Clock, SystemClock
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.ports.online import StateChange, StateRead
from featurestore.ports.online_laws import check_changes, newest_per_key
from featurestore.semantics.rows import is_newer

MAP_SIZE = 64 << 30
BATCH_ROWS = 10_000

# LMDB takes keys of up to 511 bytes. A key as long or longer is kept under its beginning and a
# hash, exactly 511 bytes together, and in full before its value; shorter ones as they are.
_MAX_KEY = 511
_DIGEST_BYTES = 32
_LENGTH = struct.Struct(">I")
_WALK_KEYS = 10_000

_T = TypeVar("_T")


class LmdbOnlineStore:
    """Keeps the newest packed row of each key, and states, in a folder.

    For use by any number of threads and processes, forked ones too. Several stores over one folder
    share what they open.

    Args:
        path: The folder; made when it is missing.
        timeout: Seconds to wait for other writers.
        map_size: Bytes of address space to begin with; grown when needed. The file is only as large
            as what it holds.
        batch: Keys written in one transaction.
        clock: What tells the time that passes; the machine's by default.

    Raises:
        StorageError: The folder cannot be made or written, or holds something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 2.0,
        map_size: int = MAP_SIZE,
        batch: int = BATCH_ROWS,
        clock: Clock | None = None,
    ) -> None:
        self._timeout = timeout
        self._batch = batch
        self._clock = clock or SystemClock()
        self._environment = acquire(Path(path), map_size)
        self._closed = False

    def __repr__(self) -> str:
        return f"LmdbOnlineStore({str(self._environment.path)!r})"

    def read(self, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:  # noqa: ARG002
        """Return the value of each key, None where there is none, all as of one commit.

        Args:
            keys: Any number of keys, duplicates allowed; the result has their order.
            timeout: Not needed: a read waits for nobody.

        Raises:
            OnlineStoreUnavailableError: The store was closed.
            StorageError: The file is damaged.
        """
        if not keys:
            return []
        return self._reading(partial(_get_all, keys=keys))

    def write(
        self, keys: Sequence[bytes], values: Sequence[bytes], expires_us: Sequence[int] | None
    ) -> int:
        """Store each value that is newer than what is there; return how many keys changed.

        Args:
            keys: The keys; of a key that repeats, the newest value counts, once.
            values: Packed rows, one a key.
            expires_us: Ignored; nothing is collected here.

        Raises:
            OnlineStoreUnavailableError: Another process kept the write lock for too long.
            StorageError: The disk is full, or the file read-only or damaged. The transaction that
                met it is not stored.
        """
        # Sorted, neighbours land on one page, which is copied once.
        items = sorted((keys[i], values[i]) for i in newest_per_key(keys, values, expires_us))
        return sum(
            self._writing(partial(_put_newer, items=items[start : start + self._batch]))
            for start in range(0, len(items), self._batch)
        )

    def read_states(
        self,
        reads: Sequence[StateRead],
        rows: Sequence[bytes] = (),
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        """Return the fields of each state and the value of each row, all as of one commit.

        Args:
            reads: Any number of states; a key may stand in it more than once.
            rows: Keys of rows, as `read` takes them.
            timeout: Not needed: a read waits for nobody.

        Raises:
            As `read`.
        """
        if not reads and not rows:
            return [], []
        return self._reading(partial(_read_both, self._environment, reads=reads, rows=rows))

    def write_states(self, changes: Sequence[StateChange]) -> list[bool]:
        """Make each change whose state is still as expected; return which were made.

        All changes of a call are one transaction: after an error, or a crash, none is made.

        Args:
            changes: None of the same key. Their `expires_us` is ignored; nothing is collected here.

        Raises:
            RequestError: A change is none, see `check_changes`.
            OnlineStoreUnavailableError: Another process kept the write lock for too long.
            StorageError: The disk is full, or the file read-only or damaged.
        """
        check_changes(changes)
        if not changes:
            return []
        work = partial(_write_states, self._environment, changes=changes)
        return self._writing(work, make_states=True)

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every key that begins with these 8 bytes and no other; return how many.

        Raises:
            As `write`; keys are deleted in several transactions, each key whole.
        """
        rows, states = partial(_delete_some, namespace=namespace), self._environment
        deleted = 0
        while gone := self._writing(rows):
            deleted += gone
        while gone := self._writing(partial(_delete_states, states, namespace=namespace)):
            deleted += gone
        return deleted

    def count(self, namespace: bytes) -> int:
        """Return how many keys of rows and states begin with these 8 bytes.

        Other readers get in between.
        """
        rows = partial(_keys_after, namespace=namespace)
        states = partial(_states_after, self._environment, namespace=namespace)
        return self._count(rows) + self._count(states)

    def ping(self, *, timeout: float | None = None) -> None:  # noqa: ARG002
        """Return when the file can be read."""
        self._reading(lambda txn: txn.id())

    def cautions(self) -> list[str]:
        """Return nothing: a file loses nothing that was written."""
        return []

    def close(self) -> None:
        """Let go of the file; the last store over it in this process closes it."""
        if not self._closed:
            self._closed = True
            release(self._environment)

    def _reading(self, work: Callable[[Any], _T]) -> _T:
        return self._open_environment().read(work, self._timeout)

    def _writing(self, work: Callable[[Any], _T], *, make_states: bool = False) -> _T:
        environment = self._open_environment()
        return environment.write(work, self._timeout, self._clock, make_states=make_states)

    def _count(self, keys_after: Callable[..., list[bytes]]) -> int:
        total, last = 0, None
        while True:
            found = self._reading(partial(keys_after, last=last))
            total += len(found)
            if len(found) < _WALK_KEYS:
                return total
            last = found[-1]

    def _open_environment(self) -> Environment:
        if self._closed:
            raise OnlineStoreUnavailableError(
                "The online store was closed.",
                where=str(self._environment.path),
                hint="Open the feature store again.",
            )
        return self._environment


def _stored_key(key: bytes) -> bytes:
    if len(key) < _MAX_KEY:
        return key
    digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()
    return key[: _MAX_KEY - _DIGEST_BYTES] + digest


def _get_all(txn: Any, keys: Sequence[bytes]) -> list[bytes | None]:
    if max(map(len, keys), default=0) >= _MAX_KEY:
        return [_get(txn, key) for key in keys]
    return list(map(txn.get, keys))


def _read_both(
    environment: Environment, txn: Any, reads: Sequence[StateRead], rows: Sequence[bytes]
) -> tuple[list[list[bytes | None]], list[bytes | None]]:
    return read_states(txn, environment.states(txn), reads), _get_all(txn, rows)


def _write_states(environment: Environment, txn: Any, changes: Sequence[StateChange]) -> list[bool]:
    return write_states(txn, environment.states(txn), changes)


def _delete_states(environment: Environment, txn: Any, namespace: bytes) -> int:
    states = environment.states(txn)
    return 0 if states is None else delete_some(txn, states, namespace, _WALK_KEYS)


def _states_after(
    environment: Environment, txn: Any, namespace: bytes, last: bytes | None
) -> list[bytes]:
    states = environment.states(txn)
    return [] if states is None else states_after(txn, states, namespace, last, _WALK_KEYS)


def _get(txn: Any, key: bytes) -> bytes | None:
    found: bytes | None = txn.get(_stored_key(key))
    if found is None or len(key) < _MAX_KEY:
        return found
    (length,) = _LENGTH.unpack_from(found)
    start = _LENGTH.size + length
    return found[start:] if found[_LENGTH.size : start] == key else None


def _put_newer(txn: Any, items: Sequence[tuple[bytes, bytes]]) -> int:
    won = 0
    for key, value in items:
        old = _get(txn, key)
        if old is None or is_newer(value, old):
            long = len(key) >= _MAX_KEY
            txn.put(_stored_key(key), _LENGTH.pack(len(key)) + key + value if long else value)
            won += 1
    return won


def _delete_some(txn: Any, namespace: bytes) -> int:
    deleted = 0
    with txn.cursor() as cursor:
        cursor.set_range(namespace)
        while deleted < _WALK_KEYS and cursor.key().startswith(namespace):
            cursor.delete()
            deleted += 1
    return deleted


def _keys_after(txn: Any, namespace: bytes, last: bytes | None) -> list[bytes]:
    with txn.cursor() as cursor:
        if not cursor.set_range(last or namespace):
            return []
        if cursor.key() == last and not cursor.next():
            return []
        keys: list[bytes] = list(islice(cursor.iternext(keys=True, values=False), _WALK_KEYS))
    while keys and not keys[-1].startswith(namespace):
        keys.pop()
    return keys
