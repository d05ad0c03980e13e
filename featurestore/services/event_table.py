"""Events as callers hold them, as one Arrow table: types are those that the values have.

What a source makes of the types is checked by who knows the source. Refused here is what has no
type at all: values that mix, instants with and without a zone in one column, rows of other columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.errors import NaiveTimestampError, RequestError
from featurestore.semantics import maps
from featurestore.services.columns import InputRows, to_arrow

if TYPE_CHECKING:
    import pyarrow as pa

_WHAT = "events"
# A text is read as it is: nothing is checked that only a declared type asks for.
_ANY = DType("string")


def events_table(events: Any) -> pa.Table:
    """Return events as a table, one an event.

    Dictionary-encoded columns and views come as plain texts and bytes; dicts whose keys are of one
    type, and values too, come as maps.

    Args:
        events: A list of dicts, a dict of lists, or a pyarrow, polars or pandas table.

    Raises:
        RequestError: They are none of these, or values of one column are of different types.
        MissingColumnError: One dict lacks what another one has.
        NaiveTimestampError: Some instants of a column have a zone, and others have none.
    """
    import pyarrow as pa

    rows = InputRows.of(events, _WHAT)
    if rows.rows and not rows.columns:
        raise RequestError("The events have no columns.", got=f"{rows.rows} events")
    return pa.table({name: _column(name, values) for name, values in rows.columns.items()})


def _column(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return _plain(values)
    if isinstance(values, list) or str(getattr(values, "dtype", "")) == "object":
        _check_moments(name, [value for value in values if value is not None])
        array = _maps(values)
        if array is not None:
            return array
    array = to_arrow(values, _ANY)
    if array is None:
        kinds = sorted({type(value).__name__ for value in values})
        raise RequestError(
            f"The column '{name}' of '{_WHAT}' holds values of different types.",
            got=f"values of {', '.join(kinds)}",
            allowed="values of one type, and None",
        )
    return _plain(array)


def _check_moments(name: str, present: list[Any]) -> None:
    """Refuse what Arrow would make one type of by guessing a zone or cutting off a time of day."""
    moments = [value for value in present if isinstance(value, datetime)]
    naive = sum(moment.tzinfo is None for moment in moments)
    if naive and naive < len(moments):
        raise NaiveTimestampError(
            f"Some instants of the column '{name}' of '{_WHAT}' have no time zone, and others do.",
            got=f"{naive} of {len(moments)} without a zone",
            allowed="aware instants; or naive ones throughout, where the source declares timezone=",
        )
    if moments and any(type(value) is date for value in present):
        raise RequestError(
            f"The column '{name}' of '{_WHAT}' holds dates among instants.",
            allowed="instants, or dates",
        )


def _maps(values: Any) -> pa.Array | None:
    """Return dicts as maps; None where they are none, or rather records of several types."""
    present = [value for value in values if value is not None]
    if not present or not all(isinstance(value, Mapping) for value in present):
        return None
    found = maps.from_python(list(values))
    if found is None or not found.keys:
        return None
    keys, held = to_arrow(found.keys, _ANY), to_arrow(found.values, _ANY)
    if keys is None or held is None or keys.null_count:
        return None
    return maps.to_arrow(replace(found, keys=keys, values=held))


def _plain(array: Any) -> Any:
    import pyarrow as pa

    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(array.cast(kind.value_type))
    if pa.types.is_string_view(kind):
        return array.cast(pa.string())
    return array.cast(pa.binary()) if pa.types.is_binary_view(kind) else array
