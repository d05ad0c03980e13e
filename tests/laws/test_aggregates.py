"""Laws W4, W5, W6 on the algebra of aggregates: exact, order-free, canonical, and right.

What is right is said a second time here, in plain loops over Python values with fractions. Values,
instants and keys are drawn on small grids, so that ties, nulls and cancellation come up often.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dtypes import DType, parse
from featurestore.errors import DataError, DefinitionError, RequestError
from featurestore.semantics.aggregates import FUNCTIONS, AggregateSpec, Events, algebra
from featurestore.semantics.aggregates.distinct import _linear_counts
from featurestore.semantics.aggregates.rounding import ratio

_SETTINGS = settings(deadline=None, max_examples=10)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.1, 2.5, 3.0, 1e16, -1e16, 5e-324, -5e-324, 1.7e308, -1.7e308]
_FLOATS += [1e-300, 2.0**31, 1 / 3, 123456.789]
_ODD = [math.inf, -math.inf, math.nan]
_GRIDS: dict[str, list[Any]] = {
    "bool": [True, False],
    "int32": [0, 1, -1, 2, 3, 7, 2**31 - 1, -(2**31)],
    "int64": [0, 1, -1, 2, 3, 10**12, -(2**40), 2**53 + 1, 2**58, -(2**58)],
    "float32": [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 3.0, float(np.float32(0.1)), 2.0**-149, 2.0**127],
    "float64": _FLOATS,
    "string": ["a", "b", "", "ä", "bb", "\U0001f600", "z"],
    "bytes": [b"", b"\0", b"a", b"\xff", b"ab"],
    "date": [date(1970, 1, 1), date(1969, 12, 31), date(2024, 2, 29)],
    "timestamp": [_EPOCH, _EPOCH - timedelta(microseconds=1), _EPOCH + timedelta(days=20_000)],
}
_NUMBERS = ("int32", "int64", "float32", "float64")
_NUMERIC = ("sum", "mean", "variance", "stddev", "skew", "kurtosis", "approx_quantile")
_K = ("first_k", "last_k", "first_distinct", "last_distinct", "top_k", "bottom_k")
_SINGLE = tuple(f for f in FUNCTIONS if f not in _K and f != "histogram")


def spec_of(function: str, dtype: str | None, by: str | None = None, **more: Any) -> AggregateSpec:
    """Return a checked spec; k is 2 where one is needed."""
    if function in _K:
        more.setdefault("k", 2)
    kind = None if dtype is None else parse(dtype)
    spec = AggregateSpec(function, kind, by=None if by is None else parse(by), **more)
    spec.check()
    return spec


def _specs() -> list[AggregateSpec]:
    specs = [spec_of("count", None), spec_of("count", None, by="string")]
    for function in FUNCTIONS:
        scalars = _NUMBERS if function in _NUMERIC else tuple(_GRIDS)
        if function == "histogram":
            scalars = tuple(s for s in scalars if not s.startswith("float"))
        specs += [spec_of(function, scalar) for scalar in scalars]
        specs.append(spec_of(function, f"list<{scalars[-1]}>"))
        specs.append(spec_of(function, f"list<{scalars[0]}>"))
    for function in _SINGLE:
        specs += [spec_of(function, "float64", by="string"), spec_of(function, "int64", by="date")]
        specs += [spec_of(function, "map<string, float64>"), spec_of(function, "map<int64, int32>")]
        specs.append(spec_of(function, "list<float64>", by="bool"))
        specs.append(spec_of(function, "list<int32>", element_wise=True))
        if "count" not in function:
            specs.append(spec_of(function, "vector<float64, 2>", element_wise=True))
    specs += [spec_of("count_distinct", "string", limit=2), spec_of("histogram", "string", k=2)]
    specs += [spec_of("approx_quantile", "float64", quantile=0.9, relative_error=0.1)]
    specs += [spec_of("count", "vector<float32, 2>"), spec_of("sum", "vector<float32, 2>")]
    return specs


SPECS = _specs()


def name(spec: AggregateSpec) -> str:
    """Return a spec as the name of a test."""
    parts = [spec.function, str(spec.dtype), f"by {spec.by}" if spec.by else ""]
    parts += ["each" if spec.element_wise else ""]
    parts += [f"{n} {v}" for n in ("k", "limit", "quantile") if (v := getattr(spec, n)) is not None]
    return " ".join(part for part in parts if part)


# What is right, in plain words ---------------------------------------------------------------


Row = tuple[int, bytes, Any, Any]


def expected(spec: AggregateSpec, rows: Sequence[Row]) -> Any:
    """Return the result over rows (instant, id, value, key), as Arrow gives it to Python."""
    rows = sorted(rows, key=lambda row: row[:2])
    dtype = spec.dtype
    if spec.by is not None:
        keys = sorted({row[3] for row in rows if row[3] is not None}, key=order)
        return _map(replace(spec, by=None), [(k, [r for r in rows if r[3] == k]) for k in keys])
    if dtype is not None and dtype.container == "map":
        keys = sorted({key for row in rows for key, _ in row[2] or []}, key=order)
        found = [
            (k, [(*r[:2], dict(r[2])[k], None) for r in rows if k in dict(r[2] or [])])
            for k in keys
        ]
        return _map(replace(spec, dtype=dtype.item), found)
    if spec.element_wise and dtype is not None:
        return _each(spec, dtype, [row for row in rows if row[2] is not None])
    if dtype is not None and dtype.container:
        items = [item for row in rows for item in row[2] or []]
        return single(replace(spec, dtype=dtype.item), items)
    return single(spec, [row[2] for row in rows])


def _map(spec: AggregateSpec, groups: list[tuple[Any, list[Row]]]) -> list[tuple[Any, Any]]:
    def seen(rows: list[Row]) -> Any:
        return expected(replace(spec, function="count"), rows)

    return [(key, expected(spec, rows)) for key, rows in groups if seen(rows)]


def _each(spec: AggregateSpec, dtype: DType, rows: list[Row]) -> list[Any] | None:
    if not rows:
        return None
    inner = replace(spec, dtype=dtype.item, element_wise=False)
    results = [
        single(inner, [row[2][i] for row in rows if i < len(row[2])])
        for i in range(max(len(row[2]) for row in rows))
    ]
    return None if dtype.container == "vector" and None in results else results


def order(value: Any) -> Any:
    """Return what a value is ordered by: texts by their bytes, which is by code points."""
    return value.encode() if isinstance(value, str) else value


def single(spec: AggregateSpec, values: Sequence[Any]) -> Any:  # noqa: PLR0911
    """Return the result over plain values, in order of time."""
    function = spec.function
    if spec.dtype is None:
        return len(values)
    values = [v for v in values if v is not None and not (isinstance(v, float) and math.isnan(v))]
    if function == "count":
        return len(values)
    if function in {"first", "last"}:
        return (values[0] if function == "first" else values[-1]) if values else None
    if function in {"first_k", "last_k"}:
        return (values if function == "first_k" else values[::-1])[: spec.k]
    values = [0.0 if v == 0 and isinstance(v, float) else v for v in values]
    if function in {"first_distinct", "last_distinct"}:
        ordered = values if function == "first_distinct" else values[::-1]
        return list(dict.fromkeys(ordered))[: spec.k]
    ranked = sorted(values, key=order)
    if function in {"top_k", "bottom_k"}:
        return (ranked if function == "bottom_k" else ranked[::-1])[: spec.k]
    if function in {"min", "max"}:
        return (ranked[0] if function == "min" else ranked[-1]) if values else None
    if function == "histogram":
        counts = sorted(Counter(values).items(), key=lambda pair: order(pair[0]))
        return sorted(counts, key=lambda p: -p[1])[: spec.k] if spec.k else counts
    if "distinct" in function:
        return min(len(set(values)), spec.limit or len(values))
    return _moment(spec, ranked)


def _moment(spec: AggregateSpec, values: Sequence[Any]) -> Any:
    if not values:
        return None
    function = spec.function
    if function == "approx_quantile":
        quantile = 0.5 if spec.quantile is None else spec.quantile
        return values[math.floor(quantile * (len(values) - 1))]
    infinities = {v for v in values if isinstance(v, float) and math.isinf(v)}
    if infinities:
        return infinities.pop() if function in {"sum", "mean"} and len(infinities) == 1 else None
    exact = [Fraction(v) for v in values]
    n, total = len(values), sum(exact)
    if function == "sum":
        return int(total) if spec.result.scalar == "int64" else rounded(total)
    if function == "mean":
        return rounded(total / n)
    return _spread(function, exact, total / n)


def _spread(function: str, exact: Sequence[Fraction], mean: Fraction) -> float | None:
    n = len(exact)
    m2, m3, m4 = (sum((x - mean) ** power for x in exact) / n for power in (2, 3, 4))
    if function in {"variance", "stddev"}:
        return rounded(m2) if function == "variance" else math.sqrt(rounded(m2))
    if n < (3 if function == "skew" else 4) or not m2:
        return None
    # Both are the same at any scale; at this one nothing overflows.
    scale = Fraction(2) ** ((m2.numerator.bit_length() - m2.denominator.bit_length()) // 2)
    d2 = rounded(m2 / scale**2)
    if function == "skew":
        return rounded(m3 / scale**3) / (d2 * math.sqrt(d2))
    return rounded(m4 / scale**4) / (d2 * d2) - 3.0


def rounded(value: Fraction) -> float:
    """Return the nearest double, infinite where it is too large."""
    return ratio(value.numerator, value.denominator)


def same(spec: AggregateSpec, got: Any, wanted: Any) -> bool:
    """Return whether two results are equal, bit for bit, or near enough for a quantile."""
    if isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        return len(got) == len(wanted) and all(map(lambda g, w: same(spec, g, w), got, wanted))
    if isinstance(wanted, float) and isinstance(got, float):
        if spec.function == "approx_quantile":
            return _is_near(got, wanted, spec.relative_error or 0.01)
        return got.hex() == wanted.hex()
    if spec.function == "approx_quantile" and isinstance(wanted, int) and isinstance(got, float):
        return _is_near(got, wanted, 0.01)
    return type(got) is type(wanted) and bool(got == wanted)


def _is_near(got: float, wanted: float, error: float) -> bool:
    return got == wanted or abs(Fraction(got) - Fraction(wanted)) <= error * abs(Fraction(wanted))


# Drawing -------------------------------------------------------------------------------------


def values_of(dtype: DType | None) -> st.SearchStrategy[Any]:
    """Draw values of a type, nulls among them."""
    if dtype is None:
        return st.none()
    grid = _GRIDS[dtype.scalar]
    odd = _ODD if dtype.scalar.startswith("float") else []
    item: st.SearchStrategy[Any] = st.sampled_from(grid + odd)
    if dtype.container == "vector":
        vectors: st.SearchStrategy[Any] = st.lists(
            item, min_size=dtype.length, max_size=dtype.length
        )
        return st.none() | vectors
    item = st.none() | item
    if dtype.container == "list":
        return st.none() | st.lists(item, max_size=3)
    if dtype.container == "map":
        keys = st.sampled_from(_GRIDS[dtype.key][:4])
        return st.none() | st.dictionaries(keys, item, max_size=3).map(lambda d: list(d.items()))
    return item


def rows_of(spec: AggregateSpec, most: int = 14) -> st.SearchStrategy[list[Row]]:
    """Draw events with instants on a grid and distinct ids."""
    keys = st.none() if spec.by is None else st.none() | st.sampled_from(_GRIDS[spec.by.scalar])
    row = st.tuples(st.sampled_from([-1, 0, 1, 5]), values_of(spec.dtype), keys)
    rows = st.lists(row, max_size=most)
    return rows.map(
        lambda rs: [(t, f"{i * 7 % 16:x}".encode(), v, k) for i, (t, v, k) in enumerate(rs)]
    )


def lift(spec: AggregateSpec, rows: Sequence[Row], *, ids: bool = True) -> Any:
    """Return the states of rows."""
    values = None if spec.dtype is None else pa.array([r[2] for r in rows], spec.dtype.arrow)
    by = None if spec.by is None else pa.array([r[3] for r in rows], spec.by.arrow)
    instants = np.array([row[0] for row in rows], dtype=np.int64)
    return algebra(spec).lift(Events(instants, [r[1] for r in rows] if ids else None, values, by))


def ranges(*pairs: tuple[int, int]) -> tuple[Any, Any]:
    """Return ranges as `merge` takes them."""
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()


def results(spec: AggregateSpec, states: Any) -> list[Any]:
    """Return the results of states; their type is checked."""
    array = algebra(spec).finalize(spec, states)
    array.validate(full=True)
    assert array.type.equals(spec.result.arrow, check_metadata=True)
    return list(array.to_pylist())


def whole(states: Any) -> bytes:
    """Return the bytes of all states merged."""
    (data,) = states.merge(*ranges((0, len(states)))).encode()
    return bytes(data)


# The laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_w5_results_are_those_of_plain_loops_whatever_the_plan(spec: AggregateSpec):
    @given(rows_of(spec), st.data())
    @_SETTINGS
    def check(rows: list[Row], data: st.DataObject) -> None:
        rows = sorted(rows, key=lambda row: row[:2])
        n = len(rows)
        place = st.integers(0, n)
        drawn = data.draw(st.lists(st.tuples(place, place), max_size=4))
        pairs = [(0, n), (n, n), *drawn]
        wanted = [expected(spec, rows[a:b]) for a, b in pairs]
        for ids in (True, False):
            states = lift(spec, rows, ids=ids)
            for plan in ("frames", "prefix", "auto"):
                got = results(spec, states.merge(*ranges(*pairs), plan))
                assert all(map(lambda g, w: same(spec, g, w), got, wanted)), (plan, got, wanted)

    check()


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_w5_any_order_and_any_tree_give_the_same_bytes(spec: AggregateSpec):
    @given(rows_of(spec), st.randoms(use_true_random=False))
    @_SETTINGS
    def check(rows: list[Row], rng: random.Random) -> None:
        wanted = lift(spec, rows).merge(*ranges((0, len(rows))), "frames")
        bytes_wanted = wanted.encode()
        shuffled = rng.sample(rows, len(rows))
        states = _grown(spec, shuffled, rng)
        assert states.encode() == bytes_wanted
        # NaN never is a result, so equality is bit for bit but for the sign of zero.
        assert repr(results(spec, states)) == repr(results(spec, wanted))

    check()


def _grown(spec: AggregateSpec, rows: list[Row], rng: random.Random) -> Any:
    """Return one state of all rows, merged in a tree of chance, parts of it through bytes."""
    ops = algebra(spec)
    parts = [ops.decode([b""])]
    start = 0
    while start < len(rows):
        stop = start + rng.randint(1, 4)
        lifted = lift(spec, rows[start:stop])
        parts.append(lifted.merge(*ranges((0, len(lifted))), rng.choice(["frames", "prefix"])))
        start = stop
    while len(parts) > 1:
        rng.shuffle(parts)
        some = [parts.pop() for _ in range(min(len(parts), rng.randint(2, 3)))]
        merged = ops.concat(some).merge(*ranges((0, len(some))), rng.choice(["frames", "prefix"]))
        if rng.random() < 0.5:
            data = merged.encode()
            merged = ops.decode(data)
            assert merged.encode() == data
        parts.append(merged)
    return parts[0]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_w5_zero_changes_nothing_and_has_no_bytes(spec: AggregateSpec):
    ops = algebra(spec)
    zero = ops.decode([b"", b""])
    assert zero.encode() == zero.merge(*ranges((0, 0), (0, 2))).encode() == [b"", b""]
    assert len(ops.concat([])) == len(ops.decode([])) == len(lift(spec, [])) == 0
    assert results(spec, lift(spec, [])) == []
    null: Row = (0, b"n", None, None)
    if spec.dtype is not None or spec.by is not None:
        assert lift(spec, [null]).encode() == [b""]
    wanted = expected(spec, [])
    assert results(spec, zero) == [wanted, wanted]
    nothing = {"list": [], "map": [], "": 0 if "count" in spec.function else None}
    assert wanted == (None if spec.element_wise else nothing[spec.result.container])


@pytest.mark.parametrize(
    ("function", "shape"),
    [(f, shape) for f in FUNCTIONS for shape in ("scalar", "list")] + [(f, "by") for f in _SINGLE],
)
def test_w5_running_states_of_long_ranges_equal_frames(function: str, shape: str):
    rng = random.Random(f"{function} {shape}")  # noqa: S311
    dtype = "list<int64>" if shape == "list" else "int64"
    spec = spec_of(function, dtype, by="string" if shape == "by" else None)
    n = 1500

    def value() -> Any:
        item = rng.choice([None, *range(-20, 20)])
        return [item, rng.randint(0, 5)] if shape == "list" else item

    rows = [(i // 3, b"%05d" % i, value(), rng.choice(["a", "b", "c", None])) for i in range(n)]
    cuts = [(rng.randint(0, n), rng.randint(0, n)) for _ in range(30)]
    pairs = [(min(cut), max(cut)) for cut in cuts]
    states = lift(spec, rows)
    frames = states.merge(*ranges(*pairs), "frames").encode()
    assert frames == states.merge(*ranges(*pairs), "prefix").encode()
    assert frames == states.merge(*ranges(*pairs)).encode()
    unnamed = lift(spec, rows, ids=False).merge(*ranges(*pairs))
    assert results(spec, unnamed) == results(spec, algebra(spec).decode(frames))


# Exact sums ----------------------------------------------------------------------------------


def _doubles(rng: np.random.Generator, kind: str, n: int) -> Any:
    few = {
        "cancelling": [1.0, -1.0, 0.5, -0.5, 2.0**70, -(2.0**70), 0.0],
        "far apart": [1e300, -1e300, 1e-300, 1.0, 5e-324],
        "tiny": [5e-324, 5e-324 * 2.0**20, -5e-324 * 2.0**52],
    }
    if kind in few:
        return rng.choice(few[kind], n) * (1 if kind == "cancelling" else rng.integers(0, 50, n))
    whole = rng.uniform(-1, 1, n)
    return {
        "usual": rng.lognormal(3, 2, n) * np.sign(whole),
        "cents": np.rint(whole * 1e6) / 100,
        "huge": whole * 1.7e308,
        "everything": np.ldexp(whole, rng.integers(-1074, 1024, n)),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["usual", "cents", "cancelling", "tiny", "huge", "far apart", "everything"]
)
@pytest.mark.parametrize("plan", ["frames", "prefix"])
def test_w5_moments_of_many_ranges_are_exact_and_rounded_once(kind: str, plan: Any):
    rng = np.random.default_rng(7)
    values = _doubles(rng, kind, 300)
    rows: list[Row] = [(i, b"%d" % i, value, None) for i, value in enumerate(values.tolist())]
    starts = rng.integers(0, 300, 60)
    ends = np.minimum(starts + rng.integers(0, 30, 60), 300)
    for function in ("sum", "mean", "variance", "stddev", "skew", "kurtosis"):
        spec = spec_of(function, "float64")
        merged = lift(spec, rows).merge(starts, ends, plan)
        got = results(spec, merged)
        pairs = zip(starts.tolist(), ends.tolist(), strict=True)
        wanted = [single(spec, values[a:b].tolist()) for a, b in pairs]
        assert list(map(repr, got)) == list(map(repr, wanted))
        # A few states are rounded one by one, many in columns: the same doubles.
        few = [results(spec, merged.take(np.array([i])))[0] for i in range(len(got))]
        assert list(map(repr, few)) == list(map(repr, got))


def test_w5_sums_are_those_of_fsum():
    rng = np.random.default_rng(3)
    spec = spec_of("sum", "float64")
    for kind in ("usual", "cents", "tiny", "far apart"):
        values = _doubles(rng, kind, 2000)
        rows: list[Row] = [(i, b"", value, None) for i, value in enumerate(values.tolist())]
        states = lift(spec, rows, ids=False).merge(*ranges((0, 2000), (1, 1000)))
        assert results(spec, states) == [math.fsum(values), math.fsum(values[1:1000])]


@pytest.mark.parametrize(
    ("values", "total", "mean"),
    [
        ([1e16, 1.0, -1e16], 1.0, 1 / 3),
        ([1.7e308, 1.7e308], math.inf, 1.7e308),
        ([-1.7e308, -1.7e308, 1.0], -math.inf, -1.7e308 / 3 * 2),
        ([5e-324, 5e-324, 0.0], 1e-323, 5e-324),
        ([5e-324, 0.0], 5e-324, 0.0),
        ([-0.0, -0.0], 0.0, 0.0),
        ([1.0, -1.0], 0.0, 0.0),
        ([math.inf, 1.0], math.inf, math.inf),
        ([math.inf, -math.inf], None, None),
        ([math.nan, None], None, None),
    ],
)
def test_w5_w6_sums_and_means_at_the_edges(values: list[Any], total: Any, mean: Any):
    rows: list[Row] = [(0, b"%d" % i, value, None) for i, value in enumerate(values)]
    for function, wanted in (("sum", total), ("mean", mean)):
        spec = spec_of(function, "float64")
        (got,) = results(spec, lift(spec, rows).merge(*ranges((0, len(rows)))))
        assert repr(got) == repr(wanted)


@pytest.mark.parametrize("value", [0.1, -1.7e308, 5e-324, 3.0])
def test_w5_sums_of_very_many_equal_values_stay_exact(value: float):
    """Merging a state with itself 40 times makes 2**40 values of one: digits must be carried."""
    for function in ("sum", "mean", "variance", "stddev"):
        spec = spec_of(function, "float64")
        states = lift(spec, [(0, b"", value, None), (1, b"", -2.5, None)])
        ones = states.merge(*ranges((0, 2)))
        for _ in range(40):
            ones = algebra(spec).concat([ones, ones]).merge(*ranges((0, 2)))
        single_state = results(spec, states.merge(*ranges((0, 2))))
        total = 2**40 * (Fraction(value) + Fraction(-2.5))
        wanted = [rounded(total)] if function == "sum" else single_state
        assert results(spec, ones) == wanted
        assert results(replace(spec, function="count"), ones) == [2**41]
        again = algebra(spec).decode(ones.encode())
        assert again.encode() == ones.encode()


@pytest.mark.parametrize("values", [[2**63 - 1, 1], [-(2**63), -1], [2**62] * 2, [2**63 - 1] * 70])
def test_an_integer_sum_outside_of_64_bits_is_refused(values: list[int]):
    spec = spec_of("sum", "int64")
    states = lift(spec, [(0, b"%d" % i, value, None) for i, value in enumerate(values)])
    with pytest.raises(DataError, match="does not fit 64 bits") as caught:
        results(spec, states.merge(*ranges((0, len(values)))))
    assert caught.value.got == str(sum(values))
    assert "CAST" in str(caught.value)
    assert results(replace(spec, function="mean"), states.merge(*ranges((0, len(values)))))


@pytest.mark.parametrize(
    "values", [[2**63 - 1], [-(2**63)], [2**63 - 1, -(2**63)], [2**62, 2**62 - 1]]
)
def test_an_integer_sum_within_64_bits_is_exact(values: list[int]):
    spec = spec_of("sum", "int64")
    states = lift(spec, [(0, b"%d" % i, value, None) for i, value in enumerate(values)])
    merged = states.merge(*ranges((0, len(values))))
    assert results(spec, merged) == results(spec, algebra(spec).decode(merged.encode()))
    assert results(spec, merged) == [sum(values)]


# Order and equality --------------------------------------------------------------------------


def test_w4_equal_instants_are_settled_by_the_id_whatever_the_order():
    rows: list[Row] = [
        (0, b"b", "second", None),
        (0, b"a", "first", None),
        (-1, b"z", "zeroth", None),
    ]
    for function, wanted in (("first", "zeroth"), ("last", "second")):
        spec = spec_of(function, "string")
        for order_of_rows in (rows, rows[::-1]):
            assert results(spec, lift(spec, order_of_rows).merge(*ranges((0, 3)))) == [wanted]


def test_w4_items_of_a_list_follow_each_other():
    rows: list[Row] = [(0, b"b", [3, None, 4], None), (0, b"a", [1, 2], None)]
    spec = spec_of("last_k", "list<int64>", k=3)
    assert results(spec, lift(spec, rows).merge(*ranges((0, 2)))) == [[4, 3, 2]]


def test_zero_has_one_sign_where_values_are_compared_and_two_where_they_are_not():
    rows: list[Row] = [(0, b"a", -0.0, None), (1, b"b", 0.0, None)]
    for function, wanted in [
        ("first", "[-0.0]"),
        ("last", "[0.0]"),
        ("min", "[0.0]"),
        ("max", "[0.0]"),
        ("count_distinct", "[1]"),
        ("approx_count_distinct", "[1]"),
        ("last_distinct", "[[0.0]]"),
        ("top_k", "[[0.0, 0.0]]"),
        ("approx_quantile", "[0.0]"),
    ]:
        spec = spec_of(function, "float64")
        assert repr(results(spec, lift(spec, rows).merge(*ranges((0, 2))))) == wanted


def test_states_without_ids_are_not_encoded_where_order_counts():
    rows: list[Row] = [(0, b"a", 1, None)]
    states = lift(spec_of("last", "int64"), rows, ids=False)
    with pytest.raises(RequestError, match="without ids"):
        states.encode()
    with pytest.raises(RequestError, match="with ids and without"):
        algebra(spec_of("last", "int64")).concat([states, lift(spec_of("last", "int64"), rows)])
    assert lift(spec_of("max", "int64"), rows, ids=False).encode()


# Sketches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["usual", "cents", "huge", "everything"])
def test_a_quantile_is_within_its_relative_error(error: float, kind: str):
    values = _doubles(np.random.default_rng(11), kind, 1001)
    values = np.where(np.abs(values) < 2.0**-1022, 0.0, values)
    rows: list[Row] = [(0, b"%d" % i, value, None) for i, value in enumerate(values.tolist())]
    ranked = np.sort(values)
    for quantile in (0.0, 0.001, 0.25, 0.5, 0.75, 0.999, 1.0):
        spec = spec_of("approx_quantile", "float64", quantile=quantile, relative_error=error)
        (got,) = results(spec, lift(spec, rows).merge(*ranges((0, 1001))))
        assert _is_near(got, float(ranked[math.floor(quantile * 1000)]), error)


def test_a_bucket_of_a_quantile_is_nowhere_too_wide():
    """At both ends of many buckets: there the error is largest."""
    spec = spec_of("approx_quantile", "float64", relative_error=0.02)
    edges = [2.0**e * (1 + j / 25) for e in (-1022, -1, 0, 52, 1023) for j in range(25)]
    values = [v for edge in edges for v in (math.nextafter(edge, 0), edge, -edge)]
    values = [v for v in values if abs(v) >= 2.0**-1022]
    states = lift(spec, [(0, b"", value, None) for value in values], ids=False)
    got = results(spec, states)
    assert all(_is_near(g, w, 0.02) for g, w in zip(got, values, strict=True))


@pytest.mark.parametrize("distinct", [0, 1, 5, 50, 1_000, 8_000, 9_000, 60_000])
def test_the_approximate_number_of_distinct_values_is_near(distinct: int):
    spec = spec_of("approx_count_distinct", "int64")
    instants = np.arange(2 * distinct, dtype=np.int64)
    values = pa.array(np.concatenate([np.arange(distinct)] * 2) * 977)
    states = algebra(spec).lift(Events(instants, None, values))
    (got,) = results(spec, states.merge(*ranges((0, 2 * distinct))))
    assert abs(got - distinct) <= (0 if distinct <= 50 else 0.05 * distinct)


def test_equal_numbers_of_other_widths_are_the_same_distinct_values():
    data = []
    for kind in ("int32", "int64", "float32", "float64"):
        spec = spec_of("approx_count_distinct", kind)
        rows: list[Row] = [(0, b"%d" % i, value, None) for i, value in enumerate([1, 2, 1])]
        data.append(whole(lift(spec, rows)))
    assert data[0] == data[1]
    assert data[2] == data[3]


def test_no_count_of_the_table_of_logarithms_hangs_on_a_last_bit():
    distances = [
        abs(4096 * math.log(4096 / (4096 - filled)) % 1 - 0.5) for filled in range(1, 4096)
    ]
    assert min(distances) > 1e-6
    assert _linear_counts()[:4].tolist() == [0, 1, 2, 3]


# Definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (AggregateSpec("averag", parse("int64")), "no aggregate function"),
        (AggregateSpec("sum"), "needs a column"),
        (AggregateSpec("sum", parse("string")), "does not fit"),
        (AggregateSpec("sum", parse("bool")), "does not fit"),
        (AggregateSpec("mean", parse("timestamp")), "does not fit"),
        (AggregateSpec("approx_quantile", parse("date")), "does not fit"),
        (AggregateSpec("histogram", parse("float64")), "does not fit"),
        (AggregateSpec("last_k", parse("int64")), "needs k"),
        (AggregateSpec("last_k", parse("int64"), k=0), "k of 'last_k' is not right"),
        (AggregateSpec("last_k", parse("int64"), k=True), "k of 'last_k' is not right"),
        (AggregateSpec("sum", parse("int64"), k=3), "takes no k"),
        (AggregateSpec("sum", parse("int64"), limit=3), "takes no limit"),
        (AggregateSpec("sum", parse("int64"), quantile=0.5), "takes no quantile"),
        (AggregateSpec("approx_quantile", parse("int64"), quantile=1.5), "quantile of"),
        (AggregateSpec("approx_quantile", parse("int64"), relative_error=0.0), "relative_error of"),
        (AggregateSpec("sum", parse("int64"), by=parse("float64")), "second-level key"),
        (AggregateSpec("sum", parse("int64"), by=parse("list<string>")), "second-level key"),
        (AggregateSpec("sum", parse("map<string, int64>"), by=parse("string")), "would nest"),
        (AggregateSpec("last_k", parse("int64"), by=parse("string"), k=1), "would nest"),
        (AggregateSpec("histogram", parse("map<string, int64>")), "would nest"),
        (AggregateSpec("top_k", parse("list<int64>"), k=2, element_wise=True), "would nest"),
        (AggregateSpec("sum", parse("int64"), element_wise=True), "position by position"),
        (AggregateSpec("count", element_wise=True), "position by position"),
        (AggregateSpec("sum", parse("list<int64>"), by=parse("int64"), element_wise=True), "nest"),
        (AggregateSpec("count", parse("vector<float32, 2>"), element_wise=True), "whole numbers"),
    ],
)
def test_a_definition_that_makes_no_sense_is_refused(spec: AggregateSpec, words: str):
    with pytest.raises(DefinitionError, match=words):
        spec.check()


def test_a_near_miss_is_told():
    with pytest.raises(DefinitionError, match="Did you mean 'stddev'"):
        AggregateSpec("std_dev", parse("int64")).check()


@pytest.mark.parametrize(
    ("functions", "dtype"),
    [
        (("count", "sum", "mean"), "float64"),
        (("variance", "stddev"), "int32"),
        (("sum", "mean"), "list<int64>"),
    ],
)
def test_functions_that_need_the_same_share_states(functions: tuple[str, ...], dtype: str):
    specs = [spec_of(function, dtype) for function in functions]
    assert len({spec.state for spec in specs}) == 1
    assert len({id(algebra(spec)) for spec in specs}) == 1
    assert specs[0].state.state == specs[0].state


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_a_state_is_its_own_state_and_other_quantiles_share_it(spec: AggregateSpec):
    assert spec.state.state == spec.state
    assert hash(spec.state) == hash(replace(spec.state))
    assert algebra(spec) is algebra(spec.state)


def test_quantiles_of_one_sketch_and_histograms_of_one_count_share_states():
    quantile = spec_of("approx_quantile", "float64", quantile=0.1)
    assert quantile.state == spec_of("approx_quantile", "float64", relative_error=0.01).state
    assert spec_of("histogram", "string", k=3).state == spec_of("histogram", "string").state
    assert spec_of("last", "string").state == spec_of("last_k", "string", k=1).state


def test_declaring_an_aggregate_loads_nothing_heavy():
    code = (
        "import sys; from featurestore.semantics.aggregates import AggregateSpec, Events, algebra;"
        "print(sorted({'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    assert run.stdout.strip() == "[]"


# Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_bytes_that_are_cut_short_are_refused(spec: AggregateSpec):
    rows = [(i, b"id%d" % i, v, k) for i, (v, k) in enumerate(_some(spec))]
    data = whole(lift(spec, rows))
    assert len(data) > 1
    for size in range(1, len(data)):
        with pytest.raises(DataError, match="damaged"):
            algebra(spec).decode([data[:size]])


def _some(spec: AggregateSpec) -> list[tuple[Any, Any]]:
    """Return a few values, and keys."""
    dtype = spec.dtype
    key = None if spec.by is None else _GRIDS[spec.by.scalar][0]
    if dtype is None:
        return [(None, key)] * 3
    items = _GRIDS[dtype.scalar][:2]
    shapes: dict[str, list[Any]] = {"": items, "list": [items], "vector": [items]}
    shapes["map"] = [list(zip(_GRIDS[dtype.key or "bool"][:2], items, strict=True))]
    return [(value, key) for value in shapes[dtype.container]]


# The shared cases ----------------------------------------------------------------------------


_VECTORS = Path(__file__).parents[1] / "conformance" / "vectors" / "windows.json"
_COLUMNS = {"num": "int64", "dbl": "float64", "s": "string", "b": "string", "lst": "list<float64>"}
_COLUMNS |= {"m": "map<string, float64>", "vec": "vector<float64, 2>"}


def _cases() -> list[Any]:
    """Return (aggregation, events in it, value) of the shared cases that have no versions."""
    found = []
    for case in json.loads(_VECTORS.read_text(encoding="utf-8"))["cases"]:
        ids = [event["event_id"] for event in case["events"]]
        if len(set(ids)) < len(ids):
            continue
        for query, values in zip(case["queries_us"], case["expected"]["healed"], strict=True):
            for at, (aggregation, value) in enumerate(
                zip(case["aggregations"], values, strict=True)
            ):
                head = query + aggregation.get("offset_us", 0)
                tail = -math.inf
                if aggregation["window_us"] is not None:
                    hop = aggregation["tail_hop_us"]
                    tail = (head - aggregation["window_us"]) // hop * hop
                step = aggregation.get("head_hop_us", 1)
                head = head // step * step
                inside = [e for e in case["events"] if tail <= e["event_timestamp_us"] < head]
                found.append(
                    pytest.param(aggregation, inside, value, id=f"{case['id']} {at} {query}")
                )
    return found


@pytest.mark.parametrize(("aggregation", "events", "value"), _cases())
def test_the_shared_cases_hold(aggregation: dict[str, Any], events: list[Any], value: Any):
    column, by = aggregation["column"], aggregation.get("by")
    spec = spec_of(
        aggregation["function"],
        _COLUMNS[column],
        by=None if by is None else _COLUMNS[by],
        element_wise=aggregation.get("element_wise", False),
        **aggregation.get("params", {}),
    )

    def read(item: Any) -> Any:
        return list(item.items()) if isinstance(item, dict) else item

    rows = [
        (e["event_timestamp_us"], e["event_id"].encode(), read(e.get(column)), e.get(by or ""))
        for e in events
    ]
    (got,) = results(spec, lift(spec, rows).merge(*ranges((0, len(rows)))))
    wanted = value
    if isinstance(value, dict):
        got, wanted = dict(got), value
    if spec.result == DType("float64") and value is not None:
        assert got == pytest.approx(wanted, rel=1e-12)
    else:
        assert got == wanted
