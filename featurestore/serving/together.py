"""Answers lookups that wait at the same time together: one round trip to the store for all.

Each is let in, permitted, checked and answered by itself; what one gets wrong is told to that one.
What may take long goes alone: large requests, windows, and views whose functions are a user's.
Which lookups wait, and on what thread they are answered, is the fronts' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurestore.errors import FeatureStoreError
from featurestore.services.response import OnlineResponse
from featurestore.serving.exchange import Exchange
from featurestore.serving.methods import Planned
from featurestore.serving.replies import Reply
from featurestore.serving.security.calls import Call

# How many are read together at most, and how long their bodies are: those behind them are not to
# wait for too many.
MOST = 64
MOST_BYTES = 4 * 1024

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


@dataclass(slots=True, eq=False)
class Lookup:
    """A lookup that came.

    Attributes:
        exchange: Its call.
        body: Its message.
        told: Hears of its answer.
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


class Together:
    """Answers lookups on the thread that it is called on.

    Args:
        methods: Answer them.
    """

    def __init__(self, methods: LookupMethods) -> None:
        self._methods = methods

    def answer(self, batch: Sequence[Lookup], aside: Callable[[Lookup], None]) -> Sequence[Lookup]:
        """Answer lookups; return those that have their `reply` now.

        Args:
            batch: The lookups.
            aside: Has a lookup that may take long answered elsewhere, by `alone`.
        """
        planned, ended = [], []
        for lookup in batch:
            self._plan(lookup)
            if lookup.planned is None:
                ended.append(lookup)
            elif lookup.planned.prepared.is_small:
                planned.append(lookup)
            else:
                aside(lookup)
        if planned:
            self._answer(planned)
        return [*ended, *planned]

    def alone(self, lookup: Lookup) -> None:
        """Answer one lookup, however long it takes."""
        if lookup.planned is None:
            self._plan(lookup)
        elif lookup.exchange.gone:
            lookup.reply = lookup.exchange.forgo()
            return
        if lookup.planned is not None:
            lookup.reply = lookup.exchange.attempt(self._writing(lookup, lookup.planned, None))

    def _plan(self, lookup: Lookup) -> None:
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

    def _answer(self, lookups: Sequence[Lookup]) -> None:
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
        self, lookup: Lookup, planned: Planned, answer: OnlineResponse | FeatureStoreError | None
    ) -> Callable[[], Reply]:
        exchange = lookup.exchange

        def written() -> Reply:
            if isinstance(answer, FeatureStoreError):
                raise answer
            if answer is None:
                exchange.check_place()
                data = self._methods.answer(planned, exchange.time_left(), exchange.call)
            else:
                data = self._methods.written(planned, answer, exchange.call)
            return exchange.succeed(data)

        return written


def fitting(waiting: Sequence[Lookup]) -> int:
    """Return how many of those that wait are read together: one at the least."""
    size = 0
    for count, lookup in enumerate(waiting[:MOST]):
        size += len(lookup.body)
        if count and size > MOST_BYTES:
            return count
    return min(len(waiting), MOST)


def _longest(lookups: Sequence[Lookup]) -> float | None:
    """Return how long the most patient caller waits; others are told when their time is over."""
    longest = 0.0
    for lookup in lookups:
        if lookup.left is None:
            return None
        longest = max(longest, lookup.left)
    return longest
