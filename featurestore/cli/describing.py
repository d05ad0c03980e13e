"""What is applied, as plain data: the definitions of a catalog and where each of them is used.

Both ways of printing start from this data. Instants are datetimes, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from featurestore.compile.aggregate_text import aggregate_texts
from featurestore.errors import FeatureNotFoundError, listing, near_miss
from featurestore.semantics.timeline import to_datetime

if TYPE_CHECKING:
    from featurestore.compile.plan import (
        Catalog,
        Column,
        EntityPlan,
        OnDemandPlan,
        Selection,
        ServicePlan,
        SourcePlan,
        ViewPlan,
    )
    from featurestore.ports.registry import Change, ProjectState, Run, Version

_SECOND_US = 1_000_000


def describe(state: ProjectState, versions: Iterable[Version], name: str) -> list[dict[str, Any]]:
    """Return every definition of a name, of whatever kind: most have one.

    Args:
        state: The applied state.
        versions: All versions of the project.
        name: A view's, on-demand view's, service's, entity's or source's.

    Raises:
        FeatureNotFoundError: Nothing is called so; the near miss is suggested.
    """
    catalog = state.catalog
    found: list[dict[str, Any]] = []
    if name in catalog.views:
        found.append(view(catalog.views[name], catalog, state.serving.get(name)))
    if name in catalog.on_demand:
        found.append(on_demand(catalog.on_demand[name], catalog))
    if name in catalog.services:
        found.append(service(catalog.services[name]))
    if name in catalog.entities:
        found.append(entity(catalog.entities[name], catalog))
    found += [item for item in sources(catalog) if item["name"] == name]
    if not found:
        known = {
            *catalog.views,
            *catalog.on_demand,
            *catalog.services,
            *catalog.entities,
            *(item["name"] for item in sources(catalog)),
        }
        raise FeatureNotFoundError(
            f"Nothing that is applied is called '{name}'.",
            allowed=listing(known),
            hint=near_miss(name, known) or "Run 'featurestore apply' if it is new.",
        )
    kept = list(versions)
    for item in found:
        item["versions"] = [version(v) for v in kept if v.name == name and v.kind == item["kind"]]
    return found


def applied(state: ProjectState, kind: str) -> list[dict[str, Any]]:
    """Return all definitions of a kind by name; views come with the on-demand views.

    Args:
        state: The applied state.
        kind: "views", "services", "entities" or "sources".
    """
    catalog = state.catalog
    if kind == "sources":
        return sources(catalog)
    if kind == "services":
        return [service(plan) for _, plan in sorted(catalog.services.items())]
    if kind == "entities":
        return [entity(plan, catalog) for _, plan in sorted(catalog.entities.items())]
    views = [
        view(plan, catalog, state.serving.get(name)) for name, plan in sorted(catalog.views.items())
    ]
    return views + [on_demand(plan, catalog) for _, plan in sorted(catalog.on_demand.items())]


def view(plan: ViewPlan, catalog: Catalog, serving: ViewPlan | None) -> dict[str, Any]:
    """Return a feature view."""
    served = serving or plan
    aggregates = aggregate_texts(plan)
    return {
        "kind": "feature_view",
        "name": plan.name,
        "description": plan.description,
        "owner": plan.owner,
        "tags": plan.tags,
        "entities": plan.entities,
        "join_keys": _columns(plan.join_keys),
        "features": [
            {
                "name": feature.name,
                "dtype": feature.dtype,
                "expression": aggregates.get(feature.name, feature.expression),
                "description": feature.description,
            }
            for feature in plan.features
        ],
        "source": source(plan.source),
        "where": plan.where,
        "ttl_seconds": None if plan.ttl_us is None else plan.ttl_us / _SECOND_US,
        "online": plan.online,
        "schedule": plan.schedule,
        "fingerprint": plan.fingerprint,
        "table_fingerprint": plan.table_fingerprint,
        "serving_fingerprint": served.fingerprint,
        "serving_table_fingerprint": served.table_fingerprint,
        "used_by": list(_users(plan.name, catalog)),
    }


def on_demand(plan: OnDemandPlan, catalog: Catalog) -> dict[str, Any]:
    """Return an on-demand view."""
    return {
        "kind": "on_demand_feature_view",
        "name": plan.name,
        "description": plan.description,
        "owner": plan.owner,
        "tags": plan.tags,
        "inputs": references(plan.inputs),
        "request": _columns(plan.request),
        "features": [
            {"name": f.name, "dtype": f.dtype, "description": f.description} for f in plan.features
        ],
        "fingerprint": plan.fingerprint,
        "code_fingerprint": plan.code_fingerprint,
        "used_by": list(_users(plan.name, catalog)),
    }


def service(plan: ServicePlan) -> dict[str, Any]:
    """Return a feature service."""
    return {
        "kind": "feature_service",
        "name": plan.name,
        "description": plan.description,
        "owner": plan.owner,
        "tags": plan.tags,
        "features": references(plan.features),
        "fingerprint": plan.fingerprint,
    }


def entity(plan: EntityPlan, catalog: Catalog) -> dict[str, Any]:
    """Return an entity."""
    users = [v.name for v in catalog.views.values() if plan.name in v.entities]
    return {
        "kind": "entity",
        "name": plan.name,
        "description": plan.description,
        "owner": plan.owner,
        "tags": plan.tags,
        "join_keys": _columns(plan.join_keys),
        "used_by": [f"feature_view {name}" for name in users],
    }


def sources(catalog: Catalog) -> list[dict[str, Any]]:
    """Return the sources of all views, by name."""
    found: dict[str, dict[str, Any]] = {}
    for plan in catalog.views.values():
        item = found.setdefault(plan.source.name, {**source(plan.source), "used_by": []})
        item["used_by"].append(f"feature_view {plan.name}")
    return [found[name] for name in sorted(found)]


def source(plan: SourcePlan) -> dict[str, Any]:
    """Return a source."""
    return {
        "kind": "file_source" if plan.stream is None else "stream_source",
        "name": plan.name,
        "format": plan.kind,
        "path": plan.path,
        "query": plan.query,
        "event_timestamp": plan.event_timestamp,
        "created_timestamp": plan.created_timestamp,
        "timezone": plan.timezone,
        "field_mapping": plan.field_mapping,
        "event_id": plan.event_id,
        "version": plan.version,
        "deleted": plan.deleted,
        "stream": plan.stream,
    }


def version(item: Version) -> dict[str, Any]:
    """Return a definition as it was once applied."""
    return {
        "kind": item.kind,
        "name": item.name,
        "fingerprint": item.fingerprint,
        "revision": item.revision,
        "applied_by": item.applied_by,
        "applied_at": to_datetime(item.applied_at_us),
    }


def change(item: Change) -> dict[str, Any]:
    """Return a line of the audit."""
    return {
        "revision": item.revision,
        "applied_by": item.applied_by,
        "applied_at": to_datetime(item.applied_at_us),
        "summary": item.summary,
    }


def run(item: Run) -> dict[str, Any]:
    """Return a run of a job."""
    data = item.model_dump()
    for key in ("start", "end", "started_at", "finished_at"):
        instant = data.pop(f"{key}_us")
        data[key] = None if instant is None else to_datetime(instant)
    return data


def references(selections: Iterable[Selection]) -> list[str]:
    """Return selections as `view:feature`, with what an alias stands for."""
    return [text for item in selections for text in _references(item)]


def _references(item: Selection) -> Iterator[str]:
    keys = ", ".join(f"{key}={column}" for key, column in item.join_keys.items())
    alias = f"alias of {item.view}" if item.alias != item.view else ""
    told = "; ".join(part for part in (alias, f"by {keys}" if keys else "") if part)
    for feature in item.features:
        yield f"{item.alias}:{feature}" + (f" ({told})" if told else "")


def _users(name: str, catalog: Catalog) -> Iterator[str]:
    for derived in catalog.on_demand.values():
        if any(item.view == name for item in derived.inputs):
            yield f"on_demand_feature_view {derived.name}"
    for plan in catalog.services.values():
        if any(item.view == name for item in plan.features):
            yield f"feature_service {plan.name}"


def _columns(columns: Iterable[Column]) -> list[dict[str, str]]:
    return [{"name": column.name, "dtype": column.dtype} for column in columns]
