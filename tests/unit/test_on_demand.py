"""On-demand steps: what functions are given, what they must return, and which code is called."""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from featurestore.clock import FixedClock
from featurestore.compile.request import resolve
from featurestore.dtypes import parse
from featurestore.errors import DataError, NotMaterializedError
from featurestore.services.on_demand import OnDemandFunctions, run_steps
from tests.served import CODE, EVERY_TYPE, array, on_demand, select, state, view

EVERY = view("every", {"k": "int64"}, EVERY_TYPE)
SCORES = view("scores", {"k": "int64"}, {"score": "float64"})


def run(plans, functions, slots, request=None, *, rows=2, features=None):
    wanted = state([EVERY, SCORES], plans)
    names = features or [plan.name for plan in plans]
    plan = resolve(wanted.catalog, wanted.serving, names, full_feature_names=True)
    code = {plan.name: plan.code_fingerprint for plan in plans}
    held = OnDemandFunctions(lambda: {n: (f, code[n]) for n, f in functions.items()})
    return run_steps(plan, slots, request or {}, rows, held)


def one(returned, dtype="float64", rows=2):
    """Run a function that returns this value as its one feature `x`."""
    plan = on_demand("od", [select("scores", "score")], {"x": dtype})
    slots = {"scores__score": pa.array([1.5, None][:rows], pa.float64())}
    return run([plan], {"od": lambda _: returned}, slots, rows=rows)["od__x"]


def pairs(key, value):
    return pl.List(pl.Struct({"key": key, "value": value}))


def test_a_function_sees_polars_types_and_gives_back_arrow_unchanged():
    seen = []

    def keep(frame):
        seen.append(frame)
        return frame

    instant = datetime(1960, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    values = {
        "a_bool": [True, None],
        "a_int32": [-1, None],
        "a_int64": [2**53 + 1, None],
        "a_float32": [-0.0, None],
        "a_float64": [float("inf"), None],
        "a_string": ["", None],
        "a_bytes": [b"\x00", None],
        "a_date": [date(1960, 1, 1), None],
        "a_timestamp": [instant, None],
        "many_bools": [[True, None], None],
        "many_ints": [[], None],
        "many_floats": [[1.5], None],
        "many_strings": [["", None], None],
        "many_bytes": [[b"\x00"], None],
        "many_dates": [[date(1960, 1, 1)], None],
        "many_timestamps": [[instant], None],
        "embedding": [[1.0, 2.0, 3.0], None],
        "wide": [[0.1, 0.2], None],
        "by_string": [{"": -0.0, "a": None}, None],
        "by_day": [{date(1960, 1, 1): 2**53 + 1}, None],
        "by_number": [{}, None],
        "by_bytes": [{b"\x00": instant, b"\xff": None}, None],
        "by_bool": [{False: "", True: None}, None],
    }
    plan = on_demand("od", [select("every", *EVERY_TYPE)], EVERY_TYPE)
    slots = {f"every__{n}": array(values[n], t) for n, t in EVERY_TYPE.items()}
    filled = run([plan], {"od": keep}, slots)
    for name, dtype in EVERY_TYPE.items():
        found = filled[f"od__{name}"]
        assert found.type == parse(dtype).arrow
        assert found.equals(slots[f"every__{name}"]), name
    assert seen[0].schema == {
        "a_bool": pl.Boolean,
        "a_int32": pl.Int32,
        "a_int64": pl.Int64,
        "a_float32": pl.Float32,
        "a_float64": pl.Float64,
        "a_string": pl.String,
        "a_bytes": pl.Binary,
        "a_date": pl.Date,
        "a_timestamp": pl.Datetime("us", "UTC"),
        "many_bools": pl.List(pl.Boolean),
        "many_ints": pl.List(pl.Int64),
        "many_floats": pl.List(pl.Float32),
        "many_strings": pl.List(pl.String),
        "many_bytes": pl.List(pl.Binary),
        "many_dates": pl.List(pl.Date),
        "many_timestamps": pl.List(pl.Datetime("us", "UTC")),
        "embedding": pl.Array(pl.Float32, 3),
        "wide": pl.Array(pl.Float64, 2),
        "by_string": pairs(pl.String, pl.Float64),
        "by_day": pairs(pl.Date, pl.Int64),
        "by_number": pairs(pl.Int64, pl.Binary),
        "by_bytes": pairs(pl.Binary, pl.Datetime("us", "UTC")),
        "by_bool": pairs(pl.Boolean, pl.String),
    }
    assert seen[0].null_count().row(0) == (1,) * len(EVERY_TYPE)


def test_there_is_one_nan():
    bits = np.array([0x7FF4000000000001, 0x7FF8000000000001], dtype=np.uint64)
    plan = on_demand("od", [select("scores", "score")], {"x": "float64"})
    slots = {"scores__score": pa.array(bits.view(np.float64))}
    found = run([plan], {"od": lambda f: f.rename({"score": "x"})}, slots)["od__x"]
    assert found.to_numpy().view(np.uint64).tolist() == [0x7FF8000000000000] * 2


def test_views_feed_each_other_and_aliases_have_names_of_their_own():
    first = on_demand(
        "first",
        [select("scores", "score"), select("scores", "score", alias="there", k="there_k")],
        {"gap": "float64"},
        {"factor": "int64"},
    )
    second = on_demand("second", [select("first", "gap")], {"flag": "bool"})
    filled = run(
        [first, second],
        {
            "first": lambda f: f.select(
                gap=(pl.col("score") - pl.col("there__score")) * pl.col("factor")
            ),
            "second": lambda f: f.lazy().select(flag=pl.col("gap") > 0),
        },
        {"scores__score": pa.array([3.0, 1.0]), "there__score": pa.array([1.0, 3.0])},
        {"factor": pa.array([2, 2])},
        features=["second"],
    )
    assert filled["second__flag"].to_pylist() == [True, False]
    assert filled["first__gap"].to_pylist() == [4.0, -4.0]
    assert filled["scores__score"].to_pylist() == [3.0, 1.0]


def test_no_rows_work():
    found = one(pl.DataFrame({"x": []}, schema={"x": pl.Float64}), rows=0)
    assert found.type == pa.float64()
    assert len(found) == 0


@pytest.mark.parametrize(
    ("dtype", "series"),
    [
        ("float64", pl.Series([1, None], dtype=pl.Int64)),
        ("float64", pl.Series([1.0, None], dtype=pl.Float32)),
        ("int64", pl.Series([1, None], dtype=pl.UInt8)),
        ("int64", pl.Series([1, None], dtype=pl.UInt64)),
        ("int32", pl.Series([1, None], dtype=pl.Int64)),
        ("string", pl.Series(["1", None], dtype=pl.Categorical)),
        ("string", pl.Series(["1", None], dtype=pl.Enum(["1"]))),
        ("timestamp", pl.Series([1, None], dtype=pl.Datetime("ms", "Europe/Paris"))),
        ("list<float64>", pl.Series([[1], None], dtype=pl.List(pl.Int64))),
        ("list<string>", pl.Series([["1"], None], dtype=pl.List(pl.Categorical))),
        ("vector<float32, 2>", pl.Series([[1.0, 2.0], None], dtype=pl.List(pl.Float32))),
        ("float64", pl.Series([None, None], dtype=pl.Null)),
        ("list<timestamp>", pl.Series([[], None], dtype=pl.List(pl.Null))),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_types_that_fit_without_loss(dtype, series):
    found = one(pl.DataFrame({"x": series}), dtype)
    assert found.type == parse(dtype).arrow
    assert found.null_count == series.null_count()


@pytest.mark.parametrize(
    ("dtype", "series"),
    [
        ("float64", pl.Series([2**53 + 1, None], dtype=pl.Int64)),
        ("float32", pl.Series([1.0, None], dtype=pl.Float64)),
        ("int32", pl.Series([2**31, None], dtype=pl.Int64)),
        ("int64", pl.Series([1.5, None], dtype=pl.Float64)),
        ("int64", pl.Series([True, None])),
        ("int64", pl.Series(["1", None])),
        ("string", pl.Series([1, None])),
        ("bytes", pl.Series(["1", None])),
        ("date", pl.Series([1, None], dtype=pl.Datetime("us", "UTC"))),
        ("timestamp", pl.Series([1, None], dtype=pl.Datetime("us"))),
        ("timestamp", pl.Series([1001, None], dtype=pl.Datetime("ns", "UTC"))),
        ("vector<float32, 2>", pl.Series([[1.0], None], dtype=pl.List(pl.Float32))),
        ("vector<float32, 2>", pl.Series([[1.0, None], None], dtype=pl.Array(pl.Float32, 2))),
        ("vector<float32, 2>", pl.Series([[1.0] * 3, None], dtype=pl.Array(pl.Float32, 3))),
        ("float64", pl.Series([object(), None], dtype=pl.Object)),
        ("int64", pl.Series([1, None], dtype=pl.Int128)),
        ("float64", pl.Series([1, None], dtype=pl.Decimal(10, 2))),
        ("string", pl.Series([{"a": 1}, None])),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_types_that_do_not_fit_are_told(dtype, series):
    with pytest.raises(DataError) as caught:
        one(pl.DataFrame({"x": series}), dtype)
    error = caught.value
    assert "'od:x'" in error.what
    assert error.where == "on-demand view 'od'"
    assert error.got == f"polars {series.dtype}"
    assert error.allowed == dtype


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (pl.DataFrame({"x": [1.0]}), "changed the number of rows"),
        (pl.DataFrame({"y": [1.0, 2.0]}), "did not return 'x'"),
        (pl.Series([1.0, 2.0]), "returned no DataFrame"),
        (None, "returned no DataFrame"),
        ({"x": [1.0, 2.0]}, "returned no DataFrame"),
    ],
    ids=["rows", "column", "series", "none", "dict"],
)
def test_results_of_another_shape_are_told(returned, says):
    with pytest.raises(DataError, match=says) as caught:
        one(returned)
    assert caught.value.where == "on-demand view 'od'"
    assert caught.value.got


def test_what_a_function_raises_is_told_with_its_view():
    def failing(frame):
        return frame.select("nothing")

    plan = on_demand("od", [select("scores", "score")], {"x": "float64"})
    with pytest.raises(DataError, match="'od' failed") as caught:
        run([plan], {"od": failing}, {"scores__score": pa.array([1.0, 2.0])})
    assert "ColumnNotFoundError" in caught.value.got
    assert "score double" in caught.value.hint
    assert isinstance(caught.value.__cause__, pl.exceptions.ColumnNotFoundError)


def test_a_lazy_frame_that_fails_is_told_too():
    plan = on_demand("od", [select("scores", "score")], {"x": "float64"})
    with pytest.raises(DataError, match="'od' failed"):
        run(
            [plan],
            {"od": lambda f: f.lazy().select("nothing")},
            {"scores__score": pa.array([1.0, 2.0])},
        )


# -------------------------------------------------------------------------------------- the code


class Deployed:
    """The code on a machine, and how often it was loaded."""

    def __init__(self, **code):
        self.code = code
        self.loads = 0
        self.clock = FixedClock(0)
        self.functions = OnDemandFunctions(self.load, self.clock, retry_seconds=5.0)

    def load(self):
        self.loads += 1
        return {name: (partial(str, code), code) for name, code in self.code.items()}

    def get(self, code=CODE):
        return self.functions.get(on_demand("od", [], {"x": "float64"}, code=code))()


def test_code_is_loaded_once():
    deployed = Deployed(od=CODE)
    assert [deployed.get() for _ in range(3)] == [CODE] * 3
    assert deployed.loads == 1


def test_code_that_changed_is_loaded_again():
    deployed = Deployed(od="old")
    assert deployed.get("old") == "old"
    deployed.code["od"] = "new"
    deployed.clock.advance(5_000_000)
    assert deployed.get("new") == "new"
    assert deployed.loads == 2


@pytest.mark.parametrize(("held", "got"), [({"od": "old"}, "code old"), ({}, "no such on-demand")])
def test_code_that_was_not_applied_is_never_called(held, got):
    deployed = Deployed(**held)
    for _ in range(3):
        with pytest.raises(NotMaterializedError, match="'od'") as caught:
            deployed.get("new")
        assert got in caught.value.got
        assert caught.value.allowed == "code new"
        assert "featurestore apply" in caught.value.hint
    assert deployed.loads == 1
    deployed.code["od"] = "new"
    deployed.clock.advance(5_000_000)
    assert deployed.get("new") == "new"
