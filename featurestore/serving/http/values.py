"""Values of our types as JSON, both ways, without loss.

A number is written so that whoever reads it as a float64, or as an integer where it is one, has the
very same: floats as the shortest text that reads back as the float64 that they are, integers with
all their digits. What JSON has no numbers for are the texts "NaN", "Infinity" and "-Infinity"; null
is nothing but null. Bytes are base64, dates and instants RFC 3339, instants with six decimals and
`Z`. A map is an object, its keys written as texts.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from itertools import chain
from typing import Any

import orjson

from featurestore.dtypes import DType
from featurestore.errors import NaiveTimestampError, RequestError
from featurestore.serving.http.parsing import shown

Column = list[Any]
Convert = Callable[[Any], Any]

FLOATS = ("float32", "float64")
_EXACT = 2**53
_INSTANT_LENGTH = len("2013-01-31T12:00:00.000000")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.(\d{1,6})0*)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BOOLEANS = {"true": True, "false": False}
_SHAPES = {
    "bytes": "base64 text",
    "date": 'a text such as "2013-01-31"',
    "timestamp": 'a text such as "2013-01-31T12:00:00Z", of microseconds at most',
    "float32": 'a number, "NaN", "Infinity" or "-Infinity"',
    "float64": 'a number, "NaN", "Infinity" or "-Infinity"',
}
_UNFIT = (ValueError, TypeError, OverflowError, binascii.Error)
# Dates and instants are shown here, not by orjson, which would leave out what is zero.
_OPTIONS = (
    orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
)


# What comes in.


def read_column(values: Column, dtype: DType, where: str) -> Column:
    """Return a column of JSON values as Python values of a declared type.

    Args:
        values: As a JSON parser gives them.
        dtype: The declared type.
        where: Names the column, for errors.

    Raises:
        RequestError: A value is none of the type.
        NaiveTimestampError: An instant has no time zone.
    """
    exact = _EXACT_TYPES.get(str(dtype))
    if exact is not None and all(type(value) is exact for value in values):
        return values
    read = _reader(dtype)
    found: Column = []
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else read(value))
        except NaiveTimestampError as error:
            error.where = f"{where}, row {row}"
            raise
        except _UNFIT as error:
            raise RequestError(
                f"A value cannot be read as {dtype}.",
                where=f"{where}, row {row}",
                got=shown(value),
                allowed=_allowed(dtype),
            ) from error
    return found


def read_instant(value: Any, what: str) -> datetime:
    """Return the instant that a JSON text names.

    Raises:
        RequestError: It is none.
        NaiveTimestampError: It has no time zone.
    """
    try:
        return _instant(value)
    except NaiveTimestampError as error:
        error.where = what
        raise
    except _UNFIT as error:
        raise RequestError(
            f"'{what}' is no instant.", got=shown(value), allowed=_SHAPES["timestamp"]
        ) from error


_EXACT_TYPES = {"int32": int, "int64": int, "string": str, "bool": bool, "float64": float}


def _reader(dtype: DType) -> Convert:
    read = _READERS[dtype.scalar]
    if dtype.container == "map":
        return lambda value: _map(value, _KEY_READERS[dtype.key], read)
    if dtype.container:
        return lambda value: _list(value, read)
    return read


def _list(value: Any, read: Convert) -> Column:
    if not isinstance(value, list):
        raise TypeError("no list")
    return [None if item is None else read(item) for item in value]


def _map(value: Any, read_key: Callable[[str], Any], read: Convert) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    found = {read_key(key): None if item is None else read(item) for key, item in value.items()}
    if len(found) < len(value):
        raise ValueError("a key is there twice")
    return found


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _integer(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    raise TypeError("no whole number")


def _key_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text) or text == "-0":
        raise ValueError("no whole number")
    return int(text)


def _number(value: Any) -> float:
    if isinstance(value, str):
        if value not in _NAMED:
            raise ValueError("no number")
        return _NAMED[value]
    if type(value) is int:
        number = float(value)
        if int(number) != value:
            raise ValueError("no float holds it")
        return number
    if type(value) is not float:
        raise TypeError("no number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_text(value), validate=True)


def _date(value: Any) -> date:
    if not _DATE.fullmatch(_text(value)):
        raise ValueError("no date")
    return date.fromisoformat(value)


def _instant(value: Any) -> datetime:
    match = _INSTANT.fullmatch(_text(value))
    if not match:
        raise ValueError("no instant")
    if match[2] is None:
        raise NaiveTimestampError(
            "An instant has no time zone.",
            got=value,
            allowed=_SHAPES["timestamp"],
            hint="Say which zone it is in; it is never guessed.",
        )
    return datetime.fromisoformat(f"{value[:19]}.{match[1] or '0':0<6}{match[2].upper()}")


_READERS: Mapping[str, Convert] = {
    "bool": _bool,
    "int32": _integer,
    "int64": _integer,
    "float32": _number,
    "float64": _number,
    "string": _text,
    "bytes": _bytes,
    "date": _date,
    "timestamp": _instant,
}
_KEY_READERS: Mapping[str, Callable[[str], Any]] = {
    **_READERS,
    "bool": lambda text: _BOOLEANS[text] if text in _BOOLEANS else _bool(text),
    "int32": _key_integer,
    "int64": _key_integer,
}


def _allowed(dtype: DType) -> str:
    scalar = _SHAPES.get(dtype.scalar, dtype.scalar)
    if dtype.container == "map":
        return f"an object of {dtype.scalar}, each key a {dtype.key} as a text"
    return f"a list of {dtype.scalar}" if dtype.container else scalar


# What goes out.


def write_json(value: Any) -> bytes:
    """Return what JSON has as JSON, arrays of numbers included.

    Args:
        value: No float among it, arrays included, is one that JSON lacks: it would become null.
    """
    return orjson.dumps(value, option=_OPTIONS)


def shown_column(column: Column, dtype: DType) -> Column:
    """Return a column of Python values of a type as what JSON has for them."""
    show = shower(dtype)
    return column if show is None else show(column)


@functools.cache
def shower(dtype: DType) -> Callable[[Column], Column] | None:
    """Return what makes columns of a type what JSON has; None where they are."""
    show = _shower(dtype)
    if show is not None:
        showing = show
        if dtype.scalar not in FLOATS:
            return lambda column: [None if v is None else showing(v) for v in column]
        return lambda column: named([None if v is None else showing(v) for v in column])
    if dtype.scalar not in FLOATS:
        return None
    if dtype.container:
        return lambda column: column if _are_finite(_items(column)) else named(column)
    return lambda column: column if _are_finite(column) else named(column)


def show_instant(moment: datetime) -> str:
    """Return an instant, which is in UTC, as RFC 3339 with six decimals."""
    return f"{moment.isoformat(timespec='microseconds')[:_INSTANT_LENGTH]}Z"


def _shower(dtype: DType) -> Convert | None:
    """Return what makes JSON of one value; None where it is JSON already."""
    show = _SHOWN.get(dtype.scalar)
    if dtype.container == "map":
        key = _SHOWN_KEYS[dtype.key]
        held = show or _same
        return lambda value: {
            key(name): None if item is None else held(item) for name, item in value.items()
        }
    if dtype.container and show is not None:
        return lambda value: [None if item is None else show(item) for item in value]
    return show


def named(value: Any) -> Any:
    """Return a value, or a list, whose floats that JSON lacks are texts."""
    if type(value) is float:
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if type(value) is list:
        return [named(item) for item in value]
    if type(value) is dict:
        return {key: named(item) for key, item in value.items()}
    return value


def _are_finite(floats: Iterable[float | None]) -> bool:
    """Return whether JSON has all floats; what is null or zero need not be asked."""
    return all(map(math.isfinite, filter(None, floats)))


def _items(lists: Column) -> Iterable[float | None]:
    return chain.from_iterable(filter(None, lists))


def _same(value: Any) -> Any:
    return value


def _show_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


_SHOWN: Mapping[str, Convert] = {
    "bytes": _show_bytes,
    "date": date.isoformat,
    "timestamp": show_instant,
}
_SHOWN_KEYS: Mapping[str, Convert] = {
    **_SHOWN,
    "bool": lambda key: "true" if key else "false",
    "int32": str,
    "int64": str,
    "string": _same,
}
