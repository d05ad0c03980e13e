"""Online states on every store: the same values, and many writers of the same states at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.redis import RedisOnlineStore
from featurestore.ports.online import OnlineStore
from featurestore.semantics.keys import namespace
from featurestore.services.states import StateWriter
from tests.served import PROJECT
from tests.stated import Asked, deliver, deliveries, earliest, log_table
from tests.windowed import Case, make_case

SEEDS = (3, 8)
WRITERS = 3


def fresh(seed: int) -> Case:
    """Return a case whose states nobody else has."""
    case = make_case(seed, rows=60, queries=8)
    return replace(case, view=case.view.model_copy(update={"table_fingerprint": f"{seed:016x}"}))


@pytest.fixture(params=["lmdb", "redis", "redis+cluster"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    if request.param == "lmdb":
        opened: OnlineStore = LmdbOnlineStore(tmp_path)
    else:
        name = "valkey" if request.param == "redis" else "valkey_cluster"
        opened = RedisOnlineStore.from_url(request.getfixturevalue(name).url, timeout=10)
    yield opened
    for seed in SEEDS:
        view = fresh(seed).view
        opened.delete_namespace(namespace(PROJECT, view.name, view.table_fingerprint))
    opened.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_store_gives_the_same_values(store: OnlineStore, seed: int) -> None:
    case = fresh(seed)
    model = MemoryOnlineStore()
    for each in (model, store):
        deliver(case, each, seed, (4, 3))
    assert Asked(case, store).answers() == Asked(case, model).answers()


@pytest.mark.parametrize("seed", SEEDS)
def test_writers_that_meet_lose_nothing(store: OnlineStore, seed: int) -> None:
    """Threads with a share of the events each leave what one with all of them would."""
    case = fresh(seed)
    model = MemoryOnlineStore()
    deliver(case, model, seed, (4, 3))
    failures: list[BaseException] = []
    start = threading.Barrier(WRITERS)

    def write(number: int) -> None:
        try:
            writer = StateWriter(PROJECT, store, recent_rows=4, page_rows=3)
            start.wait()
            # Shares are of the same entities and events, and overlap.
            for part in deliveries(seed + number, [*case.rows[number::WRITERS], *case.rows[:9]]):
                writer.apply(case.view, log_table(case.view, part), earliest(case))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert Asked(case, store).answers() == Asked(case, model).answers()
