"""Entity rows in memory: their columns stay untouched, features come back by position (law J1).

Only join keys and instants go to the engine. Whatever else the caller has in the table, of whatever
type, is never converted unless the result is wanted in another form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType, parse
from featurestore.errors import NaiveTimestampError, RequestError
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.columns import InputRows, to_arrow
from featurestore.services.entity_needs import (
    Loaded,
    Needs,
    check_instant_type,
    naive,
    refuse_instants,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import EngineSession

_WHAT = "entity_rows"
_TIMESTAMP = parse("timestamp")
_INT64 = parse("int64")


class MemoryRows:
    """Entity rows in memory; see `EntityRows`.

    Args:
        value: A pyarrow, polars or pandas table, or a list of dicts.
        needs: What the request reads from them.
    """

    def __init__(self, value: Any, needs: Needs) -> None:
        self.kept, columns, names = _columns_of(value)
        needs.check_columns(names)
        self.names = tuple(names)
        self._columns = columns
        instants = _read_column(columns, needs.timestamp_column, _TIMESTAMP)
        self._instants = _instants(instants, needs.timestamp_column)
        rows = len(self._instants)
        read = {name: _read_column(columns, name, key.type) for name, key in needs.keys}
        held = InputRows(read, rows, _WHAT)
        self._keys = [
            held.key(name, _compared(key.type), needs.needed_by[name]) for name, key in needs.keys
        ]
        asked = {f.name: _read_column(columns, f.name, f.type) for f in needs.request}
        fields = InputRows(asked, rows, _WHAT)
        self._request = {
            f.name: fields.column(f.name, f.type, needs.needed_by[f.name], rounding=True)
            for f in needs.request
        }
        self._table: pa.Table | None = self.kept if _is_arrow(self.kept) else None

    @property
    def table(self) -> pa.Table:
        """All columns as Arrow; an Arrow table is passed through as it is.

        Raises:
            RequestError: A column holds Python objects that Arrow knows no type for.
        """
        if self._table is None:
            self._table = _arrow_table(self.kept, self._columns)
        return self._table

    @property
    def schema(self) -> pa.Schema:
        """The columns as the result has them."""
        return self.table.schema

    @property
    def given(self) -> tuple[str, ...]:
        """Nothing: the columns stay here."""
        return ()

    def describe(self) -> str:
        """Return what they are."""
        return "a table in memory"

    def load(self, session: EngineSession) -> Loaded:
        """Make the table `entity` of row numbers, instants and join keys."""
        import numpy as np
        import pyarrow as pa

        rows = len(self._instants)
        columns = {"row": pa.array(np.arange(rows)), "instant": pa.array(self._instants)}
        columns |= {f"key_{i}": key for i, key in enumerate(self._keys)}
        session.register("entity_given", pa.table(columns))
        session.run("CREATE TEMP TABLE entity AS SELECT * FROM entity_given")
        if not rows:
            return Loaded(0, 0, 0)
        return Loaded(rows, int(self._instants.min()), int(self._instants.max()))

    def columns(self, batch: pa.RecordBatch, first: int) -> list[pa.Array]:
        """Return the rows of a batch of results as they came."""
        part = self.table.slice(first, batch.num_rows)
        return [_one_array(column) for column in part.columns]

    def request(self, batch: pa.RecordBatch, first: int) -> dict[str, pa.Array]:
        """Return the request fields of a batch."""
        return {name: field.slice(first, batch.num_rows) for name, field in self._request.items()}


def _columns_of(value: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """Return (the table to keep, {column: its values}, the columns' names)."""
    import pyarrow as pa

    package = type(value).__module__.partition(".")[0]
    if package == "polars" and hasattr(value, "collect"):
        value = value.collect()
    if package == "pandas" and hasattr(value, "columns"):
        names = [str(name) for name in value.columns]
        series = [value.iloc[:, i] for i in range(len(names))]
        return value, dict(zip(names, series, strict=True)), names
    if package == "polars" and hasattr(value, "get_columns"):
        return value, {s.name: s for s in value.get_columns()}, list(value.columns)
    if isinstance(value, pa.RecordBatchReader):
        value = value.read_all()
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        pairs = zip(value.column_names, value.columns, strict=True)
        return value, dict(pairs), list(value.column_names)
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise RequestError(
            "'entity_rows' cannot be read as rows.",
            got=type(value).__name__,
            allowed="a pyarrow, polars or pandas table, a list of dicts, a Parquet path or SQL",
        )
    held = InputRows.of(value, _WHAT)
    return held, dict(held.columns), list(held.columns)


def _read_column(columns: dict[str, Any], name: str, dtype: DType) -> pa.Array:
    """Return one column as an Arrow array of whatever type it has."""
    import pyarrow as pa

    values = columns[name]
    package = type(values).__module__.partition(".")[0]
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if package == "polars":
        return values.to_arrow()
    if package == "pandas" and str(values.dtype) == "object":
        values = [None if _is_missing(v) else v for v in values.tolist()]
    try:
        if package == "pandas" and not isinstance(values, list):
            found = pa.array(values, from_pandas=True)
        else:
            found = to_arrow(values, dtype)
    except NaiveTimestampError as error:
        raise naive(name, error.got) from error
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    if found is None:
        kinds = sorted({type(value).__name__ for value in values})
        raise RequestError(
            f"The column '{name}' of 'entity_rows' cannot be read as {dtype} without loss.",
            got=f"values of {', '.join(kinds)}",
            allowed=str(dtype),
        )
    return found


def _is_missing(value: Any) -> bool:
    """Whether a pandas object column holds nothing here: None, NaN, NaT or NA."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"} or value != value  # noqa: PLR0124


def _compared(dtype: DType) -> DType:
    return _INT64 if dtype.scalar == "int32" else dtype


def _instants(column: pa.Array, name: str) -> Any:
    """Return instants as int64 microseconds; parts of a microsecond are cut off downwards."""
    import numpy as np
    import pyarrow as pa

    if column.null_count == len(column) and pa.types.is_null(column.type):
        column = column.cast(_TIMESTAMP.arrow)
    check_instant_type(column.type, name)
    refuse_instants(name, column.null_count, 0)
    ticks = column.cast(pa.int64()).to_numpy()
    if column.type.unit == "ns":
        return ticks // 1000
    scale = {"s": 1_000_000, "ms": 1_000, "us": 1}[column.type.unit]
    outside = (ticks < MIN_INSTANT // scale) | (ticks > MAX_INSTANT // scale)
    refuse_instants(name, 0, int(np.count_nonzero(outside)))
    return ticks * scale


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()


def _is_arrow(value: Any) -> bool:
    import pyarrow as pa

    return isinstance(value, pa.Table)


def _arrow_table(kept: Any, columns: dict[str, Any]) -> pa.Table:
    import pyarrow as pa

    if isinstance(kept, InputRows):
        return pa.table(dict(columns))
    if hasattr(kept, "to_arrow"):
        return kept.to_arrow()
    arrays = {}
    for name, series in columns.items():
        try:
            arrays[name] = pa.array(series, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise RequestError(
                f"The column '{name}' of 'entity_rows' holds values that Arrow has no type for.",
                got=str(error).split("\n")[0],
                hint="Drop the column, or take the result with to_pandas(), which leaves it alone.",
            ) from error
    return pa.table(arrays)
