"""Fields of a state: their names, the header, and the levels of time (law O4).

    v          the header
    r          recent versions of events, a page
    n...       a node of the tree: its level, its place in time, below an instant its hash
    x...       a bucket of the index from event ids to instants

A state without a tree has the first two only. A node of one level covers a span of time; the top
one covers all. What happened in one microsecond is parted by a hash of event ids, which no window's
edge cuts. All field names that a window needs follow from its edges, without a directory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from zlib import crc32

from featurestore.errors import DataError
from featurestore.semantics.rows import FINGERPRINT_BYTES
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.windows import DAY, HOUR, MINUTE, SECOND

HEADER, RECENT = b"v", b"r"
NEVER = -(2**63)

INSTANT = 4
"""The level whose nodes cover one microsecond; those below part it by hash."""
SPANS = (
    1,
    40,
    1000,
    40_000,
    SECOND,
    10 * SECOND,
    MINUTE,
    10 * MINUTE,
    HOUR,
    6 * HOUR,
    DAY,
    8 * DAY,
    64 * DAY,
    512 * DAY,
)
"""Microseconds that a node covers, from level `INSTANT` upwards."""
TOP = INSTANT + len(SPANS)
NO_TREE = TOP + 1
_HASH_BITS = 6

Node = tuple[int, int, int]
"""(level, place, hash): the place is the start over the span, the hash 0 from `INSTANT` upwards."""
ROOT: Node = (TOP, 0, 0)

_NODE = struct.Struct(">cBq")
_HASHED = struct.Struct(">cBqI")
_BUCKET = struct.Struct(">cI")
_HEADER = struct.Struct(f"<{FINGERPRINT_BYTES}sQqqqIBIB")
_NAME = struct.Struct("<H")
_POSITION = struct.Struct("<q")
_COUNTER_MASK = 2**64 - 1


@dataclass(slots=True)
class Header:
    """What leads a state.

    Attributes:
        counter: Differs after each change.
        horizon: Events before this may have been dropped; `NEVER` where none was.
        swept: The horizon when nodes were last dropped.
        latest: The last instant of all versions.
        settled: How many recent versions were kept when the last ones were dropped.
        buckets: The binary logarithm of the number of buckets of the index.
        indexed: How many entries the index has.
        depth: The lowest level of the tree, `NO_TREE` without one.
        applied: {stream partition: the highest position seen}.
    """

    counter: int
    horizon: int = NEVER
    swept: int = NEVER
    latest: int = NEVER
    settled: int = 0
    buckets: int = 0
    indexed: int = 0
    depth: int = NO_TREE
    applied: dict[str, int] = field(default_factory=dict)

    def packed(self, fingerprint: bytes) -> bytes:
        """Return the header's bytes."""
        fixed = _HEADER.pack(
            fingerprint,
            self.counter & _COUNTER_MASK,
            self.horizon,
            self.swept,
            self.latest,
            self.settled,
            self.buckets,
            self.indexed,
            self.depth,
        )
        return fixed + pack_applied(self.applied) if self.applied else fixed


def pack_applied(applied: dict[str, int]) -> bytes:
    """Return positions as bytes, partitions in order."""
    parts: list[bytes] = []
    for partition, position in sorted(applied.items()):
        name = partition.encode()
        parts += (_NAME.pack(len(name)), name, _POSITION.pack(position))
    return b"".join(parts)


def read_header(schema: StateSchema, data: bytes) -> Header:
    """Return the header of a state.

    Raises:
        DataError: It was written under another schema (law O4), or is cut short.
    """
    if not data.startswith(schema.fingerprint):
        raise DataError(
            f"A stored state of '{schema.view}' was written under another schema; it is not read.",
            got=data[:FINGERPRINT_BYTES].hex(),
            allowed=schema.fingerprint.hex(),
            hint="Materialize the view again, or apply the definition that wrote it.",
        )
    try:
        _, *fixed = _HEADER.unpack_from(data)
        applied = _read_applied(data) if len(data) > _HEADER.size else {}
    except (struct.error, UnicodeDecodeError) as error:
        raise damaged(schema.view, f"a header of {len(data)} bytes") from error
    header = Header(*fixed)
    header.applied = applied
    return header


def _read_applied(data: bytes) -> dict[str, int]:
    applied = {}
    at = _HEADER.size
    while at < len(data):
        (size,) = _NAME.unpack_from(data, at)
        at += _NAME.size
        name = data[at : at + size].decode()
        at += size
        (applied[name],) = _POSITION.unpack_from(data, at)
        at += _POSITION.size
    return applied


def damaged(view: str, got: str) -> DataError:
    """Return the error of a state that is garbled."""
    return DataError(
        f"A stored state of '{view}' is damaged.",
        got=got,
        allowed="what was written",
        hint="Materialize the view again.",
    )


def node_name(node: Node) -> bytes:
    """Return the field of a node."""
    level, place, hashed = node
    if level >= INSTANT:
        return _NODE.pack(b"n", level, place)
    return _HASHED.pack(b"n", level, place, hashed)


def bucket_name(bucket: int) -> bytes:
    """Return the field of a bucket of the index."""
    return _BUCKET.pack(b"x", bucket)


def id_hash(event_id: bytes) -> int:
    """Return the hash of an event's id, 32 bits."""
    return crc32(event_id)


def span_of(level: int) -> int:
    """Return how many microseconds a node of a level below the top covers."""
    return SPANS[max(level, INSTANT) - INSTANT]


def above(node: Node) -> tuple[Node, int]:
    """Return the node above one that is not the root, and which part of it this one is."""
    level, place, hashed = node
    if level < INSTANT - 1:
        return (level + 1, place, hashed & _mask(level + 1)), hashed
    if level == INSTANT - 1:
        return (INSTANT, place, 0), hashed
    if level == TOP - 1:
        return ROOT, place
    return (level + 1, place * span_of(level) // span_of(level + 1), 0), place


def part_of(node: Node, instant: int, hashed: int) -> int:
    """Return which part of a node an event falls in: a place, or a hash below an instant."""
    level = node[0] - 1
    if level >= INSTANT:
        return instant // SPANS[level - INSTANT]
    return hashed & _mask(level)


def _mask(level: int) -> int:
    return (1 << _HASH_BITS * (INSTANT - level)) - 1


def child_of(node: Node, part: int) -> Node:
    """Return the node of a part."""
    level = node[0] - 1
    return (level, part, 0) if level >= INSTANT else (level, node[1], part)


def path_of(instant: int, hashed: int, depth: int) -> list[Node]:
    """Return the nodes that an event may lie in, from the top down to a level."""
    node = ROOT
    path = [node]
    while node[0] > depth:
        node = child_of(node, part_of(node, instant, hashed))
        path.append(node)
    return path


def bounds_of(node: Node) -> tuple[int, int]:
    """Return the first instant of a node below the top, and the one behind its last."""
    level, place, _ = node
    span = span_of(level)
    return place * span, (place + 1) * span


def edge_path(bound: int, depth: int) -> list[Node]:
    """Return the nodes that a window's edge cuts, from the top down to a level."""
    path = [ROOT]
    for level in range(TOP - 1, max(depth, INSTANT) - 1, -1):
        place, rest = divmod(bound, SPANS[level - INSTANT])
        if not rest:
            break
        path.append((level, place, 0))
    return path
