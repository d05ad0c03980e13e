"""Aggregates become plans: inputs get types, windows microseconds, functions are checked (laws W).

Equal inputs are kept once. What a function gives for a type is told by `semantics.aggregates`, how
windows are counted by `semantics.windows`; both are only asked here.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile.event_sql import check_events
from featurestore.compile.plan import AggregatePlan, FeaturePlan, ViewPlan
from featurestore.compile.source_sql import Describe, MappedSource, row_types
from featurestore.compile.source_types import value_type
from featurestore.compile.table_sql import quote
from featurestore.errors import DefinitionError, near_miss
from featurestore.semantics.aggregates import FUNCTIONS, AggregateSpec
from featurestore.semantics.windows import make_window

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.dtypes import DType
    from featurestore.model.columns import Aggregate
    from featurestore.model.declarations import FeatureView

INPUT = "_input_{0}"


@dataclass(frozen=True)
class Compiled:
    """What a view's aggregates mean; `features` and `aggregates` go together."""

    features: tuple[FeaturePlan, ...]
    aggregates: tuple[AggregatePlan, ...]
    inputs: tuple[FeaturePlan, ...]


def compile_aggregates(
    view: FeatureView, mapped: MappedSource, where: str | None, describe: Describe
) -> Compiled:
    """Return the plans of a view's aggregates.

    Raises:
        DefinitionError: A function is unknown or does not fit its input, or a window is wrong.
        SourceSchemaError: A column is not there, or of a type that cannot be aggregated.
    """
    check_events(mapped)
    _check_functions(view)
    texts: dict[str, str] = {}
    for aggregate in view.aggregates:
        for text in (_input(aggregate, mapped), _by(aggregate, mapped)):
            if text is not None:
                texts.setdefault(text, _label(aggregate))
    names = {text: INPUT.format(i) for i, text in enumerate(texts)}
    arrows = row_types(mapped, {names[text]: text for text in texts}, where, describe)
    inputs = tuple(
        FeaturePlan(
            name=names[text],
            dtype=str(value_type(label, "feature", arrows[names[text]], None, mapped.source)),
            expression=text,
        )
        for text, label in texts.items()
    )
    positions = {text: i for i, text in enumerate(texts)}
    features: list[FeaturePlan] = []
    plans: list[AggregatePlan] = []
    for aggregate in view.aggregates:
        source, by = _input(aggregate, mapped), _by(aggregate, mapped)
        made = _plans(
            aggregate,
            None if source is None else positions[source],
            None if by is None else positions[by],
        )
        dtype = _result(aggregate, made[0], inputs)
        features += [
            FeaturePlan(name=name, dtype=str(dtype), description=aggregate.description)
            for name in aggregate.names
        ]
        plans += made
    return Compiled(tuple(features), tuple(plans), inputs)


def spec_of(view: ViewPlan, plan: AggregatePlan) -> AggregateSpec:
    """Return what an aggregate of a view computes, apart from its window and its default."""
    return _spec(plan, view.inputs)


def with_default(array: pa.Array, plan: AggregatePlan) -> pa.Array:
    """Return a feature's values with its default in place of nulls."""
    import pyarrow as pa

    if plan.default is None or not array.null_count:
        return array
    return array.fill_null(pa.scalar(plan.default, array.type))


def _spec(plan: AggregatePlan, inputs: tuple[FeaturePlan, ...]) -> AggregateSpec:
    return AggregateSpec(
        function=plan.function,
        dtype=None if plan.input is None else inputs[plan.input].type,
        by=None if plan.by is None else inputs[plan.by].type,
        k=plan.k,
        limit=plan.limit,
        element_wise=plan.element_wise,
        quantile=plan.quantile,
        relative_error=plan.relative_error,
    )


def _check_functions(view: FeatureView) -> None:
    for aggregate in view.aggregates:
        if aggregate.function not in FUNCTIONS:
            raise DefinitionError(
                f"'{aggregate.function}' is no aggregate function.",
                got=_label(aggregate),
                allowed=", ".join(FUNCTIONS),
                hint=near_miss(aggregate.function, FUNCTIONS),
            )
        if aggregate.column is None and aggregate.function != "count":
            raise DefinitionError(
                f"{aggregate.function} needs a column.", got=_label(aggregate), hint="Say column=."
            )


def _input(aggregate: Aggregate, mapped: MappedSource) -> str | None:
    """Return the SQL of what is aggregated, None where events themselves are counted."""
    text = _expression(aggregate.column, mapped, "the column of an aggregate")
    if aggregate.where is None:
        return text
    condition = textwrap.dedent(aggregate.where).strip()
    return f"CASE WHEN (\n{condition}\n) THEN {text or 'true'} END"


def _by(aggregate: Aggregate, mapped: MappedSource) -> str | None:
    return _expression(aggregate.by, mapped, "the second-level key of an aggregate")


def _expression(text: str | None, mapped: MappedSource, role: str) -> str | None:
    if text is None:
        return None
    tidy = textwrap.dedent(text).strip()
    return quote(mapped.column(tidy, role)) if tidy.isidentifier() else f"(\n{tidy}\n)"


def _plans(aggregate: Aggregate, source: int | None, by: int | None) -> list[AggregatePlan]:
    windows = [
        make_window(text, hop=aggregate.hop, head_hop=aggregate.head_hop, offset=aggregate.offset)
        for text in aggregate.windows
    ]
    return [
        AggregatePlan(
            function=aggregate.function,
            input=source,
            by=by,
            size=window.size,
            hop=window.hop,
            head_hop=window.head_hop,
            offset=window.offset,
            k=aggregate.k,
            limit=aggregate.limit,
            element_wise=aggregate.element_wise,
            quantile=aggregate.quantile,
            relative_error=aggregate.relative_error,
            default=aggregate.default,
        )
        for window in windows
    ]


def _result(aggregate: Aggregate, plan: AggregatePlan, inputs: tuple[FeaturePlan, ...]) -> DType:
    spec = _spec(plan, inputs)
    try:
        spec.check()
    except DefinitionError as error:
        error.got = f"{_label(aggregate)}{f', {error.got}' if error.got else ''}"
        raise
    if aggregate.default is not None:
        _check_default(aggregate, spec.result, aggregate.default)
    return spec.result


def _check_default(aggregate: Aggregate, dtype: DType, default: Any) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "bool": (bool,),
        "int32": (int,),
        "int64": (int,),
        "float32": (int, float),
        "float64": (int, float),
        "string": (str,),
    }
    allowed = () if dtype.container else kinds.get(dtype.scalar, ())
    fits = isinstance(default, allowed) and isinstance(default, bool) == (bool in allowed)
    if not fits or default != default:  # noqa: PLR0124
        raise DefinitionError(
            f"default={default!r} does not fit the feature.",
            got=_label(aggregate),
            allowed=f"a value of {dtype}" if allowed else f"no default for {dtype}",
        )


def _label(aggregate: Aggregate) -> str:
    return aggregate.names[0]
