"""The online store: newest packed row by key (laws T2, O1, O2, O5, M7).

A store knows bytes only. Keys begin with a namespace of 8 bytes; values are packed rows
(`semantics.rows`) whose bytes behind the 4-byte fingerprint order them. Adapters translate; the law
of what is newer stands in `semantics.rows.is_newer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class OnlineStore(Protocol):
    """A key-value store that keeps the newer of two rows.

    Every method raises `OnlineStoreUnavailableError` when the store is gone, within its timeout;
    `StorageError` when it is full or read-only; `AuthenticationError` when it refuses the user.
    """

    def read(self, keys: Sequence[bytes], *, timeout: float | None = None) -> list[bytes | None]:
        """Return the value of each key, None where there is none, in one round trip.

        Args:
            keys: Any number of keys, duplicates allowed; the result has their order.
            timeout: Seconds to wait at most; None takes the store's setting.
        """
        ...

    def write(
        self, keys: Sequence[bytes], values: Sequence[bytes], expires_us: Sequence[int] | None
    ) -> int:
        """Store each value unless the one that is there is as new or newer; return how many won.

        Each key's value changes whole or not at all; the batch need not be one transaction. A key
        may stand in the batch more than once: its newest value counts, and counts once.

        Args:
            keys: The keys.
            values: Packed rows, one a key.
            expires_us: The instant after which a value may be garbage-collected, one a key (0:
                never); None where nothing expires. Only a hint: readers decide by law T3.
        """
        ...

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every key that begins with these 8 bytes and no other; return how many."""
        ...

    def count(self, namespace: bytes) -> int:
        """Return how many keys begin with these 8 bytes."""
        ...

    def ping(self, *, timeout: float | None = None) -> None:
        """Return when the store answers."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...
