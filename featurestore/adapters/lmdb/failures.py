"""Tells what an error of LMDB or the file system means: busy, full, damaged or not allowed.

What is said names the subject: the online store or an event stream.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

import lmdb

from featurestore.errors import (
    FeatureStoreError,
    OnlineStoreUnavailableError,
    StorageError,
    StreamUnavailableError,
    UnavailableError,
)

_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.BadTxnError,
)
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}


@dataclass(frozen=True)
class Subject:
    """What a file holds, as messages speak of it.

    Attributes:
        name: Such as "online store".
        setting: What names its folder.
        remedy: What to do when the file is damaged.
        reopening: What to do when the file was replaced.
        unavailable: The error to raise where it cannot be used now.
    """

    name: str
    setting: str
    remedy: str
    reopening: str
    unavailable: type[UnavailableError]


ONLINE_STORE = Subject(
    "online store",
    "[online] url",
    "Move the folder away and materialize again: the offline tables hold all rows.",
    "Open the feature store again, restart its servers, and materialize.",
    OnlineStoreUnavailableError,
)
EVENT_STREAM = Subject(
    "event stream",
    "the stream's URL",
    "Move the folder away to begin a new stream, and have lost entries appended again.",
    "Try again: the stream begins anew.",
    StreamUnavailableError,
)


def translate(error: lmdb.Error, path: Path, subject: Subject) -> FeatureStoreError:
    """Return our error for one of LMDB's."""
    where, got = str(path), " ".join(str(error).split())
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.ReadersFullError):
        return subject.unavailable(
            f"Too many processes read the {subject.name}.",
            where=where,
            got=got,
            hint="Stop some of them, then try again.",
        )
    if isinstance(error, _DAMAGED):
        return StorageError(
            f"The {subject.name} is damaged, or no LMDB database.",
            where=where,
            got=got,
            hint=subject.remedy,
        )
    no_room = (lmdb.MapFullError, lmdb.DiskError, lmdb.MemoryError)
    if isinstance(error, no_room) or code in _NO_ROOM:
        return StorageError(
            f"The {subject.name} finds no room.",
            where=where,
            got=got,
            hint="Free space on its disk and write again; what was stored before is kept.",
        )
    if isinstance(error, lmdb.ReadonlyError) or code in _NOT_ALLOWED:
        return _unusable(where, got, subject)
    return StorageError(
        f"The {subject.name} cannot be read or written.",
        where=where,
        got=got,
        hint="Check the folder and its disk.",
    )


def folder_error(path: Path, error: OSError, subject: Subject) -> StorageError:
    """Return our error for a folder that cannot be made or opened."""
    return _unusable(str(path), error.strerror or str(error), subject)


def _unusable(where: str, got: str, subject: Subject) -> StorageError:
    return StorageError(
        f"The folder of the {subject.name} cannot be used.",
        where=where,
        got=got,
        allowed="a folder on a local disk that may be written",
        hint=f"Correct the folder or its permissions, or point {subject.setting} elsewhere.",
    )


def busy(path: Path, timeout: float, subject: Subject) -> UnavailableError:
    """Return the error of a write lock that was waited for in vain."""
    return subject.unavailable(
        f"Another process keeps writing to the {subject.name}.",
        where=str(path),
        got=f"no write lock within {timeout:g} s",
        hint=f"Try again. 'fuser {path / 'write.lock'}' names the processes; one may be stopped.",
    )


def replaced(path: Path, subject: Subject) -> StorageError:
    """Return the error of writing to a file that nobody would find."""
    return StorageError(
        f"The {subject.name} was deleted or replaced while it was open.",
        where=str(path),
        hint=subject.reopening,
    )
