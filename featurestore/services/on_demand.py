"""On-demand views: the functions of the definitions are called and held to what they declare.

Training sets and online lookups run the same steps here on the same types, so that equal inputs
give equal outputs. A function whose code is not the one that was applied is never called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from featurestore.clock import Clock, SystemClock
from featurestore.compile.plan import Column, OnDemandPlan
from featurestore.compile.request import OnDemandStep, RequestPlan, slot
from featurestore.errors import DataError, NotMaterializedError
from featurestore.services.frames import to_polars
from featurestore.services.lossless import lossless

if TYPE_CHECKING:
    import pyarrow as pa

Function = Callable[[Any], Any]


class OnDemandFunctions:
    """The functions of on-demand views, as the code on this machine has them.

    Args:
        load: Returns {on-demand view: (function, fingerprint of its code)}.
        clock: Tells when loading may be tried again.
        retry_seconds: The least time between two attempts to find code that is not there.
    """

    def __init__(
        self,
        load: Callable[[], Mapping[str, tuple[Function, str]]],
        clock: Clock | None = None,
        retry_seconds: float = 5.0,
    ) -> None:
        self._load = load
        self._clock = clock or SystemClock()
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._loaded: Mapping[str, tuple[Function, str]] | None = None
        self._not_before = float("-inf")

    def get(self, plan: OnDemandPlan) -> Function:
        """Return the function of an on-demand view; the definitions are loaded again if need be.

        Raises:
            NotMaterializedError: The code on this machine is not the one that was applied.
            DefinitionError: The definitions cannot be loaded.
        """
        found = self._find(plan)
        if found is None:
            with self._lock:
                found = self._find(plan) or self._reload(plan)
        if found is None:
            held = (self._loaded or {}).get(plan.name)
            raise NotMaterializedError(
                f"The code of the on-demand view '{plan.name}' on this machine is not the one that"
                " was applied.",
                got=f"code {held[1]}" if held else "no such on-demand view",
                allowed=f"code {plan.code_fingerprint}",
                hint="Run 'featurestore apply' with this code, or deploy what was applied.",
            )
        return found

    def _find(self, plan: OnDemandPlan) -> Function | None:
        held = (self._loaded or {}).get(plan.name)
        return held[0] if held is not None and held[1] == plan.code_fingerprint else None

    def _reload(self, plan: OnDemandPlan) -> Function | None:
        # Importing definitions is slow: requests for code that is missing must not repeat it.
        if self._clock.monotonic() >= self._not_before:
            self._loaded = self._load()
            self._not_before = self._clock.monotonic() + self._retry_seconds
        return self._find(plan)


def run_steps(
    plan: RequestPlan,
    slots: Mapping[str, pa.Array],
    request: Mapping[str, pa.Array],
    rows: int,
    functions: OnDemandFunctions,
) -> dict[str, pa.Array]:
    """Return the slots together with those that the on-demand views of a request fill.

    Args:
        plan: The request.
        slots: Features of views by slot, of their declared types; `rows` values each.
        request: Request fields by name, of their declared types; `rows` values each.
        rows: How many rows there are; none at all will do.
        functions: Where the functions are.

    Raises:
        NotMaterializedError: The code on this machine is not the one that was applied.
        DataError: A function failed, or returned something else than it declares.
    """
    filled = dict(slots)
    for step in plan.steps:
        inputs = {name: filled[held] for name, held in step.inputs}
        inputs |= {field.name: request[field.name] for field in step.request}
        columns = _run(step, inputs, rows, functions.get(step.plan))
        filled |= {slot(step.plan.name, name): column for name, column in columns.items()}
    return filled


def _run(
    step: OnDemandStep, inputs: dict[str, pa.Array], rows: int, function: Function
) -> dict[str, pa.Array]:
    import polars as pl
    import pyarrow as pa

    plan = step.plan
    frame = to_polars(pa.table(inputs))
    try:
        result = function(frame)
        if isinstance(result, pl.LazyFrame):
            result = result.collect()
    except Exception as error:  # the user's code may raise anything
        columns = ", ".join(f"{name} {array.type}" for name, array in inputs.items())
        raise _failure(
            plan,
            "failed",
            got=f"{type(error).__name__}: {error}",
            hint=f"It was given {rows} rows of {columns}.",
        ) from error
    _check(plan, result, rows)
    return {f.name: _column(plan.name, f, result[f.name]) for f in plan.features}


def _check(plan: OnDemandPlan, result: Any, rows: int) -> None:
    import polars as pl

    if not isinstance(result, pl.DataFrame):
        raise _failure(
            plan, "returned no DataFrame", got=type(result).__name__, allowed="polars.DataFrame"
        )
    if result.height != rows:
        raise _failure(
            plan,
            "changed the number of rows",
            got=f"{result.height} rows",
            allowed=f"{rows} rows, one for each that it was given, in their order",
        )
    for feature in plan.features:
        if feature.name not in result.columns:
            raise _failure(
                plan,
                f"did not return '{feature.name}'",
                got=", ".join(result.columns),
                allowed=", ".join(f"{f.name} {f.dtype}" for f in plan.features),
            )


def _failure(plan: OnDemandPlan, verb: str, **details: str) -> DataError:
    return DataError(
        f"The function of '{plan.name}' {verb}.", where=f"on-demand view '{plan.name}'", **details
    )


def _column(view: str, feature: Column, series: Any) -> pa.Array:
    import pyarrow as pa

    from featurestore.semantics.nan import with_one_nan

    try:
        array = series.to_arrow()
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _wrong_type(view, feature, series) from error
    column = lossless(array, feature.type)
    if column is None:
        raise _wrong_type(view, feature, series)
    return with_one_nan(column)


def _wrong_type(view: str, feature: Column, series: Any) -> DataError:
    return DataError(
        f"'{view}:{feature.name}' came back from its function with values that are no"
        f" {feature.dtype}.",
        where=f"on-demand view '{view}'",
        got=f"polars {series.dtype}",
        allowed=feature.dtype,
        hint="Cast it at the end of the function.",
    )
