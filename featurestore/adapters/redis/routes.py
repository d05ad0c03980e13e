"""Which server a key is on: always the same one, the primary, or who holds its slot in a cluster.

The cluster's map of slots is the driver's; this room asks it, and has it read again when servers
fail or keys turn out to have moved.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, SlotNotCoveredError

from featurestore.adapters.redis.connection import Deadline, Server, connection_options, no_retry
from featurestore.adapters.redis.location import Location
from featurestore.adapters.redis.sentinel import SentinelPrimary
from featurestore.clock import Clock

# Keys that moved one by one are a slot on its way; more at once are another map.
_MOVES_BEFORE_REFRESH = 16


class Routes(Protocol):
    """Finds servers. Errors are the driver's."""

    one_server: bool

    def place(self, keys: Sequence[bytes]) -> dict[Server, list[int]]:
        """Return the positions of the keys that each server holds."""
        ...

    def primaries(self) -> list[Server]:
        """Return every server that holds keys."""
        ...

    def redirect(self, error: AskError) -> Server:
        """Return the server that a MOVED or ASK answer names."""
        ...

    def failed(self, server: Server) -> None:
        """Take note that the connection to a server failed."""
        ...

    def forget(self) -> None:
        """Close the idle connections: the next ones may reach another server by the same name."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


def routes_to(location: Location, deadline: Deadline, clock: Clock) -> Routes:
    """Return what finds the servers of a location."""
    if location.service is not None:
        return SentinelPrimary(location, deadline, clock)
    return (Cluster if location.cluster else OneServer)(location, deadline)


class OneServer:
    """A single server, or whatever is behind its name.

    Args:
        location: Where it is.
        deadline: What connections keep to.
    """

    one_server = True

    def __init__(self, location: Location, deadline: Deadline) -> None:
        options = connection_options(location, deadline)
        self._server = Server(location.host, location.port, options)

    def place(self, keys: Sequence[bytes]) -> dict[Server, list[int]]:
        """Return the one server with all positions."""
        return {self._server: list(range(len(keys)))}

    def primaries(self) -> list[Server]:
        """Return the one server."""
        return [self._server]

    def redirect(self, error: AskError) -> Server:
        """Refuse: the server is part of a cluster and was not called one."""
        raise error

    def failed(self, server: Server) -> None:
        """Do nothing: there is no other server."""

    def forget(self) -> None:
        """Close the idle connections."""
        self._server.close_idle()

    def close(self) -> None:
        """Close the idle connections; those in use close when they are given back."""
        self._server.close()


class Cluster:
    """The primaries of a cluster. Nothing is asked before the first call.

    Args:
        location: Where one of its servers is.
        deadline: What connections keep to.
    """

    one_server = False

    def __init__(self, location: Location, deadline: Deadline) -> None:
        host = f"[{location.host}]" if ":" in location.host else location.host
        self._url = f"redis://{host}:{location.port}"
        self._options = connection_options(location, deadline)
        self._lock = threading.Lock()
        self._client: Any = None
        self._servers: dict[str, Server] = {}
        self._failed: str | None = None
        self._moves = 0

    def place(self, keys: Sequence[bytes]) -> dict[Server, list[int]]:
        """Return the positions of the keys that each primary holds."""
        slots: dict[int, list[Any]] = self._current().nodes_manager.slots_cache
        by_node: dict[Any, list[int]] = {}
        for position, key in enumerate(keys):
            nodes = slots.get(key_slot(key))
            if not nodes:
                raise SlotNotCoveredError("no server of the cluster holds the slot of a key")
            by_node.setdefault(nodes[0], []).append(position)
        return {self._server(node): positions for node, positions in by_node.items()}

    def primaries(self) -> list[Server]:
        """Return every primary."""
        return [self._server(node) for node in self._current().get_primaries()]

    def redirect(self, error: AskError) -> Server:
        """Return the server that the answer names; of MOVED, remember it."""
        # Not by `_current`: the map is read between calls, not amid one.
        client = self._client or self._current()
        if isinstance(error, MovedError):
            self._moves += 1
            client.nodes_manager.move_slot(error)
        node = client.get_node(host=error.host, port=error.port)
        if node is None:
            client.nodes_manager.initialize(disconnect_startup_nodes_pools=False)
            node = client.get_node(host=error.host, port=error.port)
        if node is None:
            raise error
        return self._server(node)

    def failed(self, server: Server) -> None:
        """Have the map read before the next call, from this server last of all."""
        self._failed = server.name

    def forget(self) -> None:
        """Have the map read before the next call."""
        self._moves = _MOVES_BEFORE_REFRESH

    def close(self) -> None:
        """Close the idle connections; those in use close when they are given back."""
        with self._lock:
            client, self._client = self._client, None
            servers, self._servers = self._servers, {}
        if client is not None:
            client.close()
        for server in servers.values():
            server.close()

    def _current(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = RedisCluster(
                    url=self._url, retry=no_retry(), require_full_coverage=False, **self._options
                )
                self._failed, self._moves = None, 0
            client = self._client
            failed, self._failed = self._failed, None
            moved = self._moves >= _MOVES_BEFORE_REFRESH
        if failed is not None or moved:
            self._moves = 0
            client.nodes_manager.initialize(
                disconnect_startup_nodes_pools=False, last_failed_node_name=failed
            )
        return client

    def _server(self, node: Any) -> Server:
        server = self._servers.get(node.name)
        if server is None:
            with self._lock:
                fresh = Server(node.host, node.port, self._options)
                server = self._servers.setdefault(node.name, fresh)
        return server
