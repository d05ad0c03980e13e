"""The online store as lookups see it, with listeners that hear of each round trip.

Nothing of keys or values is told: how many, how long it took, and how it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.ports.online import OnlineStore, StateRead

# Hears of a read: the operation, how many keys, the seconds it took, the class of its error.
Listener = Callable[[str, int, float, str | None], None]


class WatchedStore:
    """A store whose reads are heard of; all else is the store's own.

    Args:
        store: The store.
        clock: Measures.
        heard: Called after each read, on its thread.
    """

    def __init__(self, store: OnlineStore, clock: Clock, heard: Listener) -> None:
        self._store = store
        self._read = store.read
        self._now = clock.monotonic
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:
        """See `OnlineStore.read`."""
        began = self._now()
        try:
            found = self._read(keys, timeout=timeout)
        except FeatureStoreError as error:
            self._failed("read", len(keys), began, error)
            raise
        self._heard("read", len(keys), self._now() - began, None)
        return found

    def read_states(
        self,
        reads: Sequence[StateRead],
        rows: Sequence[bytes] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        """See `OnlineStore.read_states`."""
        began, keys = self._now(), len(reads) + len(rows)
        try:
            found = self._store.read_states(reads, rows, timeout=timeout)
        except FeatureStoreError as error:
            self._failed("read_states", keys, began, error)
            raise
        self._heard("read_states", keys, self._now() - began, None)
        return found

    def _failed(self, operation: str, keys: int, began: float, error: FeatureStoreError) -> None:
        self._heard(operation, keys, self._now() - began, type(error).__name__)
