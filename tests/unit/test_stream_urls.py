"""URLs of event streams: what they name, what they refuse, and that no password is repeated."""

import sys

import pytest

from featurestore.adapters.kafka import KafkaEventStream
from featurestore.adapters.lmdb.streams import LmdbEventStream
from featurestore.adapters.memory_stream import MemoryEventStream
from featurestore.adapters.redis.streams import RedisEventStream
from featurestore.errors import SettingsError


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        (RedisEventStream, "redis://:s3cret@host"),
        (RedisEventStream, "redis://:s3cret@host/"),
        (RedisEventStream, "redis://:s3cret@host/0/"),
        (RedisEventStream, "redis://:s3cret@host/x/NAME"),
        (RedisEventStream, "redis://:s3cret@host/0/NAME/more"),
        (RedisEventStream, "redis://:s3cret@host/0/NA{ME"),
        (RedisEventStream, "redis://:s3cret@host:port/0/NAME"),
        (RedisEventStream, "redis://:s3cret@host/0/NAME?partitions=0"),
        (RedisEventStream, "redis://:s3cret@host/0/NAME?partitions=many"),
        (RedisEventStream, "redis://:s3cret@host/0/NAME?maxlen=-1"),
        (RedisEventStream, "redis://:s3cret@host/0/NAME?other=1"),
        (RedisEventStream, "redis+cluster://:s3cret@host/0/NAME"),
        (RedisEventStream, "s3cret"),
        (KafkaEventStream, "kafka://u:s3cret@host:9092"),
        (KafkaEventStream, "kafka://u:s3cret@host:9092/"),
        (KafkaEventStream, "kafka://u:s3cret@host:9092/a/b"),
        (KafkaEventStream, "kafka://u:s3cret@/topic"),
        (KafkaEventStream, "kafka://u:s3cret@host/topic?group.id=x"),
        (KafkaEventStream, "redis://u:s3cret@host/topic"),
        (LmdbEventStream, "lmdb:"),
        (LmdbEventStream, "lmdb:x?maxlen=0"),
        (LmdbEventStream, "lmdb:x?other=1"),
        (LmdbEventStream, "x"),
        (MemoryEventStream, "memory:"),
        (MemoryEventStream, "memory:x?partitions=0"),
        (MemoryEventStream, "memory:x?other=0"),
        (MemoryEventStream, "other:x"),
    ],
)
def test_urls_that_name_no_stream(kind, url):
    with pytest.raises(SettingsError) as caught:
        kind.from_url(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.allowed


def test_urls_that_name_a_stream():
    stream = RedisEventStream.from_url(
        "rediss://u:s3cret@[::1]:7000/3/a%2Fb?partitions=2&maxlen=9&ssl_cert_reqs=none",
        password="other",  # noqa: S106
    )
    location = stream.location
    assert location.server.label == "rediss://u@[::1]:7000/3/a/b"
    assert location.server.options["password"] == "other"  # noqa: S105
    assert location.server.options["db"] == 3
    assert (location.keys, location.maxlen) == (["a/b:0", "a/b:1"], 9)
    assert "s3cret" not in f"{stream!r} {location!r}"
    plain = RedisEventStream.from_url("redis://host/NAME").location
    assert (plain.keys, plain.server.port, plain.maxlen) == (["NAME"], 6379, None)
    kafka = KafkaEventStream.from_url(
        "kafka://u%40x:s3cret@a:1,b:2/topic?security.protocol=SASL_SSL", username="v"
    )
    assert kafka.location.options == {
        "security.protocol": "SASL_SSL",
        "sasl.username": "v",
        "sasl.password": "s3cret",
        "bootstrap.servers": "a:1,b:2",
    }
    assert "s3cret" not in f"{kafka!r} {kafka.location!r}"


def test_kafka_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SettingsError, match=r"featurestore\[kafka\]"):
        KafkaEventStream.from_url("kafka://localhost:1/topic")


def test_settings_that_kafka_refuses():
    stream = KafkaEventStream.from_url(
        "kafka://localhost:1/topic?security.protocol=wrong",
        password="s3cret",  # noqa: S106
    )
    with pytest.raises(SettingsError, match="wrong") as caught:
        stream.ping()
    assert "s3cret" not in f"{caught.value} {stream!r} {stream.location!r}"
