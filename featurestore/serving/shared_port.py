"""An address that several processes listen on together; the kernel spreads connections over them.

It is held by a socket that does not listen, for as long as there are processes to share it: a port
that was free stays ours while workers come and go. Refuses an address that somebody else serves at.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from featurestore.errors import SettingsError

_LAST_PORT = 65_535


@contextlib.contextmanager
def shared_port(address: str) -> Iterator[str]:
    """Hold an address for processes that listen with SO_REUSEPORT; give it with its port.

    Args:
        address: host:port; port 0 takes a free one.

    Raises:
        SettingsError: The address cannot be listened on.
    """
    host, port = split_address(address)
    try:
        held = _held(host.strip("[]"), port)
    except OSError as error:
        raise cannot_listen(address) from error
    with held:
        yield f"{host}:{held.getsockname()[1]}"


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        SettingsError: It is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise cannot_listen(address)
    return host, int(port)


def cannot_listen(address: str) -> SettingsError:
    """Return the error of an address that cannot be listened on."""
    return SettingsError(
        f"The server cannot listen on {address}.",
        where="serving.address",
        got=address,
        allowed="host:port; port 0 takes a free one",
        hint="Is another server running there?",
    )


def _held(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address without listening.

    Raises:
        OSError: Somebody else has it.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # Without SO_REUSEPORT, so that this fails where others share a port among themselves.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(place)
    held = socket.socket(family, kind, protocol)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(place)
    except OSError:
        held.close()
        raise
    return held
