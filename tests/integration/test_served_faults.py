"""What callers of a feature server see while its Redis fails: told in time, never stale or mixed.

A real server with its breaker, real clients, a real Valkey. `fault_world` says what must never be.
"""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from featurestore.errors import StorageError
from featurestore.testing.valkey import ValkeyServer, wait_until
from tests.ingesting import NOW, Click, Repository
from tests.integration.fault_world import Callers, World, writing
from tests.integration.faults import (
    a_replica_of_nobody,
    driver_of,
    emptied,
    emptied_cluster,
    full,
    migrate,
    owner,
    slot_of,
)

DURABLE = ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]


@pytest.fixture(scope="module")
def server():
    """A server that each test leaves running and as it was set up."""
    with ValkeyServer(options=DURABLE) as server:
        yield server


@pytest.fixture
def raw(server):
    yield from driver_of(server)


@pytest.fixture
def cluster(valkey_cluster):
    yield from emptied_cluster(valkey_cluster)


@pytest.fixture
def world(server):
    with World(emptied(server).url) as world:
        world.write()
        yield world


def test_a_store_that_is_killed_under_lookups_and_writes(server, world):
    with Callers(world) as callers, writing(world) as failed:
        callers.wait()
        server.stop()
        callers.wait("OnlineStoreUnavailableError", 20)
        # Nobody waits for a store that keeps failing.
        assert world.open
        server.start()
        before = world.acknowledged
        wait_until(lambda: world.acknowledged > before + 5, what="writes")
        target = world.acknowledged
        wait_until(lambda: callers.newest >= target or callers.wrong, what="lookups")
    callers.check()
    assert failed
    assert any("left alone" in text for text in callers.texts)
    assert any(str(server.port) in text for text in callers.texts)


def test_a_store_that_hangs_under_lookups_and_writes(server, world):
    with Callers(world, timeout=0.5) as callers, writing(world) as failed:
        callers.wait()
        server.pause()
        try:
            callers.wait("OnlineStoreUnavailableError", 10)
            wait_until(lambda: failed, what="a write to be given up")
        finally:
            server.resume()
        before = world.acknowledged
        wait_until(lambda: world.acknowledged > before + 5, what="writes")
        callers.wait(more=20)
    callers.check()
    assert callers.longest < 0.5 + 1.0


def test_a_store_that_is_slow(server, world):
    """Slower than callers wait for, then faster: `DEBUG SLEEP` holds the whole server."""
    with Callers(world, timeout=0.4) as callers:
        callers.wait()
        for seconds in ("0.2", "0.8", "0.2"):
            server.command("DEBUG", "SLEEP", seconds)
        callers.wait(more=20)
    callers.check()


def test_a_full_store_refuses_writes_and_goes_on_reading(server, world):
    with Callers(world) as callers:
        with full(server):
            for _ in range(20):
                with pytest.raises(StorageError, match="out of memory") as caught:
                    world.write()
            assert "maxmemory" in caught.value.hint
            callers.wait(more=20)
            assert callers.newest == 1
        world.write()
        target = world.acknowledged
        wait_until(lambda: callers.newest == target or callers.wrong, what="what was written")
    callers.check()
    assert set(callers.told) == {"answer"}


def test_a_store_that_became_read_only(server, world):
    with Callers(world) as callers:
        with a_replica_of_nobody(server):
            with pytest.raises(StorageError, match="read-only replica"):
                world.write()
            callers.wait(more=20)
        world.write()
        callers.wait(more=20)
    callers.check()
    assert set(callers.told) == {"answer"}


def test_a_store_that_loads_its_data(server, world, raw):
    """It answers that it loads, which is told as such; then all is there again."""
    raw.mset({f"more{number}": "x" * 100 for number in range(500)})
    raw.config_set("key-load-delay", 1_500, "loading-process-events-interval-bytes", 1_024)
    loading = threading.Thread(target=server.command, args=("DEBUG", "RELOAD"))
    with Callers(world, timeout=0.5) as callers:
        callers.wait()
        loading.start()
        wait_until(
            lambda: any("LOADING" in text for text in callers.texts) or callers.wrong,
            what="the server to say that it loads",
        )
        loading.join(30)
        raw.config_set("key-load-delay", 0)
        callers.wait(more=20)
    callers.check()


def test_a_store_that_evicts_is_warned_of():
    """Evicted rows cannot be told from such that never were: so the server's word is passed on."""
    hasty = ["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"]
    with ValkeyServer(options=hasty) as server, capture_logs() as logs, World(server.url) as world:
        (line,) = [line for line in logs if line["event"] == "caution"]
        assert "may evict" in line["text"]
        world.write()
        for raw in driver_of(server):
            for batch in range(10):
                raw.mset({f"more{batch}:{number}": "x" * 1_000 for number in range(500)})
        with Callers(world, may_lose=True) as callers:
            callers.wait()
        callers.check()
        assert callers.missing
        may, has = world.store.cautions()
        assert "allkeys-random" in may
        assert "noeviction" in may
        assert "has evicted" in has


def test_a_cluster_whose_slots_move_under_load(cluster):
    """Keys go from node to node one by one and back while they are read and written."""
    with World(cluster.url) as world:
        world.write()
        with Callers(world) as callers, writing(world) as failed:
            callers.wait()
            for key in world.keys[:12]:
                giver = owner(cluster, slot_of(key))
                taker = cluster.nodes[(cluster.nodes.index(giver) + 1) % len(cluster.nodes)]
                migrate(cluster, [key], giver, taker)
                migrate(cluster, [key], taker, giver)
            cluster.wait()
            target = world.acknowledged + 1
            wait_until(lambda: callers.newest >= target or callers.wrong, what="lookups")
        callers.check()
        assert set(callers.told) == {"answer"}
        assert failed == []


def test_a_node_of_a_cluster_that_is_killed(cluster):
    """Whoever asks for a key of it is told; after it came back empty all goes on."""
    node = cluster.nodes[2]
    with World(cluster.url) as world:
        world.write()
        with Callers(world, may_lose=True) as callers:
            callers.wait()
            node.stop()
            callers.wait("OnlineStoreUnavailableError", 10)
            node.start()
            cluster.wait()
            callers.wait()
        callers.check()
        # The node kept nothing: that is told as not found, and writing again mends it.
        assert callers.missing
        world.write()
        with Callers(world) as again:
            again.wait(more=20)
        again.check()


def test_jobs_over_a_full_store_and_one_that_lost_everything(server, tmp_path):
    """What did not fit is written later, and what was lost again; nothing is marked done before."""
    repository = Repository(tmp_path, online=emptied(server).url)
    users = [1, 2]
    with repository.store as store:
        repository.history([Click("a", 1, 20), Click("b", 2, 30), Click("c", 1, 70)])
        store.apply()
        with full(server):
            with pytest.raises(StorageError, match="out of memory"):
                store.materialize_incremental()
            runs = [status.last_run for status in store.status()]
            assert {run.state for run in runs} == {"failed"}
            assert all("out of memory" in run.error for run in runs)
            assert server.command("DBSIZE") == "0"
        store.materialize_incremental()
        right = repository.offline(users)
        assert right["n_lifetime"] == [2, 1]
        assert repository.online(users) == right
        server.command("FLUSHALL")
        assert repository.online(users) != right
        store.materialize(NOW - timedelta(days=2), NOW)
        assert repository.online(users) == right
        last = ["last:amount", "last:note"]
        assert repository.online(users, last) == repository.offline(users, last)
        server.command("CONFIG", "SET", "maxmemory-policy", "volatile-ttl", "maxmemory", "1gb")
        try:
            assert all("volatile-ttl" in status.notes[0] for status in store.status())
        finally:
            server.command("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 0)
        assert not any(status.notes for status in store.status())


def test_callers_would_notice(world):
    """The checks that all of the above rely on find what they are there for."""
    callers = Callers(world)

    def wrong(entity, left, text, right, floor=1):
        callers.wrong.clear()
        told = {"entity": [entity], "left": [left], "text": [text], "right": [right]}
        callers._look(told, floor)
        return bool(callers.wrong)

    assert not wrong(3, 3_000_001, "3/1", -3_000_001)
    assert wrong(3, 3_000_001, "3/2", -3_000_001)  # a mix
    assert wrong(3, 3_000_001, "3/1", -3_000_002)
    assert wrong(3, 3_000_001, None, -3_000_001)
    assert wrong(3, 4_000_001, "4/1", -4_000_001)  # another entity's
    assert wrong(3, 3_000_001, "3/1", -3_000_001, floor=2)  # older than what was acknowledged
    assert wrong(3, 3_000_002, "3/2", -3_000_002)  # never written
    assert wrong(3, None, None, None)  # gone
