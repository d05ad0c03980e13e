"""A Hypothesis state machine that drives an online store with rows and states, and a model of both.

The model is a dict of dicts; it shares no code with any store. Needs `hypothesis`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from featurestore.ports.online import VERSION, OnlineStore, StateChange, StateRead
from featurestore.testing.online_machine import Model, OnlineStoreMachine

# A namespace, by its position, and the rest of a key, which is never that of a row. LMDB changes
# its ways where key and field come to 511 bytes.
_Name = tuple[int, bytes]
_TAILS = (b"s", b"s\0", b"sv", b"s{a}", b"s*", *(b"s" * size for size in (435, 436, 437, 700)))
_FIELDS = (b"a", b"ab", b"b", b"\0", b"v\0", b"vv", b"\xff" * 64)

_names = st.tuples(st.integers(0, 3), st.sampled_from(_TAILS))
_fields = st.sampled_from(_FIELDS)
_values = st.binary(max_size=3)
_versions = st.sampled_from([b"", b"1", b"2", b"10"])
# Whether to expect what is there, or whatever may be there.
_expected = st.one_of(st.just(...), st.none(), _versions)
_change = st.tuples(
    _names,
    _expected,
    st.dictionaries(_fields, _values, max_size=4),
    _versions,
    st.lists(_fields, max_size=4),
    st.sampled_from([0, 0, 1, 4_102_444_800_000_000]),
)
_Change = tuple[_Name, object, dict[bytes, bytes], bytes, list[bytes], int]
_batches = st.lists(_change, max_size=6, unique_by=lambda item: item[0])
_reads = st.lists(st.tuples(_names, st.lists(st.sampled_from([*_FIELDS, VERSION]))), max_size=6)


class _Model(Model):
    """What an online store with states is, in dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[bytes, dict[bytes, bytes]] = {}

    def change(self, changes: Sequence[StateChange]) -> list[bool]:
        made = [self.states.get(c.key, {}).get(VERSION) == c.expected for c in changes]
        for change, is_made in zip(changes, made, strict=True):
            if is_made:
                old = self.states.get(change.key, {})
                kept = {name: old[name] for name in old if name not in change.delete}
                self.states[change.key] = kept | dict(change.put)
        return made

    def read_states(self, reads: Sequence[StateRead]) -> list[list[bytes | None]]:
        return [[self.states.get(r.key, {}).get(name) for name in r.fields] for r in reads]

    def count(self, namespace: bytes) -> int:
        return super().count(namespace) + sum(key.startswith(namespace) for key in self.states)

    def delete_namespace(self, namespace: bytes) -> int:
        gone = super().delete_namespace(namespace)
        self.states = {k: s for k, s in self.states.items() if not k.startswith(namespace)}
        return gone


class OnlineStatesMachine(OnlineStoreMachine):
    """Walks over rows and states of a store. Made by `online_states_machine`."""

    model: _Model

    def __init__(self) -> None:
        super().__init__()
        self.model = _Model()

    @rule(batch=_batches)
    def change(self, batch: list[_Change]) -> None:
        """Change states; the same changes are made as in the model."""
        changes = []
        for name, expected, put, version, delete, expires_us in batch:
            key = self.key(name)
            there = self.model.states.get(key, {}).get(VERSION)
            before = there if expected is ... else expected
            assert before is None or isinstance(before, bytes)
            fields = {**put, VERSION: version}
            changes.append(StateChange(key, before, fields, delete, expires_us))
        assert self.store.write_states(changes) == self.model.change(changes)

    @rule(wanted=_reads, rows=st.booleans())
    def read_states(self, wanted: list[tuple[_Name, list[bytes]]], *, rows: bool) -> None:
        """Read states that are there and that are not, with rows and without."""
        reads = [StateRead(self.key(name), fields) for name, fields in wanted]
        keys = [*self.model.rows, self.key((0, b"no row"))] if rows else []
        values = [self.model.rows.get(key) for key in keys]
        assert self.store.read_states(reads, keys) == (self.model.read_states(reads), values)

    @invariant()
    def all_states_are_as_in_the_model(self) -> None:
        """Read all fields of all states."""
        reads = [StateRead(key, [*_FIELDS, VERSION]) for key in self.model.states]
        assert self.store.read_states(reads)[0] == self.model.read_states(reads)


def online_states_machine(factory: Callable[[], OnlineStore]) -> type[OnlineStatesMachine]:
    """Return a state machine that drives rows and states of a store and a model together.

    Run it by `hypothesis.stateful.run_state_machine_as_test`.

    Args:
        factory: Gives a store for each example. It may be the same one each time: the machine
            deletes what it wrote at the end.
    """
    return type("StatesMachine", (OnlineStatesMachine,), {"factory": staticmethod(factory)})
