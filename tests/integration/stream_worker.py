"""What the processes of `test_stream_faults.py` do: `stream_worker.py WORK URL ARGUMENT...`.

A worker says in a line what it has done, once that cannot be undone.
"""

from __future__ import annotations

import sys

from featurestore.adapters.lmdb.streams import LmdbEventStream
from featurestore.adapters.redis.streams import RedisEventStream
from featurestore.ports.streams import EventStream
from featurestore.testing.stream_entries import newest, payloads

GROUP = "group"
BATCH = 40
MOST_BATCHES = 500


def open_stream(url: str, lease_seconds: float = 60.0) -> EventStream:
    """Return the stream of a URL."""
    if url.startswith("lmdb:"):
        return LmdbEventStream.from_url(url, timeout=10, lease_seconds=lease_seconds)
    return RedisEventStream.from_url(url, timeout=10, lease_seconds=lease_seconds)


def say(*words: object) -> None:
    """Tell the test something."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def produce(url: str, first: str) -> None:
    """Append many batches and tell the number of each that is acknowledged."""
    stream = open_stream(url)
    for number in range(int(first), int(first) + MOST_BATCHES):
        stream.append(payloads(BATCH, b"%d/" % number))
        say(number)
    sys.stdin.readline()


def consume(url: str, member: str) -> None:
    """Poll, tell what came, commit, tell what was committed; small batches, for ever."""
    consumer = open_stream(url).consumer(GROUP, member)
    while True:
        found = consumer.poll(7, 0.1)
        for entry in found:
            say("entry", entry.partition, entry.position, entry.accepted_us, entry.payload.decode())
        if found:
            consumer.commit(newest(found))
            say("committed", found[-1].position)


def hold(url: str, member: str) -> None:
    """Poll once, tell how much came, and fall silent."""
    consumer = open_stream(url).consumer(GROUP, member)
    say(len(consumer.poll(5, 10)))
    sys.stdin.readline()


WORKS = {work.__name__: work for work in (produce, consume, hold)}

if __name__ == "__main__":
    WORKS[sys.argv[1]](*sys.argv[2:])
