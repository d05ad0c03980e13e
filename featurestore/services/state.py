"""The applied definitions as a reader sees them: kept in memory, asked for again now and then.

Reads never wait for the registry once they have a state: one thread looks for a newer revision, all
others go on with what is there. A registry that cannot be reached does not stop serving; the last
good state stays, and the error is kept for whoever watches.
"""

from __future__ import annotations

import threading

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError
from featurestore.ports.registry import ProjectState, Registry
from featurestore.services.freshness import ViewFreshness, read_freshness


class StateCache:
    """A project's state, at most `refresh_seconds` old while the registry answers.

    Args:
        registry: Where states are published.
        project: The project's name.
        clock: Tells when to ask again.
        refresh_seconds: How long a state is used without asking; 0 asks for every read.
    """

    def __init__(
        self, registry: Registry, project: str, clock: Clock, refresh_seconds: float
    ) -> None:
        self._registry = registry
        self._project = project
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._lock = threading.Lock()
        self._state: ProjectState | None = None
        self._due = float("-inf")
        self._stale = False
        self.last_error: FeatureStoreError | None = None

    def get(self) -> ProjectState:
        """Return the state, refreshed when it is due and nobody else does it already.

        Raises:
            RegistryUnavailableError: There never was a state, and the registry does not answer.
        """
        state = self._state
        if state is not None and self._clock.monotonic() < self._due and not self._stale:
            return state
        # Whoever has a state to go on with does not wait for another thread's refresh, unless the
        # state was declared stale: then an answer must not be older than the declaration.
        if state is None or self._stale:
            self._lock.acquire()
        elif not self._lock.acquire(blocking=False):
            return state
        try:
            held = self._state
            if held is not None and not self._stale and self._clock.monotonic() < self._due:
                return held
            return self._refresh()
        finally:
            self._lock.release()

    def refresh(self) -> ProjectState:
        """Ask the registry now, due or not; for the one thread that does it for all others.

        Raises:
            RegistryUnavailableError: There never was a state, and the registry does not answer.
        """
        with self._lock:
            return self._refresh()

    def freshness(self) -> dict[str, ViewFreshness]:
        """Return how fresh the tables of the views that answer are; asks the registry.

        Raises:
            RegistryUnavailableError: It does not answer.
        """
        views = self.get().serving.values()
        return read_freshness(self._registry, self._project, views)

    def invalidate(self) -> None:
        """Make the next `get` ask the registry: this process has just changed something."""
        self._stale = True

    def _refresh(self) -> ProjectState:
        self._stale = False
        state = self._state
        try:
            if state is None or self._registry.revision(self._project) != state.revision:
                state = self._registry.state(self._project)
            self.last_error = None
        except FeatureStoreError as error:
            self.last_error = error
            if state is None:
                raise
        self._state = state
        self._due = self._clock.monotonic() + self._refresh_seconds
        return state
