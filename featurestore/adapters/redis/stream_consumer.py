"""A member of a consumer group over Redis Streams.

One member reads a partition at a time: who holds its lease. Who gets one takes over all that was
delivered and not acknowledged, whoever it was delivered to, and delivers that before anything
newer. Where there are several partitions, the members that are alive share them; who has too many
gives one up once all that it polled of it is committed.
"""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from featurestore.adapters.redis.connection import Command
from featurestore.adapters.redis.stream_entries import entries_from
from featurestore.adapters.redis.stream_location import StreamLocation
from featurestore.adapters.redis.stream_scripts import (
    ACKNOWLEDGE,
    COUNT,
    LAG,
    LEAVE,
    MEET,
    TAKE,
    Script,
)
from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, UnavailableError
from featurestore.ports.stream_laws import share
from featurestore.ports.streams import Entry

LEASE_SECONDS = 10.0
_LONGEST_WAIT = 1.0
_STANDBY_PAUSE = 0.05
_START = b"0-0"
_ANEW = 2


class Server(Protocol):
    """What a consumer needs of its stream."""

    def ask(  # noqa: D102
        self, commands: list[Command], timeout: float | None = None, *, wait: float = 0.0
    ) -> list[Any]: ...
    def run(self, script: Script, commands: list[Command]) -> list[Any]: ...  # noqa: D102


@dataclass
class _Reading:
    """A partition as this member reads it.

    Attributes:
        held: Whether we hold its lease, as far as we know.
        reached: The newest id that has reached us since we hold it.
        again: The id behind which our own deliveries are read again; empty when all reached us.
        delivered: The id up to which the server has delivered, when it had nothing newer.
        positions: Of what we polled and have not committed, in order.
        ids: The ids of the same entries.
    """

    held: bool = False
    reached: bytes = _START
    again: bytes = _START
    delivered: bytes = _START
    positions: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)

    def begin(self, *, held: bool) -> None:
        self.held = held
        self.reached = self.again = self.delivered = _START
        self.positions.clear()
        self.ids.clear()


class RedisConsumer:
    """A member of a group of a `RedisEventStream`, which makes it. For one thread."""

    def __init__(
        self,
        server: Server,
        location: StreamLocation,
        clock: Clock,
        lease_seconds: float,
        *,
        group: str,
        member: str,
    ) -> None:
        self._server = server
        self._location = location
        self._clock = clock
        self._keys = location.keys
        self._leases = [location.lease(number, group) for number in range(location.partitions)]
        self._lease_seconds = lease_seconds
        self._group = group
        self._member = member
        self._token = os.urandom(16)
        self._readings = [_Reading() for _ in self._keys]
        self._wanted = list(range(location.partitions))
        self._next_meeting = -math.inf
        self._turn = 0
        self._pause = threading.Event()

    def poll(self, max_entries: int, timeout: float) -> list[Entry]:
        """Return the next entries, see `StreamConsumer.poll`.

        Raises:
            StreamUnavailableError: No answer came within the stream's timeout, beyond the one here.
            AuthenticationError: The user was refused.
            StorageError: The server is full or read-only, or the key holds something else.
            DataError: An entry of somebody else's has an id that makes no position.
        """
        # Waits are added up, not measured, so that a clock that stands still ends them too.
        left = timeout
        if self._clock.monotonic() >= self._next_meeting:
            self._meet()
        found = self._take(max_entries)
        while not found and left > 0:
            left -= self._wait(left)
            self._meet()
            found = self._take(max_entries)
        return found

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember that everything up to and including these positions is done.

        A position ahead of what was polled counts as what was polled.

        Raises:
            As `poll`; what was committed is then not known, and committing again is right.
        """
        numbers, counts, commands = [], [], []
        for number, reading in enumerate(self._readings):
            position = positions.get(str(number))
            count = 0 if position is None else bisect_right(reading.positions, position)
            if reading.held and count:
                numbers.append(number)
                counts.append(count)
                commands.append(self._call(ACKNOWLEDGE, number, *reading.ids[:count]))
        if not commands:
            return
        for number, count, ours in zip(
            numbers, counts, self._server.run(ACKNOWLEDGE, commands), strict=True
        ):
            reading = self._readings[number]
            if ours:
                del reading.positions[:count], reading.ids[:count]
            else:
                reading.begin(held=False)

    def lag(self) -> dict[str, int]:
        """Return how many entries of each partition the group has not committed.

        Raises:
            As `poll`.
        """
        commands = [LAG.call([key], self._group) for key in self._keys]
        result = {}
        for number, (lag, behind) in enumerate(self._server.run(LAG, commands)):
            total = lag
            while behind:
                ((more, behind),) = self._server.run(  # noqa: PLW2901
                    COUNT, [COUNT.call([self._keys[number]], behind)]
                )
                total += more
            result[str(number)] = total
        return result

    def close(self) -> None:
        """Leave the group: others take over at once, or when the lease ends if that fails."""
        for reading in self._readings:
            reading.begin(held=False)
        with suppress(UnavailableError):
            self._server.run(LEAVE, [LEAVE.call([lease], self._token) for lease in self._leases])
            if len(self._keys) > 1:
                self._server.ask([("ZREM", self._location.members(self._group), self._member)])

    def _meet(self) -> None:
        """Find out which partitions are ours to read, and give up others that are done with."""
        longest = min(_LONGEST_WAIT, self._lease_seconds / 3)
        self._next_meeting = self._clock.monotonic() + longest
        count = len(self._keys)
        if count == 1:
            return
        key = self._location.members(self._group)
        milliseconds = int(self._lease_seconds * 1_000)
        (alive,) = self._server.run(MEET, [MEET.call([key], self._member, milliseconds)])
        mine = share(self._member, (name.decode() for name in alive), count)
        for number, reading in enumerate(self._readings):
            if reading.held and number not in mine:
                if reading.ids:
                    self._keep(number)
                else:
                    self._server.run(LEAVE, [LEAVE.call([self._leases[number]], self._token)])
                    reading.begin(held=False)
        self._wanted = sorted(mine)

    def _keep(self, number: int) -> None:
        (ours,) = self._server.run(ACKNOWLEDGE, [self._call(ACKNOWLEDGE, number)])
        if not ours:
            self._readings[number].begin(held=False)

    def _take(self, max_entries: int) -> list[Entry]:
        # Another partition begins each time, so that none waits for ever.
        self._turn += 1
        start = self._turn % max(len(self._wanted), 1)
        numbers = (self._wanted[start:] + self._wanted[:start])[:max_entries]
        if not numbers:
            return []
        count = max_entries // len(numbers)
        commands = [
            self._call(TAKE, number, count, self._readings[number].again) for number in numbers
        ]
        try:
            replies = self._server.run(TAKE, commands)
            told = [
                entries_from(str(number), self._keys[number], reply[2])
                for number, reply in zip(numbers, replies, strict=True)
            ]
        except FeatureStoreError:
            # Something may have been delivered that did not reach us.
            for number in numbers:
                self._readings[number].again = self._readings[number].reached
            raise
        for number, reply, entries in zip(numbers, replies, told, strict=True):
            self._note(self._readings[number], entries, reply)
        return [entry for entries in told for entry in entries]

    def _note(self, reading: _Reading, entries: list[Entry], reply: list[Any]) -> None:
        status, again, found, delivered = reply
        if not status:
            reading.begin(held=False)
            return
        if status == _ANEW or not reading.held:
            reading.begin(held=True)
        ids = [entry_id for entry_id, _ in found[: len(entries)]]
        if ids:
            reading.ids += ids
            reading.positions += [entry.position for entry in entries]
            reading.reached = ids[-1]
        reading.again = reading.reached if again or len(ids) < len(found) else b""
        reading.delivered = delivered or reading.reached

    def _wait(self, left: float) -> float:
        """Wait until there may be something; return the seconds that count as waited."""
        held = [number for number in self._wanted if self._readings[number].held]
        longest = min(_LONGEST_WAIT, self._lease_seconds / 3)
        if len(held) < len(self._wanted) or not held:
            longest = _STANDBY_PAUSE
        seconds = min(left, longest)
        if not held:
            self._pause.wait(seconds)
            return seconds
        # Only a bell: what rings is read by the script that looks for the lease.
        bell: Command = ("XREAD", "COUNT", 1, "BLOCK", max(1, int(seconds * 1_000)), "STREAMS")
        keys = [self._keys[number] for number in held]
        behind = [self._readings[number].delivered for number in held]
        (rang,) = self._server.ask([(*bell, *keys, *behind)], wait=seconds)
        return 0.0 if rang else seconds

    def _call(self, script: Script, number: int, *arguments: bytes | int) -> Command:
        keys = [self._keys[number], self._leases[number]]
        milliseconds = int(self._lease_seconds * 1_000)
        return script.call(keys, self._group, self._member, self._token, milliseconds, *arguments)
