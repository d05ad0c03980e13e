"""Live events come online, into the log and into the tables, whatever way they are delivered."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.adapters.memory_stream import MemoryEventStream
from featurestore.clock import SystemClock
from featurestore.errors import OnlineStoreUnavailableError, StorageError, StreamUnavailableError
from featurestore.services import ingestion
from featurestore.services.ingest_worker import SourceWorker
from featurestore.services.ingestion import Ingestor
from featurestore.services.payloads import encode
from featurestore.testing.kafka import MockKafka
from featurestore.testing.valkey import wait_until
from tests.ingesting import (
    COUNTS,
    DEFINITIONS,
    LAST,
    NOW,
    SCHEMA,
    Click,
    Repository,
    as_json,
    expected,
    newest,
)

USERS = (1, 2, 3, 4)


@contextlib.contextmanager
def working(repository: Repository) -> Iterator[tuple[Ingestor, SourceWorker]]:
    """Give an ingestor and its one worker, to be driven step by step."""
    ingestor = repository.ingestor()
    worker = ingestor.worker("clicks", "0")
    try:
        yield ingestor, worker
    finally:
        worker.close()


def drain(worker: SourceWorker) -> None:
    while worker.step():
        pass


def take_all(repository: Repository) -> None:
    """Take everything that is in the stream, everywhere."""
    with working(repository) as (ingestor, worker):
        drain(worker)
        worker.settle()
        ingestor.follow()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    found = Repository(tmp_path)
    with found.store:
        found.store.apply()
        yield found


def clicks(count: int, seed: int = 7) -> list[Click]:
    """Return events with corrections and deletions of some of them."""
    chance = random.Random(seed)  # noqa: S311
    found = [
        Click(f"e{n}", chance.choice(USERS[:3]), chance.choice([1, 30, 59, 60, 61, 200, 1440]), n)
        for n in range(count)
    ]
    for n in range(0, count, 5):
        old = found[n]
        found.append(Click(old.id, old.user, chance.choice([5, 60, 90]), 1000 + n, n % 2 == 0))
    return found


def test_events_are_online_in_the_log_and_in_the_tables(repository):
    repository.history([Click("old", 1, 20), Click("other", 4, 20)])
    given = clicks(40)
    repository.push(*given)
    with working(repository) as (ingestor, worker):
        drain(worker)
        assert repository.online(USERS[:3]) == expected(newest(given), USERS[:3])
        assert repository.logged() == []
        worker.settle()
        ingestor.follow()
    assert len(repository.logged()) == len(given)
    everything = [Click("old", 1, 20), Click("other", 4, 20), *given]
    assert repository.online(USERS) == expected(newest(everything), USERS)
    assert repository.offline(USERS) == expected(newest(everything), USERS)
    assert {row["_partition"] for row in repository.table("counts")} == {None, "0"}


def test_the_newest_row_of_a_plain_view_is_that_of_its_table(repository):
    repository.history([Click("a", 1, 5, 1.0), Click("b", 2, 50, 2.0)])
    repository.push(Click("c", 1, 5, 3.0), Click("d", 2, 55, 4.0), Click("e", 3, 1, 5.0))
    take_all(repository)
    features = ["last:amount", "last:note"]
    found = repository.online((1, 2, 3), features)
    # Of two rows of one instant, the one that was learnt later counts.
    assert found["amount"] == [3.0, 2.0, 5.0]
    assert found == repository.offline((1, 2, 3), features)


@pytest.mark.parametrize("seed", range(4))
def test_any_delivery_gives_the_same(tmp_path, seed):
    """Split, repeated and in other processes' hands: values, table and log are the same."""
    chance = random.Random(seed)  # noqa: S311
    given = clicks(30, seed)
    repository = Repository(tmp_path)
    with repository.store:
        repository.store.apply()
        stream = repository.store.services.open_stream(repository.stream_url)
        assert isinstance(stream, MemoryEventStream)
        left = list(given)
        while left:
            piece = [left.pop(0) for _ in range(min(len(left), chance.randint(1, 7)))]
            repository.push(*piece)
            with working(repository) as (ingestor, worker):
                for _ in range(chance.randint(0, 3)):
                    worker.step()
                if chance.random() < 0.5:
                    worker.settle()
                    ingestor.follow()
                if chance.random() < 0.5:
                    stream.repeat("featurestore.p.clicks", chance.randint(1, 3))
        stream.repeat("featurestore.p.clicks", 5)
        take_all(repository)
        assert repository.online(USERS) == expected(newest(given), USERS)
        assert repository.offline(USERS) == expected(newest(given), USERS)
        assert sorted(row["id"] for row in repository.logged()) == sorted(c.id for c in given)
        assert len(repository.table("counts")) == len(given)


def test_a_worker_that_dies_loses_nothing_and_counts_nothing_twice(repository):
    given = clicks(20)
    repository.push(*given)
    ingestor = repository.ingestor()
    dead = ingestor.worker("clicks", "0")
    drain(dead)
    assert repository.online(USERS) == expected(newest(given), USERS)
    stream = repository.store.services.open_stream(repository.stream_url)
    assert isinstance(stream, MemoryEventStream)
    stream.kill("featurestore.p.clicks", "test-0")
    more = [Click("after", 1, 2)]
    repository.push(*more)
    with working(repository) as (follower, worker):
        drain(worker)
        worker.settle()
        # The dead one wakes up and writes what it had: it is there already.
        dead.settle()
        follower.follow()
    assert sorted(r["id"] for r in repository.logged()) == sorted(c.id for c in given + more)
    assert repository.online(USERS) == expected(newest(given + more), USERS)
    assert repository.offline(USERS) == expected(newest(given + more), USERS)
    dead.close()


def test_history_and_stream_may_deliver_the_same_event(repository):
    """The event is told by its id; of its versions the later one counts, wherever it is from."""
    repository.history([Click("both", 1, 10, 1.0), Click("first", 1, 10, 5.0)])
    repository.push(Click("both", 1, 10, 2.0))
    take_all(repository)
    assert repository.online((1,)) == {"n_1h": [2], "n_lifetime": [2], "total_1d": [7.0]}
    assert repository.offline((1,)) == repository.online((1,))


def test_late_events_reach_table_and_store(repository):
    repository.push(Click("new", 1, 1))
    take_all(repository)
    repository.push(Click("late", 1, 40), Click("very late", 1, 60 * 24 * 400))
    take_all(repository)
    assert repository.online((1,)) == {"n_1h": [2], "n_lifetime": [3], "total_1d": [2.0]}
    assert repository.offline((1,)) == repository.online((1,))


def test_an_event_dated_ahead_counts_when_its_time_has_come(repository):
    repository.push(Click("now", 1, 1, 1.0), Click("ahead", 1, -5, 9.0))
    with working(repository) as (ingestor, worker):
        drain(worker)
        worker.settle()
        ingestor.follow()
        assert repository.online((1,), ["last:amount"])["amount"] == [1.0]
        assert repository.online((1,))["n_lifetime"] == [1]
        repository.clock.advance(6 * 60_000_000)
        ingestor.follow()
        later = repository.store.get_online_features(
            ["last:amount", "counts:n_lifetime"], {"user": [1]}
        ).to_dict()
    assert (later["amount"], later["n_lifetime"]) == ([9.0], [2])


def test_payloads_may_be_json_or_arrow_with_other_columns(repository):
    repository.send(
        as_json(Click("list", 1), Click("two", 1)),
        json.dumps({"id": "one", "user": 1, "at": "2024-05-01T13:50:00+02:00", "x": 1}).encode(),
        encode(
            pa.table(
                {
                    "at": pa.array([NOW], pa.timestamp("ms", "UTC")),
                    "id": ["arrow"],
                    "user": pa.array([2], pa.int8()),
                    "more": [1],
                }
            )
        ),
    )
    take_all(repository)
    assert repository.quarantined() == []
    assert repository.online((1, 2))["n_lifetime"] == [3, 0]
    found = {row["id"]: row for row in repository.logged()}
    assert (found["arrow"]["user"], found["one"]["amount"]) == (2, None)


BAD = [
    (b"", "cannot be read"),
    (b"neither Arrow nor JSON", "cannot be read"),
    (b"[1, 2]", "JSON object"),
    (encode(pa.table({"id": ["x"] * 513})), "513 events"),
    (encode(SCHEMA.empty_table())[:-40], "cannot be read"),
]


@pytest.mark.parametrize(("payload", "reason"), BAD)
def test_a_payload_that_cannot_be_read_is_kept_apart(repository, payload, reason):
    repository.send(as_json(Click("before", 1)), payload, as_json(Click("after", 1)))
    take_all(repository)
    (refused,) = repository.quarantined()
    assert reason in refused["reason"]
    assert (refused["payload"], refused["_index"]) == (payload, -1)
    assert repository.online((1,))["n_lifetime"] == [2]
    assert repository.store.services.stream_log.quarantined("clicks") == 1
    notes = [note for view in repository.store.status() for note in view.notes]
    assert notes == ["1 live event of 'clicks' in quarantine."] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"amount": "much"}, "'amount': \"much\" is no double"),
        ({"user": 1.5}, "'user': 1.5 is no int64"),
        ({"user": 2**70}, "'user'"),
        ({"at": "2024-05-01T10:00:00"}, "time zone"),
        ({"at": 17}, "'at': 17"),
        ({"gone": "yes"}, "'gone'"),
        ({"user": None}, "view 'counts': no user; view 'last': no user"),
        ({"id": None}, "view 'counts': no event_id"),
        ({"at": None}, "no event_timestamp"),
        ({"at": "0001-01-01T00:00:00+23:00"}, "none of this world"),
    ],
)
def test_an_event_that_does_not_fit_leaves_the_others_alone(repository, change, reason):
    good = [json.loads(as_json(Click(f"g{n}", 1)))[0] for n in range(3)]
    bad = {**good[0], "id": "bad", **change}
    repository.send(json.dumps([good[0], bad, good[1]]).encode(), json.dumps(good[2]).encode())
    take_all(repository)
    (refused,) = repository.quarantined()
    assert reason in refused["reason"]
    assert refused["_index"] == 1
    assert repository.online((1,))["n_lifetime"] == [3]
    assert repository.offline((1,)) == repository.online((1,))


def test_an_event_that_breaks_a_views_sql_is_taken_by_none(tmp_path):
    views = COUNTS.format(column="CAST(note AS DOUBLE)") + LAST
    repository = Repository(tmp_path, views=views)
    with repository.store:
        repository.store.apply()
        rows = [json.loads(as_json(Click(f"e{n}", 1)))[0] | {"note": f"{n}"} for n in range(5)]
        rows[3]["note"] = "three"
        repository.send(json.dumps(rows).encode())
        take_all(repository)
        (refused,) = repository.quarantined()
        assert "view 'counts'" in refused["reason"]
        assert "three" in refused["reason"]
        assert repository.online((1,)) == {
            "n_1h": [4], "n_lifetime": [4], "total_1d": [0.0 + 1 + 2 + 4]
        }  # fmt: skip
        assert len(repository.logged()) == 4
        # The payload that is kept can be pushed again, once it is mended.
        repository.send(refused["payload"])
        take_all(repository)
        assert len(repository.quarantined()) == 2


def test_what_the_group_has_forgotten_is_committed_again(repository):
    repository.push(*clicks(10))
    stream = repository.store.services.open_stream(repository.stream_url)
    assert isinstance(stream, MemoryEventStream)
    with working(repository) as (_, worker):
        drain(worker)
        worker.settle()
        stream.repeat("featurestore.p.clicks", 2)
        drain(worker)
        worker.step()
        assert stream.consumer("featurestore.p.clicks", "x").lag() == {"0": 0}
        assert worker.is_idle
    assert len(repository.logged()) == len(clicks(10))


def test_quarantine_keeps_an_event_once(repository):
    repository.send(b"bad", as_json(Click("good", 1)))
    stream = repository.store.services.open_stream(repository.stream_url)
    assert isinstance(stream, MemoryEventStream)
    take_all(repository)
    stream.repeat("featurestore.p.clicks", 2)
    repository.send(b"worse")
    take_all(repository)
    assert [row["payload"] for row in repository.quarantined()] == [b"bad", b"worse"]


def test_a_stream_that_goes_away_and_comes_back(repository):
    told = []
    ingestor = repository.store.services.ingestor("test", tell=told.append)
    worker = ingestor.worker("clicks", "0")
    stream = repository.store.services.open_stream(repository.stream_url)
    assert isinstance(stream, MemoryEventStream)
    repository.push(Click("a", 1))
    stream.available = False
    for _ in range(3):
        assert worker.step() == 0
    assert "not available" in worker.status().trouble
    stream.available = True
    drain(worker)
    stream.lose_next_reply()
    worker.settle()
    repository.push(Click("b", 1))
    drain(worker)
    worker.settle()
    assert worker.status().trouble is None
    assert [(event.kind, event.source) for event in told[:2]] == [
        ("trouble", "clicks"), ("recovered", "clicks")
    ]  # fmt: skip
    assert repository.online((1,))["n_lifetime"] == [2]
    assert sorted(row["id"] for row in repository.logged()) == ["a", "b"]
    worker.close()


def test_nothing_is_committed_while_the_online_store_is_gone(repository, monkeypatch):
    def gone(*_):
        raise OnlineStoreUnavailableError("The store is gone.")

    repository.push(*clicks(10))
    online = repository.store.services.online_store
    with monkeypatch.context() as patch, working(repository) as (_, worker):
        patch.setattr(online, "write_states", gone)
        thread = threading.Thread(target=worker.run)
        thread.start()
        wait_until(lambda: worker.status().trouble == "The store is gone.", seconds=20)
        worker.stop()
        thread.join()
    stream = repository.store.services.open_stream(repository.stream_url)
    assert repository.logged() == []
    assert stream.consumer("featurestore.p.clicks", "x").lag() == {"0": 2}
    take_all(repository)
    assert repository.online(USERS) == expected(newest(clicks(10)), USERS)
    assert stream.consumer("featurestore.p.clicks", "x").lag() == {"0": 0}


def test_a_stream_that_was_replaced_is_refused(repository):
    repository.push(Click("a", 1))
    take_all(repository)
    other = MemoryEventStream(repository.clock)
    repository.clock.set(0)
    other.append([b"{}"])
    repository.store.services._streams[repository.stream_url] = other
    ingestor = repository.ingestor()
    worker = ingestor.worker("clicks", "0")
    worker.step()
    assert isinstance(worker.error, StorageError)
    assert "not the one that was logged" in str(worker.error)
    worker.close()


def test_columns_may_come_to_the_history_later(repository):
    repository.push(Click("a", 1, 10, 1.0))
    take_all(repository)
    wide = SCHEMA.append(pa.field("extra", pa.float64()))
    pq.write_table(wide.empty_table(), repository.folder / "clicks" / "wide.parquet")
    repository.store.push("clicks", [Click("b", 1).row | {"extra": 7.0}])
    take_all(repository)
    assert {row["id"]: row.get("extra") for row in repository.logged()} == {"a": None, "b": 7}
    repository.define(COUNTS.format(column="extra") + LAST)
    repository.store.apply()
    take_all(repository)
    assert repository.online((1,)) == {"n_1h": [2], "n_lifetime": [2], "total_1d": [7]}
    assert repository.offline((1,)) == repository.online((1,))


def test_small_files_of_the_log_are_merged_and_old_ones_forgotten(tmp_path):
    repository = Repository(tmp_path, retention_days=2)
    with repository.store:
        repository.store.apply()
        with working(repository) as (_, worker):
            for n in range(30):
                repository.push(Click(f"e{n}", 1))
                drain(worker)
                worker.settle()
        services = repository.store.services
        assert len(repository.logged()) == 30
        assert len(services.stream_log.live("clicks").files) < 12
        repository.clock.advance(3 * 86_400_000_000)
        repository.push(Click("later", 1))
        with working(repository) as (_, worker):
            drain(worker)
            worker.settle()
            services.stream_log.tidy(worker._session, "clicks")
        assert [row["id"] for row in repository.logged()] == ["later"]
        take_all(repository)
        assert len(repository.logged()) == 1


CHANGED = COUNTS.format(column="amount * 2") + LAST


def serving(repository: Repository) -> str:
    state = repository.store.services.registry.state("p")
    return "new" if state.serving["counts"] == state.catalog.views["counts"] else "former"


def change(repository: Repository) -> None:
    repository.define(CHANGED)
    repository.store.apply()


def test_a_changed_view_serves_when_all_live_events_reach_it(repository):
    first, second, third = clicks(10, 1), [Click("b", 1, 3)], [Click("c", 1, 4)]
    repository.push(*first)
    with working(repository) as (ingestor, worker):
        drain(worker)
        worker.settle()
        ingestor.follow()
        change(repository)
        assert serving(repository) == "former"
        # The worker has not heard of it yet: what it takes now gets to the former table only.
        repository.push(*second)
        drain(worker)
        repository.store.materialize_incremental()
        assert serving(repository) == "former"
        assert repository.online(USERS) == expected(newest(first + second), USERS)
        ingestor.definitions.look()
        repository.push(*third)
        drain(worker)
        assert repository.online(USERS) == expected(newest(first + second + third), USERS)
        worker.settle()
        ingestor.follow()
        assert serving(repository) == "new"
        wanted = expected(newest(first + second + third), USERS)
        wanted["total_1d"] = [None if x is None else 2 * x for x in wanted["total_1d"]]
        assert repository.online(USERS) == wanted
        assert repository.offline(USERS) == wanted


def test_a_changed_view_does_not_serve_while_nobody_takes_what_a_dead_process_took(repository):
    """Its events are online for the former view, and in no log."""
    repository.push(Click("a", 1))
    ingestor = repository.ingestor()
    dead = ingestor.worker("clicks", "0")
    drain(dead)
    dead.settle()
    ingestor.follow()
    repository.push(Click("b", 1))
    drain(dead)
    stream = repository.store.services.open_stream(repository.stream_url)
    assert isinstance(stream, MemoryEventStream)
    stream.kill("featurestore.p.clicks", "test-0")
    change(repository)
    repository.store.materialize_incremental()
    assert serving(repository) == "former"
    assert repository.online((1,))["n_lifetime"] == [2]
    take_all(repository)
    assert serving(repository) == "new"
    assert repository.online((1,)) == {"n_1h": [2], "n_lifetime": [2], "total_1d": [4.0]}
    dead.close()


def test_a_changed_view_serves_at_once_when_nobody_ingests(repository):
    repository.push(Click("a", 1))
    take_all(repository)
    change(repository)
    repository.store.materialize_incremental()
    assert serving(repository) == "new"
    repository.push(Click("b", 1))
    take_all(repository)
    assert repository.online((1,)) == {"n_1h": [2], "n_lifetime": [2], "total_1d": [4.0]}


def test_a_view_that_serves_no_more_is_fed_for_a_minute(repository):
    repository.push(Click("a", 1))
    with working(repository) as (ingestor, worker):
        drain(worker)
        worker.settle()
        ingestor.follow()
        change(repository)
        ingestor.definitions.look()
        drain(worker)
        worker.settle()
        ingestor.follow()
        assert serving(repository) == "new"
        assert len(ingestor.definitions.views("clicks")) == 3
        repository.clock.advance(61_000_000)
        ingestor.definitions.look()
        worker.step()
        worker.settle()
        worker.step()
        assert len(worker.promised) == 2


def test_rebuilding_under_continuous_pushes_never_shows_a_wrong_value(tmp_path):
    """Each event counts one: what is read never falls, and never exceeds what was pushed."""
    repository = Repository(
        tmp_path,
        clock=SystemClock(),
        stream="lmdb:data/stream/clicks",
        online="lmdb:data/online",
        poll_seconds=0.02,
        flush_seconds=0.1,
        log_seconds=0.3,
    )
    repository.history([Click(f"h{n}", 1, 100) for n in range(50)])
    told = []
    with repository.store as store:
        store.apply()
        ingestor = store.services.ingestor("test", tell=told.append)
        thread = threading.Thread(target=ingestor.run)
        thread.start()
        wait_until(lambda: _count(repository) == 50, what="the history")
        pushed = 50
        read = []
        for turn in range(3):
            repository.define(COUNTS.format(column=f"amount * {turn + 2}") + LAST)
            store.apply()
            served = sum(event.kind == "serving" for event in told)

            def flipped(before=served) -> bool:
                return sum(event.kind == "serving" for event in told) > before

            extra = 0
            while extra < 5:
                extra += flipped()
                repository.push(Click(f"{turn}-{pushed}", 1, 50))
                pushed += 1
                read.append((_count(repository), pushed))
                assert len(read) < 5000
        wait_until(lambda: _count(repository) == pushed, what="the last event")
        ingestor.stop()
        thread.join()
        assert [event.text for event in told if event.kind == "trouble"] == []
        counts = [count for count, _ in read]
        assert counts == sorted(counts)
        assert all(count <= most for count, most in read)
        found = repository.online((1,))
        assert (found["n_lifetime"], found["total_1d"]) == ([pushed], [4.0 * pushed])
        assert len(repository.logged()) == pushed - 50
        store.materialize_incremental()
        assert len(repository.table("counts")) == pushed


def _count(repository: Repository) -> int:
    return repository.online((1,))["n_lifetime"][0]


def test_teardown_deletes_what_is_kept_of_streams_and_begins_anew(repository):
    repository.push(Click("a", 1))
    repository.send(b"bad")
    take_all(repository)
    repository.define(COUNTS.format(column="amount").replace("counts", "others"))
    repository.store.apply(allow_destructive=True)
    folder = repository.folder / "data" / "offline" / "p"
    assert (folder / "_streams" / "clicks").is_dir()
    repository.store.teardown()
    assert [*folder.glob("_streams/*"), *folder.glob("_quarantine/*")] == []
    repository.define(COUNTS.format(column="amount") + LAST)
    repository.store.apply()
    take_all(repository)
    assert repository.online((1,))["n_lifetime"] == [1]


def test_an_end_that_is_waited_for_in_vain_is_told(repository, monkeypatch):
    monkeypatch.setattr(ingestion, "_GIVE_UP_SECONDS", 0.0)
    stream = repository.store.services.open_stream(repository.stream_url)
    stream.available = False
    moving = threading.Event()

    def move():
        while not moving.wait(0.01):
            repository.clock.advance(1_000)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        with pytest.raises(StreamUnavailableError):
            repository.ingestor().run(until_idle=True)
    finally:
        moving.set()
        thread.join()


def test_events_from_the_partitions_of_kafka(tmp_path):
    """Offsets tell no version of an event, so these are declared; any partition will do."""
    with MockKafka() as kafka:
        kafka.create_topic("clicks", 4)
        repository = Repository(
            tmp_path,
            stream=f"{kafka.url}/clicks?fetch.wait.max.ms=50",
            clock=SystemClock(),
            poll_seconds=0.1,
            flush_seconds=0.1,
            log_seconds=0.1,
        )
        text = DEFINITIONS.format(stream=repository.stream_url)
        text = text.replace('event_id="id"', 'event_id="id", version="seen"')
        (tmp_path / "definitions" / "views.py").write_text(
            text + COUNTS.format(column="amount"), encoding="utf-8"
        )
        given = clicks(60)
        with repository.store as store:
            store.apply()
            rows = [
                click.row | {"seen": NOW + timedelta(seconds=n)} for n, click in enumerate(given)
            ]
            for row in rows[::-1]:
                store.push("clicks", [row])
            ingestor = repository.ingestor()
            ingestor.run(until_idle=True)
            assert repository.online(USERS) == expected(newest(given), USERS)
            assert repository.offline(USERS) == expected(newest(given), USERS)
            logged = repository.logged()
            assert sorted(row["id"] for row in logged) == sorted(click.id for click in given)
            assert len({row["_partition"] for row in logged}) > 1
