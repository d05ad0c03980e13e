"""What a request reads from its entity rows, and what is refused about them (laws T1, J1).

Entity rows in memory and those in the engine are held to the same rules, told in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.compile.plan import Column
from featurestore.compile.request import RequestPlan
from featurestore.errors import (
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    listing,
    near_miss,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import EngineSession


@dataclass(frozen=True)
class Needs:
    """What a request reads from its entity rows.

    Attributes:
        timestamp_column: The column of the instants.
        keys: (column, type) of the join keys, each column once.
        request: Request fields of on-demand views.
        needed_by: {column: who reads it}, for errors.
    """

    timestamp_column: str
    keys: tuple[tuple[str, Column], ...]
    request: tuple[Column, ...]
    needed_by: dict[str, str]

    @classmethod
    def of(cls, plan: RequestPlan, timestamp_column: str) -> Needs:
        """Return what a resolved request reads."""
        needed_by: dict[str, str] = {}
        for join in plan.joins:
            for column in join.key_columns:
                needed_by.setdefault(column, f"join key of '{join.alias}'")
        for step in plan.steps:
            for field in step.request:
                needed_by.setdefault(field.name, f"request field of '{step.plan.name}'")
        needed_by[timestamp_column] = "timestamp_column"
        return cls(timestamp_column, plan.key_columns, plan.request_fields, needed_by)

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse entity rows that lack a column.

        Raises:
            MissingColumnError: Names the column, who needs it, and the near miss.
            RequestError: Two columns share a name.
        """
        for column, needed_by in self.needed_by.items():
            if column not in names:
                hint = near_miss(column, names)
                if needed_by == "timestamp_column" and hint is None:
                    hint = "Say which column holds the instants: timestamp_column='...'."
                raise MissingColumnError(
                    f"The entity rows lack the column '{column}'.",
                    where=needed_by,
                    got=listing(names),
                    allowed=column,
                    hint=hint,
                )
        if len(set(names)) < len(names):
            raise RequestError("Two columns of the entity rows share a name.", got=", ".join(names))


@dataclass(frozen=True)
class Loaded:
    """What the engine's table `entity` holds: its rows and the span of their instants."""

    rows: int
    low: int
    high: int


class EntityRows(Protocol):
    """Entity rows that were checked as far as that goes without reading them.

    Attributes:
        kept: What the caller handed in when it is a table in memory, else None.
        names: The names of their columns.
    """

    kept: Any
    names: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """Their columns, as the result has them."""
        ...

    @property
    def given(self) -> tuple[str, ...]:
        """The columns that the engine returns with each batch, before the features."""
        ...

    def load(self, session: EngineSession) -> Loaded:
        """Make the table `entity`; raises what is wrong with single rows."""
        ...

    def columns(self, batch: pa.RecordBatch, first: int) -> list[pa.Array]:
        """Return the columns of a batch of results, whose first row is number `first`."""
        ...

    def request(self, batch: pa.RecordBatch, first: int) -> dict[str, pa.Array]:
        """Return the request fields of a batch, of their declared types."""
        ...

    def describe(self) -> str:
        """Return what they are, in a few words."""
        ...


def refuse_instants(name: str, nulls: int, outside: int) -> None:
    """Refuse instants that are null, and such that are outside the years 1 to 9999."""
    if nulls:
        raise RequestError(
            f"The column '{name}' of 'entity_rows' has rows without an instant.",
            got=f"{nulls} nulls",
            allowed="an instant in every row",
            hint="Drop these rows, or fill in the instant that each is asked for.",
        )
    if outside:
        raise RequestError(
            f"The column '{name}' of 'entity_rows' has instants that no calendar shows.",
            got=f"{outside} of them",
            allowed="years 1 to 9999",
        )


def check_instant_type(arrow: pa.DataType, name: str) -> None:
    """Refuse a timestamp column of another type, and one without a time zone."""
    import pyarrow as pa

    if not pa.types.is_timestamp(arrow):
        raise RequestError(
            f"The column '{name}' of 'entity_rows' holds no instants.",
            got=str(arrow),
            allowed="timestamps with a time zone",
            hint="Convert it, and say which zone it is in.",
        )
    if arrow.tz is None:
        raise naive(name, str(arrow))


def naive(name: str, got: str | None) -> NaiveTimestampError:
    """Return the error of instants without a time zone."""
    return NaiveTimestampError(
        f"The column '{name}' of 'entity_rows' has instants without a time zone.",
        got=got,
        allowed="timestamps with a time zone",
        hint="Say which zone they are in; it is never guessed.",
    )
