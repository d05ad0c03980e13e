"""Lookups that come to an event loop gather while others are read, and are the next.

They are answered on threads, by `together`; their answers come back to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from featurestore.serving.exchange import Exchange
from featurestore.serving.handling import overloaded
from featurestore.serving.pool import DaemonPool
from featurestore.serving.replies import Reply
from featurestore.serving.together import MOST_BYTES, Lookup, LookupMethods, Together, Told, fitting

# After so long another thread takes what has gathered: the store, or one of them, is slow.
_PATIENCE = 0.02
_MOST_THREADS = 4


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
        self._together = Together(methods)
        self._pool = pool
        self._loop = loop
        self._waiting: list[Lookup] = []
        self._is_due = False
        self._threads = 0
        self._handed = 0.0

    def put(self, exchange: Exchange, body: bytes, told: Told) -> None:
        """Take a lookup; `told` hears of its answer."""
        if self.held >= self._most:
            told(exchange.refuse(overloaded()))
            return

        def answered(reply: Reply) -> None:
            self.held -= 1
            told(reply)

        self.held += 1
        lookup = Lookup(exchange, body, answered)
        if len(body) > MOST_BYTES:
            self._aside(lookup)
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
            count = fitting(self._waiting)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._threads += 1
            self._handed = self._loop.time()
            self._pool.submit(lambda: self._work(batch))

    def _told(self, answered: Sequence[Lookup]) -> None:
        self._threads -= 1
        if self._waiting and not self._is_due:
            self._hand_over()
        for lookup in answered:
            if lookup.reply is not None:
                lookup.told(lookup.reply)

    def _work(self, batch: Sequence[Lookup]) -> None:
        """Answer lookups on a thread."""
        answered: Sequence[Lookup] = ()
        try:
            answered = self._together.answer(batch, self._aside)
        finally:
            self._later(lambda: self._told(answered))

    def _aside(self, lookup: Lookup) -> None:
        """Have one lookup answered by itself."""

        def work() -> None:
            self._together.alone(lookup)
            reply = lookup.reply
            if reply is not None:
                self._later(lambda: lookup.told(reply))

        self._pool.submit(work)

    def _later(self, step: Callable[[], Any]) -> None:
        # Without the loop draining took too long, and nobody is there to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(step)
