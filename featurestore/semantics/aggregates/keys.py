"""Ascending keys as bytes: numbers by their differences, texts by their lengths and themselves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from featurestore.semantics.aggregates import blobs
from featurestore.semantics.aggregates.merging import owners
from featurestore.semantics.aggregates.values import Pool, Scalars, pool_of

Int64s = npt.NDArray[np.int64]


def dump_keys(
    scalars: Scalars, keys: Int64s, offsets: Int64s, pool: Pool | None
) -> tuple[Int64s, list[bytes] | None]:
    """Return one number a key, and the raw bytes of each state; None where there are none.

    Args:
        scalars: The keys' codes.
        keys: int64[m], ascending within each state.
        offsets: int64[n + 1], where each state's keys begin.
        pool: The pool of texts and bytes.
    """
    if scalars.is_pooled:
        sizes, items = scalars.dump(keys, pool)
        edges = offsets.tolist()
        data = [b"".join(items[start:stop]) for start, stop in pairwise(edges)]
        return sizes if sizes is not None else keys, data
    steps = keys.copy()
    steps[1:] -= keys[:-1]
    heads = offsets[:-1][np.diff(offsets) > 0]
    steps[heads] = blobs.zigzag(keys[heads])
    return steps, None


def load_keys(
    scalars: Scalars, numbers: Int64s, offsets: Int64s, payloads: list[bytes]
) -> tuple[Int64s, Pool | None, list[bytes]]:
    """Return the keys that `dump_keys` wrote, their pool, and what follows their raw bytes.

    Raises:
        DataError: The bytes are damaged.
    """
    heads = offsets[:-1][np.diff(offsets) > 0]
    if not scalars.is_pooled:
        steps = numbers.copy()
        steps[heads] = blobs.unzigzag(numbers[heads])
        totals = np.cumsum(steps)
        # Running totals go on from state to state; what came before is taken off again.
        before = np.zeros(len(offsets) - 1, dtype=np.int64)
        filled = np.diff(offsets) > 0
        before[filled] = totals[heads] - steps[heads]
        return totals - before[owners(offsets)], None, payloads
    if len(numbers) and (numbers.min() < 0 or numbers.max() > max(map(len, payloads), default=0)):
        raise blobs.damaged("a key that is longer than its state")
    items: list[bytes] = []
    rests: list[bytes] = []
    sizes = numbers.tolist()
    for payload, (start, stop) in zip(payloads, pairwise(offsets.tolist()), strict=True):
        at = 0
        for size in sizes[start:stop]:
            items.append(payload[at : at + size])
            at += size
        if at > len(payload):
            raise blobs.damaged("keys that are cut short")
        rests.append(payload[at:])
    pool, keys = pool_of(items)
    return keys, pool, rests
