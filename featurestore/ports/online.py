"""The online store: newest packed row by key (laws T2, O1, O2, O5, M7).

A store knows bytes only. Keys begin with a namespace of 8 bytes; values are packed rows
(`semantics.rows`) whose bytes behind the 4-byte fingerprint order them. Adapters translate; the law
of what is newer stands in `semantics.rows.is_newer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StateRead:
    """Fields of one state to read.

    Attributes:
        key: The state's key; it begins with a namespace of 8 bytes, as rows' keys do.
        fields: Names of fields, any bytes of 1 to 64.
    """

    key: bytes
    fields: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of one state, made only while the state is as it was read.

    Attributes:
        key: The state's key.
        expected: The value of the field `VERSION` as it was read; None when there was none.
        put: {field: new value}; holds a value of `VERSION` that the state never had: a change that
            was given up on may still arrive, and must find that it is too late.
        delete: Fields to take away; those that are not there, or that are put, do not matter.
        expires_us: The instant after which the whole state may be garbage-collected, 0 for never.
    """

    key: bytes
    expected: bytes | None
    put: Mapping[bytes, bytes]
    delete: Sequence[bytes] = field(default=())
    expires_us: int = 0


VERSION = b"v"
"""The field whose value tells whether a state has changed since it was read."""


class OnlineStore(Protocol):
    """A key-value store that keeps the newer of two rows, and states of several fields.

    A row is one value under its key. A state is a set of fields under one key, read and changed as
    a whole: a windowed view keeps tiles and events of an entity so. No key is both.

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

    def read_states(
        self,
        reads: Sequence[StateRead],
        rows: Sequence[bytes] = (),
        *,
        timeout: float | None = None,
    ) -> tuple[list[list[bytes | None]], list[bytes | None]]:
        """Return the fields of each state, and the value of each row, in one round trip.

        The fields of one `StateRead` are of one moment: never some from before a change and some
        from after it. A state that is not there has no fields: all are None.

        Args:
            reads: Any number of states; a key may stand in it more than once.
            rows: Keys of rows, as `read` takes them.
            timeout: Seconds to wait at most; None takes the store's setting.

        Returns:
            One list a read, with a value or None for each of its fields in order; and one value or
            None for each row.
        """
        ...

    def write_states(self, changes: Sequence[StateChange]) -> list[bool]:
        """Make each change whose state is still as expected; return which were made.

        A change is made whole or not at all, whatever byte the process or the store dies at.
        Changes of different keys need not be one transaction. No key stands in the list twice.

        Nothing is sent twice. After an error any of the changes may have been made, or be made yet:
        who wrote reads the states again and goes on from what is there.

        Raises:
            RequestError: A change is none, see `online_laws.check_changes`; nothing was made.
            StorageError: There is a row under the key of a state, where the store can tell.
        """
        ...

    def delete_namespace(self, namespace: bytes) -> int:
        """Delete every row and state whose key begins with these 8 bytes; return how many keys."""
        ...

    def count(self, namespace: bytes) -> int:
        """Return how many keys of rows and states begin with these 8 bytes."""
        ...

    def ping(self, *, timeout: float | None = None) -> None:
        """Return when the store answers."""
        ...

    def cautions(self) -> list[str]:
        """Return what threatens what is kept, a sentence each; none when all is well."""
        ...

    def close(self) -> None:
        """Let go of connections and files."""
        ...
