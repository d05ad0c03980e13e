"""What docs/semantics.md decides beside the laws, on a real repository."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurestore import FeatureStore
from featurestore.clock import FixedClock, SystemClock
from featurestore.semantics.timeline import to_datetime, to_instant
from tests.conformance.repository import CaseView, Repository

DAY = datetime(2024, 1, 1, tzinfo=UTC)
NOW = DAY + timedelta(days=30)


def _repository(folder: Path, online: str = "memory:", **changes: Any) -> Repository:
    made = Repository(folder, online)
    made.store = FeatureStore(folder, clock=FixedClock(to_instant(NOW)))
    arguments: dict[str, Any] = {"join_keys": {"k": "int64"}, "features": {"x": "int64"}}
    made.define(CaseView(name="v", **{**arguments, **changes}))
    return made


def _row(key: int, day: float, value: int, created: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"k": key, "event_timestamp": DAY + timedelta(days=day), "x": value}
    if created is not None:
        row["created"] = DAY + timedelta(days=created)
    return row


def _fill(made: Repository, *rows: dict[str, Any]) -> None:
    made.append(made.views["v"], list(rows), rewrite=False)
    made.store.apply()
    made.store.materialize_incremental()


def _offline(made: Repository, key: int, day: float, knowledge: Any = "healed") -> Any:
    asked = pl.DataFrame({"k": [key], "event_timestamp": [DAY + timedelta(days=day)]})
    job = made.store.get_historical_features(asked, ["v:x"], knowledge=knowledge)
    return job.to_polars()["x"][0]


def _online(made: Repository, key: int) -> tuple[Any, str]:
    answer = made.store.get_online_features(["v:x"], {"k": [key]})
    return answer.to_dict()["x"][0], str(answer.statuses["x"][0])


@pytest.mark.parametrize("day", [0.5, 1, 1.5, 2.5])
def test_without_created_timestamp_known_is_healed(tmp_path: Path, day: float):
    made = _repository(tmp_path)
    _fill(made, _row(1, 1, 10), _row(1, 2, 20))
    assert _offline(made, 1, day, "known") == _offline(made, 1, day, "healed")


def test_a_null_created_timestamp_is_never_known_and_before_all(tmp_path: Path):
    made = _repository(tmp_path, created=True)
    _fill(made, _row(1, 1, 10), _row(1, 1, 5, created=1), _row(2, 1, 20))
    assert _offline(made, 2, 29, "known") is None
    assert _offline(made, 2, 29) == 20
    assert _offline(made, 1, 29) == _offline(made, 1, 29, "known") == 5
    assert _online(made, 1) == (5, "PRESENT")


@pytest.mark.parametrize("order", list(permutations((10, -10, 3))))
def test_full_ties_are_settled_alike_whatever_the_order(tmp_path: Path, order: tuple[int, ...]):
    made = _repository(tmp_path)
    for value in order:
        _fill(made, _row(1, 1, value))
    # The canonical bytes of -10 are the largest: little-endian two's complement.
    assert _offline(made, 1, 2) == _online(made, 1)[0] == max((10, -10, 3), key=_bytes)


def _bytes(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def test_what_was_accepted_stays_when_its_file_is_deleted(tmp_path: Path):
    made = _repository(tmp_path)
    _fill(made, _row(1, 1, 10))
    (tmp_path / "sources" / "v" / "part-1.parquet").unlink()
    _fill(made, _row(2, 1, 20))
    assert _offline(made, 1, 2) == 10
    assert _online(made, 1) == (10, "PRESENT")


def test_a_rewritten_value_without_created_timestamp_ties_with_the_former(tmp_path: Path):
    made = _repository(tmp_path)
    _fill(made, _row(1, 1, 20))
    (tmp_path / "sources" / "v" / "part-1.parquet").unlink()
    made.append(made.views["v"], [_row(1, 1, 10)], rewrite=False)
    report = made.store.materialize_incremental()
    assert report.views[0].rows_tied == 2
    assert _offline(made, 1, 2) == _online(made, 1)[0] == 20


def test_a_rewritten_value_with_a_later_created_timestamp_wins(tmp_path: Path):
    made = _repository(tmp_path, created=True)
    _fill(made, _row(1, 1, 20, created=1))
    _fill(made, _row(1, 1, 10, created=3))
    assert _offline(made, 1, 2, "known") == 20
    assert _offline(made, 1, 3, "known") == _offline(made, 1, 2) == _online(made, 1)[0] == 10


def test_redis_keeps_expired_values_so_that_they_are_told_expired(tmp_path: Path, valkey: Any):
    made = _repository(tmp_path, valkey.url, ttl_us=3_600_000_000)
    now = to_datetime(SystemClock().now_us())
    made.store = FeatureStore(tmp_path)
    rows = [
        {"k": 1, "event_timestamp": now - timedelta(minutes=1), "x": 1},
        {"k": 2, "event_timestamp": now - timedelta(hours=2), "x": 2},
        # Longer ago than its ttl and online.gc_grace_hours together; the push is what counts.
        {"k": 3, "event_timestamp": now - timedelta(hours=1 + 168 + 1), "x": 3},
    ]
    _fill(made, *rows)
    try:
        assert _online(made, 1) == (1, "PRESENT")
        assert _online(made, 2) == (None, "OUTSIDE_MAX_AGE")
        assert _online(made, 3) == (None, "OUTSIDE_MAX_AGE")
        assert _online(made, 4) == (None, "NOT_FOUND")
    finally:
        made.store.teardown()
