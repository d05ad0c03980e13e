"""Tells what an error of Kafka or its driver means: gone, refused, too large, taken over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurestore.adapters.kafka.location import ALLOWED, Location
from featurestore.errors import (
    AuthenticationError,
    FeatureStoreError,
    RequestError,
    SettingsError,
    StorageError,
    StreamUnavailableError,
)

if TYPE_CHECKING:
    from types import ModuleType


def load_driver() -> ModuleType:
    """Return the driver.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import confluent_kafka
    except ImportError as error:
        raise SettingsError(
            "Streams in Kafka need the package confluent-kafka.",
            got=str(error),
            hint="Install it: pip install 'featurestore[kafka]'.",
        ) from error
    return confluent_kafka


class Failures:
    """Our errors for those of a topic's clients.

    Args:
        driver: The driver.
        location: Where the topic is.
    """

    def __init__(self, driver: ModuleType, location: Location) -> None:
        self._driver = driver
        self._location = location

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise our errors for the driver's."""
        try:
            yield
        except self._driver.KafkaException as error:
            raise self.error(error.args[0]) from error
        except TimeoutError as error:
            raise self.unavailable(str(error) or "no answer in time") from error

    def error(self, error: Any) -> FeatureStoreError:
        """Return our error for one of the driver's."""
        codes = self._driver.KafkaError
        text = self._location.scrub(error.str())
        where = self._location.label
        if error.code() in {codes._INVALID_ARG, codes._CONFLICT, codes._NOT_IMPLEMENTED}:  # noqa: SLF001
            return SettingsError(
                "Kafka's driver refuses a setting.", where=where, got=text, allowed=ALLOWED
            )
        if "AUTH" in error.name():
            return AuthenticationError(
                "Kafka refused the user.",
                where=where,
                got=text,
                hint="Check [streams] username, FEATURESTORE_STREAMS_PASSWORD, the options"
                " security.* and sasl.* of the stream's URL, and the user's permissions.",
            )
        if error.code() in {codes.MSG_SIZE_TOO_LARGE, codes.RECORD_LIST_TOO_LARGE}:
            return RequestError(
                "A payload is larger than Kafka takes.",
                where=where,
                got=text,
                hint="Raise the topic's max.message.bytes, or append smaller payloads.",
            )
        if error.code() in {codes.KAFKA_STORAGE_ERROR, codes.POLICY_VIOLATION}:
            return StorageError("Kafka cannot store this.", where=where, got=text)
        return self.unavailable(text)

    def unavailable(self, got: str) -> StreamUnavailableError:
        """Return the error of brokers that do not do what they should."""
        return StreamUnavailableError(
            "Kafka cannot be reached, or does not answer in time.",
            where=self._location.label,
            got=got,
            hint="Check that the brokers run, that the topic exists and that both can be reached"
            " from here, then try again ([streams] timeout_seconds sets the longest wait).",
        )
