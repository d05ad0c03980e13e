"""The point-in-time join as slowly and plainly as it can be written: it decides (laws T, K, J).

Every engine and every store is compared with these functions. They loop over all rows for each
entity row, and they encode a row's canonical bytes value by value, apart from the vectorized code
in `rows.py`. Not for use on more than some thousand rows.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from featurestore.dtypes import DType
from featurestore.errors import DataError
from featurestore.semantics.keys import encode_key
from featurestore.semantics.timeline import is_visible, to_instant

Knowledge = Literal["healed", "known"]


@dataclass(frozen=True)
class ReferenceRow:
    """One row of a view's table.

    Attributes:
        key: The join key's values in declared order; None in any of them matches nothing.
        event: The event timestamp, microseconds.
        created: The created timestamp; None where the declared column is null. A source without
            the column sets it to `event`.
        values: The features in declared order.
    """

    key: tuple[Any, ...]
    event: int
    created: int | None
    values: tuple[Any, ...]


def newest(
    rows: Iterable[ReferenceRow], dtypes: Sequence[DType], as_of: int, knowledge: Knowledge
) -> ReferenceRow | None:
    """Return the newest row (T2) that had happened, and with "known" been learnt, by `as_of`."""
    candidates = [
        row
        for row in rows
        if row.event <= as_of
        and (knowledge == "healed" or (row.created is not None and row.created <= as_of))
    ]
    return max(candidates, key=lambda row: order(row, dtypes), default=None)


def order(row: ReferenceRow, dtypes: Sequence[DType]) -> tuple[int, int, bytes]:
    """Law T2: event, then created (null before all), then the canonical bytes."""
    created = -(2**63) if row.created is None else row.created
    return (row.event, created, canonical(row.values, dtypes))


def join(
    rows: Sequence[ReferenceRow],
    key_dtypes: Sequence[DType],
    dtypes: Sequence[DType],
    entity_rows: Sequence[tuple[tuple[Any, ...], int]],
    *,
    ttl: int | None,
    knowledge: Knowledge = "healed",
) -> list[ReferenceRow | None]:
    """Return for each entity row (key, instant) the matched row or None, in order (law J1).

    The newest row is chosen first and hidden when it is too old: an expired row never reveals an
    older one, which is older still.
    """
    by_key: dict[bytes, list[ReferenceRow]] = {}
    for row in rows:
        key = encode_key(row.key, key_dtypes)
        if key is not None:
            by_key.setdefault(key, []).append(row)
    result: list[ReferenceRow | None] = []
    for values, as_of in entity_rows:
        key = encode_key(values, key_dtypes)
        match = newest(by_key.get(key, []) if key is not None else [], dtypes, as_of, knowledge)
        seen = match is not None and is_visible(match.event, as_of, ttl)
        result.append(match if seen else None)
    return result


def canonical(values: Sequence[Any], dtypes: Sequence[DType]) -> bytes:
    """Return the canonical bytes of a row's features, one value at a time."""
    bits = sum(1 << i for i, value in enumerate(values) if value is not None)
    parts = [bits.to_bytes((len(values) + 7) // 8, "little")]
    pairs = list(zip(values, dtypes, strict=True))
    parts += [_fixed(v, t) for v, t in pairs if t.width is not None]
    parts += [_varying(v, t) for v, t in pairs if t.width is None and v is not None]
    return b"".join(parts)


def _fixed(value: Any, dtype: DType) -> bytes:
    if value is None:
        return b"\x00" * (dtype.width or 0)
    if dtype.container == "vector":
        return b"".join(_fixed(item, dtype.item) for item in value)
    if dtype.scalar == "date":
        value = (
            value.toordinal() - date(1970, 1, 1).toordinal() if isinstance(value, date) else value
        )
    if dtype.scalar == "timestamp" and isinstance(value, datetime):
        value = to_instant(value)
    code = {"bool": "?", "int32": "i", "int64": "q", "float32": "f", "float64": "d"}
    return struct.pack("<" + code.get(dtype.scalar, "i" if dtype.scalar == "date" else "q"), value)


def _varying(value: Any, dtype: DType) -> bytes:
    if dtype.container == "list":
        return struct.pack("<I", len(value)) + _items(value, dtype.item)
    if dtype.container == "map":
        return _map(list(value.items() if isinstance(value, Mapping) else value), dtype)
    data = value.encode() if isinstance(value, str) else bytes(value)
    return struct.pack("<I", len(data)) + data


def _items(values: Sequence[Any], dtype: DType) -> bytes:
    bits = sum(1 << i for i, item in enumerate(values) if item is not None)
    encode = _varying if dtype.width is None else _fixed
    items = [encode(v, dtype) for v in values if v is not None or dtype.width]
    return bits.to_bytes((len(values) + 7) // 8, "little") + b"".join(items)


def _map(pairs: list[tuple[Any, Any]], dtype: DType) -> bytes:
    """Count, keys in order, then the values as a list has its items."""
    pairs.sort(key=lambda pair: pair[0].encode() if isinstance(pair[0], str) else pair[0])
    keys = [key for key, _ in pairs]
    if any(key == before for before, key in itertools.pairwise(keys)):
        raise DataError("A map holds a key twice.", got=repr(keys), allowed="each key once")
    kind = DType(dtype.key)
    encode = _varying if kind.width is None else _fixed
    head = struct.pack("<I", len(pairs)) + b"".join(encode(key, kind) for key in keys)
    return head + _items([value for _, value in pairs], dtype.item)
