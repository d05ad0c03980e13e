"""How fresh the tables behind what is served are, as far as the registry knows.

Only the registry is asked, never a table or a store, so that a server can look again and again. Of
a stream it tells what had been taken into the view's table; what is online is further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.registry import Registry, Run

_RUNS = 20


@dataclass(frozen=True, slots=True)
class ViewFreshness:
    """How fresh a view's table is; instants are microseconds since the epoch, UTC.

    Attributes:
        materialized_until_us: The end of the newest interval that was materialized; None before the
            first.
        materialized_at_us: When the last materialization that succeeded ended.
        applied: {stream partition: the position up to which it had been taken in by then}; empty
            for a view without a stream.
    """

    materialized_until_us: int | None = None
    materialized_at_us: int | None = None
    applied: Mapping[str, int] = field(default_factory=dict)


def read_freshness(
    registry: Registry, project: str, views: Iterable[ViewPlan]
) -> dict[str, ViewFreshness]:
    """Return the freshness of views by name.

    Args:
        registry: Holds ledgers and runs.
        project: The project.
        views: The views as they answer.

    Raises:
        RegistryUnavailableError: The registry does not answer.
    """
    return {view.name: _of(registry, project, view) for view in views}


def last_success(
    registry: Registry, project: str, view: ViewPlan, limit: int = _RUNS
) -> Run | None:
    """Return the run of the view's table that succeeded last, of its newest runs."""
    runs = registry.runs(project, view.name, state="succeeded", limit=limit)
    return next((run for run in runs if run.table_fingerprint == view.table_fingerprint), None)


def _of(registry: Registry, project: str, view: ViewPlan) -> ViewFreshness:
    entries = registry.ledger(project, view.name, view.table_fingerprint).entries
    run = last_success(registry, project, view)
    applied: dict[str, int] = {}
    for entry in entries:
        for partition, position in entry.logged.items():
            applied[partition] = max(position, applied.get(partition, position))
    return ViewFreshness(
        materialized_until_us=entries[-1].end if entries else None,
        materialized_at_us=run.finished_at_us if run else None,
        applied=applied,
    )
