"""What the online state of one entity makes a window of: recent events, pages and merged parts.

For explanations only. Reading takes the same way (`state_reading`), for many windows at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.compile.state_plan import state_schema, window_features
from featurestore.ports.online import VERSION, StateRead
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, to_datetime
from featurestore.services.value_report import Tile

if TYPE_CHECKING:
    from datetime import datetime

    from featurestore.compile.plan import AggregatePlan, ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.semantics.states.layout import Node


def state_tiles(
    online: OnlineStore, view: ViewPlan, plan: AggregatePlan, key: bytes, instant: int
) -> tuple[Tile, ...]:
    """Return the parts of a state that a window is made of; none where there is no state.

    Args:
        online: The store.
        view: The aggregated view.
        plan: The aggregate.
        key: The state's key.
        instant: The instant of the question.
    """
    from featurestore.semantics.states.cover import Cut, Nodes
    from featurestore.semantics.states.layout import NO_TREE, RECENT, child_of, read_header
    from featurestore.semantics.states.reading import StateQuery
    from featurestore.semantics.states.versions import EMPTY

    schema = state_schema(view)
    query = StateQuery(schema, window_features(view, [plan]))
    header, recent = online.read_states([StateRead(key, [VERSION, RECENT])])[0][0]
    if header is None:
        return ()
    tiles = [Tile(None, None, "recent events", _count(recent or EMPTY))]
    depth = read_header(schema, header).depth
    if depth == NO_TREE:
        return tuple(tiles)
    names = query.names(instant, depth)
    fields = dict(zip(names, online.read_states([StateRead(key, names)])[0][0], strict=True))
    nodes = Nodes(schema, fields)
    for item in nodes.cover(query.edges(instant)[0]):
        if isinstance(item, Cut):
            tiles.append(Tile(*_bounds(item.node), "events", _count(nodes.page(item.node))))
            continue
        parts = nodes.parts(item.node)[0][item.first : item.last]
        tiles += [Tile(*_bounds(child_of(item.node, part)), "merged", None) for part in parts]
    return tuple(sorted(tiles, key=lambda tile: (tile.start is not None, tile.start or 0)))


def _bounds(node: Node) -> tuple[datetime | None, datetime | None]:
    from featurestore.semantics.states.layout import ROOT, bounds_of

    if node == ROOT:
        return None, None
    start, end = bounds_of(node)
    return _moment(start), _moment(end)


def _moment(instant: int) -> datetime | None:
    return to_datetime(instant) if MIN_INSTANT <= instant <= MAX_INSTANT else None


def _count(page: bytes) -> int:
    from featurestore.semantics.states.versions import HEAD

    count: int = HEAD.unpack_from(page)[1]
    return count
