"""Answers as rows of a served log: every value with the very bits that were answered (law L1).

Values of fixed width are joined as the bytes that they are; all others as Arrow arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.semantics.plain import to_arrow
from featurestore.services.lossless import exact
from featurestore.services.served_log_shape import (
    APPLIED,
    AS_OF,
    ASKED_AT,
    DEFINITIONS,
    ENTITY,
    EVENTS,
    FEATURES,
    FRONT,
    PERIOD,
    REQUEST,
    REQUEST_ID,
    ROW,
    SERVED_AT,
    SERVER,
    SERVICE,
    SHAPE,
    STATUS,
    Shape,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import Column
    from featurestore.compile.request import FeaturesArgument
    from featurestore.ports.registry import ProjectState
    from featurestore.services.columns import InputRows
    from featurestore.services.response import Block, OnlineResponse

_STATUSES = ("", "PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
_NOT_FOUND = 3
_DAY_US = 86_400_000_000


class Served(NamedTuple):
    """One answer that is to be logged. None of its parts changes any more.

    Attributes:
        response: What was answered.
        features: What was asked for.
        entity_rows: The entity rows as they came.
        request: The fields of on-demand views, where they came apart.
        request_id: Tells the call.
        front: What it came by.
        state: The definitions as they were when it was answered, or just after.
        seconds: How long the call had taken by then.
        served_at_us: When that was.
    """

    response: OnlineResponse
    features: FeaturesArgument
    entity_rows: InputRows
    request: InputRows | None
    request_id: str
    front: str
    state: ProjectState
    seconds: float
    served_at_us: int


def rows_of(shape: Shape, served: Sequence[Served], server: str) -> pa.Table:
    """Return answers of one shape as rows of its table, in their order.

    Args:
        shape: The shape.
        served: One answer or more.
        server: Who has given them.
    """
    import numpy as np
    import pyarrow as pa

    counts = np.array([len(each.response) for each in served], dtype=np.int64)
    total = int(counts.sum())
    at = np.array([each.served_at_us for each in served], dtype=np.int64)
    took = np.array([int(each.seconds * 1e6) for each in served], dtype=np.int64)
    as_of = np.array([each.response.as_of_us for each in served], dtype=np.int64)
    ids = pa.array([each.request_id for each in served], pa.string())
    fronts = pa.array([each.front for each in served], pa.string())
    numbers = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    places = pa.array(np.repeat(np.arange(len(served)), counts))
    instant = pa.timestamp("us", tz="UTC")
    columns: dict[str, Any] = {
        SERVED_AT: pa.array(np.repeat(at, counts)).cast(instant),
        ASKED_AT: pa.array(np.repeat(at - took, counts)).cast(instant),
        AS_OF: pa.array(np.repeat(as_of, counts)).cast(instant),
        REQUEST_ID: ids.take(places),
        ROW: pa.array(numbers, pa.int32()),
        FRONT: fronts.take(places),
        SERVER: _repeated(server, total),
        SERVICE: _repeated(shape.service, total),
        SHAPE: _repeated(shape.id, total),
        **_parts(shape, served, counts),
        PERIOD: pa.array(np.repeat(at // _DAY_US, counts), pa.int32())
        .cast(pa.date32())
        .cast("string"),
    }
    schema = shape.schema
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema)


def _parts(shape: Shape, served: Sequence[Served], counts: Any) -> dict[str, pa.Array]:
    """Return the structs of a shape that have fields."""
    import pyarrow as pa

    total = int(counts.sum())
    blocks = [each.response.blocks for each in served]
    viewed = [i for i, source in enumerate(shape.sources) if not source.on_demand]
    positioned = [i for i, source in enumerate(shape.sources) if source.positioned]
    found: dict[str, Callable[[], list[pa.Array]]] = {
        ENTITY: lambda: _keys(shape, served),
        REQUEST: lambda: [_request(field, served) for field in shape.request],
        FEATURES: lambda: _features(shape, served, counts),
        STATUS: lambda: [_statuses([held[i] for held in blocks]) for i in viewed],
        EVENTS: lambda: [_events([held[i] for held in blocks]) for i in viewed],
        APPLIED: lambda: [_applied([held[i] for held in blocks], counts) for i in positioned],
        DEFINITIONS: lambda: [_repeated(source.fingerprint, total) for source in shape.sources],
    }
    return {
        name: pa.StructArray.from_arrays(make(), fields=list(shape.schema.field(name).type))
        for name, make in found.items()
        if name in shape.schema.names
    }


def _keys(shape: Shape, served: Sequence[Served]) -> list[pa.Array]:
    import pyarrow as pa

    return [
        pa.concat_arrays([each.response.keys.array(i).cast(key.type.arrow) for each in served])
        for i, key in enumerate(shape.keys)
    ]


def _request(field: Column, served: Sequence[Served]) -> pa.Array:
    """Return a field as the lookup understood it (`services.online`)."""
    import pyarrow as pa

    arrays = []
    for each in served:
        rows = each.entity_rows
        if each.request is not None and (
            field.name in each.request.columns or field.name not in rows.columns
        ):
            rows = each.request
        arrays.append(rows.column(field.name, field.type, "the served log", rounding=True))
    return pa.concat_arrays(arrays)


def _features(shape: Shape, served: Sequence[Served], counts: Any) -> list[pa.Array]:
    layout = served[0].response.layout
    by_source: dict[int, list[int]] = {}
    for place, feature in enumerate(layout.features):
        by_source.setdefault(feature.source, []).append(place)
    arrays: dict[int, pa.Array] = {}
    for source, places in by_source.items():
        indexes = [layout.features[place].index for place in places]
        blocks = [each.response.blocks[source] for each in served]
        plains = list(zip(*(block.plains(indexes) for block in blocks), strict=True))
        for place, index, parts in zip(places, indexes, plains, strict=True):
            wanted = shape.features[place]
            if wanted.type.width is not None and None not in parts:
                arrays[place] = _joined(wanted, parts, counts)
            else:
                arrays[place] = _concatenated(wanted, [block.array(index) for block in blocks])
    return [arrays[place] for place in range(len(layout.features))]


def _joined(column: Column, parts: Sequence[Any], counts: Any) -> pa.Array:
    """Return plain columns one after the other (`semantics.plain`)."""
    import numpy as np

    data = b"".join([part[0] for part in parts])
    validity = None
    if any(part[1] is not None for part in parts):
        bits = [
            np.ones(count, dtype=np.uint8)
            if held is None
            else np.unpackbits(np.frombuffer(held, np.uint8), count=count, bitorder="little")
            for (_, held), count in zip(parts, counts.tolist(), strict=True)
        ]
        validity = np.packbits(np.concatenate(bits), bitorder="little").tobytes()
    return to_arrow(column.type, int(counts.sum()), (data, validity))


def _concatenated(column: Column, arrays: Sequence[pa.Array]) -> pa.Array:
    import pyarrow as pa

    return pa.concat_arrays([exact(array, column.type.arrow) for array in arrays])


def _statuses(blocks: Sequence[Block]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    codes = np.frombuffer(b"".join([block.statuses for block in blocks]), dtype=np.uint8)
    return pa.array(_STATUSES).take(pa.array(codes))


def _events(blocks: Sequence[Block]) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    codes = np.frombuffer(b"".join([block.statuses for block in blocks]), dtype=np.uint8)
    events = np.frombuffer(b"".join([block.events for block in blocks]), dtype="<i8")
    return pa.array(events, mask=codes == _NOT_FOUND).cast(pa.timestamp("us", tz="UTC"))


def _applied(blocks: Sequence[Block], counts: Any) -> pa.Array:
    """Return for each row {stream partition: position}, without those that nothing came from."""
    import numpy as np
    import pyarrow as pa

    names = sorted({name for block in blocks for name in block.applied})
    held = np.full((int(counts.sum()), len(names)), -1, dtype=np.int64)
    first = 0
    for block, count in zip(blocks, counts.tolist(), strict=True):
        for name, positions in block.applied.items():
            held[first : first + count, names.index(name)] = np.frombuffer(positions, dtype="<i8")
        first += count
    there = held >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    chosen = np.broadcast_to(np.arange(len(names)), held.shape)[there]
    keys = pa.array(names, pa.string()).take(pa.array(chosen, pa.int64()))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, pa.array(held[there]))


def _repeated(text: str | None, rows: int) -> pa.Array:
    import pyarrow as pa

    return pa.nulls(rows, pa.string()) if text is None else pa.repeat(pa.scalar(text), rows)
