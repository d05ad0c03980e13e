"""An address that several processes listen on together; the kernel spreads connections over them.

It is held by a socket that does not listen, for as long as there are processes to share it: a port
that was free stays ours while workers come and go. Refuses an address that somebody else serves at.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from featurestore.errors import SettingsError

BACKLOG = 1_024
_LAST_PORT = 65_535


@contextlib.contextmanager
def shared_port(address: str, setting: str = "serving.address") -> Iterator[str]:
    """Hold an address for processes that listen with SO_REUSEPORT; give it with its port.

    Args:
        address: host:port; port 0 takes a free one.
        setting: Where it comes from, for errors.

    Raises:
        SettingsError: The address cannot be listened on.
    """
    host, port = split_address(address, setting)
    try:
        held = _held(host.strip("[]"), port)
    except OSError as error:
        raise cannot_listen(address, setting) from error
    with held:
        yield f"{host}:{held.getsockname()[1]}"


def listening(address: str, setting: str, *, share: bool) -> tuple[socket.socket, str]:
    """Return a socket that listens on an address, and the address's host.

    Args:
        address: host:port; port 0 takes a free one.
        setting: Where it comes from, for errors.
        share: Whether other processes listen on the address too.

    Raises:
        SettingsError: The address cannot be listened on.
    """
    host, port = split_address(address, setting)
    try:
        return _bound(host.strip("[]"), port, share=share), host
    except OSError as error:
        raise cannot_listen(address, setting) from error


def split_address(address: str, setting: str = "serving.address") -> tuple[str, int]:
    """Return host and port of an address.

    Raises:
        SettingsError: It is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise cannot_listen(address, setting)
    return host, int(port)


def cannot_listen(address: str, setting: str = "serving.address") -> SettingsError:
    """Return the error of an address that cannot be listened on."""
    return SettingsError(
        f"The server cannot listen on {address}.",
        where=setting,
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


def _bound(host: str, port: int, *, share: bool) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        OSError: Somebody else has it.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
