"""Cases of `tests.windowed` brought to online states: as logs, in deliveries, and looked into."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.plan import ViewPlan
from featurestore.compile.state_plan import state_schema
from featurestore.ports.online import OnlineStore
from featurestore.semantics.keys import encode_key, namespace
from featurestore.semantics.states.layout import RECENT, Node, bounds_of, child_of
from featurestore.semantics.states.nodes import Summary, read_inner
from featurestore.semantics.states.versions import INNER, Version, read_page
from featurestore.services.states import StateWriter
from tests.served import PROJECT, Served, state
from tests.windowed import Case, Row

INSTANT = pa.timestamp("us", tz="UTC")


def log_table(view: ViewPlan, rows: Sequence[Row], *, positions: bool = False) -> pa.Table:
    """Return rows as the table that is applied."""
    partitions = [f"p{row.key}" if positions else None for row in rows]
    columns: list[Any] = [
        [row.key for row in rows],
        [row.instant for row in rows],
        [row.created for row in rows],
        [row.id for row in rows],
        [row.version for row in rows],
        [row.deleted for row in rows],
        partitions,
        [i if positions else None for i in range(len(rows))],
    ]
    columns += [[row.values[i] for row in rows] for i in range(len(view.inputs))]
    fields = [
        *((key.name, key.type.arrow) for key in view.join_keys),
        ("event_timestamp", INSTANT),
        ("created_timestamp", INSTANT),
        *((feature.name, feature.type.arrow) for feature in view.log.features),
    ]
    arrays = [
        pa.array(_pairs(values), type=kind)
        for values, (_, kind) in zip(columns, fields, strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(fields))


def _pairs(values: Iterable[Any]) -> list[Any]:
    return [list(v.items()) if isinstance(v, dict) else v for v in values]


def deliveries(seed: int, rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows shuffled, some of them doubled, in parts."""
    chance = random.Random(seed)  # noqa: S311
    shuffled = [*rows, *chance.sample(rows, len(rows) // 4)]
    chance.shuffle(shuffled)
    parts = []
    while shuffled:
        size = chance.choice([1, 2, 5, 20, 200])
        parts.append(shuffled[:size])
        shuffled = shuffled[size:]
    return parts


def state_key(view: ViewPlan, key: int | None) -> bytes:
    """Return the key of an entity's state."""
    encoded = encode_key([key], [view.join_keys[0].type]) or b""
    return namespace(PROJECT, view.name, view.table_fingerprint) + encoded


def fields_of(store: OnlineStore, view: ViewPlan, key: int | None) -> dict[bytes, bytes]:
    """Return all fields of an entity's state in memory."""
    assert isinstance(store, MemoryOnlineStore)
    return dict(store._states.get(state_key(view, key), {}))


def nodes_of(fields: dict[bytes, bytes]) -> dict[Node, bytes]:
    """Return the nodes among the fields of a state."""
    nodes = {}
    for name, data in fields.items():
        if name.startswith(b"n"):
            place = int.from_bytes(name[2:10], "big", signed=True)
            nodes[name[1], place, int.from_bytes(name[10:], "big")] = data
    return nodes


def tiles_of(view: ViewPlan, fields: dict[bytes, bytes]) -> dict[Node, Summary]:
    """Return what each part of each inner node comes to."""
    schema = state_schema(view)
    return {
        child_of(node, part): summary
        for node, data in nodes_of(fields).items()
        if data[0] == INNER
        for part, summary in read_inner(schema, data).parts.items()
    }


def versions_of(view: ViewPlan, fields: dict[bytes, bytes]) -> list[tuple[Node | None, Version]]:
    """Return the versions in all pages of a state, each with the node of its page."""
    schema = state_schema(view)
    found: list[tuple[Node | None, Version]] = []
    if RECENT in fields:
        found += [(None, version) for version in read_page(schema, fields[RECENT])]
    for node, data in nodes_of(fields).items():
        if data[0] != INNER:
            found += [(node, version) for version in read_page(schema, data)]
    return found


def holds(node: Node, place: int, hashed: int) -> bool:
    """Return whether a node below the top covers an event."""
    start, end = bounds_of(node)
    inside = start <= place < end
    bits = 6 * (4 - node[0])
    return inside and (node[0] >= 4 or hashed & ((1 << bits) - 1) == node[2])


def events_in(node: Node, places: Iterable[int]) -> bool:
    """Return whether a node below the top covers one of some instants."""
    start, end = bounds_of(node)
    return any(start <= place < end for place in places)


def earliest(case: Case) -> int:
    """Return an instant before which nothing is stored or asked."""
    moments = [row.instant for row in case.rows] + [instant for _, instant in case.asked]
    return min(moments)


def deliver(case: Case, store: OnlineStore, seed: int, sizes: tuple[int, int]) -> None:
    """Apply a case's rows in some order, some of them twice, to states that grow trees early.

    Args:
        case: The case.
        store: Where to.
        seed: Tells the order.
        sizes: How many recent versions a state has, and how many versions a page.
    """
    writer = StateWriter(PROJECT, store, recent_rows=sizes[0], page_rows=sizes[1])
    for part in deliveries(seed, case.rows):
        writer.apply(case.view, log_table(case.view, part), earliest(case))


class Asked:
    """A case's questions, put to the online service.

    Args:
        case: The case.
        store: The store that has its events.
    """

    def __init__(self, case: Case, store: OnlineStore) -> None:
        self._case = case
        self._served = Served(state([case.view]), store=store)
        self._served.clock.set(earliest(case))

    def answers(self) -> dict[str, pa.Array]:
        """Return each feature, a value a question."""
        case = self._case
        references = [f"view:{feature.name}" for feature in case.view.features]
        order: list[int] = []
        tables: list[pa.Table] = []
        for instant in sorted({instant for _, instant in case.asked}):
            places = [i for i, (_, asked) in enumerate(case.asked) if asked == instant]
            keys = [case.asked[place][0][0] for place in places]
            answer = self._served.read(references, {"key": keys}, as_of=instant)
            tables.append(answer.to_arrow())
            order += places
        found = pa.concat_tables(tables).combine_chunks()
        back = pa.array(sorted(range(len(order)), key=order.__getitem__))
        for feature in case.view.features:
            assert found[feature.name].type.equals(feature.type.arrow, check_metadata=True)
        return {f.name: found[f.name].take(back) for f in case.view.features}
