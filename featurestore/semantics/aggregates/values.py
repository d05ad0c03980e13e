"""Scalars as codes: whole numbers of 64 bits that are ordered and equal just as the values are.

Numbers, dates and instants have a code of their own. Texts and bytes get places in a sorted pool of
distinct values. With codes, smallest, largest, distinct and sorted are one matter for every type.
Reading an Arrow array copies its buffers and never makes an object a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.dtypes import DType
from featurestore.semantics.aggregates.blobs import damaged

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Up to here Python's own sets and sorting beat Arrow's kernels.
_SMALL = 2_000


class Pool:
    """Distinct byte strings, sorted; a value's code is its place.

    Args:
        items: The values as Python has them; or
        array: as Arrow has them, of type binary without nulls.
    """

    def __init__(self, items: list[bytes] | None = None, array: pa.Array | None = None) -> None:
        if items is not None:
            self.items = items
        if array is not None:
            self.array = array

    @cached_property
    def items(self) -> list[bytes]:
        """The values as Python has them."""
        return list(self.array.to_pylist())

    @cached_property
    def array(self) -> pa.Array:
        """The values as Arrow has them."""
        return pa.array(self.items, type=pa.binary())

    def __len__(self) -> int:
        return len(self.items if "items" in self.__dict__ else self.array)


EMPTY = Pool([])


def pool_of(values: Sequence[bytes]) -> tuple[Pool, Int64s]:
    """Return the pool of byte strings and the code of each."""
    if len(values) > _SMALL:
        return _pooled(pa.array(values, type=pa.binary()))
    items = sorted(set(values))
    places = {item: place for place, item in enumerate(items)}
    return Pool(items), np.array([places[value] for value in values], dtype=np.int64)


def union(pools: Sequence[Pool]) -> tuple[Pool, list[Int64s]]:
    """Return the pool of all values, and for each pool the new code of each of its codes."""
    if all(pool is pools[0] for pool in pools):
        same = np.arange(len(pools[0]), dtype=np.int64)
        return pools[0], [same] * len(pools)
    edges = np.cumsum([len(pool) for pool in pools])
    if edges[-1] > _SMALL:
        joined, codes = _pooled(pa.concat_arrays([pool.array for pool in pools]))
    else:
        joined, codes = pool_of([item for pool in pools for item in pool.items])
    return joined, np.split(codes, edges[:-1])


def _pooled_values(array: pa.Array) -> tuple[Pool, Int64s]:
    """Return the pool of a binary array and the code of each item; that of a null is any."""
    if len(array) > _SMALL:
        return _pooled(array)
    return pool_of([b"" if value is None else value for value in array.to_pylist()])


def _pooled(array: pa.Array) -> tuple[Pool, Int64s]:
    encoded = array.dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary)
    places = np.empty(len(order), dtype=np.int64)
    places[order.to_numpy()] = np.arange(len(order))
    indexes = encoded.indices
    found = indexes.fill_null(0) if indexes.null_count else indexes
    codes = found.to_numpy()
    pool = Pool(array=encoded.dictionary.take(order))
    return pool, places[codes] if len(places) else np.zeros(len(codes), dtype=np.int64)


def typed(array: Any, kind: pa.DataType) -> pa.Array:
    """Return an array of exactly this type: its buffers are about to be read as such."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array if array.type == kind else array.cast(kind)


def validity(array: pa.Array) -> Bools | None:
    """Return which values of an array are there, None where all are."""
    if array.null_count == 0:
        return None
    bits = np.frombuffer(array.buffers()[0], dtype=np.uint8)
    start = array.offset
    return np.unpackbits(bits, bitorder="little")[start : start + len(array)].astype(bool)


def plain(array: pa.Array, code: str) -> Any:
    """Return the values of a fixed-width array as NumPy has them; anything below a null."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), dtype=code)
    width = np.dtype(code).itemsize
    return np.frombuffer(buffer, dtype=code, count=len(array), offset=array.offset * width)


class Scalars:
    """Turns values of one scalar type into codes and back.

    Args:
        dtype: The type.
        keeps_sign: Whether -0.0 stays itself; otherwise it is 0.0, as for all that is compared.
    """

    def __init__(self, dtype: DType, *, keeps_sign: bool = False) -> None:
        self.dtype = dtype
        self.is_pooled = dtype.scalar in {"string", "bytes"}
        self.is_float = dtype.scalar in {"float32", "float64"}
        self._keeps_sign = keeps_sign
        self._arrow = dtype.arrow
        self._storage = {"date": pa.int32(), "timestamp": pa.int64()}.get(dtype.scalar, self._arrow)

    def codes(self, array: pa.Array) -> tuple[Int64s, Bools | None, Pool | None]:
        """Return the codes of values, which of them count (None: all), and their pool.

        A NaN counts as little as a null.
        """
        array = typed(array, self._arrow)
        valid = validity(array)
        if self.is_pooled:
            pool, codes = _pooled_values(array.view(pa.binary()))
            return codes, valid, pool
        if self.dtype.scalar == "bool":
            bits = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
            flags = np.unpackbits(bits, bitorder="little")[array.offset :][: len(array)]
            return flags.astype(np.int64), valid, None
        numbers = plain(array, self.dtype.numpy)
        if not self.is_float:
            return numbers.astype(np.int64), valid, None
        known = ~np.isnan(numbers)
        if valid is not None:
            valid = valid & known
        elif not known.all():
            valid = known
        return self.float_codes(numbers), valid, None

    def float_codes(self, numbers: Any) -> Int64s:
        """Return the codes of floats: their bits, those of negative ones turned round."""
        if not self._keeps_sign:
            with np.errstate(invalid="ignore"):
                numbers = numbers + numbers.dtype.type(0)
        bits = numbers.view(f"i{numbers.dtype.itemsize}").astype(np.int64)
        return _turned(bits, numbers.dtype.itemsize)

    def array(self, codes: Int64s, pool: Pool | None, absent: Bools | None = None) -> pa.Array:
        """Return values as an array of the type.

        Args:
            codes: Their codes; anything where absent.
            pool: Their pool, for texts and bytes.
            absent: Which of them are null; None without any.
        """
        if absent is not None and not absent.any():
            absent = None
        if self.is_pooled:
            indexes = pa.array(codes, mask=absent)
            if pool is None or not len(pool):
                return pa.nulls(len(codes), type=self._arrow)
            return pool.array.take(indexes).view(self._arrow)
        numbers = self.plain(codes)
        if self.dtype.scalar == "bool":
            return pa.array(numbers.astype(bool), mask=absent)
        array = pa.array(numbers, type=self._storage, mask=absent)
        return array if self._storage is self._arrow else array.view(self._arrow)

    def plain(self, codes: Int64s) -> npt.NDArray[np.generic]:
        """Return values of fixed width as NumPy has them."""
        code = self.dtype.numpy
        if not self.is_float:
            return codes.astype(code)
        width = np.dtype(code).itemsize
        return _turned(codes, width).astype(f"<i{width}").view(code)

    def dump(self, codes: Int64s, pool: Pool | None) -> tuple[Int64s | None, list[bytes]]:
        """Return the bytes of each value, and how many they are where that varies."""
        if self.is_pooled:
            items = pool.items if pool is not None else []
            found = [items[code] for code in codes.tolist()]
            return np.array([len(item) for item in found], dtype=np.int64), found
        data = self.plain(codes).tobytes()
        width = np.dtype(self.dtype.numpy).itemsize
        return None, [data[i : i + width] for i in range(0, len(data), width)]

    def load(self, items: list[bytes]) -> tuple[Int64s, Pool | None]:
        """Return the codes and the pool of values whose bytes `dump` gave.

        Raises:
            DataError: The bytes are damaged.
        """
        if self.is_pooled:
            pool, codes = pool_of(items)
            return codes, pool
        code = self.dtype.numpy
        data = b"".join(items)
        if len(data) != len(items) * np.dtype(code).itemsize:
            raise damaged(f"{len(data)} bytes for {len(items)} values")
        numbers = np.frombuffer(data, dtype=code)
        return (self.float_codes(numbers) if self.is_float else numbers.astype(np.int64)), None

    @property
    def width(self) -> int:
        """Bytes of a value, 0 where that varies."""
        return 0 if self.is_pooled else np.dtype(self.dtype.numpy).itemsize


def _turned(bits: Int64s, width: int) -> Int64s:
    """Turn round the order of negative floats' bits; its own inverse."""
    top = np.int64((1 << (8 * width - 1)) - 1)
    return bits ^ ((bits >> 63) & top)
