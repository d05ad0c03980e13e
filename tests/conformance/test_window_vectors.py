"""`vectors/windows.json` through the public API: as training sets, and online in every store.

Offline each case is asked by every plan of the kernel, at once and in the smallest pieces. Online
its events come in files and over a stream, shuffled, doubled and split at random.
"""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.clock import FixedClock
from featurestore.semantics.windowing import PLANS
from featurestore.services.window_retrieval import Budget
from tests.conformance.repository import BEGINNING, END, instant
from tests.conformance.window_cases import CASES, INSTANT, KEY, events_table, same, write

_BUDGETS = [*(Budget(10_000, 10_000, plan) for plan in PLANS), Budget(1, 100), Budget(100, 1)]


def _check(case: dict[str, Any], knowledge: str, result: pa.Table) -> None:
    for i in range(len(case["aggregations"])):
        got = result[f"f{i}"].to_pylist(maps_as_pydicts="strict")
        wanted = [row[i] for row in case["expected"][knowledge]]
        assert len(got) == len(wanted)
        assert all(map(same, got, wanted)), (case["aggregations"][i], got, wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_offline_values_are_those_of_the_vectors(case: dict[str, Any], tmp_path: Path) -> None:
    write([case], tmp_path)
    asked: list[datetime | None] = [instant(us) for us in case["queries_us"]]
    rows = pa.table({"key": [KEY] * len(asked), "event_timestamp": pa.array(asked, INSTANT)})
    with FeatureStore(tmp_path) as store:
        store.apply()
        store.materialize(BEGINNING, END)
        for knowledge in case["expected"]:
            for budget in _BUDGETS:
                with mock.patch.object(Budget, "of", return_value=budget):
                    job = store.get_historical_features(rows, [case["id"]], knowledge=knowledge)
                    _check(case, knowledge, job.to_arrow())


def _deliveries(case: dict[str, Any], seed: int) -> list[pa.Table]:
    """Return the events of a case in parts, shuffled, some of them more than once."""
    rng = random.Random(seed)  # noqa: S311
    table = events_table(case)
    order = [*range(table.num_rows), *rng.choices(range(table.num_rows), k=table.num_rows)]
    rng.shuffle(order)
    parts = rng.randint(1, 4)
    return [table.take(order[part::parts]) for part in range(parts) if order[part::parts]]


def _ask(store: FeatureStore, case: dict[str, Any]) -> None:
    wanted = case["expected"]["healed"]
    features = [f"{case['id']}:f{i}" for i in range(len(case["aggregations"]))]
    for us, expected in zip(case["queries_us"], wanted, strict=True):
        got = store.get_online_features(features, {"key": [KEY]}, as_of=instant(us)).to_dict()
        found = [got[f"f{i}"][0] for i in range(len(expected))]
        assert all(map(same, found, expected)), (case["id"], us, found, expected)


def _clock() -> FixedClock:
    # What lies before the reach of the first question may be dropped; nothing else may.
    return FixedClock(min(us for case in CASES for us in case["queries_us"]))


def test_online_values_are_those_of_the_vectors(online_url: str, tmp_path: Path) -> None:
    """From files that come one after the other."""
    write(CASES, tmp_path, online_url)
    with FeatureStore(tmp_path, clock=_clock()) as store:
        store.apply()
        deliveries = {case["id"]: _deliveries(case, 1) for case in CASES}
        for number in range(max(map(len, deliveries.values()))):
            for name, parts in deliveries.items():
                pq.write_table(parts[number % len(parts)], tmp_path / f"{name}.parquet")
            store.materialize(BEGINNING, END)
        for case in CASES:
            _ask(store, case)


def test_streamed_values_are_those_of_the_vectors(online_url: str, tmp_path: Path) -> None:
    """Pushed in parts, each taken by another ingest process."""
    write(CASES, tmp_path, online_url, stream=f"memory:{tmp_path.name}")
    with FeatureStore(tmp_path, clock=_clock()) as store:
        store.apply()
        store.materialize_incremental()
        for case in CASES:
            source = f"live_{case['id']}"
            for number, part in enumerate(_deliveries(case, 2)):
                store.push(source, part)
                worker = store.services.ingestor("vectors").worker(source, str(number))
                try:
                    while worker.step():
                        pass
                finally:
                    worker.close()
            _ask(store, case)
