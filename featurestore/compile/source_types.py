"""A source's Arrow types as our value types: what fits, what is refused, and the SQL that converts.

Naive timestamps become instants only under the zone that their source declares (law T1); whatever
is finer than a microsecond is cut off towards the past. The entries of a map are put in the order
of their keys, so that equal maps are equal to the engine too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.compile.plan import SourcePlan
from featurestore.compile.table_sql import literal
from featurestore.dtypes import KEY_SCALARS, DType, from_arrow, unsupported
from featurestore.errors import SourceSchemaError, listing

if TYPE_CHECKING:
    import pyarrow as pa

_FIELDS = ("key", "value")
# What the text of a CSV cell gives, though the reader took the column for the first of each pair.
_FROM_TEXT = {("int32", "float32"), ("int64", "float64"), ("int32", "float64")}


def is_naive(arrow: pa.DataType) -> bool:
    """Whether values are timestamps without a zone, or lists or maps of them."""
    import pyarrow.types as pat

    return any(pat.is_timestamp(part) and part.tz is None for part in _parts(arrow))


def instant_expression(
    expression: str,
    arrow: pa.DataType,
    zone: str | None,
    role: str = "",
    source: str = "",
) -> tuple[str, pa.DataType]:
    """Return SQL for the instants of a timestamp expression, and its Arrow type.

    Args:
        expression: SQL of a timestamp, a date (its midnight), or a list or map of timestamps.
        arrow: Its type.
        zone: The zone of naive values.
        role: What the value is for, as in "event_timestamp", for the error.
        source: The source's name, for the error.

    Raises:
        SourceSchemaError: The type is no timestamp, or naive without a zone.
    """
    import pyarrow as pa
    import pyarrow.types as pat

    instant = pa.timestamp("us", tz="UTC")
    if _is_list(arrow):
        body, _ = instant_expression("x", _item(arrow), zone, role, source)
        return f"list_transform({expression}, lambda x: {body})", pa.list_(instant)
    if pat.is_map(arrow):
        parts = [
            instant_expression(f"x.{name}", part, zone, role, source)
            if pat.is_timestamp(part)
            else (f"x.{name}", part)
            for name, part in zip(_FIELDS, _parts(arrow), strict=True)
        ]
        (key, key_type), (value, value_kind) = parts
        return f"map_from_entries({_pairs(expression, key, value)})", pa.map_(key_type, value_kind)
    if pat.is_date(arrow):
        expression, naive = f"CAST({expression} AS TIMESTAMP)", True
    elif pat.is_timestamp(arrow):
        naive = arrow.tz is None
        expression = _microseconds(expression, arrow)
    else:
        raise _no_timestamp(arrow, role, source)
    if not naive:
        return expression, instant
    if zone is None:
        raise _no_zone(arrow, role, source)
    return f"timezone({literal(zone)}, {expression})", instant


def convert(expression: str, arrow: pa.DataType, dtype: DType, zone: str | None) -> str:
    """Return SQL that gives an expression exactly the type `dtype`, which `_fits` allows."""
    if dtype.container == "map" and not _is_null(arrow):
        types = zip((DType(dtype.key), dtype.item), _parts(arrow), _FIELDS, strict=True)
        key, value = (convert(f"x.{name}", part, kind, zone) for kind, part, name in types)
        entries = _pairs(expression, key, value)
        return f"map_from_entries(list_sort({entries}, 'ASC', 'NULLS LAST'))"
    if dtype.scalar == "timestamp" and not _is_null(arrow):
        expression, _ = instant_expression(expression, arrow, zone)
        return expression
    exact = arrow == dtype.arrow and dtype.container != "vector"
    return expression if exact else f"CAST({expression} AS {dtype.duckdb})"


def infer(arrow: pa.DataType, source: SourcePlan) -> DType | None:
    """Return the value type of a column or expression of a source, None where there is none."""
    import pyarrow as pa

    if source.timezone and is_naive(arrow):
        parts = [pa.timestamp("us", tz="UTC") if is_naive(p) else p for p in _parts(arrow)]
        if pa.types.is_map(arrow):
            return from_arrow(pa.map_(*parts))
        return from_arrow(pa.list_(parts[0]) if _is_list(arrow) else parts[0])
    return from_arrow(arrow)


def value_type(
    name: str, role: str, arrow: pa.DataType, declared: DType | None, source: SourcePlan
) -> DType:
    """Return the compiled type of a feature or join key: the declared one, else the source's.

    Args:
        name: The column, for errors.
        role: "feature" or "join key".
        arrow: What the source holds.
        declared: The declared type, if any.
        source: The source.

    Raises:
        SourceSchemaError: There is no value type for it, it differs from the declared one, or no
            key can be of it.
    """
    if declared is None and _is_null(arrow):
        raise SourceSchemaError(
            f"The type of the {role} '{name}' cannot be told: the source has no value of it.",
            got=str(arrow),
            hint=f"Declare it: Field(name='{name}', dtype=...)."
            if role == "feature"
            else f'Cast it in the source: query="SELECT CAST({name} AS BIGINT) AS {name}, ...".',
        )
    if declared is not None:
        refuse_unlike(name, role, arrow, declared, source)
        return declared
    inferred = infer(arrow, source)
    if inferred is None:
        raise SourceSchemaError(
            f"The {role} '{name}' has a type that no {role} can have.",
            got=str(arrow),
            allowed=_ALLOWED,
            hint=_capital(unsupported(arrow)) + ".",
        )
    return inferred if role == "feature" else _key_type(name, inferred)


def refuse_unlike(
    name: str,
    role: str,
    arrow: pa.DataType,
    wanted: DType,
    source: SourcePlan,
    *,
    said: str = "declared",
) -> None:
    """Raise unless a column of an Arrow type can be read as `wanted` without loss.

    Raises:
        SourceSchemaError: It cannot; says what the source holds and what would fit.
    """
    got = infer(arrow, source)
    if _is_null(arrow) or (got is not None and _fits(got, wanted, source)):
        return
    raise SourceSchemaError(
        f"The {role} '{name}' is {said} as {wanted}, and FileSource '{source.name}' holds"
        f" {got or arrow}.",
        got=f"{got} ({arrow})" if got and str(got) != str(arrow) else str(arrow),
        allowed=f"{wanted}, or what widens to it without loss",
        hint=_MENDED if said == "applied" else _next_step(name, role, arrow, wanted, got),
    )


_MENDED = "Run 'featurestore plan' and 'apply' to take the new type, or mend the source."
_ALLOWED = (
    "bool, integers up to 64 bits, floats, texts, bytes, dates, instants, lists and maps of these"
)


def _key_type(name: str, inferred: DType) -> DType:
    if inferred.container or inferred.scalar not in KEY_SCALARS:
        raise SourceSchemaError(
            f"The join key '{name}' is of a type that identifies nothing.",
            got=str(inferred),
            allowed=listing(KEY_SCALARS),
            hint=f'Cast it in the source: query="SELECT CAST({name} AS BIGINT) AS {name}, ...".',
        )
    # A key's identity is its value (law K1), so its width does not matter.
    return DType("int64") if inferred.scalar == "int32" else inferred


def _fits(got: DType, wanted: DType, source: SourcePlan) -> bool:
    if wanted.accepts(got):
        return True
    plain = not got.container and not wanted.container
    return source.kind == "csv" and plain and (got.scalar, wanted.scalar) in _FROM_TEXT


def _next_step(name: str, role: str, arrow: pa.DataType, wanted: DType, got: DType | None) -> str:
    if got is None and is_naive(arrow):
        return _capital(unsupported(arrow)) + "."
    if role == "join key":
        return f'Cast it in the source: query="SELECT CAST({name} AS {wanted.duckdb}) AS {name}".'
    cast = f"expression='CAST({name} AS {wanted.duckdb})'"
    if got is None:
        return f"Convert it: Field(name='{name}', dtype='{wanted}', {cast})."
    return f"Declare dtype='{got}', or convert it: {cast}."


def _microseconds(expression: str, arrow: Any) -> str:
    if arrow.unit == "ns":
        # The engine rounds when it casts; to the past is what "had happened by" means.
        whole = (
            f"epoch_ns({expression}) // 1000 - CAST(epoch_ns({expression}) % 1000 < 0 AS BIGINT)"
        )
        return f"make_timestamp{'' if arrow.tz is None else 'tz'}({whole})"
    if arrow.unit != "us":
        return f"CAST({expression} AS TIMESTAMP{'' if arrow.tz is None else 'TZ'})"
    return expression


def _no_timestamp(arrow: pa.DataType, role: str, source: str) -> SourceSchemaError:
    return SourceSchemaError(
        f"The {role} of FileSource '{source}' is no timestamp.",
        got=str(arrow),
        allowed="a timestamp with a zone, or a naive one or a date with timezone= on the source",
        hint="Convert it with query=, as in to_timestamp(seconds) or CAST(text AS TIMESTAMPTZ).",
    )


def _no_zone(arrow: pa.DataType, role: str, source: str) -> SourceSchemaError:
    return SourceSchemaError(
        f"The {role} of FileSource '{source}' has no time zone, and the source declares none.",
        got=str(arrow),
        allowed="an instant, or timezone= on the source",
        hint=f"Add timezone='UTC', or the zone it was written in, to FileSource '{source}'.",
    )


def _pairs(expression: str, key: str, value: str) -> str:
    """Return SQL for the entries of a map, their fields given as SQL over an entry `x`."""
    entries = f"map_entries({expression})"
    if (key, value) == tuple(f"x.{name}" for name in _FIELDS):
        return entries
    return f"list_transform({entries}, lambda x: struct_pack(key := {key}, value := {value}))"


def _is_null(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    return all(pat.is_null(part) for part in _parts(arrow))


def _is_list(arrow: pa.DataType) -> bool:
    import pyarrow.types as pat

    return bool(pat.is_list(arrow) or pat.is_large_list(arrow) or pat.is_fixed_size_list(arrow))


def _item(arrow: Any) -> Any:
    return arrow.value_type if _is_list(arrow) else arrow


def _parts(arrow: Any) -> list[Any]:
    """Return the types of the values that a value is made of: a map's key and value, or one."""
    import pyarrow.types as pat

    return [arrow.key_type, arrow.item_type] if pat.is_map(arrow) else [_item(arrow)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
