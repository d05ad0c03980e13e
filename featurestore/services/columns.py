"""Columns from what callers hold: lists of dicts, dicts of lists, Arrow, Polars and pandas tables.

A value becomes one of a declared type only where nothing is lost; text is never read as a number,
nor a number as an instant. Instants without a zone are refused (law T1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore import dtypes
from featurestore.dtypes import DType
from featurestore.errors import (
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
    listing,
    near_miss,
)

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = frozenset({"int32", "int64", "float32", "float64"})


class InputRows:
    """Rows that came with a call, read column by column.

    Args:
        columns: By name; a list of Python values or an Arrow array each, all of one length.
        rows: How many rows there are.
        what: The name of the argument, for errors.
    """

    def __init__(self, columns: Mapping[str, Any], rows: int, what: str) -> None:
        self.columns = columns
        self.rows = rows
        self.what = what

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
        values = self.columns.get(name)
        if values is None:
            raise self.missing(name, needed_by)
        try:
            array = to_arrow(values, dtype)
        except NaiveTimestampError as error:
            raise NaiveTimestampError(
                f"The column '{name}' of '{self.what}' has instants without a time zone.",
                where=needed_by,
                got=error.got,
                allowed="aware instants",
                hint="Say which zone they are in; it is never guessed.",
            ) from error
        converted = None if array is None else lossless(array, dtype, rounding=rounding)
        if converted is None:
            raise RequestError(
                f"The column '{name}' of '{self.what}' cannot be read as {dtype} without loss.",
                where=needed_by,
                got=_describe(values, array),
                allowed=str(dtype),
            )
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
    """Return Python values as an Arrow array of the type that they seem to be; None when mixed.

    Args:
        values: A list, a NumPy array, or an Arrow array, which is returned as it is.
        dtype: What they are meant to be.

    Raises:
        NaiveTimestampError: An instant among them has no zone.
    """
    import pyarrow as pa

    if isinstance(values, pa.Array):
        array = values
    else:
        if dtype.scalar in {"date", "timestamp"}:
            # Arrow would take one instant's zone for all, and cut the time of day off a date.
            moments = [v for v in values if isinstance(v, datetime)]
            naive = next((v for v in moments if v.tzinfo is None), None)
            if naive is not None and dtype.scalar == "timestamp":
                raise NaiveTimestampError("An instant has no time zone.", got=naive.isoformat())
            if moments and dtype.scalar == "date":
                return None
        try:
            array = pa.array(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            return None
    if dtype.scalar == "timestamp" and pa.types.is_timestamp(array.type) and array.type.tz is None:
        raise NaiveTimestampError("An instant has no time zone.", got=str(array.type))
    return array


def lossless(array: pa.Array, dtype: DType, *, rounding: bool = False) -> pa.Array | None:
    """Return an array as one of a declared type, None where a value would change or does not fit.

    Integers fit floats that hold them exactly, whole floats fit integers, any text and binary
    layout fits string and bytes, instants of any unit and zone fit timestamp when no part of a
    microsecond is lost, and lists fit a vector of their common length.

    Args:
        array: Any Arrow array.
        dtype: The declared type.
        rounding: Whether float64 values may be rounded to the nearest float32.
    """
    import pyarrow as pa

    target = dtype.arrow
    if array.type == target:
        return array if _whole_vectors(array, dtype) else None
    if array.null_count == len(array):
        return pa.nulls(len(array), target)
    if not _fits(array.type, dtype, rounding=rounding):
        return None
    try:
        converted = array.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if rounding and dtype.scalar == "float32" and _overflows(array, converted):
        return None
    return converted if _whole_vectors(converted, dtype) else None


def _fits(source: pa.DataType, dtype: DType, *, rounding: bool) -> bool:
    """Whether values of an Arrow type may be of a declared type; a safe cast tells if all are."""
    import pyarrow as pa

    if pa.types.is_uint64(source):
        return not dtype.container and dtype.scalar in _NUMBERS
    if isinstance(source, pa.ListViewType):
        # Arrow's cast of list views loses items.
        return False
    if dtype.container and pa.types.is_nested(source) and pa.types.is_null(source.value_type):
        return True
    held = dtypes.from_arrow(source)
    if held is None or bool(held.container) != bool(dtype.container):
        return False
    if dtype.container == "vector" and held.length not in {0, dtype.length}:
        return False
    return _scalar_fits(held.scalar, dtype.scalar, rounding=rounding)


def _scalar_fits(held: str, declared: str, *, rounding: bool) -> bool:
    if (held, declared) == ("float64", "float32"):
        return rounding
    return held == declared or (held in _NUMBERS and declared in _NUMBERS)


def _whole_vectors(array: pa.Array, dtype: DType) -> bool:
    return dtype.container != "vector" or array.flatten().null_count == 0


def _overflows(array: pa.Array, converted: pa.Array) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    while pa.types.is_nested(array.type):
        array, converted = array.flatten(), converted.flatten()
    if not pa.types.is_floating(array.type):
        return False
    return bool(pc.any(pc.and_(pc.is_inf(converted), pc.invert(pc.is_inf(array)))).as_py())


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
    import pyarrow as pa

    if _is_pandas(value) and hasattr(value, "columns"):
        value = pa.Table.from_pandas(value, preserve_index=False)
    elif isinstance(value, pa.RecordBatch) or hasattr(value, "__arrow_c_stream__"):
        value = pa.table(value)
    if not isinstance(value, pa.Table):
        raise _unreadable(value, what)
    if len(set(value.column_names)) < value.num_columns:
        raise RequestError(
            f"Two columns of '{what}' share a name.", got=", ".join(value.column_names)
        )
    return {
        name: _one_array(column)
        for name, column in zip(value.column_names, value.columns, strict=True)
    }


def _as_column(value: Any, name: str, what: str) -> Any:
    import pyarrow as pa

    if isinstance(value, pa.Array):
        return value
    if isinstance(value, list | tuple):
        # A copy: the caller may change a list before an answer shows it.
        return list(value)
    if isinstance(value, pa.ChunkedArray):
        return _one_array(value)
    if not _is_column(value):
        raise RequestError(
            f"'{what}' is a dict, but '{name}' holds no list.",
            got=repr(value),
            allowed="a list of dicts, a dict of lists, or a table",
        )
    if _is_pandas(value):
        return _one_array(pa.array(value, from_pandas=True))
    return _one_array(value.to_arrow()) if hasattr(value, "to_arrow") else list(value)


def _is_column(value: Any) -> bool:
    """Whether a value of a dict is a column rather than one value."""
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    return isinstance(value, list | tuple) or (
        hasattr(value, "__len__") and hasattr(value, "__iter__")
    )


def _is_pandas(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "pandas"


def _one_array(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


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
