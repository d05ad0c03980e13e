"""What the ledger says after a run: gaps, marks and joins (law M1)."""

from __future__ import annotations

from featurestore.ports.engine import SourceListing
from featurestore.ports.registry import LedgerEntry
from featurestore.semantics.timeline import MIN_INSTANT, Interval
from featurestore.services.intervals import passes_history, record

QUERY = SourceListing((), "(FROM x)", opaque=True)


def entry(start: int, end: int, *, logged: int = 1, history: bool = True) -> LedgerEntry:
    return LedgerEntry(start=start, end=end, logged={"0": logged}, history=history)


def test_what_was_read_alike_and_meets_is_one_interval():
    assert record([entry(0, 5)], Interval(5, 9), "", {"0": 1}) == (entry(0, 9),)
    assert record([entry(0, 5)], Interval(5, 9), "", {"0": 2}) == (
        entry(0, 5), entry(5, 9, logged=2),
    )  # fmt: skip


def test_a_run_on_the_stream_alone_keeps_what_was_read_of_the_history():
    after = record([entry(2, 5)], Interval(0, 9), "", {"0": 2}, history=False)
    assert after == (
        entry(0, 2, logged=2, history=False),
        entry(2, 5, logged=2),
        entry(5, 9, logged=2, history=False),
    )
    assert record(after, Interval(0, 12), "", {"0": 3}, history=False) == (
        entry(0, 2, logged=3, history=False),
        entry(2, 5, logged=3),
        entry(5, 12, logged=3, history=False),
    )
    assert record(after, Interval(0, 9), "", {"0": 4}) == (entry(0, 9, logged=4),)


def test_a_part_outside_of_a_run_on_the_stream_alone_stays_as_it_was():
    assert record([entry(0, 9)], Interval(3, 5), "", {"0": 2}, history=False) == (
        entry(0, 3), entry(3, 5, logged=2), entry(5, 9),
    )  # fmt: skip


def test_a_history_is_passed_over_only_where_it_was_read_without_a_gap():
    assert not passes_history(QUERY, [])
    assert passes_history(QUERY, [entry(MIN_INSTANT, 5)])
    assert passes_history(QUERY, [entry(MIN_INSTANT, 5), entry(5, 9, history=False)])
    assert not passes_history(QUERY, [entry(0, 5)])
    assert not passes_history(QUERY, [entry(MIN_INSTANT, 5), entry(6, 9)])
    assert not passes_history(SourceListing((), "(FROM x)"), [entry(MIN_INSTANT, 5)])
