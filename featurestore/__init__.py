"""A feature store whose training sets and online lookups are equal, bit for bit.

The names below are the public ones. They are resolved on first use, so that importing the package
costs almost nothing and loads no engine, no driver and no transport.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.model.declarations import (
        Entity,
        FeatureSelection,
        FeatureService,
        FeatureView,
        Field,
        FileSource,
        OnDemandFeatureView,
        RequestSource,
        on_demand_feature_view,
    )
    from featurestore.services.historical import RetrievalJob
    from featurestore.services.response import OnlineResponse
    from featurestore.serving.client import OnlineClient
    from featurestore.wiring import FeatureStore

__all__ = [
    "Entity",
    "FeatureSelection",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "Field",
    "FileSource",
    "OnDemandFeatureView",
    "OnlineClient",
    "OnlineResponse",
    "RequestSource",
    "RetrievalJob",
    "on_demand_feature_view",
]

_HOMES = {
    "Entity": "featurestore.model.declarations",
    "FeatureSelection": "featurestore.model.declarations",
    "FeatureService": "featurestore.model.declarations",
    "FeatureStore": "featurestore.wiring",
    "FeatureView": "featurestore.model.declarations",
    "Field": "featurestore.model.declarations",
    "FileSource": "featurestore.model.declarations",
    "OnDemandFeatureView": "featurestore.model.declarations",
    "OnlineClient": "featurestore.serving.client",
    "OnlineResponse": "featurestore.services.response",
    "RequestSource": "featurestore.model.declarations",
    "RetrievalJob": "featurestore.services.historical",
    "on_demand_feature_view": "featurestore.model.declarations",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
