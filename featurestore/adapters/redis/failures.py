"""Tells what an error of Redis or its driver means: gone, refused, full, read-only or strange.

The server's own words are kept; a password in them is not.
"""

from __future__ import annotations

import re

from redis import exceptions as redis_errors

from featurestore.adapters.redis.connection import NotPrimaryError
from featurestore.adapters.redis.location import Location, Subject
from featurestore.errors import (
    AuthenticationError,
    FeatureStoreError,
    SettingsError,
    StorageError,
)

DRIVER_ERRORS = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)

_REFUSED = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.AuthenticationWrongNumberOfArgsError,
    redis_errors.NoPermissionError,
)
# Said of a command inside a script, and of a command too long for somebody unknown.
_REFUSED_WORDS = ("ACL failure", "unauthenticated")
_NOT_STALE = (
    *_REFUSED,
    redis_errors.BusyLoadingError,
    redis_errors.MaxConnectionsError,
)
_OF_A_CLUSTER = (redis_errors.AskError, redis_errors.ClusterCrossSlotError)
_COMMAND = re.compile(r"permissions to run the '([\w|-]+)' command")
_KEYS = re.compile(r"permissions to access .*key", re.IGNORECASE)
# Answers of a server that is there but cannot serve now; most arrive as plain ResponseError.
_BUSY = ("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "BUSY", "NOREPLICAS", "MOVED", "ASK")
# Scripts wrap the words of the commands inside them, so the words are looked for anywhere.
_STORAGE = (
    ("READONLY", "is a read-only replica", "Point {url} at the primary server."),
    ("read only replica", "is a read-only replica", "Point {url} at the primary server."),
    ("OOM", "is out of memory", "Raise maxmemory, or delete what is no longer served."),
    ("maxmemory", "is out of memory", "Raise maxmemory, or delete what is no longer served."),
    (
        "WRONGTYPE",
        "holds something else under a key of ours",
        "Give the store a database of its own, or delete the key and write it again.",
    ),
    ("MISCONF", "cannot write its own files", "Look into the server's log and its disk."),
)


class SentinelsRefusedError(redis_errors.AuthenticationError):
    """The sentinels refused the user, so that nobody names the primary."""


class TooFewReplicasError(redis_errors.RedisError):
    """A write was made, and not enough replicas have it."""


def check_kept(counts: list[int], needed: int) -> None:
    """Return if each of these numbers of replicas is enough.

    Raises:
        TooFewReplicasError: One is not.
    """
    fewest = min(counts, default=needed)
    if fewest < needed:
        raise TooFewReplicasError(f"{fewest} of {needed} replicas have it")


def is_stale(error: BaseException) -> bool:
    """Whether a connection broke, so that another one may serve the same call."""
    return isinstance(error, redis_errors.ConnectionError) and not isinstance(error, _NOT_STALE)


def is_refused(error: BaseException) -> bool:
    """Whether a server refused the user."""
    return isinstance(error, _REFUSED) or any(words in _words(error) for words in _REFUSED_WORDS)


def is_read_only(error: BaseException) -> bool:
    """Whether the server turned out to be a replica."""
    text = _words(error)
    return "READONLY" in text or "read only replica" in text


def translate(error: BaseException, location: Location) -> FeatureStoreError:
    """Return our error for one of the driver's."""
    text, subject = location.scrub(_words(error)), location.subject
    if not location.cluster and isinstance(error, _OF_A_CLUSTER):
        return SettingsError(
            f"The {subject.name} is part of a cluster.",
            where=location.label,
            got=text,
            hint=subject.of_a_cluster,
        )
    if is_refused(error):
        return _refusal(error, location, text)
    demoted = location.service is not None and is_read_only(error)
    if isinstance(error, redis_errors.ResponseError) and not _is_busy(error, text) and not demoted:
        for words, what, hint in _STORAGE:
            if words in text:
                return StorageError(
                    f"The {subject.name} {what}.",
                    where=location.label,
                    got=text,
                    hint=hint.replace("{url}", subject.url),
                )
        return StorageError(
            f"The {subject.name} answered with an error.",
            where=location.label,
            got=text,
            hint="It takes Redis 7 or Valkey; look into the server's log.",
        )
    what, hint = _for_now(error, subject)
    return subject.unavailable(
        f"The {subject.name} {what}.", where=location.label, got=text, hint=hint
    )


def _refusal(error: BaseException, location: Location, text: str) -> FeatureStoreError:
    name, settings = f"The {location.subject.name}", location.subject.user
    if isinstance(error, SentinelsRefusedError):
        name = f"The sentinels of the {location.subject.name}"
        settings = "[online] sentinel_username, FEATURESTORE_ONLINE_SENTINEL_PASSWORD"
    return AuthenticationError(
        f"{name} refused the user.",
        where=location.label,
        got=text,
        allowed=_missing(text),
        hint=f"Check {settings} and the user's permissions; docs/redis.md lists them.",
    )


def _for_now(error: BaseException, subject: Subject) -> tuple[str, str]:
    """Return what keeps a Redis from serving now, and what to do."""
    if isinstance(error, TooFewReplicasError):
        what = "has written to its primary alone, where a failover would lose it"
        hint = "See that replicas run and follow, then write again."
        return what, f"{hint} '?replicas=0' in {subject.url} does without them."
    if is_read_only(error) or isinstance(error, NotPrimaryError):
        return "is changing its primary", "Try again: the sentinels name the new one."
    hint = "Check that the server runs and can be reached from here, then try again"
    return "cannot be reached", f"{hint} ({subject.timeout} sets the longest wait)."


def _missing(text: str) -> str | None:
    """Return the permission that a refusal speaks of, as `ACL SETUSER` takes it."""
    found = _COMMAND.search(text)
    if found:
        return f"+{found[1].lower()}"
    return "the keys ~*" if _KEYS.search(text) else None


def _is_busy(error: redis_errors.ResponseError, text: str) -> bool:
    busy = redis_errors.ClusterError | redis_errors.TryAgainError | redis_errors.AskError
    return isinstance(error, busy) or text.startswith(_BUSY)


def _words(error: BaseException) -> str:
    # The driver cuts the first word off errors that it knows and keeps it as a status code.
    code = getattr(error, "status_code", None)
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{code} {text}" if code else text
