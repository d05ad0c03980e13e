"""Which views an ingest process feeds: every generation that is applied or serves, by source.

A former generation is fed for a minute more: readers may hear of a change a little later than we.
Only asks the registry; what is done about a change is the workers' business.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from featurestore.errors import RegistryUnavailableError

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import SourcePlan, ViewPlan
    from featurestore.ports.registry import ProjectState
    from featurestore.services.state import StateCache

_FORMER_SECONDS = 60.0


class Definitions:
    """The views to feed, by source, as the registry has them.

    Args:
        state: The applied definitions.
        clock: Tells how long former generations are fed.
        only: The sources that matter; all when it is empty.
    """

    def __init__(self, state: StateCache, clock: Clock, only: Sequence[str] = ()) -> None:
        self._state = state
        self._clock = clock
        self._only = frozenset(only)
        self._lock = threading.Lock()
        self._former: dict[str, tuple[float, ViewPlan]] = {}
        self._views: dict[str, dict[str, ViewPlan]] = {}
        self.sources: dict[str, SourcePlan] = {}
        self.applied: dict[str, ViewPlan] = {}
        self.waiting: frozenset[str] = frozenset()
        self.revision = -1

    def views(self, source: str) -> Mapping[str, ViewPlan]:
        """Return the views of a source that are to be fed, {generation: view}."""
        return self._views.get(source, {})

    def look(self) -> None:
        """Ask the registry.

        Raises:
            RegistryUnavailableError: It does not answer.
        """
        with self._lock:
            state = self._state.refresh()
            if self._state.last_error is not None:
                raise RegistryUnavailableError(
                    "The registry does not answer.", got=self._state.last_error.what
                )
            self._learn(state)

    def _learn(self, state: ProjectState) -> None:
        now = self._clock.monotonic()
        catalog = state.catalog.views
        plans = [
            plan for plan in (*state.serving.values(), *catalog.values()) if self._is_ours(plan)
        ]
        wanted = {plan.generation: plan for plan in plans}
        for views in self._views.values():
            for key, plan in views.items():
                if key not in wanted and plan.name in catalog:
                    self._former.setdefault(key, (now + _FORMER_SECONDS, plan))
        self._former = {
            key: (until, plan)
            for key, (until, plan) in self._former.items()
            if key not in wanted and until > now and plan.name in catalog
        }
        fed = wanted | {key: plan for key, (_, plan) in self._former.items()}
        by_source: dict[str, dict[str, ViewPlan]] = {}
        # A generation that is to serve is never behind the one that serves, so that what is read
        # does not go back by a micro-batch when they are switched.
        served = {plan.generation for plan in state.serving.values()}
        for key, plan in sorted(fed.items(), key=lambda item: item[0] in served):
            by_source.setdefault(plan.source.name, {})[key] = plan
        self.revision = state.revision
        self._views = by_source
        self.applied = {plan.name: plan for plan in catalog.values() if self._is_ours(plan)}
        self.sources = {plan.source.name: plan.source for plan in plans}
        self.waiting = frozenset(
            name
            for name, plan in self.applied.items()
            if state.serving[name].table_fingerprint != plan.table_fingerprint
        )

    def _is_ours(self, plan: ViewPlan) -> bool:
        source = plan.source
        return source.stream is not None and (not self._only or source.name in self._only)
