"""Entries of a Redis stream as ours: what an id means as a position, where the payload stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore.errors import DataError
from featurestore.ports.stream_laws import SEQUENCE_BITS, SEQUENCES, accepted_at, position_of
from featurestore.ports.streams import POSITION_BITS, Entry

_FIELD = b"payload"
_MILLISECONDS = 1 << (POSITION_BITS - SEQUENCE_BITS)


def entries_from(partition: str, key: str, found: Sequence[Any]) -> list[Entry]:
    """Return what a read of one key found, up to the first entry that cannot be told.

    Args:
        partition: The name of the key's partition.
        key: The key, for messages.
        found: [id, fields and values] of each entry.

    Raises:
        DataError: The id of the very first one makes no position.
    """
    entries: list[Entry] = []
    for entry_id, fields in found:
        try:
            position = position_from(entry_id, key)
        except DataError:
            if entries:
                break
            raise
        payload = fields[1] if fields[0] == _FIELD else _payload(fields)
        entries.append(Entry(partition, position, accepted_at(position), payload))
    return entries


def position_from(entry_id: bytes, key: str) -> int:
    """Return the position that an id makes.

    Raises:
        DataError: It makes none: too many entries came in its millisecond, or that is too far
            ahead. Our own appends make no such id.
    """
    millisecond, _, sequence = entry_id.partition(b"-")
    ms, seq = int(millisecond), int(sequence)
    if seq >= SEQUENCES or ms >= _MILLISECONDS:
        raise DataError(
            "An entry of the stream has an id that makes no position.",
            where=f"stream '{key}'",
            got=entry_id.decode(),
            allowed=f"up to {SEQUENCES} entries a millisecond, before the year 2109",
            hint=f"Append its payload again, then delete it: XDEL {key} {entry_id.decode()}.",
        )
    return position_of(ms, seq)


def _payload(fields: Sequence[bytes]) -> bytes:
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == _FIELD:
            return value
    return b""
