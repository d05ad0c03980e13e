"""Every exception of the project: one root, a stdlib parent each, no transport and no colour.

A message says what is wrong, where, what was got, what is allowed and what to do next. The parts
are attributes too, so that the CLI and the gRPC server render them without parsing text.

    FeatureStoreError
    ├── DefinitionError (ValueError)            a declaration is wrong; knows file and line
    │   ├── DuplicateNameError                  two declarations share a name
    │   ├── UnknownReferenceError               a declaration names what does not exist
    │   └── CyclicReferenceError                on-demand views feed each other
    ├── SettingsError (ValueError)              featurestore.toml or a variable is wrong
    ├── RequestError (ValueError)               a call asks for something that makes no sense
    │   ├── FeatureNotFoundError (LookupError)  no such view, service or feature
    │   ├── MissingColumnError                  the entity rows lack a join key or a request field
    │   ├── NameClashError                      two result columns would share a name
    │   ├── NaiveTimestampError                 an instant without a time zone (law T1)
    │   └── AsOfBeforeRowError                  the online row is newer than as_of (law O1)
    ├── NotMaterializedError (LookupError)      the view has no complete table to answer from
    ├── SourceError (OSError)                   a source cannot be read
    │   ├── SourceNotFoundError (FileNotFoundError)
    │   ├── SourceCorruptError
    │   └── SourceSchemaError (TypeError)       columns or types differ from what is declared
    ├── DataError (ValueError)                  rows break a law or an expectation
    ├── DestructiveChangeError (PermissionError)  a plan would drop data and nobody allowed it
    ├── ConflictError (RuntimeError)            somebody else was first (compare-and-swap)
    ├── StorageError (OSError)                  a disk is full, read-only or not what it should be
    │   └── OutOfMemoryError (MemoryError)      work does not fit the memory and the spill space
    ├── UnavailableError (ConnectionError)      a registry, store or server cannot be reached now
    │   ├── RegistryUnavailableError
    │   ├── OnlineStoreUnavailableError
    │   ├── StreamUnavailableError
    │   ├── OverloadedError                     the server has more to do than it takes on
    │   └── DeadlineExceededError (TimeoutError)
    ├── AuthenticationError (PermissionError)   a password or user was refused
    │   └── UnauthenticatedError                a call says not, or not rightly, who makes it
    └── AccessDeniedError (PermissionError)     whoever calls may not do this
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class FeatureStoreError(Exception):
    """The root: everything that this project raises on purpose.

    Args:
        what: One sentence that says what is wrong.
        where: The place: a definition with file and line, a path, a URL without secrets.
        got: What was found there.
        allowed: What would have been accepted.
        hint: What to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: str | None = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.got = got
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        for label, text in self.details():
            parts.append(f"  {label}: {text}")
        return "\n".join(parts)

    def details(self) -> list[tuple[str, str]]:
        """Return the labelled parts that are set, in reading order."""
        pairs = (
            ("where", self.where),
            ("got", self.got),
            ("allowed", self.allowed),
            ("next", self.hint),
        )
        return [(label, text) for label, text in pairs if text]

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.__dict__.copy()))


def _rebuild(
    cls: type[FeatureStoreError], what: str, attributes: dict[str, str | None]
) -> FeatureStoreError:
    error = cls(what)
    error.__dict__.update(attributes)
    return error


class DefinitionError(FeatureStoreError, ValueError):
    """A declaration is wrong; `where` names its file and line."""


class DuplicateNameError(DefinitionError):
    """Two declarations of one kind share a name."""


class UnknownReferenceError(DefinitionError):
    """A declaration names a view, feature, entity or column that does not exist."""


class CyclicReferenceError(DefinitionError):
    """On-demand views depend on each other in a circle."""


class SettingsError(FeatureStoreError, ValueError):
    """`featurestore.toml` or a `FEATURESTORE_...` variable is wrong."""


class RequestError(FeatureStoreError, ValueError):
    """A call asks for something that makes no sense."""


class FeatureNotFoundError(RequestError, LookupError):
    """No applied view, service or feature has this name."""


class MissingColumnError(RequestError):
    """The entity rows lack a join key, the timestamp column or a request field."""


class NameClashError(RequestError):
    """Two columns of a result would share a name."""


class NaiveTimestampError(RequestError):
    """An instant came without a time zone (law T1: never guessed)."""


class AsOfBeforeRowError(RequestError):
    """The one row kept online is newer than `as_of` (law O1: ask offline)."""


class NotMaterializedError(FeatureStoreError, LookupError):
    """The view has no complete table to answer from."""


class SourceError(FeatureStoreError, OSError):
    """A source cannot be read."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """The path of a source names no file."""


class SourceCorruptError(SourceError):
    """A file of a source is not what its format says."""


class SourceSchemaError(SourceError, TypeError):
    """A source lacks a declared column, or its type differs from the declared one."""


class DataError(FeatureStoreError, ValueError):
    """Rows break a law or an expectation."""

    exit_code = 3


class DestructiveChangeError(FeatureStoreError, PermissionError):
    """A plan would drop tables or values and nobody allowed it."""


class ConflictError(FeatureStoreError, RuntimeError):
    """Somebody else changed the same thing first; nothing of ours was applied."""

    exit_code = 4


class StorageError(FeatureStoreError, OSError):
    """A disk is full, read-only, or holds something else than it should."""


class OutOfMemoryError(StorageError, MemoryError):
    """The work fits neither the memory setting nor the spill space."""


class UnavailableError(FeatureStoreError, ConnectionError):
    """A registry, a store or a server cannot be reached now; trying later may help.

    Attributes:
        retry_seconds: How long to wait before the next try, where that is known.
    """

    exit_code = 4
    retry_seconds: float | None = None


class RegistryUnavailableError(UnavailableError):
    """The registry cannot be reached, or another process holds its lock."""


class OnlineStoreUnavailableError(UnavailableError):
    """The online store cannot be reached or does not answer."""


class StreamUnavailableError(UnavailableError):
    """The event stream does not answer, or was gone for a moment."""


class OverloadedError(UnavailableError):
    """The server has more to do than it takes on; nothing of the call was begun."""


class DeadlineExceededError(UnavailableError, TimeoutError):
    """No answer came before the caller's deadline."""


class AuthenticationError(FeatureStoreError, PermissionError):
    """A password or a user was refused."""


class UnauthenticatedError(AuthenticationError):
    """A call does not say who makes it, or what it says is not valid."""


class AccessDeniedError(FeatureStoreError, PermissionError):
    """Whoever makes the call is known, and may not do what it asks for."""


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """Return `Did you mean 'x'?` for the closest known name, or None when nothing is close.

    >>> near_miss("conv_rat", ["acc_rate", "conv_rate"])
    "Did you mean 'conv_rate'?"
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"Did you mean '{matches[0]}'?" if matches else None


def listing(names: Iterable[str], limit: int = 20) -> str:
    """Return names sorted and joined by commas, cut after `limit` with a count of the rest.

    >>> listing(["b", "a"])
    'a, b'
    """
    ordered = sorted(names)
    if not ordered:
        return "(none)"
    head = ", ".join(ordered[:limit])
    return head if len(ordered) <= limit else f"{head} and {len(ordered) - limit} more"
