"""Arrow columns as NumPy arrays that lose nothing: a null is a null there, not a NaN or a zero.

Columns of fixed width are arrays of their own type, a vector's two-dimensional; with a null among
them they are masked arrays (`numpy.ma`), masked where there is no value. Texts, bytes, lists and
maps are arrays of Python objects, None where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.dtypes import DType, to_pylist
from featurestore.semantics import plain

if TYPE_CHECKING:
    import pyarrow as pa

# Instants and dates are integers underneath.
_VIEWED = {"date": "datetime64[D]", "timestamp": "datetime64[us]"}


def to_numpy(dtype: DType, array: pa.Array) -> Any:
    """Return a column as a NumPy array.

    Args:
        dtype: The column's type.
        array: Of just the type's Arrow type.
    """
    import numpy as np

    if dtype.width is None:
        objects = np.empty(len(array), dtype=object)
        for row, value in enumerate(to_pylist(array)):
            objects[row] = value
        return objects
    data, validity = plain.from_arrow(dtype, array)
    values: Any = np.frombuffer(data, dtype=dtype.numpy)
    if dtype.scalar == "bool":
        values = values.astype(bool)
    elif dtype.scalar in _VIEWED:
        values = values.astype(np.int64).view(_VIEWED[dtype.scalar])
    else:
        values = values.astype(values.dtype.newbyteorder("="))
    if dtype.container == "vector":
        values = values.reshape(len(array), dtype.length)
    if validity is None:
        return values
    mask = ~np.array(plain.unpack_bits(validity, len(array)), dtype=bool)
    if dtype.container == "vector":
        mask = np.repeat(mask, dtype.length).reshape(values.shape)
    return np.ma.MaskedArray(values, mask)
