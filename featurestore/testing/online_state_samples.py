"""What both halves of the suite of states share: short ways to change and read, and look behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from featurestore.ports.online import VERSION, OnlineStore, StateChange, StateRead
from featurestore.testing.online import Namespaces

Fields = Mapping[bytes, bytes]


def first(key: bytes, put: Fields, version: bytes = b"1", expires_us: int = 0) -> StateChange:
    """Return the change that makes a state."""
    return StateChange(key, None, {**put, VERSION: version}, expires_us=expires_us)


def change(
    key: bytes,
    versions: tuple[bytes | None, bytes],
    put: Fields,
    delete: Sequence[bytes] = (),
    expires_us: int = 0,
) -> StateChange:
    """Return a change from a version to another one."""
    return StateChange(key, versions[0], {**put, VERSION: versions[1]}, delete, expires_us)


def read_one(store: OnlineStore, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
    """Return the fields of one state."""
    return store.read_states([StateRead(key, fields)])[0][0]


class StatesBehind(Namespaces, ABC):
    """Looks at states behind a store's back, so that two equal mistakes cannot cancel."""

    @abstractmethod
    def raw_states(self, store: OnlineStore) -> Mapping[bytes, Fields]:
        """Return all states, read without the store's own code; those of long keys may lack."""

    @abstractmethod
    def raw_put_states(self, store: OnlineStore, states: Mapping[bytes, Fields]) -> None:
        """Store states without the store's own code."""

    def states_behind(
        self, store: OnlineStore, namespace: bytes
    ) -> dict[bytes, dict[bytes, bytes]]:
        """Return the states under a namespace, read without the store's own code."""
        states = self.raw_states(store).items()
        return {key: dict(fields) for key, fields in states if key.startswith(namespace)}
