"""What tests of Redis' faults share: keys and rows, calls that must fail in time, moving slots.

Rows are for the tests of rows, changes and versions for those of states; both meet the same faults.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.redis import store as store_module
from featurestore.errors import (
    AuthenticationError,
    OnlineStoreUnavailableError,
    SettingsError,
    StorageError,
)
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.testing.online import packed
from featurestore.testing.valkey import ServerError, ValkeyCluster, ValkeyServer

GONE = OnlineStoreUnavailableError
SLACK = 1.0  # for a machine that is busy with other tests
SPACE = b"\x00*space\xff"
KEYS = [SPACE + b"%d" % i for i in range(600)]
FIELDS = [b"field%d" % i for i in range(4)]
CLUSTER_SPACE = b"namespac"
_SLOTS = 16_384

ANSWERS = [
    ("LOADING Redis is loading the dataset in memory", GONE),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", GONE),
    ("CLUSTERDOWN The cluster is down", GONE),
    ("TRYAGAIN Multiple keys request during rehashing of slot", GONE),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", GONE),
    ("NOREPLICAS Not enough good replicas to write.", GONE),
    ("ERR max number of clients reached", GONE),
    ("READONLY You can't write against a read only replica.", StorageError),
    ("ERR Error running script: @user_script: -READONLY You can't write against", StorageError),
    ("OOM command not allowed when used memory > 'maxmemory'.", StorageError),
    ("MISCONF Redis is configured to save RDB snapshots", StorageError),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", StorageError),
    ("ERR unknown command 'EVALSHA'", StorageError),
    ("NOAUTH Authentication required.", AuthenticationError),
    ("NOPERM User u has no permissions to run the 'mget' command", AuthenticationError),
    ("WRONGPASS invalid username-password pair or user is disabled.", AuthenticationError),
    ("ERR ACL failure in script: User u has no permissions", AuthenticationError),
    ("MOVED 3999 127.0.0.1:6381", SettingsError),
    ("CROSSSLOT Keys in request don't hash to the same slot", SettingsError),
]
"""What a server may answer, and the error that we make of it."""

each_answer = pytest.mark.parametrize(
    ("text", "error"), ANSWERS, ids=[text[:28] for text, _ in ANSWERS]
)


def rows(event: int, keys: Sequence[bytes] | None = None) -> list[bytes]:
    """Return a row of an instant for each key, none of them alike."""
    if keys is None:
        return [packed(event, payload=b"%d" % i) for i in range(len(KEYS))]
    return [packed(event, payload=key) for key in keys]


def changes(
    version: int,
    old: int | None,
    keys: Sequence[bytes] = KEYS,
    *,
    size: int = 200,
    expires_us: int = 0,
) -> list[StateChange]:
    """Changes to a version; every field tells it, and one comes and goes with each version."""
    expected = None if old is None else b"%d" % old
    odd = version % 2
    put = {VERSION: b"%d" % version}
    put |= dict.fromkeys(FIELDS[odd:], (b"%d|" % version) * (size // (len(str(version)) + 1)))
    return [StateChange(key, expected, put, FIELDS[:odd], expires_us) for key in keys]


def versions(
    store: RedisOnlineStore, keys: Sequence[bytes] = KEYS, **options: Any
) -> list[int | None]:
    """The version of each state, None where there is none; each is whole."""
    found, _ = store.read_states([StateRead(key, [VERSION, *FIELDS]) for key in keys])
    whole: dict[tuple[bytes | None, ...], int | None] = {(None,) * (1 + len(FIELDS)): None}
    for version in {state[0] for state in found} - {None}:
        (change,) = changes(int(version or 0), None, keys[:1], **options)
        whole[tuple(change.put.get(name) for name in (VERSION, *FIELDS))] = int(version or 0)
    return [whole[tuple(state)] for state in found]


def took(call: Callable[[], Any], told: str = "") -> float:
    """Return how long a call took that finds the store gone, and says so and `told`."""
    start = time.monotonic()
    with pytest.raises(GONE) as caught:
        call()
    lasted = time.monotonic() - start
    assert told in str(caught.value)
    return lasted


def emptied(server: ValkeyServer) -> ValkeyServer:
    """Return a server without keys."""
    server.command("FLUSHALL")
    return server


def opened(url: str) -> Iterator[RedisOnlineStore]:
    """Yield a store, which is closed in the end."""
    store = RedisOnlineStore.from_url(url, timeout=5)
    yield store
    store.close()


def driver_of(server: ValkeyServer) -> Iterator[Any]:
    """Yield a driver that looks behind the store."""
    from redis import Redis

    with Redis.from_url(server.url) as client:
        yield client


def restarted_amid_idle_connections(
    store: RedisOnlineStore, server: ValkeyServer, count: int, call: Callable[[], Any]
) -> None:
    """Call over connections that all died with the server."""
    routes: Any = store._routes
    idle = [routes._server.borrow(check=True) for _ in range(count)]
    for connection in idle:
        connection.connect()
        routes._server.give_back(connection)
    server.stop()
    server.start()
    call()


def looks_like(text: str, caught: BaseException, url: str) -> None:
    """Fail unless an error says where, what the server said, and what to do."""
    told = str(caught)
    assert url in told
    assert text.split(maxsplit=1)[1].rstrip(".") in told
    assert getattr(caught, "hint", None)


def counted_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets, for each round trip from now on, to how many servers it goes."""
    trips: list[int] = []
    exchange = store_module.exchange

    def counted(plan: Any, *arguments: Any, **options: Any) -> Any:
        trips.append(len(plan))
        return exchange(plan, *arguments, **options)

    monkeypatch.setattr(store_module, "exchange", counted)
    return trips


@contextmanager
def full(server: ValkeyServer) -> Iterator[None]:
    """Let a server have no memory left inside the `with` block."""
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 1)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "maxmemory", 0)


@contextmanager
def a_replica_of_nobody(server: ValkeyServer) -> Iterator[None]:
    """Let a server be the replica of one that does not exist inside the `with` block."""
    server.command("REPLICAOF", "127.0.0.1", 1)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
        server.command("REPLICAOF", "NO", "ONE")


def slot_of(key: bytes) -> int:
    """Return the slot of a key in a cluster."""
    from redis.crc import key_slot

    slot: int = key_slot(key)
    return slot


def tagged(tag: str, count: int = 4) -> list[bytes]:
    """Keys of one slot."""
    return [CLUSTER_SPACE + f"{{{tag}}}{i}".encode() for i in range(count)]


def spread(count: int = 300) -> list[bytes]:
    """Keys of many slots."""
    return [CLUSTER_SPACE + b"%d" % i for i in range(count)]


def emptied_cluster(cluster: ValkeyCluster) -> Iterator[ValkeyCluster]:
    """Yield a cluster without keys; other tests of this worker may have left some."""
    for node in cluster.nodes:
        node.command("FLUSHALL")
    yield cluster
    for node in cluster.nodes:
        node.command("FLUSHALL")


def owner(cluster: ValkeyCluster, slot: int) -> ValkeyServer:
    """Return the node that a slot belongs to."""
    return cluster.nodes[slot * len(cluster.nodes) // _SLOTS]


def those_of(cluster: ValkeyCluster, node: ValkeyServer, keys: Sequence[bytes]) -> list[bytes]:
    """Return the keys that belong to a node."""
    return [key for key in keys if owner(cluster, slot_of(key)) is node]


def without_those_of(
    cluster: ValkeyCluster, node: ValkeyServer, keys: Sequence[bytes]
) -> list[bytes]:
    """Return the keys that do not belong to a node."""
    return [key for key in keys if owner(cluster, slot_of(key)) is not node]


def those_first(cluster: ValkeyCluster, node: ValkeyServer) -> list[bytes]:
    """Return keys, a node's first: its answer is waited for, those of the others are there."""
    keys = spread()
    return [*those_of(cluster, node, keys), *without_those_of(cluster, node, keys)]


def brought_back(cluster: ValkeyCluster, node: ValkeyServer) -> None:
    """Return once a node that was stopped is back, without keys."""
    node.start()
    cluster.wait()


def begin_to_move(slot: int, giver: ValkeyServer, taker: ValkeyServer) -> None:
    """Put a slot on its way."""
    taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.command("CLUSTER", "MYID"))
    giver.command("CLUSTER", "SETSLOT", slot, "MIGRATING", taker.command("CLUSTER", "MYID"))


def give(cluster: ValkeyCluster, slot: int, giver: ValkeyServer, taker: ValkeyServer) -> None:
    """Hand an empty slot over; all nodes agree at once, the taker first."""
    with suppress(ServerError):  # it has it already
        # Who imports a slot gets the newest claim to it, which gossip cannot undo.
        taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.command("CLUSTER", "MYID"))
    for node in sorted(cluster.nodes, key=lambda node: node is not taker):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", taker.command("CLUSTER", "MYID"))


@contextmanager
def moving(cluster: ValkeyCluster, slot: int) -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """Let a slot be on its way to another node; it is put back at the end."""
    giver = owner(cluster, slot)
    taker = next(node for node in cluster.nodes if node is not giver)
    begin_to_move(slot, giver, taker)
    try:
        yield giver, taker
    finally:
        for node in cluster.nodes:
            node.command("FLUSHALL")
        give(cluster, slot, taker, giver)
        cluster.wait()


def half_moved(
    cluster: ValkeyCluster, keys: Sequence[bytes], giver: ValkeyServer, taker: ValkeyServer
) -> Iterator[None]:
    """Yield once the first key of a slot on its way has moved, and once all have and it is over."""
    giver.command("MIGRATE", "127.0.0.1", taker.port, keys[0].decode(), 0, 5_000)
    yield
    giver.command("MIGRATE", "127.0.0.1", taker.port, keys[1].decode(), 0, 5_000)
    give(cluster, slot_of(keys[0]), giver, taker)
    yield


@contextmanager
def another_map(cluster: ValkeyCluster, few: Sequence[bytes]) -> Iterator[ValkeyServer]:
    """Let the slots of keys of the first node be those of the second inside the `with` block."""
    giver, taker = cluster.nodes[0], cluster.nodes[1]
    for key in few:
        give(cluster, slot_of(key), giver, taker)
    try:
        yield taker
    finally:
        taker.command("FLUSHALL")
        for key in few:
            give(cluster, slot_of(key), taker, giver)
        cluster.wait()


def forty_slots(cluster: ValkeyCluster) -> list[bytes]:
    """Return keys of 40 slots of the first node, one of each."""
    keys = {slot_of(key): key for key in those_of(cluster, cluster.nodes[0], spread(3_000))}
    return list(keys.values())[:40]


def migrate(
    cluster: ValkeyCluster, keys: Sequence[bytes], source: ValkeyServer, target: ValkeyServer
) -> None:
    """Move a slot and its keys one by one, as a resharding does, while they may be used."""
    from redis import Redis

    slot = slot_of(keys[0])
    begin_to_move(slot, source, target)
    with Redis.from_url(source.url) as client:
        for key in keys:
            client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5_000)
    give(cluster, slot, source, target)
