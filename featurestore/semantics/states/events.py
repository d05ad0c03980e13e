"""Packed inputs of events become Arrow columns, and those become states of every family."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.dtypes import DType
from featurestore.semantics import plain
from featurestore.semantics.aggregates import Events, States, algebra
from featurestore.semantics.rows import RowSchema, plain_arrow, read_varying
from featurestore.semantics.states.layout import damaged
from featurestore.semantics.states.schema import Family, StateSchema

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class EventColumns:
    """Events in columns; n of them.

    Attributes:
        instants: int64[n].
        ids: Their identities; None where no family asks for them.
        inputs: The input columns that are asked for.
    """

    instants: Int64s
    ids: Sequence[bytes] | None
    inputs: dict[int, pa.Array]

    def lift(self, family: Family) -> States:
        """Return the state of each event."""
        return algebra(family.state).lift(
            Events(
                self.instants,
                self.ids if family.is_ordered else None,
                None if family.input is None else self.inputs[family.input],
                None if family.by is None else self.inputs[family.by],
            )
        )


@dataclass(frozen=True)
class Tails:
    """Inputs of varying width of n events.

    Attributes:
        data: All of them, one event's in one piece.
        starts: int64[n], where each event's begin.
    """

    data: bytes
    starts: Int64s


def unpack_inputs(
    schema: StateSchema, fixed: Bytes, tails: Tails | None, wanted: frozenset[int]
) -> dict[int, pa.Array]:
    """Return input columns.

    Args:
        schema: The view's.
        fixed: uint8[n, bytes], the presence bits and inputs of fixed width.
        tails: The inputs of varying width; None where none of them is wanted.
        wanted: The inputs to return.

    Raises:
        DataError: They are damaged.
    """
    inputs = schema.inputs
    start = inputs.bitmap_bytes
    bits = np.unpackbits(fixed[:, :start], axis=1, bitorder="little").view(bool)
    columns: dict[int, pa.Array] = {}
    for index, offset, width in inputs.fixed:
        if index in wanted:
            at = start + offset
            data = np.ascontiguousarray(fixed[:, at : at + width]).tobytes()
            plain_column = (data, _mask(bits[:, index]))
            columns[index] = plain.to_arrow(inputs.dtypes[index], len(fixed), plain_column)
    if tails is not None:
        try:
            columns |= _varying(inputs, bits, tails, wanted)
        except (struct.error, UnicodeDecodeError, IndexError, pa.ArrowInvalid) as error:
            raise damaged(schema.view, "inputs that end too early") from error
    return columns


def _mask(valid: npt.NDArray[np.bool_]) -> bytes | None:
    return None if valid.all() else np.packbits(valid, bitorder="little").tobytes()


def _varying(
    inputs: RowSchema, bits: Any, tails: Tails, wanted: frozenset[int]
) -> dict[int, pa.Array]:
    at = tails.starts
    columns: dict[int, pa.Array] = {}
    last = max((index for index in wanted if index in inputs.varying), default=-1)
    for index in inputs.varying:
        if index > last:
            break
        dtype, valid = inputs.dtypes[index], bits[:, index]
        read = _containers if dtype.container else _texts
        column, at = read(dtype, tails.data, at, valid)
        if index in wanted:
            columns[index] = column
    return columns


def _texts(dtype: DType, data: bytes, at: Int64s, valid: Any) -> tuple[pa.Array, Int64s]:
    """Return texts or bytes as an array, and where each event goes on behind its own."""
    raw = np.frombuffer(data, dtype=np.uint8)
    places = np.flatnonzero(valid)
    starts = at[places]
    prefix = raw[starts[:, None] + np.arange(_LENGTH_BYTES)]
    lengths = prefix.view("<u4")[:, 0].astype(np.int64)
    sizes = np.zeros(len(at), dtype=np.int64)
    sizes[places] = lengths
    offsets = np.zeros(len(at) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    total = int(offsets[-1])
    shifts = np.repeat(starts + _LENGTH_BYTES - offsets[places], lengths)
    content = raw[shifts + np.arange(total)]
    mask = _mask(valid)
    array = pa.Array.from_buffers(
        dtype.arrow,
        len(at),
        [
            None if mask is None else pa.py_buffer(mask),
            pa.py_buffer(offsets),
            pa.py_buffer(content),
        ],
    )
    array.validate(full=True)
    return array, at + sizes + _LENGTH_BYTES * valid


def _containers(dtype: DType, data: bytes, at: Int64s, valid: Any) -> tuple[pa.Array, Int64s]:
    """The same for lists and maps."""
    values: list[Any] = []
    ends: list[int] = []
    for start, there in zip(at.tolist(), valid.tolist(), strict=True):
        value, end = read_varying(dtype, data, start) if there else (None, start)
        values.append(value)
        ends.append(end)
    array = pa.array(values, type=plain_arrow(dtype)).cast(dtype.arrow)
    return array, np.array(ends, dtype=np.int64)
