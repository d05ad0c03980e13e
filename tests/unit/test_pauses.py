"""Searches for garbage do not look at what stays, and still find what is garbage."""

import gc
import weakref

import pytest

from featurestore.cli import pauses
from featurestore.cli.pauses import ShortPauses
from featurestore.testing.valkey import wait_until


class Thing:
    """Something that can be watched."""


class Slow:
    """A clock by which each search takes a second, or none at all."""

    def __init__(self):
        self.now, self.step = 0.0, 0.0

    def monotonic(self):
        self.now += self.step
        return self.now


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(pauses, "_LOOK_SECONDS", 0.01)
    yield
    assert gc.get_freeze_count() == 0


def test_what_is_there_is_set_apart_until_the_end():
    things = [[] for _ in range(5_000)]
    before = len(gc.callbacks)
    with ShortPauses(Slow()):
        assert gc.get_freeze_count() >= len(things)
        assert not {id(thing) for thing in things} & {id(held) for held in gc.get_objects()}
        assert len(gc.callbacks) == before + 1
    assert len(gc.callbacks) == before
    assert {id(thing) for thing in things} <= {id(held) for held in gc.get_objects()}


def test_after_a_long_search_what_stays_is_set_apart_and_garbage_is_found():
    clock = Slow()
    thing = Thing()
    thing.itself, seen = thing, weakref.ref(thing)
    with ShortPauses(clock) as short:
        del thing
        gc.collect()
        assert seen() is not None  # it was set apart when it was no garbage yet
        assert short.settled == 1
        clock.step = 1.0
        gc.collect()
        clock.step = 0.0
        wait_until(lambda: short.settled == 2, what="all to be searched")
        assert seen() is None


def test_short_searches_and_those_of_the_young_change_nothing():
    clock = Slow()
    with ShortPauses(clock) as short:
        gc.collect()
        clock.step = 1.0
        gc.collect(0)
        gc.collect(1)
        clock.step = 0.0
        looked = clock.now
        assert short._thread.is_alive()
        assert not short._was_long
        assert short.settled == 1
        assert clock.now == looked
