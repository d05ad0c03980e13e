"""LMDB when processes are killed, stopped or forked, and when disks are full or not its own.

Real processes run `lmdb_worker.py`.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.lmdb.store import _stored_key
from featurestore.errors import OnlineStoreUnavailableError, StorageError
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
from tests.integration.lmdb_worker import KEYS, SPACE, VERSIONS, rows

KILLS = 8


@pytest.fixture
def path(tmp_path):
    return tmp_path / "online"


@pytest.fixture
def store(path):
    yield from opened(path)


def dump(store):
    with store._environment.handle().begin() as txn:
        return dict(txn.cursor())


def test_a_writer_killed_amid_a_batch(store, path):
    store.write(KEYS, rows(1), None)
    for calls in (0, 1, 777, len(KEYS) - 1):
        with Worker("die_in_batch", path, 2, calls) as writer:
            writer.process.communicate()
            assert writer.process.returncode == -signal.SIGKILL
        assert store.read(KEYS) == rows(1)
    with Worker("die_in_batch", path, 2, len(KEYS)) as writer:
        writer.finish()
    assert store.read(KEYS) == rows(2)


def test_a_writer_killed_at_any_time(store, path, tmp_path):
    chance, version = random.Random(11), 0  # noqa: S311
    for _ in range(KILLS):
        with Worker("write_versions", path, version) as writer:
            for _ in range(chance.randint(1, 3)):
                version = int(writer.line())
            writer.kill_within(chance, 0.005)  # about a transaction
        # Batches behind the last acknowledged one are there whole or not at all.
        found = store.read(KEYS)
        version = found[0][-5]
        assert found == rows(version)
        assert dump(store) == dict(zip(KEYS, found, strict=True))
    assert version < VERSIONS - 1
    with Worker("write_versions", path, 0) as writer:
        writer.finish()
    never_killed = LmdbOnlineStore(tmp_path / "other")
    for each in range(VERSIONS):
        never_killed.write(KEYS, rows(each), None)
    assert dump(store) == dump(never_killed)
    never_killed.close()


def test_a_killed_reader_keeps_no_pages(store, path):
    store.write(KEYS, rows(1), None)
    with Worker("hold_read", path) as reader:
        assert reader.line() == "reading"
        pid = str(reader.process.pid)
        assert pid in store._environment.handle().readers().split()
        reader.kill()
    store.write(KEYS, rows(2), None)
    assert pid not in store._environment.handle().readers().split()
    assert store.read(KEYS) == rows(2)


def test_a_writer_that_does_not_end(store, path):
    store.write(KEYS, rows(1), None)
    impatient = LmdbOnlineStore(path, timeout=0.2)
    with a_writer_that_does_not_end(path, lambda: impatient.write(KEYS, rows(2), None)):
        assert impatient.read(KEYS) == rows(1)
    assert impatient.write(KEYS, rows(2), None) == len(KEYS)
    impatient.close()


def test_writers_wait_for_one_another(path):
    stores = [LmdbOnlineStore(path, timeout=30) for _ in range(2)]
    with Worker("write_versions", path, 0) as first, Worker("write_versions", path, 0) as second:
        for version in range(VERSIONS):
            stores[version % 2].write(KEYS[::-1], rows(version)[::-1], None)
        first.finish()
        second.finish()
    assert stores[0].read(KEYS) == rows(VERSIONS - 1)
    for store in stores:
        store.close()


def test_a_full_map_grows(path):
    store = LmdbOnlineStore(path, map_size=1 << 20)
    for version in (1, 2, 3):
        assert store.write(KEYS, rows(version), None) == len(KEYS)
        assert store.read(KEYS) == rows(version)
    more = [key + b"%d" % i for key in KEYS for i in range(5)]
    assert store.write(more, rows(1, more), None) == len(more)
    assert store.read(more) == rows(1, more)
    assert store._environment.handle().info()["map_size"] > 1 << 20
    store.close()


@pytest.mark.parametrize("first", ["read", "write"])
def test_a_map_that_another_process_grew(path, first):
    store = LmdbOnlineStore(path, map_size=1 << 20)
    store.write(KEYS, rows(1), None)
    map_size = store._environment.handle().info()["map_size"]
    with Worker("grow", path) as other:
        other.finish()
    assert (path / "data.mdb").stat().st_size > map_size
    if first == "write":
        assert store.write(KEYS, rows(3), None) == len(KEYS)
    expected = rows(3 if first == "write" else 2)
    found = []
    threads = [threading.Thread(target=lambda: found.append(store.read(KEYS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == [expected] * 4
    assert store.count(SPACE) == 4 * len(KEYS)
    store.close()


def test_a_full_disk(path):
    finds_no_room("fill_disk", path)
    store = LmdbOnlineStore(path)
    assert store.read(KEYS) == rows(2)
    store.close()


def test_a_file_that_is_no_database(path):
    path.mkdir()
    (path / "data.mdb").write_bytes(b"\x00 this is something else" * 1_000)
    with pytest.raises(StorageError, match="no LMDB database") as caught:
        LmdbOnlineStore(path)
    assert str(path) in str(caught.value)
    assert "materialize again" in str(caught.value)
    (path / "data.mdb").unlink()
    LmdbOnlineStore(path).close()


def test_a_folder_that_is_a_file(path):
    path.write_text("not a folder")
    for wrong in (path, path / "below"):
        with pytest.raises(StorageError, match="cannot be used"):
            LmdbOnlineStore(wrong)


def test_a_folder_that_may_not_be_written():
    with tempfile.TemporaryDirectory() as folder:
        for place in ("here", "here/below"):
            path = Path(folder) / place
            Path(folder).chmod(0o755)
            (Path(folder) / "here").mkdir(exist_ok=True)
            (Path(folder) / "here").chmod(0o555)
            with Worker("unprivileged", path) as worker:
                line = worker.line()
                worker.finish()
            assert line.startswith("The folder of the online store cannot be used."), line
            assert "Permission denied" in line
            assert str(path) in line


def test_a_database_that_may_not_be_written():
    with tempfile.TemporaryDirectory() as folder:
        store = LmdbOnlineStore(folder)
        store.write(KEYS, rows(1), None)
        store.close()
        Path(folder).chmod(0o755)
        for file in Path(folder).iterdir():
            file.chmod(0o444)
        with Worker("unprivileged", folder) as worker:
            line = worker.line()
            worker.finish()
        assert "Permission denied" in line
        assert folder in line


def test_long_keys_never_meet_others(store):
    long = SPACE + b"k" * 600
    stored = _stored_key(long)
    assert len(stored) == 511
    assert store.write([long], [packed(2)], None) == 1
    # A key that is what another is stored under, and one that hashes alike.
    assert store.read([stored]) == [None]
    assert store.write([stored], [packed(1)], None) == 1
    assert store.read([long, stored, stored[:-1]]) == [packed(2), packed(1), None]
    with store._environment.handle().begin(write=True) as txn:
        other = SPACE + b"k" * 599 + b"x"
        txn.put(stored, len(other).to_bytes(4, "big") + other + packed(3))
    assert store.read([long]) == [None]


def test_stores_over_one_folder_share_it(path):
    first, second = LmdbOnlineStore(path), LmdbOnlineStore(path.parent / "." / path.name)
    first.write([KEYS[0]], [packed(1)], None)
    first.close()
    first.close()
    with pytest.raises(OnlineStoreUnavailableError, match="closed"):
        first.read(KEYS)
    with pytest.raises(OnlineStoreUnavailableError, match="closed"):
        first.write(KEYS, rows(1), None)
    assert second.read([KEYS[0]]) == [packed(1)]
    second.close()
    third = LmdbOnlineStore(path)
    assert third.read([KEYS[0]]) == [packed(1)]
    third.close()


@pytest.mark.parametrize("anew", [True, False])
def test_a_folder_that_was_replaced(path, anew):
    """Nothing is written to where nobody would find it; who opens the folder now gets the new."""
    old = LmdbOnlineStore(path)
    old.write(KEYS, rows(1), None)
    shutil.rmtree(path)
    if anew:
        new = LmdbOnlineStore(path)
        assert new.read(KEYS[:1]) == [None]
        assert new.write(KEYS, rows(2), None) == len(KEYS)
    with pytest.raises(StorageError, match="replaced" if anew else "No such file"):
        old.write(KEYS, rows(3), None)
    assert old.read(KEYS) == rows(1)
    old.close()
    if anew:
        new.close()
    store = LmdbOnlineStore(path)
    assert store.read(KEYS) == (rows(2) if anew else [None] * len(KEYS))
    store.close()


def test_a_fork_amid_reads_and_writes(store):
    """Child and parent go on with the one store object, and neither harms the other."""
    store.write(KEYS, rows(1), None)
    versions = itertools.count(2)

    def work():
        store.write(KEYS[:100], rows(next(versions))[:100], None)
        assert store.read(KEYS[100:]) == rows(1)[100:]

    def child(number):
        key = SPACE + b"child%d" % number
        right = store.write([key], [packed(number)], None) == 1
        right = right and store.read([key]) == [packed(number)]
        right = right and store.read(KEYS[100:]) == rows(1)[100:]
        handle = store._environment.handle()
        with handle.begin():  # under its own name, not under its parent's
            right = right and str(os.getpid()) in handle.readers().split()
        del handle
        store.close()
        return right

    with meanwhile(work):
        for number in range(10):
            fork(partial(child, number))
    assert store.read([SPACE + b"child%d" % i for i in range(10)]) == [packed(i) for i in range(10)]
    assert store.write(KEYS[100:], rows(2)[100:], None) == len(KEYS) - 100
    assert store._environment.handle().reader_check() == 0
