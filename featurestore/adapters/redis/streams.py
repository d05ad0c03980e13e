"""The event stream in Redis or Valkey: Redis Streams, which any client can read and append to.

An entry's payload is its field `payload`; an entry of somebody else's without one has an empty
payload. Durability is the server's: what it acknowledges survives its death when it runs with
appendonly and fsync always. No call waits longer than its timeout, and nothing is repeated but
what a server that lost our scripts refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from redis.exceptions import NoScriptError, ResponseError

from featurestore.adapters.redis.connection import Command, Deadline, exchange
from featurestore.adapters.redis.failures import DRIVER_ERRORS, is_read_only, translate
from featurestore.adapters.redis.routes import OneServer
from featurestore.adapters.redis.stream_consumer import LEASE_SECONDS, RedisConsumer
from featurestore.adapters.redis.stream_entries import position_from
from featurestore.adapters.redis.stream_location import StreamLocation, parse_stream_location
from featurestore.adapters.redis.stream_scripts import APPEND, FORGET, Script
from featurestore.clock import Clock, SystemClock
from featurestore.ports.stream_laws import check_member, placed, position_of

# A script holds the server for about a millisecond at this size, so that others get in between.
_SCRIPT_ENTRIES = 500
_SCRIPT_BYTES = 4 << 20
_TRIP_BYTES = 32 << 20
_LONGEST_WAIT = 1.0
_NO_ENTRY = b"0-0"

_Group = tuple[int, list[int]]  # a partition and places of payloads


class RedisEventStream:
    """A stream of one or several keys on one server. For use by any number of threads.

    Args:
        location: Where it is.
        timeout: Seconds that one round trip may take at most, connecting included.
        clock: What tells the time that passes.
        lease_seconds: A member that does not poll for so long counts as dead.
    """

    def __init__(
        self,
        location: StreamLocation,
        *,
        timeout: float = 2.0,
        clock: Clock | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.location = location
        self._timeout = timeout
        self._lease_seconds = lease_seconds
        self._clock = clock or SystemClock()
        self._deadline = Deadline(self._clock, timeout + _LONGEST_WAIT)
        self._routes = OneServer(location.server, self._deadline)
        self._turns = itertools.count()

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout: float = 2.0,
        clock: Clock | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> Self:
        """Return a stream; the server is first spoken to by the first call.

        Args:
            url: `redis://host:port/NAME` or `redis://host:port/database/NAME`, `rediss://` for TLS
                with the options of `RedisOnlineStore.from_url`. `?partitions=4` spreads the stream
                over the keys NAME:0 to NAME:3, which several members of a group share; all who use
                the stream must name the same number. `?maxlen=1000000` keeps about so many entries
                a partition, whether or not a group has read the older ones.
            username: Of an ACL user; goes before one in the URL.
            password: Goes before one in the URL.
            timeout: Seconds that one round trip may take at most, connecting included.
            clock: What tells the time that passes; the machine's by default.
            lease_seconds: A member that does not poll for so long counts as dead.

        Raises:
            SettingsError: The URL is of another kind.
        """
        location = parse_stream_location(url, username, password)
        return cls(location, timeout=timeout, clock=clock, lease_seconds=lease_seconds)

    def __repr__(self) -> str:
        return f"RedisEventStream({self.location.server.label!r})"

    def append(
        self,
        payloads: Sequence[bytes],
        partition_keys: Sequence[bytes] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[tuple[str, int]]:
        """Append payloads; return (partition, position) of each.

        One round trip, or one for each 32 MB.

        Args:
            payloads: The entries, in order.
            partition_keys: Entries of equal keys go to one partition; None takes any one.
            timeout: Seconds of a round trip; one longer than the stream's setting counts as that.

        Raises:
            RequestError: There is not one key a payload.
            StreamUnavailableError: No answer came in time; what was appended is not known.
            AuthenticationError: The user was refused.
            StorageError: The server is full or read-only.
        """
        location, result = self.location, [("", 0)] * len(payloads)
        chosen = placed(payloads, partition_keys, location.partitions, next(self._turns))
        for trip in _trips(payloads, chosen):
            commands = [
                APPEND.call(
                    [location.keys[number]], location.maxlen or "", *[payloads[i] for i in group]
                )
                for number, group in trip
            ]
            replies = self.run(APPEND, commands, timeout)
            for (number, group), reply in zip(trip, replies, strict=True):
                first = position_of(*reply)
                for offset, place in enumerate(group):
                    result[place] = (str(number), first + offset)
        return result

    def consumer(self, group: str, member: str) -> RedisConsumer:
        """Join a consumer group, see `EventStream.consumer`.

        Raises:
            RequestError: A name is empty or too long.
        """
        check_member(group, member)
        return RedisConsumer(
            self, self.location, self._clock, self._lease_seconds, group=group, member=member
        )

    def ends(self) -> dict[str, int]:
        """Return the newest position of each partition that has one.

        Raises:
            DataError: An entry of somebody else's has an id that makes no position.
            As `append`.
        """
        keys = self.location.keys
        ends: dict[str, int] = {}
        replies = self.ask([("XINFO", "STREAM", key) for key in keys], missing=True)
        for number, (key, reply) in enumerate(zip(keys, replies, strict=True)):
            newest = _NO_ENTRY if reply is None else _newest(reply)
            if newest != _NO_ENTRY:
                ends[str(number)] = position_from(newest, key)
        return ends

    def forget(self, group: str) -> None:
        """Delete what the stream remembers of a group."""
        check_member(group, group)
        location = self.location
        commands = [
            FORGET.call([key, location.lease(number, group)], group)
            for number, key in enumerate(location.keys)
        ]
        self.run(FORGET, commands)
        self.ask([("DEL", location.members(group))])

    def ping(self) -> None:
        """Return when the server answers."""
        self.ask([("PING",)])

    def close(self) -> None:
        """Close all connections. Another call would open new ones."""
        self._routes.close()

    # For the consumers of this stream too.

    def ask(
        self,
        commands: list[Command],
        timeout: float | None = None,
        *,
        wait: float = 0.0,
        missing: bool = False,
    ) -> list[Any]:
        """Return the reply of each command, sent in one round trip.

        Args:
            commands: What to send.
            timeout: Seconds; one longer than the stream's setting counts as that.
            wait: Seconds that the commands block before they answer, a second at most.
            missing: Whether a key that is not there is fine; its reply is None.
        """
        replies = self._send(commands, timeout, wait)
        for place, reply in enumerate(replies):
            if isinstance(reply, ResponseError):
                if not missing or "no such key" not in str(reply):
                    raise translate(reply, self.location.server) from reply
                replies[place] = None
        return replies

    def run(
        self, script: Script, commands: list[Command], timeout: float | None = None
    ) -> list[Any]:
        """Return the reply of each call of a script, made in order and in one round trip.

        A server that does not know the script refuses all of them, is told, and gets them again.
        """
        if len(commands) > 1:
            # Told beforehand: another client could tell it amid ours, and some would overtake.
            return self.ask([script.load, *commands], timeout)[1:]
        replies = self._send(commands, timeout, 0.0)
        if replies and isinstance(replies[0], NoScriptError):
            return self.ask([script.load, *commands], timeout)[1:]
        if replies and isinstance(replies[0], ResponseError):
            raise translate(replies[0], self.location.server) from replies[0]
        return replies

    def _send(self, commands: list[Command], timeout: float | None, wait: float) -> list[Any]:
        seconds = self._timeout if timeout is None else min(timeout, self._timeout)
        self._deadline.start(seconds + wait)
        (server,) = self._routes.primaries()
        try:
            (replies,) = exchange([(server, commands)], self._routes.failed)
        except DRIVER_ERRORS as error:
            raise translate(error, self.location.server) from error
        if any(is_read_only(reply) for reply in replies if isinstance(reply, ResponseError)):
            self._routes.forget()
        return replies


def _newest(reply: list[Any]) -> bytes:
    about = dict(zip(reply[::2], reply[1::2], strict=True))
    newest: bytes = about[b"last-generated-id"]
    return newest


def _trips(payloads: Sequence[bytes], chosen: Mapping[int, list[int]]) -> Iterator[list[_Group]]:
    """Yield what goes in each round trip: groups of payloads, each for one script."""
    trip: list[_Group] = []
    in_trip = 0
    for number, places in chosen.items():
        for group, size in _groups(payloads, places):
            if trip and in_trip + size > _TRIP_BYTES:
                yield trip
                trip, in_trip = [], 0
            trip.append((number, group))
            in_trip += size
    if trip:
        yield trip


def _groups(payloads: Sequence[bytes], places: list[int]) -> Iterator[tuple[list[int], int]]:
    """Yield the payloads of each script, and how many bytes they have."""
    group: list[int] = []
    total = 0
    for place in places:
        size = len(payloads[place])
        if group and (len(group) == _SCRIPT_ENTRIES or total + size > _SCRIPT_BYTES):
            yield group, total
            group, total = [], 0
        group.append(place)
        total += size
    yield group, total
