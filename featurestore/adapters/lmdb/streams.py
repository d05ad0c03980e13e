"""The event stream in an LMDB file: one machine, any number of processes, no server.

An append is one transaction or a few, each on disk before the next; an entry that was acknowledged
survives any crash. The file holds what its groups have done and who reads for them as well. One
partition, so one member of a group reads; the others wait until it leaves, dies or falls silent.
Refuses network file systems, as LMDB does, and folders that hold something else.

    f                         the format
    g GROUP                   position and number of the last entry that is done
    l GROUP                   token of the member that reads, then more about it as JSON
    p POSITION                number of the entry (1, 2, ...), payload
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs

from featurestore.adapters.lmdb.environment import Environment, acquire, release
from featurestore.adapters.lmdb.failures import EVENT_STREAM
from featurestore.adapters.lmdb.stream_consumer import (
    GROUP,
    LEASE,
    LEASE_SECONDS,
    PAYLOAD,
    LmdbConsumer,
)
from featurestore.clock import Clock, SystemClock
from featurestore.errors import SettingsError, StorageError, StreamUnavailableError
from featurestore.ports.stream_laws import check_member, next_position, placed

MAP_SIZE = 4 << 30
BATCH_ENTRIES = 10_000
BATCH_BYTES = 32 << 20

_FORMAT = b"f"
_MARK = b"featurestore event stream 1"
_NUMBER = struct.Struct(">Q")
_PARTITION = "0"

_T = TypeVar("_T")


class LmdbEventStream:
    """A stream in a folder of its own. For use by any number of threads and processes.

    Args:
        path: The folder; made when it is missing.
        timeout: Seconds to wait for other writers.
        clock: Gives positions and ends leases; the machine's by default.
        maxlen: About how many entries to keep; None keeps all. Older ones go whether or not a group
            has read them.
        lease_seconds: A member that does not poll for so long counts as dead. One whose process has
            ended counts so at once.

    Raises:
        StorageError: The folder cannot be made or written, or holds something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 2.0,
        clock: Clock | None = None,
        maxlen: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._path = Path(path)
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._maxlen = maxlen
        self._lease_seconds = lease_seconds
        self._opening = threading.Lock()
        self._opened: list[Environment] = []
        self._closed = False
        self.environment()

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        username: str | None = None,  # noqa: ARG003
        password: str | None = None,  # noqa: ARG003
        timeout: float = 2.0,
        clock: Clock | None = None,
        base: str | os.PathLike[str] = ".",
        lease_seconds: float = LEASE_SECONDS,
    ) -> Self:
        """Return the stream of a URL.

        Args:
            url: `lmdb:path/to/folder/NAME`, and `?maxlen=100000` to keep about so many entries.
            username: Not needed.
            password: Not needed.
            timeout: Seconds to wait for other writers.
            clock: Gives positions and ends leases; the machine's by default.
            base: The folder that a relative path begins at.
            lease_seconds: A member that does not poll for so long counts as dead.

        Raises:
            SettingsError: The URL is of another kind.
            StorageError: As the constructor.
        """
        path, maxlen = _parse(url)
        return cls(
            Path(base) / path,
            timeout=timeout,
            clock=clock,
            maxlen=maxlen,
            lease_seconds=lease_seconds,
        )

    def __repr__(self) -> str:
        return f"LmdbEventStream({str(self._path)!r})"

    def append(
        self,
        payloads: Sequence[bytes],
        partition_keys: Sequence[bytes] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[tuple[str, int]]:
        """Append payloads durably; return (partition, position) of each.

        Args:
            payloads: The entries, in order.
            partition_keys: Only counted: there is one partition.
            timeout: Seconds to wait for other writers; None takes the stream's setting.

        Raises:
            RequestError: There is not one key a payload.
            StreamUnavailableError: Other writers did not end in time.
            StorageError: The disk is full, or the file read-only or damaged.
        """
        placed(payloads, partition_keys, 1, 0)
        result: list[tuple[str, int]] = []
        for batch in _batches(payloads):
            positions = self.writing(partial(self._put, payloads=batch), timeout)
            result += [(_PARTITION, position) for position in positions]
        return result

    def consumer(self, group: str, member: str) -> LmdbConsumer:
        """Join a consumer group, see `EventStream.consumer`.

        Raises:
            RequestError: A name is empty or too long.
        """
        check_member(group, member)
        return LmdbConsumer(self, self._clock, self._lease_seconds, group, member)

    def ends(self) -> dict[str, int]:
        """Return the newest position of each partition that has one."""
        last, _ = self.reading(_last)
        return {_PARTITION: last} if last >= 0 else {}

    def forget(self, group: str) -> None:
        """Delete what the stream remembers of a group."""
        check_member(group, group)
        name = group.encode()
        if self.reading(lambda txn: txn.get(GROUP + name) or txn.get(LEASE + name)):
            self.writing(lambda txn: txn.delete(GROUP + name) | txn.delete(LEASE + name))

    def ping(self) -> None:
        """Return when the file can be read."""
        self.reading(lambda txn: txn.id())

    def close(self) -> None:
        """Let go of the file; the last user in this process closes it."""
        with self._opening:
            self._closed = True
            while self._opened:
                release(self._opened.pop())

    # For the consumers of this stream.

    def environment(self) -> Environment:
        """Return the open file; another one where it was deleted and perhaps made anew.

        Raises:
            StreamUnavailableError: The stream was closed.
            StorageError: The folder cannot be made or written, or holds something else.
        """
        if not self._opened or self._opened[-1].replaced:
            with self._opening:
                if self._closed:
                    raise StreamUnavailableError(
                        "The event stream was closed.", where=str(self._path), hint="Open it again."
                    )
                if not self._opened or self._opened[-1].replaced:
                    # What was replaced is kept until the end: other threads may be at work in it.
                    self._opened.append(self._acquire())
        return self._opened[-1]

    def reading(self, work: Callable[[Any], _T]) -> _T:
        """Return what `work` makes of a read transaction."""
        return self.environment().read(work, self._timeout)

    def writing(self, work: Callable[[Any], _T], timeout: float | None = None) -> _T:
        """Return what `work` makes of a write transaction that is on disk."""
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        environment = self.environment()
        try:
            return environment.write(work, seconds, self._clock)
        except StorageError:
            if not environment.replaced:
                raise
        return self.environment().write(work, seconds, self._clock)

    def _acquire(self) -> Environment:
        environment = acquire(self._path, MAP_SIZE, EVENT_STREAM)
        try:
            self._claim(environment)
        except BaseException:
            release(environment)
            raise
        return environment

    def _claim(self, environment: Environment) -> None:
        mark, entries = environment.read(_look, self._timeout)
        if mark is None and not entries:
            mark = environment.write(_mark, self._timeout, self._clock)
        if mark != _MARK:
            raise StorageError(
                "This folder holds something else than an event stream.",
                where=str(self._path),
                hint="Give each stream a folder of its own.",
            )

    def _put(self, txn: Any, payloads: Sequence[bytes]) -> list[int]:
        position, number = _last(txn)
        now_us = self._clock.now_us()
        positions: list[int] = []
        items: list[tuple[bytes, bytes]] = []
        for payload in payloads:
            position = next_position(position, now_us)
            number += 1
            positions.append(position)
            items.append((PAYLOAD + _NUMBER.pack(position), _NUMBER.pack(number) + payload))
        with txn.cursor() as cursor:
            _, added = cursor.putmulti(items, append=True)
        if added != len(items):
            raise StorageError(
                "The event stream's file holds something else as well.",
                where=str(self._path),
                hint="Give each stream a folder of its own.",
            )
        if self._maxlen is not None:
            _trim(txn, number - self._maxlen)
        return positions


def _look(txn: Any) -> tuple[bytes | None, int]:
    return txn.get(_FORMAT), txn.stat()["entries"]


def _mark(txn: Any) -> bytes:
    txn.put(_FORMAT, _MARK)
    return _MARK


def _last(txn: Any) -> tuple[int, int]:
    """Return position and number of the newest entry, also of one that was trimmed away since."""
    with txn.cursor() as cursor:
        if not cursor.last() or not cursor.key().startswith(PAYLOAD):
            return -1, 0
        (position,) = _NUMBER.unpack_from(cursor.key(), len(PAYLOAD))
        (number,) = _NUMBER.unpack_from(cursor.value())
        return position, number


def _trim(txn: Any, number: int) -> None:
    """Delete all entries up to the one of this number."""
    with txn.cursor() as cursor:
        while cursor.set_range(PAYLOAD) and _NUMBER.unpack_from(cursor.value())[0] <= number:
            cursor.delete()


def _batches(payloads: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = size = 0
    for place, payload in enumerate(payloads):
        if place > start and (place - start == BATCH_ENTRIES or size + len(payload) > BATCH_BYTES):
            yield payloads[start:place]
            start, size = place, 0
        size += len(payload)
    if start < len(payloads):
        yield payloads[start:]


def _parse(url: str) -> tuple[str, int | None]:
    scheme, _, rest = url.partition(":")
    path, _, query = rest.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    maxlen = options.pop("maxlen", None)
    wrong = maxlen is not None and not (maxlen.isdecimal() and int(maxlen))
    if scheme != "lmdb" or not path or options or wrong:
        raise SettingsError(
            "The stream's URL is none of a stream in an LMDB file.",
            got=url,
            allowed="lmdb:path/to/folder/NAME, and ?maxlen=100000 to keep about so many entries",
        )
    return path, int(maxlen) if maxlen else None
