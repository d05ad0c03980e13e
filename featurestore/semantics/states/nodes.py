"""Inner nodes of a state's tree as bytes: for each part the merged states of what lies in it.

kind       1 byte    1
parts      4 bytes   how many
numbers    each: which part (8 bytes), how many events count in it (8), for each family the
           length of its state (4)
states     one after the other, part by part
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from featurestore.semantics.states.layout import damaged
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import INNER

_HEAD = struct.Struct("<BI")


@dataclass(slots=True)
class Summary:
    """What a part of a node comes to.

    Attributes:
        count: How many events count in it.
        states: The merged state of each family, as canonical bytes.
    """

    count: int
    states: list[bytes]


@dataclass(slots=True)
class Inner:
    """An inner node: what each part comes to, by part."""

    parts: dict[int, Summary] = field(default_factory=dict)


def pack_inner(schema: StateSchema, node: Inner) -> bytes:
    """Return the bytes of an inner node, its parts in order."""
    row = _row(schema)
    parts = [_HEAD.pack(INNER, len(node.parts))]
    states: list[bytes] = []
    for part, summary in sorted(node.parts.items()):
        parts.append(row.pack(part, summary.count, *map(len, summary.states)))
        states += summary.states
    return b"".join((*parts, *states))


def read_inner(schema: StateSchema, data: bytes) -> Inner:
    """Return an inner node.

    Raises:
        DataError: It is damaged.
    """
    row = _row(schema)
    try:
        _, count = _HEAD.unpack_from(data)
        at = _HEAD.size + count * row.size
        numbers = list(row.iter_unpack(data[_HEAD.size : at]))
    except struct.error as error:
        raise damaged(schema.view, f"a node of {len(data)} bytes") from error
    parts = {}
    for part, events, *lengths in numbers:
        ends = list(accumulate(lengths, initial=at))
        parts[part] = Summary(events, [data[a:b] for a, b in pairwise(ends)])
        at = ends[-1]
    if at != len(data):
        raise damaged(schema.view, f"a node of {len(data)} bytes instead of {at}")
    return Inner(parts)


def _row(schema: StateSchema) -> struct.Struct:
    return struct.Struct(f"<qQ{len(schema.families)}I")
