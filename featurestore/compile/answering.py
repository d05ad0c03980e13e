"""Which services and on-demand views are answered by a former definition while a table is rebuilt.

A view goes on serving from its former table until the new one is complete. So does whatever refers
to it: a service that now asks for a feature which only the new table has is answered as it was
before, rather than not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from featurestore.compile.plan import Catalog, OnDemandPlan, Selection, ServicePlan, ViewPlan
from featurestore.compile.request import resolve
from featurestore.errors import NotMaterializedError, RequestError


def former_references(
    applied: Catalog, answered: Catalog, serving: Mapping[str, ViewPlan]
) -> tuple[dict[str, ServicePlan], dict[str, OnDemandPlan]]:
    """Return the former services and on-demand views that are still to be used, by name.

    Args:
        applied: The applied definitions; on-demand views stand behind those that they need.
        answered: The definitions that requests were answered by so far.
        serving: The view plans that reads are answered from.
    """
    held = applied
    derived: dict[str, OnDemandPlan] = {}
    for name in applied.on_demand:
        old = answered.on_demand.get(name)
        if old is None or _answers_on_demand(held, serving, name):
            continue
        trial = held.model_copy(update={"on_demand": {**held.on_demand, name: old}})
        if _answers_on_demand(trial, serving, name):
            held, derived[name] = trial, old
    services: dict[str, ServicePlan] = {}
    for name, new in applied.services.items():
        former = answered.services.get(name)
        if former is None or _answers(held, serving, new):
            continue
        if _answers(held, serving, former):
            services[name] = former
    return services, derived


def _answers_on_demand(catalog: Catalog, serving: Mapping[str, ViewPlan], name: str) -> bool:
    features = tuple(feature.name for feature in catalog.on_demand[name].features)
    whole = Selection(view=name, features=features, alias=name)
    return _answers(catalog, serving, ServicePlan(name=name, features=(whole,)))


def _answers(catalog: Catalog, serving: Mapping[str, ViewPlan], service: ServicePlan) -> bool:
    probe = catalog.model_copy(update={"services": {service.name: service}})
    try:
        resolve(probe, serving, service.name, full_feature_names=True)
    except (NotMaterializedError, RequestError):
        return False
    return True
