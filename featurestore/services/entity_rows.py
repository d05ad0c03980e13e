"""Entity rows: what callers hand in, read strictly, before any join (laws T1, K2, J1).

Rows in memory (pyarrow, polars, pandas, lists of dicts) keep their columns untouched: only join keys
and instants go to the engine, and features come back by position. Rows in a Parquet file or behind
a query stay in the engine. Refused, by name: columns that are missing, instants that are null or
have no zone, and join keys that cannot be read as their type without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featurestore import dtypes
from featurestore.compile.join_sql import key_type
from featurestore.compile.plan import Column
from featurestore.compile.request import RequestPlan
from featurestore.compile.table_sql import literal, quote
from featurestore.dtypes import DType, parse
from featurestore.errors import (
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    listing,
    near_miss,
)
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.columns import InputRows, to_arrow

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import Engine, EngineSession

_WHAT = "entity_rows"
_TIMESTAMP = parse("timestamp")
_INT64 = parse("int64")
_NUMBERS = frozenset({"int32", "int64", "float32", "float64"})


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
        schema: Their columns, as the result has them.
        kept: What the caller handed in when it is a table in memory, else None.
    """

    schema: pa.Schema
    kept: Any

    def load(self, session: EngineSession) -> Loaded:
        """Make the table `entity`; raises what is wrong with single rows."""
        ...

    def source(self) -> str:
        """Return what they are, in a few words."""
        ...


def read(entity_rows: Any, needs: Needs, engine: Engine) -> EntityRows:
    """Return entity rows of any accepted form, checked.

    Args:
        entity_rows: A pyarrow, polars or pandas table, a list of dicts, a Parquet path or SQL.
        needs: What the request reads from them.
        engine: Tells the columns of a file or query.

    Raises:
        MissingColumnError: A join key, the timestamp column or a request field is missing.
        NaiveTimestampError: The instants have no time zone.
        RequestError: They are of no accepted form, a join key has another type, or instants are
            null.
    """
    if isinstance(entity_rows, Path):
        return QueryRows.of_path(str(entity_rows), needs, engine)
    if isinstance(entity_rows, str):
        text = entity_rows.strip().rstrip(";")
        if text.lower().endswith(".parquet"):
            return QueryRows.of_path(text, needs, engine)
        return QueryRows(f"({text})", needs, engine, "a query")
    return MemoryRows(entity_rows, needs)


class MemoryRows:
    """Entity rows in memory; see `EntityRows`.

    Args:
        value: A pyarrow, polars or pandas table, or a list of dicts.
        needs: What the request reads from them.
    """

    def __init__(self, value: Any, needs: Needs) -> None:
        self.kept, columns, names = _columns_of(value)
        needs.check_columns(names)
        self._columns = columns
        self.names = names
        instants = _read_column(columns, needs.timestamp_column, _TIMESTAMP)
        self.instants = _instants(instants, needs.timestamp_column)
        rows = len(self.instants)
        read = {name: _read_column(columns, name, key.type) for name, key in needs.keys}
        held = InputRows({n: _no_nan(c) for n, c in read.items()}, rows, _WHAT)
        self.keys = [
            held.column(name, _compared(key.type), needs.needed_by[name], rounding=False)
            for name, key in needs.keys
        ]
        asked = {f.name: _read_column(columns, f.name, f.type) for f in needs.request}
        fields = InputRows(asked, rows, _WHAT)
        self.request = {
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

    def source(self) -> str:
        """Return what they are."""
        return "a table in memory"

    def load(self, session: EngineSession) -> Loaded:
        """Make the table `entity` of row numbers, instants and join keys."""
        import numpy as np
        import pyarrow as pa

        rows = len(self.instants)
        columns = {"row": pa.array(np.arange(rows)), "instant": pa.array(self.instants)}
        columns |= {f"key_{i}": key for i, key in enumerate(self.keys)}
        session.register("entity_given", pa.table(columns))
        session.run("CREATE TEMP TABLE entity AS SELECT * FROM entity_given")
        if not rows:
            return Loaded(0, 0, 0)
        return Loaded(rows, int(self.instants.min()), int(self.instants.max()))


class QueryRows:
    """Entity rows in a file or behind a query; see `EntityRows`.

    Args:
        relation: What stands behind FROM.
        needs: What the request reads from them.
        engine: Tells the columns.
        what: A few words for people.
    """

    kept = None

    def __init__(self, relation: str, needs: Needs, engine: Engine, what: str) -> None:
        self._relation = relation
        self._needs = needs
        self._what = what
        with engine.session() as session:
            self.schema: pa.Schema = session.schema(f"SELECT * FROM {relation}")
        needs.check_columns(self.schema.names)
        _check_instant_type(self.schema.field(needs.timestamp_column).type, needs.timestamp_column)
        for name, key in needs.keys:
            _check_key_type(self.schema.field(name).type, name, key.type, needs.needed_by[name])

    @classmethod
    def of_path(cls, path: str, needs: Needs, engine: Engine) -> QueryRows:
        """Return the rows of a Parquet file, or of a glob of such files."""
        relation = f"read_parquet({literal(path)}, hive_partitioning = false)"
        return cls(relation, needs, engine, path)

    def source(self) -> str:
        """Return what they are."""
        return self._what

    def load(self, session: EngineSession) -> Loaded:
        """Make the tables `given`, with all columns, and `entity`.

        Raises:
            RequestError: Instants are null or outside the years 1 to 9999, or a join key cannot be
                read as its type without loss.
        """
        session.run(f"CREATE TEMP TABLE given AS SELECT * FROM {self._relation}")
        column = self._needs.timestamp_column
        at = _instant_sql(column, self.schema.field(column).type)
        checks = [f"count(*) FILTER (WHERE {lost}) AS lost_{i}" for i, lost in self._losses()]
        found = session.fetch(
            f"SELECT count(*) AS rows, count(*) FILTER (WHERE {quote(column)} IS NULL) AS nulls,"
            f" count(*) FILTER (WHERE {quote(column)} IS NOT NULL AND"
            f" ({at} BETWEEN {MIN_INSTANT} AND {MAX_INSTANT}) IS NOT TRUE) AS outside,"
            f" min({at}) AS low, max({at}) AS high{''.join(', ' + c for c in checks)} FROM given"
        ).to_pylist()[0]
        _refuse_instants(column, found["nulls"], found["outside"])
        for i, _ in self._losses():
            self._refuse_loss(i, found[f"lost_{i}"])
        keys = "".join(f", {self._key_sql(i)} AS key_{i}" for i in range(len(self._needs.keys)))
        session.run(
            f"CREATE TEMP TABLE entity AS SELECT rowid AS row, {at} AS instant{keys} FROM given"
        )
        return Loaded(found["rows"], found["low"] or 0, found["high"] or 0)

    def _losses(self) -> list[tuple[int, str]]:
        """(index of a key, condition of rows whose value its type cannot hold)."""
        found = []
        for i, (name, key) in enumerate(self._needs.keys):
            arrow = self.schema.field(name).type
            if key_type(key) == "BIGINT" and str(arrow) in {"float", "double", "uint64"}:
                value = f"TRY_CAST({quote(name)} AS BIGINT)"
                # NaN is what pandas writes for null.
                some = f"{quote(name)} IS NOT NULL AND NOT isnan({quote(name)}::DOUBLE)"
                found.append((i, f"{some} AND {value} IS DISTINCT FROM {quote(name)}"))
        return found

    def _refuse_loss(self, index: int, count: int) -> None:
        name, key = self._needs.keys[index]
        if count:
            raise RequestError(
                f"The column '{name}' of 'entity_rows' cannot be read as {key.dtype} without loss.",
                where=self._needs.needed_by[name],
                got=f"{count} values of {self.schema.field(name).type} that are no {key.dtype}",
                allowed=key.dtype,
            )

    def _key_sql(self, index: int) -> str:
        name, key = self._needs.keys[index]
        value = quote(name)
        if str(self.schema.field(name).type) in {"float", "double"}:
            value = f"CASE WHEN NOT isnan({value}) THEN {value} END"
        return f"CAST({value} AS {key_type(key)})"


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
        raise _naive(name, error.got) from error
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


def _no_nan(column: pa.Array) -> pa.Array:
    """A NaN among join keys is how pandas writes a null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _compared(dtype: DType) -> DType:
    return _INT64 if dtype.scalar == "int32" else dtype


def _instants(column: pa.Array, name: str) -> Any:
    """Return instants as int64 microseconds; parts of a microsecond are cut off downwards."""
    import numpy as np
    import pyarrow as pa

    if column.null_count == len(column) and pa.types.is_null(column.type):
        column = column.cast(_TIMESTAMP.arrow)
    _check_instant_type(column.type, name)
    _refuse_instants(name, column.null_count, 0)
    ticks = column.cast(pa.int64()).to_numpy()
    if column.type.unit == "ns":
        return ticks // 1000
    scale = {"s": 1_000_000, "ms": 1_000, "us": 1}[column.type.unit]
    outside = (ticks < MIN_INSTANT // scale) | (ticks > MAX_INSTANT // scale)
    _refuse_instants(name, 0, int(np.count_nonzero(outside)))
    return ticks * scale


def _instant_sql(column: str, arrow: pa.DataType) -> str:
    if arrow.unit != "ns":
        return f"epoch_us({quote(column)})"
    # A cast would round to the nearest microsecond; an instant is cut off downwards.
    ticks = f"epoch_ns({quote(column)})"
    return f"(({ticks} - (({ticks} % 1000) + 1000) % 1000) // 1000)"


def _refuse_instants(name: str, nulls: int, outside: int) -> None:
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


def _check_instant_type(arrow: pa.DataType, name: str) -> None:
    import pyarrow as pa

    if not pa.types.is_timestamp(arrow):
        raise RequestError(
            f"The column '{name}' of 'entity_rows' holds no instants.",
            got=str(arrow),
            allowed="timestamps with a time zone",
            hint="Convert it, and say which zone it is in.",
        )
    if arrow.tz is None:
        raise _naive(name, str(arrow))


def _naive(name: str, got: str | None) -> NaiveTimestampError:
    return NaiveTimestampError(
        f"The column '{name}' of 'entity_rows' has instants without a time zone.",
        got=got,
        allowed="timestamps with a time zone",
        hint="Say which zone they are in; it is never guessed.",
    )


def _check_key_type(arrow: pa.DataType, name: str, dtype: DType, needed_by: str) -> None:
    """Refuse a column whose type cannot hold join keys of a declared type; values come later."""
    import pyarrow as pa

    held = dtypes.from_arrow(arrow)
    fits = held is not None and not held.container and held.scalar == dtype.scalar
    if dtype.scalar in {"int32", "int64"}:
        fits = pa.types.is_uint64(arrow) or (held is not None and str(held) in _NUMBERS)
    if pa.types.is_null(arrow) or fits:
        return
    if dtype.scalar == "timestamp" and pa.types.is_timestamp(arrow):
        raise _naive(name, str(arrow))
    raise RequestError(
        f"The column '{name}' of 'entity_rows' cannot be read as {dtype} without loss.",
        where=needed_by,
        got=str(arrow),
        allowed=str(dtype),
    )


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
