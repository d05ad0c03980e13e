"""Connections that never outlive the caller's deadline, and one round trip over several of them.

The driver's own timeouts start anew at each system call; a server that drips bytes could stretch a
call without end. Here every connect, handshake, send and receive gets only what is left of the one
deadline of the call. The name service is outside of its reach: it answers by its own timeouts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from featurestore.adapters.redis.location import Location
from featurestore.clock import Clock

Command = tuple[Any, ...]  # of str, bytes and int

_READ_BYTES = 1 << 16


class Deadline:
    """The instant by which the current call of a thread must be over.

    Args:
        clock: What tells the time.
        limit: The longest that a call may take, seconds.
    """

    def __init__(self, clock: Clock, limit: float) -> None:
        self._monotonic = clock.monotonic
        self._limit = limit
        self._local = threading.local()

    def start(self, timeout: float | None = None) -> None:
        """Begin a call that may take `timeout` seconds, and never more than the limit."""
        seconds = self._limit if timeout is None else min(timeout, self._limit)
        self._local.end = self._monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: None are.
        """
        end: float | None = getattr(self._local, "end", None)
        if end is None:
            return self._limit
        left = end - self._monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the call has passed")
        return left


class _DeadlineSocket:
    """A socket whose every transfer ends by the deadline."""

    __slots__ = ("_left", "_socket")

    def __init__(self, socket: Any, left: Callable[[], float]) -> None:
        self._socket = socket
        self._left = left

    def recv_into(self, buffer: bytearray) -> int:
        self._socket.settimeout(self._left())
        received: int = self._socket.recv_into(buffer)
        return received

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(self._left())
            rest = rest[self._socket.send(rest) :]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class NotPrimaryError(RedisConnectionError):
    """A server that should be the primary is a replica: the primary is another by now, or soon."""


def connection_class(deadline: Deadline, *, tls: bool, primary: bool = False) -> type[Connection]:
    """Return a class of connections that keep to a deadline.

    Args:
        deadline: Bounds whatever they do.
        tls: Whether they speak TLS.
        primary: Whether they refuse to be connected to a replica.
    """
    base: Any = SSLConnection if tls else Connection

    class DeadlineConnection(base):  # type: ignore[misc]
        # The socket below the deadlines, and what `direct` keeps of it; new with each connect.
        own_socket: Any = None
        line: Any = None

        # The driver asks for these before each connect and handshake.
        @property
        def socket_timeout(self) -> float:
            return deadline.left()

        @socket_timeout.setter
        def socket_timeout(self, value: float | None) -> None:
            pass

        @property
        def socket_connect_timeout(self) -> float:
            return deadline.left()

        @socket_connect_timeout.setter
        def socket_connect_timeout(self, value: float | None) -> None:
            pass

        def _connect(self) -> _DeadlineSocket:
            self.own_socket, self.line = super()._connect(), None
            return _DeadlineSocket(self.own_socket, deadline.left)

        def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
            super().on_connect_check_health(check_health)
            if not self.password:
                # A server that wants a password cuts off who sends much without one, so that the
                # reason is never read. Asked for little, it says so.
                self.send_command("PING", check_health=False)
                _reply(self)
            if primary:
                _refuse_replica(self)

    return DeadlineConnection


def connection_options(
    location: Location, deadline: Deadline, *, sentinel: bool = False
) -> dict[str, Any]:
    """Return the driver's options for such connections, without host, port and retries.

    Args:
        location: What they lead to.
        deadline: Bounds whatever they do.
        sentinel: Whether they lead to its sentinels instead.
    """
    primary = location.service is not None and not sentinel
    return {
        **(location.sentinel_options if sentinel else location.options),
        "connection_class": connection_class(deadline, tls=location.tls, primary=primary),
        "driver_info": None,  # else two more round trips a connection
        "protocol": 2,
        "socket_read_size": _READ_BYTES,
    }


def no_retry() -> Retry:
    """Return the policy of never trying again: who calls knows its deadline."""
    return Retry(NoBackoff(), 0)


class Server:
    """One server and the idle connections to it. For use by any number of threads.

    The driver's pool does the same at the price of a round trip's processor time. A connection
    opens when something is sent through it; what was closed opens again. A forked child takes no
    connection of its parent's.

    Args:
        host: The server.
        port: Its port.
        options: Of its connections, see `connection_options`.
    """

    def __init__(self, host: str, port: int, options: Mapping[str, Any]) -> None:
        rest = dict(options)
        connection: Any = rest.pop("connection_class")
        self.name = f"{host}:{port}"
        self._make = partial(connection, host=host, port=port, retry=no_retry(), **rest)
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._closed = False

    def borrow(self, *, check: bool) -> Any:
        """Return a connection for one exchange.

        Args:
            check: Whether to look, without a round trip, if the server has closed it.
        """
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._make()
        if check and connection.is_connected and _is_closed(connection):
            connection.disconnect()
        return connection

    def give_back(self, connection: Any) -> None:
        """Take a connection back, closed or with no reply left unread."""
        if self._closed:
            connection.disconnect()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections, and those in use when they are given back."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()


def exchange(
    plan: Sequence[tuple[Server, Sequence[Command]]],
    on_failure: Callable[[Server], None],
    *,
    check: bool = True,
) -> list[list[Any]]:
    """Send all commands to all servers, then read all replies: one round trip.

    Args:
        plan: The commands of each server, none twice.
        on_failure: Told of the server whose connection failed, before the error is raised.
        check: Whether connections are looked at before use.

    Returns:
        The replies of each server, in the order of its commands; a command that failed has a
        `ResponseError` in its place.

    Raises:
        redis.exceptions.RedisError: A connection failed. No connection is left with replies unread.
    """
    opened: list[tuple[Server, Any]] = []
    replies: list[list[Any]] = []
    current: Server | None = None
    try:
        for server, commands in plan:
            current = server
            connection = server.borrow(check=check)
            opened.append((server, connection))
            connection.send_packed_command([b"".join([pack_command(c) for c in commands])])
        for (server, connection), (_, commands) in zip(opened, plan, strict=True):
            current = server
            replies.append([_reply(connection) for _ in commands])
    except BaseException as error:
        if current is not None:
            if isinstance(error, RedisConnectionError):
                # A server that went away closed them all.
                current.close_idle()
            on_failure(current)
        raise
    finally:
        for position, (server, connection) in enumerate(opened):
            if position >= len(replies):
                connection.disconnect()
            server.give_back(connection)
    return replies


def _refuse_replica(connection: Any) -> None:
    connection.send_command("ROLE", check_health=False)
    role = connection.read_response()[0]
    if role != b"master":
        place = f"{connection.host}:{connection.port}"
        raise NotPrimaryError(f"{place} is not the primary but a {role.decode()}")


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _is_closed(connection: Any) -> bool:
    try:
        # Nothing was asked, so anything that is there to read is out of step.
        return bool(connection.can_read())
    except RedisConnectionError:
        return True
