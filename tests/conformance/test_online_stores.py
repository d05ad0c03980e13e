"""Every online store passes one suite, and walks beside the model wherever Hypothesis leads it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.redis import RedisOnlineStore
from featurestore.ports.online import OnlineStore
from featurestore.testing.online import OnlineStoreSuite
from featurestore.testing.online_state_samples import Fields
from featurestore.testing.online_states import OnlineStatesSuite
from featurestore.testing.online_states_machine import online_states_machine
from featurestore.testing.valkey import ValkeyCluster, ValkeyServer

MACHINE = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Conformance(OnlineStoreSuite, OnlineStatesSuite):
    def test_it_walks_beside_the_model(self, store: OnlineStore) -> None:
        run_state_machine_as_test(online_states_machine(lambda: store), settings=MACHINE)


class TestMemory(Conformance):
    @pytest.fixture
    def store(self) -> Iterator[OnlineStore]:
        store = MemoryOnlineStore()
        yield store
        store.close()

    def raw_items(self, store: OnlineStore) -> Mapping[bytes, bytes]:
        assert isinstance(store, MemoryOnlineStore)
        return dict(store._rows)

    def raw_put(self, store: OnlineStore, items: Mapping[bytes, bytes]) -> None:
        assert isinstance(store, MemoryOnlineStore)
        store._rows.update(items)

    def raw_states(self, store: OnlineStore) -> Mapping[bytes, Fields]:
        assert isinstance(store, MemoryOnlineStore)
        return {key: dict(fields) for key, fields in store._states.items()}

    def raw_put_states(self, store: OnlineStore, states: Mapping[bytes, Fields]) -> None:
        assert isinstance(store, MemoryOnlineStore)
        store._states.update({key: dict(fields) for key, fields in states.items()})


class TestLmdb(Conformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OnlineStore]:
        store = LmdbOnlineStore(tmp_path / "online", batch=1_000)
        yield store
        store.close()

    def raw_items(self, store: OnlineStore) -> Mapping[bytes, bytes]:
        assert isinstance(store, LmdbOnlineStore)
        with store._environment.handle().begin() as txn:
            return dict(txn.cursor())

    def raw_put(self, store: OnlineStore, items: Mapping[bytes, bytes]) -> None:
        assert isinstance(store, LmdbOnlineStore)
        with store._environment.handle().begin(write=True) as txn:
            txn.cursor().putmulti(list(items.items()))

    def raw_states(self, store: OnlineStore) -> Mapping[bytes, Fields]:
        assert isinstance(store, LmdbOnlineStore)
        env = store._environment.handle()
        if b"states" not in env.dbs():
            return {}
        states: dict[bytes, dict[bytes, bytes]] = {}
        with env.begin(db=env.open_db(b"states", create=False)) as txn:
            for entry, value in txn.cursor():
                size = int.from_bytes(entry[8:10], "big")
                if size < 512:  # else a hash stands for the key
                    key, field = entry[:8] + entry[10 : size + 2], entry[size + 2 :]
                    states.setdefault(key, {})[field] = value
        return states

    def raw_put_states(self, store: OnlineStore, states: Mapping[bytes, Fields]) -> None:
        assert isinstance(store, LmdbOnlineStore)
        env = store._environment.handle()
        with env.begin(db=env.open_db(b"states"), write=True) as txn:
            for key, fields in states.items():
                for field, value in fields.items():
                    txn.put(key[:8] + len(key).to_bytes(2, "big") + key[8:] + field, value)


class OverRedis(Conformance):
    raw: Any

    def raw_items(self, store: OnlineStore) -> Mapping[bytes, bytes]:  # noqa: ARG002
        return self._all("string", "get")

    def raw_put(self, store: OnlineStore, items: Mapping[bytes, bytes]) -> None:  # noqa: ARG002
        for key, value in items.items():
            self.raw.set(key, value)

    def raw_states(self, store: OnlineStore) -> Mapping[bytes, Fields]:  # noqa: ARG002
        return self._all("hash", "hgetall")

    def raw_put_states(self, store: OnlineStore, states: Mapping[bytes, Fields]) -> None:  # noqa: ARG002
        for key, fields in states.items():
            self.raw.hset(key, mapping=dict(fields))

    def _all(self, kind: str, command: str) -> dict[bytes, Any]:
        keys = list(self.raw.scan_iter(count=1_000, _type=kind))
        pipeline = self.raw.pipeline(transaction=False)
        for key in keys:
            getattr(pipeline, command)(key)
        return dict(zip(keys, pipeline.execute(), strict=True))


class TestRedis(OverRedis):
    @pytest.fixture
    def store(self, valkey: ValkeyServer) -> Iterator[OnlineStore]:
        from redis import Redis

        store = RedisOnlineStore.from_url(valkey.url, timeout=10)
        with Redis.from_url(valkey.url) as self.raw:
            yield store
            for key in self.raw.scan_iter(count=1_000):
                if key.startswith(tuple(self.used)):
                    self.raw.unlink(key)
        store.close()


class TestRedisCluster(OverRedis):
    @pytest.fixture
    def store(self, valkey_cluster: ValkeyCluster) -> Iterator[OnlineStore]:
        from redis import RedisCluster

        store = RedisOnlineStore.from_url(valkey_cluster.url, timeout=10)
        with RedisCluster(host="127.0.0.1", port=valkey_cluster.nodes[0].port) as self.raw:
            yield store
        store.close()
        for node in valkey_cluster.nodes:
            node.command("FLUSHALL")
