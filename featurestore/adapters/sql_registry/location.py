"""Reads a registry's URL: which database it is, by which driver, and how to name it in messages.

A password never leaves this room but inside the URL object that the driver gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from featurestore.errors import SettingsError

_SQLITE = "sqlite:///"
_POSTGRES = "postgresql://"
_MASK = "***"
_ALLOWED = "sqlite:///relative/path, sqlite:////absolute/path or postgresql://user@host/database"


@dataclass(frozen=True, repr=False)
class Location:
    """A database.

    Attributes:
        url: What the driver gets; it may hold a password.
        label: The same for messages, without any.
        path: The file of a SQLite database, None for a server.
    """

    url: URL
    label: str
    path: Path | None


def parse_location(url: str, password: str | None, base_folder: Path) -> Location:
    """Return the database that a URL names.

    Args:
        url: `sqlite:///...` or `postgresql://...`.
        password: Goes before a password in the URL.
        base_folder: What relative paths are relative to.

    Raises:
        SettingsError: It is no URL of these kinds. The text is not repeated where it may hold a
            password.
    """
    if url.startswith(_SQLITE):
        return _sqlite(url, base_folder)
    if url.startswith(_POSTGRES):
        return _postgres(url, password)
    scheme, found, _ = url.partition("://")
    raise SettingsError(
        "The registry's URL is of no kind that a registry can be kept in.",
        where="[registry] url",
        got=f"{scheme}://..." if found else "a text without '://'",
        allowed=_ALLOWED,
    )


def _sqlite(url: str, base_folder: Path) -> Location:
    name = url.removeprefix(_SQLITE)
    if not name or "?" in name or "\0" in name:
        raise SettingsError(
            "The registry's URL names no file.",
            where="[registry] url",
            got=repr(url),
            allowed="sqlite:///relative/path or sqlite:////absolute/path, without options",
        )
    path = Path(base_folder).absolute() / name
    return Location(URL.create("sqlite+pysqlite", database=str(path)), f"{_SQLITE}{path}", path)


def _postgres(url: str, password: str | None) -> Location:
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        # The cause would show the text with its password.
        raise SettingsError(
            "The registry's URL cannot be read.",
            where="[registry] url",
            got="postgresql://...",
            allowed="postgresql://user@host:port/database",
            hint="Write special characters of user and password as %40 and the like.",
        ) from None
    if password is not None:
        parsed = parsed.set(password=password)
    shown = parsed.set(
        drivername="postgresql",
        query={k: _MASK if "password" in k.lower() else v for k, v in parsed.query.items()},
    )
    label = shown.render_as_string(hide_password=True).replace(quote(_MASK), _MASK)
    return Location(parsed, label, None)
