"""The arithmetic of windows (law W2), against the law's own words."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.semantics import windows
from featurestore.semantics.windows import DAY, HOUR, MINUTE, SECOND, Window, make_window

STEPS = (1, 7, 1_000, SECOND, MINUTE, 5 * MINUTE, HOUR, DAY)


def _down(instant: int, step: int) -> int:
    return floor(Fraction(instant, step)) * step


@given(
    asked=st.integers(-(10**16), 10**16),
    hop=st.sampled_from(STEPS),
    parts=st.integers(1, 400),
    head_hop=st.sampled_from(STEPS),
    offset=st.integers(-(10**13), 0),
)
def test_w2_bounds_are_those_of_the_law(
    asked: int, hop: int, parts: int, head_hop: int, offset: int
) -> None:
    """floor(q + o - W, h) <= t < floor(q + o, g), the mathematical floor before 1970 as well."""
    size = hop * parts
    tail, head = Window(size, hop, head_hop, offset).bounds(asked)
    assert tail == _down(asked + offset - size, hop)
    assert head == _down(asked + offset, head_hop)
    assert head <= asked


@given(st.lists(st.integers(-(10**16), 10**16), min_size=1, max_size=20))
def test_w2_arrays_are_counted_as_numbers_are(asked: list[int]) -> None:
    """One definition serves single instants and columns of them."""
    window = Window(HOUR, 5 * MINUTE, MINUTE, -DAY)
    tails, heads = window.bounds(np.array(asked, dtype=np.int64))
    assert [(int(t), int(h)) for t, h in zip(tails, heads, strict=True)] == [
        window.bounds(instant) for instant in asked
    ]


def test_w2_lifetime_has_no_tail() -> None:
    """Everything before the instant counts."""
    assert make_window("lifetime").bounds(5) == (None, 5)


@pytest.mark.parametrize(
    ("size", "hop"),
    [
        ("30s", SECOND),
        ("90s", SECOND),
        ("4m", 10 * SECOND),
        ("30m", MINUTE),
        ("1h", MINUTE),
        ("2h", 5 * MINUTE),
        ("1d", HOUR),
        ("11d", HOUR),
        ("24d", DAY),
        ("7d", HOUR),
        ("25s", SECOND),
        ("20s", 1),
        ("1500ms", 1),
        ("100h", HOUR),
        ("300h", HOUR),
    ],
)
def test_w2_the_default_hop(size: str, hop: int) -> None:
    """The largest of the law's steps that divides the window and is at most a 24th of it."""
    window = make_window(size)
    assert window.hop == hop
    assert window.size is not None
    candidates = [SECOND, 10 * SECOND, MINUTE, 5 * MINUTE, HOUR, DAY]
    fitting = [c for c in candidates if window.size % c == 0 and c * 24 <= window.size]
    assert window.hop == max(fitting, default=1)


def test_w2_kinds_of_windows() -> None:
    """Exact sliding, hopping and tumbling windows are the same law with other steps."""
    assert make_window("1h", hop="1us") == Window(HOUR, 1, 1, 0)
    assert make_window("5m", hop="1m", head_hop="1m") == Window(5 * MINUTE, MINUTE, MINUTE, 0)
    assert make_window("1d", hop="1d", head_hop="1d") == Window(DAY, DAY, DAY, 0)
    assert make_window("7d", offset="-3d").offset == -3 * DAY


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"size": "1h", "hop": "7m"}, "does not divide"),
        ({"size": "1h", "hop": "2h"}, "does not divide"),
        ({"size": "1w"}, "'1w' is no window"),
        ({"size": "0s"}, "'0s' is no window"),
        ({"size": "1.5h"}, "no window"),
        ({"size": "-1h"}, "positive"),
        ({"size": "900000d"}, "no window"),
        ({"size": "lifetime", "hop": "1h"}, "no tail"),
        ({"size": "1h", "offset": "3d"}, "cannot end after"),
        ({"size": "1h", "head_hop": "-1m"}, "positive"),
        ({"size": "1h", "hop": "soon"}, "'soon' is no hop"),
    ],
)
def test_a_wrong_window_is_told(arguments: dict[str, str], told: str) -> None:
    """What makes no sense is refused with what would."""
    with pytest.raises(DefinitionError, match=told):
        make_window(**arguments)


@given(st.integers(-(10**6), 10**6), st.integers(1, 1_000))
def test_floor_is_the_mathematical_one(instant: int, step: int) -> None:
    """The last multiple that is not after the instant."""
    found = windows.floor(instant, step)
    assert found % step == 0
    assert found <= instant < found + step
