"""The second half of the suite of states: many, long and large ones, their namespaces, and threads.

For who tests a store it is part of `online_states.OnlineStatesSuite`.
"""

from __future__ import annotations

import os

from featurestore.ports.online import VERSION, OnlineStore, StateChange, StateRead
from featurestore.testing.online import GLOB, PLAIN, packed, run_together
from featurestore.testing.online_state_samples import StatesBehind, change, first, read_one

_SALT_BYTES = 4
_MANY = 3_000
_FIELDS = 5_000
# Keys of so many bytes; LMDB changes its ways where key and field come to 511.
_LONG = (430, 435, 436, 437, 438, 444, 445, 446, 500, 503, 504, 600, 5_000)


class OnlineStatesAtLarge(StatesBehind):
    """States that are many, long, large or wanted by several. Tests take the fixture `store`."""

    def test_keys_and_fields_that_read_alike_in_a_row(self, store: OnlineStore) -> None:
        """Where a key ends and a field begins is never guessed; nor what is a row's key."""
        space = self.namespace()
        text = b"\0\x0cvav\0v\x0av\xff\xffvabv"
        splits = [(text[:i], text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text))]
        states: dict[bytes, dict[bytes, bytes]] = {}
        for head, field in splits:
            states.setdefault(space + head, {VERSION: b"1"})[field] = head + b"|" + field
        for fields in states.values():
            fields[VERSION] = b"1"
        assert all(store.write_states([StateChange(k, None, f) for k, f in states.items()]))
        rows = {space + text[:i] + b"row": packed(i) for i in range(len(text))}
        assert store.write(list(rows), list(rows.values()), None) == len(rows)
        assert self.states_behind(store, space) == states
        reads = [StateRead(key, list(fields)) for key, fields in states.items()]
        assert store.read_states(reads, list(rows)) == (
            [list(fields.values()) for fields in states.values()],
            list(rows.values()),
        )
        assert store.count(space) == len(states) + len(rows)
        assert store.delete_namespace(space) == len(states) + len(rows)

    def test_states_of_long_keys(self, store: OnlineStore) -> None:
        """Keys that share all but the last byte are different states, however long they are."""
        space = self.namespace()
        keys = [space + b"k" * (size - 9) + tail for size in _LONG for tail in (b"a", b"b", b"ab")]
        fields = {b"f": b"1", b"f" * 64: b"2", b"a": b"3"}
        for old, new in ((None, b"1"), (b"1", b"2")):
            batch = [change(key, (old, new), {**fields, b"k": key[-700:] + new}) for key in keys]
            assert store.write_states(batch) == [True] * len(keys)
            assert store.write_states(batch) == [False] * len(keys)
            found, _ = store.read_states([StateRead(key, [*fields, b"k"]) for key in keys])
            assert found == [[*fields.values(), key[-700:] + new] for key in keys]
        nobody = [StateRead(key[:-1] + b"c", [*fields, VERSION]) for key in keys]
        assert store.read_states(nobody)[0] == [[None] * 4] * len(keys)
        assert store.count(space) == len(keys)
        assert store.delete_namespace(space) == len(keys)
        assert store.write_states([first(key, {}) for key in keys]) == [True] * len(keys)
        found, _ = store.read_states([StateRead(key, [VERSION, b"f"]) for key in keys])
        assert found == [[b"1", None]] * len(keys)

    def test_a_state_of_many_fields(self, store: OnlineStore) -> None:
        """Thousands of fields are put, read, changed and deleted at once, and count as one key."""
        space = self.namespace()
        key, beside = space + b"big", space + b"bigger"
        fields = {b"field%d" % i: os.urandom(50 + i % 100) for i in range(_FIELDS)}
        assert store.write_states([first(key, fields), first(beside, {b"f": b"1"})]) == [True, True]
        assert read_one(store, key, list(fields)) == list(fields.values())
        assert store.count(space) == 2
        assert store.write_states([change(key, (b"1", b"2"), {b"field7": b"new"})]) == [True]
        changed = {**fields, b"field7": b"new"}
        assert read_one(store, key, list(fields)) == list(changed.values())
        gone = list(fields)[3:]
        assert store.write_states([change(key, (b"1", b"3"), {}, gone)]) == [False]
        assert self.states_behind(store, space)[key] == {**changed, VERSION: b"2"}
        assert store.write_states([change(key, (b"2", b"3"), {}, gone)]) == [True]
        kept = {name: fields[name] for name in list(fields)[:3]}
        assert self.states_behind(store, space)[key] == {**kept, VERSION: b"3"}
        assert read_one(store, beside, [b"f"]) == [b"1"]
        assert store.delete_namespace(space) == 2

    def test_many_states_at_once(self, store: OnlineStore) -> None:
        """Batches larger than what goes into one command or round trip come back whole."""
        space = self.namespace()
        keys = [space + b"%d" % i for i in range(_MANY)]
        value = os.urandom(3_500)
        batch = [first(key, {b"f": key + value, b"g": key}) for key in keys]
        assert store.write_states(batch) == [True] * _MANY
        found, _ = store.read_states([StateRead(key, [b"g", b"f"]) for key in keys])
        assert found == [[key, key + value] for key in keys]
        assert store.count(space) == _MANY
        assert store.delete_namespace(space) == _MANY
        assert store.count(space) == 0

    def test_large_fields(self, store: OnlineStore) -> None:
        """Values of 50 kB, and one of a megabyte, are fields like any other."""
        space = self.namespace()
        keys = [space + b"%d" % i for i in range(12)]
        sizes = (0, 1, 50_000, 1 << 20)
        fields = {b"size%d" % size: os.urandom(size) for size in sizes}
        assert all(store.write_states([first(key, fields) for key in keys]))
        found, _ = store.read_states([StateRead(key, list(fields)) for key in keys])
        assert found == [list(fields.values())] * len(keys)

    def test_deleting_a_namespace_of_rows_and_states(self, store: OnlineStore) -> None:
        """Law M7, with namespaces that are patterns of, neighbours of and inside one another."""
        salt = os.urandom(_SALT_BYTES)
        spaces = [salt + tail for tail in GLOB + PLAIN] + [head + salt for head in GLOB + PLAIN]
        self.used = spaces
        tails = (b"", b"key", b"\0", b"\xff")
        states = {s + tail: {VERSION: b"1", s: tail} for s in spaces for tail in tails}
        rows = {space + b"row": packed(i) for i, space in enumerate(spaces)}
        store.write_states([StateChange(key, None, fields) for key, fields in states.items()])
        store.write(list(rows), list(rows.values()), None)
        for space in spaces:
            assert store.count(space) == store.delete_namespace(space) == len(tails) + 1
            assert store.count(space) == store.delete_namespace(space) == 0
            assert store.read([space + b"row"]) == [None]
            del rows[space + b"row"]
            for tail in tails:
                del states[space + tail]
                assert read_one(store, space + tail, [VERSION, space]) == [None, None]
            left = self.raw_states(store)
            assert {key: dict(left[key]) for key in states} == states
            assert not any(key.startswith(space) for key in left)
            assert store.read(list(rows)) == list(rows.values())

    def test_a_deleted_state_is_forgotten(self, store: OnlineStore) -> None:
        """After a namespace was deleted, a state begins anew, without its old fields."""
        key = self.namespace() + b"a"
        store.write_states([first(key, {b"f": b"1"})])
        assert store.delete_namespace(key[:8]) == 1
        assert store.write_states([change(key, (b"1", b"2"), {b"g": b"2"})]) == [False]
        assert store.write_states([first(key, {b"g": b"2"})]) == [True]
        assert read_one(store, key, [b"f", b"g"]) == [None, b"2"]

    def test_a_read_is_of_one_moment(self, store: OnlineStore) -> None:
        """While many fields change at once, nobody sees some of before and some of after."""
        key, rounds = self.namespace() + b"key", 150
        names = [b"f%d" % i for i in range(30)]
        errors: list[BaseException] = []

        def write() -> None:
            for i in range(rounds):
                old = None if i == 0 else b"%d" % (i - 1)
                new = b"%d" % i
                # Every other time one half of the fields is there, and the other half is not.
                half, rest = names[: i % 2 * 15], names[i % 2 * 15 :]
                made = store.write_states([change(key, (old, new), dict.fromkeys(rest, new), half)])
                assert made == [True]

        def look() -> None:
            seen = -1
            while seen != rounds - 1 and not errors:
                version, *values = read_one(store, key, [VERSION, *names])
                number = -1 if version is None else int(version)
                assert number >= seen
                seen = number
                gone = 30 if number < 0 else number % 2 * 15
                assert values == [None] * gone + [version] * (30 - gone)

        run_together([write, look, look], errors)
        assert errors == []

    def test_threads_that_change_the_same_states(self, store: OnlineStore) -> None:
        """Of changes of one version one is made; who lost reads again, and no count is lost."""
        space, threads, steps = self.namespace(), 4, 25
        keys = [space + b"%d" % i for i in range(5)]
        errors: list[BaseException] = []

        def count_up() -> None:
            left = dict.fromkeys(keys, steps)
            while left and not errors:
                found, _ = store.read_states([StateRead(key, [VERSION, b"sum"]) for key in left])
                batch = [
                    change(key, (old, os.urandom(8)), {b"sum": b"%d" % (int(total or b"0") + 1)})
                    for key, (old, total) in zip(left, found, strict=True)
                ]
                for one, made in zip(batch, store.write_states(batch), strict=True):
                    left[one.key] -= made
                left = {key: rest for key, rest in left.items() if rest}

        run_together([count_up] * threads, errors)
        assert errors == []
        sums = [fields[b"sum"] for fields in self.states_behind(store, space).values()]
        assert sums == [b"%d" % (threads * steps)] * len(keys)
