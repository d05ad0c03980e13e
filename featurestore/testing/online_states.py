"""The conformance suite of online stores' states: fields under a key, changed while as expected.

Subclass `OnlineStatesSuite` beside `OnlineStoreSuite`, and give it the two methods that look behind
the store, so that two equal mistakes in reading and writing cannot cancel. Every test keeps to
namespaces of its own. `online_states_machine` goes further.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from featurestore.errors import RequestError
from featurestore.ports.online import VERSION, OnlineStore, StateChange, StateRead
from featurestore.testing.online import packed
from featurestore.testing.online_state_samples import Fields, change, first, read_one
from featurestore.testing.online_states_at_large import OnlineStatesAtLarge

_CENTURY_AHEAD = 4_102_444_800_000_000
_NAMES = (
    *(bytes([byte]) for byte in range(256)),
    *(b"\0" * length for length in (2, 3, 63, 64)),
    *(b"\xff" * length for length in (2, 3, 63, 64)),
    *(b"vv", b"v\0", b"\0v", b"a b", b"\r\n", b"$3\r\n", b"{v}", b"*", b"t:1h:\x00\x00\x01"),
)


class OnlineStatesSuite(OnlineStatesAtLarge):
    """What every online store does with states. Tests take the fixture `store`."""

    def test_put_fields_stand_there_byte_for_byte(self, store: OnlineStore) -> None:
        """What is put is what is stored, under the very key and names, and nothing else."""
        space = self.namespace()
        states = {
            space + bytes([i]): {b"f%d" % j: os.urandom(50 * j) for j in range(i)} for i in range(9)
        }
        assert store.write_states([first(*item) for item in states.items()]) == [True] * len(states)
        versioned = {key: {**fields, VERSION: b"1"} for key, fields in states.items()}
        assert self.states_behind(store, space) == versioned

    def test_reads_find_the_fields_that_stand_there(self, store: OnlineStore) -> None:
        """A read returns what is stored, whoever stored it."""
        space = self.namespace()
        states = {
            space + b"%d" % i: {b"%d" % j: os.urandom(20) for j in range(1, i + 2)}
            for i in range(20)
        }
        self.raw_put_states(store, states)
        reads = [StateRead(key, list(fields)) for key, fields in states.items()]
        assert store.read_states(reads) == ([list(f.values()) for f in states.values()], [])

    def test_what_is_not_there(self, store: OnlineStore) -> None:
        """Missing states have no fields; missing fields are None; nothing is made by reading."""
        space = self.namespace()
        a, gap = space + b"a", space + b"b"
        assert read_one(store, a, [VERSION, b"f"]) == [None, None]
        store.write_states([first(a, {b"f": b"1"})])
        fields = [b"x", b"f", b"ff", b"", b"F", b"f", VERSION, VERSION * 2]
        assert read_one(store, a, fields) == [None, b"1", None, None, None, b"1", b"1", None]
        for key in (gap, space, a + b"f", a[:-1], a + b"\0"):
            assert read_one(store, key, fields) == [None] * len(fields)
        assert list(self.states_behind(store, space)) == [a]

    def test_nothing_to_read_or_write_of_states(self, store: OnlineStore) -> None:
        """Empty batches are fine and change nothing; so is a read of no fields."""
        space = self.namespace()
        a = space + b"a"
        assert store.read_states([]) == ([], [])
        assert store.read_states((), ()) == ([], [])
        assert store.write_states([]) == []
        store.write_states([first(a, {b"f": b"1"})])
        reads = [StateRead(a, ()), StateRead(a, (b"f",)), StateRead(a, []), StateRead(space, ())]
        assert store.read_states(reads) == ([[], [b"1"], [], []], [])
        assert store.read_states([StateRead(a, ())], [space]) == ([[]], [None])

    def test_a_state_that_is_read_more_than_once(self, store: OnlineStore) -> None:
        """The result has the reads' order, with duplicates of states and of fields."""
        space = self.namespace()
        a, b = space + b"a", space + b"b"
        store.write_states([first(a, {b"f": b"1", b"g": b"2"}), first(b, {b"f": b"3"})])
        reads = [
            StateRead(a, [b"f"]),
            StateRead(b, [b"g", b"f"]),
            StateRead(a, [b"g", b"f", b"f"]),
            StateRead(a, [b"f"]),
        ]
        found, _ = store.read_states(reads)
        assert found == [[b"1"], [None, b"3"], [b"2", b"1", b"1"], [b"1"]]

    def test_rows_come_along(self, store: OnlineStore) -> None:
        """One call reads states and rows, each in order, with duplicates and gaps."""
        space = self.namespace()
        rows = {space + b"row%d" % i: packed(i, payload=os.urandom(30)) for i in range(20)}
        states = {space + b"state%d" % i: {b"f": os.urandom(30)} for i in range(20)}
        store.write(list(rows), list(rows.values()), None)
        store.write_states([first(*item) for item in states.items()])
        for count in (0, 1, 7):
            reads = [StateRead(key, [b"f", b"gap"]) for key in list(states)[:count]]
            keys = [space + b"gap", *rows, *list(rows)[:count], space + b"gap"]
            values = [None, *rows.values(), *list(rows.values())[:count], None]
            expected = [[states[read.key][b"f"], None] for read in reads]
            assert store.read_states(reads, keys) == (expected, values)
            assert store.read_states([], keys) == ([], values)
            assert store.read_states(reads) == (expected, [])
            assert store.read(keys) == values
        assert store.read_states([StateRead(space + b"gap", [b"f"])], list(rows)) == (
            [[None]],
            list(rows.values()),
        )

    def test_changes_put_and_delete_fields(self, store: OnlineStore) -> None:
        """A change puts new and old fields, deletes others, and leaves the rest alone."""
        key = self.namespace() + b"key"
        steps: list[tuple[Fields, Sequence[bytes], Fields]] = [
            ({b"a": b"1", b"b": b"1"}, [b"never", b"a\0"], {b"a": b"1", b"b": b"1"}),
            ({b"c": b"2"}, [], {b"a": b"1", b"b": b"1", b"c": b"2"}),
            ({b"a": b"3"}, [b"b"], {b"a": b"3", b"c": b"2"}),
            ({b"b": b""}, (b"b", b"a", b"a"), {b"b": b"", b"c": b"2"}),
            ({}, [b"b", b"c"], {}),
            ({b"a": b"9"}, [], {b"a": b"9"}),
        ]
        old: bytes | None = None
        for number, (put, delete, expected) in enumerate(steps):
            new = b"%d" % number
            assert store.write_states([change(key, (old, new), put, delete)]) == [True]
            assert self.states_behind(store, key[:8]) == {key: {**expected, VERSION: new}}
            names = [b"a", b"b", b"c", VERSION]
            values = [expected.get(name) for name in names[:-1]]
            assert read_one(store, key, names) == [*values, new]
            old = new

    def test_a_change_of_what_has_changed_changes_nothing(self, store: OnlineStore) -> None:
        """Only who expects the very version, or its absence, changes a state."""
        space = self.namespace()
        versions = [None, b"", b"\0", b"1", b"10", b"1\0", b"\x31" * 100, b"\xff", b"0", b"false"]
        for there in versions:
            key = space + (b"none" if there is None else b"-" + there)
            stands = {b"f": b"old", b"g": b"old"}
            if there is not None:
                assert store.write_states([first(key, stands, there)]) == [True]
            before = self.states_behind(store, space)
            for expected in versions:
                if expected != there:
                    lost = change(key, (expected, b"new"), {b"f": b"new"}, [b"g"])
                    assert store.write_states([lost]) == [False]
            assert self.states_behind(store, space) == before
            assert store.write_states([change(key, (there, b"new"), {b"f": b"new"}, [b"g"])])[0]
            assert read_one(store, key, [b"f", b"g", VERSION]) == [b"new", None, b"new"]

    def test_lost_changes_keep_no_others_from_being_made(self, store: OnlineStore) -> None:
        """Each change of a batch is told apart, in the order of the batch."""
        space, chance = self.namespace(), random.Random(5)  # noqa: S311
        keys = [space + b"%d" % i for i in range(700)]
        store.write_states([first(key, {b"f": b"old"}) for key in keys])
        chance.shuffle(keys)
        right = [chance.random() < 0.5 for _ in keys]
        batch = [
            change(key, (b"1" if fine else b"0", b"2"), {b"f": b"new"}, [b"g"])
            for key, fine in zip(keys, right, strict=True)
        ]
        assert store.write_states(batch) == right
        found, _ = store.read_states([StateRead(key, [b"f", VERSION]) for key in keys])
        assert found == [[b"new", b"2"] if fine else [b"old", b"1"] for fine in right]
        assert store.write_states(batch) == [False] * len(keys)

    def test_empty_values_are_there(self, store: OnlineStore) -> None:
        """A field without bytes is a field; so is an empty version."""
        key = self.namespace() + b"key"
        assert store.write_states([first(key, {b"f": b""}, b"")]) == [True]
        assert read_one(store, key, [b"f", b"g", VERSION]) == [b"", None, b""]
        assert store.write_states([first(key, {b"f": b"2"}, b"2")]) == [False]
        assert store.write_states([change(key, (b"", b"2"), {}, [b"f"])]) == [True]
        assert read_one(store, key, [b"f", VERSION]) == [None, b"2"]

    def test_names_and_values_of_any_bytes(self, store: OnlineStore) -> None:
        """Names of 1 to 64 bytes and values are bytes, whatever they say in some language."""
        space = self.namespace()
        fields = {name: name[::-1] + bytes(range(256)) for name in _NAMES if name != VERSION}
        tails = (b"", b"\0", b"*{a}\r\n", b"\xff\xff", b"\0\x0a", b"v")
        states = {space + tail: fields for tail in tails}
        assert all(store.write_states([first(*item) for item in states.items()]))
        for key in states:
            assert read_one(store, key, list(fields)) == list(fields.values())
        stored = {**fields, VERSION: b"1"}
        assert self.states_behind(store, space) == dict.fromkeys(states, stored)
        some = list(fields)[::2]
        assert store.write_states([change(space, (b"1", b"2"), {}, some)]) == [True]
        left = [None if i % 2 == 0 else value for i, value in enumerate(fields.values())]
        assert read_one(store, space, list(fields)) == left
        assert read_one(store, space + b"v", list(fields)) == list(fields.values())

    def test_changes_that_are_none(self, store: OnlineStore) -> None:
        """What no store could make is refused, before anything of the batch is made."""
        space = self.namespace()
        a, b = space + b"a", space + b"b"
        wrong = [
            [first(b, {}), first(a, {}), first(b, {b"f": b"2"})],
            [first(a, {}), StateChange(b, None, {b"f": b"1"})],
            [first(a, {}), StateChange(b, None, {})],
            [first(a, {}), StateChange(b, None, {VERSION: b"1"}, [b"f", VERSION])],
            [first(a, {}), first(b, {b"": b"1"})],
            [first(a, {}), first(b, {b"f" * 65: b"1"})],
            [first(a, {}), first(space[:7], {})],
        ]
        for batch in wrong:
            assert _refuses(store, batch), batch
        assert self.states_behind(store, space[:7]) == {}

    def test_expiry_of_states_harms_nothing_fresh(self, store: OnlineStore) -> None:
        """Whatever instant comes along, a state that was just changed can be read."""
        space = self.namespace()
        instants = [0, _CENTURY_AHEAD, _CENTURY_AHEAD + 1, (1 << 63) - 1, 1, -1, -(1 << 63)]
        keys = [space + b"%d" % i for i in range(len(instants))]
        for old, new in ((None, b"1"), (b"1", b"2"), (b"2", b"3")):
            instants.reverse()
            batch = [
                change(key, (old, new), {b"f%b" % new: b"1"}, (), instant)
                for key, instant in zip(keys, instants, strict=True)
            ]
            assert store.write_states(batch) == [True] * len(keys)
            found, _ = store.read_states([StateRead(key, [VERSION, b"f1"]) for key in keys])
            assert found == [[new, b"1"]] * len(keys)
        assert store.count(space) == len(keys)


def _refuses(store: OnlineStore, batch: Sequence[StateChange]) -> bool:
    try:
        store.write_states(batch)
    except RequestError as error:
        return error.allowed is not None
    return False
