"""What a run must read, and what the ledger says afterwards (laws M1, M6): pure arithmetic.

The ledger's intervals each name the source's file listing that they were read from. A late row is
in a file that is new or changed since; so an incremental run reads the changed files of each
interval, and every file where there is a gap. Event time alone decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.ports.engine import SourceListing
from featurestore.ports.registry import LedgerEntry
from featurestore.semantics.timeline import MIN_INSTANT, Interval, difference

Reads = list[tuple[tuple[str, ...], tuple[Interval, ...]]]


def covered(entries: Sequence[LedgerEntry]) -> list[Interval]:
    """Return the intervals of a ledger."""
    return [Interval(entry.start, entry.end) for entry in entries]


def reads_of_all(listing: SourceListing, interval: Interval) -> Reads:
    """Return the reads of an explicit run: its interval from every file."""
    return [(tuple(file.path for file in listing.files), (interval,))]


def reads_of_new(
    listing: SourceListing,
    entries: Sequence[LedgerEntry],
    snapshots: Mapping[str, Mapping[str, str]],
    end: int,
) -> Reads:
    """Return the reads of an incremental run up to `end`: gaps, and changed files elsewhere.

    Args:
        listing: The source as it is now.
        entries: The ledger's intervals.
        snapshots: {snapshot id: {path: token}} of all the entries' snapshots.
        end: The first instant that is not wanted.
    """
    wanted = Interval(MIN_INSTANT, end)
    if listing.opaque:
        return [((), (wanted,))]
    gaps = difference([wanted], covered(entries))
    by_intervals: dict[tuple[Interval, ...], list[str]] = {}
    for file in listing.files:
        stale = [
            Interval(entry.start, min(entry.end, end))
            for entry in entries
            if entry.start < end and snapshots[entry.snapshot].get(file.path) != file.token
        ]
        intervals = tuple(sorted([*gaps, *stale]))
        if intervals:
            by_intervals.setdefault(intervals, []).append(file.path)
    return [(tuple(files), intervals) for intervals, files in by_intervals.items()]


def record(
    entries: Sequence[LedgerEntry], interval: Interval, snapshot: str
) -> tuple[LedgerEntry, ...]:
    """Return a ledger's intervals after `interval` was read from the listing `snapshot`."""
    kept = [
        LedgerEntry(start=piece.start, end=piece.end, snapshot=entry.snapshot)
        for entry in entries
        for piece in difference([Interval(entry.start, entry.end)], [interval])
    ]
    kept.append(LedgerEntry(start=interval.start, end=interval.end, snapshot=snapshot))
    merged: list[LedgerEntry] = []
    for entry in sorted(kept, key=lambda e: e.start):
        last = merged[-1] if merged else None
        if last and last.end == entry.start and last.snapshot == entry.snapshot:
            merged[-1] = last.model_copy(update={"end": entry.end})
        else:
            merged.append(entry)
    return tuple(merged)
