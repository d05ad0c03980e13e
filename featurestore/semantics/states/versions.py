"""Versions of events as a state keeps them, and which of two of them counts (law W1).

Of an event the winning version is kept: the highest one, or on a tie that of larger canonical
bytes. It lies at its instant, unless it is a deletion. As long as a beaten version may come again
and could be reached, the winner is also kept at the latest instant of all versions seen, as a guard
that does not count. So merging is a semilattice: any order, any repetition, any grouping.

A page is a field of versions:

    kind       1 byte    0
    count      4 bytes
    ids        4 bytes   the length of the part of ids
    rows       each: place, version (8 bytes each), flags (1), tail (4: its length), then the inputs
               of fixed width as `semantics.rows` packs them
    ids        0xff, then each id and 0xff: UTF-8 has no such byte
    tails      each: the instant where flags say that it is not the place, inputs of varying width
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from featurestore.semantics.rows import RowSchema
from featurestore.semantics.states.layout import damaged
from featurestore.semantics.states.schema import StateSchema

PAGE, INNER = 0, 1
DELETED, MOVED = 1, 2
SEPARATOR = b"\xff"
HEAD = struct.Struct("<BII")
FIXED = struct.Struct("<qqBI")
INSTANT = struct.Struct("<q")
EMPTY = HEAD.pack(PAGE, 0, 1) + SEPARATOR


class Version(NamedTuple):
    """A version of an event.

    Attributes:
        place: The instant that it lies at.
        id: The event's id.
        flags: DELETED, MOVED where it does not lie at its instant; it counts only without both.
        version: Its number.
        instant: When it happened.
        payload: Its inputs, as `semantics.rows` packs them.
    """

    place: int
    id: bytes
    flags: int
    version: int
    instant: int
    payload: bytes


def settle(schema: RowSchema, versions: Sequence[Version]) -> tuple[Version, ...]:
    """Return what is kept of an event after all of these versions, none of them lost.

    Args:
        schema: How inputs are packed.
        versions: One or more, of one event: delivered ones, and what `settle` returned.
    """
    highest = max(v.version for v in versions)
    best = [v for v in versions if v.version == highest]
    winner = best[0] if len(best) == 1 else max(best, key=lambda v: canonical(schema, v))
    latest = max(max(v.place, v.instant) for v in versions)
    _, event_id, flags, number, instant, payload = winner
    if flags & DELETED:
        flags = DELETED if latest == instant else DELETED | MOVED
        return (Version(latest, event_id, flags, number, instant, payload),)
    live = Version(instant, event_id, 0, number, instant, payload)
    if latest == instant:
        return (live,)
    return live, Version(latest, event_id, MOVED, number, instant, payload)


def is_many(versions: Sequence[Version], rows: int, size: int) -> bool:
    """Return whether versions are more than so many, or some of them larger than so many bytes."""
    if len(versions) > rows:
        return True
    return len(versions) > 1 and sum(len(v.payload) + len(v.id) for v in versions) > size


def canonical(schema: RowSchema, version: Version) -> bytes:
    """Return the bytes that settle a tie: instant, deletion and inputs packed as one row."""
    count = schema.bitmap_bytes
    bits = int.from_bytes(version.payload[:count], "little") << 2 | 3
    wide = (len(schema.names) + 2 + 7) // 8
    deleted = bytes((version.flags & DELETED,))
    head = bits.to_bytes(wide, "little") + INSTANT.pack(version.instant) + deleted
    return head + version.payload[count:]


def pack_page(schema: StateSchema, versions: Iterable[Version]) -> bytes:
    """Return the bytes of a page, its versions in their order of place and id."""
    ordered = sorted(versions)
    size = schema.inputs.fixed_bytes
    rows: list[bytes] = []
    ids, tails = [SEPARATOR], list[bytes]()
    for place, event_id, flags, number, instant, payload in ordered:
        tail = payload[size:]
        if flags & MOVED:
            tail = INSTANT.pack(instant) + tail
        rows += (FIXED.pack(place, number, flags, len(tail)), payload[:size])
        ids += (event_id, SEPARATOR)
        tails.append(tail)
    named = b"".join(ids)
    return b"".join((HEAD.pack(PAGE, len(ordered), len(named)), *rows, named, *tails))


def read_page(schema: StateSchema, data: bytes) -> list[Version]:
    """Return the versions of a page.

    Raises:
        DataError: It is damaged.
    """
    try:
        versions, end = _versions(schema.inputs.fixed_bytes, data)
    except (struct.error, ValueError) as error:
        raise damaged(schema.view, f"a page of {len(data)} bytes") from error
    if end != len(data):
        raise damaged(schema.view, f"a page of {len(data)} bytes instead of {end}")
    return versions


def _versions(size: int, data: bytes) -> tuple[list[Version], int]:
    row = _row(size)
    _, count, named = HEAD.unpack_from(data)
    start = HEAD.size
    stop = start + count * row.size
    ids = data[stop : stop + named].split(SEPARATOR)[1:-1]
    at = stop + named
    versions = []
    rows = row.iter_unpack(data[start:stop])
    for event_id, (place, number, flags, tail, fixed) in zip(ids, rows, strict=True):
        end = at + tail
        instant = place
        if flags & MOVED:
            (instant,) = INSTANT.unpack_from(data, at)
            at += INSTANT.size
        payload = fixed + data[at:end] if end > at else fixed
        versions.append(Version(place, event_id, flags, number, instant, payload))
        at = end
    return versions, at


@lru_cache(maxsize=256)
def _row(size: int) -> struct.Struct:
    return struct.Struct(f"{FIXED.format}{size}s")
