"""What a request for features means: which views to join, by which columns, under which names.

Training sets and online lookups resolve their `features` here, so that they mean the same. The
result is data: joins, on-demand steps in an order in which each finds its inputs, and the output
columns. Names inside are slots `alias__feature`, unique within a request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.compile.plan import (
    Catalog,
    Column,
    OnDemandPlan,
    Selection,
    ServicePlan,
    ViewPlan,
)
from featurestore.compile.selection import Selectable, as_selection
from featurestore.errors import (
    FeatureNotFoundError,
    NameClashError,
    NotMaterializedError,
    RequestError,
    listing,
    near_miss,
)
from featurestore.model.base import Declaration
from featurestore.model.declarations import FeatureService

FeaturesArgument = str | FeatureService | Sequence[Selectable]


@dataclass(frozen=True)
class Join:
    """A view joined once.

    Attributes:
        view: The plan that is served.
        alias: Its name in this request.
        key_columns: The entity rows' column of each join key, in declared order.
        features: The features to fetch, in the view's declared order.
    """

    view: ViewPlan
    alias: str
    key_columns: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class OnDemandStep:
    """An on-demand view computed once.

    Attributes:
        plan: The on-demand view.
        inputs: (input column of the function, slot that holds it).
        request: Request fields, passed under their own names.
        features: The features that are used of what the function returns.
    """

    plan: OnDemandPlan
    inputs: tuple[tuple[str, str], ...]
    request: tuple[Column, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """A column of the result: its name, the slot that holds it and its type."""

    name: str
    slot: str
    column: Column
    reference: str


@dataclass(frozen=True)
class RequestPlan:
    """A resolved request.

    Attributes:
        service: The name of the service that was asked for, if any.
        joins: The views to join.
        steps: On-demand views, each after those that it needs.
        outputs: The result's feature columns in the order asked for.
        request_fields: What must come with the request.
    """

    service: str | None
    joins: tuple[Join, ...]
    steps: tuple[OnDemandStep, ...]
    outputs: tuple[Output, ...]
    request_fields: tuple[Column, ...]

    @property
    def key_columns(self) -> tuple[tuple[str, Column], ...]:
        """(entity column, join key) of all joins, each column once, in order of first use."""
        return tuple((name, key) for name, (key, _) in _key_columns(self.joins).items())


def slot(alias: str, feature: str) -> str:
    """Return the name under which a request holds a feature of a view or alias."""
    return f"{alias}__{feature}"


def input_name(selection: Selection, feature: str) -> str:
    """Return the column by which an on-demand function gets a feature.

    It is the feature's name, or `alias__feature` where the view was given an alias, so that a view
    that is joined twice gives two columns.
    """
    return feature if selection.alias == selection.view else slot(selection.alias, feature)


def resolve(
    catalog: Catalog,
    serving: Mapping[str, ViewPlan],
    features: FeaturesArgument,
    *,
    full_feature_names: bool = False,
) -> RequestPlan:
    """Return what a request means.

    Args:
        catalog: The applied definitions.
        serving: The plans that reads are answered from, by view.
        features: A service, its name, or a list of `view:feature` references and selections.
        full_feature_names: Name result columns `view__feature`.

    Raises:
        FeatureNotFoundError: A reference names nothing; the near miss is suggested.
        NotMaterializedError: A feature is applied but its view's new table is not complete yet.
        NameClashError: Two result columns would share a name, or a join key's column two types.
        RequestError: `features` is no list of references.
    """
    service, selections = _selections(catalog, features)
    builder = _Builder(catalog, serving)
    for selection, origin in selections:
        builder.ask(selection, origin)
    outputs = builder.outputs(full_names=full_feature_names)
    _refuse_clashes(outputs)
    joins = builder.joins()
    _key_columns(joins)
    return RequestPlan(
        service=service,
        joins=joins,
        steps=tuple(builder.steps.values()),
        outputs=outputs,
        request_fields=builder.request_fields(),
    )


def _selections(
    catalog: Catalog, features: FeaturesArgument
) -> tuple[str | None, list[tuple[Selection, str]]]:
    if isinstance(features, FeatureService):
        features = features.name
    if isinstance(features, str):
        service = catalog.services.get(features)
        if service is None:
            raise _no_service(catalog, features)
        origin = f"FeatureService '{service.name}'"
        return service.name, [(selection, origin) for selection in service.features]
    items: Any = features  # the caller's word; a view alone would be iterated field by field
    if isinstance(items, Declaration):
        raise RequestError("Features come as a list.", got=repr(items), hint="Write [...].")
    if not items:
        raise RequestError(
            "A request asks for no feature.", allowed="a service or view:feature references"
        )
    return None, [(as_selection(catalog, item), "the request") for item in items]


class _Builder:
    """Collects what selections need: each alias joined once, each on-demand view computed once."""

    def __init__(self, catalog: Catalog, serving: Mapping[str, ViewPlan]) -> None:
        self._catalog = catalog
        self._serving = serving
        self._joins: dict[str, tuple[ViewPlan, dict[str, str], set[str]]] = {}
        self._asked: list[tuple[str, str, Column, str]] = []
        self.steps: dict[str, OnDemandStep] = {}

    def ask(self, selection: Selection, origin: str) -> None:
        """Add a selection to the outputs."""
        self._need(selection, origin)
        plan = self._served(selection.view, origin)
        for name in selection.features:
            feature = next(f for f in plan.features if f.name == name)
            column = Column(name=name, dtype=feature.dtype)
            self._asked.append((selection.alias, name, column, f"{selection.alias}:{name}"))

    def _need(self, selection: Selection, origin: str) -> None:
        plan = self._served(selection.view, origin)
        known = {feature.name for feature in plan.features}
        for name in selection.features:
            if name not in known:
                raise NotMaterializedError(
                    f"'{selection.view}:{name}' is applied, but its new table is not complete yet.",
                    where=origin,
                    hint="Run 'featurestore materialize-incremental'; until then the view's former"
                    " definition serves.",
                )
        if isinstance(plan, OnDemandPlan):
            self._need_on_demand(plan, selection)
            return
        held = self._joins.setdefault(selection.alias, (plan, selection.join_keys, set()))
        if held[0].name != plan.name or held[1] != selection.join_keys:
            raise NameClashError(
                f"'{selection.alias}' names two different joins in one request.",
                where=origin,
                hint="Give one of them another alias.",
            )
        held[2].update(selection.features)

    def _need_on_demand(self, plan: OnDemandPlan, selection: Selection) -> None:
        inputs: list[tuple[str, str]] = []
        for source in plan.inputs:
            self._need(source, f"on-demand view '{plan.name}'")
            inputs += [(input_name(source, f), slot(source.alias, f)) for f in source.features]
        held = self.steps.get(plan.name)
        wanted = {*selection.features, *(held.features if held else ())}
        ordered = tuple(f.name for f in plan.features if f.name in wanted)
        self.steps[plan.name] = OnDemandStep(plan, tuple(inputs), plan.request, ordered)

    def _served(self, view: str, origin: str) -> ViewPlan | OnDemandPlan:
        on_demand = self._catalog.on_demand.get(view)
        if on_demand is not None:
            return on_demand
        plan = self._serving.get(view)
        if plan is None:
            raise FeatureNotFoundError(
                f"'{view}' names no applied feature view.",
                where=origin,
                allowed=listing(self._serving),
                hint=near_miss(view, self._serving),
            )
        return plan

    def joins(self) -> tuple[Join, ...]:
        """The joins in order of first use."""
        result = []
        for alias, (view, mapping, wanted) in self._joins.items():
            keys = tuple(mapping.get(key.name, key.name) for key in view.join_keys)
            features = tuple(f.name for f in view.features if f.name in wanted)
            result.append(Join(view, alias, keys, features))
        return tuple(result)

    def outputs(self, *, full_names: bool) -> tuple[Output, ...]:
        """The result's columns; a feature asked for twice appears once."""
        unique: dict[str, Output] = {}
        for alias, name, column, reference in self._asked:
            full = slot(alias, name)
            output = Output(full if full_names else name, full, column, reference)
            unique.setdefault(full, output)
        return tuple(unique.values())

    def request_fields(self) -> tuple[Column, ...]:
        """The request fields of all steps, each once."""
        fields: dict[str, Column] = {}
        for step in self.steps.values():
            for field in step.request:
                if fields.setdefault(field.name, field).dtype != field.dtype:
                    raise NameClashError(
                        f"The request field '{field.name}' is declared with two types.",
                        got=f"{fields[field.name].dtype} and {field.dtype}",
                    )
        return tuple(fields.values())


def _key_columns(joins: Iterable[Join]) -> dict[str, tuple[Column, Join]]:
    seen: dict[str, tuple[Column, Join]] = {}
    for join in joins:
        for name, key in zip(join.key_columns, join.view.join_keys, strict=True):
            held, other = seen.setdefault(name, (key, join))
            if held.dtype != key.dtype:
                raise NameClashError(
                    f"The column '{name}' is to be a join key of two types.",
                    got=f"{held.dtype} in '{other.alias}', {key.dtype} in '{join.alias}'",
                    hint=f"Join one of them by another column: view.alias('{join.alias}_2',"
                    f" join_keys={{'{key.name}': '...'}}).",
                )
    return seen


def _refuse_clashes(outputs: Iterable[Output]) -> None:
    seen: dict[str, Output] = {}
    for output in outputs:
        other = seen.setdefault(output.name, output)
        if other is not output:
            raise NameClashError(
                f"Two features would share the result column '{output.name}'.",
                got=f"{other.reference} and {output.reference}",
                hint="Ask with full_feature_names=True, or leave one out.",
            )


def _no_service(catalog: Catalog, name: str) -> FeatureNotFoundError:
    hint = near_miss(name, catalog.services)
    if ":" in name:
        hint = f"A single reference goes in a list: ['{name}']."
    return FeatureNotFoundError(
        f"'{name}' names no applied feature service.",
        allowed=listing(catalog.services),
        hint=hint or "Run 'featurestore apply' if it is new.",
    )


def service_plan(catalog: Catalog, name: str) -> ServicePlan:
    """Return a service by name.

    Raises:
        FeatureNotFoundError: There is none of this name.
    """
    service = catalog.services.get(name)
    if service is None:
        raise _no_service(catalog, name)
    return service
