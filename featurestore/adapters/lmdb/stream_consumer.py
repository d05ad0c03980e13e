"""A member of a consumer group over an LMDB file: who reads, how far it has come.

The lease of a group names its reader by a random token; whoever writes looks for its own token in
the same transaction, so that a reader that slept too long changes nothing any more. Writing waits
for the disk, so a lease is written anew only once a third of it has passed.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from featurestore.clock import Clock
from featurestore.errors import StreamUnavailableError
from featurestore.ports.stream_laws import accepted_at
from featurestore.ports.streams import Entry

GROUP, LEASE, PAYLOAD = b"g", b"l", b"p"
LEASE_SECONDS = 10.0

_PARTITION = "0"
_TOKEN_BYTES = 16
_POSITION = struct.Struct(">Q")
_DONE = struct.Struct(">qQ")
_NOTHING = (-1, 0)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.002

_T = TypeVar("_T")


class Transactions(Protocol):
    """What a consumer needs of its stream."""

    def reading(self, work: Callable[[Any], _T]) -> _T: ...  # noqa: D102
    def writing(self, work: Callable[[Any], _T]) -> _T: ...  # noqa: D102


class LmdbConsumer:
    """A member of a group of an `LmdbEventStream`, which makes it. For one thread."""

    def __init__(
        self, stream: Transactions, clock: Clock, lease_seconds: float, group: str, member: str
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._lease_us = int(lease_seconds * 1e6)
        self._group = GROUP + group.encode()
        self._lease = LEASE + group.encode()
        self._member = member
        self._token = os.urandom(_TOKEN_BYTES)
        self._after: int | None = None  # the newest position delivered; None while others read
        self._done = -1
        self._renew_us = 0
        self._pause = threading.Event()

    def poll(self, max_entries: int, timeout: float) -> list[Entry]:
        """Return the next entries, see `StreamConsumer.poll`.

        Raises:
            StreamUnavailableError: Others kept writing for too long, or the stream was closed.
            StorageError: The file is damaged, or the disk full.
        """
        # Waits are added up, not measured, so that a clock that stands still ends them too.
        left, pause = timeout, _FIRST_PAUSE
        found = self._take(max_entries)
        while not found and left > 0:
            self._pause.wait(min(pause, left))
            left, pause = left - pause, min(2 * pause, _LONGEST_PAUSE)
            found = self._take(max_entries)
        return found

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember that everything up to and including these positions is done.

        A position ahead of what was polled counts as what was polled.

        Raises:
            As `poll`; what was committed is then not known.
        """
        position = positions.get(_PARTITION)
        if position is None or self._after is None or min(position, self._after) <= self._done:
            return
        done = min(position, self._after)
        if self._stream.writing(partial(self._write_done, done=done)):
            self._done = done
        else:
            self._after = None

    def lag(self) -> dict[str, int]:
        """Return how many entries the group has not committed."""
        return {_PARTITION: self._stream.reading(self._count)}

    def close(self) -> None:
        """Leave the group: others take over at once, or when the lease ends if that fails."""
        if self._after is not None:
            self._after = None
            with suppress(StreamUnavailableError):
                self._stream.writing(self._drop_lease)

    def _take(self, max_entries: int) -> list[Entry]:
        now_us = self._clock.now_us()
        if self._after is None or now_us >= self._renew_us:
            self._take_lease(now_us)
        if self._after is None:
            return []
        rows = self._stream.reading(partial(self._read, count=max_entries))
        if rows is None:
            self._after = None
            return []
        start = len(PAYLOAD)
        found = []
        for key, value in rows:
            position = int.from_bytes(key[start:], "big")
            found.append(
                Entry(_PARTITION, position, accepted_at(position), value[_POSITION.size :])
            )
        if found:
            self._after = found[-1].position
        return found

    def _take_lease(self, now_us: int) -> None:
        held = self._stream.reading(lambda txn: txn.get(self._lease))
        if not self._may_take(held, now_us):
            self._after = None
            return
        done = self._stream.writing(partial(self._write_lease, now_us=now_us))
        if done is None:
            self._after = None
            return
        if self._after is None:
            self._after = self._done = done
        self._renew_us = now_us + self._lease_us // 3

    def _may_take(self, held: bytes | None, now_us: int) -> bool:
        if held is None or held.startswith(self._token):
            return True
        about = json.loads(held[_TOKEN_BYTES:])
        if about["member"] == self._member or about["until_us"] <= now_us:
            return True
        return _has_ended(about["pid"], about["namespace"])

    def _write_lease(self, txn: Any, now_us: int) -> int | None:
        """Return the last position that is done, None where somebody else was faster."""
        held = txn.get(self._lease)
        if not self._may_take(held, now_us):
            return None
        if held is None or not held.startswith(self._token):
            self._after = None
        self._put_lease(txn, now_us)
        position: int = self._read_done(txn)[0]
        return position

    def _put_lease(self, txn: Any, now_us: int) -> None:
        about = {
            "member": self._member,
            "until_us": now_us + self._lease_us,
            "pid": os.getpid(),
            "namespace": _namespace(),
        }
        txn.put(self._lease, self._token + json.dumps(about).encode())

    def _write_done(self, txn: Any, done: int) -> bool:
        if not self._holds(txn):
            return False
        now_us = self._clock.now_us()
        txn.put(self._group, _DONE.pack(done, _number_at(txn, done)))
        self._put_lease(txn, now_us)
        self._renew_us = now_us + self._lease_us // 3
        return True

    def _drop_lease(self, txn: Any) -> None:
        if self._holds(txn):
            txn.delete(self._lease)

    def _holds(self, txn: Any) -> bool:
        held: bytes | None = txn.get(self._lease)
        return held is not None and held.startswith(self._token)

    def _read_done(self, txn: Any) -> tuple[int, int]:
        found = txn.get(self._group)
        return _NOTHING if found is None else _DONE.unpack(found)

    def _read(self, txn: Any, count: int) -> list[tuple[bytes, bytes]] | None:
        if not self._holds(txn) or self._after is None:
            return None
        with txn.cursor() as cursor:
            if not cursor.set_range(PAYLOAD + _POSITION.pack(self._after + 1)):
                return []
            return list(islice(cursor.iternext(), count))

    def _count(self, txn: Any) -> int:
        with txn.cursor() as cursor:
            if not cursor.set_range(PAYLOAD):
                return 0
            (first,) = _POSITION.unpack_from(cursor.value())
            cursor.last()
            (last,) = _POSITION.unpack_from(cursor.value())
        left: int = last - max(self._read_done(txn)[1], first - 1)
        return left


def _number_at(txn: Any, position: int) -> int:
    """Return the number of the newest entry up to a position, 0 where there is none."""
    with txn.cursor() as cursor:
        key = PAYLOAD + _POSITION.pack(position)
        if not cursor.set_range(key):
            cursor.last()
        elif cursor.key() != key:
            cursor.prev()
        if not cursor.key().startswith(PAYLOAD):
            return 0
        number: int = _POSITION.unpack_from(cursor.value())[0]
        return number


def _namespace() -> str:
    """Return what tells where process ids mean what they mean here; empty where nothing does."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _has_ended(pid: int, namespace: str) -> bool:
    """Whether a process is known to be gone; one in another container never is."""
    if not namespace or namespace != _namespace():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
