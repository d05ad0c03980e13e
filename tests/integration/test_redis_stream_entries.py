"""Streams in Redis with what others put there, with strange clocks, users and lost scripts."""

from uuid import uuid4

import pytest

from featurestore.errors import AuthenticationError, DataError, StorageError
from featurestore.testing.stream_entries import drain, newest, ordered, payloads
from featurestore.testing.valkey import ValkeyServer, acl_user
from tests.integration.stream_worker import GROUP
from tests.integration.streaming import opening


@pytest.fixture(scope="module")
def server():
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def raw(server):
    from redis import Redis

    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def opened():
    yield from opening()


def test_entries_of_other_producers(raw, server, opened):
    """The payload is the field `payload`, wherever it stands; without one it is empty."""
    name = uuid4().hex
    raw.xadd(name, {"payload": "plain"})
    raw.xadd(name, {"user": "1", "payload": b"second\xff"})
    raw.xadd(name, {"user": "1"})
    stream = opened(f"{server.url}/{name}")
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 3)
    assert [entry.payload for entry in found] == [b"plain", b"second\xff", b""]
    for entry, (entry_id, _) in zip(found, raw.xrange(name), strict=True):
        ms, seq = map(int, entry_id.split(b"-"))
        assert (entry.position, entry.accepted_us) == (ms << 12 | seq, ms * 1_000)
    consumer.close()


def test_a_server_whose_clock_went_back(raw, server, opened):
    """It numbers entries of one millisecond without end; ours take the next one in time."""
    name = uuid4().hex
    seconds, micros = raw.time()
    ahead = (seconds + 3_600) * 1_000 + micros // 1_000
    raw.xadd(name, {"payload": "0"}, id=f"{ahead}-4090")
    stream = opened(f"{server.url}/{name}")
    told = stream.append(payloads(10))
    told += [
        place for number in range(3) for place in stream.append(payloads(4_000, b"%d/" % number))
    ]
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 12_011, max_entries=5_000)
    assert [(entry.partition, entry.position) for entry in found[1:]] == told
    assert ordered(found)
    assert found[1].position == (ahead << 12) + 4_091
    assert found[-1].accepted_us > ahead * 1_000
    assert consumer.lag() == {"0": 12_011}
    consumer.commit(newest(found[:6_000]))
    assert consumer.lag() == {"0": 6_011}
    consumer.close()


def test_a_millisecond_that_is_full(raw, server, opened):
    name = uuid4().hex
    seconds, _ = raw.time()
    ahead = (seconds + 3_600) * 1_000
    raw.xadd(name, {"payload": "0"}, id=f"{ahead}-4095")
    stream = opened(f"{server.url}/{name}")
    first = ahead + 1 << 12
    assert stream.append([b"1", b"2"]) == [("0", first), ("0", first + 1)]
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 3)
    assert [entry.payload for entry in found] == [b"0", b"1", b"2"]
    assert [entry.position for entry in found] == [first - 1, first, first + 1]
    consumer.close()


def test_an_id_that_makes_no_position(raw, server, opened):
    """Never passed over in silence: what stands before it comes, then the error, until it goes."""
    name = uuid4().hex
    for entry_id in ("5-1", "5-5000", "6-0"):
        raw.xadd(name, {"payload": entry_id}, id=entry_id)
    stream = opened(f"{server.url}/{name}")
    consumer = stream.consumer(GROUP, "a")
    found = drain(consumer, 1)
    assert [entry.payload for entry in found] == [b"5-1"]
    for _ in range(2):
        with pytest.raises(DataError, match="XDEL") as caught:
            consumer.poll(10, 0)
        assert caught.value.got == "5-5000"
    consumer.commit({"0": 1 << 53})
    assert consumer.lag() == {"0": 2}
    raw.xdel(name, "5-5000")
    assert [entry.payload for entry in drain(consumer, 1)] == [b"6-0"]
    raw.xadd(name, {"payload": "far"}, id=f"{1 << 42}-0")
    with pytest.raises(DataError):
        stream.ends()
    consumer.close()


def test_lag_where_the_server_does_not_know_it(raw, server, opened):
    """Once entries were deleted one by one the server counts no more; we do."""
    name = uuid4().hex
    stream = opened(f"{server.url}/{name}")
    stream.append(payloads(7_000))
    consumer = stream.consumer(GROUP, "a")
    drain(consumer, 100, max_entries=100, commit=True)
    for entry_id, _ in raw.xrange(name, count=1_000)[500::100]:
        raw.xdel(name, entry_id)
    assert raw.xinfo_groups(name)[0]["lag"] is None
    assert consumer.lag() == {"0": 6_895}
    consumer.close()


def test_a_key_that_holds_something_else(raw, server, opened):
    name = uuid4().hex
    raw.set(name, "x")
    stream = opened(f"{server.url}/{name}")
    consumer = stream.consumer(GROUP, "a")
    for call in (lambda: stream.append([b"x"]), lambda: consumer.poll(1, 0), stream.ends):
        with pytest.raises(StorageError, match="event stream"):
            call()
    consumer.close()


def test_a_user_that_is_refused(server, opened):
    password = "s3cret pa/ss@wörd"  # noqa: S105
    name = uuid4().hex
    with acl_user(server, "reader", ">right", "~*", "+@read"):
        for user, secret in (("reader", "right"), ("reader", password), ("nobody", password)):
            stream = opened(f"{server.url}/{name}", username=user, password=secret)
            with pytest.raises(AuthenticationError, match="event stream") as caught:
                stream.append([b"x"])
            shown = f"{caught.value} {stream!r} {caught.value.__cause__!r}"
            assert "FEATURESTORE_STREAMS_PASSWORD" in shown
            assert password not in shown


def test_a_server_that_lost_our_scripts(server, opened):
    stream = opened(f"{server.url}/{uuid4().hex}?partitions=2")
    consumer = stream.consumer(GROUP, "a")
    for number in range(3):
        server.command("SCRIPT", "FLUSH")
        stream.append(payloads(2_000, b"%d/" % number))
        server.command("SCRIPT", "FLUSH")
        found = drain(consumer, 2_000)
        server.command("SCRIPT", "FLUSH")
        consumer.commit(newest(found))
    assert sum(consumer.lag().values()) == 0
    consumer.close()
