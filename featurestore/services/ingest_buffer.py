"""What was put online and is not in the log yet, and the proof of what this process has put there.

Pure bookkeeping. `Claims` in words: a range of positions of a partition is told as applied for a
view only when this process took every entry of it while it fed that view, and nobody else has
appended to the partition's log in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.streams import Entry
    from featurestore.services.payloads import Refused

Range = tuple[int, int]


@dataclass
class Buffer:
    """Events between two flushes.

    Attributes:
        tables: The events, micro-batch by micro-batch.
        refused: Those that were refused.
        positions: The newest position of each partition.
        first: The first one.
        fed: The generations of the views that all of these events were put online for; None
            before the first.
        since: When the first event came, by the monotonic clock.
        rows: The number of events.
    """

    tables: list[pa.Table] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    fed: frozenset[str] | None = None
    since: float | None = None
    rows: int = 0

    def add(
        self, entries: Iterable[Entry], events: pa.Table, refused: list[Refused], fed: Iterable[str]
    ) -> None:
        """Add a micro-batch that is online."""
        if events.num_rows:
            self.tables.append(events)
        self.refused += refused
        self.rows += events.num_rows
        self.fed = frozenset(fed) if self.fed is None else self.fed & frozenset(fed)
        for entry in entries:
            self.first.setdefault(entry.partition, entry.position)
            self.positions[entry.partition] = entry.position


class AppliedRanges:
    """What this process has put online itself, {generation: {partition: range}}."""

    def __init__(self) -> None:
        self._ranges: dict[str, dict[str, Range]] = {}

    def flushed(self, buffer: Buffer, before: Mapping[str, int], own: frozenset[str]) -> None:
        """Take in what was flushed.

        Args:
            buffer: What was flushed.
            before: How far the log was before.
            own: The partitions that this member reads, by the log.
        """
        fed = buffer.fed or frozenset()
        ranges: dict[str, dict[str, Range]] = {}
        for view in self._ranges.keys() | fed:
            held = self._ranges.get(view, {})
            kept = {name: span for name, span in held.items() if name in own}
            for name, last in buffer.positions.items():
                first, former = buffer.first[name], held.get(name)
                alone = before.get(name, -1) < first
                if view not in fed or not alone or name not in own:
                    kept.pop(name, None)
                elif former is not None and before.get(name) == former[1]:
                    kept[name] = (former[0], last)
                else:
                    kept[name] = (first, last)
            ranges[view] = kept
        self._ranges = ranges

    def get(self) -> Mapping[str, Mapping[str, Range]]:
        """Return the ranges."""
        return self._ranges
