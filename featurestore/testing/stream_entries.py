"""What tests of event streams do with entries: make payloads, wait for them, see their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from featurestore.clock import SystemClock
from featurestore.ports.streams import Entry, StreamConsumer

WAIT_SECONDS = 30.0


def payloads(count: int, lead: bytes = b"") -> list[bytes]:
    """Return so many payloads, none twice."""
    return [b"%b%d" % (lead, number) for number in range(count)]


def drain(
    consumer: StreamConsumer,
    count: int,
    *,
    max_entries: int = 500,
    commit: bool = False,
    seconds: float = WAIT_SECONDS,
) -> list[Entry]:
    """Poll until so many entries have come.

    Args:
        consumer: Who polls.
        count: How many are waited for.
        max_entries: Of one poll.
        commit: Whether to commit after each poll.
        seconds: How long to wait at most.

    Raises:
        AssertionError: They did not come in time, or a poll gave more than asked for.
    """
    clock = SystemClock()
    end = clock.monotonic() + seconds
    found: list[Entry] = []
    while len(found) < count:
        assert clock.monotonic() < end, f"{len(found)} of {count} entries came in {seconds} s"
        some = consumer.poll(max_entries, 0.25)
        assert len(some) <= max_entries
        found += some
        if commit and some:
            consumer.commit(newest(some))
    return found


def newest(entries: Iterable[Entry]) -> dict[str, int]:
    """Return what to commit once these entries are done."""
    positions: dict[str, int] = {}
    for entry in entries:
        positions[entry.partition] = max(entry.position, positions.get(entry.partition, -1))
    return positions


def ordered(entries: Iterable[Entry]) -> bool:
    """Whether positions grow within each partition."""
    last: dict[str, int] = defaultdict(lambda: -1)
    for entry in entries:
        if entry.position <= last[entry.partition]:
            return False
        last[entry.partition] = entry.position
    return True
