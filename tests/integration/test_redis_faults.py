"""Redis when it is gone, hangs, drips, is full, a replica, refuses the user, lost its scripts."""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings

import pytest

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.redis.script import NEWER_WINS
from featurestore.clock import SystemClock
from featurestore.errors import (
    AuthenticationError,
    StorageError,
)
from featurestore.testing.online import fresh_namespace, packed
from featurestore.testing.valkey import ValkeyServer, acl_user, wait_until
from tests.integration.faults import (
    GONE,
    KEYS,
    SLACK,
    SPACE,
    a_replica_of_nobody,
    driver_of,
    each_answer,
    emptied,
    full,
    looks_like,
    opened,
    restarted_amid_idle_connections,
    rows,
    took,
)
from tests.integration.wire import Listener, answer, drip, fall_deaf, hang_up, silent, tls_proxy

PASSWORD = "s3cret pa/ss@wörd"  # noqa: S105
WRONG = "wrong-" + PASSWORD


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


def calls(store):
    return {
        "read": lambda: store.read(KEYS),
        "write": lambda: store.write(KEYS, rows(1), None),
        "ping": store.ping,
        "count": lambda: store.count(SPACE),
        "delete": lambda: store.delete_namespace(SPACE),
    }


def in_threads(count, call):
    """Call from so many threads at once, each through a connection of its own."""
    results, barrier = [], threading.Barrier(count)

    def run():
        barrier.wait(10)
        results.append(call())

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_a_server_that_is_stopped_and_comes_back(store, server):
    assert store.write(KEYS, rows(1), None) == len(KEYS)
    server.stop()
    for name, call in calls(store).items():
        assert took(call) < SLACK, name
    server.start()
    store.ping()
    assert store.read(KEYS[:2]) == [None, None]
    assert store.write(KEYS, rows(2), None) == len(KEYS)
    assert store.read(KEYS) == rows(2)


def test_connections_that_the_server_closed(store, server):
    """After a restart every idle connection is dead; no call fails for it."""
    for kind in ("read", "write", "count"):
        restarted_amid_idle_connections(store, server, 8, calls(store)[kind])


def test_a_server_that_hangs(store, server):
    store.write(KEYS, rows(1), None)
    server.pause()
    try:
        for timeout in (0.05, 0.3):
            waited = took(lambda timeout=timeout: store.read(KEYS, timeout=timeout))
            assert timeout <= waited < timeout + SLACK
            waited = took(lambda timeout=timeout: store.ping(timeout=timeout))
            assert timeout <= waited < timeout + SLACK
        assert took(lambda: store.read(KEYS, timeout=0)) < SLACK
        hasty = RedisOnlineStore.from_url(server.url, timeout=0.2)
        for name, call in calls(hasty).items():
            assert 0.2 <= took(call) < 0.2 + SLACK, name
        assert took(lambda: hasty.read(KEYS, timeout=60)) < 0.2 + SLACK
    finally:
        server.resume()
    # Answers to what was given up must not be taken for answers to what is asked now.
    for i in range(50):
        assert store.read([KEYS[i], KEYS[-i]]) == [rows(1)[i], rows(1)[-i]]
    assert hasty.write(KEYS, rows(2), None) == len(KEYS)
    assert store.read(KEYS) == rows(2)
    hasty.close()


def test_a_server_that_drips(store):
    with Listener(drip) as slow:
        store = RedisOnlineStore.from_url(slow.url, timeout=30)
        assert 0.3 <= took(lambda: store.read(KEYS, timeout=0.3)) < 0.3 + SLACK
        store.close()


def test_a_server_that_takes_nothing_in():
    """A large batch fills the buffers of a server that does not read."""
    with Listener(fall_deaf) as deaf:
        store = RedisOnlineStore.from_url(deaf.url, timeout=30)
        store.ping()
        long = [key + b"x" * 50_000 for key in KEYS]
        assert 0.3 <= took(lambda: store.read(long, timeout=0.3)) < 0.3 + SLACK
        store.close()


@pytest.mark.parametrize(("kind", "connections"), [("read", 2), ("write", 1), ("ping", 1)])
def test_no_storm_of_retries(kind, connections):
    with Listener(hang_up) as rude:
        store = RedisOnlineStore.from_url(rude.url, timeout=5)
        assert took(calls(store)[kind]) < SLACK
        assert rude.accepted == connections
        store.close()


def test_a_timeout_is_not_tried_again():
    with Listener(silent) as mute:
        store = RedisOnlineStore.from_url(mute.url, timeout=0.2)
        assert took(lambda: store.read(KEYS)) < 0.2 + SLACK
        assert mute.accepted == 1
        store.close()


@each_answer
@pytest.mark.parametrize("kind", ["read", "write", "ping", "count", "delete"])
def test_each_answer_has_its_error(text, error, kind):
    with Listener(answer(f"-{text}\r\n".encode())) as server:
        store = RedisOnlineStore.from_url(server.url, timeout=5)
        few = {
            "read": lambda: store.read(KEYS[:1]),
            "write": lambda: store.write(KEYS[:1], rows(1)[:1], None),
        }
        with pytest.raises(error) as caught:
            (calls(store) | few)[kind]()
        assert type(caught.value) is error
        looks_like(text, caught.value, server.url)
        store.close()


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x01\x02", b"220 ok\r\n"]
)
def test_a_server_of_another_kind(reply):
    with Listener(answer(reply)) as server:
        store = RedisOnlineStore.from_url(server.url, timeout=1)
        assert took(lambda: store.read(KEYS)) < 1 + SLACK
        store.close()


def test_a_name_that_does_not_exist():
    store = RedisOnlineStore.from_url("redis://no-such-host.invalid:6379", timeout=5)
    with pytest.raises(GONE, match="no-such-host"):
        store.read(KEYS)


def test_a_busy_server(store, server):
    store.write(KEYS, rows(1), None)
    server.command("CONFIG", "SET", "busy-reply-threshold", 1)
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        other.sendall(b"*3\r\n$4\r\nEVAL\r\n$17\r\nwhile true do end\r\n$1\r\n0\r\n")
        wait_until(lambda: _busy(store), what="the script")
        with pytest.raises(GONE, match="SCRIPT KILL"):
            store.write(KEYS, rows(2), None)
        server.command("SCRIPT", "KILL")
        assert other.recv(100).startswith(b"-")
    assert store.read(KEYS) == rows(1)


def _busy(store):
    try:
        store.ping()
    except GONE as error:
        return "BUSY" in str(error)
    return False


def test_scripts_that_the_server_forgot(store, server):
    for event in (1, 2, 3):
        server.command("SCRIPT", "FLUSH")
        assert store.write(KEYS, rows(event), None) == len(KEYS)
        assert store.read(KEYS) == rows(event)
    assert in_threads(4, lambda: store.write(KEYS, rows(3), None)) == [0] * 4


def test_a_full_server(store, server):
    store.write(KEYS, rows(1), None)
    with full(server):
        with pytest.raises(StorageError, match="out of memory") as caught:
            store.write(KEYS, rows(2), None)
        assert "maxmemory" in caught.value.hint
        assert store.read(KEYS) == rows(1)
    assert store.write(KEYS, rows(2), None) == len(KEYS)


def test_a_replica(store, server):
    store.write(KEYS, rows(1), None)
    with a_replica_of_nobody(server):
        with pytest.raises(StorageError, match="read-only replica") as caught:
            store.write(KEYS, rows(2), None)
        assert "primary" in caught.value.hint
        assert store.read(KEYS) == rows(1)
        server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
        assert took(lambda: store.read(KEYS)) < SLACK
    assert store.write(KEYS, rows(2), None) == len(KEYS)


def test_passwords():
    with ValkeyServer(password=PASSWORD) as server:
        right = RedisOnlineStore.from_url(server.url, password=PASSWORD)
        assert right.write(KEYS, rows(1), None) == len(KEYS)
        inside = server.url.replace("//", "//:s3cret%20pa%2Fss%40w%C3%B6rd@")
        assert RedisOnlineStore.from_url(inside).read(KEYS) == rows(1)
        refused = [
            RedisOnlineStore.from_url(server.url),
            RedisOnlineStore.from_url(server.url, password=WRONG),
            RedisOnlineStore.from_url(server.url, username="nobody", password=PASSWORD),
            RedisOnlineStore.from_url(inside, password=WRONG),
        ]
        for store in refused:
            for name, call in calls(store).items():
                with pytest.raises(AuthenticationError) as caught:
                    call()
                for secret in (PASSWORD, WRONG, "s3cret"):
                    assert secret not in f"{caught.value!r} {caught.value} {store!r}", name
        server.stop()
        for store in (right, *refused):
            with pytest.raises(GONE) as gone:
                store.read(KEYS)
            assert "s3cret" not in str(gone.value)


def test_users_and_what_they_may_do(store, server):
    store.write(KEYS, rows(1), None)

    def user(*rules):
        return acl_user(server, "ann", ">pw", "~*", *rules)

    def open_as_ann():
        return RedisOnlineStore.from_url(server.url, username="ann", password="pw")  # noqa: S106

    with user("-@all", "+mget", "+scan", "+ping"):
        ann = open_as_ann()
        assert ann.read(KEYS) == rows(1)
        assert ann.count(SPACE) == len(KEYS)
        for call in (calls(ann)["write"], calls(ann)["delete"]):
            with pytest.raises(AuthenticationError, match="ann"):
                call()
    # The script may be run, what it does inside may not be done.
    with user("-@all", "+mget", "+evalsha", "+script|load", "+ping"):
        ann = open_as_ann()
        with pytest.raises(AuthenticationError, match="permissions"):
            ann.write(KEYS, rows(2), None)
        assert ann.read(KEYS) == rows(1)
    least = "+mget +scan +unlink +ping +evalsha +script|load +mset +set +persist +pexpireat +time"
    with user("-@all", *least.split()):
        ann = open_as_ann()
        assert ann.write(KEYS, rows(2), None) == len(KEYS)
        future = [SystemClock().now_us() + 10**9] * len(KEYS)
        assert ann.write(KEYS, rows(3), future) == len(KEYS)
        assert ann.write(KEYS, rows(3), None) == 0
        assert ann.write(KEYS, rows(3), future) == 0
        ann.ping()
        assert ann.delete_namespace(SPACE) == len(KEYS)
    with user("-@all"), pytest.raises(AuthenticationError):
        open_as_ann().ping()


def test_when_values_expire(store, raw):
    """To the millisecond, rounded up; a newer row brings its own; the same row the later one."""
    key, now = KEYS[0], SystemClock().now_us()
    hour = now + 3_600_000_000

    def write(event, expiry):
        store.write([key], [packed(event)], None if expiry is None else [expiry])
        return raw.pexpiretime(key)

    for event, expiry in enumerate((hour, hour + 1, hour - 999, hour // 1000 * 1000)):
        assert write(event, expiry) == -(-expiry // 1000)
    assert write(10, 0) == -1
    assert write(11, hour) == -(-hour // 1000)
    assert write(12, None) == -1
    assert write(20, hour) == -(-hour // 1000)
    assert write(20, hour - 10**9) == -(-hour // 1000)
    assert write(20, hour + 10**9) == -(-(hour + 10**9) // 1000)
    assert write(19, hour + 10**12) == -(-(hour + 10**9) // 1000)
    assert write(20, 0) == -1
    assert write(20, hour) == -1
    assert write(21, hour) == -(-hour // 1000)
    assert write(21, None) == -1
    assert write(22, (1 << 63) - 1) == -(-((1 << 63) - 1) // 1000)
    for event, past in enumerate((1, -1, -(1 << 63), now - 10**6, now + 10**6), start=30):
        assert now // 1000 + 59_000 < write(event, past) < now // 1000 + 90_000
    assert store.read([key]) == [packed(34)]


def test_the_script_compares_as_the_law_does(raw):
    """Under the locale of Lua, and for values too short to be rows, bytes are bytes."""
    from featurestore.semantics.rows import is_newer

    script = NEWER_WINS.partition("local n, won")[0] + "return newer(ARGV[1], ARGV[2]) and 1 or 0"
    newer = raw.register_script(script)
    tails = [b"", b"\0", b"a", b"B", b"\x7f", b"\x80", b"\xff", b"\xff\0", b"\xc3\xa4", b"z\xff"]
    values = [b"fpfp" + head + tail for tail in tails for head in (b"", b"o" * 15, b"o" * 16)]
    values += [b"", b"fp", b"gpgp" + b"o" * 16]
    for new in values:
        answers = [newer(args=[new, old]) for old in values]
        assert answers == [is_newer(new, old) for old in values]


def test_a_fork_amid_reads(store):
    store.write(KEYS, rows(1), None)
    in_threads(4, lambda: store.read(KEYS))
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            right = all(store.read([KEYS[i]]) == [rows(1)[i]] for i in range(50))
            os._exit(0 if right else 1)
        assert all(store.read([KEYS[-i]]) == [rows(1)[-i]] for i in range(1, 50))
        assert os.waitpid(pid, 0)[1] == 0


def test_a_closed_store_holds_no_connection(server):
    def connections():
        return server.command("CLIENT", "LIST").count("\n")

    wait_until(lambda: connections() == 1, what="the connections of other tests to close")
    store = RedisOnlineStore.from_url(server.url)
    in_threads(3, lambda: store.read(KEYS))
    assert connections() > 1
    store.close()
    wait_until(lambda: connections() == 1, what="the connections to close")


def test_tls(server, store, tmp_path):
    proxy, certificate = tls_proxy(server.port, tmp_path)
    with proxy:
        url = proxy.url.replace("redis://", "rediss://")
        secure = RedisOnlineStore.from_url(f"{url}?ssl_ca_certs={certificate}", timeout=10)
        large = [packed(2, payload=os.urandom(3_000) + b"%d" % i) for i in range(len(KEYS))]
        assert secure.write(KEYS, large, None) == len(KEYS)
        assert secure.read(KEYS) == large
        assert store.read(KEYS) == large
        server.pause()
        try:
            assert 0.3 <= took(lambda: secure.read(KEYS, timeout=0.3)) < 0.3 + SLACK
        finally:
            server.resume()
        assert secure.read(KEYS) == large
        for untrusting in (url, f"{url}?ssl_cert_reqs=required"):
            with pytest.raises(GONE, match=r"(?i)certificate"):
                RedisOnlineStore.from_url(untrusting, timeout=10).read(KEYS)
        secure.close()
    # A server that does not speak TLS.
    plain = server.url.replace("redis://", "rediss://")
    assert took(lambda: RedisOnlineStore.from_url(plain, timeout=1).read(KEYS)) < 1 + SLACK


def test_other_databases_are_other_stores(server, store):
    other = RedisOnlineStore.from_url(server.url + "/3")
    space = fresh_namespace()
    other.write([space], [packed(1)], None)
    assert store.read([space]) == [None]
    assert store.delete_namespace(space) == 0
    assert other.read([space]) == [packed(1)]
    other.close()
