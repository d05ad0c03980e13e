"""How fresh a server says its views are: what the registry tells, and what lookups found."""

from __future__ import annotations

import pytest

from featurestore.clock import FixedClock
from featurestore.errors import RegistryUnavailableError
from featurestore.ports.registry import Ledger, LedgerEntry, Run
from featurestore.serving.freshness import Freshness
from featurestore.serving.info import read_info, write_info
from featurestore.serving.security.access import Visible
from featurestore.serving.security.calls import Call
from tests.served import HOUR_US, NOW_US, PROJECT, Served, publish, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
OTHER = view("other", {"user": "int64"}, {"x": "int64"})


def run(plan, finished, run_state="succeeded", table=None):
    return Run(
        id=f"{plan.name}{finished}",
        view=plan.name,
        table_fingerprint=table or plan.table_fingerprint,
        kind="materialize",
        state=run_state,
        started_at_us=finished - 1,
        finished_at_us=finished,
    )


class World:
    def __init__(self):
        self.served = Served(state([USERS, OTHER]))
        self.clock = FixedClock(NOW_US)
        self.freshness = Freshness(self.served.state, self.clock)

    def info(self, visible=None):
        return read_info(write_info(self.served.state.get(), visible, self.freshness))

    def look_up(self, *users):
        answer = self.served.read(["users"], {"user": list(users)})
        self.freshness.answered(Call("GetOnlineFeatures", ()), None, answer)


@pytest.fixture
def world():
    return World()


def test_nothing_is_told_before_there_is_anything(world):
    world.freshness.refresh()
    info = world.info()
    assert info.now == info.freshness_as_of
    served = info.views["users"]
    assert (served.materialized_until, served.materialized_at) == (None, None)
    assert (served.newest_served_event, served.materialized_positions) == (None, {})


def test_the_ledger_and_the_last_success_of_the_table_that_serves_are_told(world):
    registry = world.served.registry
    entries = (
        LedgerEntry(start=0, end=5, logged={"a": 7, "b": 1}),
        LedgerEntry(start=5, end=HOUR_US, logged={"a": 9}),
    )
    registry.write_ledger(PROJECT, "users", USERS.table_fingerprint, Ledger(entries=entries))
    registry.save_run(PROJECT, run(USERS, NOW_US - 3))
    registry.save_run(PROJECT, run(USERS, NOW_US - 2, "failed"))
    registry.save_run(PROJECT, run(USERS, NOW_US - 1, table="of a former table"))
    world.freshness.refresh()
    served = world.info().views["users"]
    assert served.materialized_until.timestamp() * 1e6 == HOUR_US
    assert round(served.materialized_at.timestamp() * 1e6) == NOW_US - 3
    assert served.materialized_positions == {"a": 9, "b": 1}
    assert world.info().views["other"].materialized_until is None


def test_the_registry_is_asked_now_and_then_and_when_definitions_change(world):
    asked = []
    read = world.served.registry.ledger
    world.served.registry.ledger = lambda *args: asked.append(args) or read(*args)
    world.freshness.refresh()
    world.freshness.refresh()
    assert len(asked) == 2
    world.clock.advance(5_000_000)
    world.freshness.refresh()
    assert len(asked) == 4
    publish(world.served.registry, state([USERS]))
    world.served.state.refresh()
    world.freshness.refresh()
    assert len(asked) == 5
    assert set(world.freshness.tables) == {"users"}


def test_a_registry_that_is_gone_leaves_what_was_known_and_since_when(world):
    world.freshness.refresh()
    known = world.freshness.tables

    def gone(*_):
        raise RegistryUnavailableError("gone")

    world.served.registry.ledger = gone
    world.clock.advance(60_000_000)
    world.freshness.refresh()
    assert world.freshness.tables == known
    info = world.info()
    assert (info.now - info.freshness_as_of).total_seconds() == 60


def test_the_newest_event_that_was_found_is_told(world):
    world.served.push(
        USERS, ((1,), -5, (0.5,)), ((2,), NOW_US - HOUR_US, (1.5,)), ((3,), NOW_US, (2.5,))
    )
    world.look_up(9)
    assert world.info().views["users"].newest_served_event is None
    world.look_up(1)
    assert round(world.info().views["users"].newest_served_event.timestamp() * 1e6) == -5
    world.look_up(2, 9, 1)
    world.look_up(1)
    told = world.info().views["users"].newest_served_event
    assert round(told.timestamp() * 1e6) == NOW_US - HOUR_US
    assert world.freshness.newest_by_view() == {"users": NOW_US - HOUR_US}


def test_a_definition_that_is_new_has_served_nothing_yet(world):
    world.served.push(USERS, ((1,), NOW_US, (0.5,)))
    world.look_up(1)
    changed = view("users", {"user": "int64"}, {"score": "float64"}, version="2")
    publish(world.served.registry, state([changed]))
    world.served.state.refresh()
    assert world.info().views["users"].newest_served_event is None
    assert world.freshness.newest_by_view() == {}


def test_the_freshness_of_what_a_caller_may_not_see_is_not_told(world):
    world.freshness.refresh()
    visible = Visible()
    visible.views["other"] = None
    info = world.info(visible)
    assert list(info.views) == ["other"]
