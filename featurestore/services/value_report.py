"""Where one value comes from, as plain data: what `explain` found (laws T2, T3, W1, W2, V2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class EventLine:
    """One version of an event in the log of a windowed view.

    Attributes:
        id: The event.
        version: The highest one counts.
        event_timestamp: When it happened.
        created_timestamp: When it was learnt; None where the source does not tell.
        value: What is aggregated; True where events are counted.
        by: The second-level key, None without one.
        partition: Of the stream that it came by; None for the history.
        position: There.
        became: "counts"; or why not: "null", "superseded", "deleted", "deletes", "outside" of the
            window, or "not applied" online yet.
    """

    id: str
    version: int
    event_timestamp: datetime
    created_timestamp: datetime | None
    value: Any
    by: Any
    partition: str | None
    position: int | None
    became: str


@dataclass(frozen=True)
class RowLine:
    """One row of a plain view that had happened by the instant, the newest first.

    Attributes:
        event_timestamp: When its fact happened.
        created_timestamp: When it was learnt; None where the source does not tell.
        value: The feature.
        became: "chosen"; or "expired", "older", or "tied" with the chosen one.
    """

    event_timestamp: datetime
    created_timestamp: datetime | None
    value: Any
    became: str


@dataclass(frozen=True)
class Tile:
    """A part of the online state that a window is made of.

    Attributes:
        start: Its first instant; None for the beginning of time.
        end: The one behind its last; None for the end of time.
        kind: "events" that were looked at one by one, or "merged": the sum of what happened.
        events: How many events it holds.
    """

    start: datetime | None
    end: datetime | None
    kind: str
    events: int


@dataclass(frozen=True)
class ValueReport:
    """Where a value comes from.

    Attributes:
        reference: `view:feature`.
        entity: The join keys.
        as_of: The instant.
        what: What the feature is, in a line.
        window: The first instant that its window holds, None for all time, and the one behind its
            last; None for a plain view.
        ttl_seconds: How long rows of a plain view are visible; None for ever.
        offline: The value that the tables give.
        known: The one that they give with what had been learnt by the instant.
        late: Whether these differ: late data changed the value.
        online: The value that is served.
        online_status: With its status; None where the store cannot answer.
        online_error: Why it cannot.
        equal: Whether online and offline are the same bits; None where the store cannot answer.
        events: The versions of events that have to do with a window, by instant.
        rows: The newest rows of a plain view.
        tiles: What the online state makes the window of.
        applied: {stream partition: the position up to which it was applied online}.
    """

    reference: str
    entity: Mapping[str, Any]
    as_of: datetime
    what: str
    window: tuple[datetime | None, datetime] | None
    ttl_seconds: float | None
    offline: Any
    known: Any
    late: bool
    online: Any
    online_status: str | None
    online_error: str | None
    equal: bool | None
    events: tuple[EventLine, ...] = ()
    rows: tuple[RowLine, ...] = ()
    tiles: tuple[Tile, ...] = ()
    applied: Mapping[str, int] | None = None
