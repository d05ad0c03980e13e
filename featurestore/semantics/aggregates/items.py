"""Events whose items are lifted: lists and maps taken apart, each item beside its event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.semantics.aggregates.interface import Events
from featurestore.semantics.aggregates.merging import offsets_of, owners, spans
from featurestore.semantics.aggregates.values import validity

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Items(Events):
    """Items of lists or maps as events.

    Attributes:
        places: int64[m], the place of each item in its list; it settles the order in an event.
    """

    places: Int64s | None = None


def places_of(events: Events) -> Int64s:
    """Return the place of each event in its list; 0 where it is none's item."""
    if isinstance(events, Items) and events.places is not None:
        return events.places
    return np.zeros(len(events.instants), dtype=np.int64)


def extents(array: pa.Array) -> tuple[Int64s, Int64s]:
    """Return where the items of each list, vector or map begin, and where the items of all begin.

    Returns:
        int64[n + 1] offsets of the items of lists that are not null; and int64[m], their places
        among the array's own items.
    """
    valid = validity(array)
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = np.arange(array.offset, array.offset + len(array), dtype=np.int64) * size
        sizes = np.full(len(array), size, dtype=np.int64)
    else:
        edges = (
            np.frombuffer(
                array.buffers()[1] or b"",
                dtype=np.int32,
                count=len(array) + 1,
                offset=4 * array.offset,
            ).astype(np.int64)
            if len(array)
            else np.zeros(1, dtype=np.int64)
        )
        starts, sizes = edges[:-1], np.diff(edges)
    if valid is not None:
        sizes = np.where(valid, sizes, 0)
    return offsets_of(sizes), spans(starts, sizes)


def taken(items: pa.Array, places: Int64s) -> pa.Array:
    """Return items by their places, without a copy where they are neighbours."""
    if len(places) and int(places[-1]) - int(places[0]) + 1 == len(places):
        return items.slice(int(places[0]), len(places))
    return items.take(pa.array(places))


def of_items(events: Events, offsets: Int64s, values: pa.Array) -> Items:
    """Return items as events: each has the instant and the id of the event that it is in.

    Args:
        events: The events.
        offsets: int64[n + 1], where each event's items begin.
        values: The items.
    """
    rows = owners(offsets)
    ids = events.ids
    return Items(
        instants=events.instants[rows],
        ids=None if ids is None else [ids[row] for row in rows.tolist()],
        values=values,
        places=None if ids is None else np.arange(len(rows)) - offsets[:-1][rows],
    )
