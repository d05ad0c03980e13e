"""The state that reads see: fresh when the registry answers, the last good one when not."""

from __future__ import annotations

import threading

import pytest

from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.clock import FixedClock
from featurestore.errors import RegistryUnavailableError
from featurestore.services.state import StateCache
from tests.served import PROJECT, publish, state, view

SECONDS = 10.0
PATIENCE = 10


class Registry(MemoryRegistry):
    """Counts what it is asked, and can be gone or slow."""

    def __init__(self):
        super().__init__()
        self.asked: list[str] = []
        self.gone = False
        self.entered = threading.Event()
        self.gate: threading.Event | None = None

    def _answer(self, what):
        self.asked.append(what)
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if self.gone:
            raise RegistryUnavailableError("gone")

    def revision(self, project):
        self._answer("revision")
        return super().revision(project)

    def state(self, project):
        self._answer("state")
        return super().state(project)


@pytest.fixture
def registry():
    registry = Registry()
    publish(registry, state([view("a", {}, {"x": "int64"})]))
    registry.asked.clear()
    return registry


@pytest.fixture
def clock():
    return FixedClock(0)


@pytest.fixture
def cache(registry, clock):
    return StateCache(registry, PROJECT, clock, SECONDS)


def second(registry):
    asked = list(registry.asked)
    gate, gone, registry.gate, registry.gone = registry.gate, registry.gone, None, False
    publish(registry, state([view("b", {}, {"x": "int64"})]))
    registry.asked, registry.gate, registry.gone = asked, gate, gone


def test_the_registry_is_asked_now_and_then(cache, registry, clock):
    assert [cache.get().revision for _ in range(3)] == [1, 1, 1]
    assert registry.asked == ["state"]
    second(registry)
    clock.advance(int(SECONDS * 1e6) - 1)
    assert cache.get().revision == 1
    assert registry.asked == ["state"]
    clock.advance(1)
    assert list(cache.get().serving) == ["b"]
    assert registry.asked == ["state", "revision", "state"]
    clock.advance(int(SECONDS * 1e6))
    assert cache.get() is cache.get()
    assert registry.asked == ["state", "revision", "state", "revision"]


def test_what_this_process_changed_is_seen_at_once(cache, registry):
    cache.get()
    second(registry)
    assert cache.get().revision == 1
    cache.invalidate()
    assert cache.get().revision == 2


def test_refresh_asks_at_once(cache, registry):
    cache.get()
    second(registry)
    assert cache.refresh().revision == 2
    assert cache.get().revision == 2


def test_serving_goes_on_without_a_registry(cache, registry, clock):
    first = cache.get()
    assert cache.last_error is None
    registry.gone = True
    second(registry)
    clock.advance(int(SECONDS * 1e6))
    assert cache.get() is first
    assert isinstance(cache.last_error, RegistryUnavailableError)
    assert cache.get() is first
    assert registry.asked.count("revision") == 1
    cache.invalidate()
    assert cache.get() is first
    registry.gone = False
    clock.advance(int(SECONDS * 1e6))
    assert cache.get().revision == 2
    assert cache.last_error is None


def test_without_any_state_the_error_is_told_each_time(cache, registry):
    registry.gone = True
    for _ in range(2):
        with pytest.raises(RegistryUnavailableError):
            cache.get()
    with pytest.raises(RegistryUnavailableError):
        cache.refresh()
    assert len(registry.asked) == 3
    registry.gone = False
    assert cache.get().revision == 1


def in_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    return thread, found


def test_a_slow_registry_holds_up_nobody_who_has_a_state(cache, registry, clock):
    first = cache.get()
    second(registry)
    clock.advance(int(SECONDS * 1e6))
    registry.gate = threading.Event()
    registry.entered.clear()
    thread, found = in_thread(cache.get)
    assert registry.entered.wait(PATIENCE)
    assert cache.get() is first
    assert thread.is_alive()
    registry.gate.set()
    thread.join(PATIENCE)
    assert [state.revision for state in found] == [2]
    assert cache.get().revision == 2


def test_a_change_during_a_refresh_is_waited_for(cache, registry, clock):
    cache.get()
    clock.advance(int(SECONDS * 1e6))
    registry.gate = threading.Event()
    registry.entered.clear()
    slow, _ = in_thread(cache.get)
    assert registry.entered.wait(PATIENCE)
    second(registry)
    cache.invalidate()
    reader, found = in_thread(cache.get)
    assert reader.is_alive()
    registry.gate.set()
    slow.join(PATIENCE)
    reader.join(PATIENCE)
    assert [state.revision for state in found] == [2]


def test_many_first_readers_ask_once(cache, registry):
    registry.gate = threading.Event()
    threads = [in_thread(cache.get) for _ in range(4)]
    assert registry.entered.wait(PATIENCE)
    registry.gate.set()
    for thread, found in threads:
        thread.join(PATIENCE)
        assert [state.revision for state in found] == [1]
    assert registry.asked == ["state"]
