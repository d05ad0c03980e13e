"""Tells how one windowed feature of one entity came about online: its window, tiles and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureNotFoundError, RequestError, listing, near_miss
from featurestore.semantics.keys import encode_key, namespace
from featurestore.services.state_reading import (
    StateReading,
    WindowReader,
    read_deeper,
    read_together,
)

if TYPE_CHECKING:
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.semantics.states.explaining import RawEvent, Tile


@dataclass(frozen=True)
class WindowExplanation:
    """How a value came about. All instants are microseconds since the epoch.

    Attributes:
        view: The view.
        feature: The feature.
        as_of: The instant that was asked for.
        start: The first instant of the window; None where it has no beginning.
        end: The instant behind its last one.
        value: The value.
        tiles: The merged states that were used.
        events: The events that were used one by one.
        kept_from: What happened before may have been dropped; None where nothing was.
        applied: {stream partition: the highest position that had been applied}.
    """

    view: str
    feature: str
    as_of: int
    start: int | None
    end: int
    value: Any
    tiles: Sequence[Tile]
    events: Sequence[RawEvent]
    kept_from: int | None
    applied: Mapping[str, int]


def explain_window(
    online: OnlineStore,
    project: str,
    view: ViewPlan,
    key: Sequence[Any],
    feature: str,
    *,
    instant: int,
    now: int,
    timeout: float | None = None,
) -> WindowExplanation:
    """Return how a feature of an aggregated view came about.

    Args:
        online: The store.
        project: The project.
        view: The aggregated view.
        key: The values of its join keys, in their order.
        feature: The feature's name.
        instant: The instant to answer for, microseconds.
        now: The present instant.
        timeout: Seconds to wait for the store at most.

    Raises:
        FeatureNotFoundError: The view has no such feature.
        RequestError: A join key is null, or of another type.
        AsOfBeforeRowError: What was then is no longer kept.
        DataError: The state was written under another schema, or is damaged.
        OnlineStoreUnavailableError: The store does not answer in time.
    """
    from featurestore.semantics.states.explaining import made_of
    from featurestore.semantics.states.layout import NEVER

    _check(view, feature)
    encoded = _encoded(view, key)
    reader = WindowReader(view, [feature])
    lead = namespace(project, view.name, view.table_fingerprint)
    readings = [StateReading.of(reader, lead, [encoded])]
    read_together(online, readings, (), instant, timeout)
    read_deeper(online, readings, instant, instant, timeout)
    row = readings[0].row(0)
    value = readings[0].block(instant, now).pylist(reader.indexes[0])[0]
    edges = reader.query.edges(instant)[0]
    tiles, events = made_of(reader.query.schema, row, edges)
    return WindowExplanation(
        view=view.name,
        feature=feature,
        as_of=instant,
        start=edges[0],
        end=edges[1],
        value=value,
        tiles=tiles,
        events=events,
        kept_from=None if row.horizon == NEVER else row.horizon,
        applied={} if row.header is None else dict(row.header.applied),
    )


def _encoded(view: ViewPlan, key: Sequence[Any]) -> bytes:
    encoded = encode_key(key, [column.type for column in view.join_keys])
    if encoded is None:
        raise RequestError(
            "A null join key names no entity.", where=f"view '{view.name}'", got=repr(tuple(key))
        )
    return encoded


def _check(view: ViewPlan, feature: str) -> None:
    names = [each.name for each in view.features]
    if feature not in names or not view.aggregates:
        raise FeatureNotFoundError(
            f"The view '{view.name}' has no windowed feature '{feature}'.",
            allowed=listing(names) if view.aggregates else "a feature of an aggregated view",
            hint=near_miss(feature, names),
        )
