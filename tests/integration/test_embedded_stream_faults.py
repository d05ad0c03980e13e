"""Streams without a server: LMDB when folders, writers and clocks misbehave; memory at will."""

import shutil
from uuid import uuid4

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.lmdb.streams import LmdbEventStream
from featurestore.adapters.memory_stream import MemoryEventStream
from featurestore.clock import FixedClock
from featurestore.errors import SettingsError, StorageError
from featurestore.testing.online import packed
from featurestore.testing.stream_entries import drain, newest, payloads
from tests.integration.stream_worker import GROUP
from tests.integration.streaming import GONE, SLACK, opening, took


@pytest.fixture
def opened():
    yield from opening()


def test_a_folder_that_is_deleted_and_comes_back(tmp_path, opened):
    """LMDB: all who have it open go on with the new file, from its start."""
    url = f"lmdb:{tmp_path / 'stream'}"
    stream, producer = opened(url), opened(url)
    consumer = stream.consumer(GROUP, "a")
    producer.append(payloads(10))
    found = drain(consumer, 5, max_entries=5)
    shutil.rmtree(tmp_path / "stream")
    producer.append(payloads(4, b"new"))
    consumer.commit(newest(found))
    assert [entry.payload for entry in drain(consumer, 4)] == payloads(4, b"new")
    assert sum(consumer.lag().values()) == 4
    consumer.commit(stream.ends())
    assert sum(consumer.lag().values()) == 0
    consumer.close()


def test_a_folder_that_holds_something_else(tmp_path):
    store = LmdbOnlineStore(tmp_path)
    store.write([b"namespace"], [packed(1)], None)
    with pytest.raises(StorageError, match="something else"):
        LmdbEventStream(tmp_path)
    store.close()


def test_a_writer_that_does_not_end(tmp_path, opened):
    """Appends and commits end by their timeouts; entries can still be read."""
    stream = opened(f"lmdb:{tmp_path / 'stream'}", timeout=0.2)
    stream.append(payloads(10))
    consumer = stream.consumer(GROUP, "a")
    found = consumer.poll(5, 0)
    environment = stream.environment()
    with environment.write_lock(5, stream._clock):
        assert 0.2 <= took(lambda: stream.append([b"x"])) < 0.2 + SLACK
        assert took(lambda: stream.append([b"x"], timeout=0.05)) < 0.05 + SLACK
        assert 0.2 <= took(lambda: consumer.commit(newest(found))) < 0.2 + SLACK
        found += consumer.poll(10, 0)
    assert [entry.payload for entry in found] == payloads(10)
    consumer.commit(newest(found))
    assert consumer.lag() == {"0": 0}
    consumer.close()
    stream.close()
    with pytest.raises(GONE, match="closed"):
        stream.append([b"x"])


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_clock_that_goes_back(kind, tmp_path, opened):
    """Positions grow all the same, and so do many of one instant."""
    clock = FixedClock(1_000_000_000)
    stream = (
        MemoryEventStream(clock)
        if kind == "memory"
        else opened(f"lmdb:{tmp_path / 'stream'}", clock=clock)
    )
    told = stream.append(payloads(5_000))
    assert told[0] == ("0", 1_000_000 << 12)
    for step in (-5_000_000, 1_000, 60_000_000):
        clock.advance(step)
        told += stream.append(payloads(3))
    positions = [position for _, position in told]
    assert positions == sorted(set(positions))
    assert positions[-3] == (1_000_000_000 - 5_000_000 + 1_000 + 60_000_000) // 1_000 << 12
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, len(told), max_entries=10_000)
    assert [entry.position for entry in found] == positions
    assert found[0].accepted_us == 1_000_000_000
    consumer.close()


def test_memory_fails_as_told():
    clock = FixedClock(0)
    stream = MemoryEventStream(clock, partitions=2)
    consumer = stream.consumer(GROUP, "a")
    stream.append(payloads(6), [b"k"] * 6)
    stream.available = False
    for call in (lambda: stream.append([b"x"]), lambda: consumer.poll(1, 0), stream.ping):
        with pytest.raises(GONE):
            call()
    stream.available = True
    stream.lose_next_reply()
    with pytest.raises(GONE):
        stream.append([b"lost"], [b"k"])
    stream.lose_next_reply()
    with pytest.raises(GONE):
        consumer.poll(3, 0)
    found = consumer.poll(3, 0)
    assert [entry.payload for entry in found] == payloads(6)[:3]
    stream.lose_next_reply()
    with pytest.raises(GONE):
        consumer.commit(newest(found))
    assert sum(consumer.lag().values()) == 4
    stream.repeat(GROUP, 2)
    assert consumer.poll(10, 0)[0] == found[1]
    other = stream.consumer(GROUP, "b")
    stream.kill(GROUP, "a")
    again = other.poll(10, 0)
    assert [entry.payload for entry in again] == [*payloads(6)[1:], b"lost"]
    clock.advance(11_000_000)
    assert consumer.poll(10, 0) == again
    assert other.poll(10, 0) == []


def test_a_name_in_memory_is_shared():
    name = f"memory:{uuid4().hex}"
    stream = MemoryEventStream.from_url(name)
    stream.append([b"x"])
    assert MemoryEventStream.from_url(name).ends() == stream.ends()
    with pytest.raises(SettingsError, match="partitions"):
        MemoryEventStream.from_url(f"{name}?partitions=2")
