"""A feature store whose training sets and online lookups are equal, bit for bit.

The names below are the public ones. They are resolved on first use, so that importing the package
costs almost nothing and loads no engine, no driver and no transport.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.model.columns import Aggregate, Field
    from featurestore.model.declarations import (
        Entity,
        FeatureSelection,
        FeatureService,
        FeatureView,
        OnDemandFeatureView,
        on_demand_feature_view,
    )
    from featurestore.model.sources import FileSource, RequestSource, StreamSource
    from featurestore.services.historical import RetrievalJob
    from featurestore.services.response import OnlineResponse
    from featurestore.serving.client import OnlineClient
    from featurestore.serving.client_async import AsyncOnlineClient
    from featurestore.wiring import FeatureStore

__all__ = [
    "Aggregate",
    "AsyncOnlineClient",
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
    "StreamSource",
    "on_demand_feature_view",
]

_HOMES = {
    "Aggregate": "featurestore.model.columns",
    "AsyncOnlineClient": "featurestore.serving.client_async",
    "Entity": "featurestore.model.declarations",
    "FeatureSelection": "featurestore.model.declarations",
    "FeatureService": "featurestore.model.declarations",
    "FeatureStore": "featurestore.wiring",
    "FeatureView": "featurestore.model.declarations",
    "Field": "featurestore.model.columns",
    "FileSource": "featurestore.model.sources",
    "OnDemandFeatureView": "featurestore.model.declarations",
    "OnlineClient": "featurestore.serving.client",
    "OnlineResponse": "featurestore.services.response",
    "RequestSource": "featurestore.model.sources",
    "RetrievalJob": "featurestore.services.historical",
    "StreamSource": "featurestore.model.sources",
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
