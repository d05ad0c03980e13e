"""Entity rows in a Parquet file or behind a query: they stay in the engine (law J1).

Columns and types are checked before any work; single rows when they are read. The engine's table
`given` holds all columns, and its order is the order of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore import dtypes
from featurestore.compile.join_sql import key_type
from featurestore.compile.table_sql import literal, quote
from featurestore.dtypes import DType
from featurestore.errors import RequestError
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.columns import InputRows
from featurestore.services.entity_needs import (
    Loaded,
    Needs,
    check_instant_type,
    naive,
    refuse_instants,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import Engine, EngineSession

_NUMBERS = frozenset({"int32", "int64", "float32", "float64"})


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
            self._schema: pa.Schema = session.schema(f"SELECT * FROM {relation}")
        self.names = tuple(self.schema.names)
        needs.check_columns(self.names)
        check_instant_type(self.schema.field(needs.timestamp_column).type, needs.timestamp_column)
        for name, key in needs.keys:
            _check_type(self.schema.field(name).type, name, key.type, needs.needed_by[name])
        for field in needs.request:
            found = self.schema.field(field.name).type
            _check_type(found, field.name, field.type, needs.needed_by[field.name])

    @classmethod
    def of_path(cls, path: str, needs: Needs, engine: Engine) -> QueryRows:
        """Return the rows of a Parquet file, or of a glob of such files."""
        relation = f"read_parquet({literal(path)}, hive_partitioning = false)"
        return cls(relation, needs, engine, path)

    @property
    def schema(self) -> pa.Schema:
        """Their columns."""
        return self._schema

    @property
    def given(self) -> tuple[str, ...]:
        """All columns: the engine keeps them."""
        return self.names

    def describe(self) -> str:
        """Return what they are."""
        return self._what

    def columns(self, batch: pa.RecordBatch, first: int) -> list[pa.Array]:
        """Return the rows of a batch of results."""
        del first
        pairs = zip(batch.columns, self.schema, strict=False)
        return [column.cast(field.type) for column, field in pairs]

    def request(self, batch: pa.RecordBatch, first: int) -> dict[str, pa.Array]:
        """Return the request fields of a batch.

        Raises:
            RequestError: A value cannot be read as the declared type without loss.
        """
        columns = dict(zip(self.schema.names, self.columns(batch, first), strict=True))
        rows = InputRows(columns, batch.num_rows, "entity_rows")
        return {
            f.name: rows.column(f.name, f.type, self._needs.needed_by[f.name], rounding=True)
            for f in self._needs.request
        }

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
        refuse_instants(column, found["nulls"], found["outside"])
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


def _instant_sql(column: str, arrow: pa.DataType) -> str:
    if arrow.unit != "ns":
        return f"epoch_us({quote(column)})"
    # A cast would round to the nearest microsecond; an instant is cut off downwards.
    ticks = f"epoch_ns({quote(column)})"
    return f"(({ticks} - (({ticks} % 1000) + 1000) % 1000) // 1000)"


def _check_type(arrow: pa.DataType, name: str, dtype: DType, needed_by: str) -> None:
    """Refuse a column whose type cannot hold what is declared; single values are read later."""
    import pyarrow as pa

    held = dtypes.from_arrow(arrow)
    fits = held is not None and _shape(held) == _shape(dtype)
    if not dtype.container and dtype.scalar in _NUMBERS:
        fits = pa.types.is_uint64(arrow) or (held is not None and str(held) in _NUMBERS)
    if pa.types.is_null(arrow) or fits:
        return
    if dtype.scalar == "timestamp" and pa.types.is_timestamp(arrow):
        raise naive(name, str(arrow))
    raise RequestError(
        f"The column '{name}' of 'entity_rows' cannot be read as {dtype} without loss.",
        where=needed_by,
        got=str(arrow),
        allowed=str(dtype),
    )


def _shape(dtype: DType) -> tuple[str, str, str]:
    """Return what of a type a column must have; the length of vectors is seen row by row."""
    return dtype.scalar, dtype.key, "list" if dtype.container == "vector" else dtype.container
