"""A short soak: processes serve, ingest and materialize while definitions change; nothing fails.

Times are not judged here: `make soak` does that on a machine that has nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks.processes import Usage
from benchmarks.soak.actors import Beat
from benchmarks.soak.checking import LAG_SECONDS, SWITCH_SECONDS, Checker, Row
from benchmarks.soak.repository import AMOUNT
from benchmarks.soak.run import Plan, soak
from benchmarks.soak.watching import SERVER, Growth, Sample, growth_of

MARKED, OTHER = 1_000_000, 7
MIB = 2**20


@pytest.mark.timeout(120)
def test_a_short_soak(tmp_path: Path) -> None:
    beat = Beat(events=100, materialize=1.0, change=2.5)
    plan = Plan(7.0, peak_seconds=0.5, line_seconds=2.0, beat=beat, rate=100.0)
    result = soak(plan, tmp_path)
    checker, counts = result.actors.checker, result.actors.counts
    assert result.failures == {}
    assert checker.said == []
    assert checker.answers > 0
    assert sum(load.requests for _, load in result.lines) > 0
    assert min(counts[n] for n in ("events", "rows pushed", "changes of definitions")) > 0
    assert [found["different"] for found in result.verified] == [0, 0]
    assert min(found["compared"] for found in result.verified) > 0


def row(
    values: Mapping[str, int] | None = None,
    *,
    user: int = MARKED,
    applied: int | None = 20,
    profile: str = "p2",
) -> Row:
    """Return what a user has who has level 5 in edition 2, and two events; or other values."""
    held = {"level": 5, "edition": 2, "scaled": 10, "count_1m": 0, "count_lifetime": 2}
    held |= {"amount_sum_lifetime": 2 * AMOUNT, "total": 10 + 2 + 100, **(values or {})}
    return Row(user, held, dict.fromkeys(held, "PRESENT"), applied, profile)


def told() -> Checker:
    """Return what knows of two events at 10 and 20, and of level 5."""
    checker = Checker([MARKED])
    checker.pushed(MARKED, 10, 1.0)
    checker.pushed(MARKED, 20, 2.0)
    checker.materialized([MARKED], 5, 2.0)
    return checker


LESS = {"count_lifetime": 1, "amount_sum_lifetime": AMOUNT, "total": 111}
MORE = {"count_lifetime": 3, "amount_sum_lifetime": 3 * AMOUNT, "total": 113}
HIGHER = {"level": 6, "scaled": 12, "total": 114}
LOWER = {"level": 4, "scaled": 8, "total": 110}
FORMER = {"edition": 1, "scaled": 5, "total": 107}
# Answers that came one after the other, each a list of rows.
RIGHT: dict[str, list[list[Row]]] = {
    "the answer": [[row(), row(user=OTHER, applied=None)]],
    "an event is not there yet": [[row(LESS, applied=10)]],
    "a worker has not switched yet": [[row(HIGHER)], [row(profile="p1")]],
}
WRONG: dict[str, list[list[Row]]] = {
    "an event is missing": [[row(LESS)]],
    "an event is counted twice": [[row(MORE)]],
    "two aggregates of two states": [[row({"amount_sum_lifetime": AMOUNT})]],
    "two columns of two editions": [[row({"edition": 3})]],
    "two rows of two editions": [[row(), row(FORMER, user=OTHER)]],
    "a fingerprint of two editions": [[row()], [row(FORMER)]],
    "an on-demand value of something else": [[row({"total": 1})]],
    "the stream went back": [[row()], [row(LESS, applied=10)]],
    "a level went back": [[row(HIGHER)], [row()]],
}


def answer(checker: Checker, answers: list[list[Row]], seconds: float = 3.0) -> None:
    """Give answers to lookups that begin so long after all began."""
    for place, rows in enumerate(answers):
        asked = seconds + place / 10
        checker.answered(rows, 100, asked, asked + 0.05)


@pytest.mark.parametrize("case", RIGHT)
def test_right_answers_pass(case: str) -> None:
    checker = told()
    answer(checker, RIGHT[case])
    checker.finish()
    assert checker.said == []


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answers_are_found(case: str) -> None:
    checker = told()
    answer(checker, WRONG[case])
    assert checker.wrong >= 1


def test_an_answer_may_come_before_the_acknowledgement() -> None:
    """It is compared once that is there, or found to be of events that nobody pushed."""
    for pushed, wrong in ((30, 0), (31, 1)):
        checker = told()
        answer(checker, [[row(MORE, applied=30)]])
        assert checker.wrong == 0
        checker.pushed(MARKED, pushed, 3.5)
        checker.finish()
        assert checker.wrong == wrong


def test_what_was_acknowledged_must_come() -> None:
    for rows, seconds in (
        ([row(LESS, applied=10)], LAG_SECONDS),
        ([row(LOWER)], SWITCH_SECONDS),
    ):
        checker = told()
        answer(checker, [rows], 1.9 + seconds)
        assert checker.said == []
        answer(checker, [rows], 2.1 + seconds)
        assert checker.wrong == 1


def test_growth_is_that_of_the_second_half() -> None:
    """What a process takes while it warms up does not count; what it goes on to take does."""

    def growth(
        memory: Callable[[int], int] = lambda _: 100,
        opened: Callable[[int], int] = lambda i: 30 + i % 3,
        threads: Callable[[int], int] = lambda _: 9,
    ) -> Growth:
        held = [Usage(memory(i) * MIB, opened(i), threads(i)) for i in range(40)]
        return growth_of("x", [Sample(10.0 * i, each) for i, each in enumerate(held)], SERVER)

    assert growth(memory=lambda i: min(i, 20) * 10).flat
    assert growth(memory=lambda i: 100 + i).memory == pytest.approx(19 * MIB)
    assert not growth(memory=lambda i: 100 + i).flat
    assert not growth(opened=lambda i: 30 + i // 2).flat
    assert not growth(threads=lambda i: 9 + i // 2).flat
