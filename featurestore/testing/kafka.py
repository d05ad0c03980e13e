"""A Kafka for tests: the mock cluster inside librdkafka, which speaks the protocol on loopback.

Lives in this process and is reached by clients of any. It keeps messages in memory, runs consumer
groups, and goes down when told to. The library is the one that confluent-kafka brings along; its
mock interface is C only, so it is called by ctypes.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PRODUCER = 0
_ERROR_BYTES = 512
_POINTER = ctypes.c_void_p


class MockKafka:
    """One broker on a free loopback port.

    Raises:
        RuntimeError: From `__enter__`: confluent-kafka is not installed, or the broker not made.
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._client: Any = None
        self._cluster: Any = None
        self.brokers = ""

    @property
    def url(self) -> str:
        """The URL of a stream here, without its topic."""
        return f"kafka://{self.brokers}"

    def create_topic(self, name: str, partitions: int) -> None:
        """Make a topic. One that is not made beforehand is made with four partitions."""
        failed = self._library.rd_kafka_mock_topic_create(
            self._cluster, name.encode(), partitions, 1
        )
        if failed:
            raise RuntimeError(f"the topic {name} was not made: error {failed}")

    def down(self) -> None:
        """Close all connections and refuse new ones."""
        self._library.rd_kafka_mock_broker_set_down(self._cluster, 1)

    def up(self) -> None:
        """Accept connections again."""
        self._library.rd_kafka_mock_broker_set_up(self._cluster, 1)

    def delay(self, milliseconds: int) -> None:
        """Let every answer take so long."""
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, 1, milliseconds)

    def __enter__(self) -> Self:
        self._library = library = _load()
        settings = library.rd_kafka_conf_new()
        reason = ctypes.create_string_buffer(_ERROR_BYTES)
        library.rd_kafka_conf_set(settings, b"log_level", b"0", reason, _ERROR_BYTES)
        self._client = library.rd_kafka_new(_PRODUCER, settings, reason, _ERROR_BYTES)
        if not self._client:
            raise RuntimeError(reason.value.decode())
        self._cluster = library.rd_kafka_mock_cluster_new(self._client, 1)
        # Else each new group waits for three seconds for further members.
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.brokers = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


def _load() -> Any:
    spec = importlib.util.find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package 'confluent-kafka' is not installed")
    folder = Path(spec.origin).parent.parent / "confluent_kafka.libs"
    found = sorted(folder.glob("librdkafka*"))
    if len(found) != 1:
        raise RuntimeError(f"the wheel of confluent-kafka holds {len(found)} librdkafka, not one")
    library = ctypes.CDLL(str(found[0]))
    for name, result, arguments in (
        ("rd_kafka_conf_new", _POINTER, []),
        ("rd_kafka_conf_set", ctypes.c_int, [_POINTER, *[ctypes.c_char_p] * 3, ctypes.c_size_t]),
        (
            "rd_kafka_new",
            _POINTER,
            [ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_size_t],
        ),
        ("rd_kafka_destroy", None, [_POINTER]),
        ("rd_kafka_mock_cluster_new", _POINTER, [_POINTER, ctypes.c_int]),
        ("rd_kafka_mock_cluster_destroy", None, [_POINTER]),
        ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [_POINTER]),
        (
            "rd_kafka_mock_topic_create",
            ctypes.c_int,
            [_POINTER, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
        ),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, [_POINTER, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, [_POINTER, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", ctypes.c_int, [_POINTER, ctypes.c_int32, ctypes.c_int]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [_POINTER, ctypes.c_int32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
