"""What an aggregate is by name: its functions, what each takes, what it gives, and what it refuses.

Plain data, cheap to import. How values are computed is the business of the other rooms; two specs
whose `state` is equal are answered from the same states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from featurestore.dtypes import KEY_SCALARS, SCALARS, DType
from featurestore.errors import DefinitionError, near_miss

FUNCTIONS: tuple[str, ...] = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "variance",
    "stddev",
    "skew",
    "kurtosis",
    "first",
    "last",
    "first_k",
    "last_k",
    "first_distinct",
    "last_distinct",
    "top_k",
    "bottom_k",
    "histogram",
    "count_distinct",
    "approx_count_distinct",
    "approx_quantile",
)
DEFAULT_QUANTILE = 0.5
DEFAULT_RELATIVE_ERROR = 0.01

_NUMBERS = ("int32", "int64", "float32", "float64")
_NUMERIC = {"sum", "mean", "variance", "stddev", "skew", "kurtosis", "approx_quantile"}
_LISTS = {"first_k", "last_k", "first_distinct", "last_distinct", "top_k", "bottom_k"}
_COUNTS = {"count", "count_distinct", "approx_count_distinct"}
_ITEMS = {"min", "max", "first", "last"}
_MOST_ITEMS = 100_000
_LEAST_ERROR, _LARGEST_ERROR = 0.0001, 0.5
# Functions that read the same states, and the one that these are called by.
_STATES = {
    "mean": "sum",
    "stddev": "variance",
    "first": "first_k",
    "last": "last_k",
}


@dataclass(frozen=True)
class AggregateSpec:
    """One aggregate over the events of a window, without its window.

    Attributes:
        function: One of `FUNCTIONS`.
        dtype: The type of the input column: a scalar, or a list, vector or map of them. None only
            for the count of events.
        by: The type of a second-level key; the result is then a map with a value a key.
        k: How many items `first_k`, `last_k`, `first_distinct`, `last_distinct`, `top_k` and
            `bottom_k` give; for `histogram`, how many of the most frequent values (None: all).
        limit: What `count_distinct` saturates at; None counts all.
        element_wise: Whether lists and vectors are aggregated position by position; otherwise
            their items count as so many values.
        quantile: Which quantile `approx_quantile` gives, 0 to 1; None is the median.
        relative_error: How far its result may be off, relative to the exact one; None is 0.01.
    """

    function: str
    dtype: DType | None = None
    by: DType | None = None
    k: int | None = None
    limit: int | None = None
    element_wise: bool = False
    quantile: float | None = None
    relative_error: float | None = None

    def check(self) -> None:
        """Refuse a spec that makes no sense.

        Raises:
            DefinitionError: The function is unknown, or does not fit the input's type; an argument
                is missing, needless or out of range.
        """
        if self.function not in FUNCTIONS:
            raise DefinitionError(
                f"'{self.function}' is no aggregate function.",
                allowed=", ".join(FUNCTIONS),
                hint=near_miss(self.function, FUNCTIONS),
            )
        self._check_arguments()
        self._check_input()
        self._check_shape()

    @cached_property
    def result(self) -> DType:
        """The type of the results."""
        inner = self._inner_result
        keys = self.dtype.key if self.dtype is not None else ""
        if self.by is not None:
            return DType(inner.scalar, "map", key=self.by.scalar)
        if keys:
            return DType(inner.scalar, "map", key=keys)
        if self.element_wise and self.dtype is not None:
            return DType(inner.scalar, self.dtype.container, self.dtype.length)
        return inner

    @cached_property
    def state(self) -> AggregateSpec:
        """The spec that stands for all that are answered from the same states."""
        function = _STATES.get(self.function, self.function)
        if function == "count" and self._scalar in _NUMBERS:
            function = "sum"
        k = 1 if self.function in {"first", "last"} else self.k
        error = self.relative_error
        if function == "approx_quantile" and error is None:
            error = DEFAULT_RELATIVE_ERROR
        return replace(
            self,
            function=function,
            k=k if function in _LISTS else None,
            quantile=None,
            relative_error=error,
        )

    @cached_property
    def inner(self) -> AggregateSpec:
        """The spec one level down: of one key's values, of one position, of a list's items."""
        if self.by is not None:
            return replace(self, by=None)
        item = None if self.dtype is None else self.dtype.item
        return replace(self, dtype=item, element_wise=False)

    @property
    def _scalar(self) -> str:
        return "" if self.dtype is None else self.dtype.scalar

    @property
    def _inner_result(self) -> DType:
        """The type of the result for one key or one position."""
        if self.function in _COUNTS:
            return DType("int64")
        if self.function == "sum":
            return DType("int64" if self._scalar in {"int32", "int64"} else "float64")
        if self.function in _ITEMS:
            return DType(self._scalar)
        if self.function in _LISTS:
            return DType(self._scalar, "list")
        if self.function == "histogram":
            return DType("int64", "map", key=self._scalar)
        return DType("float64")

    def _check_arguments(self) -> None:
        takes_k = self.function in _LISTS or self.function == "histogram"
        self._check_whole("k", self.k, is_taken=takes_k, is_needed=self.function in _LISTS)
        self._check_whole("limit", self.limit, is_taken=self.function == "count_distinct")
        is_quantile = self.function == "approx_quantile"
        errors = (_LEAST_ERROR, _LARGEST_ERROR)
        self._check_between("quantile", self.quantile, (0, 1), is_taken=is_quantile)
        self._check_between("relative_error", self.relative_error, errors, is_taken=is_quantile)

    def _check_whole(
        self, name: str, value: Any, *, is_taken: bool, is_needed: bool = False
    ) -> None:
        self._check_taken(name, value, is_taken=is_taken)
        if value is None and is_needed:
            raise DefinitionError(
                f"'{self.function}' needs {name}: how many items it gives.",
                hint=f"Write {name}=10, for example.",
            )
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_ITEMS:
            raise DefinitionError(
                f"The {name} of '{self.function}' is not right.",
                got=repr(value),
                allowed=f"a whole number from 1 to {_MOST_ITEMS:,}",
            )

    def _check_between(
        self, name: str, value: Any, bounds: tuple[float, float], *, is_taken: bool
    ) -> None:
        self._check_taken(name, value, is_taken=is_taken)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and bounds[0] <= value <= bounds[1]):
            raise DefinitionError(
                f"The {name} of '{self.function}' is not right.",
                got=repr(value),
                allowed=f"a number from {bounds[0]} to {bounds[1]}",
            )

    def _check_taken(self, name: str, value: object, *, is_taken: bool) -> None:
        if value is not None and not is_taken:
            raise DefinitionError(
                f"'{self.function}' takes no {name}.", got=f"{name}={value!r}", hint="Leave it out."
            )

    def _check_input(self) -> None:
        if self.dtype is None:
            if self.function != "count":
                raise DefinitionError(
                    f"'{self.function}' needs a column.", hint="Only 'count' counts the events."
                )
            return
        allowed: tuple[str, ...] = SCALARS
        if self.function in _NUMERIC:
            allowed = _NUMBERS
        elif self.function == "histogram":
            allowed = KEY_SCALARS
        if self.dtype.scalar not in allowed:
            raise DefinitionError(
                f"'{self.function}' does not fit a column of type {self.dtype}.",
                got=str(self.dtype),
                allowed=f"{', '.join(allowed)}, or lists of them",
                hint="Convert the column by an expression, such as CAST(x AS BIGINT).",
            )

    def _check_shape(self) -> None:
        container = "" if self.dtype is None else self.dtype.container
        if self.by is not None:
            self._check_by(self.by, container)
        if container == "map":
            self._check_scalar_result("a map column")
        if not self.element_wise:
            return
        if container not in {"list", "vector"}:
            raise DefinitionError(
                "element_wise= aggregates lists and vectors position by position.",
                got="events" if self.dtype is None else str(self.dtype),
                allowed="a list or a vector",
                hint="Leave it out.",
            )
        self._check_scalar_result("element_wise=")
        if container == "vector" and self._inner_result.scalar not in {"float32", "float64"}:
            raise DefinitionError(
                f"'{self.function}' of a vector would give a vector of whole numbers.",
                got=str(self.dtype),
                allowed="sum, mean, min, max, variance, stddev, skew, kurtosis, first, last",
                hint="Declare the column as a list, or leave element_wise= out.",
            )

    def _check_by(self, by: DType, container: str) -> None:
        if by.container or by.scalar not in KEY_SCALARS:
            raise DefinitionError(
                "A second-level key cannot be of this type.",
                got=str(by),
                allowed=", ".join(KEY_SCALARS),
                hint="Convert it by an expression, such as CAST(x AS BIGINT).",
            )
        if container == "map" or self.element_wise:
            what = "a map column" if container == "map" else "element_wise="
            raise DefinitionError(
                f"by= cannot be had with {what}: the result would nest.",
                hint="Leave by= out, or aggregate a scalar column.",
            )
        self._check_scalar_result("by=")

    def _check_scalar_result(self, what: str) -> None:
        if self._inner_result.container:
            single = [f for f in FUNCTIONS if f not in _LISTS and f != "histogram"]
            raise DefinitionError(
                f"'{self.function}' cannot be had with {what}: the result would nest.",
                got=f"a {self._inner_result} for each item",
                allowed=", ".join(single),
            )
