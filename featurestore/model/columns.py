"""What columns a view or a request declares: fields, and aggregates over windows of events.

Pure values. How a window is counted is `semantics.windows`, what a function gives for which type
`semantics.aggregates`; both are asked when definitions are compiled.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import field_validator, model_validator

from featurestore import dtypes
from featurestore.model.base import Declaration, Name, Text, is_reserved, repeated

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
Scalar = bool | int | float | str


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
    expression: Text | None = None
    description: str = ""

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        return None if value is None else str(dtypes.parse(value))

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if is_reserved(value):
            raise ValueError(f"'{value}' is a column of every table and no feature")
        return value


class Aggregate(Declaration):
    """A function over the events in windows; one feature for each window (laws W1-W6).

    Features are called `{column}_{function}_{window}`, or `{function}_{window}` without a column.

    Attributes:
        function: count, sum, mean, min, max, variance, stddev, skew, kurtosis, first, last,
            first_k, last_k, first_distinct, last_distinct, top_k, bottom_k, histogram,
            count_distinct, approx_count_distinct or approx_quantile.
        column: What is aggregated: a column of the source or a SQL expression over one row; count
            needs none. Lists are flattened, maps aggregated key by key.
        windows: Such as "90s", "5m", "1h", "7d" and "lifetime".
        offset: How long before the instant the windows end, as in "-3d".
        hop: The step in which a window's tail moves; divides each window. By default the largest of
            1s, 10s, 1m, 5m, 1h and 1d that divides the window and is at most a 24th of it.
        head_hop: The step in which its head moves; by default a microsecond, so it slides.
        by: A second-level key, column or expression: the feature is a map with a value for each.
        k: How many, for first_k, last_k, first_distinct, last_distinct, top_k and bottom_k; for
            histogram, to keep the k most frequent only.
        limit: What count_distinct counts up to.
        element_wise: Whether vectors are aggregated position by position.
        default: What stands for null where there is nothing to aggregate.
        where: A SQL condition; other events do not count for this aggregate.
        quantile: Which one approx_quantile gives, 0.5 by default.
        relative_error: How far approx_quantile may be off, 0.01 by default.
        name: Another name; with several windows each is called `{name}_{window}`.
        description: For people.
    """

    function: Text
    column: Text | None = None
    windows: tuple[Text, ...]
    offset: Text | None = None
    hop: Text | None = None
    head_hop: Text | None = None
    by: Text | None = None
    k: int | None = None
    limit: int | None = None
    element_wise: bool = False
    default: Scalar | None = None
    where: Text | None = None
    quantile: float | None = None
    relative_error: float | None = None
    name: Name | None = None
    description: str = ""

    def __init__(self, /, function: Any = None, **data: Any) -> None:
        if function is not None:
            data["function"] = function
        super().__init__(**data)

    @field_validator("windows")
    @classmethod
    def _some_windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name one window or more, such as windows=['1h', '7d']")
        if repeated(value):
            raise ValueError("the same window stands there twice")
        return value

    @model_validator(mode="after")
    def _can_be_named(self) -> Aggregate:
        if self.name is None and self.column and not _IDENTIFIER.fullmatch(self.column):
            raise ValueError("an aggregate over an expression needs a name=")
        if any(is_reserved(name) for name in self.names):
            raise ValueError("its name is that of a column of every table")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The name of its feature for each window."""
        if self.name is not None and len(self.windows) == 1:
            return (self.name,)
        base = f"{self.column}_{self.function}" if self.column else self.function
        return tuple(f"{self.name or base}_{window}" for window in self.windows)

    def __repr__(self) -> str:
        return f"Aggregate({', '.join(self.names)})"


def require_types(fields: tuple[Field, ...], what: str) -> None:
    """Raise ValueError unless there are fields, each with a type, no expression, its own name."""
    if not fields:
        raise ValueError(f"{what} is missing: declare one or more")
    for field in fields:
        if field.dtype is None:
            raise ValueError(f"{what} needs its dtype; '{field.name}' has none")
        if field.expression is not None:
            raise ValueError(f"{what} has no expression; '{field.name}' has one")
    twice = repeated(field.name for field in fields)
    if twice:
        raise ValueError(f"the field '{twice}' is declared twice (case does not count)")
