"""Our value types in one table: their names, Arrow's, DuckDB's and NumPy's.

Scalars are bool, int32, int64, float32, float64, string, bytes, date and timestamp (aware UTC,
microseconds). `list<scalar>` holds any number of them, nulls included. `vector<float32, n>` and
`vector<float64, n>` are embeddings: exactly n numbers, none of them null. `map<key, scalar>` holds
a value, perhaps null, for each of its keys; no key is null, floating, or there twice. Nothing else
is a value type: a decimal, a duration or a nested list must be converted by an expression first.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import DefinitionError, listing, near_miss

if TYPE_CHECKING:
    import pyarrow as pa

SCALARS = (
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
    "bytes",
    "date",
    "timestamp",
)
KEY_SCALARS = ("bool", "int32", "int64", "string", "bytes", "date", "timestamp")

# Little-endian on the wire and in packed rows, whatever the machine.
_NUMPY = {
    "bool": "|u1",
    "int32": "<i4",
    "int64": "<i8",
    "float32": "<f4",
    "float64": "<f8",
    "date": "<i4",
    "timestamp": "<i8",
}
_DUCKDB = {
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bytes": "BLOB",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}
_PATTERN = re.compile(
    r"^\s*(?:(list)\s*<\s*(\w+)\s*>|(vector)\s*<\s*(\w+)\s*,\s*(\d+)\s*>"
    r"|(map)\s*<\s*(\w+)\s*,\s*(\w+)\s*>|(\w+))\s*$"
)
_ALLOWED = (
    f"{', '.join(SCALARS)}, list<scalar>, vector<float32, n>, vector<float64, n>, map<key, scalar>"
)
# What a source may hold without loss for a declared type, beside the type itself.
_WIDENS = {
    ("int32", "int64"),
    ("float32", "float64"),
    ("int32", "float64"),
}


@dataclass(frozen=True, slots=True)
class DType:
    """A value type.

    Attributes:
        scalar: The scalar's name, or that of the items of a list or vector, or of a map's values.
        container: "" for a scalar, "list", "vector" or "map".
        length: The number of items of a vector, else 0.
        key: The scalar of a map's keys, else "".
    """

    scalar: str
    container: str = ""
    length: int = 0
    key: str = ""

    def __str__(self) -> str:
        if self.container == "map":
            return f"map<{self.key}, {self.scalar}>"
        if self.container == "list":
            return f"list<{self.scalar}>"
        if self.container == "vector":
            return f"vector<{self.scalar}, {self.length}>"
        return self.scalar

    @property
    def item(self) -> DType:
        """The type of one item of a list or vector, or of a map's values."""
        return DType(self.scalar)

    @property
    def width(self) -> int | None:
        """Bytes of a packed value, or None when it varies (string, bytes, lists)."""
        if self.container in {"list", "map"} or self.scalar in {"string", "bytes"}:
            return None
        size = int(_NUMPY[self.scalar][2:])
        return size * (self.length or 1)

    @property
    def numpy(self) -> str:
        """The NumPy code of the scalar, little-endian; KeyError for string and bytes."""
        return _NUMPY[self.scalar]

    @property
    def duckdb(self) -> str:
        """The DuckDB type. A vector is a list there, its length checked when rows are staged.

        DuckDB 2.0 fails to join or count rows that hold a null of its own fixed-length type.
        """
        base = _DUCKDB[self.scalar]
        if self.container == "map":
            return f"MAP({_DUCKDB[self.key]}, {base})"
        return f"{base}[]" if self.container else base

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type."""
        return _arrow(self)

    def accepts(self, other: DType) -> bool:
        """Whether a source column of type `other` can be read as this type without loss."""
        if self == other:
            return True
        if self.container == "vector":
            # Parquet and CSV know no fixed length: a list of the items is checked row by row.
            return other == DType(self.scalar, "list")
        return (
            self.container == other.container
            and (other.scalar, self.scalar) in _WIDENS
            and other.length == self.length
            and other.key == self.key
        )


@functools.cache
def parse(text: str) -> DType:
    """Return the type that `text` names.

    Raises:
        DefinitionError: `text` names no value type; the near miss is suggested.

    >>> str(parse("list<int64>"))
    'list<int64>'
    >>> parse("vector<float32, 8>").width
    32
    """
    match = _PATTERN.match(text)
    if match:
        if match[1] and match[2] in SCALARS:
            return DType(match[2], "list")
        if match[3] and match[4] in {"float32", "float64"} and int(match[5]) > 0:
            return DType(match[4], "vector", int(match[5]))
        if match[6] and match[7] in KEY_SCALARS and match[8] in SCALARS:
            return DType(match[8], "map", key=match[7])
        if match[9] in SCALARS:
            return DType(match[9])
    raise DefinitionError(
        f"'{text}' is no value type.", allowed=_ALLOWED, hint=near_miss(text, SCALARS)
    )


@functools.cache
def _arrow(dtype: DType) -> pa.DataType:
    import pyarrow as pa

    scalars: dict[str, pa.DataType] = {
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "string": pa.string(),
        "bytes": pa.binary(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    item = scalars[dtype.scalar]
    if dtype.container == "list":
        return pa.list_(item)
    if dtype.container == "vector":
        return pa.list_(item, dtype.length)
    if dtype.container == "map":
        return pa.map_(scalars[dtype.key], item)
    return item


def from_arrow(arrow: pa.DataType) -> DType | None:
    """Return our type that holds every value of an Arrow type, or None when there is none.

    Small integers widen to int32 or int64; timestamps of any unit count as `timestamp` only when
    they carry a zone. Strings and binaries of any layout are `string` and `bytes`.
    """
    import pyarrow as pa
    import pyarrow.types as pat

    if pat.is_dictionary(arrow):
        return from_arrow(arrow.value_type)
    if pat.is_fixed_size_list(arrow):
        item = from_arrow(arrow.value_type)
        if item is not None and item.scalar in {"float32", "float64"} and not item.container:
            return DType(item.scalar, "vector", arrow.list_size)
        return None
    if pat.is_list(arrow) or pat.is_large_list(arrow) or isinstance(arrow, pa.ListViewType):
        item = from_arrow(arrow.value_type)
        return DType(item.scalar, "list") if item is not None and not item.container else None
    if pat.is_map(arrow):
        key, value = _scalar_from_arrow(arrow.key_type), _scalar_from_arrow(arrow.item_type)
        return DType(value, "map", key=key) if value and key in KEY_SCALARS else None
    scalar = _scalar_from_arrow(arrow)
    return DType(scalar) if scalar else None


def _scalar_from_arrow(arrow: Any) -> str | None:
    import pyarrow.types as pat

    checks = (
        (pat.is_boolean, "bool"),
        (pat.is_int64, "int64"),
        (pat.is_uint32, "int64"),
        (lambda a: pat.is_integer(a) and not pat.is_uint64(a), "int32"),
        (lambda a: pat.is_float32(a) or pat.is_float16(a), "float32"),
        (pat.is_float64, "float64"),
        (lambda a: pat.is_string(a) or pat.is_large_string(a) or pat.is_string_view(a), "string"),
        (lambda a: pat.is_binary(a) or pat.is_large_binary(a) or pat.is_binary_view(a), "bytes"),
        (pat.is_date32, "date"),
        (lambda a: pat.is_timestamp(a) and a.tz is not None, "timestamp"),
    )
    return next((name for check, name in checks if check(arrow)), None)


def to_pylist(array: pa.Array) -> list[Any]:
    """Return an Arrow array as Python values, None where null; a map is a dict.

    Told of maps, Arrow makes an object of its own of every value, whatever the type.
    """
    import pyarrow.types as pat

    options = {"maps_as_pydicts": "strict"} if pat.is_map(array.type) else {}
    values: list[Any] = array.to_pylist(**options)
    return values


def unsupported(arrow: pa.DataType) -> str:
    """Return the sentence that tells what to do about an Arrow type that we do not hold."""
    import pyarrow.types as pat

    if pat.is_timestamp(arrow):
        return "a naive timestamp needs timezone= on its source, or an expression that converts it"
    if pat.is_decimal(arrow) or pat.is_uint64(arrow):
        return "convert it by an expression, such as CAST(x AS DOUBLE) or CAST(x AS BIGINT)"
    return f"convert it by an expression to one of {listing(SCALARS)}"
