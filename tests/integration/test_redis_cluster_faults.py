"""A cluster whose keys move while they are used, whose nodes die, that is called by other names."""

from __future__ import annotations

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.errors import SettingsError
from featurestore.testing.valkey import wait_until
from tests.integration.faults import (
    CLUSTER_SPACE,
    GONE,
    another_map,
    brought_back,
    emptied_cluster,
    forty_slots,
    half_moved,
    moving,
    opened,
    rows,
    slot_of,
    spread,
    tagged,
    those_first,
    those_of,
    took,
    without_those_of,
)


@pytest.fixture
def cluster(valkey_cluster):
    yield from emptied_cluster(valkey_cluster)


@pytest.fixture
def store(cluster):
    yield from opened(cluster.url)


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
        moves = half_moved(cluster, keys, giver, taker)
        next(moves)
        assert store.write(keys, rows(3, keys), None) == len(keys)
        assert store.read(keys) == rows(3, keys)
        next(moves)
        # The store still believes that the slot is where it was.
        assert store.read(keys) == rows(3, keys)
        told = store._routes._moves
        assert told > 0
        assert store.write(keys, rows(4, keys), None) == len(keys)
        assert store._routes._moves == told
        assert store.count(CLUSTER_SPACE) == len(keys)
        assert store.delete_namespace(CLUSTER_SPACE) == len(keys)


def test_another_map(store, cluster):
    """Where many slots have moved at once, as after a failover, the map is read again."""
    few = forty_slots(cluster)
    store.write(few[:1], rows(1, few[:1]), None)
    store.delete_namespace(CLUSTER_SPACE)
    with another_map(cluster, few) as taker:
        assert store.write(few, rows(1, few), None) == len(few)
        assert store._routes._moves == len(few)
        assert store.read(few) == rows(1, few)
        assert store._routes._moves == 0
        assert int(taker.command("DBSIZE")) == len(few)


def test_scripts_that_one_node_forgot(store, cluster):
    keys = spread()
    for event, node in enumerate(cluster.nodes, start=1):
        node.command("SCRIPT", "FLUSH")
        assert store.write(keys, rows(event, keys), None) == len(keys)
        assert store.read(keys) == rows(event, keys)


def test_a_node_that_hangs(store, cluster):
    node = cluster.nodes[1]
    keys = those_first(cluster, node)
    store.write(keys, rows(1, keys), None)
    node.pause()
    try:
        assert 0.2 <= took(lambda: store.read(keys, timeout=0.2)) < 1.2
        there = without_those_of(cluster, node, keys[::-1])
        assert store.read(there, timeout=1) == rows(1, there)
    finally:
        node.resume()
    wait_until(lambda: _reads(store, keys) == rows(1, keys), what="the node")


def test_a_node_that_dies_and_comes_back(store, cluster):
    keys = spread()
    store.write(keys, rows(1, keys), None)
    node = cluster.nodes[2]
    lost = those_of(cluster, node, keys)
    node.stop()
    for call in (
        lambda: store.read(keys),
        lambda: store.write(keys, rows(2, keys), None),
        store.ping,
        lambda: store.count(CLUSTER_SPACE),
        lambda: store.delete_namespace(b"another_"),
    ):
        assert took(call, "redis+cluster://127.0.0.1") < 1
    brought_back(cluster, node)
    assert store.read(lost) == [None] * len(lost)
    store.write(keys, rows(3, keys), None)
    assert store.read(keys) == rows(3, keys)


def test_a_cluster_that_is_gone():
    store = RedisOnlineStore.from_url("redis+cluster://127.0.0.1:1", timeout=1)
    for _ in range(2):
        assert took(lambda: store.read(spread())) < 1
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
