"""On-demand views and services: what their references name, in an order without circles.

Both refer to views by object or by text. Their compiled selections are complete: each says its
features, and a request for any of them resolves.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Iterable
from typing import Any

from featurestore.compile.declared import Declarations
from featurestore.compile.fingerprints import definition_fingerprint
from featurestore.compile.plan import (
    Catalog,
    Column,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
)
from featurestore.compile.request import input_name, resolve
from featurestore.compile.selection import select
from featurestore.compile.source_sql import located
from featurestore.errors import (
    CyclicReferenceError,
    DefinitionError,
    FeatureNotFoundError,
    RequestError,
    UnknownReferenceError,
)
from featurestore.model.columns import Field
from featurestore.model.declarations import FeatureSelection, FeatureService, OnDemandFeatureView
from featurestore.model.sources import RequestSource

CodeOf = Callable[[Callable[[Any], Any]], str]


def compile_on_demand(catalog: Catalog, declared: Declarations, code_of: CodeOf) -> Catalog:
    """Return the catalog with all on-demand views, each after those that it takes inputs from.

    Args:
        catalog: Holds all feature views.
        declared: The declarations.
        code_of: Returns the fingerprint of a function.

    Raises:
        CyclicReferenceError: On-demand views feed each other in a circle.
        UnknownReferenceError: A source names no view or feature.
        DefinitionError: Two inputs of a function would have one name.
    """
    for view in _ordered(declared):
        with located(declared.label(view)):
            plan = _on_demand(catalog, view, code_of(view.function))
            catalog = catalog.model_copy(
                update={"on_demand": {**catalog.on_demand, view.name: plan}}
            )
            _check(catalog, [Selection(**_whole(plan))])
    return catalog


def compile_services(catalog: Catalog, declared: Declarations) -> Catalog:
    """Return the catalog with all services.

    Raises:
        UnknownReferenceError: A service names no view or feature.
        DefinitionError: One alias stands for two joins.
    """
    services = {}
    for service in declared.services:
        with located(declared.label(service)):
            services[service.name] = _service(catalog, service)
    return catalog.model_copy(update={"services": services})


def _service(catalog: Catalog, service: FeatureService) -> ServicePlan:
    selections = tuple(_selection(catalog, item) for item in service.features)
    _check(catalog, selections)
    plan = ServicePlan(
        name=service.name,
        features=selections,
        description=service.description,
        owner=service.owner,
        tags=service.tags,
    )
    return plan.model_copy(update={"fingerprint": definition_fingerprint(plan)})


def _on_demand(catalog: Catalog, view: OnDemandFeatureView, code: str) -> OnDemandPlan:
    request = [s for s in view.sources if isinstance(s, RequestSource)]
    inputs = [_selection(catalog, s) for s in view.sources if not isinstance(s, RequestSource)]
    plan = OnDemandPlan(
        name=view.name,
        inputs=_merged(inputs),
        request=tuple(_column(field) for source in request for field in source.fields),
        features=tuple(
            FeaturePlan(**_column(f).model_dump(), description=f.description) for f in view.features
        ),
        description=view.description,
        owner=view.owner,
        tags=view.tags,
        code_fingerprint=code,
    )
    _refuse_shared_inputs(plan)
    return plan.model_copy(update={"fingerprint": definition_fingerprint(plan)})


def _column(field: Field) -> Column:
    return Column(name=field.name, dtype=field.dtype or "")


def _merged(selections: Iterable[Selection]) -> tuple[Selection, ...]:
    """Return selections of which no two are of one view under one alias and the same keys."""
    merged: dict[tuple[str, str, str], Selection] = {}
    for item in selections:
        key = (item.view, item.alias, repr(sorted(item.join_keys.items())))
        held = merged.get(key)
        features = dict.fromkeys((*held.features, *item.features) if held else item.features)
        merged[key] = item.model_copy(update={"features": tuple(features)})
    return tuple(merged.values())


def _refuse_shared_inputs(plan: OnDemandPlan) -> None:
    named = [
        (input_name(item, feature), f"{item.alias}:{feature}")
        for item in plan.inputs
        for feature in item.features
    ]
    named += [(field.name, f"the request field '{field.name}'") for field in plan.request]
    seen: dict[str, str] = {}
    for name, reference in named:
        other = seen.setdefault(name, reference)
        if other is not reference:
            raise DefinitionError(
                f"The function would get two inputs called '{name}'.",
                got=f"{other} and {reference}",
                hint="Take one of them only, as in view['feature'], or give one view an alias:"
                " view.alias('other') passes its features as other__feature.",
            )


def _selection(catalog: Catalog, item: Any) -> Selection:
    try:
        return select({**catalog.views, **catalog.on_demand}, item)
    except FeatureNotFoundError as error:
        raise UnknownReferenceError(error.what, allowed=error.allowed, hint=error.hint) from error
    except RequestError as error:
        raise _definition_error(error) from error


def _check(catalog: Catalog, selections: Iterable[Selection]) -> None:
    """Refuse what no request could ever resolve; clashing result names can, under full names."""
    probe = ServicePlan(name="probe", features=tuple(selections))
    held = catalog.model_copy(update={"services": {"probe": probe}})
    try:
        resolve(held, catalog.views, "probe", full_feature_names=True)
    except RequestError as error:
        error.where = None
        raise _definition_error(error) from error


def _definition_error(error: RequestError) -> DefinitionError:
    return DefinitionError(error.what, got=error.got, allowed=error.allowed, hint=error.hint)


def _whole(plan: OnDemandPlan) -> dict[str, Any]:
    names = tuple(feature.name for feature in plan.features)
    return {"view": plan.name, "alias": plan.name, "features": names}


def _ordered(declared: Declarations) -> list[OnDemandFeatureView]:
    views = {view.name: view for view in declared.on_demand}
    graph = {
        name: [used for used in map(_view_name, view.sources) if used in views]
        for name, view in views.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1]))
        raise CyclicReferenceError(
            "On-demand views take their inputs from each other in a circle.",
            where="; ".join(declared.label(views[name]) for name in circle[:-1]),
            got=" -> ".join(circle),
            hint="Compute what they share in a view of its own.",
        ) from error
    return [views[name] for name in order]


def _view_name(source: Any) -> str:
    if isinstance(source, str):
        return source.partition(":")[0]
    return source.view if isinstance(source, FeatureSelection) else str(source.name)
