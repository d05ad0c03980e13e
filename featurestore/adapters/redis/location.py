"""Reads the URL of a Redis: which servers, how to log in, and how to name them in messages.

A password never leaves this room but inside the options that the driver gets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

from redis.connection import parse_url

from featurestore.errors import (
    OnlineStoreUnavailableError,
    SettingsError,
    UnavailableError,
    listing,
    near_miss,
)

SCHEMES = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
"""What each scheme names, and whether it is spoken to through TLS."""
_ALLOWED = (
    "redis://host:port/0, rediss://..., redis+cluster://..., rediss+cluster://...,"
    " redis+sentinel://host:port,host:port/service/0 or rediss+sentinel://..."
)
_TLS_OPTIONS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
}
_REPLICAS = "replicas"
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
_MOST_REPLICAS = 100


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
        service: What sentinels call the server whose primary is meant; None without sentinels.
        sentinels: Host and port of each.
        sentinel_options: What connections to them get; holds their password.
        replicas: How many replicas must have a write before it counts as done.
    """

    label: str
    cluster: bool
    tls: bool
    host: str
    port: int
    options: dict[str, Any] = field(repr=False)
    subject: Subject = ONLINE_STORE
    service: str | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    replicas: int = 0

    def scrub(self, text: str) -> str:
        """Return a message of the driver or the server without the passwords."""
        for options in (self.options, self.sentinel_options):
            password = options.get("password")
            text = text.replace(password, "***") if password else text
        return text


def parse_location(
    url: str,
    username: str | None,
    password: str | None,
    subject: Subject = ONLINE_STORE,
    *,
    sentinel_login: tuple[str | None, str | None] = (None, None),
) -> Location:
    """Return where and what a URL names.

    Args:
        url: See `RedisOnlineStore.from_url`.
        username: Goes before one in the URL.
        password: Goes before one in the URL.
        subject: What it holds for us.
        sentinel_login: The sentinels' own username and password.

    Raises:
        SettingsError: It is no URL of these kinds. No password is repeated.
    """
    scheme, rest = _split(url, subject)
    kind, tls = SCHEMES[scheme]
    try:
        hosts, service, plain = _parts(rest, sentinel=kind == "sentinel")
        options: dict[str, Any] = parse_url(plain)  # type: ignore[no-untyped-call]
        _check(plain, subject, kind=kind, tls=tls)
    except SettingsError:
        raise
    except ValueError:
        # The cause would show the text with its password.
        raise _unreadable(scheme, rest, subject) from None
    options = _login(options, username, password)
    options.pop(_REPLICAS, None)
    host, port = options.pop("host", "localhost"), options.pop("port", _DEFAULT_PORT)
    if kind == "cluster":
        options.pop("db", None)
    about_tls = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    return Location(
        _label(scheme, hosts or [(host, port)], service, options),
        kind == "cluster",
        tls,
        host,
        port,
        options,
        subject,
        service,
        tuple(hosts),
        _login(about_tls, *sentinel_login),
        _replicas(plain, subject, kind),
    )


def _unreadable(scheme: str, rest: str, subject: Subject) -> SettingsError:
    return SettingsError(
        f"The {subject.name}'s URL cannot be read.",
        where=subject.url,
        got=f"{scheme}://" + re.sub(r"^.*@", "***@", rest, flags=re.DOTALL),
        allowed=_ALLOWED,
        hint="Write special characters of user and password as %40 and the like.",
    )


def _split(url: str, subject: Subject) -> tuple[str, str]:
    scheme, found, rest = url.partition("://")
    if found and scheme in SCHEMES:
        return scheme, rest
    raise SettingsError(
        f"The {subject.name}'s URL is of no kind that Redis is reached by.",
        where=subject.url,
        got=f"{scheme}://..." if found else "a text without '://'",
        allowed=_ALLOWED,
    )


def _label(
    scheme: str, hosts: list[tuple[str, int]], service: str | None, options: dict[str, Any]
) -> str:
    user = f"{options['username']}@" if options.get("username") else ""
    path = [service] if service else []
    path += [str(options["db"])] if options.get("db") else []
    return "/".join([f"{scheme}://{user}{','.join(_shown(*each) for each in hosts)}", *path])


def _login(options: dict[str, Any], username: str | None, password: str | None) -> dict[str, Any]:
    given = {"username": username, "password": password}
    return {**options, **{name: text for name, text in given.items() if text is not None}}


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parts(rest: str, *, sentinel: bool) -> tuple[list[tuple[str, int]], str | None, str]:
    """Return the sentinels, what they call the server, and the rest as a URL of one server."""
    if not sentinel:
        return [], None, f"redis://{rest}"
    head, question, query = rest.partition("?")
    authority, _, path = head.partition("/")
    login, at, names = authority.rpartition("@")
    service, _, database = path.partition("/")
    if not service or "@" in login:
        raise ValueError("no service, or more than one user")
    hosts = []
    for name in names.split(","):
        parts = urlsplit(f"//{name}")
        if not parts.hostname or parts.netloc != name:
            raise ValueError("no host")
        hosts.append((parts.hostname, parts.port or _SENTINEL_PORT))
    return hosts, unquote(service), f"redis://{login}{at}unknown/{database}{question}{query}"


def _check(url: str, subject: Subject, *, kind: str, tls: bool) -> None:
    parts = urlsplit(url)
    database = parts.path.strip("/")
    known = (_TLS_OPTIONS if tls else set()) | ({_REPLICAS} if subject is ONLINE_STORE else set())
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - known)
    if unknown:
        raise SettingsError(
            f"The {subject.name}'s URL has an option '{unknown[0]}' that means nothing here.",
            where=subject.url,
            allowed=f"options {listing(known | _TLS_OPTIONS)}, those of TLS with rediss://",
            hint=near_miss(unknown[0], known),
        )
    cluster = kind == "cluster"
    if database and (not database.isdecimal() or (cluster and database != "0")):
        raise SettingsError(
            f"The path of the {subject.name}'s URL is no database number.",
            where=subject.url,
            got=database,
            allowed="0, or nothing (a cluster has no other)" if cluster else "a number such as 0",
        )


def _replicas(url: str, subject: Subject, kind: str) -> int:
    text = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True)).get(_REPLICAS)
    if text is None:
        # Who has a failover set up wants what was written to outlive it.
        return 1 if kind == "sentinel" else 0
    if not (text.isascii() and text.isdecimal() and int(text) <= _MOST_REPLICAS):
        raise SettingsError(
            f"The option '{_REPLICAS}' of the {subject.name}'s URL is wrong.",
            where=subject.url,
            got=text,
            allowed=f"0 to {_MOST_REPLICAS}",
        )
    return int(text)
