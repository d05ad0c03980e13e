"""Windows over sorted events: what each query sees, and the features of that (laws W2-W5).

The one kernel of windowed features. Events come sorted by (key, instant, id), so what a window
holds is a range of them, found by bisection for all queries at once. How a range becomes a value is
the algebra's business; since its states merge exactly and in any order, all plans give the same
bytes, and one is chosen by what it costs:

- frames: go through each range, event by event; the fastest where ranges are short.
- prefix: prepare running states, and make a range of a few of them; for long ranges. Different
  values are counted by where each one stands before (`window_distinct`).

Events may come piece by piece: then each query has a state of each piece, and these are merged.

Keys are numbers here, and versions are settled: identities, files and memory are the business of
other rooms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from featurestore.semantics.aggregates import AggregateSpec, Events, States, algebra
from featurestore.semantics.window_distinct import distinct_counts
from featurestore.semantics.window_ranges import Known, Locator, expand

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.semantics.aggregates.merging import FoldedStates
    from featurestore.semantics.window_ranges import Loose
    from featurestore.semantics.windows import Window

    Int64s = npt.NDArray[np.int64]
    Ranges = tuple[Int64s, Int64s]

Plan = Literal["auto", "frames", "prefix"]
PLANS: tuple[Plan, ...] = ("auto", "frames", "prefix")

# From so many pairs of event and query on, for each event and range, running states pay: at once
# where a range is two of them, later where it is merged of some, and last where going through a
# range is as cheap as can be (`benchmarks/bench_windows.py`).
_TWO = frozenset({"count", "sum", "variance", "skew", "kurtosis"})
_ENDS = frozenset({"first_k", "last_k"})
_CHEAP = frozenset({"min", "max"})
_PRICE, _CHEAP_PRICE = 4, 32
_PAIRS_AT_A_TIME = 2_000_000
_ZERO = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True)
class WindowFeature:
    """A feature: what is computed of which inputs over which window."""

    spec: AggregateSpec
    window: Window
    input: int | None
    by: int | None


@dataclass(frozen=True)
class Queries:
    """What is asked: int64[m] numbers of keys and int64[m] instants, in any order."""

    keys: Int64s
    instants: Int64s


@dataclass(frozen=True)
class SortedEvents:
    """Events in the order of (key, instant, id); n of them.

    Attributes:
        keys: int64[n], the numbers of their keys.
        instants: int64[n], microseconds.
        inputs: The view's inputs; those that no feature reads may be None.
        known: When each version is known; None where all of them always are.
    """

    keys: Int64s
    instants: Int64s
    inputs: Sequence[pa.Array | None]
    known: Known | None = None

    @cached_property
    def locator(self) -> Locator:
        """Finds places among them."""
        return Locator(self.keys, self.instants)

    def ranges(self, queries: Queries, window: Window) -> Ranges:
        """Return which of them each query's window holds: int64[m] first, int64[m] behind last."""
        low, high = window.bounds(queries.instants)
        ends = self.locator.first_at(queries.keys, high)
        if low is None:
            low = np.full(len(ends), np.iinfo(np.int64).min)
        starts = self.locator.first_at(queries.keys, low)
        # A window with a head hop wider than itself ends before it begins, most of the time.
        return np.minimum(starts, ends), ends


@dataclass(frozen=True)
class Choice:
    """How one feature's ranges are merged, and what tells so.

    Attributes:
        plan: "frames" or "prefix".
        pairs: How many pairs of event and query its window makes.
    """

    plan: Plan
    pairs: int


@dataclass(frozen=True)
class _Family:
    """Features that are answered from the same states, and all of their windows."""

    state: AggregateSpec
    input: int | None
    by: int | None
    windows: tuple[Window, ...]


class WindowJoin:
    """The features of some queries, from all events that matter for them.

    Args:
        features: What is wanted.
        queries: What is asked.
        plan: How ranges are merged.
    """

    def __init__(
        self, features: Sequence[WindowFeature], queries: Queries, plan: Plan = "auto"
    ) -> None:
        self._features = features
        self._queries = queries
        self._plan = plan
        self._families = list(dict.fromkeys(_family(f, features) for f in features))
        self._states: dict[_Family, States] = {}
        self._counts: dict[_Family, Int64s] = {}

    def add(self, events: SortedEvents, *, alone: bool = False) -> None:
        """Take in events.

        Args:
            events: All of them, or a piece; those of one key and instant are in one piece.
            alone: Whether no other piece comes.
        """
        windows = dict.fromkeys(feature.window for feature in self._features)
        ranges = {window: events.ranges(self._queries, window) for window in windows}
        for family in self._families:
            starts, ends = (
                np.concatenate([ranges[window][side] for window in family.windows])
                for side in (0, 1)
            )
            if alone and events.known is None and self._is_counted(family, events, (starts, ends)):
                values = events.inputs[family.input or 0]
                self._counts[family] = distinct_counts(values, starts, ends)
                continue
            found = self._merged(family, events, (starts, ends))
            held = self._states.get(family)
            if held is not None:
                found = _folded(algebra(family.state).concat([held, found]), len(found))
            self._states[family] = found

    def finish(self) -> list[pa.Array]:
        """Return the features, m values each."""
        if not self._states and not self._counts:
            self.add(_no_events(self._features))
        return [self._finished(feature) for feature in self._features]

    def _is_counted(self, family: _Family, events: SortedEvents, ranges: Ranges) -> bool:
        """Whether different values are counted without sets of them."""
        state = family.state
        is_map = state.dtype is not None and state.dtype.container == "map"
        if state.function != "count_distinct" or _is_nested(state) or is_map:
            return False
        return _planned(self._plan, state, ranges, len(events.keys)) == "prefix"

    def _merged(self, family: _Family, events: SortedEvents, ranges: Ranges) -> States:
        """Return a state for each window and query, window after window."""
        states = algebra(family.state).lift(
            Events(events.instants, None, _input(events, family.input), _input(events, family.by))
        )
        if events.known is None:
            return _merge(family, states, ranges, self._plan)
        asked = np.tile(self._queries.instants, len(family.windows))
        keys = np.tile(self._queries.keys, len(family.windows))
        known = events.known.split(events.locator, keys, asked, ranges)
        lasting = states if known.all_lasting else states.take(known.lasting)
        parts = [_merge(family, lasting, known.body, self._plan)]
        parts += [_masked(states, loose, events.known, asked) for loose in known.loose]
        return _folded(_joined(parts), len(asked))

    def _finished(self, feature: WindowFeature) -> pa.Array:
        family = _family(feature, self._features)
        rows = len(self._queries.keys)
        first = family.windows.index(feature.window) * rows
        if family in self._counts:
            return _limited(self._counts[family][first : first + rows], feature.spec.limit)
        states = self._states[family]
        if len(family.windows) > 1:
            states = states.take(np.arange(first, first + rows))
        return algebra(family.state).finalize(feature.spec, states)


def choose(feature: WindowFeature, events: SortedEvents, queries: Queries) -> Choice:
    """Return how a feature's ranges would be merged by themselves."""
    starts, ends = events.ranges(queries, feature.window)
    pairs = int((ends - starts).sum())
    return Choice(_chosen(feature.spec.state, pairs, len(starts), len(events.keys)), pairs)


def _chosen(state: AggregateSpec, pairs: int, ranges: int, events: int) -> Plan:
    nested = _is_nested(state)
    if not nested and (state.function in _TWO or (state.function in _ENDS and state.k == 1)):
        return "prefix"
    price = _CHEAP_PRICE if not nested and state.function in _CHEAP else _PRICE
    return "prefix" if pairs > price * (ranges + events) else "frames"


def _planned(plan: Plan, state: AggregateSpec, ranges: Ranges, events: int) -> Plan:
    starts, ends = ranges
    if plan != "auto":
        return plan
    return _chosen(state, int((ends - starts).sum()), len(starts), events)


def _is_nested(state: AggregateSpec) -> bool:
    return state.by is not None or state.element_wise


def _limited(counts: Int64s, limit: int | None) -> pa.Array:
    import pyarrow as pa

    return pa.array(counts if limit is None else np.minimum(counts, limit))


def _merge(family: _Family, states: States, ranges: Ranges, plan: Plan) -> States:
    return states.merge(*ranges, _planned(plan, family.state, ranges, len(states)))


def _masked(states: States, loose: Loose, known: Known, asked: Int64s) -> States:
    """Return the states of ranges of some versions, without those that are not known then."""
    places, ranges = loose
    parts = []
    for rows, owner, index in expand(*ranges, _PAIRS_AT_A_TIME):
        place = places[index]
        counts = known.at(place, asked[owner])
        ends = np.cumsum(np.bincount(owner[counts] - rows.start, minlength=rows.stop - rows.start))
        starts = np.concatenate([_ZERO, ends[:-1]])
        parts.append(states.take(place[counts]).merge(starts, ends, "frames"))
    return _joined(parts)


def _joined(parts: Sequence[States]) -> States:
    """Return one column of states that come from one lift, so that their order is that of it."""
    return cast("FoldedStates", parts[0]).join(cast("list[FoldedStates]", parts))


def _folded(column: States, rows: int) -> States:
    """Return the merged states of a column that holds several for each row, part after part."""
    width = len(column) // rows if rows else 0
    order = np.arange(rows * width).reshape(width, rows).T.ravel()
    starts = np.arange(rows) * width
    return column.take(order).merge(starts, starts + width, "frames")


def _family(feature: WindowFeature, features: Sequence[WindowFeature]) -> _Family:
    same = (feature.spec.state, feature.input, feature.by)
    windows = dict.fromkeys(
        each.window for each in features if (each.spec.state, each.input, each.by) == same
    )
    return _Family(*same, tuple(windows))


def _input(events: SortedEvents, index: int | None) -> pa.Array | None:
    return None if index is None else events.inputs[index]


def _no_events(features: Sequence[WindowFeature]) -> SortedEvents:
    import pyarrow as pa

    none = np.zeros(0, dtype=np.int64)
    inputs: dict[int, pa.Array] = {}
    for feature in features:
        for index, dtype in ((feature.input, feature.spec.dtype), (feature.by, feature.spec.by)):
            if index is not None and dtype is not None:
                inputs[index] = pa.nulls(0, dtype.arrow)
    return SortedEvents(none, none, [inputs.get(i) for i in range(max(inputs, default=-1) + 1)])
