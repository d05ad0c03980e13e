"""Reads the URL of a Redis: which servers, how to log in, and how to name them in messages.

A password never leaves this room but inside the options that the driver gets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.connection import parse_url

from featurestore.errors import SettingsError, listing, near_miss

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
class Location:
    """Where a Redis is.

    Attributes:
        label: The URL for messages, without password and options.
        cluster: Whether it is a cluster.
        tls: Whether it is spoken to through TLS.
        host: The server, or one of the cluster's.
        port: Its port.
        options: What connections get beside host and port; holds the password.
    """

    label: str
    cluster: bool
    tls: bool
    host: str
    port: int
    options: dict[str, Any] = field(repr=False)

    def scrub(self, text: str) -> str:
        """Return a message of the driver or the server without the password."""
        password = self.options.get("password")
        return text.replace(password, "***") if password else text


def parse_location(url: str, username: str | None, password: str | None) -> Location:
    """Return where and what a URL names.

    Args:
        url: See `RedisOnlineStore.from_url`.
        username: Goes before one in the URL.
        password: Goes before one in the URL.

    Raises:
        SettingsError: It is no URL of these kinds. No password is repeated.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme not in _SCHEMES:
        raise SettingsError(
            "The online store's URL is of no kind that Redis is reached by.",
            where="[online] url",
            got=f"{scheme}://..." if found else "a text without '://'",
            allowed=_ALLOWED,
        )
    cluster, tls = _SCHEMES[scheme]
    plain = f"redis://{rest}"
    try:
        options: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
        _check(plain, cluster=cluster, tls=tls)
    except ValueError as error:
        if isinstance(error, SettingsError):
            raise
        # The cause would show the text with its password.
        raise SettingsError(
            "The online store's URL cannot be read.",
            where="[online] url",
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
    return Location(label, cluster, tls, host, port, options)


def _check(url: str, *, cluster: bool, tls: bool) -> None:
    parts = urlsplit(url)
    database = parts.path.strip("/")
    known = _TLS_OPTIONS if tls else set()
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - known)
    if unknown:
        raise SettingsError(
            f"The online store's URL has an option '{unknown[0]}' that means nothing here.",
            where="[online] url",
            allowed=f"options {listing(_TLS_OPTIONS)} with rediss://",
            hint=near_miss(unknown[0], known),
        )
    if database and (not database.isdecimal() or (cluster and database != "0")):
        raise SettingsError(
            "The path of the online store's URL is no database number.",
            where="[online] url",
            got=database,
            allowed="0, or nothing (a cluster has no other)" if cluster else "a number such as 0",
        )
