"""Laws T2, T3, K1, K2, J1-J5: the join against the reference, value by value, on generated tables.

Each generated view, with its rows in some commits, is joined in both kinds of knowledge; once with
the tie reduction and, where its instants are unique, once without; with features written in one
range of entity rows and in many.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from featurestore.compile.plan import ViewPlan
from featurestore.compile.request import slot
from featurestore.model.declarations import FeatureSelection
from featurestore.semantics.reference import Knowledge, ReferenceRow, join, newest
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


def write(project: Offline, case: PointInTime, *, unique: bool) -> None:
    project.cover_all(case.view)
    for commit in case.commits:
        project.write(case.view, commit, unique=unique)


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


@given(case=strategies.point_in_time(), ranges=st.sampled_from(["one", "pairs"]))
@settings(_SETTINGS, max_examples=80)
def test_every_value_is_the_reference_s(case: PointInTime, ranges: str) -> None:
    rows = entity_table(case.view, case.entity_rows)
    promises = [False, True] if is_unique(case) else [False]
    event(f"unique: {is_unique(case)}, full ties: {full_ties(case) > 0}")
    for unique in promises:
        with offline() as project:
            project.publish([case.view])
            write(project, case, unique=unique)
            for knowledge in KNOWLEDGE:
                wanted = expected(case, knowledge)
                event(f"{knowledge}, matched: {any(wanted)}")
                cut = _pairs if ranges == "pairs" else retrieval.ranges
                with mock.patch.object(retrieval, "ranges", cut):
                    job = project.reader.get_historical_features(
                        rows,
                        ["view"],
                        knowledge=knowledge,
                        full_feature_names=True,
                        include_timestamps=True,
                    )
                    result = job.to_arrow()
                assert result.select(rows.column_names).equals(rows)
                check(result, "view", case, wanted)
                check_timestamps(result, case.view, wanted)


def check_timestamps(result: pa.Table, view: ViewPlan, wanted: list[ReferenceRow | None]) -> None:
    events = result["view__event_timestamp"].cast(pa.int64()).to_pylist()
    assert events == [None if row is None else row.event for row in wanted]
    declared = view.source.created_timestamp is not None
    created = result["view__created_timestamp"].cast(pa.int64()).to_pylist()
    assert created == [row.created if row is not None and declared else None for row in wanted]


FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "arrow": lambda rows, _: rows,
    "record batch": lambda rows, _: rows.combine_chunks().to_batches()[0],
    "polars": lambda rows, _: pl.from_arrow(rows),
    "polars lazy": lambda rows, _: pl.LazyFrame(pl.from_arrow(rows)),
    "list of dicts": lambda rows, _: rows.to_pylist(),
    "path": lambda rows, folder: pq.write_table(rows, folder / "e.parquet") or folder / "e.parquet",
    "relative path": lambda rows, folder: pq.write_table(rows, folder / "e.parquet") or "e.parquet",
    "query": lambda rows, folder: (
        pq.write_table(rows, folder / "e.parquet")
        or "SELECT * FROM read_parquet('e.parquet') WHERE row >= 0;"
    ),
}


@st.composite
def two_views(draw: st.DrawFn) -> tuple[PointInTime, PointInTime, list[Any]]:
    first = draw(strategies.point_in_time("first"))
    second = draw(strategies.point_in_time("second"))
    rows = min(len(first.entity_rows), len(second.entity_rows))
    # The alias of the first view is asked for by keys in another order, at the same instants.
    other = draw(st.permutations(range(rows)))
    first = replace(first, entity_rows=first.entity_rows[:rows])
    keys = [key for key, _ in second.entity_rows[:rows]]
    at = [instant for _, instant in first.entity_rows]
    second = replace(second, entity_rows=tuple(zip(keys, at, strict=True)))
    asked = [(first.entity_rows[j][0], at[i]) for i, j in enumerate(other)]
    return first, second, asked


@given(views=two_views(), form=st.sampled_from(sorted(FORMS)), knowledge=st.sampled_from(KNOWLEDGE))
@settings(_SETTINGS, max_examples=40)
def test_views_and_aliases_side_by_side_from_any_form_of_entity_rows(
    views: tuple[PointInTime, PointInTime, list[Any]], form: str, knowledge: Knowledge
) -> None:
    first, second, asked = views
    aliased = replace(first, entity_rows=tuple(asked))
    with offline() as project:
        project.publish([first.view, second.view])
        write(project, first, unique=False)
        write(project, second, unique=False)
        rows = entity_table(first.view, first.entity_rows)
        names = {key.name: f"other_{key.name}" for key in first.view.join_keys}
        more = entity_table(first.view, asked, names)
        for name in names.values():
            rows = rows.append_column(name, more[name])
        renamed = {key.name: f"second_{key.name}" for key in second.view.join_keys}
        more = entity_table(second.view, second.entity_rows, renamed)
        for name in renamed.values():
            rows = rows.append_column(name, more[name])
        job = project.reader.get_historical_features(
            FORMS[form](rows, project.folder),
            [
                "first",
                FeatureSelection(view="first", alias_name="other", join_keys=names),
                FeatureSelection(view="second", alias_name="second", join_keys=renamed),
            ],
            knowledge=knowledge,
            full_feature_names=True,
        )
        result = job.to_arrow()
    assert result["row"].to_pylist() == list(range(len(rows)))
    assert result.column_names[: len(rows.column_names)] == rows.column_names
    check(result, "first", first, expected(first, knowledge))
    check(result, "other", aliased, expected(aliased, knowledge))
    check(result, "second", second, expected(second, knowledge))


@given(case=strategies.point_in_time(), data=st.data(), knowledge=st.sampled_from(KNOWLEDGE))
@settings(_SETTINGS, max_examples=30)
def test_a_snapshot_has_every_known_entity_once_and_its_values(
    case: PointInTime, data: st.DataObject, knowledge: Knowledge
) -> None:
    as_of = data.draw(st.sampled_from([at for _, at in case.entity_rows]))
    known = {
        row.key
        for row in case.rows
        if newest([row], [f.type for f in case.view.features], as_of, knowledge)
        and None not in row.key
    }
    with offline() as project:
        project.publish([case.view])
        write(project, case, unique=False)
        job = project.reader.get_snapshot(
            ["view"], as_of=as_of, knowledge=knowledge, full_feature_names=True
        )
        result = job.to_arrow()
    names = [key.name for key in case.view.join_keys]
    assert result.column_names[: len(names) + 1] == [*names, "event_timestamp"]
    keys = [tuple(row[name] for name in names) for row in result.select(names).to_pylist()]
    if not names:
        keys = [()] * len(result)
    assert len(keys) == len(set(keys))
    assert set(keys) == known
    assert keys == sorted(keys)
    assert set(result["event_timestamp"].cast(pa.int64()).to_pylist()) <= {as_of}
    asked = replace(case, entity_rows=tuple((key, as_of) for key in keys))
    check(result, "view", asked, expected(asked, knowledge))
