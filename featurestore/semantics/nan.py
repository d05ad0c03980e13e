"""There is one NaN: whatever bits a source's or a function's NaN had, ours are the same everywhere.

Parquet writers merge NaNs of different bits as they please (a dictionary holds one of them), so
tables cannot tell them apart. What leaves a table, goes online or comes from a function therefore
has the usual quiet NaN. The signs of zeros are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def one_nan(numbers: Any) -> Any:
    """Return a NumPy array of floats whose NaNs all have the same bits."""
    wrong = np.isnan(numbers)
    return np.where(wrong, numbers.dtype.type(np.nan), numbers) if wrong.any() else numbers


def with_one_nan(array: pa.Array) -> pa.Array:
    """Return an Arrow array of floats, or of lists, vectors or maps of them, with one NaN.

    Arrays of other types, and such without NaN, come back as they are.
    """
    import pyarrow as pa

    kind = array.type
    if pa.types.is_floating(kind):
        return _floats(array)
    nested = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_map(kind)
    item = (kind.item_type if pa.types.is_map(kind) else kind.value_type) if nested else None
    if item is None or not pa.types.is_floating(item):
        return array
    held = array.items if pa.types.is_map(kind) else array.values
    changed = _floats(held)
    return array if changed is held else _rebuilt(array, changed)


def _floats(array: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    wrong = pc.is_nan(array)
    if not pc.any(wrong).as_py():
        return array
    return pc.if_else(wrong.fill_null(fill_value=False), pa.scalar(np.nan, array.type), array)


def _rebuilt(array: pa.Array, items: pa.Array) -> pa.Array:
    """Return a list, vector or map with other items of the same number."""
    import pyarrow as pa

    kind, buffers = array.type, array.buffers()
    if pa.types.is_map(kind):
        child = pa.StructArray.from_arrays(
            [array.keys, items], fields=[kind.key_field, kind.item_field]
        )
    else:
        child = items
    own = buffers[:1] if pa.types.is_fixed_size_list(kind) else buffers[:2]
    return pa.Array.from_buffers(
        kind, len(array), own, null_count=array.null_count, offset=array.offset, children=[child]
    )
