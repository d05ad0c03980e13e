"""API keys: what they look like, what is kept of them, and the file that holds it.

A key is `fs_ID_SECRET`; the secret is 256 random bits, so its SHA-256 is kept: nobody can try them
all, and a slow hash, which is for what people make up, would only slow down requests. The file is
written whole or not at all, and is for its owner's eyes only, or for whoever its mode was changed
to let read it. Keys themselves are shown once, when they are made, and stand nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurestore.access.scopes import parse_scopes
from featurestore.clock import Clock
from featurestore.errors import (
    FeatureNotFoundError,
    RequestError,
    SettingsError,
    StorageError,
    near_miss,
)

PREFIX = "fs_"
_KEY = re.compile(r"fs_([0-9a-f]{12})_([0-9a-f]{64})")
_VERSION = 1
_LONGEST_NAME = 100
_READERS, _OWNER = 0o044, 0o600


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key.

    Attributes:
        id: The part of the key that names it; no secret.
        name: Who or what it is for.
        hash: The SHA-256 of its secret, in hex.
        scopes: What it allows.
        created_us: When it was made.
        expires_us: From when on it is refused; None for never.
        revoked_us: When it was revoked; None if it was not.
    """

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None

    def __repr__(self) -> str:
        return f"KeyRecord(id={self.id!r}, name={self.name!r}, scopes={self.scopes!r})"


def split_key(key: str) -> tuple[str, str] | None:
    """Return the id and the secret of a key, None where it is none."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1], match[2])


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(secret: str, kept: str) -> bool:
    """Whether what is kept is of this secret; takes as long either way."""
    return hmac.compare_digest(digest(secret), kept)


class KeyFile:
    """The file of the keys of one or more servers.

    Args:
        path: The file; it need not exist yet.
        clock: Tells when keys are made and revoked.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock

    def read(self) -> dict[str, KeyRecord]:
        """Return what is kept, by id; nothing where there is no file.

        Raises:
            SettingsError: The file cannot be read, or is none of ours.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error
        try:
            records = _records(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        return {record.id: record for record in records}

    def create(
        self, name: str, scopes: Iterable[str], expires_us: int | None = None
    ) -> tuple[str, KeyRecord]:
        """Make a key; return it and what is kept of it.

        Args:
            name: Who or what it is for.
            scopes: What it allows; see `scopes`.
            expires_us: From when on it is refused, microseconds since the epoch.

        Raises:
            RequestError: The name or a scope is none, or it would have expired already.
            StorageError: The file cannot be written.
            SettingsError: The file cannot be read.
        """
        texts = tuple(scope.text for scope in parse_scopes(scopes))
        now = self._clock.now_us()
        if not texts:
            raise RequestError("A key without scopes allows nothing.", hint="Give it a scope.")
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise RequestError(
                "This is no name for a key.",
                got=repr(name[:_LONGEST_NAME]),
                allowed=f"1 to {_LONGEST_NAME} printable characters",
            )
        if expires_us is not None and expires_us <= now:
            raise RequestError("The key would have expired before it was made.")
        secret = secrets.token_hex(32)
        with self._changing() as records:
            ident = secrets.token_hex(6)
            record = KeyRecord(ident, name, digest(secret), texts, now, expires_us)
            records[ident] = record
        return f"{PREFIX}{ident}_{secret}", record

    def revoke(self, ident: str) -> KeyRecord:
        """Refuse a key from now on; revoking it twice is revoking it once.

        Args:
            ident: Its id, or the key itself.

        Raises:
            FeatureNotFoundError: There is none of this id.
            StorageError: The file cannot be written.
            SettingsError: The file cannot be read.
        """
        parts = split_key(ident)
        wanted = ident if parts is None else parts[0]
        with self._changing() as records:
            record = records.get(wanted)
            if record is None:
                raise FeatureNotFoundError(
                    f"No key has the id '{wanted[:20]}'.",
                    where=str(self.path),
                    hint=near_miss(wanted, records) or "See 'featurestore keys list'.",
                )
            if record.revoked_us is None:
                record = replace(record, revoked_us=self._clock.now_us())
                records[wanted] = record
        return record

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, KeyRecord]]:
        """Give what is kept, to be changed, and write it; one process at a time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own: the one that is replaced cannot hold the lock.
            lock = self.path.with_name(f".{self.path.name}.lock").open("a")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records = self.read()
            yield records
            try:
                self._write(records)
            except OSError as error:
                raise self._unwritable(error) from error

    def _write(self, records: dict[str, KeyRecord]) -> None:
        data = {"version": _VERSION, "keys": [asdict(record) for record in records.values()]}
        # A link stays one, as where a secret is mounted.
        target = self.path.resolve()
        # mkstemp makes files that their owner alone may read.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                _keep_readers(file.fileno(), target)
                json.dump(data, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _damaged(self, error: Exception) -> SettingsError:
        return SettingsError(
            "The file of the API keys cannot be read.",
            where=str(self.path),
            got=f"{type(error).__name__}: {error}"[:200],
            hint="'featurestore keys' writes it; bring back a good copy.",
        )

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            "The file of the API keys cannot be written.",
            where=str(self.path),
            got=error.strerror or str(error),
        )


def _keep_readers(file: int, former: Path) -> None:
    """Let those read a new file who could read the one that it replaces."""
    try:
        known = former.stat()
    except FileNotFoundError:
        return
    # Only root, or a member of the group, may give a file to it.
    with contextlib.suppress(PermissionError):
        os.fchown(file, -1, known.st_gid)
        os.fchmod(file, stat.S_IMODE(known.st_mode) & _READERS | _OWNER)


def _records(data: dict[str, Any]) -> list[KeyRecord]:
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']}")
    return [_record(item) for item in data["keys"]]


def _record(item: dict[str, Any]) -> KeyRecord:
    record = KeyRecord(**{**item, "scopes": tuple(item["scopes"])})
    parse_scopes(record.scopes)
    texts = (record.id, record.name, record.hash)
    instants = (record.created_us, record.expires_us, record.revoked_us)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a key's id, name and hash are texts")
    if not all(instant is None or type(instant) is int for instant in instants):
        raise TypeError("a key's instants are whole microseconds")
    if re.fullmatch("[0-9a-f]{64}", record.hash) is None:
        raise ValueError("a key's hash is 64 hex digits")
    return record
