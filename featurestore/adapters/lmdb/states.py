"""How states lie in LMDB: each field an entry of its own, in a database beside that of the rows.

A change of a few fields so costs a few entries, however many the state has, and a read touches
only what it asks for; a state's entries are neighbours. Knows transactions only: who opens, locks
and retries is `environment`.

    namespace   8 bytes
    length      2 bytes   of the whole key, big-endian; 65535 where a hash stands for the rest
    rest                  of the key, or a hash of 32 bytes of the whole
    field       1 to 64 bytes

No entry's beginning is the beginning of another state's. LMDB takes 511 bytes for all of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.ports.online_laws import FIELD_BYTES, NAMESPACE_BYTES

_LENGTH = struct.Struct(">H")
_HEAD_BYTES = NAMESPACE_BYTES + _LENGTH.size
_DIGEST_BYTES = 32
_HASHED = _LENGTH.pack(0xFFFF)
# Behind all fields of a state, and as long as an entry's key may be.
_BEHIND = b"\xff" * (FIELD_BYTES + 1)
_LONGEST = 511 - len(_BEHIND) - _LENGTH.size


def read_states(txn: Any, states: Any, reads: Sequence[StateRead]) -> list[list[bytes | None]]:
    """Return the fields of each state as of a transaction.

    Args:
        txn: Of any kind.
        states: The database; None where there is none.
        reads: The states.
    """
    if states is None:
        return [[None] * len(read.fields) for read in reads]
    return [
        list(map(txn.get, _entries(read.key, read.fields), repeat(None), repeat(states)))
        for read in reads
    ]


def write_states(txn: Any, states: Any, changes: Sequence[StateChange]) -> list[bool]:
    """Make each change whose state is as expected; return which were made."""
    made = [False] * len(changes)
    put: list[tuple[bytes, bytes]] = []
    delete: list[bytes] = []
    # Sorted, neighbours land on one page, which is copied once.
    for position in sorted(range(len(changes)), key=lambda i: changes[i].key):
        change = changes[position]
        prefix = _prefix(change.key)
        if txn.get(prefix + VERSION, None, states) != change.expected:
            continue
        made[position] = True
        put += [(prefix + name, value) for name, value in change.put.items()]
        delete += [prefix + name for name in change.delete if len(name) <= FIELD_BYTES]
    for entry in delete:
        txn.delete(entry, b"", states)
    with txn.cursor(states) as cursor:
        cursor.putmulti(put)
    return made


def delete_some(txn: Any, states: Any, namespace: bytes, entries: int) -> int:
    """Delete states of a namespace, each whole, until so many entries are gone; return how many."""
    deleted = gone = 0
    with txn.cursor(states) as cursor:
        cursor.set_range(namespace)
        while gone < entries and cursor.key().startswith(namespace):
            prefix = _prefix_of(cursor.key())
            deleted += 1
            while cursor.key().startswith(prefix):
                cursor.delete()
                gone += 1
    return deleted


def states_after(
    txn: Any, states: Any, namespace: bytes, last: bytes | None, limit: int
) -> list[bytes]:
    """Return what the entries of the next states of a namespace begin with, at most so many."""
    found: list[bytes] = []
    with txn.cursor(states) as cursor:
        there = cursor.set_range(namespace if last is None else last + _BEHIND)
        while there and len(found) < limit and cursor.key().startswith(namespace):
            found.append(_prefix_of(cursor.key()))
            there = cursor.set_range(found[-1] + _BEHIND)
    return found


def _entries(key: bytes, fields: Iterable[bytes]) -> list[bytes]:
    prefix = _prefix(key)
    return [prefix + name for name in fields]


def _prefix(key: bytes) -> bytes:
    """Return what the entries of a state begin with."""
    if len(key) > _LONGEST:
        # At 256 bits no two keys meet.
        digest = hashlib.blake2b(key, digest_size=_DIGEST_BYTES).digest()
        return key[:NAMESPACE_BYTES] + _HASHED + digest
    return key[:NAMESPACE_BYTES] + _LENGTH.pack(len(key)) + key[NAMESPACE_BYTES:]


def _prefix_of(entry: bytes) -> bytes:
    length = entry[NAMESPACE_BYTES:_HEAD_BYTES]
    rest = _DIGEST_BYTES + NAMESPACE_BYTES if length == _HASHED else _LENGTH.unpack(length)[0]
    return entry[: rest + _LENGTH.size]
