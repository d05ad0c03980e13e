"""Positions, partitions and shares: what all event streams decide alike."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import RequestError
from featurestore.ports.stream_laws import (
    SEQUENCES,
    accepted_at,
    check_member,
    next_position,
    partition_of,
    placed,
    position_of,
    share,
)
from featurestore.ports.streams import POSITION_BITS

few = settings(max_examples=100, deadline=None)
instants = st.integers(0, (1 << POSITION_BITS >> 12) * 1_000 - 1)


@few
@given(st.lists(instants, min_size=1, max_size=30))
def test_positions_grow_whatever_the_clock_does(clock):
    last, latest = -1, 0
    for now_us in clock:
        position = next_position(last, now_us)
        latest = max(latest, now_us // 1_000)
        assert last < position < 1 << POSITION_BITS
        assert accepted_at(position) == latest * 1_000
        last = position


def test_a_full_millisecond_flows_into_the_next():
    position = -1
    for _ in range(SEQUENCES + 1):
        position = next_position(position, 7_000)
    assert position == position_of(8, 0)


@few
@given(st.sets(st.text(min_size=1, max_size=3), min_size=1, max_size=6), st.integers(1, 9))
def test_members_share_all_partitions(members, partitions):
    shares = [share(member, members, partitions) for member in members]
    assert sorted(number for mine in shares for number in mine) == list(range(partitions))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_who_is_not_known_yet_has_a_share():
    assert share("b", ["a", "c"], 3) == {1}


@few
@given(st.lists(st.binary(max_size=3), max_size=20), st.integers(1, 5), st.integers(0, 99))
def test_each_payload_has_one_place_and_equal_keys_the_same(keys, partitions, any_one):
    payloads = [b"%d" % number for number in range(len(keys))]
    for chosen in (
        placed(payloads, keys, partitions, any_one),
        placed(payloads, None, partitions, any_one),
    ):
        assert sorted(place for places in chosen.values() for place in places) == list(
            range(len(keys))
        )
        assert all(places == sorted(places) and places for places in chosen.values())
        assert all(0 <= number < partitions for number in chosen)
    for number, places in placed(payloads, keys, partitions, any_one).items():
        if partitions > 1:
            assert {partition_of(keys[place], partitions) for place in places} == {number}


def test_a_key_has_the_same_partition_in_every_process():
    code = "from featurestore.ports.stream_laws import partition_of; print(partition_of(b'key', 7))"
    other = subprocess.run(  # noqa: S603 - this interpreter, our own code
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(other.stdout) == partition_of(b"key", 7) == 5


def test_keys_that_differ_in_number_and_names_that_cannot_be_kept():
    with pytest.raises(RequestError, match="differ in number"):
        placed([b"x"], [], 1, 0)
    check_member("g" * 255, "\u00e9" * 127)
    with pytest.raises(RequestError):
        check_member("g" * 256, "m")
