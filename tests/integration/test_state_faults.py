"""States in Redis when it is killed, hangs, is full, a replica, lost its scripts, holds rows."""

from __future__ import annotations

import random
import threading
import time

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.clock import SystemClock
from featurestore.errors import (
    AuthenticationError,
    RequestError,
    StorageError,
)
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.testing.online import packed
from featurestore.testing.valkey import ValkeyServer, acl_user, wait_until
from tests.integration.faults import (
    FIELDS,
    GONE,
    KEYS,
    SLACK,
    SPACE,
    a_replica_of_nobody,
    changes,
    counted_trips,
    driver_of,
    each_answer,
    emptied,
    full,
    looks_like,
    opened,
    restarted_amid_idle_connections,
    took,
    versions,
)
from tests.integration.wire import Listener, answer, fall_deaf, hang_up, silent

KILLS = 8


@pytest.fixture(scope="module")
def shared():
    """A server that each test leaves running, empty and as it was."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def server(shared):
    return emptied(shared)


@pytest.fixture
def store(server):
    yield from opened(server.url)


@pytest.fixture
def raw(server):
    yield from driver_of(server)


def calls(store, keys=KEYS):
    return {
        "read_states": lambda: versions(store, keys),
        "write_states": lambda: store.write_states(changes(1, None, keys)),
    }


def test_a_server_killed_amid_changes():
    """What was told of is there, also after the server's death; every state is whole."""
    chance = random.Random(19)  # noqa: S311
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with ValkeyServer(options=options) as server:
        store = RedisOnlineStore.from_url(server.url, timeout=5)
        told = [None] * len(KEYS)
        for kill in range(KILLS):
            with pytest.raises(GONE):
                _change_until_killed(store, told, server, chance)
            server.start()
            found = versions(store)
            # Of the call that was cut off some changes were made and some not, none twice.
            assert {new - old for old, new in zip(told, found, strict=True)} <= {0, 1}
            assert max(found) >= kill
            told = found
        store.close()


def _change_until_killed(store, told, server, chance):
    """Change all states again and again; the server dies after the first time, at any moment."""
    killer = None
    start = time.monotonic()
    try:
        while True:
            new = [0 if old is None else old + 1 for old in told]
            batch = [
                changes(*step)[0] for step in zip(new, told, [[key] for key in KEYS], strict=True)
            ]
            assert store.write_states(batch) == [True] * len(KEYS)
            told[:] = new
            if killer is None:
                lasted = time.monotonic() - start
                killer = threading.Timer(chance.uniform(0, 3 * lasted), server.stop)
                killer.start()
    finally:
        if killer is not None:
            killer.join()


def test_states_of_a_server_that_is_stopped_and_comes_back(store, server):
    assert all(store.write_states(changes(1, None)))
    server.stop()
    for name, call in calls(store).items():
        assert took(call) < SLACK, name
    server.start()
    assert versions(store) == [None] * len(KEYS)
    assert store.write_states(changes(2, 1)) == [False] * len(KEYS)
    assert store.write_states(changes(2, None)) == [True] * len(KEYS)
    assert versions(store) == [2] * len(KEYS)


def test_state_connections_that_the_server_closed(store, server):
    """After a restart every idle connection is dead; no call fails for it."""
    for kind in ("read_states", "write_states"):
        restarted_amid_idle_connections(store, server, 4, calls(store)[kind])


def test_changes_while_a_server_hangs(store, server):
    """Who gave up reads again: each change was made whole or not, and never a second time."""
    store.write_states(changes(1, None))
    hasty = RedisOnlineStore.from_url(server.url, timeout=0.2)
    assert all(hasty.write_states(changes(2, 1)))  # has a connection and the script
    server.pause()
    try:
        for name, call in calls(hasty).items():
            assert 0.2 <= took(call) < 0.2 + SLACK, name
        assert 0.2 <= took(lambda: hasty.write_states(changes(3, 2))) < 0.2 + SLACK
        waited = took(lambda: store.read_states([StateRead(KEYS[0], FIELDS)], timeout=0.05))
        assert 0.05 <= waited < 0.05 + SLACK
    finally:
        server.resume()
    # What was given up may be made even after somebody has read, but of one version one change.
    assert set(versions(store)) <= {2, 3}
    made = store.write_states(changes(4, 2))
    assert versions(store) == [4 if is_made else 3 for is_made in made]
    assert all(
        store.write_states(changes(5, 4 if is_made else 3, [key]))[0]
        for key, is_made in zip(KEYS, made, strict=True)
    )
    # Answers to what was given up must not be taken for answers to what is asked now.
    for i in range(50):
        assert hasty.write_states(changes(6, 5, KEYS[i : i + 1])) == [True]
        assert hasty.write_states(changes(6, 5, KEYS[i : i + 1])) == [False]
        assert versions(hasty, [KEYS[i], KEYS[-1]]) == [6, 5]
    hasty.close()


def test_a_server_that_takes_no_changes_in():
    with Listener(fall_deaf) as deaf:
        store = RedisOnlineStore.from_url(deaf.url, timeout=0.3)
        store.ping()
        large = changes(1, None, size=20_000)
        assert 0.3 <= took(lambda: store.write_states(large)) < 0.3 + SLACK
        store.close()


@pytest.mark.parametrize(("kind", "connections"), [("read_states", 2), ("write_states", 1)])
def test_changes_are_never_sent_again(kind, connections):
    with Listener(hang_up) as rude:
        store = RedisOnlineStore.from_url(rude.url, timeout=5)
        assert took(calls(store)[kind]) < SLACK
        assert rude.accepted == connections
        store.close()
    with Listener(silent) as mute:
        store = RedisOnlineStore.from_url(mute.url, timeout=0.2)
        assert took(calls(store)[kind]) < 0.2 + SLACK
        assert mute.accepted == 1
        store.close()


@each_answer
@pytest.mark.parametrize("kind", ["read_states", "write_states"])
def test_each_answer_to_states_has_its_error(text, error, kind):
    with Listener(answer(f"-{text}\r\n".encode())) as server:
        store = RedisOnlineStore.from_url(server.url, timeout=5)
        with pytest.raises(error) as caught:
            calls(store, KEYS[:1])[kind]()
        assert type(caught.value) is error
        looks_like(text, caught.value, server.url)
        store.close()


def test_a_row_where_a_state_is_expected(store, raw):
    """A clear error, and nothing of the script is done, whatever stands before the row."""
    row = packed(1)
    store.write(KEYS[5:6], [row], None)
    for call in (
        lambda: versions(store, KEYS[:10]),
        lambda: store.write_states(changes(1, None, KEYS[:10])),
        lambda: store.write_states(changes(1, 0, KEYS[5:6])),
    ):
        with pytest.raises(StorageError, match="something else under a key") as caught:
            call()
        assert "WRONGTYPE" in str(caught.value)
        assert caught.value.hint
    assert raw.keys() == [KEYS[5]]
    assert store.read(KEYS[5:6]) == [row]
    others = KEYS[:5] + KEYS[6:10]
    assert all(store.write_states(changes(1, None, others)))
    assert versions(store, others) == [1] * len(others)


def test_what_is_refused_is_not_sent():
    with Listener(silent) as mute:
        store = RedisOnlineStore.from_url(mute.url, timeout=5)
        with pytest.raises(RequestError, match="same key"):
            store.write_states(changes(1, None) + changes(2, None, KEYS[:1]))
        assert store.write_states([]) == []
        assert store.read_states([]) == ([], [])
        assert mute.accepted == 0
        store.close()


def test_states_and_rows_in_one_round_trip(store, monkeypatch):
    rows = [key + b"row" for key in KEYS]
    store.write(rows, [packed(i) for i in range(len(rows))], None)
    store.write_states(changes(1, None))
    trips = counted_trips(monkeypatch)
    found, values = store.read_states([StateRead(key, [VERSION]) for key in KEYS], rows)
    assert trips == [1]
    assert found == [[b"1"]] * len(KEYS)
    assert values == [packed(i) for i in range(len(rows))]
    assert all(store.write_states(changes(2, 1)))
    assert trips == [1, 1]


def test_state_scripts_that_the_server_forgot(store, server):
    for version in (1, 2, 3):
        server.command("SCRIPT", "FLUSH")
        old = None if version == 1 else version - 1
        assert store.write_states(changes(version, old)) == [True] * len(KEYS)
        assert versions(store) == [version] * len(KEYS)


def test_a_server_that_states_fill(store, server):
    """The change that finds no memory is not made, those before it are; none is half made."""
    size = 5_000
    store.write_states(changes(1, None, size=size))
    more = [SPACE + b"more%d" % i for i in range(1_000)]
    with full(server):
        with pytest.raises(StorageError, match="out of memory") as caught:
            store.write_states(changes(2, 1, size=size))
        assert "maxmemory" in caught.value.hint
        assert versions(store, size=size) == [1] * len(KEYS)
        used = int(server.command("INFO", "memory").split("used_memory:")[1].split()[0])
        server.command("CONFIG", "SET", "maxmemory", used + 5_000_000)
        with pytest.raises(StorageError, match="out of memory"):
            store.write_states(changes(2, None, more, size=size))
        found = versions(store, more, size=size)
        assert set(found) == {2, None}
    again = store.write_states(changes(2, None, more, size=size))
    assert again == [version is None for version in found]
    assert versions(store, more, size=size) == [2] * len(more)


def test_states_of_a_replica(store, server):
    store.write_states(changes(1, None))
    with a_replica_of_nobody(server):
        with pytest.raises(StorageError, match="read-only replica") as caught:
            store.write_states(changes(2, 1))
        assert "primary" in caught.value.hint
        assert versions(store) == [1] * len(KEYS)
        server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
        assert took(lambda: versions(store)) < SLACK
    assert all(store.write_states(changes(2, 1)))


def test_users_and_what_they_may_do_with_states(store, server):
    store.write_states(changes(1, None))
    hour = SystemClock().now_us() + 3_600_000_000

    def user(*rules):
        return acl_user(server, "ann", ">pw", "~*", *rules)

    def open_as_ann():
        return RedisOnlineStore.from_url(server.url, username="ann", password="pw")  # noqa: S106

    with user("-@all", "+hmget", "+ping"):
        ann = open_as_ann()
        assert versions(ann) == [1] * len(KEYS)
        with pytest.raises(AuthenticationError, match="ann"):
            ann.write_states(changes(2, 1))
    with user("-@all", "+hmget", "+ping", "+evalsha", "+script|load", "+hget"):
        ann = open_as_ann()
        with pytest.raises(AuthenticationError, match="permissions"):
            ann.write_states(changes(2, 1))
        assert versions(ann) == [1] * len(KEYS)
    least = "+ping +hmget +mget +evalsha +script|load +hget +hset +hdel +persist +pexpireat +time"
    with user("-@all", *least.split()):
        ann = open_as_ann()
        assert all(ann.write_states(changes(2, 1, expires_us=hour)))
        assert all(ann.write_states(changes(3, 2)))
        assert ann.read_states([StateRead(KEYS[0], [VERSION])], [SPACE]) == ([[b"3"]], [None])


def test_when_states_expire(store, raw):
    """To the millisecond, rounded up; each change that is made brings its own, a lost one none."""
    key, now = KEYS[0], SystemClock().now_us()
    hour = now + 3_600_000_000
    written = [None]

    def write(expiry):
        old, new = written[-1], len(written)
        made = store.write_states(changes(new, old, [key], expires_us=expiry))
        written.append(new)
        assert made == [True]
        return raw.pexpiretime(key)

    assert write(0) == -1
    for expiry in (hour, hour + 1, hour - 999, hour // 1000 * 1000, hour + 10**9, hour):
        assert write(expiry) == -(-expiry // 1000)
    assert store.write_states(changes(99, 98, [key], expires_us=hour + 10**9)) == [False]
    assert raw.pexpiretime(key) == -(-hour // 1000)
    assert write(0) == -1
    assert write((1 << 63) - 1) == -(-((1 << 63) - 1) // 1000)
    for past in (1, -1, -(1 << 63), now - 10**6, now + 10**6):
        assert now // 1000 + 59_000 < write(past) < now // 1000 + 90_000
    # Gone as a whole, it begins anew.
    raw.pexpire(key, 1)
    wait_until(lambda: not raw.exists(key), what="the state to expire")
    assert versions(store, [key]) == [None]
    assert store.write_states(changes(99, written[-1], [key])) == [False]
    assert store.write_states(changes(1, None, [key])) == [True]
    assert raw.pexpiretime(key) == -1
    assert versions(store, [key]) == [1]


def test_a_large_change_goes_alone(store, raw):
    """A state of many fields neither meets Lua's limits nor holds what comes beside it back."""
    many = {b"%d" % i: b"x" * (i % 300) for i in range(20_001)}
    big = StateChange(SPACE + b"big", None, {**many, VERSION: b"1"})
    assert store.write_states([*changes(1, None), big]) == [True] * (len(KEYS) + 1)
    assert raw.hlen(big.key) == len(many) + 1
    fewer = StateChange(big.key, b"1", {VERSION: b"2"}, list(many))
    assert store.write_states([fewer, *changes(2, 1)]) == [True] * (len(KEYS) + 1)
    assert raw.hgetall(big.key) == {VERSION: b"2"}
    assert versions(store) == [2] * len(KEYS)
