"""Counts what a server does, into the slots of a board.

The places of a request's series are found once a layout; after that a call costs a few additions
under one lock. Rows are counted by their status bytes and by the bits of their nulls, so nothing is
decoded for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import grpc

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, OnlineStoreUnavailableError, OverloadedError
from featurestore.ports.online import OnlineStore
from featurestore.semantics.packed import NOT_FOUND, OUTSIDE_MAX_AGE
from featurestore.services.online import OnlineReader
from featurestore.services.response import Block, FeatureStatus, Layout, OnlineResponse
from featurestore.services.state_reading import WindowBlock
from featurestore.serving.metrics import families
from featurestore.serving.metrics.board import Board
from featurestore.serving.metrics.families import Family
from featurestore.serving.observing import Condition
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.watched_store import WatchedStore

_METHODS = frozenset(m.name for m in pb.DESCRIPTOR.services_by_name["FeatureServing"].methods)
_STATUSES = frozenset(status.name for status in grpc.StatusCode)
_OTHER = "other"
_LAYOUTS = 1_024
_MICROSECONDS = 1e6


class _Source(NamedTuple):
    """Where a source of a layout is counted.

    Attributes:
        indexes: Its features that are asked for.
        width: How many these are.
        statuses: The place of each status.
        staleness: None where its events say nothing of it.
    """

    indexes: list[int]
    width: int
    statuses: tuple[int, ...]
    staleness: int | None


class _Known(NamedTuple):
    """Where a layout is counted."""

    service: int
    sources: list[_Source]


class Metrics:
    """Counts; an observer of calls, of the store and of the server's condition.

    Args:
        board: Where the numbers stand.
        reader: Whose reads of the store are measured.
        clock: Measures.
        closed: Called when no call comes any more, before the board is closed.
    """

    def __init__(
        self,
        board: Board,
        reader: OnlineReader,
        clock: Clock,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._board = board
        self._values, self._lock = board.values, board.lock
        self._now = clock.monotonic
        self._closed = closed
        self._layouts: dict[Layout, _Known] = {}
        self._ends: dict[tuple[str, str], tuple[int, int]] = {}
        self._reads: dict[str, int] = {}
        self._sources: frozenset[str] = frozenset()
        self._infos: set[tuple[str, str]] = set()
        self._in_flight = board.place(families.IN_FLIGHT)
        self._entities = board.place(families.ENTITIES)
        self._plans = tuple(board.place(families.PLANS, result) for result in ("hit", "miss"))
        self._shed = {reason: board.place(families.SHED, reason) for reason in ("queue", "breaker")}
        self._set(families.PROCESSES, 1)
        reader.read_through(
            lambda store: cast("OnlineStore", WatchedStore(store, clock, self.has_read))
        )

    def begun(self, call: Call) -> None:
        """See `Observer.begun`."""
        del call
        with self._lock:
            self._values[self._in_flight] += 1

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """See `Observer.answered`."""
        del call, asked
        known = self._layouts.get(answer.layout)
        result = self._plans[known is None]
        if known is None:
            known = self._know(answer)
        rows, as_of, events = answer.rows, answer.as_of_us, answer.newest_events
        values, bounds = self._values, families.STALENESS.bounds
        counts = [
            _count(source, block, rows)
            for source, block in zip(known.sources, answer.blocks, strict=True)
        ]
        with self._lock:
            values[known.service] += 1
            values[result] += 1
            self._observe(self._entities, families.ENTITIES, rows)
            for (_, whole, statuses, staleness), count, event in zip(
                known.sources, counts, events, strict=True
            ):
                if count is None:
                    values[statuses[0]] += whole * rows
                else:
                    for place, number in zip(statuses, count, strict=True):
                        values[place] += number
                if staleness is not None and event is not None:
                    seconds = (as_of - event) / _MICROSECONDS
                    values[staleness] += seconds
                    values[staleness + 1 + bisect_left(bounds, seconds)] += 1

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """See `Observer.ended`."""
        seconds = self._now() - call.begun
        places = self._ends.get((call.method, status)) or self._know_end(call.method, status)
        shed = None if error is None else _reason(error)
        pushed = None if call.source is None else self._pushed(call.source, status)
        values = self._values
        with self._lock:
            values[self._in_flight] -= 1
            values[places[0]] += 1
            self._observe(places[1], families.SECONDS, seconds)
            if shed is not None:
                values[self._shed[shed]] += 1
            if pushed is not None:
                values[pushed] += call.rows

    def has_read(self, operation: str, keys: int, seconds: float, error: str | None) -> None:
        """Count a round trip to the store (`watched_store.Listener`)."""
        del keys
        place = self._reads.get(operation)
        if place is None:
            place = self._board.place(families.STORE_SECONDS, operation)
            self._reads[operation] = place
        failed = None if error is None else self._board.place(families.STORE_FAILURES, error)
        with self._lock:
            self._observe(place, families.STORE_SECONDS, seconds)
            if failed is not None:
                self._values[failed] += 1

    def watched(self, condition: Condition) -> None:
        """See `Watcher.watched`."""
        state = condition.state
        sources = [view.source for view in state.catalog.views.values()]
        self._sources = frozenset(s.name for s in sources if s.stream is not None)
        self._set(families.REVISION, state.revision)
        self._set(families.STORE_UP, condition.store_up)
        self._set(families.BREAKER_OPEN, condition.breaker_open)
        served = {(v.name, v.fingerprint) for v in state.serving.values() if v.online}
        served |= {(v.name, v.fingerprint) for v in state.answering.on_demand.values()}
        for gone in self._infos - served:
            self._set(families.VIEW_INFO, 0, *gone)
        for each in served:
            self._set(families.VIEW_INFO, 1, *each)
        self._infos = served
        for view, fresh in condition.freshness.items():
            until, at = fresh.materialized_until_us, fresh.materialized_at_us
            self._set(families.MATERIALIZED_UNTIL, (until or 0) / _MICROSECONDS, view)
            self._set(families.MATERIALIZED_AT, (at or 0) / _MICROSECONDS, view)
        for view, event in condition.newest_served.items():
            self._set(families.NEWEST_EVENT, event / _MICROSECONDS, view)

    def logged(self, outcomes: Mapping[str, int]) -> None:
        """Hear how many rows of the served log came to which end since the process began."""
        for outcome, rows in outcomes.items():
            self._set(families.SERVED_LOG, rows, outcome)

    def close(self) -> None:
        """See `Observer.close`."""
        self._closed()
        self._board.close()

    def _set(self, family: Family, value: float, *labels: str) -> None:
        place = self._board.place(family, *labels)
        with self._lock:
            self._values[place] = float(value)

    def _observe(self, place: int, family: Family, value: float) -> None:
        """Put a value into a histogram; the lock is held."""
        self._values[place] += value
        self._values[place + 1 + bisect_left(family.bounds, value)] += 1

    def _know(self, answer: OnlineResponse) -> _Known:
        layout, board = answer.layout, self._board
        sources = []
        for number, (source, block) in enumerate(zip(layout.sources, answer.blocks, strict=True)):
            indexes = [f.index for f in layout.features if f.source == number]
            statuses = tuple(board.place(families.VALUES, source.view, s) for s in FeatureStatus)
            tells = bool(block.statuses) and not isinstance(block, WindowBlock)
            staleness = board.place(families.STALENESS, source.view) if tells else None
            sources.append(_Source(indexes, len(indexes), statuses, staleness))
        if len(self._layouts) >= _LAYOUTS:
            self._layouts.clear()
        known = _Known(board.place(families.ANSWERS, layout.service or ""), sources)
        self._layouts[layout] = known
        return known

    def _know_end(self, method: str, status: str) -> tuple[int, int]:
        method = method if method in _METHODS else _OTHER
        status = status if status in _STATUSES else _OTHER
        found = self._ends.get((method, status))
        if found is None:
            found = (
                self._board.place(families.REQUESTS, method, status),
                self._board.place(families.SECONDS, method),
            )
            self._ends[method, status] = found
        return found

    def _pushed(self, source: str, status: str) -> int:
        return self._board.place(
            families.PUSHED,
            source if source in self._sources else _OTHER,
            status if status in _STATUSES else _OTHER,
        )


def _count(source: _Source, block: Block, rows: int) -> tuple[int, int, int, int] | None:
    """Return how many values of a source have each status, None where all are there."""
    nulls = block.nulls(source.indexes)
    if not nulls:
        return None
    statuses, width = block.statuses, source.width
    total = rows * width
    absent = statuses.count(NOT_FOUND) * width
    outside = statuses.count(OUTSIDE_MAX_AGE) * width
    return total - nulls, nulls - absent - outside, absent, outside


def _reason(error: FeatureStoreError) -> str | None:
    """Return why a call was refused at once, None where it was not."""
    if isinstance(error, OverloadedError):
        return "queue"
    # The store's own failures do not say when to try again.
    if isinstance(error, OnlineStoreUnavailableError) and error.retry_seconds is not None:
        return "breaker"
    return None
