"""Event streams when servers are killed, hang, come back empty or forget, and members are killed.

Real servers and real processes; `stream_worker.py` is what the processes run.
"""

from __future__ import annotations

import random
import threading
import time
from uuid import uuid4

import pytest

from featurestore.adapters.memory_stream import MemoryEventStream
from featurestore.ports.streams import Entry
from featurestore.testing.stream_entries import drain, newest, ordered, payloads
from featurestore.testing.valkey import ValkeyServer
from tests.integration.stream_worker import BATCH, GROUP
from tests.integration.streaming import (
    DEADLINE,
    GONE,
    SLACK,
    Traffic,
    Worker,
    first_deliveries,
    lose_a_reply,
    opening,
    took,
    until_it_answers,
)

DURABLE = ["--appendonly", "yes", "--appendfsync", "always"]


@pytest.fixture(scope="module")
def shared():
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def server(shared):
    """A server that each test leaves running."""
    shared.command("FLUSHALL")
    return shared


@pytest.fixture
def raw(server):
    from redis import Redis

    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(params=["lmdb", "redis"])
def url(request, tmp_path):
    if request.param == "lmdb":
        return f"lmdb:{tmp_path / 'stream'}"
    return f"{request.getfixturevalue('server').url}/{uuid4().hex}"


@pytest.fixture
def opened():
    yield from opening()


# Processes that are killed


@pytest.mark.slow
def test_consumers_that_are_killed_at_any_time(url, opened):
    """Every entry comes, in order, the same each time; what was committed comes no more."""
    chance = random.Random(5)  # noqa: S311
    total = 10_000  # more than pipes hold of what so many workers say before they are killed
    stream = opened(url, timeout=10, lease_seconds=60)
    told = stream.append(payloads(total))
    lines: list[str] = []
    kills = 6
    for turn in range(kills):
        # Under the same name; in LMDB another name will do, for the process is known to be gone.
        member = f"m{turn}" if url.startswith("lmdb") else "m"
        with Worker("consume", url, member) as worker:
            mine = [worker.line() + "\n" for _ in range(chance.randint(1, 60))]
            moment = time.monotonic() + chance.uniform(0, 0.003)
            while time.monotonic() < moment:
                pass
            lines += [*mine, *worker.kill()]
    done, found = -1, []
    for line in lines:
        kind, *about = line.split(" ")
        if kind == "committed":
            done = max(done, int(about[0]))
        else:
            partition, position, accepted_us, payload = about
            assert int(position) > done, "what was committed came again"
            entry = Entry(partition, int(position), int(accepted_us), payload.strip().encode())
            found.append(entry)
    consumer = stream.consumer(GROUP, "last" if url.startswith("lmdb") else "m")
    # What was committed and not yet told may show only when somebody writes: LMDB's way.
    some = consumer.poll(500, 10)
    left = sum(consumer.lag().values())
    assert 0 < left <= sum(position > done for _, position in told)
    found += [*some, *drain(consumer, left - len(some))]
    firsts = first_deliveries(found)
    assert [(entry.partition, entry.position) for entry in firsts] == told
    assert [entry.payload for entry in firsts] == payloads(total)
    consumer.close()


@pytest.mark.slow
def test_a_producer_that_is_killed_at_any_time(url, opened):
    """Acknowledged batches are there, in order; one that was not is there whole or not at all."""
    chance, number = random.Random(6), 0  # noqa: S311
    acknowledged: list[int] = []
    for _ in range(5):
        with Worker("produce", url, number) as worker:
            mine = [int(worker.line()) for _ in range(chance.randint(1, 12))]
            moment = time.monotonic() + chance.uniform(0, 0.003)
            while time.monotonic() < moment:
                pass
            mine += [int(line) for line in worker.kill()]
        acknowledged += mine
        number = mine[-1] + 2  # one more may have been appended and not acknowledged
    stream = opened(url, timeout=10)
    consumer = stream.consumer(GROUP, "a")
    found = consumer.poll(1, 10)
    found += drain(consumer, sum(consumer.lag().values()) - 1, max_entries=1_000)
    assert consumer.poll(1, 0) == []
    assert ordered(found)
    batches = [int(entry.payload.split(b"/")[0]) for entry in found]
    assert set(acknowledged) <= set(batches)
    assert batches == sorted(batches)
    there = sorted(set(batches))
    expected = [payload for batch in there for payload in payloads(BATCH, b"%d/" % batch)]
    assert [entry.payload for entry in found] == expected
    consumer.close()


def test_a_dead_process_is_taken_over_from_at_once(tmp_path, opened):
    """LMDB: nobody waits for the lease of a process that has ended; of one that lives, one does."""
    url = f"lmdb:{tmp_path / 'stream'}"
    stream = opened(url, lease_seconds=60)
    stream.append(payloads(8))
    with Worker("hold", url, "a") as worker:
        assert worker.line() == "5"
        other = stream.consumer(GROUP, "b")
        assert other.poll(10, 0.1) == []
        worker.kill()
    start = time.monotonic()
    assert len(drain(other, 8)) == 8
    assert time.monotonic() - start < SLACK
    other.close()


def test_a_member_of_another_process_is_waited_for(server, opened):
    """Redis: who is silent is taken over from when the lease ends, and not before."""
    url = f"{server.url}/0/{uuid4().hex}"
    stream = opened(url, lease_seconds=0.5)
    stream.append(payloads(8))
    first = stream.consumer(GROUP, "a")
    start = time.monotonic()
    assert len(first.poll(5, 5)) == 5
    other = stream.consumer(GROUP, "b")
    assert [entry.payload for entry in drain(other, 8)] == payloads(8)
    assert 0.5 <= time.monotonic() - start < 0.5 + 2 * SLACK
    assert first.poll(5, 0) == []
    other.close()
    assert len(drain(first, 8)) == 8
    first.close()


def test_a_former_life_that_is_not_over(url, opened):
    """Who comes back under its name has its work at once; what it was before changes nothing."""
    stream = opened(url, lease_seconds=60)
    stream.append(payloads(10))
    former = stream.consumer(GROUP, "a")
    found = former.poll(6, 5)
    again = opened(url, lease_seconds=60).consumer(GROUP, "a")
    start = time.monotonic()
    assert drain(again, 7, max_entries=7)[:6] == found
    assert time.monotonic() - start < SLACK
    if url.startswith("lmdb"):
        assert former.poll(10, 0) == []  # as it finds out; the next one would take all back
    former.commit(newest(found))
    assert again.lag() == {"0": 10}
    again.close()


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_partition_is_given_up_once_all_is_committed(kind, opened, request):
    """A member that joins gets its share when that is committed, and nothing comes twice."""
    if kind == "memory":
        stream = MemoryEventStream(partitions=2)
    else:
        server = request.getfixturevalue("server")
        stream = opened(f"{server.url}/{uuid4().hex}?partitions=2", lease_seconds=30)
    keys = payloads(20)
    stream.append(payloads(20, b"old"), keys)
    first, other = stream.consumer(GROUP, "a"), stream.consumer(GROUP, "b")
    found = drain(first, 20)
    assert len({entry.partition for entry in found}) == 2
    for _ in range(3):
        assert other.poll(10, 0.1) == []
        assert first.poll(10, 0.1) == []
    first.commit(newest(found))
    stream.append(payloads(20, b"new"), keys)
    mine: dict[str, list[Entry]] = {"a": [], "b": []}
    end = time.monotonic() + DEADLINE
    while sum(map(len, mine.values())) < 20:
        assert time.monotonic() < end
        for name, consumer in (("a", first), ("b", other)):
            some = consumer.poll(1, 0.1)
            consumer.commit(newest(some))
            mine[name] += some
    assert mine["a"]
    assert mine["b"]
    entries = [*mine["a"], *mine["b"]]
    assert sorted(entry.payload for entry in entries) == sorted(payloads(20, b"new"))
    assert sum(first.lag().values()) == 0
    first.close()
    other.close()


# Servers that go away


@pytest.mark.slow
def test_a_durable_server_that_is_killed_loses_nothing_acknowledged(opened):
    """Valkey with fsync always, killed amid appends, polls and commits."""
    chance = random.Random(7)  # noqa: S311
    with ValkeyServer(options=DURABLE) as server:
        url = f"{server.url}/events?partitions=2"
        traffic = Traffic(opened(url, timeout=2), opened(url, timeout=2))
        for job in traffic.jobs:
            job.start()
        for _ in range(6):
            traffic.wait_for(len(traffic.found) + chance.randint(50, 400))
            server.stop()
            server.start()
        traffic.wait_for(len(traffic.found) + 50)
        traffic.finish()
    assert traffic.gone >= 6
    firsts = first_deliveries(traffic.found)
    assert ordered(firsts)
    assert set(traffic.acknowledged) <= {entry.payload for entry in firsts}


def test_a_server_that_hangs(server, opened):
    """Calls end by their timeouts; afterwards everything goes on where it stopped."""
    stream = opened(f"{server.url}/{uuid4().hex}", timeout=0.3)
    consumer = stream.consumer(GROUP, "a")
    stream.append(payloads(10))
    found = drain(consumer, 4, max_entries=4)
    server.pause()
    try:
        assert 0.3 <= took(lambda: consumer.poll(4, 0)) < 0.3 + SLACK
        assert 0.3 <= took(lambda: consumer.poll(4, 2)) < 0.3 + SLACK
        assert 0.3 <= took(lambda: consumer.commit(newest(found))) < 0.3 + SLACK
        assert 0.3 <= took(lambda: stream.append([b"lost?"])) < 0.3 + SLACK
        assert 0.1 <= took(lambda: stream.append([b"lost?"], timeout=0.1)) < 0.1 + SLACK
        for call in (consumer.lag, stream.ends, stream.ping, lambda: stream.forget("other")):
            assert took(call) < 0.3 + SLACK
    finally:
        server.resume()
    until_it_answers(stream.ping)
    rest = drain(consumer, 6)
    assert [entry.payload for entry in [*found, *rest]][:10] == payloads(10)
    consumer.commit(newest(found))
    assert ordered([*found, *rest])
    consumer.close()


def test_a_server_that_hangs_amid_a_wait(server, opened):
    """A poll that blocks at the server ends soon after its timeout when that falls silent."""
    stream = opened(f"{server.url}/{uuid4().hex}", timeout=0.3)
    consumer = stream.consumer(GROUP, "a")
    assert consumer.poll(1, 0) == []
    pauser = threading.Timer(0.1, server.pause)
    pauser.start()
    try:
        assert took(lambda: consumer.poll(1, 0.6)) < 0.6 + 0.3 + SLACK
    finally:
        pauser.join()
        server.resume()
    start = time.monotonic()
    assert until_it_answers(lambda: consumer.poll(1, 0.3)) == []
    assert time.monotonic() - start < 0.3 + SLACK
    stream.append([b"x"])
    assert [entry.payload for entry in drain(consumer, 1)] == [b"x"]
    consumer.close()


def test_an_entry_that_comes_just_before_the_wait(server, opened, monkeypatch):
    stream = opened(f"{server.url}/{uuid4().hex}", timeout=5)
    consumer = stream.consumer(GROUP, "a")
    stream.append([b"first"])
    consumer.commit(newest(drain(consumer, 1)))
    wait = consumer._wait

    def append_first(left):
        monkeypatch.setattr(consumer, "_wait", wait)
        stream.append([b"x"])
        start = time.monotonic()
        waited = wait(left)
        assert time.monotonic() - start < 0.5
        return waited

    monkeypatch.setattr(consumer, "_wait", append_first)
    assert [entry.payload for entry in consumer.poll(1, 5)] == [b"x"]
    consumer.close()


def test_replies_that_are_lost(server, opened, monkeypatch):
    """What the server delivered and the member never saw comes with the next poll, in order."""
    stream = opened(f"{server.url}/{uuid4().hex}?partitions=2", timeout=5)
    keys = [b"%d" % number for number in range(30)]
    stream.append(payloads(30), keys)
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 8, max_entries=4)
    for _ in range(3):
        lose_a_reply(stream, monkeypatch)
        with pytest.raises(GONE):
            consumer.poll(6, 0)
        found += consumer.poll(4, 0)
    found += drain(consumer, 30 - len(found))
    assert ordered(found)
    assert sorted(entry.payload for entry in found) == sorted(payloads(30))
    lose_a_reply(stream, monkeypatch)
    with pytest.raises(GONE):
        consumer.commit(newest(found))
    consumer.commit(newest(found))
    assert set(consumer.lag().values()) == {0}
    consumer.close()


@pytest.mark.parametrize("how", ["DEL", "FLUSHALL"])
def test_a_stream_that_is_deleted_and_comes_back(how, server, opened):
    """The group is made anew, and reading begins at the start of what is there."""
    name = uuid4().hex
    stream = opened(f"{server.url}/{name}", timeout=5)
    consumer, other = stream.consumer(GROUP, "a"), stream.consumer(GROUP, "b")
    stream.append(payloads(10))
    found = drain(consumer, 5, max_entries=5)
    server.command(*(["DEL", name] if how == "DEL" else ["FLUSHALL"]))
    consumer.commit(newest(found))
    assert sum(consumer.lag().values()) == 0
    assert stream.ends() == {}
    stream.append(payloads(4, b"new"))
    assert [entry.payload for entry in drain(consumer, 4, commit=True)] == payloads(4, b"new")
    server.command(*(["DEL", name] if how == "DEL" else ["FLUSHALL"]))
    assert consumer.poll(1, 0) == []
    stream.append(payloads(4, b"newer"))
    consumer.close()
    assert [entry.payload for entry in drain(other, 4, max_entries=1)] == payloads(4, b"newer")
    other.close()


def test_entries_that_were_trimmed_away(raw, server, opened, monkeypatch):
    """What was polled and then trimmed is gone: newer entries come, nothing hangs."""
    name = uuid4().hex
    stream = opened(f"{server.url}/{name}", timeout=5, lease_seconds=0.3)
    stream.append(payloads(10))
    dead = stream.consumer(GROUP, "dead")
    drain(dead, 8, max_entries=8)
    raw.xtrim(name, maxlen=5, approximate=False)
    other = stream.consumer(GROUP, "other")
    found = drain(other, 5, max_entries=2)
    assert [entry.payload for entry in found] == payloads(10)[5:]
    # Once more, now with such as were delivered and did not arrive.
    stream.append(payloads(4))
    lose_a_reply(stream, monkeypatch)
    with pytest.raises(GONE):
        other.poll(4, 0)
    raw.xtrim(name, maxlen=0, approximate=False)
    stream.append([b"newer"])
    assert [entry.payload for entry in drain(other, 1)] == [b"newer"]
    other.commit(stream.ends())
    assert sum(other.lag().values()) == 0
    assert raw.xpending(name, GROUP)["pending"] == 0
    other.close()


def test_keeping_so_many(tmp_path, server, raw, opened):
    """With `maxlen` old entries go, also such as nobody read; lag counts what is there."""
    stream = opened(f"lmdb:{tmp_path / 'stream'}?maxlen=100")
    name = uuid4().hex
    approximate = opened(f"{server.url}/{name}?maxlen=100")
    for each in (stream, approximate):
        for number in range(30):
            told = each.append(payloads(50, b"%d/" % number))
        assert each.ends() == dict(told)
    consumer = stream.consumer(GROUP, "a")
    assert consumer.lag() == {"0": 100}
    expected = payloads(50, b"28/") + payloads(50, b"29/")
    assert [entry.payload for entry in drain(consumer, 100, commit=True)] == expected
    assert consumer.lag() == {"0": 0}
    consumer.close()
    assert 100 <= raw.xlen(name) < 600
    assert sum(approximate.consumer(GROUP, "a").lag().values()) == raw.xlen(name)
