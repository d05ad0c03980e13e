"""Redis behind sentinels: the primary is found, followed when it changes, and never mistaken."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.clock import SystemClock
from featurestore.errors import (
    AuthenticationError,
    OnlineStoreUnavailableError,
    SettingsError,
)
from featurestore.testing.online import packed
from featurestore.testing.online_states_machine import online_states_machine
from featurestore.testing.valkey import ValkeyServer, wait_until
from featurestore.testing.valkey_sentinel import FailoverGroup, ValkeySentinel
from tests.integration.fault_world import Callers, World, writing
from tests.integration.wire import Listener, answer, hang_up, silent, tls_proxy

GONE = OnlineStoreUnavailableError
KEYS = [b"sentinel%d" % i for i in range(50)]
PASSWORD, SENTINEL_PASSWORD = "data s3cret", "watch s3cret"
CLOCK = SystemClock()
LOGIN = {"password": PASSWORD, "sentinel_password": SENTINEL_PASSWORD}


def rows(event):
    return [packed(event, payload=b"%d" % i) for i in range(len(KEYS))]


@pytest.fixture(scope="module")
def group():
    """A primary and a replica that each test leaves as it found them."""
    with FailoverGroup() as group:
        yield group


@pytest.fixture
def store(group):
    group.primary().command("FLUSHALL")
    store = RedisOnlineStore.from_url(group.url, timeout=5)
    yield store
    store.close()


@pytest.fixture
def failing():
    """A group of its own, with passwords, for a test that kills."""
    with FailoverGroup(2, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD) as group:
        yield group


def took(call, error=GONE):
    start = CLOCK.monotonic()
    with pytest.raises(error) as caught:
        call()
    return CLOCK.monotonic() - start, str(caught.value)


def test_reads_and_writes_and_states_by_sentinel(store):
    from hypothesis.stateful import run_state_machine_as_test

    machine = online_states_machine(lambda: store)
    few = settings(max_examples=5, stateful_step_count=10, deadline=None)
    run_state_machine_as_test(machine, settings=few)
    assert store.write(KEYS, rows(2), None) == len(KEYS)
    assert store.write(KEYS, rows(1), None) == 0
    assert store.read([*KEYS, b"nothing there"]) == [*rows(2), None]
    assert store.count(KEYS[0][:8]) == len(KEYS)
    store.ping()
    assert store.cautions() == []
    assert store.delete_namespace(KEYS[0][:8]) == len(KEYS)


def test_a_primary_that_is_killed_under_lookups_and_writes(failing):
    """No restart, no mix, nothing acknowledged is lost; in between all are told in time."""
    with World(failing.url, LOGIN) as world:
        world.write()
        old = failing.primary()
        with Callers(world) as callers, writing(world) as failed:
            callers.wait()
            old.stop()
            callers.wait("OnlineStoreUnavailableError", 1)
            before = world.acknowledged
            new = failing.wait(1)
            wait_until(lambda: world.acknowledged > before + 5, what="writes")
            target = world.acknowledged
            wait_until(lambda: callers.newest >= target or callers.wrong, what="lookups")
        callers.check()
        assert new is not old
        assert {type(error) for error in failed} == {GONE}
        told = "".join([*callers.texts, *map(str, failed)])
        assert "s3cret" not in told
        assert failing.url in told
        # Who was the primary comes back as a replica, and nothing of it is served.
        old.start()
        failing.wait(2)
        world.write()
        with Callers(world) as again:
            again.wait()
        again.check()


def test_a_primary_that_hung_and_does_not_know_that_it_was_replaced(failing):
    """It is not read any more although connections to it are open, and takes no writes."""
    with World(failing.url, LOGIN) as world:
        world.write()
        old = failing.primary()
        with Callers(world) as callers, writing(world) as failed:
            callers.wait()
            old.pause()
            try:
                wait_until(
                    lambda: any(s is not old and failing._role(s) == "master"
                                for s in failing.servers if s is not old),
                    what="a new primary",
                )  # fmt: skip
                before = world.acknowledged
                wait_until(lambda: world.acknowledged > before + 5, what="writes")
            finally:
                old.resume()
            callers.wait(more=50)
            wait_until(lambda: failing._role(old) == "slave", what="the old one to follow")
            callers.wait(more=20)
        callers.check()
        assert {type(error) for error in failed} <= {GONE}


def test_a_failover_that_was_asked_for(store, group):
    """Scripts are told again, and a server that has become a replica is not called a fault."""
    store.write(KEYS, rows(1), None)
    old = group.primary()
    group.sentinels[0].command("SENTINEL", "FAILOVER", group.service)
    event = 1

    def written():
        nonlocal event
        event += 1
        try:
            store.write(KEYS, rows(event), None)
        except GONE:  # and nothing else
            return False
        assert store.read(KEYS) == rows(event)
        return group.primary() is not old

    wait_until(written, what="writes to the new primary")
    event += 1
    assert group.wait() is not old
    group.primary().command("SCRIPT", "FLUSH")
    assert store.write(KEYS, rows(event), None) == len(KEYS)
    assert store.read(KEYS) == rows(event)


def test_a_write_that_no_replica_has_is_not_done(store, group):
    """What a failover would lose is not acknowledged; without replicas it may be asked for."""
    store.write(KEYS, rows(1), None)
    primary = group.primary()
    (replica,) = [server for server in group.servers if server is not primary]
    hasty = RedisOnlineStore.from_url(group.url, timeout=0.5)
    replica.pause()
    try:
        waited, text = took(lambda: hasty.write(KEYS, rows(2), None))
        assert waited < 1.5
        assert "primary alone" in text
        assert "0 of 1 replicas" in text
        assert "replicas=0" in text
        careless = RedisOnlineStore.from_url(group.url + "?replicas=0", timeout=1)
        assert careless.write(KEYS, rows(3), None) == len(KEYS)
        assert store.read(KEYS) == rows(3)
        careless.close()
    finally:
        replica.resume()
    group.wait()
    assert hasty.write(KEYS, rows(4), None) == len(KEYS)
    assert took(
        lambda: RedisOnlineStore.from_url(group.url + "?replicas=2", timeout=0.3).write(
            KEYS, rows(5), None
        )
    )[0] < 1.3  # fmt: skip
    hasty.close()


def test_a_store_whose_replicas_are_gone_says_so(group):
    store = RedisOnlineStore.from_url(group.url + "?replicas=3", timeout=1)
    (caution,) = store.cautions()
    assert "1 of the 3 replicas" in caution
    store.close()


def test_sentinels_that_are_gone_or_hang_are_passed_over(group):
    (real,) = group.sentinels
    with (
        Listener(silent) as mute,
        Listener(hang_up) as rude,
        Listener(answer(b"-ERR odd\r\n")) as odd,
    ):
        hosts = [mute.port, rude.port, odd.port, 1, real.port]
        names = ",".join(f"127.0.0.1:{port}" for port in hosts)
        store = RedisOnlineStore.from_url(f"redis+sentinel://{names}/{group.service}", timeout=2)
        start = CLOCK.monotonic()
        store.ping()
        assert CLOCK.monotonic() - start < 2
        # From now on the one that answered is asked first.
        asked = mute.accepted
        store._routes.forget()
        start = CLOCK.monotonic()
        store.ping()
        assert CLOCK.monotonic() - start < 1
        assert mute.accepted == asked
        store.close()


def test_without_sentinels_what_was_known_goes_on(group):
    with ValkeySentinel(group.service, group.primary().port) as lone:
        url = f"redis+sentinel://127.0.0.1:{lone.port}/{group.service}?replicas=0"
        store = RedisOnlineStore.from_url(url, timeout=2)
        assert store.write(KEYS, rows(9), None) >= 0
        lone.stop()
        store._routes.forget()
        found = store.read(KEYS)
        assert None not in found
        fresh = RedisOnlineStore.from_url(url, timeout=0.5)
        for call in (lambda: fresh.read(KEYS), lambda: fresh.write(KEYS, rows(1), None)):
            waited, text = took(call)
            assert waited < 1.5
            assert "no sentinel names the primary" in text
            assert f"127.0.0.1:{lone.port}" in text
        store.close()


def test_a_service_that_no_sentinel_knows(group):
    store = RedisOnlineStore.from_url(group.url.replace(group.service, "other"), timeout=2)
    with pytest.raises(SettingsError, match="know no 'other'") as caught:
        store.ping()
    assert "sentinel monitor" in caught.value.hint
    store.close()


def test_a_replica_is_never_taken_for_the_primary(group):
    primary = group.primary()
    (replica,) = [server for server in group.servers if server is not primary]
    port = b"%d" % replica.port
    named = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)
    with Listener(answer(named)) as stale:
        url = f"redis+sentinel://127.0.0.1:{stale.port}/{group.service}"
        store = RedisOnlineStore.from_url(url, timeout=2)
        for call in (lambda: store.read(KEYS), lambda: store.write(KEYS, rows(1), None)):
            waited, text = took(call)
            assert waited < 1
            assert "changing its primary" in text
            assert f"127.0.0.1:{replica.port} is not the primary" in text
        store.close()


def test_passwords_of_both(failing):
    right = RedisOnlineStore.from_url(failing.url, timeout=2, **LOGIN)
    assert right.write(KEYS, rows(1), None) == len(KEYS)
    inside = failing.url.replace("//", "//:data%20s3cret@")
    also = RedisOnlineStore.from_url(inside, timeout=2, sentinel_password=SENTINEL_PASSWORD)
    assert also.read(KEYS) == rows(1)
    wrong = {
        "FEATURESTORE_ONLINE_SENTINEL_PASSWORD": [
            {"password": PASSWORD},
            {"password": PASSWORD, "sentinel_password": "no s3cret"},
        ],
        "FEATURESTORE_ONLINE_PASSWORD": [
            {"sentinel_password": SENTINEL_PASSWORD},
            {"sentinel_password": SENTINEL_PASSWORD, "password": "no s3cret"},
        ],
    }
    for variable, logins in wrong.items():
        for login in logins:
            store = RedisOnlineStore.from_url(failing.url, timeout=2, **login)
            with pytest.raises(AuthenticationError) as caught:
                store.read(KEYS)
            assert variable in caught.value.hint
            assert "s3cret" not in f"{caught.value!r} {caught.value} {store!r}"
            store.close()
    for store in (right, also):
        store.close()


def test_tls_to_sentinels_and_servers(tmp_path):
    with ValkeyServer() as server:
        data, certificate = tls_proxy(server.port, tmp_path)
        named = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(data.port)), data.port)
        with data, Listener(answer(named)) as plain:
            watch, _ = tls_proxy(plain.port, tmp_path)
            with watch:
                place = f"rediss+sentinel://127.0.0.1:{watch.port}/any"
                url = f"{place}?ssl_ca_certs={certificate}&replicas=0"
                store = RedisOnlineStore.from_url(url, timeout=5)
                assert store.write(KEYS, rows(1), None) == len(KEYS)
                assert store.read(KEYS) == rows(1)
                store.close()
                with pytest.raises(GONE, match=r"(?i)certificate"):
                    RedisOnlineStore.from_url(place, timeout=5).read(KEYS)


def test_many_threads_ask_once(group):
    store = RedisOnlineStore.from_url(group.url, timeout=5)
    barrier, found = threading.Barrier(8), []

    def read():
        barrier.wait(10)
        found.append(store.read(KEYS[:2]))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    store.close()
