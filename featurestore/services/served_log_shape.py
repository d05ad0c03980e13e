"""The shape of a log of what was served: what was asked, by which definitions, in which columns.

Answers of one shape are in one table, `{project}/_served/{service}/{shape}`; other definitions make
another shape, and so another table, as they do for views. A shape names definitions by their
fingerprints: the registry keeps every one that was ever applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.compile.plan import (
    SERVED,
    Catalog,
    Column,
    OnDemandPlan,
    Plan,
    Selection,
    ServicePlan,
    ViewPlan,
)
from featurestore.compile.request import FeaturesArgument, RequestPlan, resolve, service_plan
from featurestore.compile.selection import as_selection
from featurestore.errors import NotMaterializedError
from featurestore.model.declarations import FeatureService
from featurestore.ports.registry import ProjectState
from featurestore.services.response import SourceLayout

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.registry import Version

REFERENCES = "_references"
"""Stands for a service where features were asked for one by one."""

SERVED_AT, PERIOD = "event_timestamp", "event_period"
ASKED_AT, AS_OF, ROW = "_asked_at", "_as_of", "_row"
FRONT, SERVER, SERVICE, SHAPE = "_front", "_server", "_service", "_shape"
REQUEST_ID = SERVED
ENTITY, REQUEST, FEATURES = "entity", "request", "features"
STATUS, EVENTS, APPLIED, DEFINITIONS = "status", "event_timestamps", "applied", "fingerprints"

_VIEW, _ON_DEMAND = "feature_view", "on_demand_feature_view"


class ServedSource(Plan):
    """A view or on-demand view of a shape, in the order of the answer's blocks.

    Attributes:
        on_demand: Whether it is an on-demand view, which has no status and no instant.
        positioned: Whether answers say how far its stream had been applied.
    """

    alias: str
    view: str
    fingerprint: str
    on_demand: bool = False
    positioned: bool = False


class Shape(Plan):
    """What answers to one request have in common.

    Attributes:
        service: The service that was asked for, None for single references.
        service_fingerprint: Of its definition.
        selections: What it stands for.
        keys: The join key columns, integers as int64.
        request: The fields that came with the request.
        features: The features by their full names, in the order asked for.
        sources: What they were made from.
    """

    service: str | None = None
    service_fingerprint: str = ""
    selections: tuple[Selection, ...]
    keys: tuple[Column, ...]
    request: tuple[Column, ...]
    features: tuple[Column, ...]
    sources: tuple[ServedSource, ...]

    @classmethod
    def of(cls, state: ProjectState, features: FeaturesArgument) -> Shape:
        """Return the shape of what is asked for under a state of the project."""
        catalog = state.answering
        plan = resolve(catalog, state.serving, features, full_feature_names=True)
        service = service_plan(catalog, plan.service) if plan.service else None
        return cls(
            service=plan.service,
            service_fingerprint=service.fingerprint if service else "",
            selections=service.features if service else _selections(catalog, features),
            keys=tuple(_wide(name, key) for name, key in plan.key_columns),
            request=plan.request_fields,
            features=tuple(Column(name=o.slot, dtype=o.column.dtype) for o in plan.outputs),
            sources=_sources(plan),
        )

    @cached_property
    def id(self) -> str:
        """16 hex digits that tell it from all others."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    @cached_property
    def text(self) -> str:
        """The shape as JSON, as its table keeps it."""
        return self.model_dump_json(exclude_defaults=True)

    @property
    def name(self) -> str:
        """The service, or what stands for one."""
        return self.service or REFERENCES

    @property
    def references(self) -> tuple[str, ...]:
        """The features as `view:feature`."""
        return tuple(f"{s.alias}:{name}" for s in self.selections for name in s.features)

    def fits(self, sources: Sequence[SourceLayout]) -> bool:
        """Whether an answer was given by the very definitions of the shape."""
        mine = [(each.view, each.alias, each.fingerprint) for each in self.sources]
        return mine == [(each.view, each.alias, each.fingerprint) for each in sources]

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of its table."""
        import pyarrow as pa

        instant = pa.timestamp("us", tz="UTC")
        views = [source.alias for source in self.sources if not source.on_demand]
        positions = pa.map_(pa.string(), pa.int64())
        parts: dict[str, list[tuple[str, Any]]] = {
            ENTITY: [(key.name, key.type.arrow) for key in self.keys],
            REQUEST: [(field.name, field.type.arrow) for field in self.request],
            FEATURES: [(feature.name, feature.type.arrow) for feature in self.features],
            STATUS: [(alias, pa.string()) for alias in views],
            EVENTS: [(alias, instant) for alias in views],
            APPLIED: [(s.alias, positions) for s in self.sources if s.positioned],
            DEFINITIONS: [(source.alias, pa.string()) for source in self.sources],
        }
        return pa.schema(
            [
                (SERVED_AT, instant),
                (ASKED_AT, instant),
                (AS_OF, instant),
                (REQUEST_ID, pa.string()),
                (ROW, pa.int32()),
                (FRONT, pa.string()),
                (SERVER, pa.string()),
                (SERVICE, pa.string()),
                (SHAPE, pa.string()),
                # Parquet knows no struct without fields.
                *((name, pa.struct(fields)) for name, fields in parts.items() if fields),
                (PERIOD, pa.string()),
            ]
        )

    def state(self, project: str, versions: Iterable[Version]) -> ProjectState:
        """Return the definitions by which the shape was answered, and nothing else.

        Args:
            project: The project.
            versions: All definitions that were ever applied.

        Raises:
            NotMaterializedError: One of them is no longer known.
        """
        wanted = {(s.view, s.fingerprint): s.on_demand for s in self.sources}
        kinds = {True: _ON_DEMAND, False: _VIEW}
        views: dict[str, ViewPlan] = {}
        on_demand: dict[str, OnDemandPlan] = {}
        for version in versions:
            is_derived = wanted.get((version.name, version.fingerprint))
            if is_derived is None or version.kind != kinds[is_derived]:
                continue
            if is_derived:
                on_demand[version.name] = OnDemandPlan.model_validate_json(version.body)
            else:
                views[version.name] = ViewPlan.model_validate_json(version.body)
        for source in self.sources:
            if source.view not in views and source.view not in on_demand:
                raise NotMaterializedError(
                    f"The definition of '{source.view}' is no longer known.",
                    got=f"definition {source.fingerprint}",
                )
        service = ServicePlan(name=self.name, features=self.selections)
        catalog = Catalog(
            project=project, views=views, on_demand=on_demand, services={self.name: service}
        )
        return ProjectState(catalog=catalog, serving=views)


def served_id(project: str, name: str | None = None) -> str:
    """Return what the ids of a project's served logs begin with, or those of one service."""
    return f"{project}/_served" if name is None else f"{project}/_served/{name}"


def _selections(catalog: Catalog, features: FeaturesArgument) -> tuple[Selection, ...]:
    if isinstance(features, str | FeatureService):
        raise TypeError(f"{features!r} is a service")
    return tuple(as_selection(catalog, item) for item in features)


def _sources(plan: RequestPlan) -> tuple[ServedSource, ...]:
    joins = [
        ServedSource(
            alias=join.alias,
            view=join.view.name,
            fingerprint=join.view.fingerprint,
            positioned=bool(join.view.aggregates and join.view.source.stream),
        )
        for join in plan.joins
    ]
    steps = [
        ServedSource(
            alias=s.plan.name, view=s.plan.name, fingerprint=s.plan.fingerprint, on_demand=True
        )
        for s in plan.steps
    ]
    return (*joins, *steps)


def _wide(name: str, key: Column) -> Column:
    """Return a key's column; a key is its value, whatever the width of its integers (law K1)."""
    return Column(name=name, dtype="int64" if key.dtype == "int32" else key.dtype)
