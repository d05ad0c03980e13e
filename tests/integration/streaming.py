"""What tests of event streams' faults share: processes at work, traffic, calls that must fail."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestore.adapters.kafka import KafkaEventStream
from featurestore.adapters.lmdb.streams import LmdbEventStream
from featurestore.adapters.redis.streams import RedisEventStream
from featurestore.errors import StreamUnavailableError
from featurestore.ports.streams import Entry
from featurestore.testing.stream_entries import newest, payloads
from tests.integration.stream_worker import GROUP
from tests.integration.worker_process import DEADLINE, WorkerProcess

GONE = StreamUnavailableError
SLACK = 1.5  # for a machine that is busy with other tests


class Worker(WorkerProcess):
    """A process of `stream_worker` at work."""

    program = Path(__file__).with_name("stream_worker.py")


def opening():
    """Yield what opens streams, which are closed in the end."""
    streams = []

    def open_one(url, **options):
        kinds = {"lmdb": LmdbEventStream, "redis": RedisEventStream, "kafka": KafkaEventStream}
        streams.append(kinds[url.partition(":")[0]].from_url(url, **options))
        return streams[-1]

    yield open_one
    for stream in streams:
        stream.close()


def took(call):
    """Return how long a call took that finds the stream gone."""
    start = time.monotonic()
    with pytest.raises(GONE):
        call()
    return time.monotonic() - start


def lose_a_reply(stream, monkeypatch):
    """Let a Redis stream raise once, after the server has done what it was asked."""
    send = stream._send

    def lose(*arguments):
        send(*arguments)
        monkeypatch.setattr(stream, "_send", send)
        raise GONE("the reply was lost")

    monkeypatch.setattr(stream, "_send", lose)


def until_it_answers(call: Callable[[], object]) -> object:
    """Call again while the stream is gone."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            return call()
        except GONE:
            assert time.monotonic() < end


def first_deliveries(entries: list[Entry]) -> list[Entry]:
    """Return the entries without what came again; the same entry is always the same."""
    first: dict[tuple[str, int], Entry] = {}
    for entry in entries:
        assert first.setdefault((entry.partition, entry.position), entry) == entry
    return list(first.values())


class Traffic:
    """A producer and a consumer that try again whenever the stream is gone."""

    def __init__(self, producing, consuming):
        self.acknowledged: list[bytes] = []
        self.found: list[Entry] = []
        self.errors: list[BaseException] = []
        self.gone = 0
        self.stop = threading.Event()
        self.jobs = [
            threading.Thread(target=self.watched, args=(self.produce, producing), daemon=True),
            threading.Thread(target=self.watched, args=(self.consume, consuming), daemon=True),
        ]

    def watched(self, work, stream):
        try:
            work(stream)
        except BaseException as error:  # noqa: BLE001  (handed to the test, which fails)
            self.errors.append(error)

    def produce(self, stream):
        number = 0
        while not self.stop.is_set():
            batch = payloads(10, b"%d/" % number)
            number += 1
            try:
                stream.append(batch, [b"k"] * 10)
            except GONE:
                self.gone += 1
            else:
                self.acknowledged.extend(batch)

    def consume(self, stream):
        consumer, left = stream.consumer(GROUP, "a"), 1
        while left:
            try:
                some = consumer.poll(50, 0.05)
                self.found.extend(some)
                consumer.commit(newest(some))
                left = sum(consumer.lag().values()) if self.stop.is_set() else 1
            except GONE:
                self.gone += 1
        consumer.close()

    def wait_for(self, count):
        end = time.monotonic() + DEADLINE
        while len(self.found) < count and not self.errors:
            assert time.monotonic() < end
            self.stop.wait(0.005)

    def finish(self):
        self.stop.set()
        for job in self.jobs:
            job.join(DEADLINE)
            assert not job.is_alive()
        assert self.errors == []
