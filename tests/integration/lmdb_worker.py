"""What the processes of `test_lmdb_faults.py` do: `lmdb_worker.py WORK PATH ARGUMENT...`.

A worker says in one line what it has come to, and waits for a line where the test has to do
something first. It ends with status 0 when all went as it should.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from pathlib import Path

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.lmdb import store as module
from featurestore.errors import StorageError
from featurestore.semantics.rows import is_newer
from featurestore.testing.online import packed

SPACE = b"\x00*space\xff"
KEYS = [SPACE + b"%05d" % i for i in range(1_500)]
VERSIONS = 30


def rows(version: int, keys: list[bytes] = KEYS) -> list[bytes]:
    """Return a row of half a kilobyte a key that tells its key and version in every part."""
    return [packed(version, payload=struct.pack(">II", version, i) * 60) for i in range(len(keys))]


def say(word: object) -> None:
    """Tell the test something."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def wait() -> None:
    """Go on when the test says so."""
    sys.stdin.readline()


def write_versions(path: str, first: str) -> None:
    """Write one version of all rows after the other and tell each."""
    store = LmdbOnlineStore(path, timeout=30)
    everything = [rows(version) for version in range(VERSIONS)]
    for version in range(int(first), VERSIONS):
        store.write(KEYS, everything[version], None)
        say(version)


def die_in_batch(path: str, version: str, calls: str) -> None:
    """Write one version of all rows, and be killed after so many of them were compared."""
    left = int(calls)

    def compare(new: bytes, old: bytes) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return is_newer(new, old)

    module.is_newer = compare
    LmdbOnlineStore(path).write(KEYS, rows(int(version)), None)


def hold_write_lock(path: str) -> None:
    """Be a writer that does not end."""
    store = LmdbOnlineStore(path)
    environment = store._environment
    with environment.write_lock(5, store._clock), environment.handle().begin(write=True):
        say("locked")
        wait()


def hold_read(path: str) -> None:
    """Be a reader that does not end."""
    store = LmdbOnlineStore(path)
    with store._environment.handle().begin() as txn:
        txn.get(KEYS[0])
        say("reading")
        wait()


def grow(path: str) -> None:
    """Write what does not fit into the map that all have opened."""
    store = LmdbOnlineStore(path)
    store.write(KEYS, rows(2), None)
    more = [key + b"%d" % i for key in KEYS for i in range(3)]
    store.write(more, rows(2, more), None)


def fill_disk(path: str) -> None:
    """Write what does not fit the disk: no file may grow, as on a full one."""
    store = LmdbOnlineStore(path)
    store.write(KEYS[:10], rows(1)[:10], None)
    size = (Path(path) / "data.mdb").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        store.write(KEYS, rows(2), None)
    except StorageError as error:
        say(error.what)
    assert store.read(KEYS[:11]) == [*rows(1)[:10], None]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert store.write(KEYS, rows(2), None) == len(KEYS)
    assert store.read(KEYS) == rows(2)


def unprivileged(path: str) -> None:
    """Open a store as somebody whom permissions bind, also when the tests run as root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        LmdbOnlineStore(path).write(KEYS, rows(1), None)
    except StorageError as error:
        say(" ".join(str(error).split()))


WORKS = {
    work.__name__: work
    for work in (
        write_versions,
        die_in_batch,
        hold_write_lock,
        hold_read,
        grow,
        fill_disk,
        unprivileged,
    )
}

if __name__ == "__main__":
    WORKS[sys.argv[1]](*sys.argv[2:])
