"""The online store in a dict: for trying out, and to hold the others against.

Lives and dies with the object; another process never sees it. Refuses nothing: it ignores expiry
and timeouts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from featurestore.ports.online_laws import newest_per_key
from featurestore.semantics.rows import is_newer


class MemoryOnlineStore:
    """Keeps the newest packed row of each key in this process. For use by any number of threads."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def read(self, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:  # noqa: ARG002
        """Return the value of each key, None where there is none."""
        with self._lock:
            return [self._rows.get(key) for key in keys]

    def write(
        self, keys: Sequence[bytes], values: Sequence[bytes], expires_us: Sequence[int] | None
    ) -> int:
        """Store each value that is newer than what is there; return how many keys changed.

        Args:
            keys: The keys; of a key that repeats, the newest value counts, once.
            values: Packed rows, one a key.
            expires_us: Ignored; nothing is collected here.
        """
        won = 0
        positions = newest_per_key(keys, values, expires_us)
        with self._lock:
            for position in positions:
                key, value = keys[position], values[position]
                old = self._rows.get(key)
                if old is None or is_newer(value, old):
                    self._rows[key] = value
                    won += 1
        return won

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every key that begins with these 8 bytes and no other; return how many."""
        with self._lock:
            doomed = [key for key in self._rows if key.startswith(namespace)]
            for key in doomed:
                del self._rows[key]
        return len(doomed)

    def count(self, namespace: bytes) -> int:
        """Return how many keys begin with these 8 bytes."""
        with self._lock:
            return sum(key.startswith(namespace) for key in self._rows)

    def ping(self, *, timeout: float | None = None) -> None:
        """Return at once."""

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
