"""Hypothesis strategies for views, rows and entity rows where the laws are most easily broken.

Instants come from a small grid, so that ties, corrections, the edges of a ttl and rows at the very
instant of an entity row happen all the time; keys and values come from small sets of awkward ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from hypothesis import strategies as st

from featurestore.compile.plan import Column, FeaturePlan, SourcePlan, ViewPlan
from featurestore.dtypes import KEY_SCALARS, SCALARS, DType, parse
from featurestore.semantics.reference import ReferenceRow
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, to_datetime

HOUR_US = 3_600_000_000
_START = 1_700_000_000_000_000
_NAN = float("nan")
_VALUES: dict[str, list[Any]] = {
    "bool": [False, True],
    "int32": [0, -1, 7, -(2**31), 2**31 - 1],
    "int64": [0, -1, 2**53 + 1, -(2**63), 2**63 - 1],
    "float32": [0.0, -0.0, 1.5, _NAN, float("inf"), 2.0**-149],
    "float64": [0.0, -0.0, 0.1, _NAN, float("-inf"), 5e-324],
    "string": ["", "a", "a|b", "é\u0301", "日本", "A"],
    "bytes": [b"", b"\x00", b"\x00\xff", b"a"],
    "date": [date(1970, 1, 1), date(1, 1, 1), date(9999, 12, 31), date(1969, 12, 31)],
    "timestamp": [0, -1, _START, MIN_INSTANT, MAX_INSTANT],
}
_KEYS: dict[str, list[Any]] = {
    "bool": [False, True],
    "int32": [0, 1, -(2**31)],
    "int64": [0, 1, -1, 2**63 - 1],
    "string": ["", "1", "12", "é"],
    "bytes": [b"", b"\x00", b"\x00\x00"],
    "date": [date(1970, 1, 1), date(1, 1, 1), date(2024, 2, 29)],
    "timestamp": [0, -1, MAX_INSTANT],
}


def instants() -> st.SearchStrategy[int]:
    """Instants on a grid of hours and half hours, a microsecond beside it, and the ends of time."""
    grid = st.builds(
        lambda hours, off: _START + hours * HOUR_US // 2 + off,
        st.integers(0, 6),
        st.sampled_from([0, 0, 0, -1, 1]),
    )
    past = st.builds(lambda hours: -hours * HOUR_US - 1, st.integers(0, 3))
    ends = st.sampled_from([MIN_INSTANT, MAX_INSTANT, MIN_INSTANT + HOUR_US, MAX_INSTANT - 1])
    return st.one_of(grid, grid, grid, grid, past, ends)


def dtypes() -> st.SearchStrategy[DType]:
    """Every value type: scalars, lists, vectors and maps."""
    scalars = st.sampled_from(SCALARS).map(parse)
    lists = st.sampled_from(SCALARS).map(lambda name: parse(f"list<{name}>"))
    vectors = st.sampled_from(["vector<float32, 3>", "vector<float64, 2>"]).map(parse)
    maps = st.tuples(st.sampled_from(KEY_SCALARS), st.sampled_from(SCALARS)).map(
        lambda names: parse(f"map<{', '.join(names)}>")
    )
    return st.one_of(scalars, scalars, lists, vectors, maps)


def values(dtype: DType) -> st.SearchStrategy[Any]:
    """Values of a type, null among them; instants are aware datetimes, maps are dicts."""
    items = _scalars(dtype.scalar)
    if dtype.container == "vector":
        return st.none() | st.lists(items, min_size=dtype.length, max_size=dtype.length)
    if dtype.container == "list":
        return st.none() | st.lists(st.none() | items, max_size=3)
    if dtype.container == "map":
        keys = _scalars(dtype.key)
        return st.none() | st.dictionaries(keys, st.none() | items, max_size=3)
    return st.none() | items


def _scalars(scalar: str) -> st.SearchStrategy[Any]:
    items = st.sampled_from(_VALUES[scalar])
    return items.map(to_datetime) if scalar == "timestamp" else items


def key_values(dtype: DType) -> st.SearchStrategy[Any]:
    """Values of a join key from a very small set; now and then null."""
    allowed = _KEYS[dtype.scalar]
    if dtype.scalar == "timestamp":
        allowed = [to_datetime(value) for value in allowed]
    return st.sampled_from([*allowed, *allowed, *allowed, None])


def ttls() -> st.SearchStrategy[int | None]:
    """No ttl, an hour or so exactly on the grid, a microsecond, and the longest there is."""
    longest = timedelta.max // timedelta(microseconds=1)
    return st.sampled_from([None, None, HOUR_US, HOUR_US // 2, 1, HOUR_US + 1, longest])


@st.composite
def view_plans(draw: st.DrawFn, name: str = "view") -> ViewPlan:
    """Compiled views: composite keys, all value types, with and without `created_timestamp`.

    Args:
        draw: Hypothesis' own.
        name: The view's name; its keys are called `key_0` and so on.
    """
    keys = draw(st.lists(st.sampled_from(KEY_SCALARS), max_size=2))
    features = draw(st.lists(dtypes(), min_size=1, max_size=3))
    created = draw(st.booleans())
    return ViewPlan(
        name=name,
        entities=("entity",) if keys else (),
        join_keys=tuple(Column(name=f"key_{i}", dtype=key) for i, key in enumerate(keys)),
        features=tuple(
            FeaturePlan(name=f"feature_{i}", dtype=str(dtype)) for i, dtype in enumerate(features)
        ),
        source=SourcePlan(
            name="source",
            kind="parquet",
            path="source.parquet",
            event_timestamp="event_timestamp",
            created_timestamp="created_timestamp" if created else None,
        ),
        ttl_us=draw(ttls()),
        fingerprint="0123456789abcdef",
        table_fingerprint="0123456789abcdef",
    )


@dataclass(frozen=True)
class PointInTime:
    """A view, its rows as they were committed one after the other, and entity rows.

    Attributes:
        commits: Rows of the view: late ones, corrections, ties, full ties, null keys.
        entity_rows: (key, instant); duplicates, null keys and unknown keys included.
    """

    view: ViewPlan
    commits: tuple[tuple[ReferenceRow, ...], ...]
    entity_rows: tuple[tuple[tuple[Any, ...], int], ...]

    @property
    def rows(self) -> list[ReferenceRow]:
        """All rows of the table."""
        return [row for commit in self.commits for row in commit]


@st.composite
def point_in_time(draw: st.DrawFn, name: str = "view") -> PointInTime:
    """Everything that a point-in-time join is about, from a few keys and a few instants.

    Args:
        draw: Hypothesis' own.
        name: The view's name.
    """
    view = draw(view_plans(name))
    keys = st.tuples(*(key_values(key.type) for key in view.join_keys))
    pool = st.sampled_from(draw(st.lists(keys, min_size=1, max_size=3)))
    when = st.sampled_from(draw(st.lists(instants(), min_size=1, max_size=4)))
    rows = _rows(view, pool, when)
    commits = draw(st.lists(st.lists(rows, min_size=1, max_size=8), max_size=3))
    asked_keys = st.one_of(pool, pool, pool, keys)
    asked = st.lists(st.tuples(asked_keys, _beside(when, view.ttl_us)), min_size=1, max_size=10)
    return PointInTime(view, tuple(tuple(part) for part in commits), tuple(draw(asked)))


def _rows(
    view: ViewPlan, keys: st.SearchStrategy[Any], when: st.SearchStrategy[int]
) -> st.SearchStrategy[ReferenceRow]:
    features = st.tuples(*(values(feature.type) for feature in view.features))
    declared = view.source.created_timestamp is not None

    def row(key: Any, event: int, created: int | None, held: Any) -> ReferenceRow:
        return ReferenceRow(key, event, created if declared else event, held)

    return st.builds(row, keys, when, st.one_of(when, when, when, st.none()), features)


def _beside(when: st.SearchStrategy[int], ttl: int | None) -> st.SearchStrategy[int]:
    """Instants of rows, those at the end of their ttl, and a microsecond before and after."""
    ages = [0, 0, HOUR_US] if ttl is None else [0, ttl, ttl]

    def instant(event: int, age: int, off: int) -> int:
        return max(MIN_INSTANT, min(MAX_INSTANT, event + age + off))

    return st.builds(instant, when, st.sampled_from(ages), st.sampled_from([0, 0, -1, 1]))
