"""Online against offline, value by value: equal bits, equal nulls, statuses that fit.

Numbers are compared by their bit patterns, so 0.0 differs from -0.0 and one NaN from another.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from featurestore import OnlineResponse

SHOWN = 5
"""How many differences are worth printing."""
_FLOATS = {"float": "<f", "double": "<d"}


@dataclass
class Comparison:
    """What a comparison found.

    Attributes:
        entities: Entity rows.
        compared: Values compared.
        differences: What differs, as text.
        statuses: How often each status was given.
    """

    entities: int = 0
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


def compare(
    response: OnlineResponse,
    offline: pa.Table,
    as_of: datetime,
    ttls: Mapping[str, timedelta | None],
) -> Comparison:
    """Compare an online answer with the training set of the same entities at the same instant.

    Args:
        response: The online answer, with full feature names.
        offline: The training set, with full feature names and timestamps, in the same order.
        as_of: The instant of both.
        ttls: {view or alias: its ttl}; on-demand views are not in it.
    """
    found = Comparison(entities=len(response))
    for name in response.feature_names:
        view = name.partition("__")[0]
        events = None
        if view in ttls:
            events = offline.column(f"{view}__event_timestamp").to_pylist()
        online = bits(response.column(name))
        truth = bits(offline.column(name).combine_chunks())
        for row, (left, right) in enumerate(zip(online, truth, strict=True)):
            status = response.statuses[name][row].name
            found.compared += 1
            found.statuses[status] += 1
            place = f"{name}, row {row}"
            if left != right:
                found.differences.append(f"{place}: {left!r} online, {right!r} offline")
            event = response.event_timestamps[name][row]
            if events is None:
                wanted = "NULL_VALUE" if right is None else "PRESENT"
            else:
                wanted = _status(right, events[row], event, ttls[view], as_of)
                if events[row] not in {None, event}:
                    found.differences.append(f"{place}: row of {event}, not of {events[row]}")
            if status != wanted:
                found.differences.append(f"{place}: {status}, expected {wanted}")
    return found


def bits(column: pa.Array) -> list[Any]:
    """Return values such that two are equal only when their bits are; None stays None."""
    from pyarrow import types

    kind = column.type
    item = kind.value_type if types.is_list(kind) or types.is_fixed_size_list(kind) else kind
    code = _FLOATS.get(str(item))
    values: list[Any] = column.to_pylist()
    if code is None:
        return values
    pack = struct.Struct(code).pack
    if item is kind:
        return [None if v is None else pack(v) for v in values]
    return [None if v is None else [None if x is None else pack(x) for x in v] for v in values]


def _status(
    value: Any,
    event: datetime | None,
    kept: datetime | None,
    ttl: timedelta | None,
    as_of: datetime,
) -> str:
    """Return the status that a view's value must have.

    Args:
        value: The value offline.
        event: When the matched row's fact happened, offline; None without a match.
        kept: When that of the row that is kept online happened, visible or not.
        ttl: The view's.
        as_of: The instant.
    """
    if event is not None:
        return "NULL_VALUE" if value is None else "PRESENT"
    if kept is None:
        return "NOT_FOUND"
    expired = ttl is not None and as_of - kept > ttl
    return "OUTSIDE_MAX_AGE" if expired else "a match, for the kept row is visible"
