"""What a call asks for, as the things that it needs permission for, and as the audit tells it.

Asking for a service is about the service; asking for features is about every view that is read,
those behind on-demand views too; applying is about every definition that would be another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.access.audit import LONGEST_NAME, MOST_NAMES
from featurestore.access.scopes import ALL, Kind, Resource
from featurestore.errors import RequestError
from featurestore.model.base import Declaration
from featurestore.model.declarations import FeatureSelection, FeatureService

if TYPE_CHECKING:
    from featurestore.compile.diff import ApplyPlan
    from featurestore.compile.plan import Catalog, SourcePlan
    from featurestore.compile.request import FeaturesArgument
    from featurestore.ports.registry import ProjectState

_KINDS: dict[str, Kind] = {
    "feature_view": "view",
    "on_demand_feature_view": "view",
    "feature_service": "service",
}


def as_list(features: FeaturesArgument) -> FeaturesArgument:
    """Return a service as it is, anything else as a list, whatever it is."""
    if isinstance(features, str | FeatureService):
        return features
    items: Any = features  # the caller's word; what is wrong with it, the verb itself says
    alone = isinstance(items, Declaration)
    return [items] if alone else list(items or ())


def names_of(features: FeaturesArgument) -> tuple[Kind, frozenset[str]]:
    """Return the service, or the views, that a request names.

    Raises:
        RequestError: An item names no feature.
    """
    if isinstance(features, str):
        return "service", frozenset((features,))
    if isinstance(features, FeatureService):
        return "service", frozenset((features.name,))
    return "view", frozenset(_view_of(item) for item in features)


def with_inputs(views: Iterable[str], catalog: Catalog) -> list[str]:
    """Return views, and all that the on-demand views among them are computed from."""
    found: dict[str, None] = {}
    left = list(views)
    while left:
        name = left.pop()
        if name not in found:
            found[name] = None
            plan = catalog.on_demand.get(name)
            left += [selection.view for selection in plan.inputs] if plan is not None else []
    return list(found)


def filled(features: FeaturesArgument, catalog: Catalog) -> list[str]:
    """Return the views over sources that a request reads, which it may ask to materialize."""
    kind, names = names_of(features)
    if kind == "service":
        services = [catalog.services[name] for name in names if name in catalog.services]
        names = frozenset(item.view for service in services for item in service.features)
    return sorted(name for name in with_inputs(names, catalog) if name in catalog.views)


def changed(plan: ApplyPlan, before: ProjectState, after: Catalog) -> list[Resource]:
    """Return what an apply changes: views, services, and sources that are declared otherwise.

    An entity has no scope of its own: it belongs to the views that have it, or to all of them
    where none has. The tables of removed views, which an apply deletes, belong to these views.

    Args:
        plan: What would change.
        before: The project as it is.
        after: The definitions as they would be.
    """
    found: list[tuple[Kind, str]] = []
    for item in plan.changes:
        if item.kind in _KINDS:
            found.append((_KINDS[item.kind], item.name))
            continue
        views = (*before.catalog.views.values(), *after.views.values())
        users = [view.name for view in views if item.name in view.entities]
        found += [("view", name) for name in users or [ALL]]
    old, new = _sources(before.catalog), _sources(after)
    found += [("source", name) for name in {**old, **new} if old.get(name) != new.get(name)]
    found += [("view", table.view) for table in before.retired if table.view not in after.views]
    return [Resource(plan.project, kind, name) for kind, name in dict.fromkeys(found)]


def told(features: FeaturesArgument) -> dict[str, Any]:
    """Return what the audit says of features that are asked for."""
    if isinstance(features, str | FeatureService):
        return {"service": _named(features)[:LONGEST_NAME]}
    names = dict.fromkeys(_named(item).partition(":")[0] for item in features[:MOST_NAMES])
    return {"views": [name[:LONGEST_NAME] for name in names]}


def told_names(kind: Kind, names: Sequence[str]) -> dict[str, Any]:
    """Return what the audit says of things that are asked for by their names."""
    if kind == ALL:
        return {}
    cut = [name[:LONGEST_NAME] for name in names[:MOST_NAMES]]
    return {kind: cut[0]} if kind == "source" and len(cut) == 1 else {f"{kind}s": cut}


def _sources(catalog: Catalog) -> dict[str, SourcePlan]:
    return {view.source.name: view.source for view in catalog.views.values()}


def _view_of(item: object) -> str:
    if isinstance(item, str):
        return item.partition(":")[0]
    if isinstance(item, FeatureSelection):
        return item.view
    name = getattr(item, "name", None)
    if not isinstance(name, str):
        raise RequestError("A feature list holds something that names no feature.")
    return name


def _named(item: object) -> str:
    if isinstance(item, str):
        return item
    return str(getattr(item, "view", None) or getattr(item, "name", ""))
