"""A small project for the tests of online reads: definitions, rows, and a store that holds them.

Rows are written as the stores see them, packed; no job runs here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.clock import FixedClock
from featurestore.compile.plan import (
    Catalog,
    Column,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.ports.online import OnlineStore
from featurestore.ports.registry import ProjectState, Registry
from featurestore.semantics.keys import encode_key, namespace
from featurestore.semantics.rows import NULL_CREATED, pack
from featurestore.services.on_demand import OnDemandFunctions
from featurestore.services.online import OnlineReader
from featurestore.services.state import StateCache

PROJECT = "shop"
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
HOUR_US = 3_600_000_000
CODE = "c0de000000000001"

EVERY_TYPE = {
    "a_bool": "bool",
    "a_int32": "int32",
    "a_int64": "int64",
    "a_float32": "float32",
    "a_float64": "float64",
    "a_string": "string",
    "a_bytes": "bytes",
    "a_date": "date",
    "a_timestamp": "timestamp",
    "many_bools": "list<bool>",
    "many_ints": "list<int64>",
    "many_floats": "list<float32>",
    "many_strings": "list<string>",
    "many_bytes": "list<bytes>",
    "many_dates": "list<date>",
    "many_timestamps": "list<timestamp>",
    "embedding": "vector<float32, 3>",
    "wide": "vector<float64, 2>",
    "by_string": "map<string, float64>",
    "by_day": "map<date, int64>",
    "by_number": "map<int64, bytes>",
    "by_bytes": "map<bytes, timestamp>",
    "by_bool": "map<bool, string>",
}


def digest(text: str) -> str:
    """Return 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def view(
    name: str,
    keys: Mapping[str, str],
    features: Mapping[str, str],
    *,
    ttl_us: int | None = None,
    online: bool = True,
    version: str = "1",
) -> ViewPlan:
    """Return a view's plan; `version` stands for all that its fingerprints are made of."""
    return ViewPlan(
        name=name,
        entities=tuple(keys),
        join_keys=tuple(Column(name=k, dtype=t) for k, t in keys.items()),
        features=tuple(FeaturePlan(name=f, dtype=t) for f, t in features.items()),
        source=SourcePlan(name="s", kind="parquet", path="s.parquet", event_timestamp="at"),
        ttl_us=ttl_us,
        online=online,
        fingerprint=digest(f"definition {name} {version}"),
        table_fingerprint=digest(f"table {name} {version}"),
    )


def on_demand(
    name: str,
    inputs: Iterable[Selection],
    features: Mapping[str, str],
    request: Mapping[str, str] | None = None,
    code: str = CODE,
) -> OnDemandPlan:
    """Return the plan of an on-demand view."""
    return OnDemandPlan(
        name=name,
        inputs=tuple(inputs),
        request=tuple(Column(name=f, dtype=t) for f, t in (request or {}).items()),
        features=tuple(FeaturePlan(name=f, dtype=t) for f, t in features.items()),
        code_fingerprint=code,
        fingerprint=digest(f"on demand {name} {code}"),
    )


def select(view_name: str, *features: str, alias: str = "", **join_keys: str) -> Selection:
    """Return a selection as compiled plans hold it."""
    return Selection(
        view=view_name, features=features, alias=alias or view_name, join_keys=join_keys
    )


def state(
    views: Iterable[ViewPlan],
    on_demand: Iterable[OnDemandPlan] = (),
    services: Mapping[str, Iterable[Selection]] | None = None,
    revision: int = 0,
) -> ProjectState:
    """Return a project whose views are all served."""
    plans = {plan.name: plan for plan in views}
    catalog = Catalog(
        project=PROJECT,
        views=plans,
        on_demand={plan.name: plan for plan in on_demand},
        services={
            name: ServicePlan(name=name, features=tuple(items), fingerprint=digest(name))
            for name, items in (services or {}).items()
        },
    )
    return ProjectState(revision=revision, catalog=catalog, serving=plans)


def publish(registry: Registry, wanted: ProjectState) -> ProjectState:
    """Make a state the registry's, whatever is there."""
    revision = registry.revision(PROJECT)
    return registry.publish(
        wanted.model_copy(update={"revision": revision}),
        applied_by="test",
        applied_at_us=NOW_US,
        summary="test",
    )


def push(
    store: OnlineStore, plan: ViewPlan, rows: Sequence[tuple[tuple[Any, ...], int, tuple[Any, ...]]]
) -> None:
    """Write (key, event timestamp, features) rows of a view."""
    lead = namespace(PROJECT, plan.name, plan.table_fingerprint)
    dtypes = [key.type for key in plan.join_keys]
    keys = [lead + (encode_key(key, dtypes) or b"") for key, _, _ in rows]
    columns = [
        array([values[i] for _, _, values in rows], feature.dtype)
        for i, feature in enumerate(plan.features)
    ]
    events = np.array([event for _, event, _ in rows], dtype=np.int64)
    created = np.full(len(rows), NULL_CREATED, dtype=np.int64)
    store.write(keys, pack(plan.row_schema, events, created, columns), None)


def array(values: Sequence[Any], dtype: str) -> pa.Array:
    """Return values, or an Arrow array's, as Arrow of one of our types."""
    from featurestore.dtypes import parse

    return pa.array(list(values), type=parse(dtype).arrow)


Functions = Mapping[str, tuple[Callable[..., Any], str]]


class Served:
    """A project in memory with a reader of it.

    Args:
        wanted: What is applied.
        functions: The functions of on-demand views.
        store: Instead of a store in memory.
    """

    def __init__(
        self,
        wanted: ProjectState,
        functions: Functions | None = None,
        store: OnlineStore | None = None,
    ) -> None:
        self.clock = FixedClock(NOW_US)
        self.registry = MemoryRegistry()
        self.store: OnlineStore = store or MemoryOnlineStore()
        publish(self.registry, wanted)
        self.state = StateCache(self.registry, PROJECT, self.clock, 1.0)
        self.functions = OnDemandFunctions(lambda: functions or {}, self.clock)
        self.reader = OnlineReader(PROJECT, self.state, self.store, self.functions, self.clock)
        self.read = self.reader.get_online_features

    def push(self, plan: ViewPlan, *rows: tuple[tuple[Any, ...], int, tuple[Any, ...]]) -> None:
        """Write rows of a view."""
        push(self.store, plan, rows)
