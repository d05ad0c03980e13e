"""What a window was made of, for people: which tiles, which events (W2)."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.semantics.states.cover import Cut, Edges, Nodes
from featurestore.semantics.states.evaluation import StateRow
from featurestore.semantics.states.layout import bounds_of, child_of
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import read_page


@dataclass(frozen=True)
class Tile:
    """Merged states of a stretch of time.

    Attributes:
        start: Its first instant, microseconds.
        end: The instant behind its last.
        events: How many events count in it.
    """

    start: int
    end: int
    events: int


@dataclass(frozen=True)
class RawEvent:
    """An event that was looked at by itself.

    Attributes:
        instant: When it happened, microseconds.
        event_id: Its id.
        version: The number of the version that counts.
    """

    instant: int
    event_id: str
    version: int


def made_of(schema: StateSchema, row: StateRow, edges: Edges) -> tuple[list[Tile], list[RawEvent]]:
    """Return what a window of a state is made of, both in the order of time."""
    pages = [row.recent]
    tiles: list[Tile] = []
    if row.nodes is not None:
        nodes = Nodes(schema, row.nodes)
        for item in nodes.cover(edges):
            if isinstance(item, Cut):
                pages.append(nodes.page(item.node))
                continue
            parts, inner = nodes.parts(item.node)
            for part in parts[item.first : item.last]:
                bounds = bounds_of(child_of(item.node, part))
                tiles.append(Tile(*bounds, inner.parts[part].count))
    low, high = edges
    events = [
        RawEvent(version.place, version.id.decode(), version.version)
        for page in pages
        for version in read_page(schema, page)
        if not version.flags and version.place < high and (low is None or low <= version.place)
    ]
    return (
        sorted(tiles, key=lambda tile: tile.start),
        sorted(events, key=lambda event: (event.instant, event.event_id)),
    )
