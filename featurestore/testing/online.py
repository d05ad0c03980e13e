"""The conformance suite of online stores (laws T2, O1, O2, M7).

Subclass `OnlineStoreSuite` under a name that pytest collects, and give it a fixture `store` and the
two methods that look behind the store, so that two equal mistakes in reading and writing cannot
cancel. What is newer is told by the order of a list written by hand, not by the code under test.
Every test keeps to namespaces of its own, so stores may be shared. `online_states` is the other
half of what a store has to pass; `online_machine` goes further.
"""

from __future__ import annotations

import os
import random
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

from featurestore.ports.online import OnlineStore

_FINGERPRINT = b"\x07fp\xff"
_SIGN = 1 << 63
_NULL_CREATED = -_SIGN
_SALT_BYTES = 4
_NOON = 1_700_000_000_000_000
_MANY = 12_345
_JOIN_SECONDS = 60.0
GLOB = (
    b"****",
    b"????",
    b"[a-c",
    b"abc]",
    b"\\abc",
    b"^abc",
    b"a-c*",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
)
PLAIN = (b"aaaa", b"aaab", b"baaa", b"abca", b"\0\0\0\x01", b"\xff\xff\xff\xfe")
"""Halves of namespaces: what patterns are made of, and what such patterns would match."""
_LONG = (470, 479, 495, 502, 503, 504, 511, 512, 600, 5_000)


def packed(
    event: int,
    created: int = _NULL_CREATED,
    payload: bytes = b"\0",
    fingerprint: bytes = _FINGERPRINT,
) -> bytes:
    """Return a packed row as stores see it.

    Args:
        event: Microseconds since the epoch.
        created: The same; by default what stands for null.
        payload: What is behind both.
        fingerprint: 4 bytes.
    """
    return fingerprint + struct.pack(">QQ", event + _SIGN, created + _SIGN) + payload


def ladder() -> list[bytes]:
    """Return packed rows, each newer than the one before it, that differ in every way there is."""
    far = (1 << 63) - 1
    payloads = [b"", b"\0", b"\0\0", b"\0\xff", b"\x01", b"A", b"a", b"\x7f", b"\x80", b"\xc3\xa9"]
    payloads += [b"\xff", b"\xff" * 300 + b"\0", b"\xff" * 300 + b"\x01"]
    rows = [packed(-far - 1), packed(-far, 5), packed(-3_000_000), packed(-1, -2), packed(-1, -1)]
    rows += [packed(-1, 0), packed(0, -1), packed(0, 0), packed(1, -far), packed(1, (1 << 32) - 1)]
    rows += [packed(1, 1 << 32), packed((1 << 32) - 1, far), packed(1 << 32, 0)]
    rows += [packed(_NOON, _NULL_CREATED, payload) for payload in payloads]
    rows += [packed(_NOON, _NOON, payload) for payload in payloads]
    rows += [packed(_NOON + 1), packed(253_402_300_799_999_999, _NOON), packed(far, far)]
    return rows


def fresh_namespace() -> bytes:
    """Return 8 bytes that nobody else uses."""
    return os.urandom(8)


class Namespaces:
    """Gives each test namespaces of its own.

    Attributes:
        used: The namespaces of a test, for who shares a store and cleans up.
    """

    used: Sequence[bytes] = ()

    def namespace(self) -> bytes:
        """Return 8 bytes that nobody else uses."""
        self.used = [*self.used, fresh_namespace()]
        return self.used[-1]


class OnlineStoreSuite(Namespaces, ABC):
    """What every online store does. Tests take the fixture `store`, an `OnlineStore`."""

    @abstractmethod
    def raw_items(self, store: OnlineStore) -> Mapping[bytes, bytes]:
        """Return everything that is stored, read without the store's own code."""

    @abstractmethod
    def raw_put(self, store: OnlineStore, items: Mapping[bytes, bytes]) -> None:
        """Store values without the store's own code."""

    def behind(self, store: OnlineStore, namespace: bytes) -> dict[bytes, bytes]:
        """Return what is stored under a namespace, read without the store's own code."""
        items = self.raw_items(store).items()
        return {key: value for key, value in items if key.startswith(namespace)}

    def test_written_values_stand_there_byte_for_byte(self, store: OnlineStore) -> None:
        """What is written is what is stored, under the very key."""
        space = self.namespace()
        items = {space + bytes([i]): packed(i, payload=bytes(range(256)) * i) for i in range(1, 9)}
        assert store.write(list(items), list(items.values()), None) == len(items)
        assert self.behind(store, space) == items

    def test_reads_find_what_stands_there(self, store: OnlineStore) -> None:
        """A read returns what is stored, whoever stored it."""
        space = self.namespace()
        items = {space + b"%d" % i: packed(i, payload=os.urandom(231)) for i in range(100)}
        self.raw_put(store, items)
        assert store.read(list(items)) == list(items.values())

    def test_reads_keep_order_duplicates_and_gaps(self, store: OnlineStore) -> None:
        """The result has the keys' order, with duplicates, and None for what is not there."""
        space = self.namespace()
        a, b, gap = space + b"a", space + b"b", space + b"c"
        store.write([a, b], [packed(1), packed(2)], None)
        found = store.read([gap, b, a, gap, b, b, space, space + b"aa", a[:-1]])
        assert found == [None, packed(2), packed(1), None, packed(2), packed(2), None, None, None]

    def test_nothing_to_read_or_write(self, store: OnlineStore) -> None:
        """Empty batches are fine and change nothing."""
        space = self.namespace()
        assert store.read([]) == []
        assert store.write([], [], None) == 0
        assert store.write([], [], []) == 0
        assert self.behind(store, space) == {}

    def test_many_keys_at_once(self, store: OnlineStore) -> None:
        """Batches larger than what goes into one command or transaction come back whole."""
        space = self.namespace()
        keys = [space + b"%d" % i for i in range(_MANY)]
        values = [packed(i) for i in range(_MANY)]
        assert store.write(keys, values, None) == _MANY
        assert store.read(keys) == values
        assert store.count(space) == _MANY
        assert store.delete_namespace(space) == _MANY
        assert store.count(space) == 0

    def test_large_values(self, store: OnlineStore) -> None:
        """A value of a megabyte is stored and compared like any other."""
        key = self.namespace() + b"large"
        old, new = (
            packed(1, payload=b"\xff" * (1 << 20)),
            packed(1, payload=b"\xff" * (1 << 20) + b"\0"),
        )
        assert [store.write([key], [value], None) for value in (old, new, old)] == [1, 1, 0]
        assert store.read([key]) == [new]

    def test_of_each_two_values_the_newer_stays(self, store: OnlineStore) -> None:
        """Law T2 for every pair: before 1970, far ahead, later created, ties by the payload."""
        space, rows = self.namespace(), ladder()
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows))]
        keys = [space + b"%d-%d" % pair for pair in pairs]
        assert store.write(keys, [rows[i] for i, _ in pairs], None) == len(pairs)
        won = store.write(keys, [rows[j] for _, j in pairs], None)
        assert won == sum(j > i for i, j in pairs)
        expected = {key: rows[max(pair)] for key, pair in zip(keys, pairs, strict=True)}
        assert self.behind(store, space) == expected
        assert store.read(keys) == list(expected.values())

    def test_cautions_are_sentences(self, store: OnlineStore) -> None:
        assert all(text.endswith(".") and " " in text for text in store.cautions())

    def test_any_order_and_any_number_of_retries(self, store: OnlineStore) -> None:
        """However deliveries are shuffled and repeated, the newest row stays (law O1)."""
        space, rows, shuffled = self.namespace(), ladder(), random.Random(7)  # noqa: S311
        keys = [space + b"%d" % i for i in range(20)]
        deliveries = [shuffled.choices(rows, k=40) for _ in keys]
        newest = [packed(-_SIGN, payload=b"")] * len(keys)  # older than all of them
        for step in zip(*deliveries, strict=True):
            won = store.write(keys, step, None)
            after = [max(pair) for pair in zip(newest, step, strict=True)]
            assert won == sum(a != b for a, b in zip(newest, after, strict=True))
            newest = after
            assert store.read(keys) == newest
        assert store.write(keys, newest, None) == 0
        assert self.behind(store, space) == dict(zip(keys, newest, strict=True))

    def test_the_fingerprint_does_not_order(self, store: OnlineStore) -> None:
        """The first 4 bytes are not compared: neither do they win, nor do they lose."""
        key = self.namespace() + b"key"
        low, high = (packed(5, fingerprint=lead) for lead in (b"\0\0\0\0", b"\xff\xff\xff\xff"))
        newer = packed(6, fingerprint=b"\0\0\0\0")
        assert store.write([key], [low], None) == 1
        assert store.write([key], [high], None) == 0
        assert store.read([key]) == [low]
        assert store.write([key], [newer], None) == 1
        assert store.write([key], [high], None) == 0
        assert store.read([key]) == [newer]

    def test_a_key_that_repeats_in_a_batch(self, store: OnlineStore) -> None:
        """Of one batch the newest value of a key counts, wherever it stands, and counts once."""
        space = self.namespace()
        a, b = space + b"a", space + b"b"
        batch = [(a, 3), (b, 9), (a, 5), (a, 4), (b, 8), (a, 5)]
        keys, values = [key for key, _ in batch], [packed(event) for _, event in batch]
        instants = [_NOON + event for _, event in batch]
        assert store.write(keys, values, instants) == len({a, b})
        assert store.read([a, b]) == [packed(5), packed(9)]
        assert store.write(keys[::-1], values[::-1], instants) == 0
        assert store.write([a, b, a], [packed(6), packed(1), packed(2)], None) == 1
        assert store.read([a, b]) == [packed(6), packed(9)]

    def test_keys_of_any_length(self, store: OnlineStore) -> None:
        """Keys that share all but the last byte are different, however long they are."""
        space = self.namespace()
        items = {
            space + b"k" * length + tail: packed(length, payload=tail)
            for length in _LONG
            for tail in (b"a", b"b")
        }
        assert store.write(list(items), list(items.values()), None) == len(items)
        assert store.read(list(items)) == list(items.values())
        assert store.read([key[:-1] + b"c" for key in items]) == [None] * len(items)
        assert store.write(list(items), list(items.values()), None) == 0
        newer = [packed(1 << 40, payload=key[-1:]) for key in items]
        assert store.write(list(items), newer, None) == len(items)
        assert store.read(list(items)) == newer
        assert store.count(space) == len(items)
        assert store.delete_namespace(space) == len(items)
        assert store.read(list(items)) == [None] * len(items)

    def test_keys_of_any_bytes(self, store: OnlineStore) -> None:
        """Keys are bytes: NULs, line ends, braces and what some languages call patterns."""
        space = self.namespace()
        tails = [bytes([byte]) for byte in range(256)]
        tails += [
            b"",
            b"\0" * 2,
            b"a\0",
            b"a\0b",
            b"{a}",
            b"{}",
            b"}{",
            b"*",
            b"**",
            b"\r\n",
            b"$3",
        ]
        keys = [space + tail for tail in dict.fromkeys(tails)]
        values = [packed(i) for i in range(len(keys))]
        assert store.write(keys, values, None) == len(keys)
        assert self.behind(store, space) == dict(zip(keys, values, strict=True))
        assert store.read(keys) == values
        assert store.count(space) == len(keys)
        assert store.delete_namespace(space) == len(keys)

    def test_deleting_a_namespace_touches_nothing_else(self, store: OnlineStore) -> None:
        """Law M7, with namespaces that are patterns of, neighbours of and inside one another."""
        salt = os.urandom(_SALT_BYTES)
        spaces = [salt + tail for tail in GLOB + PLAIN] + [head + salt for head in GLOB + PLAIN]
        self.used = spaces
        items = {
            space + tail: packed(i)
            for i, space in enumerate(spaces)
            for tail in (b"", b"key", b"\0", b"\xff", spaces[i - 1], spaces[i - 1] + b"key")
        }
        store.write(list(items), list(items.values()), None)
        for space in spaces:
            mine = {key for key in items if key.startswith(space)}
            assert store.count(space) == len(mine)
            assert store.delete_namespace(space) == len(mine)
            for key in mine:
                del items[key]
            left = self.raw_items(store)
            assert {key: left.get(key) for key in items} == items
            assert not mine & left.keys()
            assert store.count(space) == store.delete_namespace(space) == 0

    def test_what_was_deleted_is_forgotten(self, store: OnlineStore) -> None:
        """After a namespace was deleted, an older row may be written again."""
        space = self.namespace()
        store.write([space + b"a"], [packed(9)], None)
        assert store.delete_namespace(space) == 1
        assert store.write([space + b"a"], [packed(1)], None) == 1
        assert store.read([space + b"a"]) == [packed(1)]

    def test_expiry_is_a_hint_that_harms_nothing_fresh(self, store: OnlineStore) -> None:
        """Whatever instant comes along, a value that was just written can be read."""
        space = self.namespace()
        instants = [
            0,
            4_102_444_800_000_000,
            4_102_444_800_000_001,
            (1 << 63) - 1,
            1,
            -1,
            -(1 << 63),
        ]
        keys = [space + b"%d" % i for i in range(len(instants))]
        for event in (1, 2):
            values = [packed(event)] * len(keys)
            assert store.write(keys, values, instants) == len(keys)
            assert store.read(keys) == values
            assert store.write(keys, values, instants[::-1]) == 0
            assert store.write(keys, values, None) == 0
            assert store.read(keys) == values
        assert store.count(space) == len(keys)

    def test_threads_that_write_the_same_keys(self, store: OnlineStore) -> None:
        """Many writers at once end at the newest; readers see whole rows that only get newer."""
        space, writers, versions = self.namespace(), 4, 30
        keys = [space + b"%d" % i for i in range(50)]
        rows = [packed(event, payload=b"%d" % event * 50) for event in range(1, versions + 1)]
        errors: list[BaseException] = []
        wins: list[int] = []

        def write(seed: int) -> None:
            shuffled = random.Random(seed)  # noqa: S311
            for event in shuffled.sample(range(versions), versions):
                some = shuffled.sample(keys, len(keys))
                wins.append(store.write(some, [rows[event]] * len(some), None))

        def look() -> None:
            seen = [b""] * len(keys)
            while seen != [rows[-1]] * len(keys) and not errors:
                found = [value or b"" for value in store.read(keys)]
                assert set(found) <= {b"", *rows}
                assert all(new >= old for new, old in zip(found, seen, strict=True))
                seen = found

        run_together([*(lambda seed=seed: write(seed) for seed in range(writers)), look], errors)
        assert errors == []
        assert set(self.behind(store, space).values()) == {rows[-1]}
        assert len(keys) <= sum(wins) <= len(keys) * versions

    def test_ping(self, store: OnlineStore) -> None:
        """A store that is there says so."""
        store.ping()
        store.ping(timeout=10)


def run_together(jobs: Iterable[Callable[[], None]], errors: list[BaseException]) -> None:
    """Run each job in a thread of its own, and add what they raise to `errors`."""

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  (handed to the test, which fails)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_JOIN_SECONDS)
        if thread.is_alive():
            errors.append(TimeoutError("a thread did not end"))
