"""Values of live events as the columns of their source: what fits, and how JSON says it.

The types are Arrow's own, as the history has them. A value fits where nothing is lost: text is
never read as a number, nor a number as an instant. Instants have a zone; only where the history's
own column has none may one be missing, and one that is there is turned into the source's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ERRORS = (ValueError, TypeError, OverflowError, InvalidOperation, binascii.Error)
"""What a reader of JSON values raises when a value does not fit; Arrow's errors are among them."""


def fitted(column: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> Any:
    """Return a column as one of a type, None where a value would change or does not fit."""
    import pyarrow as pa

    if column.type == wanted:
        return column
    if column.null_count == len(column):
        return pa.nulls(len(column), wanted)
    if not _is_like(column.type, wanted):
        return None
    try:
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _is_like(found: pa.DataType, wanted: pa.DataType) -> bool:
    import pyarrow.types as pat

    if pat.is_dictionary(found):
        return _is_like(found.value_type, wanted)
    if pat.is_timestamp(found) and pat.is_timestamp(wanted):
        return (found.tz is None) == (wanted.tz is None)
    kinds = (_is_number, _is_text, _is_bytes, pat.is_date, pat.is_time, _is_list)
    if any(kind(found) and kind(wanted) for kind in kinds):
        inner = _is_list(found)
        return not inner or _is_like(found.value_type, wanted.value_type)
    same = (pat.is_struct, pat.is_map)
    return found == wanted or any(kind(found) and kind(wanted) for kind in same)


def _is_number(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    return bool(pat.is_integer(arrow) or pat.is_floating(arrow) or pat.is_decimal(arrow))


def _is_text(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    return bool(pat.is_string(arrow) or pat.is_large_string(arrow) or pat.is_string_view(arrow))


def _is_bytes(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    checks = (pat.is_binary, pat.is_large_binary, pat.is_binary_view, pat.is_fixed_size_binary)
    return any(check(arrow) for check in checks)


def _is_list(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    return bool(pat.is_list(arrow) or pat.is_large_list(arrow) or pat.is_fixed_size_list(arrow))


def json_reader(arrow: pa.DataType, zone: str | None) -> Callable[[Any], Any]:
    """Return a function that turns a JSON value, no null, into one that Arrow takes for a type.

    Args:
        arrow: The type.
        zone: The zone of instants in columns that have none.
    """
    import pyarrow.types as pat

    if _is_list(arrow):
        return _nullable_items(json_reader(arrow.value_type, zone))
    if pat.is_struct(arrow):
        return _struct_reader({f.name: json_reader(f.type, zone) for f in arrow})
    if pat.is_map(arrow):
        return _map_reader(json_reader(arrow.key_type, zone), json_reader(arrow.item_type, zone))
    if pat.is_timestamp(arrow):
        return (lambda value: _naive(value, zone)) if arrow.tz is None else _aware
    readers: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
        (pat.is_boolean, _boolean),
        (pat.is_integer, _integer),
        (pat.is_floating, _float),
        (pat.is_decimal, _decimal),
        (_is_bytes, lambda value: base64.b64decode(_text(value), validate=True)),
        (pat.is_date, lambda value: date.fromisoformat(_text(value))),
        (pat.is_time, lambda value: time.fromisoformat(_text(value))),
    )
    return next((read for is_it, read in readers if is_it(arrow)), _text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _integer(value: Any) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise TypeError("no whole number")
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("no number")
    return float(value)


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("no number")
    return Decimal(str(value))


def _aware(value: Any) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return moment


def _naive(value: Any, zone: str | None) -> datetime:
    from zoneinfo import ZoneInfo

    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        return moment
    if zone is None:
        raise ValueError("an instant with a time zone, where the column has none")
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def _nullable_items(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def items(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError("no list")
        return [None if item is None else read(item) for item in value]

    return items


def _struct_reader(readers: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def struct(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError("no object")
        return {
            name: None if value.get(name) is None else read(value[name])
            for name, read in readers.items()
        }

    return struct


def _map_reader(read_key: Callable[[Any], Any], read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def pairs(value: Any) -> list[tuple[Any, Any]]:
        found = list(value.items()) if isinstance(value, dict) else [(k, v) for k, v in value]
        return [(read_key(key), None if item is None else read(item)) for key, item in found]

    return pairs
