"""Tells what a driver's error means: gone, locked, refused, full, read-only or broken.

Every error of SQLAlchemy becomes one of `featurestore.errors`. The driver's own words are kept, the
statement and its parameters are not.
"""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy import exc

from featurestore.adapters.sql_registry.location import Location
from featurestore.errors import (
    AuthenticationError,
    FeatureStoreError,
    RegistryUnavailableError,
    SettingsError,
    StorageError,
)

_RESTORE = "Restore the file from a backup, or move it away and run 'featurestore apply'."
_SQLITE_STORAGE = {
    sqlite3.SQLITE_PERM: ("may not be accessed", "Check who may write the file and its folder."),
    sqlite3.SQLITE_READONLY: (
        "is read-only",
        "Make the file and its folder writable, or point [registry] url elsewhere.",
    ),
    sqlite3.SQLITE_IOERR: ("cannot be read or written", "Check the disk and its free space."),
    sqlite3.SQLITE_CORRUPT: ("is damaged", _RESTORE),
    sqlite3.SQLITE_FULL: ("is on a full disk", "Free some space; nothing was changed."),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Check that its folder exists and is writable, or point [registry] url elsewhere.",
    ),
    sqlite3.SQLITE_NOTADB: ("is no SQLite database", _RESTORE),
}

# By SQLSTATE: the beginning of the code, what it says, and what to do.
_POSTGRES_STORAGE = (
    ("22", "cannot keep a value", "Take the character that it names out of the definition."),
    ("25006", "is read-only", "Point [registry] url at the primary server."),
    ("53100", "is on a full disk", "Free some space on the server; nothing was changed."),
    ("58", "reports a failing disk", "Look into the server's log."),
    ("XX", "reports damaged data", "Look into the server's log."),
)
_POSTGRES_REFUSED = ("28", "42501")
_POSTGRES_LOCKED = ("55P03", "57014", "40")

# libpq tells the reason of a failed connection in words only.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|permission denied"
    r'|role "[^"]*" does not exist|is not permitted to log in',
    re.IGNORECASE,
)
_NO_DATABASE = re.compile(r'database "[^"]*" does not exist', re.IGNORECASE)


def translate(
    error: exc.SQLAlchemyError, location: Location, timeout_seconds: float
) -> FeatureStoreError:
    """Return our error for one of SQLAlchemy's.

    Args:
        error: What the driver or its pool raised.
        location: The database.
        timeout_seconds: How long a lock was waited for.
    """
    if isinstance(error, exc.TimeoutError):
        return _unavailable(location, timeout_seconds, "every connection of this process is in use")
    origin = error.orig if isinstance(error, exc.DBAPIError) else None
    if origin is None:
        return _strange(location, str(error))
    if location.path is not None:
        return _sqlite(origin, location, timeout_seconds)
    state = getattr(origin, "sqlstate", None) or ""
    if isinstance(error, exc.DataError):
        state = state or "22"  # the driver itself refused a value
    return _postgres(origin, state, location, timeout_seconds)


def is_locked(error: exc.SQLAlchemyError) -> bool:
    """Whether another process held the lock of a SQLite file."""
    origin = error.orig if isinstance(error, exc.DBAPIError) else None
    return isinstance(origin, sqlite3.Error) and _code(origin) in {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    }


def _code(error: sqlite3.Error) -> int:
    # The low byte is the kind; the rest are details. Errors of the module itself have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _sqlite(origin: BaseException, location: Location, timeout: float) -> FeatureStoreError:
    code = _code(origin) if isinstance(origin, sqlite3.Error) else 0
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return RegistryUnavailableError(
            "Another process holds the lock of the registry.",
            where=location.label,
            got=f"no lock within {timeout:g} s",
            hint="Try again when the other process is done; 'fuser' on the file names it."
            " [registry] timeout_seconds sets the wait.",
        )
    known = _SQLITE_STORAGE.get(code)
    if known is None:
        return _strange(location, str(origin))
    return StorageError(
        f"The registry {known[0]}.", where=location.label, got=str(origin), hint=known[1]
    )


def _postgres(
    origin: BaseException, state: str, location: Location, timeout: float
) -> FeatureStoreError:
    text = _one_line(origin)
    if state.startswith(_POSTGRES_REFUSED) or (not state and _REFUSED.search(text)):
        return AuthenticationError(
            "The registry's server refused the user.",
            where=location.label,
            got=text,
            hint="Grant the user CREATE and USAGE on its schema, or take its tables' owner."
            if state == "42501"
            else "Check the user in [registry] url and FEATURESTORE_REGISTRY_PASSWORD.",
        )
    if state == "3D000" or (not state and _NO_DATABASE.search(text)):
        return SettingsError(
            "The registry's database does not exist on the server.",
            where=location.label,
            got=text,
            hint="Create it with 'createdb', or correct [registry] url.",
        )
    if state.startswith(_POSTGRES_LOCKED):
        return _unavailable(location, timeout, f"another session holds a lock: {text}")
    for code, what, hint in _POSTGRES_STORAGE:
        if state.startswith(code):
            return StorageError(f"The registry {what}.", where=location.label, got=text, hint=hint)
    # 08 connection, 53 resources, 57 shutdown; no code at all when there is no connection.
    if not state or state.startswith(("08", "53", "57")):
        return _unavailable(location, timeout, text)
    return _strange(location, text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unavailable(location: Location, timeout: float, got: str) -> RegistryUnavailableError:
    return RegistryUnavailableError(
        "The registry cannot be reached.",
        where=location.label,
        got=got,
        hint=f"Check that the server runs and can be reached from here, then try again"
        f" (waits {timeout:g} s, [registry] timeout_seconds).",
    )


def _strange(location: Location, got: str) -> StorageError:
    return StorageError(
        "The registry's tables are not what this program keeps there.",
        where=location.label,
        got=" ".join(got.split()),
        hint="Check that nobody else changed them and that all programs have one version.",
    )
