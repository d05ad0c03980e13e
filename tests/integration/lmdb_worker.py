"""What the processes of the LMDB tests do: `lmdb_worker.py WORK PATH ARGUMENT...`.

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
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.semantics.rows import is_newer
from featurestore.testing.online import packed

SPACE = b"\x00*space\xff"
KEYS = [SPACE + b"%05d" % i for i in range(1_500)]
VERSIONS = 30
FIELDS = [b"field%d" % i for i in range(4)]


def rows(version: int, keys: list[bytes] = KEYS) -> list[bytes]:
    """Return a row of half a kilobyte a key that tells its key and version in every part."""
    return [packed(version, payload=struct.pack(">II", version, i) * 60) for i in range(len(keys))]


def states(version: int, old: int | None, keys: list[bytes] = KEYS) -> list[StateChange]:
    """Return changes from one version of all states to another; every field tells the version."""
    expected = None if old is None else b"%d" % old
    value = struct.pack(">I", version) * 50
    # A field comes and goes from version to version.
    put = {VERSION: b"%d" % version, **dict.fromkeys(FIELDS[version % 2 :], value)}
    return [StateChange(key, expected, put, FIELDS[: version % 2]) for key in keys]


def state_version(store: LmdbOnlineStore, keys: list[bytes] = KEYS) -> int | None:
    """Return the version that all states have, each whole; None where there are none.

    Raises:
        AssertionError: They differ, or one is a mix.
    """
    found, _ = store.read_states([StateRead(key, [VERSION, *FIELDS]) for key in keys])
    (state,) = {tuple(state) for state in found}
    version = None if state[0] is None else int(state[0])
    if version is None:
        assert state == (None,) * len(state)
    else:
        (change,) = states(version, None, keys[:1])
        assert state == tuple(change.put.get(name) for name in (VERSION, *FIELDS))
    return version


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


def write_state_versions(path: str) -> None:
    """Change all states to one version after the other, from what is there, and tell each."""
    store = LmdbOnlineStore(path, timeout=30)
    say("open")
    for _ in range(VERSIONS):
        say(next_version(store))


def next_version(store: LmdbOnlineStore) -> int:
    """Change all states to the version behind the one that is there, and return it."""
    while True:
        version = state_version(store)
        new = 0 if version is None else version + 1
        made = store.write_states(states(new, version))
        if all(made):
            return new
        # Who was killed when its transaction was on disk, but had not told the readers: the next
        # writer finds it there, and tells them.
        assert not any(made)


def count_up(path: str, steps: str) -> None:
    """Add one to each of a few states so many times, against others who do."""
    store = LmdbOnlineStore(path, timeout=30)
    left = dict.fromkeys(KEYS[:5], int(steps))
    while left:
        found, _ = store.read_states([StateRead(key, [VERSION]) for key in left])
        changes = [
            StateChange(key, old, {VERSION: b"%d" % (int(old or b"0") + 1)})
            for key, (old,) in zip(left, found, strict=True)
        ]
        for change, made in zip(changes, store.write_states(changes), strict=True):
            left[change.key] -= made
        left = {key: rest for key, rest in left.items() if rest}


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


def fill_disk_with_states(path: str) -> None:
    """Change what does not fit the disk: no file may grow, as on a full one."""
    store = LmdbOnlineStore(path)
    store.write_states(states(1, None, KEYS[:10]))
    size = (Path(path) / "data.mdb").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        store.write_states(states(2, 1, KEYS[:10]) + states(2, None, KEYS[10:]))
    except StorageError as error:
        say(error.what)
    assert state_version(store, KEYS[:10]) == 1
    assert state_version(store, KEYS[10:]) is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert all(store.write_states(states(2, 1, KEYS[:10]) + states(2, None, KEYS[10:])))
    assert state_version(store) == 2


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
        write_state_versions,
        count_up,
        die_in_batch,
        hold_write_lock,
        hold_read,
        grow,
        fill_disk,
        fill_disk_with_states,
        unprivileged,
    )
}

if __name__ == "__main__":
    WORKS[sys.argv[1]](*sys.argv[2:])
