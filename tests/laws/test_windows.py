"""Laws W1-W6, J1, J4, K2 of training sets: every plan gives the reference's bits, on made cases.

Instants lie on the edges of hops and tiles and around 1970; events tie, come twice, late, corrected
in time or deleted; inputs are null, NaN, huge and tiny. The kernel alone is tried on more cases
than the whole way through files and the engine.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from featurestore.compile.aggregates import spec_of, with_default
from featurestore.semantics.reference_windows import Knowledge, live
from featurestore.semantics.windowing import (
    PLANS,
    Plan,
    Queries,
    SortedEvents,
    WindowFeature,
    WindowJoin,
)
from featurestore.services.window_retrieval import Budget
from tests import windowed
from tests.offline import Offline, entity_table
from tests.windowed import APPROXIMATE, Case, differences, make_case

KNOWLEDGE: tuple[Knowledge, Knowledge] = ("healed", "known")


def checked(case: Case, result: pa.Table, knowledge: Knowledge) -> None:
    for i, feature in enumerate(case.view.features):
        column = result[feature.name]
        assert column.type.equals(feature.type.arrow, check_metadata=True)
        plan = case.view.aggregates[i]
        if plan.function not in APPROXIMATE:
            wrong = differences(column, case.expected(i, knowledge), feature.dtype)
            assert not wrong, (plan, wrong[:3], [case.asked[row] for row, *_ in wrong[:3]])


# -- the kernel alone


def kernel(case: Case, plan: Plan, pieces: int) -> dict[str, pa.Array]:
    """Run the kernel on the events that are live in the end."""
    events = [
        (key, e) for key in (1, 2, 3) for e in live(case._events(case.view.aggregates[0], key), 0)
    ]
    found = {(row.key, row.id, windowed.rank(case.view, row)): row for row in case.rows}
    rows = [found[key, event.id, event.rank] for key, event in events]
    rows.sort(key=lambda row: (row.key, row.instant, row.id.encode()))
    features = [
        WindowFeature(spec_of(case.view, p), p.window, p.input, p.by) for p in case.view.aggregates
    ]
    keyed = [(key, instant) for (key,), instant in case.asked if key is not None]
    queries = Queries(*(np.array(side, dtype=np.int64) for side in zip(*keyed, strict=True)))
    join = WindowJoin(features, queries, plan)
    step = max(1, len(rows) // pieces)
    cuts = [i for i in range(0, len(rows), step) if not i or _differ(rows[i - 1], rows[i])]
    for first, last in itertools.pairwise([*cuts, len(rows)]):
        join.add(sorted_events(case, rows[first:last]), alone=len(cuts) == 1)
    return dict(zip((f.name for f in case.view.features), join.finish(), strict=True))


def _differ(before: windowed.Row, after: windowed.Row) -> bool:
    return (before.key, before.instant) != (after.key, after.instant)


def sorted_events(case: Case, rows: list[windowed.Row]) -> SortedEvents:
    return SortedEvents(
        np.array([row.key for row in rows], dtype=np.int64),
        np.array([row.instant for row in rows], dtype=np.int64),
        [
            pa.array([row.values[i] for row in rows], each.type.arrow)
            for i, each in enumerate(case.view.inputs)
        ],
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_gives_the_reference_s_bits_by_every_plan(seed: int) -> None:
    case = make_case(seed)
    keyed = [row for row, ((key,), _) in enumerate(case.asked) if key is not None]
    first: dict[str, pa.Array] | None = None
    for plan in PLANS:
        for pieces in (1, 4):
            found = kernel(case, plan, pieces)
            first = first or found
            for i, feature in enumerate(case.view.features):
                column = with_default(found[feature.name], case.view.aggregates[i])
                if case.view.aggregates[i].function in APPROXIMATE:
                    assert column.equals(with_default(first[feature.name], case.view.aggregates[i]))
                    continue
                expected = case.expected(i, "healed")
                wrong = differences(column, [expected[row] for row in keyed], feature.dtype)
                assert not wrong, (plan, case.view.aggregates[i], wrong[:3])


# -- through files and the engine


def results(case: Case, knowledge: Knowledge) -> list[pa.Table]:
    """Return the training set by every plan, at once and in small pieces."""
    folder = Path(tempfile.mkdtemp(prefix="windows-"))
    try:
        project = Offline(folder, delta=False)
        project.publish([case.view])
        project.cover_all(case.view)
        log = case.log
        for part in (log[::2], log[1::2]):
            if part:
                project.write(case.view.log, part, unique=False, period="%Y")
        rows = entity_table(case.view, case.asked)
        found = []
        budgets = [Budget(10_000, 10_000, plan) for plan in PLANS]
        budgets += [Budget(5, 3), Budget(1, 100)]
        for threads, budget in enumerate(budgets):
            project.engine._threads = 1 + threads % 2
            with mock.patch.object(Budget, "of", return_value=budget):
                job = project.reader.get_historical_features(rows, ["view"], knowledge=knowledge)
                found.append(job.to_arrow())
            assert found[-1].select(rows.column_names).equals(rows)
        return found
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
@pytest.mark.parametrize("seed", range(1000, 1007))
def test_a_training_set_has_the_reference_s_bits_by_every_plan(
    seed: int, knowledge: Knowledge
) -> None:
    case = make_case(seed)
    first, *others = results(case, knowledge)
    checked(case, first, knowledge)
    for other in others:
        assert other.equals(first)
