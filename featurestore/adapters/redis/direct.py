"""The plain MGET over a connection's own socket: what most lookups do, at a part of the price.

For each transfer the driver sets the socket anew and polls it first; with several threads at work
every such system call hands the interpreter to another one, and getting it back costs more than the
call. Here the socket blocks, and the kernel ends the wait at the deadline: one call sends, one
receives. Opening connections, TLS, clusters and the meaning of an error stay the driver's: what is
not answered by values is left to it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import Reader, pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from featurestore.adapters.redis.connection import Deadline, Server

_BUFFER_BYTES = 1 << 16
_TIMEVAL = struct.Struct("@ll")
_SECOND = 1_000_000


def read_values(
    server: Server,
    keys: Sequence[bytes],
    deadline: Deadline,
    on_failure: Callable[[Server], None],
) -> list[bytes | None] | None:
    """Return the values of keys, or None where the driver has to be asked.

    Args:
        server: Where they are.
        keys: One or more.
        deadline: By when.
        on_failure: Told of the server if its connection failed, before the error is raised.

    Raises:
        redis.exceptions.RedisError: The connection failed; it is closed.
    """
    connection = server.borrow(check=False)
    line = _line_of(connection)
    if line is None:
        server.give_back(connection)
        return None
    request: Any = ("MGET", *keys)
    try:
        found = line.exchange(pack_command(request), deadline.left)
    except BaseException as error:
        failure = _failure(error) if isinstance(error, OSError) else error
        if isinstance(failure, RedisConnectionError):
            # A server that went away closed them all.
            server.close_idle()
        connection.disconnect()
        on_failure(server)
        if failure is error:
            raise
        raise failure from error
    finally:
        server.give_back(connection)
    # An error has been read whole as well; asked again, the driver knows what it means.
    return found if type(found) is list else None


class _Line:
    """The socket of an open connection, and a reader of its replies."""

    __slots__ = ("_buffer", "_reader", "socket")

    def __init__(self, own: socket.socket) -> None:
        self.socket = own
        # Not the driver's reader: that one has nothing left to read, nor has this one when it ends.
        self._reader = Reader(protocolError=InvalidResponse)
        self._buffer: Any = bytearray(_BUFFER_BYTES)

    def exchange(self, request: bytes, left: Callable[[], float]) -> Any:
        """Send a request and return the reply to it.

        Raises:
            OSError: The connection broke, or no seconds were left.
        """
        own, reader, buffer = self.socket, self._reader, self._buffer
        if own.gettimeout() is not None:  # the driver used it in between
            own.settimeout(None)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left()))
        self._send(request, left)
        while True:
            count = own.recv_into(buffer)
            if not count:
                raise ConnectionResetError("the server closed the connection")
            reader.feed(buffer, 0, count)
            reply = reader.gets()
            if reply is not False:
                return reply
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left()))

    def _send(self, request: bytes, left: Callable[[], float]) -> None:
        try:
            # Nothing is under way, so that the kernel takes a request of usual size at once.
            sent = self.socket.send(request, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        while sent < len(request):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(left()))
            sent += self.socket.send(memoryview(request)[sent:])


def _line_of(connection: Any) -> _Line | None:
    """Return what stands for a connection; None for one that is not open, or that is not plain."""
    if not connection.is_connected:
        return None
    line: _Line | None = connection.line
    if line is None and type(connection.own_socket) is socket.socket:
        line = connection.line = _Line(connection.own_socket)
    return line


def _timeval(seconds: float) -> bytes:
    # Never 0, which is without end.
    return _TIMEVAL.pack(*divmod(max(1, int(seconds * _SECOND)), _SECOND))


def _failure(error: OSError) -> RedisTimeoutError | RedisConnectionError:
    if isinstance(error, BlockingIOError | TimeoutError):
        return RedisTimeoutError("Timeout reading from socket")
    return RedisConnectionError(f"Error while reading from socket: {error}")
