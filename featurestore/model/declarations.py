"""The nouns of a definitions module: entities, fields, sources, views and services.

Pure values: nothing is opened, compiled or registered here. Column types may be left out; they are
read from the source when the definitions are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from pydantic import field_validator, model_validator

from featurestore import dtypes
from featurestore.errors import DefinitionError, listing, near_miss
from featurestore.model.base import RESERVED, Declaration, Name, Tags

_CRON_FIELDS = 5


class Field(Declaration):
    """A named column: of a view, a request or the result of an on-demand view.

    Attributes:
        name: The feature's name.
        dtype: Its value type, such as "float64" or "list<string>"; None takes the source's.
        expression: SQL over the source's columns; None takes the column called `name`.
        description: For people.
    """

    name: Name
    dtype: str | None = None
    expression: str | None = None
    description: str = ""

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        return None if value is None else str(dtypes.parse(value))

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED:
            raise ValueError(f"'{value}' is a column of every table and no feature")
        return value


class Entity(Declaration):
    """A thing that has features, such as a customer; found by its join keys.

    Attributes:
        name: The entity's name.
        join_keys: The columns that identify it, in the order in which keys are encoded.
    """

    name: Name
    join_keys: tuple[Name, ...]
    description: str = ""
    owner: str = ""
    tags: Tags

    @field_validator("join_keys")
    @classmethod
    def _some_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("an entity has one join key or more (a global view has no entities)")
        if len(set(value)) != len(value):
            raise ValueError("the join keys of an entity differ from each other")
        return value


class FileSource(Declaration):
    """Rows in files: Parquet, CSV, a Delta table, or a DuckDB query over such files.

    Attributes:
        name: The source's name.
        path: A file, a glob, a folder of (Hive-partitioned) Parquet files or a Delta table,
            relative to the repository's folder.
        query: Instead of `path`: a DuckDB SELECT; `delta_scan('path')` reads a Delta table in it.
        format: "parquet", "csv" or "delta"; by default told from the path.
        event_timestamp: The column that says when a row's fact happened.
        created_timestamp: The column that says when it was learnt; without one, a fact counts as
            known when it happened.
        timezone: The zone of naive timestamp columns, such as "America/New_York"; without it they
            are refused (law T1).
        field_mapping: New names of source columns, {column: name}; all else uses the new names.
    """

    name: Name
    path: str | None = None
    query: str | None = None
    format: Literal["parquet", "csv", "delta"] | None = None
    event_timestamp: str
    created_timestamp: str | None = None
    timezone: str | None = None
    field_mapping: dict[str, str] = {}
    description: str = ""
    owner: str = ""
    tags: Tags

    @model_validator(mode="after")
    def _path_or_query(self) -> FileSource:
        if (self.path is None) == (self.query is None):
            raise ValueError("a source has either a path or a query")
        if self.query is not None and self.format is not None:
            raise ValueError("format= goes with path=; a query names its own readers")
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        import zoneinfo

        if value is not None and value not in zoneinfo.available_timezones():
            hint = near_miss(value, zoneinfo.available_timezones()) or "Use an IANA name."
            raise ValueError(f"'{value}' is no time zone. {hint}")
        return value


class RequestSource(Declaration):
    """Values that come with the request and are in no table: the inputs of on-demand views."""

    name: Name
    fields: tuple[Field, ...]
    description: str = ""

    @field_validator("fields")
    @classmethod
    def _typed(cls, value: tuple[Field, ...]) -> tuple[Field, ...]:
        _require_types(value, "a request field")
        return value


class FeatureSelection(Declaration):
    """Some features of a view, or the view under an alias with other join keys.

    Made by `view["a", "b"]` and `view.alias(name, join_keys={...})`.

    Attributes:
        view: The view's name.
        features: The chosen features; None takes all.
        alias: Another name for the view in this request or service.
        join_keys: {the view's join key: the entity rows' column}.
    """

    view: str
    features: tuple[str, ...] | None = None
    alias_name: Name | None = None
    join_keys: dict[str, str] = {}

    def __getitem__(self, features: str | tuple[str, ...]) -> FeatureSelection:
        """Return the selection narrowed to these features."""
        names = (features,) if isinstance(features, str) else tuple(features)
        return self.model_copy(update={"features": names})

    def alias(self, name: str, join_keys: dict[str, str] | None = None) -> FeatureSelection:
        """Return the selection under another name, joined by other columns."""
        return FeatureSelection(
            view=self.view, features=self.features, alias_name=name, join_keys=join_keys or {}
        )


class FeatureView(Declaration):
    """Features of entities, computed from one source: the newest row for each entity.

    Attributes:
        name: The view's name.
        entities: What the features describe; none at all makes global features.
        source: Where the rows come from.
        features: Column names, or fields with a type or a SQL expression.
        where: A SQL condition; rows that do not meet it are no rows of the view.
        ttl: How long a row stays visible after its event; None for ever (law T3).
        online: Whether the newest values are pushed to the online store.
        schedule: A cron expression of five fields, UTC, for `featurestore schedule`.
    """

    name: Name
    entities: tuple[Entity, ...] = ()
    source: FileSource
    features: tuple[Field, ...]
    where: str | None = None
    ttl: timedelta | None = None
    online: bool = True
    schedule: str | None = None
    description: str = ""
    owner: str = ""
    tags: Tags

    @field_validator("features", mode="before")
    @classmethod
    def _as_fields(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(Field(name=v) if isinstance(v, str) else v for v in value)
        return value

    @field_validator("ttl")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("a ttl is positive; leave it out for rows that never expire")
        return value

    @field_validator("schedule")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is not None and len(value.split()) != _CRON_FIELDS:
            raise ValueError("a schedule is a cron expression of five fields, as in '*/15 * * * *'")
        return value

    @model_validator(mode="after")
    def _distinct_columns(self) -> FeatureView:
        names = [field.name for field in self.features]
        if not names:
            raise ValueError("a view has one feature or more")
        for name in (*names, *self.join_keys):
            if (*names, *self.join_keys).count(name) > 1:
                raise ValueError(f"the column '{name}' is declared twice")
        return self

    @property
    def join_keys(self) -> tuple[str, ...]:
        """The join keys of all entities, in declared order."""
        return tuple(key for entity in self.entities for key in entity.join_keys)

    def __getitem__(self, features: str | tuple[str, ...]) -> FeatureSelection:
        """Return some of the view's features, for a service or a request."""
        names = (features,) if isinstance(features, str) else tuple(features)
        known = [field.name for field in self.features]
        for name in names:
            if name not in known:
                raise DefinitionError(
                    f"'{self.name}:{name}' names no feature.",
                    allowed=f"FeatureView '{self.name}' has: {listing(known)}",
                    hint=near_miss(name, known),
                )
        return FeatureSelection(view=self.name, features=names)

    def alias(self, name: str, join_keys: dict[str, str] | None = None) -> FeatureSelection:
        """Return the view under another name, joined by other columns of the entity rows.

        Args:
            name: The alias; references and full names use it.
            join_keys: {the view's join key: the entity rows' column}.
        """
        return FeatureSelection(view=self.name, alias_name=name, join_keys=join_keys or {})


class OnDemandFeatureView(Declaration):
    """Features that a Python function computes from other features and the request.

    The function maps a `polars.DataFrame` to one of as many rows, row by row: what it returns for a
    row depends on that row alone. Made by the decorator `on_demand_feature_view`; still callable.
    """

    name: Name
    sources: tuple[Any, ...]
    features: tuple[Field, ...]
    function: Callable[[Any], Any]
    description: str = ""
    owner: str = ""
    tags: Tags

    @field_validator("features")
    @classmethod
    def _typed(cls, value: tuple[Field, ...]) -> tuple[Field, ...]:
        _require_types(value, "a feature of an on-demand view")
        return value

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _check_references(value, (*_SELECTABLE, RequestSource, str))

    def __call__(self, inputs: Any) -> Any:
        """Apply the function to a frame of inputs."""
        return self.function(inputs)

    def __getitem__(self, features: str | tuple[str, ...]) -> FeatureSelection:
        """Return some of the view's features, for a service or a request."""
        names = (features,) if isinstance(features, str) else tuple(features)
        return FeatureSelection(view=self.name, features=names)


class FeatureService(Declaration):
    """The features that one model uses: views, parts of views, or `view:feature` references."""

    name: Name
    features: tuple[Any, ...]
    description: str = ""
    owner: str = ""
    tags: Tags

    @field_validator("features")
    @classmethod
    def _known_features(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _check_references(value, (*_SELECTABLE, str))


_SELECTABLE = (FeatureView, OnDemandFeatureView, FeatureSelection)


def on_demand_feature_view(
    *,
    sources: list[Any],
    features: list[Field],
    name: str | None = None,
    description: str | None = None,
    owner: str = "",
    tags: dict[str, str] | None = None,
) -> Callable[[Callable[[Any], Any]], OnDemandFeatureView]:
    """Declare the decorated function as an on-demand view, named after it.

    Args:
        sources: Views, selections, request sources, or names of views.
        features: What the function returns, each with its `dtype`.
        name: Another name than the function's.
        description: By default the first line of the function's docstring.
        owner: Who answers for it.
        tags: Free labels.
    """

    def declare(function: Callable[[Any], Any]) -> OnDemandFeatureView:
        doc = (function.__doc__ or "").strip().split("\n")[0]
        return OnDemandFeatureView(
            name=name or function.__name__,
            sources=tuple(sources),
            features=tuple(features),
            function=function,
            description=doc if description is None else description,
            owner=owner,
            tags=tags or {},
        )

    return declare


def _require_types(fields: tuple[Field, ...], what: str) -> None:
    if not fields:
        raise ValueError(f"{what} is missing: declare one or more")
    for field in fields:
        if field.dtype is None:
            raise ValueError(f"{what} needs its dtype; '{field.name}' has none")
    names = [field.name for field in fields]
    for field in fields:
        if names.count(field.name) > 1:
            raise ValueError(f"the field '{field.name}' is declared twice")


def _check_references(value: tuple[Any, ...], allowed: tuple[type, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("name one view or more")
    for item in value:
        if not isinstance(item, allowed):
            kinds = ", ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{item!r} is none of: {kinds}")
    return value
