"""Who else hears of calls: metrics, traces and the log of what was served attach here.

An observer hears of every call of every front. It is called on the thread that answers, so it
takes no time to speak of, waits for nothing, and never raises.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from featurestore.errors import FeatureStoreError
from featurestore.ports.registry import ProjectState
from featurestore.services.freshness import ViewFreshness
from featurestore.services.response import OnlineResponse
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call


class Observer(Protocol):
    """Hears of calls as they come and go."""

    def begun(self, call: Call) -> None:
        """Hear of a call before it is admitted; `call.begun` says when that was."""
        ...

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """Hear what a lookup has found; it is not sent yet."""
        ...

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """Hear how a call ended.

        Args:
            call: The call.
            status: "OK", or the name of a gRPC status.
            error: Why it failed, where that is an error of ours.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; no call comes any more."""
        ...


class Reads(threading.local):
    """Which calls the reads of the store on this thread are made for.

    Attributes:
        calls: These.
    """

    calls: Sequence[Call] = ()

    def made_for(self, calls: Sequence[Call]) -> Reads:
        """Say it, until the end of a `with`."""
        self.calls = calls
        return self

    def __enter__(self) -> None:
        """Nothing more is to be done."""

    def __exit__(self, *_error: object) -> None:
        """See `made_for`."""
        self.calls = ()


READS = Reads()


@dataclass(frozen=True, slots=True)
class Condition:
    """How a server is.

    Attributes:
        state: The definitions that answer.
        store_up: Whether the online store answers a ping.
        breaker_open: Whether the online store is left alone, as it keeps failing.
        freshness: What is known of the views' tables, by view.
        newest_served: The newest event that lookups have found, by view, microseconds.
    """

    state: ProjectState
    store_up: bool
    breaker_open: bool
    freshness: Mapping[str, ViewFreshness]
    newest_served: Mapping[str, int]


@runtime_checkable
class Watcher(Protocol):
    """An observer that also hears how the server is."""

    def watched(self, condition: Condition) -> None:
        """Hear how the server is, again and again, on a thread in the background."""
        ...
