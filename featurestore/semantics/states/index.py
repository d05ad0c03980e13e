"""The index of a state: where in time the versions of an event lie, told by a hash of its id.

Entries are a hash and a place; buckets are told by the hash's lowest bits, and there are ever more
of them, so that a look-up reads some hundred bytes however many events there are. A hash may be
shared: what is found is a candidate only. Entries from before the horizon are let go on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable

from featurestore.semantics.states.layout import Header, bucket_name, id_hash
from featurestore.semantics.states.versions import Version

# Buckets are made four times as many when there are this many entries to one.
_FULL = 64
_GROWTH_BITS = 2
_ENTRY = struct.Struct("<Iq")
_HASH = struct.Struct("<I")

Needs = Generator[set[bytes], None, None]
"""Asks for fields, which are there when it goes on."""


class Index:
    """The buckets of one state that were looked at.

    Args:
        header: The state's; counts entries and buckets.
        fields: All fields of the state that were read.
    """

    def __init__(self, header: Header, fields: dict[bytes, bytes | None]) -> None:
        self._header = header
        self._fields = fields
        self._entries: dict[int, list[tuple[int, int]]] = {}
        self.touched: set[int] = set()

    def load(self, ids: Iterable[bytes]) -> Needs:
        """Ask for the buckets of these ids."""
        yield {bucket_name(self._bucket(id_hash(event_id))) for event_id in ids}

    def places(self, hashed: int) -> list[int]:
        """Return where versions of events of this hash may lie."""
        return [place for held, place in self._of(self._bucket(hashed)) if held == hashed]

    def add(self, hashed: int, place: int) -> None:
        """Add an entry."""
        bucket = self._bucket(hashed)
        self._of(bucket).append((hashed, place))
        self.touched.add(bucket)
        self._header.indexed += 1

    def remove(self, hashed: int, place: int) -> None:
        """Take away one entry, if it is still there."""
        bucket = self._bucket(hashed)
        entries = self._of(bucket)
        if (hashed, place) in entries:
            entries.remove((hashed, place))
            self.touched.add(bucket)
            self._header.indexed -= 1

    def grow(self, more: int) -> Needs:
        """Make as many buckets as entries need, once there are so many more of them."""
        header = self._header
        wanted = header.buckets
        while header.indexed + more > _FULL << wanted:
            wanted += _GROWTH_BITS
        if wanted == header.buckets:
            return
        yield {bucket_name(bucket) for bucket in range(1 << header.buckets)}
        entries = [e for bucket in range(1 << header.buckets) for e in self._of(bucket)]
        header.buckets = wanted
        self._entries = {bucket: [] for bucket in range(1 << wanted)}
        for entry in entries:
            self._entries[self._bucket(entry[0])].append(entry)
        self.touched = set(self._entries)

    def changes(self) -> dict[bytes, bytes | None]:
        """Return the fields that changed, None for one that is gone."""
        changed: dict[bytes, bytes | None] = {}
        for bucket in self.touched:
            entries = self._entries[bucket]
            kept = [entry for entry in entries if entry[1] >= self._header.horizon]
            self._header.indexed -= len(entries) - len(kept)
            data = b"".join([_ENTRY.pack(*entry) for entry in sorted(kept)])
            changed[bucket_name(bucket)] = data or None
        return changed

    def _bucket(self, hashed: int) -> int:
        return hashed & ((1 << self._header.buckets) - 1)

    def _of(self, bucket: int) -> list[tuple[int, int]]:
        entries = self._entries.get(bucket)
        if entries is None:
            data = self._fields[bucket_name(bucket)]
            entries = [] if data is None else list(_ENTRY.iter_unpack(data))
            self._entries[bucket] = entries
        return entries


def entries_of(versions: Iterable[Version]) -> list[tuple[int, int]]:
    """Return the entry of each version."""
    return [(id_hash(version.id), version.place) for version in versions]
