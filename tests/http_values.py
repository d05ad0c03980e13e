"""Values of all types, and how a caller reads them from JSON by the documented rules alone."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from hypothesis import strategies as st

from featurestore.dtypes import DType, parse
from featurestore.serving.http.values import shown_column, write_json

_SPECIAL = [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, 0.1]
_ENDS = {32: [-(2**31), 2**31 - 1, 0], 64: [-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1, 0]}


def _ints(bits: int) -> st.SearchStrategy[int]:
    return st.sampled_from(_ENDS[bits]) | st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int32": _ints(32),
    "int64": _ints(64),
    "float32": st.floats(width=32) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
    "float64": st.floats() | st.sampled_from(_SPECIAL),
    "string": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
    "date": st.dates(),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
}


def values(dtype: DType) -> st.SearchStrategy[Any]:
    """Values of a type, null among them."""
    return st.none() | present(dtype)


def present(dtype: DType) -> st.SearchStrategy[Any]:
    """Values of a type that are there."""
    items = SCALARS[dtype.scalar]
    if dtype.container == "vector":
        return st.lists(items, min_size=dtype.length, max_size=dtype.length)
    if dtype.container == "list":
        return st.lists(st.none() | items, max_size=3)
    if dtype.container == "map":
        return st.dictionaries(SCALARS[dtype.key], st.none() | items, max_size=3)
    return items


def columns_text(columns: Mapping[str, list[Any]], dtypes: Sequence[DType]) -> bytes:
    """Return columns of Python values as the JSON of an object of lists."""
    pairs = zip(columns.items(), dtypes, strict=True)
    return write_json({name: shown_column(column, dtype) for (name, column), dtype in pairs})


def as_documented(value: Any, dtype: str) -> Any:  # noqa: PLR0911  (a rule a line)
    """Return what a JSON value stands for, by the documented rules; floats as `bits` has them."""
    kind = parse(dtype)
    if value is None:
        return None
    if kind.container == "map":
        assert isinstance(value, dict)
        return {_key(k, kind.key): as_documented(v, kind.scalar) for k, v in value.items()}
    if kind.container:
        assert isinstance(value, list)
        return [as_documented(item, kind.scalar) for item in value]
    if dtype in {"float32", "float64"}:
        named = {"NaN", "Infinity", "-Infinity"}
        assert value in named if isinstance(value, str) else type(value) in {int, float}
        return bits(float(value))
    if dtype in {"int32", "int64"}:
        assert type(value) is int
    if dtype == "bytes":
        return base64.b64decode(value, validate=True)
    if dtype == "date":
        return date.fromisoformat(value)
    if dtype == "timestamp":
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value)
        return datetime.fromisoformat(value)
    return value


def _key(text: str, dtype: str) -> Any:
    if dtype in {"int32", "int64"}:
        return int(text)
    return {"true": True, "false": False}[text] if dtype == "bool" else as_documented(text, dtype)


def bits(value: Any) -> Any:
    """Return a Python value with its floats as text that tells NaN, infinities and -0.0 apart."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return value
