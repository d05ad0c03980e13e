"""Laws W1, W2 of online states over time: what may be dropped, and that it never comes back.

Time goes on, events come and go out of reach; at every step each window is compared with all events
ever delivered, and states stay as small as what can be reached.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.compile.plan import AggregatePlan, FeaturePlan, ViewPlan
from featurestore.compile.state_plan import state_schema
from featurestore.errors import AsOfBeforeRowError
from featurestore.semantics.states.layout import HEADER, NO_TREE, ROOT, read_header
from featurestore.semantics.windows import DAY, HOUR, MINUTE, SECOND
from featurestore.services.states import StateWriter
from tests.served import NOW_US, PROJECT, Served, state, view
from tests.stated import fields_of, log_table, nodes_of, tiles_of, versions_of
from tests.windowed import Row

GRACE = 10 * MINUTE
WINDOWS = {"n_10m": (10 * MINUTE, SECOND), "n_1h": (HOUR, MINUTE), "sum_1h": (HOUR, 1)}


def counting(*, lifetime: bool = False) -> ViewPlan:
    """Return a view that counts and adds over short windows."""
    plans = {
        name: AggregatePlan(
            function="count" if name.startswith("n") else "sum", input=0, size=size, hop=hop
        )
        for name, (size, hop) in WINDOWS.items()
    }
    if lifetime:
        plans["n_ever"] = AggregatePlan(function="count", input=0)
    return view("events", {"key": "int64"}, {}).model_copy(
        update={
            "features": tuple(FeaturePlan(name=n, dtype="int64") for n in plans),
            "inputs": (FeaturePlan(name="_input_0", dtype="int64"),),
            "aggregates": tuple(plans.values()),
        }
    )


def one(version: int, instant: int, value: int) -> Row:
    """Return a version of one event."""
    return Row(1, "a", version, instant, None, deleted=False, values=(value,))


@dataclass
class World:
    """One entity, its events, and a clock.

    Args:
        view: The view.
        seed: Tells what happens.
        sizes: How many recent versions, how many in a page.
    """

    view: ViewPlan
    seed: int
    sizes: tuple[int, int]
    now: int = NOW_US
    made: int = 0
    delivered: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = MemoryOnlineStore()
        self.chance = random.Random(self.seed)  # noqa: S311
        self.writer = StateWriter(
            PROJECT,
            self.store,
            grace_us=GRACE,
            recent_rows=self.sizes[0],
            page_rows=self.sizes[1],
        )
        self.served = Served(state([self.view]), store=self.store)

    def step(self) -> None:
        """Let time go on, deliver some events, some corrections and some again."""
        chance = self.chance
        self.now += chance.choice([1, SECOND, MINUTE, 5 * MINUTE, 20 * MINUTE])
        fresh = [self._event() for _ in range(chance.choice([0, 1, 3, 8]))]
        known = list({row.id: row for row in self.delivered}.values())
        fixed = [self._version(row) for row in chance.sample(known, min(2, len(known)))]
        again = chance.sample(self.delivered, min(5, len(self.delivered)))
        # A correction comes after what it corrects; both may come again, in any order.
        for part in (fresh, fixed, again):
            chance.shuffle(part)
            if part:
                self.writer.apply(self.view, log_table(self.view, part), self.now)
            self.delivered += part

    def _event(self) -> Row:
        late = self.chance.choice([0, SECOND, MINUTE, HOUR, 2 * HOUR, -MINUTE, -3 * HOUR])
        self.made += 1
        return self._row(f"e{self.made}", 1, self.now - late)

    def _version(self, row: Row) -> Row:
        moved = self.chance.choice([0, 0, SECOND, -HOUR, HOUR, 3 * HOUR, -3 * HOUR])
        version = max(r.version for r in self.delivered if r.id == row.id) + 1
        return self._row(row.id, version, row.instant + moved)

    def _row(self, name: str, version: int, instant: int) -> Row:
        deleted = version > 1 and self.chance.random() < 0.4
        return Row(1, name, version, instant, None, deleted, (self.chance.randrange(100),))

    def expected(self, asked: int | None = None) -> list[int | None]:
        """Return each feature at an instant, now by default, from all that was delivered."""
        asked = self.now if asked is None else asked
        last: dict[str, Row] = {}
        for row in self.delivered:
            if row.id not in last or row.version > last[row.id].version:
                last[row.id] = row
        live = [row for row in last.values() if not row.deleted]
        found: list[int | None] = []
        for plan in self.view.aggregates:
            low, high = plan.window.bounds(asked)
            low = -(2**62) if low is None else low
            inside = [row.values[0] for row in live if low <= row.instant < high]
            total = sum(inside) if inside else None
            found.append(len(inside) if plan.function == "count" else total)
        return found

    def answer(self, asked: int | None = None) -> list[int | None]:
        """Return each feature as it is read."""
        self.served.clock.set(self.now)
        names = [feature.name for feature in self.view.features]
        found = self.served.read(
            [f"events:{name}" for name in names], {"key": [1]}, as_of=asked
        ).to_dict()
        return [found[name][0] for name in names]


@pytest.mark.parametrize("lifetime", [False, True])
@pytest.mark.parametrize("sizes", [(1, 2), (4, 3), (128, 256)], ids=str)
def test_w2_dropping_changes_no_value(sizes, lifetime):
    for seed in range(3):
        world = World(counting(lifetime=lifetime), seed, sizes)
        for _ in range(60):
            world.step()
            assert world.answer() == world.expected()
            check_past(world)
        if not lifetime:
            check_size(world)


def check_past(world: World) -> None:
    """Check that the past is exact or refused, and that the near one is exact."""
    asked = world.now - world.chance.choice([GRACE, HOUR, 2 * HOUR, 3 * HOUR])
    try:
        found = world.answer(asked)
    except AsOfBeforeRowError:
        assert asked < world.now - GRACE
    else:
        assert found == world.expected(asked)


def check_size(world: World) -> None:
    """Check that of what is long past little is left, and nothing points at what is gone."""
    fields = fields_of(world.store, world.view, 1)
    header = read_header(state_schema(world.view), fields[HEADER])
    reach = state_schema(world.view).retention(GRACE)
    assert reach is not None
    kept = versions_of(world.view, fields)
    seen = {row.id: 0 for row in world.delivered}
    for row in world.delivered:
        seen[row.id] = max(seen[row.id], row.instant)
    reachable = [name for name, latest in seen.items() if latest >= world.now - reach]
    assert len({version.id for _, version in kept}) <= 3 * len(reachable) + 40
    pages = {node for node, _ in kept if node is not None}
    inner = nodes_of(fields).keys() - pages
    assert {ROOT, *tiles_of(world.view, fields)} >= pages | inner
    if header.depth == NO_TREE:
        assert not nodes_of(fields)


def test_w1_a_beaten_version_stays_beaten_when_its_winner_is_dropped():
    world = World(counting(), 0, (128, 256))
    first = one(1, world.now - MINUTE, 5)
    moved = one(2, world.now - DAY, 7)
    for rows in ([first], [moved], [first]):
        world.writer.apply(world.view, log_table(world.view, rows), world.now)
        world.delivered += rows
    assert world.answer() == world.expected() == [0, 0, None]
    # In one delivery the order does not matter either, also for who was never seen.
    for rows in ([moved, first], [first, moved]):
        other = World(counting(), 0, (128, 256))
        other.writer.apply(other.view, log_table(other.view, rows), other.now)
        other.writer.apply(other.view, log_table(other.view, [first]), other.now)
        assert other.answer() == [0, 0, None]


@pytest.mark.parametrize("deleted", [False, True])
def test_w1_a_version_out_of_reach_hides_a_lower_one_that_comes_after_it(*, deleted: bool):
    """Where it is known when it was learnt; long afterwards the lower one is out of reach too."""
    world = World(counting(), 0, (128, 256))
    first = one(1, world.now - MINUTE, 5)
    moved = replace(one(2, world.now - DAY, 7), created=world.now, deleted=deleted)
    for rows in ([moved], [first], [moved], [first]):
        world.writer.apply(world.view, log_table(world.view, rows), world.now)
        world.delivered += rows
        assert world.answer() == world.expected() == [0, 0, None]


def test_what_cannot_be_reached_makes_no_state():
    world = World(counting(), 0, (128, 256))
    old = one(1, world.now - DAY, 5)
    done = world.writer.apply(world.view, log_table(world.view, [old]), world.now)
    assert (done.rows, done.changed) == (1, 0)
    assert fields_of(world.store, world.view, 1) == {}


def test_states_say_until_when_they_matter():
    seen: list[int] = []

    class Spy(MemoryOnlineStore):
        def write_states(self, changes):
            seen.extend(change.expires_us for change in changes)
            return super().write_states(changes)

    for plan in (counting(), counting(lifetime=True)):
        writer = StateWriter(PROJECT, Spy(), grace_us=GRACE)
        rows = [one(1, NOW_US + HOUR, 5)]
        writer.apply(plan, log_table(plan, rows), NOW_US)
    assert seen == [NOW_US + HOUR + HOUR + MINUTE + GRACE, 0]
