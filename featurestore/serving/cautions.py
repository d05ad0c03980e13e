"""Logs what the online store says threatens what it keeps: once, and again when it has changed."""

from __future__ import annotations

import math
from typing import Any

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.services.online import OnlineReader

_EVERY_SECONDS = 60.0


class Cautions:
    """Looks about once a minute. For one thread at a time.

    Args:
        log: Told of what was found.
        clock: Measures the minute.
    """

    def __init__(self, log: Any, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._next = -math.inf
        self._told: list[str] = []

    def are_due(self) -> bool:
        """Whether a minute has passed."""
        return self._clock.monotonic() >= self._next

    def look(self, reader: OnlineReader) -> None:
        """Ask, and log what is new; a store that does not tell is asked a minute later."""
        self._next = self._clock.monotonic() + _EVERY_SECONDS
        try:
            found = reader.cautions()
        except FeatureStoreError as error:
            found = [f"Whether the online store keeps all rows cannot be told: {error.what}"]
        for text in found:
            if text not in self._told:
                self._log.warning("caution", part="online store", text=text)
        self._told = found
