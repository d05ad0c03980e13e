"""Rows of an event log, packed as states keep them: a batch at a time, no object a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.semantics.rows import payloads
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import DELETED, FIXED, MOVED, Version

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Batch:
    """Rows of an event log in columns; n of them.

    Attributes:
        instants: When each happened, microseconds.
        learnt: When each was learnt; None where that is not known.
        ids: The events' ids.
        versions: Their numbers.
        deleted: Whether each is a deletion.
        partitions: The stream partition that each came from, None for rows of files.
        positions: The position in it.
        payloads: The packed inputs.
        fixed_bytes: How many of a payload's bytes are of fixed width.
    """

    instants: Sequence[int]
    learnt: Sequence[int | None]
    ids: Sequence[bytes]
    versions: Sequence[int]
    deleted: Sequence[bool]
    partitions: Sequence[str | None]
    positions: Sequence[int | None]
    payloads: Sequence[bytes]
    fixed_bytes: int

    def version(self, row: int, horizon: int | None) -> Version:
        """Return a row as a version of its event.

        One from before the horizon lies at the instant when it was learnt, where that is kept: a
        lower version of its event may still come, and must not count then.
        """
        instant, learnt = self.instants[row], self.learnt[row]
        flags = DELETED if self.deleted[row] else 0
        place = instant
        if horizon is not None and learnt is not None and instant < horizon <= learnt:
            place, flags = learnt, flags | MOVED
        return Version(place, self.ids[row], flags, self.versions[row], instant, self.payloads[row])

    @cached_property
    def tails(self) -> Sequence[bytes]:
        """The inputs of varying width of each row."""
        return [payload[self.fixed_bytes :] for payload in self.payloads]

    @cached_property
    def rows(self) -> Sequence[bytes]:
        """What a page holds of each row, without ids and tails."""
        count = len(self.instants)
        matrix = np.zeros((count, FIXED.size + self.fixed_bytes), dtype=np.uint8)
        columns = (
            (self.instants, "<i8"),
            (self.versions, "<i8"),
            (self.deleted, "u1"),
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


def batch_of(schema: StateSchema, columns: Sequence[pa.Array]) -> Batch:
    """Return the batch of log rows.

    Args:
        schema: The view's.
        columns: event_timestamp, created_timestamp, event id, version, deleted, partition,
            position, then the inputs, each of exactly its type. Created timestamps, partitions,
            positions and inputs may be null.

    Raises:
        DataError: A vector holds a null item, or a map a key twice.
    """
    instants, learnt, ids, versions, deleted, partitions, positions, *inputs = columns
    return Batch(
        _integers(instants),
        _integers(learnt),
        ids.view(_binary()).to_pylist(),
        versions.to_pylist(),
        deleted.to_pylist(),
        partitions.to_pylist(),
        positions.to_pylist(),
        payloads(schema.inputs, inputs, len(instants)),
        schema.inputs.fixed_bytes,
    )


def _integers(instants: pa.Array) -> list[Any]:
    import pyarrow as pa

    found: list[Any] = instants.cast(pa.timestamp("us", tz="UTC")).view(pa.int64()).to_pylist()
    return found


def _binary() -> Any:
    import pyarrow as pa

    return pa.binary()
