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
    """A source as the engine reads it; `path` is as declared, relative to the repository."""

    name: str
    kind: Literal["parquet", "csv", "delta", "query"]
    path: str | None = None
    query: str | None = None
    event_timestamp: str
    created_timestamp: str | None = None
    timezone: str | None = None
    field_mapping: dict[str, str] = {}


class EntityPlan(Plan):
    """An entity with the types of its join keys."""

    name: str
    join_keys: tuple[Column, ...]
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}


class ViewPlan(Plan):
    """A feature view.

    Attributes:
        ttl_us: Microseconds that a row stays visible, None for ever.
        fingerprint: 16 hex digits over all that is declared.
        table_fingerprint: 16 hex digits over what changes the rows of its table.
    """

    name: str
    entities: tuple[str, ...]
    join_keys: tuple[Column, ...]
    features: tuple[FeaturePlan, ...]
    source: SourcePlan
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

    def feature(self, name: str) -> FeaturePlan | None:
        """Return the feature of this name, or None."""
        return next((f for f in self.features if f.name == name), None)


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
    return f"{project}/{view.name}/{view.table_fingerprint}"
