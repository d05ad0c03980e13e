"""Rows of a served log as the answers that they were, for `verification_checking` (law L4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.services.lossless import exact
from featurestore.services.response import (
    ArrowBlock,
    FeatureLayout,
    Layout,
    OnlineResponse,
    SourceLayout,
)
from featurestore.services.served_log_shape import (
    APPLIED,
    AS_OF,
    ENTITY,
    EVENTS,
    FEATURES,
    REQUEST,
    STATUS,
    Shape,
)
from featurestore.services.verification_reading import Answer, Batch

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.compile.request import Join, RequestPlan

    Int64s = npt.NDArray[np.int64]

_STATUSES = ("", "PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")


class LoggedRows:
    """Reads rows of one shape.

    Args:
        shape: The shape.
        plan: The request with the features that are to be looked at, under full names.
    """

    def __init__(self, shape: Shape, plan: RequestPlan) -> None:
        self._shape = shape
        self._plan = plan
        parts = {ENTITY: shape.keys, REQUEST: shape.request, FEATURES: shape.features}
        self._types = {(top, c.name): c.type.arrow for top, held in parts.items() for c in held}
        self._aliases = [join.alias for join in plan.joins] + [s.plan.name for s in plan.steps]
        self._known = {source.alias: source for source in shape.sources}
        self._layout = self._make_layout()

    def batch(self, rows: pa.RecordBatch) -> Batch:
        """Return rows as one answer, each at its instant."""
        columns = {name: self._field(rows, ENTITY, name) for name, _ in self._plan.key_columns}
        for field in self._plan.request_fields:
            columns[field.name] = self._field(rows, REQUEST, field.name)
        instants = rows.column(AS_OF).cast("int64").to_numpy()
        places = np.arange(rows.num_rows)
        return Batch(columns, instants, [Answer(places, self._response(rows))])

    def feature(self, rows: pa.RecordBatch, name: str) -> pa.Array:
        """Return a feature by its full name."""
        return self._field(rows, FEATURES, name)

    def events(self, rows: pa.RecordBatch, alias: str) -> pa.Array:
        """Return when the facts of a view happened, microseconds, null where it has no row."""
        return rows.column(EVENTS).field(alias).cast("int64")

    def groups(self, rows: pa.RecordBatch) -> Iterator[Int64s]:
        """Yield the places of rows in groups, in each of which an entity is as far as one stream.

        What is computed again of a windowed view ends at one position an entity.
        """
        ranks = [self._ranks(rows, join) for join in self._plan.joins if self._is_positioned(join)]
        if not ranks:
            yield np.arange(rows.num_rows)
            return
        _, numbers = np.unique(np.stack(ranks), axis=1, return_inverse=True)
        for number in range(int(numbers.max(initial=-1)) + 1):
            yield np.flatnonzero(numbers.reshape(-1) == number)

    def _ranks(self, rows: pa.RecordBatch, join: Join) -> Int64s:
        """Number the different positions of each entity, from 0."""
        keys = [self._field(rows, ENTITY, name).to_pylist() for name in join.key_columns]
        held = rows.column(APPLIED).field(join.alias).to_pylist()
        seen: dict[Any, dict[Any, int]] = {}
        ranks = np.zeros(rows.num_rows, dtype=np.int64)
        for place in range(rows.num_rows):
            known = seen.setdefault(tuple(key[place] for key in keys), {})
            ranks[place] = known.setdefault(tuple(held[place]), len(known))
        return ranks

    def _is_positioned(self, join: Join) -> bool:
        return self._known[join.alias].positioned

    def _make_layout(self) -> Layout:
        sources = tuple(
            SourceLayout(s.view, s.alias, s.fingerprint)
            for s in (self._known[alias] for alias in self._aliases)
        )
        features, counts = [], dict.fromkeys(self._aliases, 0)
        for output in self._plan.outputs:
            alias = output.reference.partition(":")[0]
            features.append(
                FeatureLayout(
                    output.name, output.column.type, self._aliases.index(alias), counts[alias]
                )
            )
            counts[alias] += 1
        keys = tuple((key.name, key.type) for key in self._shape.keys)
        return Layout(None, keys, tuple(features), sources)

    def _response(self, rows: pa.RecordBatch) -> OnlineResponse:
        names: dict[int, list[str]] = {place: [] for place in range(len(self._aliases))}
        for feature in self._layout.features:
            names[feature.source].append(feature.name)
        blocks = [
            self._block(rows, alias, names[place]) for place, alias in enumerate(self._aliases)
        ]
        keys = [self._field(rows, ENTITY, name) for name, _ in self._layout.keys]
        return OnlineResponse(self._layout, rows.num_rows, 0, ArrowBlock(lambda: keys), blocks)

    def _block(self, rows: pa.RecordBatch, alias: str, names: Sequence[str]) -> LoggedBlock:
        import pyarrow as pa
        import pyarrow.compute as pc

        arrays = [self._field(rows, FEATURES, name) for name in names]
        source = self._known[alias]
        if source.on_demand:
            return LoggedBlock(arrays, b"", b"", {})
        codes = pc.index_in(rows.column(STATUS).field(alias), value_set=pa.array(_STATUSES))
        events = self.events(rows, alias).fill_null(0)
        applied = {}
        if source.positioned:
            applied = _positions(rows.column(APPLIED).field(alias))
        return LoggedBlock(
            arrays, codes.to_numpy().astype(np.uint8).tobytes(), _bytes(events), applied
        )

    def _field(self, rows: pa.RecordBatch, top: str, name: str) -> pa.Array:
        return exact(rows.column(top).field(name), self._types[top, name])


class LoggedBlock(ArrowBlock):
    """One view's part of logged answers.

    Args:
        arrays: The features.
        statuses: See `response.Block`.
        events: See there.
        applied: See there.
    """

    def __init__(
        self,
        arrays: Sequence[pa.Array],
        statuses: bytes,
        events: bytes,
        applied: Mapping[str, bytes],
    ) -> None:
        super().__init__(lambda: arrays)
        self.statuses = statuses
        self.events = events
        self.applied = applied


def _positions(column: pa.Array) -> dict[str, bytes]:
    """Return {stream partition: a position for each row, -1 for none} of a column of maps."""
    counts = np.diff(column.offsets.to_numpy())
    first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
    owners = np.repeat(np.arange(len(column)), counts)
    names = np.array(column.keys.slice(first, last - first).to_pylist(), dtype=object)
    held = column.items.slice(first, last - first).to_numpy()
    found = {}
    for name in sorted(set(names.tolist())):
        positions = np.full(len(column), -1, dtype="<i8")
        positions[owners[names == name]] = held[names == name]
        found[name] = positions.tobytes()
    return found


def _bytes(numbers: pa.Array) -> bytes:
    return np.ascontiguousarray(numbers.to_numpy(), dtype="<i8").tobytes()
