"""Texts of the command line become values of declared types: `customer_id=17,day=2013-01-31`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import date
from typing import Any

from featurestore.dtypes import DType
from featurestore.errors import RequestError, listing, near_miss
from featurestore.semantics.timeline import to_datetime, to_instant

# A comma that begins the next name; other commas belong to the value.
_NEXT_PAIR = re.compile(r",(?=\s*[A-Za-z_]\w*=)")
_BOOLEANS = {"true": True, "false": False}
_SHAPES = {
    "bool": "true or false",
    "date": "a date such as 2013-01-31",
    "timestamp": "an instant with a zone such as 2013-01-31T12:00:00Z",
    "bytes": "base64",
}


def feature_list(text: str, services: Container[str], views: Container[str]) -> str | list[str]:
    """Return the name of a service, or a list of `view:feature` references and views.

    A single name is a service's; a view's only when no service is called so.

    >>> feature_list("ranking", {"ranking"}, {"a"}), feature_list("a:x, b", {}, {})
    ('ranking', ['a:x', 'b'])
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and ":" not in text and (parts[0] in services or parts[0] not in views):
        return parts[0]
    return parts


def records(
    option: str, texts: Sequence[str], types: Mapping[str, DType], *, exact: bool
) -> list[dict[str, Any]]:
    """Return one dict a text of `name=value` pairs, each value read as the type of its name.

    Args:
        option: The option that the texts came with, for errors.
        texts: Such as "customer_id=17,city=Oslo"; a comma inside of a value is kept.
        types: The names that are asked for.
        exact: Whether these are all the names and no others. Otherwise a value of an unknown name
            is what it looks like: a JSON number, true, false, null, or a text.

    Raises:
        RequestError: A text is no pair, names what nobody asked for, or cannot be read.
    """
    found = [_record(option, text, types, exact=exact) for text in texts]
    for text, values in zip(texts, found, strict=True):
        missing = [name for name in types if name not in values]
        if exact and missing:
            raise RequestError(
                f"{option} lacks {listing(missing)}.",
                where=f"{option} {text}",
                hint=f"Write {option} {','.join(f'{name}=...' for name in types)}.",
            )
    return found


def _record(option: str, text: str, types: Mapping[str, DType], *, exact: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in _NEXT_PAIR.split(text):
        name, found, value = pair.strip().partition("=")
        if not found:
            raise RequestError(
                f"{option} takes name=value.", where=f"{option} {text}", got=repr(pair)
            )
        if name not in types and exact:
            raise RequestError(
                f"The features asked for do not need '{name}'.",
                where=f"{option} {text}",
                allowed=listing(types),
                hint=near_miss(name, types),
            )
        dtype = types.get(name)
        values[name] = _guess(value) if dtype is None else _value(option, name, value, dtype)
    return values


def _guess(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict) else value


def _value(option: str, name: str, text: str, dtype: DType) -> Any:
    if text == "null" and str(dtype) != "string":
        return None
    try:
        return _parsed(text, dtype)
    except (ValueError, KeyError, TypeError, RequestError) as error:
        allowed = _SHAPES.get(dtype.scalar, str(dtype))
        if dtype.container:
            allowed = f"a JSON list of {dtype.scalar}"
        if dtype.container == "map":
            allowed = f'a JSON object of {dtype.scalar}, each key a {dtype.key} in ""'
        raise RequestError(
            f"'{name}' cannot be read as {dtype}.",
            where=f"{option} {name}={text}",
            got=repr(text),
            allowed=allowed,
        ) from error


def _parsed(text: str, dtype: DType) -> Any:
    if dtype.container == "map":
        pairs = json.loads(text, object_pairs_hook=tuple)
        if not isinstance(pairs, tuple):
            raise TypeError("this is no JSON object")
        found = {_PARSERS[dtype.key](key): _item(item, dtype) for key, item in pairs}
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found
    if dtype.container:
        items = json.loads(text)
        if not isinstance(items, list):
            raise TypeError("this is no JSON list")
        return [_item(item, dtype) for item in items]
    return _PARSERS[dtype.scalar](text)


def _item(item: Any, dtype: DType) -> Any:
    """Return what a JSON value inside of a list or map stands for; null is nothing."""
    if item is None:
        return None
    return _PARSERS[dtype.scalar](item if isinstance(item, str) else json.dumps(item))


_PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: _BOOLEANS[text.lower()],
    "int32": int,
    "int64": int,
    "float32": float,
    "float64": float,
    "string": str,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "date": date.fromisoformat,
    "timestamp": lambda text: to_datetime(to_instant(text)),
}
