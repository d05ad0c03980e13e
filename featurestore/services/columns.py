"""Columns from what callers hold: lists of dicts, dicts of lists, Arrow, Polars and pandas tables.

A value becomes one of a declared type only where nothing is lost; text is never read as a number,
nor a number as an instant. Instants without a zone are refused (law T1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import (
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    listing,
    near_miss,
)
from featurestore.semantics import maps
from featurestore.services.lossless import lossless

if TYPE_CHECKING:
    import pyarrow as pa

_INT64 = DType("int64")
_EACH_KEY_ONCE = "No key of a map is null, and none is there twice."


class InputRows:
    """Rows that came with a call, read column by column.

    Args:
        columns: By name, all of one length; lists, or arrays and series of any library.
        rows: How many rows there are.
        what: The name of the argument, for errors.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int, what: str) -> None:
        self.columns = columns
        self.rows = rows
        self.what = what
        self._cache: dict[tuple[str, DType, bool | None], Any] = {}

    @classmethod
    def of(cls, value: Any, what: str = "entity_rows") -> InputRows:
        """Return the rows of a list of dicts, a dict of lists or a table.

        Raises:
            RequestError: It is none of these, or its columns differ in length.
            MissingColumnError: One dict lacks what another one has.
        """
        if isinstance(value, InputRows):
            return value
        if isinstance(value, list | tuple):
            return cls(_from_records(value, what), len(value), what)
        if isinstance(value, Mapping):
            columns: Mapping[str, Any] = {
                name: _as_column(column, name, what) for name, column in value.items()
            }
        else:
            columns = _from_table(value, what)
        return cls(columns, _common_length(columns, what), what)

    @classmethod
    def of_request(cls, value: Any, rows: int) -> InputRows:
        """Return request fields, one row an entity row; a dict may hold one value for all rows.

        Raises:
            RequestError: It has another number of rows than the entity rows.
        """
        what = "request"
        if isinstance(value, Mapping):
            value = {
                name: column if _is_column(column) else [column] * rows
                for name, column in value.items()
            }
            if not value:
                return cls({}, rows, what)
        found = cls.of(value, what)
        if found.rows != rows:
            raise RequestError(
                "'request' has another number of rows than 'entity_rows'.",
                got=f"{found.rows} rows, entity_rows has {rows}",
                allowed="one row an entity row, or a dict of single values for all of them",
            )
        return found

    def column(self, name: str, dtype: DType, needed_by: str, *, rounding: bool) -> pa.Array:
        """Return a column as an Arrow array of a declared type.

        Args:
            name: The column.
            dtype: The declared type.
            needed_by: Who reads it, for errors: "view 'a'".
            rounding: Whether a float64 may be rounded to the nearest float32.

        Raises:
            MissingColumnError: There is no such column.
            RequestError: It holds values of another type.
            NaiveTimestampError: It holds instants without a zone.
        """
        convert = partial(lossless, rounding=rounding)
        return self._converted((name, dtype, rounding), needed_by, convert)

    def key(self, name: str, dtype: DType, needed_by: str) -> pa.Array:
        """Return a join key's column; a NaN among floats is null, as pandas writes it.

        Integers come as int64, whatever was declared: a key is its value.

        Args:
            name: The column.
            dtype: The declared type.
            needed_by: Who joins by it, for errors.

        Raises:
            MissingColumnError: There is no such column.
            RequestError: It holds values of another type.
            NaiveTimestampError: It holds instants without a zone.
        """
        return self._converted((name, dtype, None), needed_by, _key)

    def _converted(
        self,
        wanted: tuple[str, DType, bool | None],
        needed_by: str,
        convert: Callable[[pa.Array, DType], pa.Array | None],
    ) -> pa.Array:
        if wanted in self._cache:
            return self._cache[wanted]
        name, dtype, _ = wanted
        if name not in self.columns:
            raise self.missing(name, needed_by)
        try:
            array = to_arrow(self.columns[name], dtype)
        except NaiveTimestampError as error:
            raise NaiveTimestampError(
                f"The column '{name}' of '{self.what}' has instants without a time zone.",
                where=needed_by,
                got=error.got,
                allowed="aware instants",
                hint="Say which zone they are in; it is never guessed.",
            ) from error
        converted = None if array is None else convert(array, dtype)
        if converted is None:
            raise RequestError(
                f"The column '{name}' of '{self.what}' cannot be read as {dtype} without loss.",
                where=needed_by,
                got=_describe(self.columns[name], array),
                allowed=str(dtype),
                hint=_EACH_KEY_ONCE if dtype.container == "map" else None,
            )
        self._cache[wanted] = converted
        return converted

    def missing(self, name: str, needed_by: str) -> MissingColumnError:
        """Return the error of a column that is not there."""
        return MissingColumnError(
            f"'{self.what}' lacks the column '{name}'.",
            where=needed_by,
            got=listing(self.columns),
            allowed=name,
            hint=near_miss(name, self.columns),
        )


def to_arrow(values: Any, dtype: DType) -> pa.Array | None:
    """Return a column as an Arrow array of whatever type it seems to be; None when that is mixed.

    Args:
        values: A list, a NumPy array, a pandas or Polars series, or an Arrow array.
        dtype: What the values are meant to be.

    Raises:
        NaiveTimestampError: An instant among them has no zone.
    """
    import pyarrow as pa

    try:
        array = _arrow(values, dtype)
    except NaiveTimestampError:
        raise
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None
    if array is None or not pa.types.is_timestamp(array.type):
        return array
    if dtype.scalar == "timestamp" and array.type.tz is None:
        raise NaiveTimestampError("An instant has no time zone.", got=str(array.type))
    return array


def _key(array: pa.Array, dtype: DType) -> pa.Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return lossless(array, _INT64 if dtype.scalar == "int32" else dtype)


def _arrow(values: Any, dtype: DType) -> pa.Array | None:
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return _one_array(values)
    package = _package(values)
    if package == "polars":
        return _one_array(values.to_arrow())
    if package == "pandas" and str(values.dtype) == "object":
        values = [None if _is_missing(value) else value for value in values.tolist()]
    elif package == "pandas":
        return _one_array(pa.array(values, from_pandas=True))
    elif package == "numpy" and values.ndim == 1 and values.dtype != object:
        return pa.array(values)
    return _of_objects(list(values), dtype)


def _of_objects(values: list[Any], dtype: DType) -> pa.Array | None:
    """Return Python objects as an Arrow array."""
    import pyarrow as pa

    if dtype.container == "map":
        return _maps(values, dtype)
    if dtype.scalar in {"date", "timestamp"}:
        # Arrow would take one instant's zone for all, and cut the time of day off a date.
        moments = [value for value in values if isinstance(value, datetime)]
        naive = next((moment for moment in moments if moment.tzinfo is None), None)
        if naive is not None and dtype.scalar == "timestamp":
            raise NaiveTimestampError("An instant has no time zone.", got=naive.isoformat())
        if moments and dtype.scalar == "date":
            return None
    return pa.array(values)


def _maps(values: Sequence[Any], dtype: DType) -> pa.Array | None:
    """Return dicts, or lists of pairs, as Arrow maps; other values as Arrow understands them."""
    import pyarrow as pa

    found = maps.from_python(values)
    if found is None:
        return pa.array(list(values))
    keys = to_arrow(found.keys, DType(dtype.key))
    held = to_arrow(found.values, dtype.item)
    if keys is None or held is None or keys.null_count:
        return None
    return maps.to_arrow(replace(found, keys=keys, values=held))


def _from_records(records: Sequence[Any], what: str) -> Mapping[str, Any]:
    for record in records:
        if type(record) is not dict and not isinstance(record, Mapping):
            raise _unreadable(record, what)
    if len(records) == 1:
        return {name: [value] for name, value in records[0].items()}
    names = records[0].keys() if records else ()
    if any(record.keys() != names for record in records):
        names = dict.fromkeys(name for record in records for name in record)
    try:
        return {name: [record[name] for record in records] for name in names}
    except KeyError as error:
        name = error.args[0]
        row = next(i for i, record in enumerate(records) if name not in record)
        raise MissingColumnError(
            f"Row {row} of '{what}' lacks '{name}', which other rows have.",
            got=listing(records[row]),
            allowed=listing(names),
            hint="Say None where there is no value.",
        ) from error


def _from_table(value: Any, what: str) -> Mapping[str, Any]:
    """Return a table's columns as they are: one that nobody asks for is never converted."""
    import pyarrow as pa

    package = _package(value)
    if package == "pandas" and hasattr(value, "columns"):
        names = [str(name) for name in value.columns]
        columns = [value.iloc[:, i] for i in range(len(names))]
    elif package == "polars" and hasattr(value, "get_columns"):
        columns = value.get_columns()
        names = [column.name for column in columns]
    else:
        if isinstance(value, pa.RecordBatch) or hasattr(value, "__arrow_c_stream__"):
            value = pa.table(value)
        if not isinstance(value, pa.Table):
            raise _unreadable(value, what)
        names, columns = value.column_names, value.columns
    if len(set(names)) < len(names):
        raise RequestError(f"Two columns of '{what}' share a name.", got=", ".join(names))
    return dict(zip(names, columns, strict=True))


def _as_column(value: Any, name: str, what: str) -> Any:
    if isinstance(value, list | tuple):
        # A copy: the caller may change a list before an answer shows it.
        return list(value)
    if not _is_column(value):
        raise RequestError(
            f"'{what}' is a dict, but '{name}' holds no list.",
            got=repr(value),
            allowed="a list of dicts, a dict of lists, or a table",
        )
    known = {"pyarrow", "pandas", "polars", "numpy"}
    return value if _package(value) in known else list(value)


def _is_column(value: Any) -> bool:
    """Whether a value of a dict is a column rather than one value."""
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__iter__")


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _is_missing(value: Any) -> bool:
    """Whether a pandas object holds nothing here: None, NaN, NaT or NA."""
    return value is None or type(value).__name__ in {"NAType", "NaTType"} or value != value  # noqa: PLR0124


def _one_array(column: Any) -> Any:
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()


def _common_length(columns: Mapping[str, Any], what: str) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(
            f"The columns of '{what}' differ in length.",
            got=", ".join(f"{name}: {length}" for name, length in lengths.items()),
            allowed="one length",
        )
    return next(iter(lengths.values()), 0)


def _unreadable(value: Any, what: str) -> RequestError:
    return RequestError(
        f"'{what}' cannot be read as rows.",
        got=type(value).__name__,
        allowed="a list of dicts, a dict of lists, a pyarrow, polars or pandas table",
    )


def _describe(values: Any, array: pa.Array | None) -> str:
    if array is not None:
        return str(array.type)
    kinds = sorted({type(value).__name__ for value in values})
    return f"values of {', '.join(kinds)}"
