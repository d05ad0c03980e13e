"""The event stream in Kafka: a topic, its partitions and its consumer groups are Kafka's own.

Positions are offsets. Messages without a value count as empty payloads. What the driver is set to
for our promises (all replicas acknowledge, nothing commits by itself) cannot be set otherwise. A
forked child opens a stream of its own: the driver's threads stay with the parent.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

from featurestore.adapters.kafka.consumer import KafkaConsumer
from featurestore.adapters.kafka.failures import Failures, load_driver
from featurestore.adapters.kafka.location import Location, parse_location
from featurestore.clock import Clock, SystemClock
from featurestore.errors import ConflictError
from featurestore.ports.stream_laws import check_member, placed

TIMEOUT_SECONDS = 10.0
LEASE_SECONDS = 10.0
SILENCE_SECONDS = 300.0

_LOOK_SECONDS = 0.01
_JOIN_SECONDS = 0.1
_LEAST_SOCKET_MS = 2_000


class _Batch:
    """What becomes of the payloads of one append."""

    def __init__(self, count: int) -> None:
        self.waiting = self.missing = count
        self.error: Any = None
        self.told: list[tuple[str, int]] = [("", -1)] * count

    def tell(self, place: int, error: Any, message: Any) -> None:
        self.waiting -= 1
        self.error = self.error or error
        # One that was sent twice may be acknowledged without its offset: that counts as missing.
        if error is None and message.offset() >= 0:
            self.missing -= 1
            self.told[place] = (str(message.partition()), message.offset())


class KafkaEventStream:
    """A topic. For use by any number of threads.

    Args:
        location: Where it is.
        timeout: Seconds that a call may take at most.
        clock: What tells the time that passes.
        lease_seconds: A member whose process falls silent for so long counts as dead.
        silence_seconds: So does one that does not poll for so long.

    Raises:
        SettingsError: confluent-kafka is not installed.
    """

    def __init__(
        self,
        location: Location,
        *,
        timeout: float = TIMEOUT_SECONDS,
        clock: Clock | None = None,
        lease_seconds: float = LEASE_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.location = location
        self.timeout = timeout
        self._clock = clock or SystemClock()
        self._lease_ms = int(lease_seconds * 1_000)
        self._silence_ms = max(self._lease_ms, int(silence_seconds * 1_000))
        self._driver = load_driver()
        self._making = threading.Lock()
        self._producer: Any = None
        self._admin: Any = None
        self.failures = Failures(self._driver, location)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        clock: Clock | None = None,
        lease_seconds: float = LEASE_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Self:
        """Return a stream; the brokers are first spoken to by the first call.

        Args:
            url: `kafka://broker1:9092,broker2:9092/TOPIC`. The driver's settings `security.*`,
                `sasl.*`, `ssl.*`, `fetch.*` and `compression.*` may follow, as
                `?security.protocol=SASL_SSL`.
            username: For SASL; goes before one in the URL.
            password: For SASL; goes before one in the URL.
            timeout: Seconds that a call may take at most.
            clock: What tells the time that passes; the machine's by default.
            lease_seconds: A member whose process falls silent for so long counts as dead. Brokers
                take 6 seconds and more unless they are told otherwise.
            silence_seconds: So does one that does not poll for so long.

        Raises:
            SettingsError: The URL is of another kind, or confluent-kafka is not installed. An
                option that it refuses is told by the first call.
        """
        return cls(
            parse_location(url, username, password),
            timeout=timeout,
            clock=clock,
            lease_seconds=lease_seconds,
            silence_seconds=silence_seconds,
        )

    def __repr__(self) -> str:
        return f"KafkaEventStream({self.location.label!r})"

    def append(
        self,
        payloads: Sequence[bytes],
        partition_keys: Sequence[bytes] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[tuple[str, int]]:
        """Append payloads; return (partition, position) of each.

        Args:
            payloads: The entries, in order.
            partition_keys: Entries of equal keys go to one partition (as Kafka's own clients put
                them); None takes any.
            timeout: Seconds; one longer than the stream's setting counts as that.

        Raises:
            RequestError: There is not one key a payload, or the broker refuses payloads so large.
            StreamUnavailableError: No answer came in time; what was appended is not known.
            AuthenticationError: The user may not append.
        """
        placed(payloads, partition_keys, 1, 0)
        seconds = self.timeout if timeout is None else min(timeout, self.timeout)
        batch = _Batch(len(payloads))
        with self.failures.translating():
            producer = self._get_producer()
            end = self._clock.monotonic() + seconds
            for place, payload in enumerate(payloads):
                key = None if partition_keys is None else partition_keys[place]
                tell = partial(batch.tell, place)
                while not self._produced(producer, payload, key, tell):
                    if self._clock.monotonic() >= end:
                        raise self.failures.unavailable("entries of other appends still wait")
                    producer.poll(_LOOK_SECONDS)
            while batch.waiting and self._clock.monotonic() < end:
                producer.poll(_LOOK_SECONDS)
        if batch.error is not None:
            raise self.failures.error(batch.error)
        if batch.missing:
            got = f"{batch.missing} of {len(payloads)} entries were not acknowledged"
            raise self.failures.unavailable(got)
        return batch.told

    def consumer(self, group: str, member: str) -> KafkaConsumer:
        """Join a consumer group, see `EventStream.consumer`.

        Raises:
            RequestError: A name is empty or too long.
        """
        check_member(group, member)
        return KafkaConsumer(self, self._clock, self._consumer_settings(group, member))

    def ends(self) -> dict[str, int]:
        """Return the newest position of each partition that has one."""
        return {name: end - 1 for name, (_, end) in self.bounds().items() if end > 0}

    def forget(self, group: str) -> None:
        """Have a group begin at the start again.

        Kafka keeps the group's name, which may stand for other topics as well. Who is no member may
        not change what a group has done, so this joins it for a moment.

        Raises:
            ConflictError: A member of the group is alive.
            StreamUnavailableError: No answer came in time.
        """
        check_member(group, group)
        with self.failures.translating():
            numbers = set(self.partitions())
            helper = self._driver.Consumer(self._consumer_settings(group, "forget"))
            try:
                if numbers and self._has_done(helper, numbers):
                    self._begin_again(helper, numbers)
            finally:
                helper.close()

    def _parts(self, numbers: Iterable[int], *offset: int) -> list[Any]:
        make = self._driver.TopicPartition
        return [make(self.location.topic, number, *offset) for number in sorted(numbers)]

    def _has_done(self, helper: Any, numbers: set[int]) -> bool:
        known = helper.committed(self._parts(numbers), timeout=self.timeout)
        return any(part.offset > 0 for part in known)

    def _begin_again(self, helper: Any, numbers: set[int]) -> None:
        assigned: list[set[int]] = []

        def note(_consumer: Any, parts: Sequence[Any]) -> None:
            assigned.append({part.partition for part in parts})

        helper.subscribe([self.location.topic], on_assign=note)
        end = self._clock.monotonic() + self.timeout
        while not assigned:
            if self._clock.monotonic() >= end:
                raise self.failures.unavailable("the group could not be joined in time")
            helper.consume(1, _JOIN_SECONDS)
        if assigned[-1] != numbers:
            raise ConflictError(
                "The consumer group has members that are alive.",
                where=self.location.label,
                hint="Stop them, then try again.",
            )
        helper.commit(offsets=self._parts(numbers, 0), asynchronous=False)

    def ping(self) -> None:
        """Return when a broker answers."""
        self.partitions()

    def close(self) -> None:
        """Let go of connections. Another call would open new ones."""
        with self._making:
            producer, self._producer, self._admin = self._producer, None, None
        if producer is not None:
            producer.flush(self.timeout)

    # For the consumers of this stream too.

    def partitions(self) -> list[int]:
        """Return the numbers of the partitions; none where there is no such topic."""
        with self.failures.translating():
            found = self._get_admin().list_topics(self.location.topic, timeout=self.timeout)
        return sorted(found.topics[self.location.topic].partitions)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Return the first position kept and the next one to come of each partition."""
        bounds: list[list[int]] = []
        numbers = self.partitions()
        parts = self._parts(numbers)
        if not parts:
            return {}
        admin: Any = importlib.import_module("confluent_kafka.admin")
        with self.failures.translating():
            for spec in (admin.OffsetSpec.earliest(), admin.OffsetSpec.latest()):
                asked = dict.fromkeys(parts, spec)
                found = self._get_admin().list_offsets(asked, request_timeout=self.timeout)
                bounds.append([found[part].result(self.timeout).offset for part in parts])
        starts, ends = bounds
        return {
            str(number): (start, end)
            for number, start, end in zip(numbers, starts, ends, strict=True)
        }

    def _produced(
        self, producer: Any, payload: bytes, key: bytes | None, tell: Callable[[Any, Any], None]
    ) -> bool:
        try:
            producer.produce(self.location.topic, payload, key, on_delivery=tell)
        except BufferError:
            return False
        return True

    def _get_producer(self) -> Any:
        with self._making:
            if self._producer is None:
                self._producer = self._driver.Producer(self._producer_settings())
            return self._producer

    def _get_admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        with self._making:
            if self._admin is None:
                self._admin = AdminClient(self._settings())
            return self._admin

    def _settings(self) -> dict[str, Any]:
        return {
            **self.location.options,
            "log_level": 0,  # else it writes to stderr; what matters comes as errors
            "reconnect.backoff.max.ms": 1_000,
            "socket.timeout.ms": max(_LEAST_SOCKET_MS, int(self.timeout * 1_000)),
        }

    def _producer_settings(self) -> dict[str, Any]:
        return {
            **self._settings(),
            "enable.idempotence": True,
            "linger.ms": 1,
            "message.max.bytes": 1 << 27,  # the broker's limit is the one that counts
            "message.timeout.ms": max(1, int(self.timeout * 1_000)),
            "partitioner": "murmur2_random",
        }

    def _consumer_settings(self, group: str, member: str) -> dict[str, Any]:
        return {
            **self._settings(),
            "client.id": member,
            "group.id": group,
            "session.timeout.ms": self._lease_ms,
            "heartbeat.interval.ms": max(1, self._lease_ms // 3),
            "max.poll.interval.ms": self._silence_ms,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "topic.metadata.refresh.interval.ms": 5_000,
        }
