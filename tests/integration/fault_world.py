"""A feature server over a Redis that fails, callers who never stop asking, and what they were told.

Every feature of an entity tells the entity and the revision that was written, so an answer that
mixes two revisions, that is older than what had been acknowledged when it was asked for, or that is
another entity's, is seen as such.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from featurestore.adapters.redis import RedisOnlineStore
from featurestore.clock import SystemClock
from featurestore.errors import FeatureStoreError, OnlineStoreUnavailableError, UnavailableError
from featurestore.model.settings import ServingSettings
from featurestore.semantics.keys import encode_key, namespace
from featurestore.serving.client import OnlineClient
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import wait_until
from tests.served import NOW_US, PROJECT, Served, push, state, view

FACTS = view("facts", {"entity": "int64"}, {"left": "int64", "text": "string", "right": "int64"})
ENTITIES = list(range(40))
FEATURES = ["facts:left", "facts:text", "facts:right"]
SLACK = 1.0  # for a machine that is busy with other tests
CLOCK = SystemClock()


class World:
    """A real server over a store, and a writer of its own beside it.

    Args:
        url: Of the online store.
        options: Of `RedisOnlineStore.from_url`, such as passwords.
        settings: Of the server.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, **settings: Any) -> None:
        given = {"timeout": 1.0, **(options or {})}
        self.store = RedisOnlineStore.from_url(url, **given)
        self.writer = RedisOnlineStore.from_url(url, **given)
        self.served = Served(state([FACTS]), store=self.store)
        merged = {
            "address": "127.0.0.1:0",
            "refresh_seconds": 0.2,
            "breaker_seconds": 0.1,
            "drain_seconds": 1.0,
            **settings,
        }
        self.server = FeatureServer(self.served.reader, ServingSettings(**merged))
        self.acknowledged = 0
        self.begun = 0

    def write(self) -> None:
        """Write the next revision of every entity; it counts as acknowledged once that returns."""
        self.begun += 1
        revision = self.begun
        rows = [
            ((e,), NOW_US + revision, (_left(e, revision), f"{e}/{revision}", -_left(e, revision)))
            for e in ENTITIES
        ]
        push(self.writer, FACTS, rows)
        self.acknowledged = revision

    @property
    def keys(self) -> list[bytes]:
        """The keys of all entities as the store has them."""
        lead = namespace(PROJECT, FACTS.name, FACTS.table_fingerprint)
        dtypes = [key.type for key in FACTS.join_keys]
        return [lead + (encode_key((entity,), dtypes) or b"") for entity in ENTITIES]

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.store.close()
        self.writer.close()

    @property
    def open(self) -> bool:
        """Whether the server leaves the store alone for the moment."""
        return self.server._guard.breaker.is_open

    def client(self) -> OnlineClient:
        """Return a client."""
        return OnlineClient(self.server.address)


def _left(entity: int, revision: int) -> int:
    return entity * 1_000_000 + revision


class Callers:
    """Threads that ask for all entities again and again.

    Args:
        world: Whom they ask.
        threads: How many.
        timeout: The seconds that they give each call.
        may_lose: Whether what was acknowledged may be gone or older, as the test expects.

    Attributes:
        told: How often each class of error came; "answer" is none.
        texts: The errors' texts.
        wrong: What must never be.
        longest: The longest call, seconds.
        newest: The newest revision that was answered.
        missing: How many entities were not found.
    """

    def __init__(
        self, world: World, threads: int = 2, timeout: float = 1.0, *, may_lose: bool = False
    ) -> None:
        self._world = world
        self._timeout = timeout
        self._may_lose = may_lose
        self._done = threading.Event()
        self.told: Counter[str] = Counter()
        self.texts: set[str] = set()
        self.wrong: list[str] = []
        self.longest = 0.0
        self.newest = 0
        self.missing = 0
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def wait(self, what: str = "answer", more: int = 5) -> None:
        """Return once so many more calls ended so."""
        target = self.told[what] + more
        wait_until(lambda: self.told[what] >= target or bool(self.wrong), what=f"more of '{what}'")

    def check(self) -> None:
        """Fail where anything came that must never come."""
        assert self.wrong == []
        assert self.told["answer"] > 0
        # Unavailable, and by our own word: nothing was left to the caller's own deadline.
        assert set(self.told) <= {"answer", OnlineStoreUnavailableError.__name__}
        assert self.longest < self._timeout + SLACK

    def _ask_on(self) -> None:
        pause = threading.Event()
        with self._world.client() as client:
            while not self._done.is_set():
                floor = self._world.acknowledged
                begun = CLOCK.monotonic()
                try:
                    answer = client.get_online_features(
                        FEATURES, {"entity": ENTITIES}, timeout=self._timeout
                    )
                except UnavailableError as error:
                    self.told[type(error).__name__] += 1
                    self.texts.add(str(error))
                    pause.wait(0.01)
                except FeatureStoreError as error:
                    self.told[type(error).__name__] += 1
                    self.wrong.append(f"{type(error).__name__}: {error}")
                else:
                    self.told["answer"] += 1
                    self._look(answer.to_dict(), floor)
                self.longest = max(self.longest, CLOCK.monotonic() - begun)

    def _look(self, answer: dict[str, list[Any]], floor: int) -> None:
        columns = (answer["entity"], answer["left"], answer["text"], answer["right"])
        for entity, left, text, right in zip(*columns, strict=True):
            if left is None and text is None and right is None:
                self.missing += 1
                if floor and not self._may_lose:
                    self.wrong.append(f"entity {entity} is gone, {floor} was acknowledged")
                continue
            revision = -1 if left is None else left - _left(entity, 0)
            if (text, right) != (f"{entity}/{revision}", -_left(entity, revision)):
                self.wrong.append(f"a mix: {entity}: {left} {text} {right}")
            elif revision > self._world.begun or (revision < floor and not self._may_lose):
                self.wrong.append(f"{entity} has {revision}, {floor} was acknowledged")
            self.newest = max(self.newest, revision)


@contextmanager
def writing(world: World) -> Iterator[list[FeatureStoreError]]:
    """Write again and again beside the test; yields the list of what failed."""
    done, pause = threading.Event(), threading.Event()
    failed: list[FeatureStoreError] = []

    def work() -> None:
        while not done.is_set():
            try:
                world.write()
            except FeatureStoreError as error:
                failed.append(error)
            pause.wait(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield failed
    finally:
        done.set()
        thread.join(30)
