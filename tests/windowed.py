"""Aggregated views with their event logs, made from a seed, and what the reference says of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featurestore.compile import window_sql
from featurestore.compile.aggregates import spec_of
from featurestore.compile.plan import AggregatePlan, Column, FeaturePlan, SourcePlan, ViewPlan
from featurestore.dtypes import parse
from featurestore.errors import DefinitionError
from featurestore.semantics.aggregates import FUNCTIONS
from featurestore.semantics.reference import ReferenceRow, canonical
from featurestore.semantics.reference_windows import Event, Knowledge, Question, value
from featurestore.semantics.windows import Window, default_hop

if TYPE_CHECKING:
    import pyarrow as pa

SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000
INPUTS = {
    "num": "int64",
    "small": "int32",
    "dbl": "float64",
    "flt": "float32",
    "text": "string",
    "flag": "bool",
    "numbers": "list<int64>",
    "floats": "list<float64>",
    "words": "list<string>",
    "named": "map<string, float64>",
    "counted": "map<int64, int64>",
    "vec": "vector<float64, 2>",
    "vec32": "vector<float32, 2>",
}
NAMES = tuple(INPUTS)
APPROXIMATE = ("approx_count_distinct", "approx_quantile")
_DOUBLES = (0.0, -0.0, 0.1, 1e16, -1e16, 1e300, -1e300, 5e-324, 1.5, -2.25, 3.0, math.nan)
_TEXTS = ("a", "b", "", "ä", "zz")
# Before 1970, at its beginning, and today; all on the grid of every hop.
_ORIGINS = (-7 * 24 * HOUR, 0, 1_728_000_000_000_000)


@dataclass(frozen=True)
class Row:
    """One version of an event, with its key and inputs."""

    key: int
    id: str
    version: int
    instant: int
    created: int | None
    deleted: bool
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A view, its log, and what is asked."""

    view: ViewPlan
    rows: tuple[Row, ...]
    asked: tuple[tuple[tuple[int | None], int], ...]

    @property
    def log(self) -> list[ReferenceRow]:
        """The rows of the table."""
        return [
            ReferenceRow(
                (r.key,), r.instant, r.created, (r.id, r.version, r.deleted, None, None, *r.values)
            )
            for r in self.rows
        ]

    def expected(self, feature: int, knowledge: Knowledge) -> list[Any]:
        """Return the reference's value for each query, defaults in place."""
        plan = self.view.aggregates[feature]
        question = question_of(self.view, plan)
        events = {key: self._events(plan, key) for key in {r.key for r in self.rows}}
        if not self.view.source.tells_created:
            knowledge = "healed"
        found = []
        for (key,), instant in self.asked:
            if key is None:
                found.append(None)
                continue
            result = value(events.get(key, ()), question, instant, knowledge)
            found.append(self._typed(plan, result))
        return found

    def _typed(self, plan: AggregatePlan, result: Any) -> Any:
        """Return a result of the reference, which knows no types, as the feature has it."""
        container = spec_of(self.view, plan).result.container
        if container == "map" and not isinstance(result, dict):
            return {}  # it cannot tell from no events that their inputs would be maps
        if container == "vector" and result is not None and None in result:
            return None  # a vector has all of its numbers
        return plan.default if result is None else result

    def _events(self, plan: AggregatePlan, key: int) -> list[Event]:
        return [
            Event(
                id=row.id,
                version=row.version,
                instant=row.instant,
                created=row.created,
                deleted=row.deleted,
                value=None if plan.input is None else row.values[plan.input],
                by=None if plan.by is None else row.values[plan.by],
                rank=rank(self.view, row),
            )
            for row in self.rows
            if row.key == key
        ]


def rank(view: ViewPlan, row: Row) -> bytes:
    """Return the bytes that settle two versions which tie."""
    schema = window_sql.packed_schema(view)
    return canonical((row.instant, row.deleted, *row.values), schema.dtypes)


def question_of(view: ViewPlan, plan: AggregatePlan) -> Question:
    """Return what the reference is asked for a feature."""
    dtype = None if plan.input is None else view.inputs[plan.input].type
    kind = "float"
    if dtype is not None and dtype.container == "map":
        kind = "map"
    if dtype is not None and dtype.scalar in {"int32", "int64"}:
        kind = "int"
    return Question(
        plan.function,
        plan.size,
        plan.hop,
        plan.head_hop,
        plan.offset,
        column=plan.input is not None,
        by=plan.by is not None,
        k=plan.k,
        limit=plan.limit,
        element_wise=plan.element_wise,
        kind=kind,
    )


def make_case(seed: int, *, features: int = 10, rows: int = 60, queries: int = 16) -> Case:
    """Return the case of a seed."""
    chance = random.Random(seed)  # noqa: S311
    corrected = chance.random() < 0.7
    declares = chance.random() < 0.8
    view = make_view(chance, features, corrected=corrected, declares=declares)
    origin = chance.choice(_ORIGINS)
    made = [_row(chance, origin) for _ in range(chance.choice([0, 3, rows, rows]))]
    if not corrected:
        made = [replace(r, id=f"{i:04d}", version=0, deleted=False) for i, r in enumerate(made)]
    if not declares:
        made = [replace(r, created=None) for r in made]
    made += chance.sample(made, len(made) // 8)  # delivered twice
    chance.shuffle(made)
    asked = [_query(chance, origin, made) for _ in range(queries)]
    asked += chance.sample(asked, 2)
    return Case(view, tuple(made), tuple(asked))


def make_view(chance: random.Random, features: int, *, corrected: bool, declares: bool) -> ViewPlan:
    """Return a view of random aggregates over random windows."""
    inputs = tuple(FeaturePlan(name=f"_input_{i}", dtype=d) for i, d in enumerate(INPUTS.values()))
    view = ViewPlan(
        name="view",
        entities=("entity",),
        join_keys=(Column(name="key", dtype="int64"),),
        features=(),
        inputs=inputs,
        source=SourcePlan(
            name="source",
            kind="parquet",
            path="source.parquet",
            event_timestamp="ts",
            created_timestamp="created" if declares else None,
            event_id="id" if corrected else None,
        ),
        table_fingerprint="0123456789abcdef",
        fingerprint="0123456789abcdef",
    )
    plans: list[AggregatePlan] = []
    results: list[FeaturePlan] = []
    windows = [_window(chance) for _ in range(3)]
    while len(plans) < features:
        plan = _aggregate(chance, chance.choice(windows))
        spec = spec_of(view, plan)
        try:
            spec.check()
        except DefinitionError:
            continue
        if str(spec.result) in {"int64", "float64"} and chance.random() < 0.3:
            plan = plan.model_copy(update={"default": chance.choice([0, 7])})
        results.append(FeaturePlan(name=f"f{len(plans)}", dtype=str(spec.result)))
        plans.append(plan)
    return view.model_copy(update={"features": tuple(results), "aggregates": tuple(plans)})


def _window(chance: random.Random) -> Window:
    size = chance.choice([10 * SECOND, MINUTE, 10 * MINUTE, HOUR, 24 * HOUR, None])
    offset = chance.choice([0, 0, 0, -MINUTE, -3 * MINUTE])
    head = chance.choice([1, 1, 1, 1, SECOND, MINUTE])
    if size is None:
        return Window(None, 1, head, offset)
    hop = chance.choice([default_hop(size), default_hop(size), 1, size])
    return Window(size, hop, head, offset)


def _aggregate(chance: random.Random, window: Window) -> AggregatePlan:
    function = chance.choice(FUNCTIONS)
    bare = function == "count" and chance.random() < 0.3
    many = {"first_k", "last_k", "first_distinct", "last_distinct", "top_k", "bottom_k"}
    may = {"histogram", *many}
    return AggregatePlan(
        function=function,
        input=None if bare else chance.randrange(len(NAMES)),
        by=chance.choice([None, None, None, NAMES.index("text"), NAMES.index("small")]),
        size=window.size,
        hop=window.hop,
        head_hop=window.head_hop,
        offset=window.offset,
        k=chance.choice([1, 2, 5])
        if function in many or (function in may and chance.random() < 0.5)
        else None,
        limit=3 if function == "count_distinct" and chance.random() < 0.5 else None,
        element_wise=chance.random() < 0.2,
    )


def _moment(chance: random.Random, origin: int) -> int:
    """Return an instant on the grid of some hop, or just beside it."""
    step = chance.choice([SECOND, 10 * SECOND, MINUTE, 5 * MINUTE, HOUR])
    return origin + chance.randrange(-6, 7) * step + chance.choice([0, 0, 0, -1, 1])


def _row(chance: random.Random, origin: int) -> Row:
    instant = _moment(chance, origin)
    late = chance.choice([-SECOND, 0, 0, 1, SECOND, SECOND, MINUTE, 24 * HOUR])
    return Row(
        key=chance.choice([1, 1, 2, 3]),
        id=chance.choice(["a", "b", "c", "ä", "z"]) + str(chance.randrange(8)),
        version=chance.randrange(4),
        instant=instant,
        created=None if chance.random() < 0.05 else instant + late,
        deleted=chance.random() < 0.15,
        values=tuple(_value(chance, dtype) for dtype in INPUTS.values()),
    )


def _value(chance: random.Random, dtype: str) -> Any:
    if chance.random() < 0.1:
        return None
    parsed = parse(dtype)
    if parsed.container == "map":
        keys = _TEXTS if parsed.key == "string" else (1, 2, 3)
        picked = sorted(chance.sample(keys, chance.randrange(3)), key=_by_bytes)
        return {key: _scalar(chance, parsed.scalar) for key in picked}
    if parsed.container == "list":
        return [_scalar(chance, parsed.scalar) for _ in range(chance.randrange(4))]
    if parsed.container == "vector":
        return [_number(chance, parsed.scalar) for _ in range(parsed.length)]
    return _number(chance, parsed.scalar)


def _by_bytes(key: Any) -> Any:
    return key.encode() if isinstance(key, str) else key


def _scalar(chance: random.Random, scalar: str) -> Any:
    return None if chance.random() < 0.1 else _number(chance, scalar)


def _number(chance: random.Random, scalar: str) -> Any:
    if scalar == "string":
        return chance.choice(_TEXTS)
    if scalar == "bool":
        return chance.random() < 0.5
    if scalar == "float32":
        return chance.choice([0.0, -0.0, 0.5, 2.0**120, -(2.0**-140), 3.25])
    if scalar == "float64":
        return chance.choice(_DOUBLES) if chance.random() < 0.6 else chance.gauss(0, 100)
    most = 2**53 if scalar == "int64" else 2**31 - 1
    return chance.choice([0, 1, -1, 2, 3, most, -most])


def _query(
    chance: random.Random, origin: int, rows: Sequence[Row]
) -> tuple[tuple[int | None], int]:
    key = chance.choice([1, 1, 1, 2, 2, 3, 99, None])
    if rows and chance.random() < 0.3:
        row = chance.choice(rows)
        instant = chance.choice([row.instant, row.created or row.instant])
        return (key,), instant + chance.choice([0, 1, MINUTE])
    return (key,), _moment(chance, origin) + chance.choice([0, 10 * MINUTE, HOUR])


def differences(
    found: pa.ChunkedArray, expected: Iterable[Any], dtype: str
) -> list[tuple[int, Any, Any]]:
    """Return (row, found, expected) where values are not the same bit for bit."""
    parsed = parse(dtype)
    values = found.to_pylist(maps_as_pydicts="strict")
    return [
        (row, have, want)
        for row, (have, want) in enumerate(zip(values, expected, strict=True))
        if canonical((have,), (parsed,)) != canonical((want,), (parsed,))
    ]
