"""Lookups that wait at the same time are read together: one round trip to the store for all.

While some are being read on a thread, those that come meanwhile gather, and are the next. Each is
let in, permitted, checked and answered by itself; what one gets wrong is told to that one. What may
take long goes alone: large requests, windows, and views whose functions are a user's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from featurestore.errors import FeatureStoreError
from featurestore.services.response import OnlineResponse
from featurestore.serving.handling import overloaded
from featurestore.serving.http.exchange import Exchange
from featurestore.serving.http.statuses import Reply
from featurestore.serving.methods import Planned
from featurestore.serving.pool import DaemonPool
from featurestore.serving.security.calls import Call

# How many are read together at most, and how long their bodies are: those behind them are not to
# wait for too many.
MOST = 64
_MOST_BYTES = 4 * 1024
# After so long another thread takes what has gathered: the store, or one of them, is slow.
_PATIENCE = 0.02
_MOST_THREADS = 4

Told = Callable[[Reply], None]


class LookupMethods(Protocol):
    """What answers lookups in a front's own form, step by step; raises what speaks against it."""

    def plan(self, body: bytes, call: Call, /) -> Planned:
        """Return what a message asks for, if its caller may read it."""
        ...

    def answer(self, planned: Planned, left: float | None, call: Call, /) -> bytes:
        """Make a lookup by itself, in so many seconds, and return its answer."""
        ...

    def read_together(
        self, planned: Sequence[Planned], left: float | None, /
    ) -> list[OnlineResponse | FeatureStoreError]:
        """Make small lookups by one round trip."""
        ...

    def written(self, planned: Planned, answer: OnlineResponse, call: Call, /) -> bytes:
        """Return the answer to a lookup that was made."""
        ...


@dataclass(slots=True)
class _Lookup:
    """A lookup that came.

    Attributes:
        exchange: Its call.
        body: Its message.
        told: Hears of its answer, on the loop.
        planned: What it asks for, once that is known.
        left: The seconds that its caller still waits.
        reply: Its answer.
    """

    exchange: Exchange
    body: bytes
    told: Told
    planned: Planned | None = None
    left: float | None = None
    reply: Reply | None = None


class Gathering:
    """Gathers lookups, and has them answered.

    Args:
        methods: Answer them.
        pool: On its threads.
        loop: Where they come from, and hear of their answers.
        most: How many may be held at once; further ones are refused.

    Attributes:
        held: How many have come and not been answered.
    """

    def __init__(
        self,
        methods: LookupMethods,
        pool: DaemonPool,
        loop: asyncio.AbstractEventLoop,
        most: int,
    ) -> None:
        self.held = 0
        self._most = most
        self._methods = methods
        self._pool = pool
        self._loop = loop
        self._waiting: list[_Lookup] = []
        self._is_due = False
        self._threads = 0
        self._handed = 0.0

    def put(self, exchange: Exchange, body: bytes, told: Told) -> None:
        """Take a lookup; `told` hears of its answer."""
        if self.held >= self._most:
            told(exchange.fail(overloaded()))
            return

        def answered(reply: Reply) -> None:
            self.held -= 1
            told(reply)

        self.held += 1
        lookup = _Lookup(exchange, body, answered)
        if len(body) > _MOST_BYTES:
            self._pool.submit(lambda: self._alone(lookup))
            return
        self._waiting.append(lookup)
        if self._is_due:
            return
        slow = self._threads < _MOST_THREADS and self._loop.time() - self._handed > _PATIENCE
        if not self._threads or slow:
            # Soon, not now: whatever else has come at this moment comes along.
            self._is_due = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_due = False
        if self._waiting:
            count = _fitting(self._waiting)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._threads += 1
            self._handed = self._loop.time()
            self._pool.submit(lambda: self._together(batch))

    def _told(self, answered: Sequence[_Lookup]) -> None:
        self._threads -= 1
        if self._waiting and not self._is_due:
            self._hand_over()
        for lookup in answered:
            if lookup.reply is not None:
                lookup.told(lookup.reply)

    def _together(self, batch: Sequence[_Lookup]) -> None:
        """Answer lookups on a thread."""
        planned, ended = [], []
        try:
            for lookup in batch:
                self._plan(lookup)
                if lookup.planned is None:
                    ended.append(lookup)
                elif lookup.planned.prepared.is_small:
                    planned.append(lookup)
                else:
                    self._pool.submit(lambda one=lookup: self._alone(one))
            if planned:
                self._answer(planned)
        finally:
            self._later(lambda: self._told([*ended, *planned]))

    def _plan(self, lookup: _Lookup) -> None:
        """Find out what a lookup asks for, if its caller may."""
        exchange = lookup.exchange
        if exchange.gone:
            lookup.reply = exchange.forgo()
            return

        def planned() -> None:
            exchange.begin()
            lookup.planned = self._methods.plan(lookup.body, exchange.call)
            lookup.left = exchange.time_left()

        lookup.reply = exchange.attempt(planned)
        if lookup.reply is not None:
            lookup.planned = None

    def _answer(self, lookups: Sequence[_Lookup]) -> None:
        """Read small lookups together, and answer each."""
        asked = [lookup.planned for lookup in lookups if lookup.planned is not None]
        found: Sequence[OnlineResponse | FeatureStoreError | None]
        try:
            found = self._methods.read_together(asked, _longest(lookups))
        except FeatureStoreError as error:
            found = [error] * len(asked)
        except Exception:  # noqa: BLE001  (whatever it is, it is each one's own again below)
            found = [None] * len(asked)
        for lookup, planned, answer in zip(lookups, asked, found, strict=True):
            lookup.reply = lookup.exchange.attempt(self._writing(lookup, planned, answer))

    def _writing(
        self, lookup: _Lookup, planned: Planned, answer: OnlineResponse | FeatureStoreError | None
    ) -> Callable[[], Reply]:
        exchange = lookup.exchange

        def written() -> Reply:
            if isinstance(answer, FeatureStoreError):
                raise answer
            if answer is None:
                data = self._methods.answer(planned, exchange.time_left(), exchange.call)
            else:
                data = self._methods.written(planned, answer, exchange.call)
            return exchange.succeed(data)

        return written

    def _alone(self, lookup: _Lookup) -> None:
        """Answer one lookup on a thread."""
        if lookup.planned is None:
            self._plan(lookup)
        if lookup.planned is not None:
            lookup.reply = lookup.exchange.attempt(self._writing(lookup, lookup.planned, None))
        reply = lookup.reply
        if reply is not None:
            self._later(lambda: lookup.told(reply))

    def _later(self, step: Callable[[], Any]) -> None:
        # Without the loop draining took too long, and nobody is there to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(step)


def _fitting(waiting: Sequence[_Lookup]) -> int:
    """Return how many of those that wait are read together: one at the least."""
    size = 0
    for count, lookup in enumerate(waiting[:MOST]):
        size += len(lookup.body)
        if count and size > _MOST_BYTES:
            return count
    return min(len(waiting), MOST)


def _longest(lookups: Sequence[_Lookup]) -> float | None:
    """Return how long the most patient caller waits; others are told when their time is over."""
    longest = 0.0
    for lookup in lookups:
        if lookup.left is None:
            return None
        longest = max(longest, lookup.left)
    return longest
