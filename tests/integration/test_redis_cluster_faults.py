"""A cluster whose keys move while they are used, whose nodes die, that is called by other names."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.errors import OnlineStoreUnavailableError, SettingsError
from featurestore.testing.online import packed
from featurestore.testing.valkey import ServerError, wait_until

GONE = OnlineStoreUnavailableError
SPACE = "namespac"
SLOTS = 16_384


def slot_of(key):
    from redis.crc import key_slot

    return key_slot(key)


def tagged(tag, count=4):
    """Keys of one slot."""
    return [f"{SPACE}{{{tag}}}{i}".encode() for i in range(count)]


def spread(count=300):
    """Keys of many slots."""
    return [f"{SPACE}{i}".encode() for i in range(count)]


def rows(event, keys):
    return [packed(event, payload=key) for key in keys]


@pytest.fixture
def cluster(valkey_cluster):
    # Other tests of this worker may have left keys.
    for node in valkey_cluster.nodes:
        node.command("FLUSHALL")
    yield valkey_cluster
    for node in valkey_cluster.nodes:
        node.command("FLUSHALL")


@pytest.fixture
def store(cluster):
    store = RedisOnlineStore.from_url(cluster.url, timeout=5)
    yield store
    store.close()


def owner(cluster, slot):
    return cluster.nodes[slot * len(cluster.nodes) // SLOTS]


def give(cluster, slot, giver, taker):
    """Hand an empty slot over; all nodes agree at once, the taker first."""
    with suppress(ServerError):  # it has it already
        # Who imports a slot gets the newest claim to it, which gossip cannot undo.
        taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.command("CLUSTER", "MYID"))
    for node in sorted(cluster.nodes, key=lambda node: node is not taker):
        node.command("CLUSTER", "SETSLOT", slot, "NODE", taker.command("CLUSTER", "MYID"))


@contextmanager
def moving(cluster, slot):
    """Let a slot be on its way to another node; it is put back at the end."""
    giver = owner(cluster, slot)
    taker = next(node for node in cluster.nodes if node is not giver)
    taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver.command("CLUSTER", "MYID"))
    giver.command("CLUSTER", "SETSLOT", slot, "MIGRATING", taker.command("CLUSTER", "MYID"))
    try:
        yield giver, taker
    finally:
        for node in cluster.nodes:
            node.command("FLUSHALL")
        give(cluster, slot, taker, giver)
        cluster.wait()


def test_keys_of_a_slot_on_its_way(store, cluster):
    keys = tagged("a")
    assert store.write(keys[:2], rows(1, keys[:2]), None) == 2
    with moving(cluster, slot_of(keys[0])) as (giver, taker):
        # New keys go to the other node already, which has not heard of the script.
        taker.command("SCRIPT", "FLUSH")
        assert store.write(keys, rows(2, keys), None) == len(keys)
        assert giver.command("DBSIZE") == taker.command("DBSIZE") == "2"
        assert store.read([*keys, keys[0] + b"gap"]) == [*rows(2, keys), None]
        assert store.write(keys, rows(1, keys), None) == 0
        # One key has moved, the other has not.
        giver.command("MIGRATE", "127.0.0.1", taker.port, keys[0].decode(), 0, 5_000)
        assert store.write(keys, rows(3, keys), None) == len(keys)
        assert store.read(keys) == rows(3, keys)
        giver.command("MIGRATE", "127.0.0.1", taker.port, keys[1].decode(), 0, 5_000)
        give(cluster, slot_of(keys[0]), giver, taker)
        # The store still believes that the slot is where it was.
        assert store.read(keys) == rows(3, keys)
        moves = store._routes._moves
        assert moves > 0
        assert store.write(keys, rows(4, keys), None) == len(keys)
        assert store._routes._moves == moves
        assert store.count(SPACE.encode()) == len(keys)
        assert store.delete_namespace(SPACE.encode()) == len(keys)


def test_another_map(store, cluster):
    """Where many slots have moved at once, as after a failover, the map is read again."""
    giver, taker = cluster.nodes[0], cluster.nodes[1]
    keys = {slot_of(key): key for key in spread(3_000) if owner(cluster, slot_of(key)) is giver}
    keys = dict(list(keys.items())[:40])
    few = list(keys.values())
    store.write(few[:1], rows(1, few[:1]), None)
    store.delete_namespace(SPACE.encode())
    for slot in keys:
        give(cluster, slot, giver, taker)
    try:
        assert store.write(few, rows(1, few), None) == len(few)
        assert store._routes._moves == len(few)
        assert store.read(few) == rows(1, few)
        assert store._routes._moves == 0
        assert int(taker.command("DBSIZE")) == len(few)
    finally:
        taker.command("FLUSHALL")
        for slot in keys:
            give(cluster, slot, taker, giver)
        cluster.wait()


def test_scripts_that_one_node_forgot(store, cluster):
    keys = spread()
    for event, node in enumerate(cluster.nodes, start=1):
        node.command("SCRIPT", "FLUSH")
        assert store.write(keys, rows(event, keys), None) == len(keys)
        assert store.read(keys) == rows(event, keys)


def test_a_node_that_hangs(store, cluster):
    node = cluster.nodes[1]
    # Its keys come first, so that the answers of the others have come and are not read yet.
    keys = sorted(spread(), key=lambda key: owner(cluster, slot_of(key)) is not node)
    store.write(keys, rows(1, keys), None)
    node.pause()
    try:
        start = time.monotonic()
        with pytest.raises(GONE):
            store.read(keys, timeout=0.2)
        assert 0.2 <= time.monotonic() - start < 1.2
        there = [key for key in keys[::-1] if owner(cluster, slot_of(key)) is not node]
        assert store.read(there, timeout=1) == rows(1, there)
    finally:
        node.resume()
    wait_until(lambda: _reads(store, keys) == rows(1, keys), what="the node")


def test_a_node_that_dies_and_comes_back(store, cluster):
    keys = spread()
    store.write(keys, rows(1, keys), None)
    node = cluster.nodes[2]
    lost = [key for key in keys if owner(cluster, slot_of(key)) is node]
    node.stop()
    for call in (
        lambda: store.read(keys),
        lambda: store.write(keys, rows(2, keys), None),
        store.ping,
        lambda: store.count(SPACE.encode()),
        lambda: store.delete_namespace(b"another_"),
    ):
        start = time.monotonic()
        with pytest.raises(GONE) as caught:
            call()
        assert time.monotonic() - start < 1
        assert "redis+cluster://127.0.0.1" in str(caught.value)
    node.start()
    cluster.wait()
    assert store.read(lost) == [None] * len(lost)
    store.write(keys, rows(3, keys), None)
    assert store.read(keys) == rows(3, keys)


def test_a_cluster_that_is_gone():
    store = RedisOnlineStore.from_url("redis+cluster://127.0.0.1:1", timeout=1)
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(GONE):
            store.read(spread())
        assert time.monotonic() - start < 1
    store.close()


def test_a_cluster_called_a_server(cluster):
    store = RedisOnlineStore.from_url(cluster.nodes[0].url)
    with pytest.raises(SettingsError, match=r"redis\+cluster://"):
        store.read(spread())
    with pytest.raises(SettingsError, match=r"redis\+cluster://"):
        store.write(spread(), rows(1, spread()), None)
    store.close()


def test_a_server_called_a_cluster(valkey):
    store = RedisOnlineStore.from_url(valkey.url.replace("redis://", "redis+cluster://"))
    with pytest.raises(GONE, match="Cluster mode is not enabled"):
        store.read(spread())
    store.close()


def _reads(store, keys):
    try:
        return store.read(keys)
    except GONE:
        return None
