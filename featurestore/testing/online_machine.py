"""A Hypothesis state machine that drives an online store and a model of one together.

The model is a dict and a comparison of bytes; it shares no code with any store. Needs `hypothesis`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from featurestore.ports.online import OnlineStore
from featurestore.testing.online import packed

_FINGERPRINT_BYTES = 4
_FAR = (1 << 63) - 1
_NOON = 1_700_000_000_000_000

# A namespace, by its position, and the rest of a key; LMDB changes its ways at 511 bytes in all.
_Name = tuple[int, bytes]
_TAILS = (b"", b"\0", b"*", b"{a}", b"a", b"b" * 502, b"b" * 503, b"b" * 700)

_spaces = st.integers(0, 3)
_names = st.tuples(_spaces, st.sampled_from(_TAILS))
_instants = st.sampled_from([-_FAR - 1, -1, 0, 1, _NOON, _FAR])
_rows = st.builds(packed, _instants, _instants, st.binary(max_size=3))
_batches = st.lists(st.tuples(_names, _rows), max_size=12)
_hints = st.sampled_from([None, 0, 1, 4_102_444_800_000_000])


class Model:
    """What an online store is, in a dict."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def write(self, items: Sequence[tuple[bytes, bytes]]) -> int:
        before = dict(self.rows)
        for key, value in items:
            old = self.rows.get(key)
            if old is None or value[_FINGERPRINT_BYTES:] > old[_FINGERPRINT_BYTES:]:
                self.rows[key] = value
        return sum(before.get(key) != value for key, value in self.rows.items())

    def count(self, namespace: bytes) -> int:
        return sum(key.startswith(namespace) for key in self.rows)

    def delete_namespace(self, namespace: bytes) -> int:
        gone = self.count(namespace)
        self.rows = {k: v for k, v in self.rows.items() if not k.startswith(namespace)}
        return gone


class OnlineStoreMachine(RuleBasedStateMachine):
    """Walks over a store in namespaces of its own. Made by `online_store_machine`."""

    factory: Callable[[], OnlineStore]

    def __init__(self) -> None:
        super().__init__()
        salt = os.urandom(4)
        self.spaces = [salt + b"[a]*", salt + b"[a]+", b"\\" + salt + b"a-*", salt + b"\0\0\0\0"]
        self.store = self.factory()
        self.model = Model()

    def key(self, name: _Name) -> bytes:
        """Return the key of a name."""
        return self.spaces[name[0]] + name[1]

    @rule(batch=_batches, hint=_hints)
    def write(self, batch: list[tuple[_Name, bytes]], hint: int | None) -> None:
        """Write a batch; as many keys change as in the model."""
        items = [(self.key(name), value) for name, value in batch]
        instants = None if hint is None else [hint] * len(items)
        keys, values = [key for key, _ in items], [value for _, value in items]
        assert self.store.write(keys, values, instants) == self.model.write(items)

    @rule(wanted=st.lists(_names, max_size=12))
    def read(self, wanted: list[_Name]) -> None:
        """Read keys that are there and keys that are not."""
        keys = [self.key(name) for name in wanted]
        assert self.store.read(keys) == [self.model.rows.get(key) for key in keys]

    @rule(space=_spaces)
    def delete(self, space: int) -> None:
        """Delete a namespace."""
        namespace = self.spaces[space]
        gone = self.model.delete_namespace(namespace)
        assert self.store.delete_namespace(namespace) == gone

    @rule(space=_spaces)
    def count(self, space: int) -> None:
        """Count a namespace."""
        namespace = self.spaces[space]
        assert self.store.count(namespace) == self.model.count(namespace)

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        """Read all keys."""
        keys = list(self.model.rows)
        assert self.store.read(keys) == [self.model.rows[key] for key in keys]

    def teardown(self) -> None:
        """Delete what was written."""
        for namespace in self.spaces:
            self.store.delete_namespace(namespace)


def online_store_machine(factory: Callable[[], OnlineStore]) -> type[OnlineStoreMachine]:
    """Return a state machine that drives a store and a model together.

    Run it by `hypothesis.stateful.run_state_machine_as_test`.

    Args:
        factory: Gives a store for each example. It may be the same one each time: the machine
            deletes what it wrote at the end.
    """
    return type("StoreMachine", (OnlineStoreMachine,), {"factory": staticmethod(factory)})
