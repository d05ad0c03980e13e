"""Features of aggregated views for entity rows: the engine sorts, the kernel computes (law W).

The engine hands over the events of some keys at a time, so that they fit a part of the session's
memory; a key that has more than that comes in pieces, and its entity rows in blocks. Results go to
a temporary table, which spills, and from there in the entity rows' order to the block that all
joins end in. A small request, which most are, takes neither detour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile import join_sql, window_sql
from featurestore.compile.aggregates import spec_of, with_default
from featurestore.semantics.rows import payloads
from featurestore.services.lossless import exact

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.compile.join_sql import JoinSpec
    from featurestore.ports.engine import EngineSession
    from featurestore.semantics.windowing import (
        Choice,
        Plan,
        Queries,
        SortedEvents,
        WindowFeature,
    )

    Int64s = npt.NDArray[np.int64]

CANONICAL = "canonical_event_{0}"
_RESULT = "window_result"
# Events and what is made of them take at most this part of the session's memory ...
_MEMORY_PART = 8
# ... if an event takes so many bytes, and so many more for each input and feature.
_EVENT_BYTES, _INPUT_BYTES, _STATE_BYTES = 64, 32, 64
_LEAST_ROWS = 65_536


@dataclass(frozen=True)
class Budget:
    """How many rows are in memory at once; for tests, as few as one likes.

    Attributes:
        events: Versions of events, but for those of one key and instant.
        queries: Entity rows.
        plan: How the kernel merges.
    """

    events: int
    queries: int
    plan: Plan = "auto"

    @classmethod
    def of(cls, spec: JoinSpec, memory_limit: int) -> Budget:
        """Return what fits a session's memory."""
        features = len(spec.columns)
        width = _EVENT_BYTES + _INPUT_BYTES * len(window_sql.inputs(spec)) + _STATE_BYTES * features
        rows = max(_LEAST_ROWS, memory_limit // _MEMORY_PART // width)
        return cls(rows, rows)

    def holds(self, spec: JoinSpec, rows: int) -> bool:
        """Whether all entity rows and all events of a join are in memory at once."""
        return rows <= self.queries and (spec.rows <= self.events or not spec.files)


@dataclass(frozen=True)
class _Chunk:
    """Some entity rows and the events that they see: ranges of rows of the sorted tables."""

    queries: tuple[int, int]
    events: tuple[int, int]


def fill(
    session: EngineSession,
    spec: JoinSpec,
    rows: int,
    parts: Sequence[tuple[int, int]],
    budget: Budget,
) -> None:
    """Write the block of an aggregated view's features.

    Args:
        session: Holds the table `entity`.
        spec: The join.
        rows: The number of entity rows.
        parts: Ranges of them whose features are sorted at once.
        budget: What is in memory at once.
    """
    apart = _prepare(session, spec)
    if budget.holds(spec, rows):
        _small(session, spec, rows, budget, apart=apart)
    else:
        _large(session, spec, parts, budget, apart=apart)
    _drop(session, spec)


def choices(
    session: EngineSession, spec: JoinSpec, rows: int, memory_limit: int
) -> list[Choice] | None:
    """Return how the kernel would merge each feature's ranges, from keys and instants alone.

    None where not all is in memory at once, so that each chunk of keys is told for itself.
    """
    import numpy as np

    from featurestore.semantics.windowing import SortedEvents, choose

    if not Budget.of(spec, memory_limit).holds(spec, rows):
        return None
    apart = _prepare(session, spec)
    asked = _asked(session, window_sql.keyed(spec))
    keys = instants = np.zeros(0, dtype=np.int64)
    if spec.files:
        sql = window_sql.events(spec, apart=apart)
        table = session.fetch(f"SELECT key, instant FROM ({sql})")
        keys, instants = table["key"].to_numpy(), table["instant"].to_numpy()
    _drop(session, spec)
    events = SortedEvents(keys, instants, ())
    return [choose(feature, events, asked.queries) for feature in _features(spec)]


def _prepare(session: EngineSession, spec: JoinSpec) -> bool:
    """Number keys, sort entity rows, settle versions; return whether some events had several."""
    if spec.keys:
        session.run(window_sql.spans(spec))
    session.run(join_sql.probes(spec))
    session.run(window_sql.order(spec))
    return bool(spec.files) and _settle(session, spec)


def _drop(session: EngineSession, spec: JoinSpec) -> None:
    for statement in window_sql.drop(spec):
        session.run(statement)


def _settle(session: EngineSession, spec: JoinSpec) -> bool:
    if spec.unique and not window_sql.is_corrected(spec.view):
        return False
    session.run(window_sql.contested(spec))
    if not session.fetch(f"SELECT 1 FROM {spec.name('contested')} LIMIT 1").num_rows:
        return False
    session.run(window_sql.versions(spec))
    canonical = None
    if session.fetch(window_sql.ties(spec)).num_rows:
        canonical = CANONICAL.format(spec.number)
        kind = window_sql.packed_type(spec.view)
        session.register_canonical(canonical, _canonical(spec), kind)
    session.run(window_sql.settled(spec, canonical))
    return True


def _features(spec: JoinSpec) -> list[WindowFeature]:
    """Return the features that are asked for, as the kernel takes them."""
    from featurestore.semantics.windowing import WindowFeature

    return [
        WindowFeature(spec_of(spec.view, plan), plan.window, plan.input, plan.by)
        for plan in window_sql.wanted(spec)
    ]


def _small(
    session: EngineSession, spec: JoinSpec, rows: int, budget: Budget, *, apart: bool
) -> None:
    """Compute everything at once; the engine only reads, settles and sorts."""
    import numpy as np
    import pyarrow as pa

    asked = _asked(session, window_sql.keyed(spec))
    pieces: list[SortedEvents] = []
    if spec.files:
        pieces.append(_sorted_events(spec, session.fetch(window_sql.events(spec, apart=apart))))
    columns = _columns(spec, asked, _evaluated(spec, asked, pieces, budget, alone=True))
    place = np.full(rows, -1)
    place[asked.rows] = np.arange(len(asked.rows))
    indexes = pa.array(place, mask=place < 0)
    session.register(_RESULT, pa.table({n: a.take(indexes) for n, a in columns.items()}))
    session.run(window_sql.block(spec, _RESULT, None))


def _large(
    session: EngineSession,
    spec: JoinSpec,
    parts: Sequence[tuple[int, int]],
    budget: Budget,
    *,
    apart: bool,
) -> None:
    """Compute some keys at a time; sorted events and results are in tables, which spill."""
    import pyarrow as pa

    if spec.files:
        session.run(window_sql.kept_events(spec, apart=apart))
    session.run(window_sql.features(spec))
    for chunk in _chunks(session, spec, budget):
        asked = _asked(session, window_sql.part(spec, "asked", chunk.queries))
        pieces = _pieces(session, spec, chunk, asked, budget)
        alone = chunk.events[1] - chunk.events[0] < budget.events
        features = _evaluated(spec, asked, pieces, budget, alone=alone)
        columns = _columns(spec, asked, features)
        session.register(_RESULT, pa.table({"row": pa.array(asked.rows), **columns}))
        session.run(f"INSERT INTO {spec.name('features')} SELECT * FROM {_RESULT}")
    for rows in parts:
        session.run(window_sql.block(spec, spec.name("features"), rows))


def _chunks(session: EngineSession, spec: JoinSpec, budget: Budget) -> Iterator[_Chunk]:
    """Return chunks of keys that fit the budget; a key with too many entity rows makes several."""
    import numpy as np

    queries = session.fetch(window_sql.counts(spec.name("asked")))
    keys, asked = queries["key"].to_numpy(), np.cumsum(queries["n"].to_numpy())
    held = np.zeros(len(keys), dtype=np.int64)
    if spec.files:
        events = session.fetch(window_sql.counts(spec.name("events")))
        held[np.searchsorted(keys, events["key"].to_numpy())] = events["n"].to_numpy()
    held = np.cumsum(held)
    first = query = event = 0
    while first < len(keys):
        fits = min(
            np.searchsorted(asked, query + budget.queries, side="right"),
            np.searchsorted(held, event + budget.events, side="right"),
        )
        last = max(first + 1, int(fits))
        ends = int(asked[last - 1]), int(held[last - 1])
        for start in range(query, ends[0], budget.queries):
            yield _Chunk((start, min(start + budget.queries, ends[0])), (event, ends[1]))
        first, (query, event) = last, ends


def _pieces(
    session: EngineSession, spec: JoinSpec, chunk: _Chunk, asked: _Asked, budget: Budget
) -> Iterator[SortedEvents]:
    """Return a chunk's events in pieces; those of one key and instant stay together."""
    import pyarrow as pa

    if not spec.files:
        return
    seen = window_sql.seen(spec, int(asked.instants.min()), int(asked.instants.max()))
    rows = 0
    held: list[pa.RecordBatch] = []
    for batch in session.stream(window_sql.part(spec, "events", chunk.events, seen)):
        held.append(batch)
        rows += batch.num_rows
        if rows < budget.events:
            continue
        table = pa.Table.from_batches(held)
        cut = _cut(table)
        if cut:
            yield _sorted_events(spec, table.slice(0, cut))
        held = table.slice(cut).to_batches()
        rows -= cut
    if rows:
        yield _sorted_events(spec, pa.Table.from_batches(held))


def _cut(table: pa.Table) -> int:
    """Return the first of the last rows that have one key and instant."""
    keys, instants = table["key"].to_numpy(), table["instant"].to_numpy()
    same = (keys == keys[-1]) & (instants == instants[-1])
    return int(len(same) - same.sum())


@dataclass(frozen=True)
class _Asked:
    """Entity rows that have a key: int64[m] numbers of rows, of keys, and instants."""

    rows: Int64s
    keys: Int64s
    instants: Int64s

    @property
    def queries(self) -> Queries:
        """What the kernel is asked."""
        from featurestore.semantics.windowing import Queries

        return Queries(self.keys, self.instants)


def _asked(session: EngineSession, sql: str) -> _Asked:
    table = session.fetch(sql)
    return _Asked(*(table[name].to_numpy() for name in ("row", "key", "instant")))


def _sorted_events(spec: JoinSpec, table: pa.Table) -> SortedEvents:
    """Return the result of `window_sql.events` as the kernel takes it."""
    from featurestore.semantics.window_ranges import Known
    from featurestore.semantics.windowing import SortedEvents

    instants = table["instant"].to_numpy()
    arrays: list[pa.Array | None] = [None] * len(spec.view.inputs)
    for index in window_sql.inputs(spec):
        column = table[f"i{index}"].combine_chunks()
        arrays[index] = exact(column, spec.view.inputs[index].type.arrow)
    known = None
    if spec.known:
        known = Known(instants, table["learnt"].to_numpy(), table["until"].to_numpy())
    return SortedEvents(table["key"].to_numpy(), instants, arrays, known)


def _evaluated(
    spec: JoinSpec,
    asked: _Asked,
    pieces: Iterable[SortedEvents],
    budget: Budget,
    *,
    alone: bool,
) -> list[pa.Array]:
    """Return the features of some entity rows."""
    from featurestore.semantics.windowing import WindowJoin

    join = WindowJoin(_features(spec), asked.queries, budget.plan)
    for piece in pieces:
        join.add(piece, alone=alone)
    plans = window_sql.wanted(spec)
    return [with_default(a, plan) for a, plan in zip(join.finish(), plans, strict=True)]


def _columns(spec: JoinSpec, asked: _Asked, features: Sequence[pa.Array]) -> dict[str, pa.Array]:
    """Return the columns of results that the engine takes: instants, and lists for vectors."""
    import pyarrow as pa

    columns = {"instant": pa.array(asked.instants)}
    for i, (column, array) in enumerate(zip(spec.columns, features, strict=True)):
        is_vector = column.type.container == "vector"
        columns[f"v{i}"] = array.cast(pa.list_(column.type.item.arrow)) if is_vector else array
    return columns


def _canonical(spec: JoinSpec) -> Any:
    """Return the function from versions of events to their canonical bytes."""
    schema = window_sql.packed_schema(spec.view)

    def call(versions: pa.Array) -> pa.Array:
        import pyarrow as pa

        columns = [
            exact(column, dtype.arrow)
            for column, dtype in zip(versions.flatten(), schema.dtypes, strict=True)
        ]
        return pa.array(payloads(schema, columns, len(versions)), pa.binary())

    return call
