"""The conformance suite of event streams: order, at least once, takeover, positions, groups.

Subclass `EventStreamSuite` under a name that pytest collects and give it `open_stream`; each call
of it returns another handle on the stream of the running test, which is new and empty. Members die
by falling silent, so handles are to be opened with a lease of `lease_seconds`, a short one.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from featurestore.clock import SystemClock
from featurestore.errors import RequestError
from featurestore.ports.streams import POSITION_BITS, Entry, EventStream, StreamConsumer
from featurestore.testing.stream_entries import WAIT_SECONDS, drain, newest, ordered, payloads

_KEY = b"key"
_MANY = 3_000
_MEGABYTE = 1_000_000
_HOUR_US = 3_600_000_000


class EventStreamSuite(ABC):
    """What every event stream does.

    Attributes:
        lease_seconds: After how long a silent member counts as dead in `open_stream`'s handles.
        partitions: How many partitions the streams have.
        repeats: Whether entries that were committed in vain, amid a change of members, come again.
    """

    lease_seconds: float = 0.5
    partitions: int = 1
    repeats: bool = False

    @abstractmethod
    def open_stream(self) -> EventStream:
        """Return another handle on this test's stream."""

    @pytest.fixture
    def streams(self) -> Iterator[Callable[[], EventStream]]:
        """Opens handles, which are closed in the end."""
        opened: list[EventStream] = []

        def open_one() -> EventStream:
            opened.append(self.open_stream())
            return opened[-1]

        yield open_one
        for stream in opened:
            stream.close()

    @pytest.fixture
    def stream(self, streams: Callable[[], EventStream]) -> EventStream:
        """A handle on the stream."""
        return streams()

    @pytest.fixture
    def joined(self) -> Iterator[Callable[[EventStream, str, str], StreamConsumer]]:
        """Joins groups, which are left in the end."""
        consumers: list[StreamConsumer] = []

        def join(stream: EventStream, group: str = "group", member: str = "a") -> StreamConsumer:
            consumers.append(stream.consumer(group, member))
            return consumers[-1]

        yield join
        for consumer in consumers:
            consumer.close()

    def append_in_order(
        self, stream: EventStream, some: Sequence[bytes], key: bytes = _KEY
    ) -> list[tuple[str, int]]:
        """Append to one partition."""
        return stream.append(some, [key] * len(some))

    def test_entries_come_as_they_were_appended(self, stream: EventStream, joined: Join) -> None:
        """Payload, partition and position of each are those that `append` took and returned."""
        now_us = SystemClock().now_us()
        sent = payloads(100)
        told = [*self.append_in_order(stream, sent[:60]), *self.append_in_order(stream, sent[60:])]
        found = drain(joined(stream), 100)
        assert [entry.payload for entry in found] == sent
        assert [(entry.partition, entry.position) for entry in found] == told
        assert ordered(found)
        assert all(0 <= entry.position < 1 << POSITION_BITS for entry in found)
        assert all(abs(entry.accepted_us - now_us) < _HOUR_US for entry in found)
        assert [entry.accepted_us for entry in found] == sorted(e.accepted_us for e in found)

    def test_nothing_to_append_or_to_poll(self, stream: EventStream, joined: Join) -> None:
        """An empty batch is fine, and so is an empty stream: a poll returns nothing in time."""
        clock = SystemClock()
        assert stream.append([]) == []
        assert stream.append([], []) == []
        assert stream.ends() == {}
        consumer = joined(stream)
        start = clock.monotonic()
        assert consumer.poll(10, 0) == []
        assert consumer.poll(10, 0.2) == []
        assert clock.monotonic() - start < WAIT_SECONDS / 3
        consumer.commit({})
        assert set(consumer.lag().values()) <= {0}

    def test_payloads_of_any_bytes(self, stream: EventStream, joined: Join) -> None:
        """Payloads are bytes: empty ones, all 256 values, line ends, a megabyte."""
        sent = [b"", bytes(range(256)), b"\r\n", b"\0", b"$3\r\n", os.urandom(_MEGABYTE), b""]
        self.append_in_order(stream, sent)
        found = drain(joined(stream), len(sent))
        assert [entry.payload for entry in found] == sent

    def test_as_many_as_asked_for(self, stream: EventStream, joined: Join) -> None:
        """More entries than go into one command or transaction, in polls of every size."""
        sent = payloads(_MANY)
        self.append_in_order(stream, sent)
        consumer = joined(stream)
        found: list[Entry] = []
        for size in (1, 2, 7, 1_000):
            found += drain(consumer, 1, max_entries=size)
        found += drain(consumer, _MANY - len(found), max_entries=_MANY)
        consumer.commit(newest(found))
        assert [entry.payload for entry in found] == sent
        assert consumer.poll(10, 0) == []
        assert set(consumer.lag().values()) <= {0}

    def test_a_poll_wakes_when_something_comes(
        self, stream: EventStream, streams: Open, joined: Join
    ) -> None:
        """A poll that waits returns what comes meanwhile, long before its time is over."""
        consumer, clock, started = joined(stream), SystemClock(), threading.Event()
        self.append_in_order(stream, [b"first"])
        consumer.commit(newest(drain(consumer, 1)))
        other = streams()

        def produce() -> None:
            started.wait(WAIT_SECONDS)
            self.append_in_order(other, [b"second"])

        thread = threading.Thread(target=produce)
        thread.start()
        started.set()
        start = clock.monotonic()
        found = consumer.poll(10, WAIT_SECONDS)
        waited = clock.monotonic() - start
        thread.join()
        assert [entry.payload for entry in found] == [b"second"]
        assert waited < WAIT_SECONDS / 3

    def test_a_member_that_left_and_came_back(self, stream: EventStream, joined: Join) -> None:
        """What was committed stays done, what was not comes again, the same under any name."""
        sent = payloads(30)
        self.append_in_order(stream, sent)
        first = joined(stream)
        found = drain(first, 30, max_entries=10)
        first.commit(newest(found[:12]))
        first.close()
        again = joined(stream)
        assert drain(again, 18, max_entries=4) == found[12:]
        again.commit(newest(found[:20]))
        again.close()
        other = joined(stream, "group", "b")
        assert drain(other, 10) == found[20:]
        other.commit(newest(found))
        other.close()
        last = joined(stream)
        self.append_in_order(stream, [b"new"])
        assert [entry.payload for entry in drain(last, 1)] == [b"new"]

    def test_a_member_that_died_and_came_back(
        self, stream: EventStream, streams: Open, joined: Join
    ) -> None:
        """Under its name a member gets its own work again, before anything newer."""
        self.append_in_order(stream, payloads(20))
        dead = joined(stream)
        found = drain(dead, 20, max_entries=15)
        dead.commit(newest(found[:5]))
        self.append_in_order(stream, [b"newer"])
        again = drain(joined(streams()), 16)
        assert again[:15] == found[5:]
        assert [entry.payload for entry in again[15:]] == [b"newer"]

    def test_another_member_takes_over(
        self, stream: EventStream, streams: Open, joined: Join
    ) -> None:
        """What a silent member polled goes to another one, before anything newer, unchanged."""
        self.append_in_order(stream, payloads(20))
        dead = joined(stream)
        found = drain(dead, 12, max_entries=12)[:12]
        dead.commit(newest(found[:5]))
        self.append_in_order(stream, [b"newer"])
        other = joined(streams(), "group", "b")
        taken = drain(other, 16)
        assert taken[:7] == found[5:12]
        assert [entry.payload for entry in taken] == [*payloads(20)[5:], b"newer"]
        other.commit(newest(taken))
        assert set(other.lag().values()) <= {0}

    def test_who_was_taken_over_from_changes_nothing(
        self, stream: EventStream, streams: Open, joined: Join
    ) -> None:
        """A member that wakes up after another one took over commits in vain."""
        self.append_in_order(stream, payloads(20))
        late = joined(stream)
        found = drain(late, 20)
        other = joined(streams(), "group", "b")
        assert drain(other, 20) == found
        late.commit(newest(found))
        assert sum(other.lag().values()) == 20
        other.commit(newest(found[:5]))
        assert sum(other.lag().values()) == 15
        other.close()
        late.close()
        third = joined(stream, "group", "c")
        assert drain(third, 15) == found[5:]

    def test_commits_of_what_was_not_polled(self, stream: EventStream, joined: Join) -> None:
        """A commit ahead counts as all that was polled; one behind or elsewhere as nothing."""
        self.append_in_order(stream, payloads(10))
        consumer = joined(stream)
        found = drain(consumer, 10, max_entries=5)
        (partition,) = newest(found)
        consumer.commit({"no-such-partition": 1})
        assert sum(consumer.lag().values()) == 10
        consumer.commit({partition: found[6].position})
        consumer.commit({partition: found[2].position})
        assert sum(consumer.lag().values()) == 3
        self.append_in_order(stream, payloads(5))
        consumer.commit({partition: (1 << POSITION_BITS) - 1})
        assert sum(consumer.lag().values()) == 5
        consumer.close()
        assert len(drain(joined(stream), 5)) == 5

    def test_groups_do_not_know_each_other(self, stream: EventStream, joined: Join) -> None:
        """Each group gets every entry and commits for itself."""
        self.append_in_order(stream, payloads(10))
        one, other = joined(stream, "one"), joined(stream, "other: \u00e9{}*")
        assert drain(one, 10, commit=True) == drain(other, 10)
        assert sum(one.lag().values()) == 0
        assert sum(other.lag().values()) == 10

    def test_equal_keys_stay_together(self, streams: Open, joined: Join) -> None:
        """Entries of equal keys are in one partition and in order, whoever appends them."""
        keys = [b"", b"a", b"b", b"\0", b"\xff" * 40, *payloads(20)]
        for number in range(4):
            lead = b"%d-" % number
            told = streams().append([lead + key for key in keys], keys)
            assert len(told) == len(keys)
        found = drain(joined(streams()), 4 * len(keys))
        assert ordered(found)
        for key in keys:
            mine = [entry for entry in found if entry.payload.partition(b"-")[2] == key]
            assert len({entry.partition for entry in mine}) == 1
            assert [entry.payload[:1] for entry in mine] == [b"0", b"1", b"2", b"3"]
        assert len({entry.partition for entry in found}) == min(self.partitions, len(keys))

    def test_any_partition_will_do(self, stream: EventStream, joined: Join) -> None:
        """Without keys every entry still arrives, and `append` tells where it went."""
        told = [
            place for number in range(9) for place in stream.append(payloads(3, b"%d-" % number))
        ]
        found = drain(joined(stream), 27)
        assert sorted((entry.partition, entry.position) for entry in found) == sorted(told)
        assert ordered(found)

    def test_lag_and_ends(self, stream: EventStream, joined: Join) -> None:
        """Lag counts what is not committed, polled or not; ends are the newest positions."""
        consumer = joined(stream)
        told = self.append_in_order(stream, payloads(10))
        assert stream.ends() == dict(told)
        assert sum(consumer.lag().values()) == 10
        found = drain(consumer, 10, max_entries=4)
        assert consumer.lag()[told[0][0]] == 10
        consumer.commit(newest(found[:3]))
        assert consumer.lag()[told[0][0]] == 7
        told = self.append_in_order(stream, payloads(2))
        assert stream.ends() == dict(told)
        assert consumer.lag()[told[0][0]] == 9
        assert len(consumer.lag()) == self.partitions
        drain(consumer, 2, commit=True)
        assert set(consumer.lag().values()) == {0}

    def test_a_group_that_was_forgotten(self, stream: EventStream, joined: Join) -> None:
        """It begins at the start again; another one does not notice."""
        self.append_in_order(stream, payloads(5))
        for name in ("one", "other"):
            consumer = joined(stream, name)
            drain(consumer, 5, commit=True)
            consumer.close()
        stream.forget("one")
        stream.forget("one")
        stream.forget("nobody")
        assert sum(joined(stream, "other", "b").lag().values()) == 0
        again = joined(stream, "one")
        assert sum(again.lag().values()) == 5
        assert [entry.payload for entry in drain(again, 5)] == payloads(5)

    def test_members_that_come_and_go(
        self, stream: EventStream, streams: Open, joined: Join
    ) -> None:
        """While members live and commit, each entry comes once, in order, whoever reads it."""
        total = 1_200
        if not self.repeats:
            self.lease_seconds = WAIT_SECONDS  # nobody is to count as dead on a busy machine
        errors: list[BaseException] = []
        batches: list[list[Entry]] = []

        def places(some: list[list[Entry]]) -> set[tuple[str, int]]:
            return {(entry.partition, entry.position) for each in some[:] for entry in each}

        def read(member: str, enough: int) -> None:
            # Enough of its own, then it leaves; the last one stays until all is done.
            consumer, mine, end = joined(streams(), "group", member), 0, _end()
            while mine < enough and len(places(batches)) < total:
                assert SystemClock().monotonic() < end, "the entries did not come"
                some = consumer.poll(20, 0.05)
                if some:
                    batches.append(some)
                    consumer.commit(newest(some))
                    mine += len(some)
            consumer.close()

        def produce() -> None:
            for number in range(60):
                keys = payloads(20)
                stream.append([b"%d/%b" % (number, key) for key in keys], keys)

        jobs = [lambda: read("a", 200), lambda: read("b", 1 << 30), produce]
        _run_all(jobs, errors)
        assert errors == []
        assert len(places(batches)) == total
        found = [entry for some in batches for entry in some]
        if self.repeats:
            found = list(dict.fromkeys(found))
        assert len(found) == total
        assert ordered(found)

    def test_threads_that_append(self, stream: EventStream, joined: Join) -> None:
        """Entries of one thread stay in its order; no position is given twice."""
        errors: list[BaseException] = []
        told: list[tuple[str, int]] = []

        def produce(number: int) -> None:
            for turn in range(20):
                lead = b"%d/%02d/" % (number, turn)
                told.extend(self.append_in_order(stream, payloads(5, lead)))

        _run_all([lambda n=n: produce(n) for n in range(4)], errors)  # type: ignore[misc]
        assert errors == []
        found = drain(joined(stream), 400)
        assert sorted((entry.partition, entry.position) for entry in found) == sorted(told)
        assert len(set(told)) == 400
        for number in range(4):
            mine = [entry.payload for entry in found if entry.payload.startswith(b"%d/" % number)]
            assert mine == sorted(mine)

    def test_what_makes_no_sense(self, stream: EventStream) -> None:
        """Keys that differ in number from payloads, and names that cannot be kept."""
        with pytest.raises(RequestError):
            stream.append([b"a", b"b"], [b"k"])
        for group, member in (("", "a"), ("g", ""), ("g" * 300, "a"), ("g", "\u00e9" * 200)):
            with pytest.raises(RequestError):
                stream.consumer(group, member)

    def test_ping(self, stream: EventStream) -> None:
        """A stream that is there says so."""
        stream.ping()


Open = Callable[[], EventStream]
Join = Callable[..., StreamConsumer]


def _end() -> float:
    return SystemClock().monotonic() + WAIT_SECONDS


def _run_all(jobs: Iterable[Callable[[], None]], errors: list[BaseException]) -> None:
    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  (handed to the test, which fails)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_SECONDS)
        if thread.is_alive():
            errors.append(TimeoutError("a thread did not end"))
