"""Trees of states: far and equal instants, growth, canonical bytes, damage."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.plan import EVENT_COLUMNS, AggregatePlan, FeaturePlan, ViewPlan
from featurestore.compile.state_plan import state_schema
from featurestore.compile.window_sql import packed_schema
from featurestore.errors import DataError
from featurestore.semantics.reference import canonical as reference_canonical
from featurestore.semantics.rows import payloads
from featurestore.semantics.states.layout import (
    HEADER,
    INSTANT,
    RECENT,
    ROOT,
    TOP,
    above,
    bounds_of,
    child_of,
    edge_path,
    id_hash,
    part_of,
    path_of,
    read_header,
)
from featurestore.semantics.states.nodes import Inner, Summary, pack_inner, read_inner
from featurestore.semantics.states.versions import (
    DELETED,
    EMPTY,
    MOVED,
    Version,
    canonical,
    pack_page,
    read_page,
    settle,
)
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.semantics.windows import DAY, SECOND
from featurestore.services.states import StateWriter
from tests.served import NOW_US, PROJECT, Served, array, state, view
from tests.stated import fields_of, log_table, nodes_of, tiles_of
from tests.windowed import Row


def lifetime(*inputs: str) -> ViewPlan:
    """Return a view that counts and adds what ever happened."""
    return view("all", {"key": "int64"}, {}).model_copy(
        update={
            "features": (
                FeaturePlan(name="n", dtype="int64"),
                FeaturePlan(name="total", dtype="int64"),
                FeaturePlan(name="n_1d", dtype="int64"),
            ),
            "inputs": tuple(
                FeaturePlan(name=f"_input_{i}", dtype=d) for i, d in enumerate(("int64", *inputs))
            ),
            "aggregates": (
                AggregatePlan(function="count"),
                AggregatePlan(function="sum", input=0),
                AggregatePlan(function="count", size=DAY, hop=1),
            ),
        }
    )


VIEW = lifetime()
SCHEMA = state_schema(VIEW)


def apply(store: MemoryOnlineStore, rows: list[Row], **sizes: int) -> None:
    StateWriter(PROJECT, store, **sizes).apply(VIEW, log_table(VIEW, rows), NOW_US)


def read(store: MemoryOnlineStore, as_of: int = NOW_US) -> list[int]:
    served = Served(state([VIEW]), store=store)
    found = served.read(["all:n", "all:total", "all:n_1d"], {"key": [1]}, as_of=as_of).to_dict()
    return [found[name][0] for name in ("n", "total", "n_1d")]


def row(name: object, instant: int, value: int = 1, version: int = 1) -> Row:
    return Row(1, str(name), version, instant, None, deleted=False, values=(value,))


def depth_of(store: MemoryOnlineStore) -> int:
    return read_header(SCHEMA, fields_of(store, VIEW, 1)[HEADER]).depth


def test_events_of_one_instant_are_parted_by_hash_and_read_as_one_tile():
    store = MemoryOnlineStore()
    for start in range(0, 600, 100):
        rows = [row(i, NOW_US - SECOND) for i in range(start, start + 100)]
        apply(store, rows, recent_rows=8, page_rows=8)
    assert depth_of(store) < INSTANT
    assert read(store) == [600, 600, 600]
    assert read(store, NOW_US - SECOND) == [0, None, 0]
    apply(store, [row(5, NOW_US - SECOND, 10, version=2), row(6, NOW_US, version=2)])
    assert read(store) == [599, 608, 599]


def test_large_events_go_to_the_tree_early():
    plan = lifetime("vector<float64, 512>")
    schema = state_schema(plan)
    store = MemoryOnlineStore()
    writer = StateWriter(PROJECT, store)
    for i in range(100):
        values = (1, [float(i)] * 512)
        each = Row(1, str(i), 1, NOW_US - i * SECOND, None, deleted=False, values=values)
        writer.apply(plan, log_table(plan, [each]), NOW_US)
    fields = fields_of(store, plan, 1)
    assert max(map(len, fields.values())) < 2 << 17
    assert len(fields[RECENT]) < 2 << 15
    assert read_header(schema, fields[HEADER]).depth < TOP
    served = Served(state([plan]), store=store)
    assert served.read(["all:n"], {"key": [1]}).to_dict()["n"] == [99]


def test_a_view_without_entities_that_only_counts():
    plan = view("all", {}, {"n": "int64"}).model_copy(update={"aggregates": VIEW.aggregates[:1]})
    store = MemoryOnlineStore()
    rows = [row(i, NOW_US - i) for i in range(1, 301)]
    log = log_table(VIEW, rows).drop_columns(["key", "_input_0"])
    StateWriter(PROJECT, store).apply(plan, log.slice(0, 20), NOW_US)
    served = Served(state([plan]), store=store)
    assert served.read(["all:n"], [{}, {}]).to_dict() == {"n": [20, 20]}
    StateWriter(PROJECT, store).apply(plan, log, NOW_US)
    assert served.read(["all:n"], [{}]).to_dict() == {"n": [300]}


def test_the_log_of_a_view_has_its_own_row_schema():
    plan = lifetime()
    assert plan.row_schema.names == ("n", "total", "n_1d")
    assert plan.log.row_schema.names == (*EVENT_COLUMNS, "_input_0")


def test_the_first_and_the_last_instants_have_their_place():
    store = MemoryOnlineStore()
    moments = [MIN_INSTANT, MIN_INSTANT + 1, -1, 0, 1, NOW_US, MAX_INSTANT - 1, MAX_INSTANT]
    apply(store, [row(i, moment) for i, moment in enumerate(moments)], recent_rows=1, page_rows=1)
    assert read(store, MAX_INSTANT) == [7, 7, 1]
    assert read(store, 1) == [4, 4, 2]
    assert read(store, MIN_INSTANT + DAY) == [2, 2, 2]


def test_an_index_of_many_buckets_finds_every_event():
    store = MemoryOnlineStore()
    rows = [row(i, NOW_US - i * SECOND) for i in range(1, 3001)]
    apply(store, rows)
    header = read_header(SCHEMA, fields_of(store, VIEW, 1)[HEADER])
    assert header.buckets >= 5
    assert (
        header.indexed + len(read_page(SCHEMA, fields_of(store, VIEW, 1).get(RECENT, EMPTY)))
        == 3000
    )
    apply(store, [row(i, NOW_US - i * SECOND, 3, version=2) for i in range(1, 3001, 7)])
    apply(store, rows)
    changed = len(range(1, 3001, 7))
    assert read(store) == [3000, 3000 + 2 * changed, 3000]


def test_a_state_that_loses_all_events_is_empty_and_grows_again():
    store = MemoryOnlineStore()
    rows = [row(i, NOW_US - i * SECOND) for i in range(1, 41)]
    apply(store, rows, recent_rows=4, page_rows=4)
    gone = [replace(each, version=2, deleted=True) for each in rows]
    apply(store, gone, recent_rows=4, page_rows=4)
    apply(store, rows, recent_rows=4, page_rows=4)
    assert read(store) == [0, None, 0]
    assert {summary.count for summary in tiles_of(VIEW, fields_of(store, VIEW, 1)).values()} == {0}
    back = [row(i, NOW_US - i * SECOND, version=3) for i in range(1, 41)]
    apply(store, back, recent_rows=4, page_rows=4)
    assert read(store) == [40, 40, 40]


def test_the_layout_of_time_is_consistent():
    chance = random.Random(1)  # noqa: S311
    for _ in range(200):
        instant = chance.choice([chance.randrange(MIN_INSTANT, MAX_INSTANT), NOW_US, 0, -1])
        hashed = chance.randrange(2**32)
        path = path_of(instant, hashed, 0)
        assert path[0] == ROOT
        assert [node[0] for node in path] == list(range(TOP, -1, -1))
        for node, child in itertools.pairwise(path):
            assert child_of(node, part_of(node, instant, hashed)) == child
            assert above(child) == (node, part_of(node, instant, hashed))
            start, end = bounds_of(child)
            assert start <= instant < end
        edges = edge_path(instant, 0)
        assert edges == path[: len(edges)]
        assert all(bounds_of(node)[0] != instant for node in edges[1:])
        assert bounds_of(path[len(edges)])[0] == instant


def test_pages_keep_versions_and_are_canonical():
    schema = state_schema(lifetime("string", "list<int64>"))
    columns = [
        array([1, None], "int64"),
        array(["ä", None], "string"),
        array([[1], None], "list<int64>"),
    ]
    first, second = payloads(schema.inputs, columns, 2)
    versions = [
        Version(5, b"a", 0, 1, 5, first),
        Version(5, b"", 0, -1, 5, second),
        Version(9, "ä".encode(), DELETED | MOVED, 2**62, -7, second),
        Version(-9, b"z", MOVED, 3, -(2**62), first),
    ]
    data = pack_page(schema, versions)
    assert sorted(read_page(schema, data)) == sorted(versions)
    assert pack_page(schema, versions[::-1]) == data
    for cut in range(len(data)):
        with pytest.raises(DataError, match="damaged"):
            read_page(schema, data[:cut])


def test_inner_nodes_keep_what_they_hold():
    node = Inner({3: Summary(2, [b"", b"abc"]), -4: Summary(0, [b"x", b""])})
    schema = state_schema(VIEW)
    data = pack_inner(schema, node)
    assert read_inner(schema, data) == Inner({-4: node.parts[-4], 3: node.parts[3]})
    for cut in range(len(data)):
        with pytest.raises(DataError, match="damaged"):
            read_inner(schema, data[:cut])


def test_a_tie_is_settled_by_the_bytes_that_tables_use():
    plan = lifetime("string", "float64")
    schema = state_schema(plan).inputs
    chance = random.Random(2)  # noqa: S311
    for _ in range(50):
        values = (
            chance.choice([None, 1, -5]),
            chance.choice([None, "", "b"]),
            chance.choice([None, 0.5]),
        )
        deleted, instant = chance.random() < 0.5, chance.choice([-1, 0, NOW_US])
        columns = [array([v], d.dtype) for v, d in zip(values, plan.inputs, strict=True)]
        version = Version(
            instant, b"i", DELETED if deleted else 0, 1, instant, payloads(schema, columns, 1)[0]
        )
        packed = packed_schema(plan)
        expected = reference_canonical((instant, deleted, *values), packed.dtypes)
        assert canonical(schema, version) == expected


def test_settling_is_a_semilattice():
    plan = lifetime()
    schema = state_schema(plan).inputs
    chance = random.Random(3)  # noqa: S311
    payload = payloads(schema, [array([1, 2], "int64")], 2)
    for _ in range(300):
        versions = [
            Version(
                at,
                b"i",
                chance.choice([0, DELETED]),
                chance.randrange(3),
                at,
                chance.choice(payload),
            )
            for at in (chance.randrange(4) for _ in range(chance.randrange(1, 6)))
        ]
        whole = settle(schema, versions)
        assert settle(schema, (*whole, *versions)) == whole
        chance.shuffle(versions)
        half = chance.randrange(1, len(versions) + 1)
        parts = [p for p in (versions[:half], versions[half:]) if p]
        assert settle(schema, [v for part in parts for v in settle(schema, part)]) == whole


def test_ids_that_share_a_hash_are_told_apart():
    first, second = b"plumless", b"buckeroo"
    assert id_hash(first) == id_hash(second)
    store = MemoryOnlineStore()
    for name in (first, second):
        apply(store, [row(name.decode(), NOW_US - SECOND)], recent_rows=1, page_rows=1)
        apply(store, [row(i, NOW_US - i) for i in range(2, 5)], recent_rows=1, page_rows=1)
    assert read(store)[0] == 5
    apply(store, [row(first.decode(), NOW_US - 2 * SECOND, 9, version=2)])
    assert read(store)[:2] == [5, 13]
    assert nodes_of(fields_of(store, VIEW, 1))
