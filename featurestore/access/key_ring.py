"""The API keys as a server holds them: checked in memory, read again when their file changes.

A file that is gone lets nobody in. One that is damaged leaves the keys that were known, until they
expire, and the trouble is told: a slip of the pen must not stop a service, and whoever could damage
the file on purpose could also write keys into it.
"""

from __future__ import annotations

from featurestore.access.keys import KeyFile, KeyRecord, is_secret_of, split_key
from featurestore.access.scopes import Principal, parse_scopes
from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, UnauthenticatedError

# Compared with where there is no such key, so that this takes as long as a wrong secret.
_NOBODY = "0" * 64


class KeyRing:
    """Knows who shows which key.

    Args:
        file: Where keys are kept.
        clock: Tells what has expired.

    Raises:
        SettingsError: The file cannot be read.
    """

    def __init__(self, file: KeyFile, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._known: dict[str, tuple[KeyRecord, Principal]] = {}
        self.last_error: FeatureStoreError | None = None
        self.refresh()
        if self.last_error is not None:
            raise self.last_error

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        # Looked at before it is read: a change in between is seen the next time.
        seen = self._look()
        if seen == self._seen and self.last_error is None:
            return
        try:
            records = self._file.read()
        except FeatureStoreError as error:
            self.last_error = error
            return
        self._known = {
            ident: (
                record,
                Principal(f"key:{ident} ({record.name})", parse_scopes(record.scopes)),
            )
            for ident, record in records.items()
        }
        self._seen, self.last_error = seen, None

    def principal(self, key: str) -> Principal:
        """Return who shows a key.

        Raises:
            UnauthenticatedError: It is no key of ours, was revoked or has expired; errors never
                hold the key.
        """
        parts = split_key(key)
        if parts is None:
            raise UnauthenticatedError(
                "The API key is none of ours.", allowed="fs_ID_SECRET, as 'keys create' shows it"
            )
        ident, secret = parts
        record, principal = self._known.get(ident, (None, None))
        fits = is_secret_of(secret, _NOBODY if record is None else record.hash)
        if record is None or principal is None or not fits:
            # One answer for both: ids are not to be tried out.
            raise UnauthenticatedError("The API key is not known.", got=f"key {ident}")
        if record.revoked_us is not None:
            raise UnauthenticatedError("The API key was revoked.", got=f"key {ident}")
        if record.expires_us is not None and self._clock.now_us() >= record.expires_us:
            raise UnauthenticatedError("The API key has expired.", got=f"key {ident}")
        return principal

    def _look(self) -> tuple[int, ...]:
        try:
            stat = self._file.path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_ctime_ns
