"""What a server serves, as a value and as a message."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore.compile.plan import Column
from featurestore.ports.registry import ProjectState
from featurestore.semantics.timeline import to_datetime
from featurestore.serving.security.access import Visible
from featurestore.serving.v1 import serving_pb2 as pb

if TYPE_CHECKING:
    from featurestore.serving.freshness import Freshness


@dataclass(frozen=True, slots=True)
class ServedView:
    """A view or on-demand view that can be looked up.

    Attributes:
        fingerprint: Of the definition that answers.
        join_keys: {join key: type} in declared order; empty for an on-demand view.
        features: {feature: type}.
        request: {request field: type} of an on-demand view.
        on_demand: Whether it is one.
        materialized_until: The end of the newest interval that was materialized, as far as the
            server knows.
        materialized_at: When the last materialization that succeeded ended.
        newest_served_event: The newest event that a lookup of the server process that answered has
            found since it began; None for a view of windowed aggregates.
        materialized_positions: {stream partition: how far the last materialization went}.
    """

    fingerprint: str
    join_keys: Mapping[str, str]
    features: Mapping[str, str]
    request: Mapping[str, str]
    on_demand: bool
    materialized_until: datetime | None = None
    materialized_at: datetime | None = None
    newest_served_event: datetime | None = None
    materialized_positions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServingInfo:
    """What a server serves.

    Attributes:
        project: The project's name.
        revision: The revision of its definitions.
        server_version: The version of the server's software.
        views: The views by name.
        services: {feature service: fingerprint}.
        now: The server's now.
        freshness_as_of: When it last asked its registry how fresh the views are.
    """

    project: str
    revision: int
    server_version: str
    views: Mapping[str, ServedView]
    services: Mapping[str, str]
    now: datetime | None = None
    freshness_as_of: datetime | None = None


def write_info(
    state: ProjectState, visible: Visible | None = None, freshness: Freshness | None = None
) -> pb.GetServingInfoResponse:
    """Return the message that tells what a state answers requests by.

    Args:
        state: The state.
        visible: What of it may be told; None is all.
        freshness: Knows how fresh the views are.
    """
    catalog = state.answering
    served = [
        pb.ServedView(
            name=view.name,
            fingerprint=view.fingerprint,
            join_keys=_fields(view.join_keys),
            features=_fields(view.features),
        )
        for view in state.serving.values()
        if view.online
    ]
    served += [
        pb.ServedView(
            name=view.name,
            fingerprint=view.fingerprint,
            features=_fields(view.features),
            request=_fields(view.request),
            on_demand=True,
        )
        for view in catalog.on_demand.values()
    ]
    if freshness is not None:
        for view in served:
            _tell_freshness(view, freshness)
    return pb.GetServingInfoResponse(
        now=None if freshness is None else freshness.now_us(),
        freshness_as_of=None if freshness is None else freshness.as_of_us,
        project=catalog.project,
        revision=state.revision,
        server_version=importlib.metadata.version("featurestore"),
        views=served if visible is None else _shown(served, visible),
        services=[
            pb.ServedService(name=service.name, fingerprint=service.fingerprint)
            for service in catalog.services.values()
            if visible is None or service.name in visible.services
        ],
    )


def _tell_freshness(view: pb.ServedView, freshness: Freshness) -> None:
    event = freshness.newest_served(view.name, view.fingerprint)
    if event is not None:
        view.newest_served_event = event
    table = freshness.tables.get(view.name)
    if table is None:
        return
    if table.materialized_until_us is not None:
        view.materialized_until = table.materialized_until_us
    if table.materialized_at_us is not None:
        view.materialized_at = table.materialized_at_us
    for partition, position in sorted(table.applied.items()):
        view.materialized_positions.add(partition=partition, position=position)


def _shown(served: Iterable[pb.ServedView], visible: Visible) -> Iterable[pb.ServedView]:
    """Yield what may be told of views: of some, only the features that a service has of them."""
    for view in served:
        if view.name not in visible.views:
            continue
        wanted = visible.views[view.name]
        if wanted is not None:
            kept = [feature for feature in view.features if feature.name in wanted]
            del view.features[:]
            view.features.extend(kept)
        yield view


def read_info(message: pb.GetServingInfoResponse) -> ServingInfo:
    """Return what a message tells."""
    return ServingInfo(
        project=message.project,
        revision=message.revision,
        server_version=message.server_version,
        views={
            view.name: ServedView(
                fingerprint=view.fingerprint,
                join_keys=_types(view.join_keys),
                features=_types(view.features),
                request=_types(view.request),
                on_demand=view.on_demand,
                materialized_until=_instant(view, "materialized_until"),
                materialized_at=_instant(view, "materialized_at"),
                newest_served_event=_instant(view, "newest_served_event"),
                materialized_positions={
                    item.partition: item.position for item in view.materialized_positions
                },
            )
            for view in message.views
        },
        services={service.name: service.fingerprint for service in message.services},
        # Servers of before told no instants.
        now=to_datetime(message.now) if message.now else None,
        freshness_as_of=_instant(message, "freshness_as_of"),
    )


def _fields(columns: Iterable[Column]) -> list[pb.Field]:
    return [pb.Field(name=column.name, dtype=column.dtype) for column in columns]


def _instant(message: Any, name: str) -> datetime | None:
    return to_datetime(getattr(message, name)) if message.HasField(name) else None


def _types(fields: Iterable[pb.Field]) -> dict[str, str]:
    return {field.name: field.dtype for field in fields}
