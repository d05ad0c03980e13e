"""Rows of an event log, packed as states keep them: a batch at a time, no object a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.semantics.rows import payloads
from featurestore.semantics.states.layout import NEVER
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import DELETED, FIXED, INSTANT, MOVED, Version

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """Rows of an event log in columns; n of them.

    Attributes:
        instants: When each happened, microseconds.
        places: Where each lies: at its instant or, if that is before the horizon, at the instant
            when it was learnt, where that is kept: a lower version of its event may still come, and
            must not count then.
        flags: DELETED, MOVED where it does not lie at its instant.
        ids: The events' ids.
        versions: Their numbers.
        partitions: The stream partition that each came from, None for rows of files.
        positions: The position in it.
        payloads: The packed inputs.
        fixed_bytes: How many of a payload's bytes are of fixed width.
    """

    instants: Sequence[int]
    places: Sequence[int]
    flags: Sequence[int]
    ids: Sequence[bytes]
    versions: Sequence[int]
    partitions: Sequence[str | None]
    positions: Sequence[int | None]
    payloads: Sequence[bytes]
    fixed_bytes: int

    def version(self, row: int) -> Version:
        """Return a row as a version of its event."""
        return Version(
            self.places[row],
            self.ids[row],
            self.flags[row],
            self.versions[row],
            self.instants[row],
            self.payloads[row],
        )

    @cached_property
    def tails(self) -> Sequence[bytes]:
        """What a page holds of each row behind the ids."""
        start = self.fixed_bytes
        tails = [payload[start:] for payload in self.payloads]
        for row, flags in enumerate(self.flags):
            if flags & MOVED:
                tails[row] = INSTANT.pack(self.instants[row]) + tails[row]
        return tails

    @cached_property
    def rows(self) -> Sequence[bytes]:
        """What a page holds of each row, without ids and tails."""
        count = len(self.instants)
        matrix = np.zeros((count, FIXED.size + self.fixed_bytes), dtype=np.uint8)
        columns = (
            (self.places, "<i8"),
            (self.versions, "<i8"),
            (self.flags, "u1"),
            ([len(tail) for tail in self.tails], "<u4"),
        )
        at = 0
        for values, code in columns:
            numbers = np.array(values, dtype=code).reshape(count, 1).view(np.uint8)
            matrix[:, at : at + numbers.shape[1]] = numbers
            at += numbers.shape[1]
        fixed = b"".join([payload[: self.fixed_bytes] for payload in self.payloads])
        matrix[:, at:] = np.frombuffer(fixed, dtype=np.uint8).reshape(count, self.fixed_bytes)
        data, size = matrix.tobytes(), matrix.shape[1]
        return [data[i * size : (i + 1) * size] for i in range(count)]


def batch_of(schema: StateSchema, columns: Sequence[pa.Array], horizon: int | None) -> Batch:
    """Return the batch of log rows.

    Args:
        schema: The view's.
        columns: event_timestamp, created_timestamp, event id, version, deleted, partition,
            position, then the inputs, each of exactly its type. Created timestamps, partitions,
            positions and inputs may be null.
        horizon: What happened before may be dropped; None keeps everything.

    Raises:
        DataError: A vector holds a null item, or a map a key twice.
    """
    happened, learnt, ids, versions, deleted, partitions, positions, *inputs = columns
    instants = _integers(happened, 0)
    places = instants
    flags = np.where(deleted.to_numpy(zero_copy_only=False), DELETED, 0)
    if horizon is not None:
        # What is not known to have been learnt is learnt never.
        known = _integers(learnt, NEVER)
        moved = (instants < horizon) & (known >= horizon)
        places = np.where(moved, known, instants)
        flags = flags | np.where(moved, MOVED, 0)
    return Batch(
        instants.tolist(),
        places.tolist(),
        flags.tolist(),
        ids.view(_binary()).to_pylist(),
        versions.to_pylist(),
        partitions.to_pylist(),
        positions.to_pylist(),
        payloads(schema.inputs, inputs, len(happened)),
        schema.inputs.fixed_bytes,
    )


def _integers(instants: pa.Array, otherwise: int) -> npt.NDArray[np.int64]:
    import pyarrow as pa

    numbers = instants.cast(pa.timestamp("us", tz="UTC")).view(pa.int64())
    found: npt.NDArray[np.int64] = numbers.fill_null(otherwise).to_numpy()
    return found


def _binary() -> Any:
    import pyarrow as pa

    return pa.binary()
