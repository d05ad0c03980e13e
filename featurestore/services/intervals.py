"""What a run must read, and what the ledger says afterwards (laws M1, M6): pure arithmetic.

The ledger's intervals each name the source's file listing that they were read from, and how far its
stream was logged by then. A late row is in a file that is new or changed since, or behind those
positions; so an incremental run reads these for each interval, and everything where there is a gap.
Event time alone decides nothing. A run that follows a stream passes over a history that it could
only read as a whole again, and the ledger says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from featurestore.ports.engine import LiveRows, SourceListing
from featurestore.ports.registry import LedgerEntry
from featurestore.semantics.timeline import MIN_INSTANT, Interval, difference


class Read(NamedTuple):
    """Rows to read, by event time.

    Attributes:
        files: Files of the history; none where it is opaque, and is read as a whole.
        intervals: The intervals that are wanted.
        after: To read the stream's log instead: what lies behind these positions.
    """

    files: tuple[str, ...]
    intervals: tuple[Interval, ...]
    after: Mapping[str, int] | None = None


Reads = list[Read]


def covered(entries: Sequence[LedgerEntry]) -> list[Interval]:
    """Return the intervals of a ledger."""
    return [Interval(entry.start, entry.end) for entry in entries]


def passes_history(listing: SourceListing, entries: Sequence[LedgerEntry]) -> bool:
    """Whether a run that follows the stream leaves the history to the next one that does not.

    It does where nothing of the history can be told to be new, and the ledger has no gap but the
    time since it was last read.
    """
    if not listing.opaque or not entries:
        return False
    return not difference([Interval(MIN_INSTANT, entries[-1].end)], covered(entries))


def reads_of_all(listing: SourceListing, interval: Interval) -> Reads:
    """Return the reads of an explicit run: its interval from every file."""
    reads = [Read(tuple(file.path for file in listing.files), (interval,))]
    if listing.live is not None and listing.live.files:
        reads.append(Read((), (interval,), {}))
    return reads


def reads_of_new(
    listing: SourceListing,
    entries: Sequence[LedgerEntry],
    snapshots: Mapping[str, Mapping[str, str]],
    end: int,
    *,
    history: bool = True,
) -> Reads:
    """Return the reads of an incremental run up to `end`: gaps, and changed files elsewhere.

    Args:
        listing: The source as it is now.
        entries: The ledger's intervals.
        snapshots: {snapshot id: {path: token}} of all the entries' snapshots.
        end: The first instant that is not wanted.
        history: Whether to read the history, and not the stream alone.
    """
    wanted = Interval(MIN_INSTANT, end)
    gaps = difference([wanted], covered(entries))
    live = [] if listing.live is None else _reads_of_live(listing.live, entries, gaps, end)
    if not history:
        return live
    if listing.opaque:
        return [Read((), (wanted,)), *live]
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
    return [*(Read(tuple(files), spans) for spans, files in by_intervals.items()), *live]


def _reads_of_live(
    live: LiveRows, entries: Sequence[LedgerEntry], gaps: Sequence[Interval], end: int
) -> Reads:
    if not live.files:
        return []
    reads = [Read((), tuple(gaps), {})] if gaps else []
    for entry in entries:
        grown = any(entry.logged.get(name, -1) < at for name, at in live.positions.items())
        if entry.start < end and grown:
            interval = Interval(entry.start, min(entry.end, end))
            reads.append(Read((), (interval,), entry.logged))
    return reads


def record(
    entries: Sequence[LedgerEntry],
    interval: Interval,
    snapshot: str,
    logged: Mapping[str, int] | None = None,
    *,
    history: bool = True,
) -> tuple[LedgerEntry, ...]:
    """Return a ledger's intervals after `interval` was read.

    Args:
        entries: The intervals before.
        interval: What was read.
        snapshot: The listing that it was read from.
        logged: How far the stream was logged then.
        history: Whether the history was read, and not the stream alone.
    """
    kept, before = [], []
    for entry in entries:
        span = Interval(entry.start, entry.end)
        rest = difference([span], [interval])
        kept += [_piece(entry, part) for part in rest]
        before += [_piece(entry, part) for part in difference([span], rest)]
    fresh = LedgerEntry(
        start=interval.start,
        end=interval.end,
        snapshot=snapshot,
        logged=dict(logged or {}),
        history=history,
    )
    if history:
        kept.append(fresh)
    else:
        # What was read of the history before stays read.
        kept += [entry.model_copy(update={"logged": fresh.logged}) for entry in before]
        kept += [_piece(fresh, part) for part in difference([interval], covered(before))]
    return _merged(kept)


def _piece(entry: LedgerEntry, part: Interval) -> LedgerEntry:
    return entry.model_copy(update={"start": part.start, "end": part.end})


def _merged(entries: Sequence[LedgerEntry]) -> tuple[LedgerEntry, ...]:
    """Return intervals in order, those joined that meet and were read alike."""
    merged: list[LedgerEntry] = []
    for entry in sorted(entries, key=lambda e: e.start):
        last = merged[-1] if merged else None
        if (
            last
            and last.end == entry.start
            and _piece(entry, Interval(last.start, last.end)) == last
        ):
            merged[-1] = _piece(last, Interval(last.start, entry.end))
        else:
            merged.append(entry)
    return tuple(merged)
