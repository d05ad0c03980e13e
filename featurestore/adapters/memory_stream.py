"""The event stream in lists: for trying out, to hold the others against, and to fail at will.

Lives and dies with the process; another process never sees it. With a `FixedClock` everything but
the waiting is deterministic. Members die by silence (their lease ends) or by `kill`; `repeat` has
entries delivered again, `available` and `lose_next_reply` break the connection.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qs

from featurestore.clock import Clock, SystemClock
from featurestore.errors import SettingsError, StreamUnavailableError
from featurestore.ports.stream_laws import accepted_at, check_member, next_position, placed, share
from featurestore.ports.streams import Entry

LEASE_SECONDS = 10.0
_LOOK_SECONDS = 0.01


@dataclass
class _Partition:
    positions: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


@dataclass
class _Reading:
    """How far a group has come in a partition, and who reads it."""

    done: int = -1
    owner: object = None
    member: str = ""
    until_us: int = 0


@dataclass
class _Group:
    readings: list[_Reading]
    members: dict[str, int] = field(default_factory=dict)  # until when each counts as alive


class _Log:
    """What all streams of one name share."""

    def __init__(self, partitions: int) -> None:
        self.changed = threading.Condition()
        self.partitions = [_Partition() for _ in range(partitions)]
        self.groups: dict[str, _Group] = {}
        self.available = True
        self.losing = False
        self.turn = 0

    def group(self, name: str) -> _Group:
        if name not in self.groups:
            self.groups[name] = _Group([_Reading() for _ in self.partitions])
        return self.groups[name]

    def each(self, group: str) -> list[tuple[_Reading, _Partition]]:
        return list(zip(self.group(group).readings, self.partitions, strict=True))

    @contextmanager
    def reached(self, wait: float = 0.0) -> Iterator[None]:
        with self.changed:
            if wait:
                self.changed.wait(wait)
            if not self.available:
                raise StreamUnavailableError("The event stream is not available.", where="memory:")
            yield

    def maybe_lose_reply(self) -> None:
        if self.losing:
            self.losing = False
            raise StreamUnavailableError("The event stream went away.", where="memory:")


_named: dict[str, _Log] = {}
_naming = threading.Lock()


class MemoryEventStream:
    """A stream in this process. For use by any number of threads.

    Args:
        clock: Gives positions and ends leases; the machine's by default.
        partitions: How many there are.
        lease_seconds: A member that does not poll for so long counts as dead.
        log: What another stream holds, to share it.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        partitions: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        log: _Log | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._lease_us = int(lease_seconds * 1e6)
        self._log = log or _Log(partitions)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        username: str | None = None,  # noqa: ARG003
        password: str | None = None,  # noqa: ARG003
        timeout: float = 2.0,  # noqa: ARG003
        clock: Clock | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Self:
        """Return the stream of a name; all of this process that name it share it.

        Args:
            url: `memory:NAME`, or `memory:NAME?partitions=4` where it is new.
            username: Not needed.
            password: Not needed.
            timeout: Not needed: nothing waits but `poll`.
            clock: Gives positions and ends leases; the machine's by default.
            lease_seconds: A member that does not poll for so long counts as dead.

        Raises:
            SettingsError: The URL is of another kind, or tells another number of partitions.
        """
        name, partitions = _parse(url)
        with _naming:
            log = _named.setdefault(name, _Log(partitions))
        if len(log.partitions) != partitions:
            raise SettingsError(
                f"The stream 'memory:{name}' has another number of partitions.",
                got=str(partitions),
                allowed=str(len(log.partitions)),
            )
        return cls(clock, lease_seconds=lease_seconds, log=log)

    @property
    def available(self) -> bool:
        """Whether the stream answers; set it to False and every call raises."""
        return self._log.available

    @available.setter
    def available(self, value: bool) -> None:
        with self._log.changed:
            self._log.available = value
            self._log.changed.notify_all()

    def lose_next_reply(self) -> None:
        """Let the next append, commit or poll that finds something do its work and then raise."""
        with self._log.changed:
            self._log.losing = True

    def kill(self, group: str, member: str) -> None:
        """Let a member die: another one takes over from the last commit."""
        with self._log.changed:
            found = self._log.group(group)
            found.members.pop(member, None)
            for reading in found.readings:
                if reading.member == member:
                    reading.owner, reading.until_us = None, 0
            self._log.changed.notify_all()

    def repeat(self, group: str, entries: int) -> None:
        """Deliver so many entries of each partition again that the group has committed last."""
        with self._log.changed:
            for reading, partition in self._log.each(group):
                first = bisect_right(partition.positions, reading.done) - entries
                reading.done = partition.positions[first - 1] if first > 0 else -1
                reading.owner = None
            self._log.changed.notify_all()

    def append(
        self,
        payloads: Sequence[bytes],
        partition_keys: Sequence[bytes] | None = None,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> list[tuple[str, int]]:
        """Append payloads; return (partition, position) of each.

        Raises:
            RequestError: There is not one key a payload.
            StreamUnavailableError: The stream is not available.
        """
        log = self._log
        with log.reached():
            chosen = placed(payloads, partition_keys, len(log.partitions), log.turn)
            log.turn += 1
            result: list[tuple[str, int]] = [("", 0)] * len(payloads)
            now_us = self._clock.now_us()
            for number, places in chosen.items():
                partition = log.partitions[number]
                last = partition.positions[-1] if partition.positions else -1
                for place in places:
                    last = next_position(last, now_us)
                    partition.positions.append(last)
                    partition.payloads.append(bytes(payloads[place]))
                    result[place] = (str(number), last)
            log.changed.notify_all()
            log.maybe_lose_reply()
            return result

    def consumer(self, group: str, member: str) -> MemoryConsumer:
        """Join a consumer group, see `EventStream.consumer`.

        Raises:
            RequestError: A name is empty or too long.
        """
        check_member(group, member)
        return MemoryConsumer(self._log, self._clock, self._lease_us, group, member)

    def ends(self) -> dict[str, int]:
        """Return the newest position of each partition that has one."""
        log = self._log
        with log.reached():
            return {
                str(number): partition.positions[-1]
                for number, partition in enumerate(log.partitions)
                if partition.positions
            }

    def forget(self, group: str) -> None:
        """Delete what the stream remembers of a group."""
        log = self._log
        with log.reached():
            log.groups.pop(group, None)

    def ping(self) -> None:
        """Return when the stream is available."""
        with self._log.reached():
            pass

    def close(self) -> None:
        """Do nothing: others may share the stream."""


class MemoryConsumer:
    """A member of a group of a `MemoryEventStream`, which makes it. For one thread."""

    def __init__(self, log: _Log, clock: Clock, lease_us: int, group: str, member: str) -> None:
        self._log = log
        self._clock = clock
        self._lease_us = lease_us
        self._group = group
        self._member = member
        self._turn = 0
        self._after: dict[int, int] = {}  # of what is ours, the newest position delivered

    def poll(self, max_entries: int, timeout: float) -> list[Entry]:
        """Return the next entries, see `StreamConsumer.poll`."""
        looks = math.ceil(max(timeout, 0.0) / _LOOK_SECONDS)
        for wait in [0.0, *[_LOOK_SECONDS] * looks]:
            with self._log.reached(wait):
                found = self._take(max_entries)
            if found:
                return found
        return []

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember that everything up to these positions is done.

        A position ahead of what was polled counts as what was polled.
        """
        with self._log.reached():
            for number, (reading, _) in enumerate(self._log.each(self._group)):
                position = positions.get(str(number))
                if position is not None and reading.owner is self and number in self._after:
                    reading.done = max(reading.done, min(position, self._after[number]))
            self._log.maybe_lose_reply()

    def lag(self) -> dict[str, int]:
        """Return how many entries of each partition the group has not committed."""
        with self._log.reached():
            return {
                str(number): len(kept.positions) - bisect_right(kept.positions, reading.done)
                for number, (reading, kept) in enumerate(self._log.each(self._group))
            }

    def close(self) -> None:
        """Leave the group."""
        with self._log.changed:
            group = self._log.group(self._group)
            group.members.pop(self._member, None)
            for reading in group.readings:
                if reading.owner is self:
                    reading.owner = None
            self._after.clear()
            self._log.changed.notify_all()

    def _take(self, max_entries: int) -> list[Entry]:
        self._lease()
        found: list[Entry] = []
        self._turn += 1
        for number in sorted(
            self._after, key=lambda number: (number + self._turn) % len(self._after)
        ):
            kept = self._log.partitions[number]
            first = bisect_right(kept.positions, self._after[number])
            last = first + max_entries - len(found)
            found += [
                Entry(str(number), position, accepted_at(position), payload)
                for position, payload in zip(
                    kept.positions[first:last], kept.payloads[first:last], strict=True
                )
            ]
        if found:
            self._log.maybe_lose_reply()
        for entry in found:
            self._after[int(entry.partition)] = entry.position
        return found

    def _lease(self) -> None:
        """Take what is ours to read and nobody's, keep what is, give away the rest once done."""
        now_us = self._clock.now_us()
        until_us = now_us + self._lease_us
        group = self._log.group(self._group)
        alive = {name for name, until in group.members.items() if until > now_us}
        group.members = {name: group.members[name] for name in alive} | {self._member: until_us}
        count = len(group.readings)
        wanted = share(self._member, alive, count) if count > 1 else {0}
        for number, reading in enumerate(group.readings):
            if reading.owner is not self:
                self._after.pop(number, None)
                if number in wanted and self._may_take(reading, now_us):
                    reading.owner, reading.member, reading.until_us = self, self._member, until_us
                    self._after[number] = reading.done
            elif number in wanted or self._after[number] > reading.done:
                reading.until_us = until_us
            else:
                reading.owner = None
                del self._after[number]

    def _may_take(self, reading: _Reading, now_us: int) -> bool:
        gone = reading.owner is None or reading.until_us <= now_us
        return gone or reading.member == self._member


def _parse(url: str) -> tuple[str, int]:
    scheme, _, rest = url.partition(":")
    name, _, query = rest.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    count = options.pop("partitions", "1")
    if scheme != "memory" or not name or options or not count.isdecimal() or not int(count):
        raise SettingsError(
            "The stream's URL is none of a stream in memory.",
            got=url,
            allowed="memory:NAME or memory:NAME?partitions=4",
        )
    return name, int(count)
