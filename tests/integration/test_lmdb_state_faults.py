"""States in LMDB when processes are killed, stuck or forked, and when the map or the disk is full.

Real processes run `lmdb_worker.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import threading
import time
from functools import partial

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.lmdb import store as store_module
from featurestore.errors import OnlineStoreUnavailableError, StorageError
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.testing.online import packed
from tests.integration.lmdb_faults import (
    DEADLINE,
    Worker,
    a_writer_that_does_not_end,
    finds_no_room,
    fork,
    meanwhile,
    opened,
)
from tests.integration.lmdb_worker import (
    FIELDS,
    KEYS,
    SPACE,
    next_version,
    rows,
    state_version,
    states,
)

KILLS = 20
NEW_KILLS = 6


@pytest.fixture
def path(tmp_path):
    return tmp_path / "online"


@pytest.fixture
def store(path):
    yield from opened(path)


def dump(path):
    """All entries, of both databases, by a driver of its own."""
    store = LmdbOnlineStore(path)
    env = store._environment.handle()
    found = {}
    for name in (None, *env.dbs()):
        with env.begin(db=env.open_db(name, create=False) if name else None) as txn:
            found |= {(name, key): value for key, value in txn.cursor() if key != b"states"}
    del env, txn
    store.close()
    return found


def test_a_writer_of_states_killed_at_any_time(store, path, tmp_path):
    """Each call's changes are there whole, all of them, or none; what was told of is there."""
    chance, told, further = random.Random(13), -1, 0  # noqa: S311
    for _ in range(KILLS):
        with Worker("write_state_versions", path) as writer:
            assert writer.line() == "open"
            writer.line()
            start = time.monotonic()
            told = int(writer.line())
            writer.kill_within(chance, 2 * (time.monotonic() - start))  # two calls
        version = state_version(store)
        assert version >= told
        further += version > told
        assert store.count(SPACE) == len(KEYS)
    # Some had ended the next call, and some had not.
    assert 0 < further < KILLS
    # A writer that dies between its commit and telling the readers leaves them at the state before
    # until somebody writes; the file has the newer one.
    version = max(int(value) for (_, key), value in dump(path).items() if key.endswith(b"v"))
    never_killed = LmdbOnlineStore(tmp_path / "other")
    never_killed.write_states(states(version - 1, None))
    never_killed.write_states(states(version, version - 1))
    never_killed.close()
    assert dump(path) == dump(tmp_path / "other")


def test_the_first_writer_of_states_killed_at_any_time(tmp_path):
    """Also where the database of states was about to be made."""
    chance = random.Random(17)  # noqa: S311
    for kill in range(NEW_KILLS):
        path = tmp_path / str(kill)
        store = LmdbOnlineStore(path, timeout=10)
        store.write(KEYS[:3], rows(1)[:3], None)
        with Worker("write_state_versions", path) as writer:
            assert writer.line() == "open"
            writer.kill_within(chance, 0.03)
        version = next_version(store)
        assert state_version(store) == version
        assert store.read(KEYS[:4]) == [*rows(1)[:3], None]
        store.close()


def test_processes_that_change_the_same_states(store, path):
    keys, steps = KEYS[:5], 40
    with Worker("count_up", path, steps) as first, Worker("count_up", path, steps) as second:
        first.finish()
        second.finish()
    found, _ = store.read_states([StateRead(key, [VERSION]) for key in keys])
    assert found == [[b"%d" % (2 * steps)]] * len(keys)


def test_states_that_another_process_makes_first(store, path):
    """Who had the file open before there were states sees them, counts, changes, deletes them."""
    assert state_version(store) is None
    assert store.count(SPACE) == store.delete_namespace(SPACE) == 0
    others = [LmdbOnlineStore(path) for _ in range(2)]
    with Worker("write_state_versions", path) as writer:
        writer.finish()
    assert state_version(store) == 29
    assert others[0].count(SPACE) == len(KEYS)
    assert others[1].write_states(states(30, 29)) == [True] * len(KEYS)
    assert state_version(store) == 30
    assert others[0].delete_namespace(SPACE) == len(KEYS)
    for other in others:
        other.close()


def test_states_made_first_amid_reads(tmp_path):
    """Threads read and write, in a file with states and in one without, when the first comes."""
    few = KEYS[:50]

    def look(store):
        state_version(store, few)
        assert store.read(KEYS[:1]) == rows(1)[:1]

    def write_rows(store):
        store.write(KEYS[1:3], rows(2)[1:3], None)

    for attempt in range(8):
        path, old = tmp_path / str(attempt), None
        with contextlib.closing(LmdbOnlineStore(path)) as first:
            first.write(KEYS[:1], rows(1)[:1], None)
            if attempt % 2:
                old = 0
                first.write_states(states(0, None, few))
        store = LmdbOnlineStore(path, timeout=DEADLINE)
        with meanwhile(*(partial(work, store) for work in (look, look, write_rows))):
            for version in range(1, 4):
                assert all(store.write_states(states(version, old, few)))
                old = version
        assert state_version(store, few) == 3
        store.close()


def test_a_handle_for_states_is_taken_between_reads(path):
    """LMDB would take it from a writer when a reader ends that looked for it at the same time."""
    few = KEYS[:5]
    with contextlib.closing(LmdbOnlineStore(path)) as first:
        first.write_states(states(0, None, few))
    store = LmdbOnlineStore(path, timeout=DEADLINE)
    environment = store._environment

    def keep():
        with environment.exclusive(DEADLINE):
            environment._keep_states(create=False)

    def read(txn):
        handle = environment.states(txn)
        writer.start()
        writer.join(0.2)  # it would end if it did not wait for this read
        return txn.stat(handle)["entries"]

    writer = threading.Thread(target=keep)
    assert environment.read(read, DEADLINE) == 5 * len(few)
    writer.join(DEADLINE)
    assert store.write_states(states(1, 0, few)) == [True] * len(few)
    assert state_version(store, few) == 1
    assert all(store.write_states(states(2, 1, few)))
    assert state_version(store, few) == 2
    store.close()


def test_a_map_that_states_fill(path):
    store = LmdbOnlineStore(path, map_size=1 << 20)
    for version in range(3):
        old = None if version == 0 else version - 1
        assert all(store.write_states(states(version, old)))
        assert state_version(store) == version
    more = [key + b"%d" % i for key in KEYS for i in range(5)]
    assert all(store.write_states(states(7, None, more)))
    assert state_version(store, more) == 7
    assert state_version(store) == 2
    assert store._environment.handle().info()["map_size"] > 1 << 20
    store.close()


def test_a_map_that_another_process_grew_by_states(path):
    store = LmdbOnlineStore(path, map_size=1 << 20)
    assert all(store.write_states(states(0, None, KEYS[:5])))
    map_size = store._environment.handle().info()["map_size"]
    with Worker("grow", path) as worker:
        worker.finish()
    assert (path / "data.mdb").stat().st_size > map_size
    assert state_version(store, KEYS[:5]) == 0
    assert all(store.write_states(states(1, 0, KEYS[:5])))
    assert state_version(store, KEYS[:5]) == 1
    store.close()


def test_a_disk_that_states_fill(path):
    finds_no_room("fill_disk_with_states", path)
    store = LmdbOnlineStore(path)
    assert state_version(store) == 2
    store.close()


def test_states_are_deleted_whole(store, monkeypatch):
    """Wherever a deletion is cut off, each state is there with all of its fields, or gone."""
    monkeypatch.setattr(store_module, "_WALK_KEYS", 7)
    few = KEYS[:20]
    store.write_states(states(2, None, few))
    store.write(KEYS[20:40], rows(1)[20:40], None)
    assert store.count(SPACE) == 40
    write, calls = store._environment.write, itertools.count()

    def cut_off(*arguments, **options):
        if next(calls) == 6:  # 20 rows in three, an empty one, two of states
            raise KeyboardInterrupt
        return write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store._environment, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            store.delete_namespace(SPACE)
    left = store.count(SPACE)
    assert 0 < left < 20
    assert state_version(store, few[:-left]) is None
    assert state_version(store, few[-left:]) == 2
    assert store.delete_namespace(SPACE) == left
    assert dump(store._environment.path) == {}


def test_states_while_a_writer_does_not_end(store, path):
    store.write_states(states(1, None))
    impatient = LmdbOnlineStore(path, timeout=0.2)
    with a_writer_that_does_not_end(path, lambda: impatient.write_states(states(2, 1))):
        assert state_version(impatient) == 1
    assert impatient.write_states(states(2, 1)) == [True] * len(KEYS)
    impatient.close()


def test_states_of_a_store_that_was_closed_or_replaced(path):
    store, gone = LmdbOnlineStore(path), LmdbOnlineStore(path)
    store.write_states(states(1, None))
    gone.close()
    for call in (lambda: state_version(gone), lambda: gone.write_states(states(2, 1))):
        with pytest.raises(OnlineStoreUnavailableError, match="closed"):
            call()
    shutil.rmtree(path)
    new = LmdbOnlineStore(path)
    with pytest.raises(StorageError, match="replaced"):
        store.write_states(states(2, 1))
    assert state_version(new) is None
    assert all(new.write_states(states(5, None)))
    assert state_version(store) == 1
    store.close()
    assert state_version(new) == 5
    new.close()


def test_states_of_a_file_without_any(path):
    """A file that was written before there were states, or by somebody who knows none."""
    import lmdb

    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(KEYS[0], packed(1))
    store = LmdbOnlineStore(path)
    assert store.read_states([StateRead(KEYS[1], [VERSION])], KEYS[:1]) == ([[None]], [packed(1)])
    assert all(store.write_states(states(1, None, KEYS[1:])))
    assert store.read(KEYS[:1]) == [packed(1)]
    assert store.count(SPACE) == len(KEYS)
    store.close()


def test_a_fork_amid_changes_of_states(store):
    """Child and parent go on with the one store object, and neither harms the other."""
    store.write_states(states(1, None))
    versions = itertools.count(2)

    def work():
        version = next(versions)
        assert all(store.write_states(states(version, version - 1, KEYS[:100])))
        assert state_version(store, KEYS[100:]) == 1

    def child(number):
        key, value = SPACE + b"child%d" % number, b"%d" % number
        right = store.write_states([StateChange(key, None, {VERSION: b"1", FIELDS[0]: value})])[0]
        right = right and store.read_states([StateRead(key, FIELDS[:1])]) == ([[value]], [])
        right = right and state_version(store, KEYS[100:]) == 1
        store.close()
        return right

    with meanwhile(work):
        for number in range(8):
            fork(partial(child, number))
    found, _ = store.read_states([StateRead(SPACE + b"child%d" % i, FIELDS[:1]) for i in range(8)])
    assert found == [[b"%d" % i] for i in range(8)]
    assert all(store.write_states(states(2, 1, KEYS[100:])))
    assert store._environment.handle().reader_check() == 0
