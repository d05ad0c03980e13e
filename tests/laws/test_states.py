"""Laws W1-W6 and V1 of online states: any delivery gives the reference's bits.

The cases are those of training sets. States are made to grow trees with few events, so that every
level, page and index is met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.state_plan import state_schema
from featurestore.semantics.states.layout import id_hash
from featurestore.semantics.states.summaries import of_pages
from featurestore.services.states import StateWriter
from tests.served import PROJECT
from tests.stated import (
    Asked,
    deliver,
    deliveries,
    earliest,
    events_in,
    fields_of,
    holds,
    log_table,
    tiles_of,
    versions_of,
)
from tests.windowed import APPROXIMATE, Case, differences, make_case

if TYPE_CHECKING:
    import pyarrow as pa

SIZES = ((1, 1), (2, 3), (5, 2), (16, 8), (128, 256))


def wrong(case: Case, found: dict[str, pa.Array]) -> list[Any]:
    """Return what differs from the reference."""
    different: list[Any] = []
    for i, feature in enumerate(case.view.features):
        plan = case.view.aggregates[i]
        if plan.function not in APPROXIMATE:
            expected = case.expected(i, "healed")
            rows = differences(found[feature.name], expected, feature.dtype)
            different += [(plan, *row, case.asked[row[0]]) for row in rows]
    return different


@pytest.mark.parametrize("seed", range(25))
def test_v1_any_delivery_gives_the_reference(seed: int) -> None:
    case = make_case(seed)
    found = []
    for sizes in (SIZES[seed % 5], SIZES[(seed + 2) % 5]):
        store = MemoryOnlineStore()
        deliver(case, store, seed + sum(sizes), sizes)
        found.append(Asked(case, store).answers())
        assert not wrong(case, found[-1])[:3], sizes
    # Approximate ones too are functions of the events alone.
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(100, 103))
def test_v1_holds_at_every_moment_of_a_delivery(seed: int) -> None:
    case = make_case(seed, rows=40, queries=6)
    store = MemoryOnlineStore()
    writer = StateWriter(PROJECT, store, recent_rows=3, page_rows=4)
    delivered: list[Any] = []
    for part in deliveries(seed, case.rows):
        writer.apply(case.view, log_table(case.view, part), earliest(case))
        delivered += part
        so_far = Case(case.view, tuple(delivered), case.asked)
        assert not wrong(so_far, Asked(so_far, store).answers())[:3]


@pytest.mark.parametrize("seed", range(200, 208))
def test_w5_a_tile_is_what_its_events_come_to_whatever_came_first(seed: int) -> None:
    case = make_case(seed, rows=150)
    schema = state_schema(case.view)
    stores = [MemoryOnlineStore(), MemoryOnlineStore()]
    for i, store in enumerate(stores):
        # Small enough that all events end in trees, which are then equal where both have a tile.
        deliver(case, store, 100 * seed + i, (1, 2))
    shared = 0
    for key in (1, 2, 3):
        states = [fields_of(store, case.view, key) for store in stores]
        trees = [tiles_of(case.view, fields) for fields in states]
        for fields, tiles in zip(states, trees, strict=True):
            held = [(v, id_hash(v.id)) for node, v in versions_of(case.view, fields) if node]
            for node, summary in tiles.items():
                inside = [v for v, hashed in held if holds(node, v.place, hashed)]
                assert of_pages(schema, [inside]) == [summary]
        recent = [{v.place for node, v in versions_of(case.view, f) if not node} for f in states]
        for node in trees[0].keys() & trees[1].keys():
            if not any(events_in(node, places) for places in recent):
                assert trees[0][node] == trees[1][node]
                shared += 1
    assert shared > 0 or len(case.rows) < 10


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_w1_delivering_again_changes_nothing(sizes: tuple[int, int]) -> None:
    case = next(c for c in map(make_case, range(99)) if len(c.rows) > 40)
    store = MemoryOnlineStore()
    deliver(case, store, 1, sizes)
    before = {key: fields_of(store, case.view, key) for key in (1, 2, 3)}
    writer = StateWriter(PROJECT, store, recent_rows=sizes[0], page_rows=sizes[1])
    for part in deliveries(2, case.rows):
        assert writer.apply(case.view, log_table(case.view, part), earliest(case)).changed == 0
    assert before == {key: fields_of(store, case.view, key) for key in (1, 2, 3)}
