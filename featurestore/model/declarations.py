"""The nouns of a definitions module: entities, views and services.

Pure values: nothing is opened, compiled or registered here. Column types may be left out; they are
read from the source when the definitions are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pydantic import field_validator, model_validator

from featurestore.errors import DefinitionError, listing, near_miss
from featurestore.model.base import Declaration, Name, Tags, Text, is_reserved, repeated
from featurestore.model.columns import Aggregate, Field, require_types
from featurestore.model.cron import check_cron
from featurestore.model.sources import FileSource, RequestSource, StreamSource

_MAX_TTL = timedelta(days=3_652_425)


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
        if repeated(value):
            raise ValueError("the join keys of an entity differ from each other")
        for key in value:
            if is_reserved(key):
                raise ValueError(f"'{key}' is a column of every table and no join key")
        return value


class FeatureSelection(Declaration):
    """Some features of a view, or the view under an alias with other join keys.

    Made by `view["a", "b"]` and `view.alias(name, join_keys={...})`.

    Attributes:
        view: The view's name.
        features: The chosen features; None takes all.
        alias_name: Another name for the view in this request or service.
        join_keys: {the view's join key: the entity rows' column}.
    """

    view: Name
    features: tuple[str, ...] | None = None
    alias_name: Name | None = None
    join_keys: dict[str, str] = {}

    @field_validator("features")
    @classmethod
    def _some_features(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("choose one feature or more")
        return value

    def __getitem__(self, features: str | tuple[str, ...]) -> FeatureSelection:
        """Return the selection narrowed to these features."""
        names = (features,) if isinstance(features, str) else tuple(features)
        return FeatureSelection(
            view=self.view, features=names, alias_name=self.alias_name, join_keys=self.join_keys
        )

    def alias(self, name: str, join_keys: dict[str, str] | None = None) -> FeatureSelection:
        """Return the selection under another name, joined by other columns."""
        return FeatureSelection(
            view=self.view, features=self.features, alias_name=name, join_keys=join_keys or {}
        )


class FeatureView(Declaration):
    """Features of entities, computed from one source.

    They are columns of the newest row of each entity, or aggregates over windows of its events.

    Attributes:
        name: The view's name.
        entities: What the features describe; none at all makes global features.
        source: Where the rows come from.
        features: Column names, or fields with a type or a SQL expression; or else aggregates.
        where: A SQL condition; rows that do not meet it are no rows of the view.
        ttl: How long a row stays visible after its event; None for ever (law T3). Aggregates have
            none: their windows say how far back they look.
        online: Whether the newest values are pushed to the online store.
        schedule: A cron expression of five fields, UTC, for `featurestore schedule`.
    """

    name: Name
    entities: tuple[Entity, ...] = ()
    source: FileSource | StreamSource
    features: tuple[Field | Aggregate, ...]
    where: Text | None = None
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
        if value is not None and value > _MAX_TTL:
            raise ValueError("a ttl is 10,000 years at most; leave it out for no end")
        return value

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str | None) -> str | None:
        if value is not None:
            check_cron(value)
        return value

    @model_validator(mode="after")
    def _distinct_columns(self) -> FeatureView:
        names = self.feature_names
        if not names:
            raise ValueError("a view has one feature or more")
        if len({isinstance(feature, Aggregate) for feature in self.features}) > 1:
            raise ValueError(
                "aggregates and columns of the newest row do not go into one view; make two of it"
            )
        if self.aggregates and self.ttl is not None:
            raise ValueError("aggregates have no ttl: their windows say how far back they look")
        twice = repeated(self.join_keys)
        if twice:
            raise ValueError(
                f"two of its entities have the join key '{twice}'; give one another name, mapped by"
                " field_mapping= of the source"
            )
        twice = repeated((*names, *self.join_keys))
        if twice:
            raise ValueError(f"the column '{twice}' is declared twice (case does not count)")
        return self

    @property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """The aggregates; none in a view of newest rows."""
        return tuple(f for f in self.features if isinstance(f, Aggregate))

    @property
    def feature_names(self) -> list[str]:
        """The names of all features; an aggregate has one for each of its windows."""
        return [
            name
            for feature in self.features
            for name in (feature.names if isinstance(feature, Aggregate) else (feature.name,))
        ]

    @property
    def join_keys(self) -> tuple[str, ...]:
        """The join keys of all entities, in declared order."""
        return tuple(key for entity in self.entities for key in entity.join_keys)

    def __getitem__(self, features: str | tuple[str, ...]) -> FeatureSelection:
        """Return some of the view's features, for a service or a request."""
        names = (features,) if isinstance(features, str) else tuple(features)
        known = self.feature_names
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
        require_types(value, "a feature of an on-demand view")
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
            sources=sources,
            features=features,
            function=function,
            description=doc if description is None else description,
            owner=owner,
            tags=tags or {},
        )

    return declare


def _check_references(value: tuple[Any, ...], allowed: tuple[type, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("name one view or more")
    for item in value:
        if not isinstance(item, allowed):
            kinds = ", ".join("a name" if kind is str else kind.__name__ for kind in allowed)
            raise ValueError(f"{item!r} is none of: {kinds}")
    return value
