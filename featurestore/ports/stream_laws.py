"""What every event stream decides alike: positions, the partition of a key, who reads what.

Pure functions, so that one stream gives the answers of another. How entries are kept is the
adapters' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from zlib import crc32

from featurestore.errors import RequestError

SEQUENCE_BITS = 12
SEQUENCES = 1 << SEQUENCE_BITS
"""How many entries of one millisecond positions can tell apart."""

MAX_NAME_BYTES = 255


def position_of(millisecond: int, sequence: int) -> int:
    """Return the position of an entry told by its millisecond and its number within that.

    >>> position_of(1, 2)
    4098

    Args:
        millisecond: Since the epoch, 0 or more.
        sequence: 0 to 4095.
    """
    return millisecond << SEQUENCE_BITS | sequence


def next_position(last: int, now_us: int) -> int:
    """Return the position behind `last` (-1: none) of an entry that is taken now.

    It tells the current millisecond unless the clock went back or many entries came at once.

    >>> next_position(4098, 1_000), next_position(4098, 2_000)
    (4099, 8192)
    """
    return max(last + 1, position_of(now_us // 1_000, 0))


def accepted_at(position: int) -> int:
    """Return the instant in a position, microseconds since the epoch.

    >>> accepted_at(8193)
    2000
    """
    return (position >> SEQUENCE_BITS) * 1_000


def partition_of(key: bytes, partitions: int) -> int:
    """Return the number of a key's partition; the same in every process.

    >>> partition_of(b"a", 1), 0 <= partition_of(b"a", 4) < 4
    (0, True)
    """
    return crc32(key) % partitions


def placed(
    payloads: Sequence[bytes], keys: Sequence[bytes] | None, partitions: int, any_one: int
) -> dict[int, list[int]]:
    """Return which payloads go to each partition: {partition: their places, in order}.

    >>> placed([b"x", b"y"], None, 4, any_one=6)
    {2: [0, 1]}

    Args:
        payloads: The entries.
        keys: Their keys, or None where any partition will do.
        partitions: How many partitions there are.
        any_one: A number that picks the partition where any will do.

    Raises:
        RequestError: There is not one key a payload.
    """
    if keys is not None and len(keys) != len(payloads):
        raise RequestError(
            "Payloads and partition keys of an append differ in number.",
            got=f"{len(payloads)} payloads, {len(keys)} keys",
        )
    if not payloads:
        return {}
    if keys is None or partitions == 1:
        return {any_one % partitions: list(range(len(payloads)))}
    chosen: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        chosen.setdefault(partition_of(key, partitions), []).append(place)
    return chosen


def share(member: str, members: Iterable[str], partitions: int) -> set[int]:
    """Return the partitions that one of the members is to read; together they have each one once.

    >>> share("b", ["b", "a"], 3)
    {1}
    """
    ordered = sorted({member, *members})
    return set(range(ordered.index(member), partitions, len(ordered)))


def check_member(group: str, member: str) -> None:
    """Refuse names of a group or a member that not every stream can keep.

    Raises:
        RequestError: One is empty or longer than 255 bytes.
    """
    for what, name in (("group", group), ("member", member)):
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise RequestError(
                f"This is no name of a consumer {what}.",
                got=repr(name[:40]),
                allowed=f"1 to {MAX_NAME_BYTES} bytes",
            )
