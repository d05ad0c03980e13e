"""The circuit breaker: opens after failures in a row, tries once a pause, closes on success."""

from __future__ import annotations

import pytest

from featurestore.clock import FixedClock
from featurestore.errors import OnlineStoreUnavailableError, RequestError
from featurestore.serving.security.breaker import Breaker

GONE = OnlineStoreUnavailableError("The store is gone.", where="redis://here:1")


class Store:
    """Fails or answers, and counts how often it was asked."""

    def __init__(self):
        self.error = GONE
        self.asked = 0

    def __call__(self):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return "answer"


@pytest.fixture
def clock():
    return FixedClock(0)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def breaker(clock):
    return Breaker(clock, 3, 1.0)


def fail(breaker, store, times=1, patience=None):
    errors = []
    for _ in range(times):
        with pytest.raises(OnlineStoreUnavailableError) as caught:
            breaker.run(store, patience)
        errors.append(caught.value)
    return errors[-1]


def wait(clock, seconds):
    clock.advance(int(seconds * 1_000_000))


def test_after_failures_in_a_row_the_store_is_left_alone(breaker, store, clock):
    fail(breaker, store, 3)
    wait(clock, 0.25)
    error = fail(breaker, store, 5)
    assert store.asked == 3
    assert error.where == GONE.where
    assert "Try again in 0.8 s" in error.hint
    assert error.retry_seconds == 0.75


def test_a_success_in_between_begins_the_count_anew(breaker, store):
    for _ in range(5):
        store.error = GONE
        fail(breaker, store, 2)
        store.error = None
        assert breaker.run(store, None) == "answer"
    assert not breaker.is_open


def test_one_call_tries_after_the_pause_and_closes_it(breaker, store, clock):
    fail(breaker, store, 3)
    wait(clock, 1)
    store.error = None
    inside = []

    def read():
        inside.append(fail(breaker, Store()))
        return store()

    assert breaker.run(read, None) == "answer"
    assert "left alone" in inside[0].what
    assert not breaker.is_open
    store.error = GONE
    fail(breaker, store, 2)
    assert not breaker.is_open


def test_pauses_double_up_to_half_a_minute(breaker, store, clock):
    fail(breaker, store, 3)
    pauses = []
    for _ in range(8):
        pauses.append(fail(breaker, Store()).retry_seconds)
        wait(clock, pauses[-1])
        fail(breaker, store)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert store.asked == 11


def test_a_try_that_says_nothing_about_the_store_leaves_it_to_the_next(breaker, store, clock):
    fail(breaker, store, 3)
    wait(clock, 1)
    store.error = RequestError("no such feature")
    with pytest.raises(RequestError):
        breaker.run(store, None)
    store.error = GONE
    fail(breaker, store, patience=0.01)
    store.error = None
    assert breaker.run(store, None) == "answer"
    assert not breaker.is_open


def test_a_caller_without_patience_says_nothing_about_the_store(breaker, store):
    fail(breaker, store, 50, patience=0.1)
    assert store.asked == 50
    fail(breaker, store, 3, patience=0.25)
    assert breaker.is_open


def test_other_errors_do_not_count(breaker, store):
    store.error = RequestError("no such feature")
    for _ in range(10):
        with pytest.raises(RequestError):
            breaker.run(store, None)
    assert not breaker.is_open


def test_without_a_limit_it_never_opens(store, clock):
    fail(Breaker(clock, 0, 1.0), store, 50)
    assert store.asked == 50
