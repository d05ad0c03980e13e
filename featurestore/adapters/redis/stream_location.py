"""Reads the URL of a stream in Redis: the server, the stream's name, its partitions and length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlencode

from featurestore.adapters.redis.location import Location, Subject, parse_location
from featurestore.errors import SettingsError, StreamUnavailableError

EVENT_STREAM = Subject(
    "event stream",
    "the stream's URL",
    "[streams] username, FEATURESTORE_STREAMS_PASSWORD",
    "[streams] timeout_seconds",
    "Name a server that is part of no cluster.",
    StreamUnavailableError,
)

_ALLOWED = "redis://host:port/NAME, redis://host:port/0/NAME or rediss://..."
_OPTIONS = ("partitions", "maxlen")
_MAX_PARTITIONS = 1_024
_MAX_NAME = 255


@dataclass(frozen=True)
class StreamLocation:
    """Where a stream is.

    Attributes:
        server: The server and the database.
        name: The stream's name.
        partitions: In how many keys it is.
        maxlen: About how many entries a partition keeps; None keeps all.
    """

    server: Location
    name: str
    partitions: int
    maxlen: int | None

    @property
    def keys(self) -> list[str]:
        """The key of each partition."""
        if self.partitions == 1:
            return [self.name]
        return [f"{self.name}:{number}" for number in range(self.partitions)]

    def lease(self, partition: int, group: str) -> str:
        """Return the key that tells who reads a partition; in the partition's slot."""
        return f"{{{self.keys[partition]}}}:reader:{group}"

    def members(self, group: str) -> str:
        """Return the key that holds the members of a group."""
        return f"{{{self.name}}}:members:{group}"


def parse_stream_location(url: str, username: str | None, password: str | None) -> StreamLocation:
    """Return where and what a URL names.

    Args:
        url: See `RedisEventStream.from_url`.
        username: Goes before one in the URL.
        password: Goes before one in the URL.

    Raises:
        SettingsError: It is no URL of this kind. No password is repeated.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in {"redis", "rediss"}:
        raise SettingsError(
            "The stream's URL is of no kind that Redis is reached by.",
            where=EVENT_STREAM.url,
            got=f"{scheme}://..." if rest else "a text without '://'",
            allowed=_ALLOWED,
        )
    head, _, query = rest.partition("?")
    authority, _, path = head.partition("/")
    parts = path.split("/")
    database = parts.pop(0) if len(parts) > 1 else ""
    pairs = parse_qsl(query, keep_blank_values=True)
    server = parse_location(
        f"{scheme}://{authority}/{database}?"
        + urlencode([pair for pair in pairs if pair[0] not in _OPTIONS]),
        username,
        password,
        EVENT_STREAM,
    )
    name = _name(parts)
    own = dict(pair for pair in pairs if pair[0] in _OPTIONS)
    return StreamLocation(
        replace(server, label=f"{server.label}/{name}"),
        name,
        _number(own.get("partitions", "1"), "partitions", _MAX_PARTITIONS),
        _number(own["maxlen"], "maxlen", 1 << 53) if "maxlen" in own else None,
    )


def _name(parts: list[str]) -> str:
    name = unquote(parts[0])
    if len(parts) > 1 or not 0 < len(name.encode()) <= _MAX_NAME or {"{", "}"} & set(name):
        raise SettingsError(
            "The path of the stream's URL does not name a stream.",
            where=EVENT_STREAM.url,
            got="/".join(parts),
            allowed=f"{_ALLOWED}, NAME of up to {_MAX_NAME} bytes without braces",
        )
    return name


def _number(text: str, option: str, most: int) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise SettingsError(
            f"The option '{option}' of the stream's URL is wrong.",
            where=EVENT_STREAM.url,
            got=text,
            allowed=f"1 to {most}",
        )
    return int(text)
