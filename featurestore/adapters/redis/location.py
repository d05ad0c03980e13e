"""Reads the URL of a Redis: which servers, how to log in, and how to name them in messages.

A password never leaves this room but inside the options that the driver gets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.connection import parse_url

from featurestore.errors import (
    OnlineStoreUnavailableError,
    SettingsError,
    UnavailableError,
    listing,
    near_miss,
)

_SCHEMES = {
    "redis": (False, False),
    "rediss": (False, True),
    "redis+cluster": (True, False),
    "rediss+cluster": (True, True),
}
_ALLOWED = "redis://host:port/0, rediss://..., redis+cluster://... or rediss+cluster://..."
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
}
_DEFAULT_PORT = 6379


@dataclass(frozen=True)
class Subject:
    """What a Redis holds for us, as messages speak of it.

    Attributes:
        name: Such as "online store".
        url: The setting that holds its URL.
        user: The settings that hold user and password.
        timeout: The setting that holds the longest wait.
        of_a_cluster: What to do when the server turns out to be part of a cluster.
        unavailable: The error to raise when it is gone.
    """

    name: str
    url: str
    user: str
    timeout: str
    of_a_cluster: str
    unavailable: type[UnavailableError]


ONLINE_STORE = Subject(
    "online store",
    "[online] url",
    "[online] username, FEATURESTORE_ONLINE_PASSWORD",
    "[online] timeout_seconds",
    "Begin [online] url with redis+cluster:// or rediss+cluster://.",
    OnlineStoreUnavailableError,
)


@dataclass(frozen=True)
class Location:
    """Where a Redis is.

    Attributes:
        label: The URL for messages, without password and options.
        cluster: Whether it is a cluster.
        tls: Whether it is spoken to through TLS.
        host: The server, or one of the cluster's.
        port: Its port.
        options: What connections get beside host and port; holds the password.
        subject: What it holds for us.
    """

    label: str
    cluster: bool
    tls: bool
    host: str
    port: int
    options: dict[str, Any] = field(repr=False)
    subject: Subject = ONLINE_STORE

    def scrub(self, text: str) -> str:
        """Return a message of the driver or the server without the password."""
        password = self.options.get("password")
        return text.replace(password, "***") if password else text


def parse_location(
    url: str, username: str | None, password: str | None, subject: Subject = ONLINE_STORE
) -> Location:
    """Return where and what a URL names.

    Args:
        url: See `RedisOnlineStore.from_url`.
        username: Goes before one in the URL.
        password: Goes before one in the URL.
        subject: What it holds for us.

    Raises:
        SettingsError: It is no URL of these kinds. No password is repeated.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme not in _SCHEMES:
        raise SettingsError(
            f"The {subject.name}'s URL is of no kind that Redis is reached by.",
            where=subject.url,
            got=f"{scheme}://..." if found else "a text without '://'",
            allowed=_ALLOWED,
        )
    cluster, tls = _SCHEMES[scheme]
    plain = f"redis://{rest}"
    try:
        options: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
        _check(plain, subject, cluster=cluster, tls=tls)
    except ValueError as error:
        if isinstance(error, SettingsError):
            raise
        # The cause would show the text with its password.
        raise SettingsError(
            f"The {subject.name}'s URL cannot be read.",
            where=subject.url,
            got=f"{scheme}://" + re.sub(r"^.*@", "***@", rest, flags=re.DOTALL),
            allowed=_ALLOWED,
            hint="Write special characters of user and password as %40 and the like.",
        ) from None
    host, port = options.pop("host", "localhost"), options.pop("port", _DEFAULT_PORT)
    if username is not None:
        options["username"] = username
    if password is not None:
        options["password"] = password
    if cluster:
        options.pop("db", None)
    user = f"{options['username']}@" if options.get("username") else ""
    shown = f"[{host}]" if ":" in host else host
    database = f"/{options['db']}" if options.get("db") else ""
    label = f"{scheme}://{user}{shown}:{port}{database}"
    return Location(label, cluster, tls, host, port, options, subject)


def _check(url: str, subject: Subject, *, cluster: bool, tls: bool) -> None:
    parts = urlsplit(url)
    database = parts.path.strip("/")
    known = _TLS_OPTIONS if tls else set()
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - known)
    if unknown:
        raise SettingsError(
            f"The {subject.name}'s URL has an option '{unknown[0]}' that means nothing here.",
            where=subject.url,
            allowed=f"options {listing(_TLS_OPTIONS)} with rediss://",
            hint=near_miss(unknown[0], known),
        )
    if database and (not database.isdecimal() or (cluster and database != "0")):
        raise SettingsError(
            f"The path of the {subject.name}'s URL is no database number.",
            where=subject.url,
            got=database,
            allowed="0, or nothing (a cluster has no other)" if cluster else "a number such as 0",
        )
