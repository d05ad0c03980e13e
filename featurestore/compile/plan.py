"""The typed plan: what definitions mean once every name is resolved and every column has a type.

Plans are frozen data that the registry stores as JSON; a server needs nothing else but the online
store (and the code of on-demand functions). Two fingerprints tell plans apart: that of the
*definition* changes with anything declared, that of the *table* only with what changes its rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

from featurestore.dtypes import DType, parse
from featurestore.semantics.rows import FINGERPRINT_BYTES, RowSchema
from featurestore.semantics.windows import Window

EVENT_ID, VERSION, DELETED = "_event_id", "_version", "_deleted"
PARTITION, POSITION = "_partition", "_position"
EVENT_COLUMNS = (EVENT_ID, VERSION, DELETED, PARTITION, POSITION)
"""Columns of an event log beside join keys, timestamps and inputs. No declared name begins so."""
SERVED = "_request_id"
"""The column by which a log of what was served is told from other tables."""


class Plan(BaseModel):
    """Frozen, strict, and equal when all fields are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Plan):
    """A column with its value type (`dtypes`)."""

    name: str
    dtype: str

    @property
    def type(self) -> DType:
        """The parsed value type."""
        return parse(self.dtype)


class FeaturePlan(Column):
    """A feature: a column and, unless it is a plain source column, the SQL that computes it."""

    expression: str | None = None
    description: str = ""


class SourcePlan(Plan):
    """A source as the engine reads it; `path` is as declared, relative to the repository.

    Attributes:
        event_id: The column that tells an event; None where the row and its position do.
        version: The column that orders versions of an event.
        deleted: The column that takes an event away.
        stream: The URL of its live events, None where there are none.
    """

    name: str
    kind: Literal["parquet", "csv", "delta", "query"]
    path: str | None = None
    query: str | None = None
    event_timestamp: str
    created_timestamp: str | None = None
    timezone: str | None = None
    field_mapping: dict[str, str] = {}
    event_id: str | None = None
    version: str | None = None
    deleted: str | None = None
    stream: str | None = None

    @property
    def tells_created(self) -> bool:
        """Whether its rows have a created timestamp: live ones always do, and then all have one."""
        return self.created_timestamp is not None or self.stream is not None


class AggregatePlan(Plan):
    """How one feature of an aggregated view is computed.

    Attributes:
        function: The function.
        input: Index of the view's input that is aggregated; None counts events.
        by: Index of the input that is the second-level key, if any.
        size: The window, microseconds; None for lifetime (`semantics.windows.Window`).
        hop: Its tail's step.
        head_hop: Its head's step.
        offset: Zero or negative: how long before the instant it ends.
        k: See `Aggregate`.
        limit: See `Aggregate`.
        element_wise: See `Aggregate`.
        quantile: See `Aggregate`.
        relative_error: See `Aggregate`.
        default: What stands for null.
    """

    function: str
    input: int | None = None
    by: int | None = None
    size: int | None = None
    hop: int = 1
    head_hop: int = 1
    offset: int = 0
    k: int | None = None
    limit: int | None = None
    element_wise: bool = False
    quantile: float | None = None
    relative_error: float | None = None
    default: bool | int | float | str | None = None

    @property
    def window(self) -> Window:
        """Its window."""
        return Window(self.size, self.hop, self.head_hop, self.offset)


class EntityPlan(Plan):
    """An entity with the types of its join keys."""

    name: str
    join_keys: tuple[Column, ...]
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}


class ViewPlan(Plan):
    """A feature view: the newest row of each entity, or aggregates over its events.

    Attributes:
        aggregates: One a feature, in the same order; none in a view of newest rows.
        inputs: What an aggregated view takes of each event, computed when it is accepted.
        ttl_us: Microseconds that a row stays visible, None for ever.
        fingerprint: 16 hex digits over all that is declared.
        table_fingerprint: 16 hex digits over what changes the rows of its table.
    """

    name: str
    entities: tuple[str, ...]
    join_keys: tuple[Column, ...]
    features: tuple[FeaturePlan, ...]
    source: SourcePlan
    aggregates: tuple[AggregatePlan, ...] = ()
    inputs: tuple[FeaturePlan, ...] = ()
    where: str | None = None
    ttl_us: int | None = None
    online: bool = True
    schedule: str | None = None
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    fingerprint: str = ""
    table_fingerprint: str = ""

    @cached_property
    def row_schema(self) -> RowSchema:
        """How its rows are packed online."""
        return RowSchema(
            tuple(f.name for f in self.features),
            tuple(f.type for f in self.features),
            bytes.fromhex(self.table_fingerprint)[:FINGERPRINT_BYTES],
        )

    @cached_property
    def log(self) -> ViewPlan:
        """The view as its table holds it: an aggregated view's table is the log of its events."""
        if not self.aggregates:
            return self
        stored = (*_EVENT_FEATURES, *self.inputs)
        # Made anew: a copy would keep what is cached, such as the row schema of the features.
        held = {name: getattr(self, name) for name in type(self).model_fields}
        return ViewPlan(**held | {"features": stored, "aggregates": (), "inputs": ()})

    @property
    def generation(self) -> str:
        """Names its table within a project: a changed definition makes another one."""
        return f"{self.name}/{self.table_fingerprint}"

    @property
    def is_log(self) -> bool:
        """Whether its rows are versions of events (`log` of an aggregated view)."""
        return self.features[0].name == EVENT_ID

    def feature(self, name: str) -> FeaturePlan | None:
        """Return the feature of this name, or None."""
        return next((f for f in self.features if f.name == name), None)


_EVENT_FEATURES = tuple(
    FeaturePlan(name=name, dtype=dtype)
    for name, dtype in zip(
        EVENT_COLUMNS, ("string", "int64", "bool", "string", "int64"), strict=True
    )
)


class Selection(Plan):
    """Some features of a view or on-demand view, perhaps under an alias.

    Attributes:
        view: The view's name.
        features: The chosen features; never empty once compiled.
        alias: The name in references and full names; the view's own without an alias.
        join_keys: {the view's join key: the entity rows' column}, only where they differ.
    """

    view: str
    features: tuple[str, ...]
    alias: str
    join_keys: dict[str, str] = {}


class OnDemandPlan(Plan):
    """An on-demand view; its function stays in the definitions and is told by `code_fingerprint`.

    Attributes:
        inputs: Selections of views and of other on-demand views.
        request: Fields that the request carries.
        features: What the function returns.
        code_fingerprint: 16 hex digits over the function's source.
    """

    name: str
    inputs: tuple[Selection, ...]
    request: tuple[Column, ...]
    features: tuple[FeaturePlan, ...]
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    code_fingerprint: str = ""
    fingerprint: str = ""


class ServicePlan(Plan):
    """A feature service: an ordered list of selections."""

    name: str
    features: tuple[Selection, ...]
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    fingerprint: str = ""


class Catalog(Plan):
    """All definitions of a project, each in its own dictionary by name."""

    project: str
    entities: dict[str, EntityPlan] = {}
    views: dict[str, ViewPlan] = {}
    on_demand: dict[str, OnDemandPlan] = {}
    services: dict[str, ServicePlan] = {}


def table_id(project: str, view: ViewPlan) -> str:
    """Return the id of a view's table: one folder a version of its rows."""
    return f"{project}/{view.generation}"
