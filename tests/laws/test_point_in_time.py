"""Laws T2, T3, K1, K2, J1-J5: the join against the reference, value by value, on generated tables.

Each generated view, with its rows in some commits, is joined in both kinds of knowledge; once with
the tie reduction and, where its instants are unique, once without; with features written in one
range of entity rows and in many.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from featurestore.compile.request import slot
from featurestore.errors import NaiveTimestampError
from featurestore.model.declarations import FeatureSelection
from featurestore.semantics.reference import Knowledge, ReferenceRow, join
from featurestore.semantics.timeline import to_datetime
from featurestore.services import retrieval
from featurestore.testing import strategies
from featurestore.testing.strategies import PointInTime
from tests.offline import Offline, entity_table, same_bits

KNOWLEDGE: tuple[Knowledge, Knowledge] = ("healed", "known")
_SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@contextlib.contextmanager
def offline() -> Iterator[Offline]:
    folder = Path(tempfile.mkdtemp(prefix="point-in-time-"))
    try:
        yield Offline(folder, delta=False)
    finally:
        shutil.rmtree(folder)


def expected(case: PointInTime, knowledge: Knowledge) -> list[ReferenceRow | None]:
    return join(
        case.rows,
        [key.type for key in case.view.join_keys],
        [feature.type for feature in case.view.features],
        case.entity_rows,
        ttl=case.view.ttl_us,
        knowledge=knowledge,
    )


def check(
    result: pa.Table, alias: str, case: PointInTime, wanted: list[ReferenceRow | None]
) -> None:
    for i, feature in enumerate(case.view.features):
        column = result[slot(alias, feature.name)]
        assert column.type.equals(feature.type.arrow, check_metadata=True)
        for found, row in zip(column.to_pylist(), wanted, strict=True):
            value = None if row is None else row.values[i]
            assert same_bits(found, value, feature.type), (feature, found, value)


def _pairs(rows: int, *_: int) -> list[tuple[int, int]]:
    return [(first, min(first + 2, rows)) for first in range(0, rows, 2)]


def full_ties(case: PointInTime) -> int:
    places = [(repr(row.key), row.event, row.created) for row in case.rows]
    return len(places) - len(set(places))


def is_unique(case: PointInTime) -> bool:
    places = [(repr(row.key), row.event) for row in case.rows]
    return len(set(places)) == len(places)


@given(case=strategies.point_in_time(), by_row=st.booleans())
@settings(_SETTINGS, max_examples=80)
def test_every_value_is_the_reference_s(case: PointInTime, by_row: bool) -> None:
    rows = entity_table(case.view, case.entity_rows)
    promises = [False, True] if is_unique(case) else [False]
    event(f"unique: {is_unique(case)}, full ties: {full_ties(case) > 0}")
    references = [f"view:{feature.name}" for feature in case.view.features]
    for unique in promises:
        with offline() as project:
            project.publish([case.view])
            project.cover_all(case.view)
            for commit in case.commits:
                if commit:
                    project.write(case.view, commit, unique=unique)
            for knowledge in KNOWLEDGE:
                wanted = expected(case, knowledge)
                event(f"{knowledge}, matched: {any(wanted)}")
                with mock.patch.object(retrieval, "ranges", _pairs if by_row else retrieval.ranges):
                    job = project.reader.get_historical_features(
                        rows,
                        references,
                        knowledge=knowledge,
                        full_feature_names=True,
                        include_timestamps=True,
                    )
                    result = job.to_arrow()
                assert result.select(rows.column_names).equals(rows)
                check(result, "view", case, wanted)
                events = result["view__event_timestamp"].to_pylist()
                assert events == [None if r is None else to_datetime(r.event) for r in wanted]
                if case.view.source.created_timestamp is not None:
                    created = result["view__created_timestamp"].to_pylist()
                    assert created == [
                        None if r is None or r.created is None else to_datetime(r.created)
                        for r in wanted
                    ]
