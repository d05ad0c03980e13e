"""Event streams: a log of payloads in partitions, appended to by producers, consumed in order (W1).

A stream is told by a URL and shared by all who know it. Positions are numbers that only grow within
a partition. A consumer group remembers how far it has come; a partition is read by one member of
the group at a time, and when that member dies another one takes over from the last commit, so every
entry is delivered at least once and in order. What an entry means is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

POSITION_BITS = 54


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream.

    Attributes:
        partition: Names the partition; unique within the stream, the same for ever.
        position: 0 <= position < 2**54; grows within the partition, the same on every delivery.
        accepted_us: When the log took it, microseconds since the epoch, the same on every delivery.
        payload: What the producer appended.
    """

    partition: str
    position: int
    accepted_us: int
    payload: bytes


class StreamConsumer(Protocol):
    """A member of a consumer group. For one thread.

    Methods raise `StreamUnavailableError` when the stream is gone, within the adapter's timeout;
    calling again later goes on where it stopped.
    """

    def poll(self, max_entries: int, timeout: float) -> list[Entry]:
        """Return the next entries, in order within each partition; none when nothing came in time.

        What was delivered to a member that died, or that this one polled in a former life without
        committing, is delivered (again) before anything newer of the same partition.

        Args:
            max_entries: How many at most.
            timeout: Seconds to wait for the first one; 0 returns at once.
        """
        ...

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember that everything up to and including these positions is done.

        A position ahead of what was polled counts as what was polled. A partition that has been
        taken over by another member is left alone.
        """
        ...

    def lag(self) -> dict[str, int]:
        """Return how many entries of each partition of the stream the group has not committed."""
        ...

    def close(self) -> None:
        """Leave the group: others take over at once. What was not committed is delivered again."""
        ...


class EventStream(Protocol):
    """A stream. For any number of threads. Methods raise `StreamUnavailableError`."""

    def append(
        self,
        payloads: Sequence[bytes],
        partition_keys: Sequence[bytes] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[tuple[str, int]]:
        """Append payloads durably; return (partition, position) of each.

        After an error some may have been appended; appending all again is right where consumers
        tell duplicates, as ours do.

        Args:
            payloads: The entries, in order.
            partition_keys: Entries of equal keys go to one partition, in order; None takes any.
            timeout: Seconds to wait at most; None takes the adapter's setting.
        """
        ...

    def consumer(self, group: str, member: str) -> StreamConsumer:
        """Join a consumer group. A group that is new begins at the start of the stream.

        Args:
            group: Names the group; it sees each entry once, apart from deliveries after deaths.
            member: Names the member; one that comes back under its name gets its own work again.
        """
        ...

    def ends(self) -> dict[str, int]:
        """Return the newest position of each partition that has one."""
        ...

    def forget(self, group: str) -> None:
        """Delete what the stream remembers of a group; nothing happens when there is none."""
        ...

    def ping(self) -> None:
        """Return when the stream can be reached."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...
