"""The keys of a lookup: made of its entity rows, asked of the store, and told with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType
from featurestore.semantics.keys import encode_columns, encode_key, encode_part
from featurestore.services.columns import InputRows
from featurestore.services.lookup import KeyGroup, Lookup, LookupJoin
from featurestore.services.lossless import lossless

if TYPE_CHECKING:
    import pyarrow as pa

_FEW_ROWS = 8
_EXACT_TYPES = {"int32": int, "int64": int, "string": str, "bytes": bytes, "bool": bool}


def encode_rows(rows: InputRows, group: KeyGroup) -> list[bytes | None]:
    """Return the key of each entity row, None where a part is null (law K2)."""
    if not group.columns:
        return [b""] * rows.rows
    if rows.rows == 1 and len(group.columns) == 1:
        column, dtype = rows.columns.get(group.columns[0]), group.dtypes[0]
        if type(column) is list and type(column[0]) is _EXACT_TYPES.get(dtype.scalar):
            return [encode_part(column[0], dtype)]
    if rows.rows <= _FEW_ROWS:
        values = [rows.columns.get(name) for name in group.columns]
        if all(map(_is_exact, values, group.dtypes)):
            return [encode_key(part, group.dtypes) for part in zip(*values, strict=True)]
    columns = [
        rows.key(name, dtype, group.needed_by)
        for name, dtype in zip(group.columns, group.dtypes, strict=True)
    ]
    return encode_columns(columns, group.dtypes)


def wanted_keys(
    items: Sequence[LookupJoin], keys: Sequence[Sequence[bytes | None]]
) -> list[bytes | None]:
    """Return the key of each row of each view, None for no key."""
    wanted: list[bytes | None] = []
    for item in items:
        lead = item.namespace
        wanted += [None if key is None else lead + key for key in keys[item.group]]
    return wanted


def read_once(wanted: Sequence[bytes | None]) -> list[bytes]:
    """Return the keys that are to be read: each once, where one is wanted at all."""
    keys = [key for key in wanted if key is not None]
    return keys if len(set(keys)) == len(keys) else list(dict.fromkeys(keys))


def spread(
    held: Sequence[bytes | None], read: Sequence[bytes], wanted: Sequence[bytes | None]
) -> Sequence[bytes | None]:
    """Return the value of each key that is wanted, of those that were read."""
    if len(read) == len(wanted):
        return held
    found: dict[bytes | None, bytes | None] = dict(zip(read, held, strict=True))
    return [found.get(key) for key in wanted]


def echoed_keys(lookup: Lookup, rows: InputRows) -> list[pa.Array]:
    """Return the key columns as they were understood: of their declared type where they fit."""
    columns = []
    for name, dtype in lookup.key_columns:
        array = rows.key(name, dtype, "join key")
        echoed = lossless(array, dtype)
        columns.append(array if echoed is None else echoed)
    return columns


def _is_exact(values: Any, dtype: DType) -> bool:
    """Whether a column is a list of Python values of just the declared type."""
    exact = _EXACT_TYPES.get(dtype.scalar)
    return type(values) is list and all(v is None or type(v) is exact for v in values)
