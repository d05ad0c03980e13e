"""Maps as Arrow arrays: what their entries are, and the one order that entries are kept in.

A map is a set of entries: their order says nothing. So that equal maps have equal bytes, entries
stand by their keys everywhere: numbers, dates and instants by value, false before true, texts and
bytes by their bytes. Refuses a key that is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

_PAIR = 2


@dataclass(frozen=True)
class Entries:
    """Maps taken apart.

    Attributes:
        lengths: How many entries each map has; 0 where it is null.
        present: Whether each map is there.
        keys: The keys of all maps one after the other: an Arrow array, or a list of Python values.
        values: The values, likewise.
    """

    lengths: Int64s
    present: Bools
    keys: Any
    values: Any


def entries(array: pa.Array) -> Entries | None:
    """Return the entries of Arrow maps, or of lists of structs of `key` and `value`.

    None where the array is neither. What stands below a null map is left out.
    """
    import pyarrow as pa

    if pa.types.is_map(array.type):
        return entries_of(array)
    return _entries_of_lists(array) if _is_pairs(array.type) else None


def entries_of(array: pa.Array) -> Entries:
    """Return the entries of Arrow maps; what stands below a null map is left out."""
    import pyarrow as pa

    pair = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
    return _entries_of_lists(array.cast(pa.list_(pair)))


def from_python(values: Sequence[Any]) -> Entries | None:
    """Return the entries of dicts, or of lists of pairs, None standing for a null map.

    None where a value is neither.
    """
    import numpy as np

    maps = [_items(value) for value in values]
    if any(pairs is None for pairs in maps):
        return None
    pairs = [pair for held in maps for pair in held or ()]
    return Entries(
        np.array([len(held or ()) for held in maps], dtype=np.int64),
        np.array([value is not None for value in values], dtype=bool),
        [key for key, _ in pairs],
        [value for _, value in pairs],
    )


def to_arrow(found: Entries) -> pa.Array:
    """Return maps of Arrow keys, none of them null, and Arrow values, in the order they have."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(found.lengths) + 1, dtype=np.int32)
    np.cumsum(found.lengths, out=offsets[1:])
    bits = None
    if not found.present.all():
        bits = pa.py_buffer(np.packbits(found.present, bitorder="little").tobytes())
    key = pa.field("key", found.keys.type, nullable=False)
    value = pa.field("value", found.values.type)
    pairs = pa.StructArray.from_arrays([found.keys, found.values], fields=[key, value])
    return pa.Array.from_buffers(
        pa.map_(key.type, value.type),
        len(found.lengths),
        [bits, pa.py_buffer(offsets)],
        children=[pairs],
    )


def arranged(array: pa.Array) -> pa.Array | None:
    """Return Arrow maps with their entries by key; None where one of them holds a key twice."""
    found = entries_of(array)
    if _rising(found).all():
        return array
    ordered = _sorted(found)
    return to_arrow(ordered) if _rising(ordered).all() else None


def in_order(array: pa.Array, name: str) -> pa.Array:
    """Return Arrow maps with their entries by key.

    Args:
        array: Maps.
        name: Whose they are, for the error.

    Raises:
        DataError: A map holds a key twice.
    """
    ordered = arranged(array)
    if ordered is not None:
        return ordered
    found = _sorted(entries_of(array))
    raise DataError(
        f"A map of '{name}' holds a key twice.",
        got=repr(found.keys[int(_rising(found).argmin())].as_py()),
        allowed="each key once",
        hint="Take one of the two, or make one value of both, before it comes here.",
    )


def _entries_of_lists(array: pa.Array) -> Entries:
    pairs = array.flatten()
    return Entries(
        array.value_lengths().fill_null(0).to_numpy().astype("int64"),
        array.is_valid().to_numpy(zero_copy_only=False),
        _field(pairs, "key"),
        _field(pairs, "value"),
    )


def _is_pairs(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    pair = kind.value_type
    names = [field.name for field in pair] if pa.types.is_struct(pair) else []
    return sorted(names) == ["key", "value"]


def _field(pairs: Any, name: str) -> pa.Array:
    """Return a field of structs, null where the struct is."""
    index = pairs.type.get_field_index(name)
    return pairs.flatten()[index]


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple) and all(_is_pair(item) for item in value):
        return list(value)
    return None


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == _PAIR


def _rising(found: Entries) -> Bools:
    """Whether each key but the first one is larger than the one before it in the same map."""
    import numpy as np
    import pyarrow.compute as pc

    keys = found.keys
    if len(keys) <= 1:
        return np.ones(0, dtype=bool)
    rows = np.repeat(np.arange(len(found.lengths)), found.lengths)
    larger = pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))
    rising: Bools = larger.to_numpy(zero_copy_only=False) | (rows[1:] != rows[:-1])
    return rising


def _sorted(found: Entries) -> Entries:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = np.repeat(np.arange(len(found.lengths)), found.lengths)
    order = pc.sort_indices(
        pa.table({"row": rows, "key": found.keys}),
        sort_keys=[("row", "ascending"), ("key", "ascending")],
    )
    keys, values = found.keys.take(order), found.values.take(order)
    return Entries(found.lengths, found.present, keys, values)
