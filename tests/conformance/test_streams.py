"""Every event stream passes one suite, with one partition and with several.

Kafka is the mock cluster of its own client library; with FEATURESTORE_TEST_KAFKA_URL, such as
kafka://broker:9092, it is that one.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from featurestore.adapters.kafka import KafkaEventStream
from featurestore.adapters.lmdb.streams import LmdbEventStream
from featurestore.adapters.memory_stream import MemoryEventStream
from featurestore.adapters.redis.streams import RedisEventStream
from featurestore.ports.streams import EventStream, StreamConsumer
from featurestore.testing.kafka import MockKafka
from featurestore.testing.streams import EventStreamSuite
from featurestore.testing.valkey import ValkeyServer


class TestMemory(EventStreamSuite):
    @pytest.fixture(autouse=True)
    def url(self) -> None:
        self.name = f"memory:{uuid4().hex}?partitions={self.partitions}"

    def open_stream(self) -> EventStream:
        return MemoryEventStream.from_url(self.name, lease_seconds=self.lease_seconds)


class TestMemoryPartitions(TestMemory):
    partitions = 3


class TestLmdb(EventStreamSuite):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.base = tmp_path

    def open_stream(self) -> EventStream:
        return LmdbEventStream.from_url(
            "lmdb:streams/clicks", base=self.base, timeout=10, lease_seconds=self.lease_seconds
        )


class TestRedis(EventStreamSuite):
    @pytest.fixture(autouse=True)
    def server(self, valkey: ValkeyServer) -> Iterator[None]:
        from redis import Redis

        self.name = uuid4().hex
        self.url = f"{valkey.url.rstrip('/')}/{self.name}?partitions={self.partitions}"
        yield
        with Redis.from_url(valkey.url) as raw:
            for key in raw.scan_iter(match=f"*{self.name}*", count=1_000):
                raw.unlink(key)

    def open_stream(self) -> EventStream:
        return RedisEventStream.from_url(self.url, timeout=10, lease_seconds=self.lease_seconds)


class TestRedisPartitions(TestRedis):
    partitions = 3


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka | str]:
    url = os.environ.get("FEATURESTORE_TEST_KAFKA_URL")
    if url:
        yield url
        return
    with MockKafka() as mock:
        yield mock


class _OwnGroups(KafkaEventStream):
    """A broker's groups are those of all topics; here each test has its own."""

    def consumer(self, group: str, member: str) -> StreamConsumer:
        return super().consumer(self._own(group), member)

    def forget(self, group: str) -> None:
        super().forget(self._own(group))

    def _own(self, group: str) -> str:
        return group and f"{self.location.topic}-{group}"


class TestKafka(EventStreamSuite):
    partitions = 3
    repeats = True

    @pytest.fixture(autouse=True)
    def topic(self, kafka: MockKafka | str) -> None:
        name = uuid4().hex
        if isinstance(kafka, MockKafka):
            kafka.create_topic(name, self.partitions)
            self.lease_seconds = 0.6
            # The mock cluster keeps a fetch waiting so long even when something comes.
            self.url = f"{kafka.url}/{name}?fetch.wait.max.ms=50"
        else:
            self.lease_seconds = 6.0  # brokers take no shorter one
            server, _, options = kafka.partition("?")
            self.url = f"{server.rstrip('/')}/{name}?{options}"
            self.make_topic(name)

    def make_topic(self, name: str) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        stream = KafkaEventStream.from_url(self.url)
        client = AdminClient(stream.location.options)
        client.create_topics([NewTopic(name, self.partitions, 1)])[name].result(30)

    def open_stream(self) -> EventStream:
        return _OwnGroups.from_url(
            self.url, lease_seconds=self.lease_seconds, silence_seconds=self.lease_seconds
        )
