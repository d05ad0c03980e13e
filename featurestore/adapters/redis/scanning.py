"""Walks over all keys of one server and finds those of a namespace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from redis.exceptions import ResponseError

from featurestore.adapters.redis.connection import Command, Deadline, Server, exchange

_SCAN_KEYS = 1_000
_GLOB_SPECIAL = b"*?[]\\^-"


def scan(
    server: Server, namespace: bytes, deadline: Deadline, failed: Callable[[Server], None]
) -> Iterator[list[bytes]]:
    """Yield the keys that begin with some bytes, a page at a time; a key may come twice.

    Args:
        server: The server.
        namespace: The bytes.
        deadline: Begun anew for each round trip.
        failed: Told of the server when its connection failed.

    Raises:
        redis.exceptions.RedisError: The server failed, or refused.
    """
    pattern = b"".join(
        b"\\%c" % byte if byte in _GLOB_SPECIAL else b"%c" % byte for byte in namespace
    )
    cursor: bytes = b"0"
    while True:
        deadline.start()
        command: Command = ("SCAN", cursor, "MATCH", pattern + b"*", "COUNT", _SCAN_KEYS)
        ((reply,),) = exchange([(server, [command])], failed)
        if isinstance(reply, ResponseError):
            raise reply
        cursor, found = reply
        mine = [key for key in found if key.startswith(namespace)]
        if mine:
            yield mine
        if cursor == b"0":
            return
