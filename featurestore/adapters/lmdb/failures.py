"""Tells what an error of LMDB or the file system means: busy, full, damaged or not allowed."""

from __future__ import annotations

import errno
from pathlib import Path

import lmdb

from featurestore.errors import FeatureStoreError, OnlineStoreUnavailableError, StorageError

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


def translate(error: lmdb.Error, path: Path) -> FeatureStoreError:
    """Return our error for one of LMDB's."""
    where, got = str(path), " ".join(str(error).split())
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.ReadersFullError):
        return OnlineStoreUnavailableError(
            "Too many processes read the online store.",
            where=where,
            got=got,
            hint="Stop some of them, then try again.",
        )
    if isinstance(error, _DAMAGED):
        return StorageError(
            "The online store is damaged, or no LMDB database.",
            where=where,
            got=got,
            hint="Move the folder away and materialize again: the offline tables hold all rows.",
        )
    no_room = (lmdb.MapFullError, lmdb.DiskError, lmdb.MemoryError)
    if isinstance(error, no_room) or code in _NO_ROOM:
        return StorageError(
            "The online store finds no room.",
            where=where,
            got=got,
            hint="Free space on its disk and write again; what was stored before is kept.",
        )
    if isinstance(error, lmdb.ReadonlyError) or code in _NOT_ALLOWED:
        return _unusable(where, got)
    return StorageError(
        "The online store cannot be read or written.",
        where=where,
        got=got,
        hint="Check the folder and its disk.",
    )


def folder_error(path: Path, error: OSError) -> StorageError:
    """Return our error for a folder that cannot be made or opened."""
    return _unusable(str(path), error.strerror or str(error))


def _unusable(where: str, got: str) -> StorageError:
    return StorageError(
        "The folder of the online store cannot be used.",
        where=where,
        got=got,
        allowed="a folder on a local disk that may be written",
        hint="Correct the folder or its permissions, or point [online] url elsewhere.",
    )


def busy(path: Path, timeout: float) -> OnlineStoreUnavailableError:
    """Return the error of a write lock that was waited for in vain."""
    return OnlineStoreUnavailableError(
        "Another process keeps writing to the online store.",
        where=str(path),
        got=f"no write lock within {timeout:g} s",
        hint=f"Try again. 'fuser {path / 'write.lock'}' names the processes; one may be stopped.",
    )


def replaced(path: Path) -> StorageError:
    """Return the error of writing to a file that nobody would find."""
    return StorageError(
        "The online store was deleted or replaced while it was open.",
        where=str(path),
        hint="Open the feature store again, restart its servers, and materialize.",
    )
