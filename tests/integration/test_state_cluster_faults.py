"""States in a cluster whose keys move while they are changed, and whose nodes hang and die."""

from __future__ import annotations

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.errors import SettingsError, StorageError
from featurestore.ports.online import StateRead
from featurestore.testing.online import packed
from featurestore.testing.valkey import wait_until
from tests.integration.faults import (
    CLUSTER_SPACE,
    GONE,
    another_map,
    brought_back,
    changes,
    counted_trips,
    emptied_cluster,
    forty_slots,
    half_moved,
    moving,
    opened,
    slot_of,
    spread,
    tagged,
    those_first,
    those_of,
    took,
    versions,
    without_those_of,
)


@pytest.fixture
def cluster(valkey_cluster):
    yield from emptied_cluster(valkey_cluster)


@pytest.fixture
def store(cluster):
    yield from opened(cluster.url)


def test_states_of_a_slot_on_its_way(store, cluster):
    keys = tagged("a")
    assert all(store.write_states(changes(1, None, keys[:2])))
    with moving(cluster, slot_of(keys[0])) as (giver, taker):
        # New states go to the other node already, which has not heard of the script.
        taker.command("SCRIPT", "FLUSH")
        assert store.write_states(changes(2, 1, keys)) == [True, True, False, False]
        assert store.write_states(changes(2, None, keys)) == [False, False, True, True]
        assert giver.command("DBSIZE") == taker.command("DBSIZE") == "2"
        assert versions(store, [*keys, keys[0] + b"gap"]) == [2, 2, 2, 2, None]
        # One state has moved, the other has not.
        moves = half_moved(cluster, keys, giver, taker)
        next(moves)
        assert store.write_states(changes(3, 2, keys)) == [True] * len(keys)
        assert store.write_states(changes(3, 2, keys)) == [False] * len(keys)
        assert versions(store, keys) == [3] * len(keys)
        next(moves)
        # The store still believes that the slot is where it was.
        assert versions(store, keys) == [3] * len(keys)
        assert store._routes._moves > 0
        assert store.write_states(changes(4, 3, keys)) == [True] * len(keys)
        assert store.count(CLUSTER_SPACE) == len(keys)
        assert store.delete_namespace(CLUSTER_SPACE) == len(keys)


def test_states_under_another_map(store, cluster):
    """Slots that have moved at once are found, and the map is read again."""
    few = forty_slots(cluster)
    assert versions(store, few) == [None] * len(few)
    with another_map(cluster, few) as taker:
        assert store.write_states(changes(1, None, few)) == [True] * len(few)
        assert store._routes._moves == len(few)
        assert versions(store, few) == [1] * len(few)
        assert store._routes._moves == 0
        assert int(taker.command("DBSIZE")) == len(few)


def test_state_scripts_that_one_node_forgot(store, cluster):
    keys = spread()
    for version, node in enumerate(cluster.nodes, start=1):
        node.command("SCRIPT", "FLUSH")
        old = None if version == 1 else version - 1
        assert store.write_states(changes(version, old, keys)) == [True] * len(keys)
        assert versions(store, keys) == [version] * len(keys)


def test_states_and_rows_of_all_nodes_in_one_round_trip(store, monkeypatch):
    keys, rows = spread(), [key + b"row" for key in spread()]
    store.write(rows, [packed(i) for i in range(len(rows))], None)
    store.write_states(changes(1, None, keys))
    trips = counted_trips(monkeypatch)
    found, values = store.read_states([StateRead(key, [b"v"]) for key in keys], rows)
    assert found == [[b"1"]] * len(keys)
    assert values == [packed(i) for i in range(len(rows))]
    assert all(store.write_states(changes(2, 1, keys)))
    assert trips == [3, 3]


def test_a_row_where_a_state_is_expected_in_a_cluster(store):
    keys = spread(30)
    store.write(keys[7:8], [packed(1)], None)
    for call in (
        lambda: versions(store, keys),
        lambda: store.write_states(changes(1, None, keys)),
    ):
        with pytest.raises(StorageError, match="something else under a key"):
            call()
    assert store.read(keys[7:8]) == [packed(1)]


def test_states_of_a_node_that_hangs(store, cluster):
    node = cluster.nodes[1]
    keys = those_first(cluster, node)
    store.write_states(changes(1, None, keys))
    hasty = RedisOnlineStore.from_url(cluster.url, timeout=0.3)
    wait_until(lambda: _answers(hasty, keys), what="its connections")
    node.pause()
    try:
        for call in (
            lambda: hasty.write_states(changes(2, 1, keys)),
            lambda: versions(hasty, keys),
        ):
            assert took(call) < 1.3
        there = without_those_of(cluster, node, keys)
        found = versions(store, there)
        assert set(found) <= {1, 2}
    finally:
        node.resume()
    wait_until(lambda: _answers(store, keys), what="the node")
    # Who gave up reads again, and goes on from what it finds.
    assert set(versions(store, keys)) <= {1, 2}
    made = store.write_states(changes(3, 1, keys))
    assert versions(store, keys) == [3 if is_made else 2 for is_made in made]
    hasty.close()


def test_states_of_a_node_that_dies_and_comes_back(store, cluster):
    keys = spread()
    store.write_states(changes(1, None, keys))
    node = cluster.nodes[2]
    lost = those_of(cluster, node, keys)
    node.stop()
    for call in (
        lambda: versions(store, keys),
        lambda: store.write_states(changes(2, 1, keys)),
    ):
        assert took(call, "redis+cluster://127.0.0.1") < 1
    brought_back(cluster, node)
    assert versions(store, lost) == [None] * len(lost)
    kept = [key for key in keys if key not in lost]
    found = versions(store, kept)
    assert set(found) <= {1, 2}
    store.write_states(changes(2, 1, kept))
    assert all(store.write_states(changes(2, None, lost)))
    assert versions(store, keys) == [2] * len(keys)


def test_states_of_a_cluster_called_a_server(cluster):
    store = RedisOnlineStore.from_url(cluster.nodes[0].url)
    for call in (
        lambda: versions(store, spread()),
        lambda: store.write_states(changes(1, None, spread())),
    ):
        with pytest.raises(SettingsError, match=r"redis\+cluster://"):
            call()
    store.close()


def _answers(store, keys):
    try:
        versions(store, keys)
    except GONE:
        return False
    return True
