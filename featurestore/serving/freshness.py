"""How fresh is what a server serves: what the registry knows, and what lookups have found.

A thread in the background asks the registry; calls take what is known. A registry that does not
answer leaves what was known last, and since when.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.ports.registry import ProjectState
from featurestore.services.freshness import ViewFreshness
from featurestore.services.response import Layout, OnlineResponse
from featurestore.services.state import StateCache
from featurestore.services.state_reading import WindowBlock
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call

_PAUSE_SECONDS = 5.0
_NEVER, _ALWAYS = -(2**63), 2**63
_LAYOUTS, _NOWHERE = 1_024, 0


class Freshness:
    """Knows how fresh views are; an observer of what lookups find.

    Args:
        states: The definitions, and the registry behind them.
        clock: Tells now.

    Attributes:
        tables: What the registry said last, by view.
        as_of_us: When it did; None before the first time.
    """

    def __init__(self, states: StateCache, clock: Clock) -> None:
        self._states = states
        self._clock = clock
        self._lock = threading.Lock()
        self._newest = [_ALWAYS]
        self._places: dict[tuple[str, str], int] = {}
        self._layouts: dict[Layout, list[int]] = {}
        self._seen: ProjectState | None = None
        self._due = float("-inf")
        self.tables: Mapping[str, ViewFreshness] = {}
        self.as_of_us: int | None = None

    def now_us(self) -> int:
        """Return the instant by which all of this is to be judged."""
        return self._clock.now_us()

    def newest_served(self, view: str, fingerprint: str) -> int | None:
        """Return the newest event of a view, by this definition, that a lookup has found."""
        place = self._places.get((view, fingerprint))
        event = _NEVER if place is None else self._newest[place]
        return None if event == _NEVER else event

    def newest_by_view(self) -> dict[str, int]:
        """Return the newest event of each view, by the definition that answers now."""
        views = self._states.get().serving.values()
        found = {view.name: self.newest_served(view.name, view.fingerprint) for view in views}
        return {name: event for name, event in found.items() if event is not None}

    def begun(self, call: Call) -> None:
        """See `Observer.begun`."""

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """See `Observer.answered`."""
        del call, asked
        places = self._layouts.get(answer.layout) or self._know(answer)
        newest = self._newest
        for place, event in zip(places, answer.newest_events, strict=True):
            if event is not None and event > newest[place]:
                with self._lock:
                    newest[place] = max(event, newest[place])

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """See `Observer.ended`."""

    def close(self) -> None:
        """See `Observer.close`."""

    def refresh(self) -> None:
        """Ask the registry, if it is time to or the definitions are others; for one thread."""
        now = self._clock.monotonic()
        state = self._states.get()
        if now < self._due and state is self._seen:
            return
        self._due = now + _PAUSE_SECONDS
        try:
            self.tables = self._states.freshness()
        except FeatureStoreError:
            # The watch tells of a registry that is gone.
            return
        self.as_of_us = self._clock.now_us()
        self._seen = state

    def _know(self, answer: OnlineResponse) -> list[int]:
        """Return where the newest event of each source of a layout stands."""
        layout = answer.layout
        places = []
        with self._lock:
            for source, block in zip(layout.sources, answer.blocks, strict=True):
                key = (source.view, source.fingerprint)
                # The events of aggregated views are the instants that were asked for.
                tells = not isinstance(block, WindowBlock)
                places.append(self._place(key) if tells else _NOWHERE)
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            self._layouts[layout] = places
        return places

    def _place(self, key: tuple[str, str]) -> int:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._newest)
            self._newest.append(_NEVER)
        return place
