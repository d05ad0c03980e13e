"""Reads the URL of a stream in Kafka: the brokers, the topic, and how to log in.

A password never leaves this room but inside the options that the driver gets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from featurestore.errors import SettingsError

_OPTIONS = ("security.", "sasl.", "ssl.", "fetch.", "compression.")

ALLOWED = "kafka://broker1:9092,broker2:9092/TOPIC, and options " + ", ".join(
    f"{option}*" for option in _OPTIONS
)


@dataclass(frozen=True)
class Location:
    """Where a topic is.

    Attributes:
        label: The URL for messages, without user and options.
        topic: The topic.
        options: The driver's settings; holds secrets.
    """

    label: str
    topic: str
    options: dict[str, str] = field(repr=False)

    def scrub(self, text: str) -> str:
        """Return a message of the driver without secrets."""
        for name, value in self.options.items():
            if value and ("password" in name or "secret" in name):
                text = text.replace(value, "***")
        return text


def parse_location(url: str, username: str | None, password: str | None) -> Location:
    """Return where a URL points.

    Args:
        url: See `KafkaEventStream.from_url`.
        username: Goes before one in the URL.
        password: Goes before one in the URL.

    Raises:
        SettingsError: It is no URL of this kind. No password is repeated.
    """
    scheme, found, rest = url.partition("://")
    head, _, query = rest.partition("?")
    authority, _, topic = head.partition("/")
    user, _, brokers = authority.rpartition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [name for name in options if not name.startswith(_OPTIONS)]
    if scheme != "kafka" or not found or not brokers or not topic or "/" in topic or unknown:
        raise SettingsError(
            "The stream's URL is none of a stream in Kafka.",
            where="the stream's URL",
            got=f"option '{unknown[0]}'" if unknown else f"{scheme}://{brokers}/{topic}",
            allowed=ALLOWED,
        )
    name, _, secret = user.partition(":")
    name, secret = username or unquote(name), password or unquote(secret)
    if name:
        options["sasl.username"] = name
    if secret:
        options["sasl.password"] = secret
    options["bootstrap.servers"] = brokers
    return Location(f"kafka://{brokers}/{topic}", unquote(topic), options)
