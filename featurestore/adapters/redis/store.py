"""The online store in Redis or Valkey: a packed row a key, a hash a state, scripts that write both.

Reads are one round trip: one MGET, or the GETs of each primary of a cluster sent side by side; of
states an HMGET each. Newer wins in a script, and in another a state is compared and changed (T2,
O1, O5). No call waits longer than its timeout; a read that meets a broken connection is tried once
more, at once, and nothing else is ever repeated. Expiry is the server's; it takes only what readers
would call expired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from featurestore.adapters.redis import script, states
from featurestore.adapters.redis.cautions import ASKED, cautions_of
from featurestore.adapters.redis.connection import Command, Deadline, Server, exchange
from featurestore.adapters.redis.direct import read_values
from featurestore.adapters.redis.failures import (
    DRIVER_ERRORS,
    check_kept,
    is_read_only,
    is_stale,
    translate,
)
from featurestore.adapters.redis.location import Location, parse_location
from featurestore.adapters.redis.routes import Routes, routes_to
from featurestore.adapters.redis.scanning import scan
from featurestore.clock import Clock, SystemClock
from featurestore.ports.online import StateChange, StateRead
from featurestore.ports.online_laws import check_changes, newest_per_key

# A script holds the server for about a millisecond at this size, so that readers get in between.
_SCRIPT_KEYS = 250
_WRITE_KEYS = 5_000
_READ_KEYS = 5_000
# A key may be redirected to where it moved, then to where it moves, need the script there, and be
# redirected again.
_ROUNDS = 8
_MADE = ord("1")
# How many milliseconds of each second that is left to wait for replicas.
_WAIT_MILLISECONDS = 800
_LOADS = {script.DIGEST: script.LOAD, states.DIGEST: states.LOAD}

_T = TypeVar("_T")
_Step = tuple[int | None, Command]


class RedisOnlineStore:
    """Keeps rows and states. For use by any number of threads, and after a fork.

    Args:
        location: Where the servers are.
        routes: Finds the server of a key.
        deadline: Bounds every call.
    """

    def __init__(self, location: Location, routes: Routes, deadline: Deadline) -> None:
        self._location = location
        self._routes = routes
        self._deadline = deadline

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        timeout: float = 2.0,
        clock: Clock | None = None,
    ) -> Self:
        """Return a store; the servers are first spoken to by the first call.

        Args:
            url: `redis://host:port/database`, `rediss://` for TLS, `redis+cluster://` and
                `rediss+cluster://` naming one server of a cluster; `redis+sentinel://` and
                `rediss+sentinel://host:port,host:port/service/database` naming sentinels and what
                they call the server. TLS takes the options `?ssl_ca_certs=FILE`, `ssl_ca_path`,
                `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` and `ssl_check_hostname`. A write
                counts as done once `?replicas=N` have it: 1 with sentinels, else 0 by default.
            username: Of an ACL user; goes before one in the URL.
            password: Goes before one in the URL.
            sentinel_username: Of an ACL user of the sentinels.
            sentinel_password: Of the sentinels.
            timeout: Seconds that one round trip may take at most, connecting included.
            clock: What tells the time that passes; the machine's by default.

        Raises:
            SettingsError: The URL is of another kind.
        """
        location = parse_location(
            url, username, password, sentinel_login=(sentinel_username, sentinel_password)
        )
        clock = clock or SystemClock()
        deadline = Deadline(clock, timeout)
        return cls(location, routes_to(location, deadline, clock), deadline)

    def __repr__(self) -> str:
        return f"RedisOnlineStore({self._location.label!r})"

    def read(self, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:
        """Return the value of each key, None where there is none, in one round trip.

        Args:
            keys: Any number of keys, duplicates allowed; the result has their order.
            timeout: Seconds; one longer than the store's setting counts as the setting.

        Raises:
            OnlineStoreUnavailableError: No answer came in time.
            AuthenticationError: The user was refused.
            StorageError: The server answered with an error.
        """
        self._deadline.start(timeout)
        return self._twice(partial(self._read, keys))

    def write(
        self, keys: Sequence[bytes], values: Sequence[bytes], expires_us: Sequence[int] | None
    ) -> int:
        """Store each value that is newer than what is there; return how many keys changed.

        Keys of one call become visible in groups, each key whole. After an error some may be
        stored and others not; writing all of them again is right.

        Args:
            keys: The keys; of a key that repeats, the newest value counts, once.
            values: Packed rows, one a key.
            expires_us: The instant after which the server deletes a value (0: never), None where
                nothing expires. Callers give instants ahead of now; one that is not becomes a
                minute ahead, so that a value just written can be read.

        Raises:
            OnlineStoreUnavailableError: No answer came in time; what was stored is not known.
            AuthenticationError: The user was refused.
            StorageError: The server is full or read-only.
        """
        chosen = newest_per_key(keys, values, expires_us)
        won = 0
        try:
            for start in range(0, len(chosen), _WRITE_KEYS):
                self._deadline.start()
                won += self._write(chosen[start : start + _WRITE_KEYS], keys, values, expires_us)
        except DRIVER_ERRORS as error:
            if is_read_only(error):
                self._routes.forget()
            raise translate(error, self._location) from error
        return won

    def read_states(
        self,
        reads: Sequence[StateRead],
        rows: Sequence[bytes] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        """Return the fields of each state and the value of each row, in one round trip.

        Args:
            reads: Any number of states; a key may stand in it more than once.
            rows: Keys of rows, as `read` takes them.
            timeout: Seconds; one longer than the store's setting counts as the setting.

        Raises:
            As `read`; StorageError also where there is a row under the key of a state.
        """
        self._deadline.start(timeout)
        return self._twice(partial(self._read_states, reads, rows))

    def write_states(self, changes: Sequence[StateChange]) -> list[bool]:
        """Make each change whose state is still as expected; return which were made.

        Changes of one call become visible in groups, each change whole. After an error any of them
        may have been made and any not, so nothing is sent again here: who wrote reads the states
        anew, and finds in their versions what was made.

        Args:
            changes: None of the same key. An instant of expiry that is not ahead becomes a minute
                ahead, so that a state just written can be read.

        Raises:
            RequestError: A change is none, see `check_changes`; nothing was sent.
            OnlineStoreUnavailableError: No answer came in time; what was changed is not known.
            AuthenticationError: The user was refused.
            StorageError: The server is full or read-only, or has a row under the key of a state.
        """
        check_changes(changes)
        made = [False] * len(changes)
        try:
            for trip in states.trips(changes, together=self._routes.one_server):
                self._deadline.start()
                keys = [changes[group[0]].key for group, _ in trip]
                replies = self._run(keys, [command for _, command in trip], write=True)
                for (group, _), reply in zip(trip, replies, strict=True):
                    for position, digit in zip(group, reply, strict=True):
                        made[position] = digit == _MADE
        except DRIVER_ERRORS as error:
            if is_read_only(error):
                self._routes.forget()
            raise translate(error, self._location) from error
        return made

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every key that begins with these 8 bytes and no other; return how many.

        Walks over all keys of the database; each round trip has the store's timeout.
        """
        deleted = 0
        try:
            for server in self._primaries():
                for found in self._scan(server, namespace):
                    self._deadline.start()
                    deleted += sum(self._run(found, [("UNLINK", key) for key in found]))
        except DRIVER_ERRORS as error:
            raise translate(error, self._location) from error
        return deleted

    def count(self, namespace: bytes) -> int:
        """Return how many keys begin with these 8 bytes.

        Walks over all keys of the database and keeps those found in memory: the server may show a
        key twice while its table grows.
        """
        seen: set[bytes] = set()
        try:
            for server in self._primaries():
                for found in self._scan(server, namespace):
                    seen.update(found)
        except DRIVER_ERRORS as error:
            raise translate(error, self._location) from error
        return len(seen)

    def ping(self, *, timeout: float | None = None) -> None:
        """Return when every server that holds keys answers."""
        self._everywhere([("PING",)], timeout)

    def cautions(self) -> list[str]:
        """Return what threatens what is kept: that the server evicts, or that replicas are gone."""
        told, needed = self._everywhere(ASKED, None), self._location.replicas
        return [text for name, replies in told for text in cautions_of(name, replies, needed)]

    def close(self) -> None:
        """Close all connections. Another call would open new ones."""
        self._routes.close()

    def _everywhere(
        self, commands: list[Command], timeout: float | None
    ) -> list[tuple[str, list[Any]]]:
        """Return the name and the replies of every server that holds keys."""
        self._deadline.start(timeout)
        try:
            servers = self._routes.primaries()
            answers = exchange([(server, commands) for server in servers], self._routes.failed)
            return [(s.name, _checked(answer)) for s, answer in zip(servers, answers, strict=True)]
        except DRIVER_ERRORS as error:
            raise translate(error, self._location) from error

    def _twice(self, work: Callable[[], _T]) -> _T:
        """Return what `work` reads, tried once more where a connection was broken."""
        try:
            return work()
        except DRIVER_ERRORS as error:
            if not is_stale(error):
                raise translate(error, self._location) from error
        try:
            return work()
        except DRIVER_ERRORS as error:
            raise translate(error, self._location) from error

    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not self._routes.one_server:
            return self._run(keys, [("GET", key) for key in keys])
        if 0 < len(keys) <= _READ_KEYS:
            (server,) = self._routes.primaries()
            found = read_values(server, keys, self._deadline, self._routes.failed)
            if found is not None:
                return found
        return _joined(self._ask(_mgets(keys)))

    def _read_states(
        self, reads: Sequence[StateRead], rows: Sequence[bytes]
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        asked = [read for read in reads if read.fields]
        commands = [states.read_state(read) for read in asked]
        if self._routes.one_server:
            replies = self._ask([*commands, *_mgets(rows)])
            found = _joined(replies[len(asked) :])
        else:
            keys = [*[read.key for read in asked], *rows]
            replies = self._run(keys, [*commands, *[("GET", key) for key in rows]])
            found = replies[len(asked) :]
        answers = iter(replies)
        return [next(answers) if read.fields else [] for read in reads], found

    def _ask(self, commands: list[Command]) -> list[Any]:
        if not commands:
            return []
        (server,) = self._routes.primaries()
        # A broken connection shows in the answer, and the read is tried again: no need to look.
        return _checked(exchange([(server, commands)], self._routes.failed, check=False)[0])

    def _write(
        self,
        chosen: Sequence[int],
        keys: Sequence[bytes],
        values: Sequence[bytes],
        expires_us: Sequence[int] | None,
    ) -> int:
        # Keys of a cluster are in slots of their own; a script may touch one slot only.
        size = _SCRIPT_KEYS if self._routes.one_server else 1
        groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        commands = [
            script.newer_wins(
                [keys[i] for i in group],
                [values[i] for i in group],
                [] if expires_us is None else [script.milliseconds(expires_us[i]) for i in group],
            )
            for group in groups
        ]
        return sum(self._run([keys[group[0]] for group in groups], commands, write=True))

    def _primaries(self) -> list[Server]:
        self._deadline.start()
        return self._routes.primaries()

    def _scan(self, server: Server, namespace: bytes) -> Iterator[list[bytes]]:
        return scan(server, namespace, self._deadline, self._routes.failed)

    def _run(
        self, keys: Sequence[bytes], commands: Sequence[Command], *, write: bool = False
    ) -> list[Any]:
        """Return the reply of each command; `keys` holds a key of each, which tells the server."""
        replies: list[Any] = [None] * len(commands)
        last, kept = self._wait() if write else [], []
        plan: dict[Server, list[_Step]] = {
            server: [(i, commands[i]) for i in positions]
            for server, positions in self._routes.place(keys).items()
        }
        for _ in range(_ROUNDS):
            if not plan:
                break
            answers = exchange(
                [(server, [*(step[1] for step in steps), *last]) for server, steps in plan.items()],
                self._routes.failed,
            )
            again: dict[Server, list[_Step]] = {}
            for (server, steps), answer in zip(plan.items(), answers, strict=True):
                kept += [answer.pop() for _ in last]
                for step, reply in zip(steps, answer, strict=True):
                    if step[0] is not None:
                        replies[step[0]] = reply
                    if isinstance(reply, ResponseError):
                        self._follow(again, server, step, reply)
            plan = again
        _checked(replies)
        check_kept(_checked(kept), self._location.replicas)
        return replies

    def _wait(self) -> list[Command]:
        # Behind the writes of the same connection, and over in time to be told.
        milliseconds = max(1, int(self._deadline.left() * _WAIT_MILLISECONDS))
        needed = self._location.replicas
        return [("WAIT", needed, milliseconds)] if needed else []

    def _follow(
        self, again: dict[Server, list[_Step]], server: Server, step: _Step, error: ResponseError
    ) -> None:
        if step[0] is None:
            raise error
        if isinstance(error, NoScriptError):
            again.setdefault(server, [(None, _LOADS[step[1][1]])]).append(step)
        elif isinstance(error, AskError):
            steps = again.setdefault(self._routes.redirect(error), [])
            if not isinstance(error, MovedError):
                steps.append((None, ("ASKING",)))
            steps.append(step)


def _mgets(keys: Sequence[bytes]) -> list[Command]:
    return [("MGET", *keys[i : i + _READ_KEYS]) for i in range(0, len(keys), _READ_KEYS)]


def _joined(replies: list[Any]) -> list[bytes | None]:
    return replies[0] if len(replies) == 1 else [value for reply in replies for value in reply]


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies
