"""The online store in a dict: for trying out, and to hold the others against.

Lives and dies with the object; another process never sees it. Refuses nothing: it ignores expiry
and timeouts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.ports.online_laws import check_changes, newest_per_key
from featurestore.semantics.rows import is_newer


class MemoryOnlineStore:
    """Keeps the newest packed row of each key, and states. For use by any number of threads."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._states: dict[bytes, dict[bytes, bytes]] = {}
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

    def read_states(
        self,
        reads: Sequence[StateRead],
        rows: Sequence[bytes] = (),
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        """Return the fields of each state and the value of each row, all of one moment."""
        with self._lock:
            found = [
                [state.get(name) for name in read.fields]
                for read in reads
                for state in (self._states.get(read.key, {}),)
            ]
            return found, [self._rows.get(key) for key in rows]

    def write_states(self, changes: Sequence[StateChange]) -> list[bool]:
        """Make each change whose state is still as expected; return which were made.

        Args:
            changes: None of the same key. Their `expires_us` is ignored; nothing is collected here.

        Raises:
            RequestError: A change is none, see `check_changes`; nothing was changed.
        """
        check_changes(changes)
        with self._lock:
            return [self._change(change) for change in changes]

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every key that begins with these 8 bytes and no other; return how many."""
        deleted = 0
        with self._lock:
            for kept in (self._rows, self._states):
                doomed = [key for key in kept if key.startswith(namespace)]
                for key in doomed:
                    del kept[key]
                deleted += len(doomed)
        return deleted

    def count(self, namespace: bytes) -> int:
        """Return how many keys of rows and states begin with these 8 bytes."""
        with self._lock:
            return sum(
                key.startswith(namespace) for kept in (self._rows, self._states) for key in kept
            )

    def ping(self, *, timeout: float | None = None) -> None:
        """Return at once."""

    def cautions(self) -> list[str]:
        """Return nothing: nobody else is at what is kept."""
        return []

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self._states.clear()

    def _change(self, change: StateChange) -> bool:
        state = self._states.get(change.key, {})
        if state.get(VERSION) != change.expected:
            return False
        for name in change.delete:
            state.pop(name, None)
        state.update(change.put)
        self._states[change.key] = state
        return True
