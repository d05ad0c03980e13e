"""A member of a consumer group of Kafka's. Who reads which partition is decided by Kafka."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from featurestore.adapters.kafka.failures import Failures, load_driver
from featurestore.adapters.kafka.location import Location
from featurestore.clock import Clock
from featurestore.ports.streams import Entry

_CHECK_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_QUIET_LOOKS = 2
_MOST_MESSAGES = 1_000_000
_NO_TIMESTAMP = 0


class Topic(Protocol):
    """What a consumer needs of its stream."""

    location: Location
    timeout: float
    failures: Failures

    def partitions(self) -> list[int]: ...  # noqa: D102
    def bounds(self) -> dict[str, tuple[int, int]]: ...  # noqa: D102


class KafkaConsumer:
    """A member of a group of a `KafkaEventStream`, which makes it. For one thread."""

    def __init__(self, stream: Topic, clock: Clock, settings: dict[str, Any]) -> None:
        self._stream = stream
        self._failures = stream.failures
        self._clock = clock
        self._driver = load_driver()
        self._topic = stream.location.topic
        self._refused: Any = None
        self._reached: dict[int, int] = {}  # of what is assigned, the newest offset delivered
        self._done: dict[int, int] = {}
        self._checked = clock.monotonic()
        self._closed = False
        with self._failures.translating():
            self._consumer = self._driver.Consumer({**settings, "error_cb": self._note})
            self._consumer.subscribe(
                [self._topic], on_assign=self._begin, on_revoke=self._end, on_lost=self._end
            )

    def poll(self, max_entries: int, timeout: float) -> list[Entry]:
        """Return the next entries, see `StreamConsumer.poll`.

        Joining takes a while, so the first polls may find nothing.

        Raises:
            StreamUnavailableError: No broker answers; told after the timeout here by a request
                that takes the stream's timeout at most.
            AuthenticationError: The user was refused.
        """
        self._check_open()
        if max_entries < 1:
            return []
        with self._failures.translating():
            # The driver waits until it has as many as asked for, so it is asked for one first.
            messages = self._consumer.consume(1, max(timeout, 0.0))
            if messages and max_entries > 1:
                messages += self._consumer.consume(min(max_entries - 1, _MOST_MESSAGES), 0)
        entries = self._entries(messages)
        now = self._clock.monotonic()
        if entries:
            self._checked, self._refused = now, None
        elif now - self._checked >= _CHECK_SECONDS:
            self._check_brokers()
            self._checked = now
        return entries

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember that everything up to and including these positions is done.

        A position ahead of what was polled counts as what was polled.

        Raises:
            StreamUnavailableError: No answer came in time; what was committed is not known.
        """
        self._check_open()
        done = {}
        for number, reached in self._reached.items():
            position = min(positions.get(str(number), -1), reached)
            if position > self._done.get(number, -1):
                done[number] = position
        if not done:
            return
        offsets = [self._driver.TopicPartition(self._topic, n, p + 1) for n, p in done.items()]
        with self._failures.translating():
            # The driver waits for a lost coordinator as long as a session lasts. So the commit is
            # sent, and what became of it is asked for behind it, within the timeout. What another
            # member has taken over stays as it was.
            self._consumer.commit(offsets=offsets, asynchronous=True)
            known = self._consumer.committed(offsets, timeout=self._stream.timeout)
        for part in known:
            if part.offset > done[part.partition]:
                self._done[part.partition] = done[part.partition]

    def lag(self) -> dict[str, int]:
        """Return how many entries of each partition the group has not committed.

        Raises:
            StreamUnavailableError: No answer came in time.
        """
        self._check_open()
        bounds = self._stream.bounds()
        parts = [self._driver.TopicPartition(self._topic, int(name)) for name in bounds]
        if not parts:
            return {}
        with self._failures.translating():
            known = self._consumer.committed(parts, timeout=self._stream.timeout)
        return {
            str(part.partition): end - min(max(part.offset, start), end)
            for part in known
            for start, end in [bounds[str(part.partition)]]
        }

    def close(self) -> None:
        """Leave the group: others take over at once, or after the lease where no broker answers."""
        if self._closed:
            return
        self._closed = True
        left: Future[None] = Future()

        def leave() -> None:
            try:
                self._let_go()
                self._consumer.close()
            except BaseException as error:  # noqa: BLE001  (handed to whoever closes)
                left.set_exception(error)
            else:
                left.set_result(None)

        # The driver waits for its group without a limit: for ever, where that was lost meanwhile.
        threading.Thread(target=leave, name="leave-kafka", daemon=True).start()
        with self._failures.translating(), contextlib.suppress(TimeoutError):
            left.result(self._stream.timeout)

    def _let_go(self) -> None:
        """Give up all partitions, and hear all that was decided, while the group is still there.

        Else the driver hears it while it closes, by a callback that may wait for the group when
        that is gone, for ever and with the interpreter's lock held (librdkafka's issue 4041).
        """
        self._consumer.unsubscribe()
        due, quiet = self._clock.monotonic() + self._stream.timeout / 2, 0
        while quiet < _QUIET_LOOKS and self._clock.monotonic() < due:
            found = self._consumer.poll(_LOOK_SECONDS)
            is_quiet = found is None and not self._consumer.assignment()
            quiet = quiet + 1 if is_quiet else 0

    def _entries(self, messages: Sequence[Any]) -> list[Entry]:
        entries = []
        for message in messages:
            if message.error() is not None:
                self._note(message.error())
                continue
            number, position = message.partition(), message.offset()
            kind, milliseconds = message.timestamp()
            accepted_us = 0 if kind == _NO_TIMESTAMP else milliseconds * 1_000
            entries.append(Entry(str(number), position, accepted_us, message.value() or b""))
            if number in self._reached:
                self._reached[number] = position
        return entries

    def _check_open(self) -> None:
        if self._closed:
            raise self._failures.unavailable("this member has left its group")

    def _check_brokers(self) -> None:
        """Raise when no broker answers: the driver itself tries for ever and says nothing."""
        refused, self._refused = self._refused, None
        if refused is not None:
            raise self._failures.error(refused)
        self._stream.partitions()

    def _note(self, error: Any) -> None:
        if "AUTH" in error.name():
            self._refused = error

    def _begin(self, _consumer: Any, parts: Sequence[Any]) -> None:
        for part in parts:
            self._reached[part.partition] = -1
            self._done.pop(part.partition, None)

    def _end(self, _consumer: Any, parts: Sequence[Any]) -> None:
        for part in parts:
            self._reached.pop(part.partition, None)
