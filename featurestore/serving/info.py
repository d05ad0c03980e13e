"""What a server serves, as a value and as a message."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from featurestore.compile.plan import Column
from featurestore.ports.registry import ProjectState
from featurestore.serving.security.access import Visible
from featurestore.serving.v1 import serving_pb2 as pb


@dataclass(frozen=True, slots=True)
class ServedView:
    """A view or on-demand view that can be looked up.

    Attributes:
        fingerprint: Of the definition that answers.
        join_keys: {join key: type} in declared order; empty for an on-demand view.
        features: {feature: type}.
        request: {request field: type} of an on-demand view.
        on_demand: Whether it is one.
    """

    fingerprint: str
    join_keys: Mapping[str, str]
    features: Mapping[str, str]
    request: Mapping[str, str]
    on_demand: bool


@dataclass(frozen=True, slots=True)
class ServingInfo:
    """What a server serves.

    Attributes:
        project: The project's name.
        revision: The revision of its definitions.
        server_version: The version of the server's software.
        views: The views by name.
        services: {feature service: fingerprint}.
    """

    project: str
    revision: int
    server_version: str
    views: Mapping[str, ServedView]
    services: Mapping[str, str]


def write_info(state: ProjectState, visible: Visible | None = None) -> pb.GetServingInfoResponse:
    """Return the message that tells what a state answers requests by.

    Args:
        state: The state.
        visible: What of it may be told; None is all.
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
    return pb.GetServingInfoResponse(
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
            )
            for view in message.views
        },
        services={service.name: service.fingerprint for service in message.services},
    )


def _fields(columns: Iterable[Column]) -> list[pb.Field]:
    return [pb.Field(name=column.name, dtype=column.dtype) for column in columns]


def _types(fields: Iterable[pb.Field]) -> dict[str, str]:
    return {field.name: field.dtype for field in fields}
