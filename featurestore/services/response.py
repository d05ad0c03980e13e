"""The answer to an online lookup: values, each with status and event timestamp (laws O3, V2).

Columns stay as they came, packed or as Arrow, and become Python values only when asked for. The
same type answers in this process and over gRPC.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.dtypes import DType, from_arrow, to_pylist
from featurestore.semantics.packed import NOT_FOUND
from featurestore.semantics.plain import Plain, unpack_bits, validity_of
from featurestore.semantics.timeline import format_instant, to_datetime
from featurestore.services.frames import to_polars

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import polars as pl
    import pyarrow as pa


class FeatureStatus(StrEnum):
    """What became of a value (law O3)."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


# By the numbers of `semantics.packed`, from 1.
_STATUSES = tuple(FeatureStatus)


class Block(Protocol):
    """Columns of one origin, found by their index in it.

    Attributes:
        statuses: One byte a row as in `semantics.packed`; empty for an on-demand view.
        events: Eight bytes a row, little-endian microseconds, 0 where NOT_FOUND; empty for an
            on-demand view.
        applied: For a windowed view, by stream partition: eight bytes a row, little-endian, the
            highest position that had been applied to its entity, -1 for none. Empty for all else.
    """

    statuses: bytes
    events: bytes
    applied: Mapping[str, bytes]

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        """Return columns as plain bytes (`semantics.plain`), None where that is not at hand."""
        ...

    def wholes(self, indexes: Sequence[int]) -> Sequence[bytes] | None:
        """Return the data of plain columns if all are at hand and none has a null, else None."""
        ...

    def validity(self, index: int) -> bytes | None:
        """Return the column's validity (`semantics.plain`)."""
        ...

    def nulls(self, indexes: Sequence[int]) -> int:
        """Return how many values of columns are null, those of rows that are not shown included."""
        ...

    def array(self, index: int) -> pa.Array:
        """Return the column as an Arrow array."""
        ...

    def pylist(self, index: int) -> list[Any]:
        """Return the column as Python values; a map is a dict."""
        ...


class ArrowBlock:
    """Columns that are Arrow arrays: results of on-demand views, and keys.

    Args:
        load: Returns the arrays; called when the first one is asked for.
    """

    statuses = b""
    events = b""
    applied: Mapping[str, bytes] = {}

    def __init__(self, load: Callable[[], Sequence[pa.Array]]) -> None:
        self._load = load

    @cached_property
    def _arrays(self) -> Sequence[pa.Array]:
        return self._load()

    def plains(self, indexes: Sequence[int]) -> Sequence[Plain | None]:
        """See `Block.plains`."""
        return [None] * len(indexes)

    def wholes(self, indexes: Sequence[int]) -> None:  # noqa: ARG002
        """See `Block.wholes`."""
        return

    def validity(self, index: int) -> bytes | None:
        """See `Block.validity`."""
        return validity_of(self._arrays[index])

    def nulls(self, indexes: Sequence[int]) -> int:
        """See `Block.nulls`."""
        return sum(self._arrays[index].null_count for index in indexes)

    def array(self, index: int) -> pa.Array:
        """See `Block.array`."""
        return self._arrays[index]

    def pylist(self, index: int) -> list[Any]:
        """See `Block.pylist`."""
        return to_pylist(self._arrays[index])


@dataclass(frozen=True, slots=True)
class SourceLayout:
    """A view or on-demand view that an answer is made from."""

    view: str
    alias: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """A feature column: its name, its type, and where it stands: which source, which index."""

    name: str
    dtype: DType
    source: int
    index: int


@dataclass(frozen=True, eq=False)
class Layout:
    """What all answers to one request have in common.

    Attributes:
        service: The feature service, if one was asked for.
        keys: (name, type) of the join key columns.
        features: The feature columns in the order asked for.
        sources: What they come from.
    """

    service: str | None
    keys: tuple[tuple[str, DType], ...]
    features: tuple[FeatureLayout, ...]
    sources: tuple[SourceLayout, ...]

    @cached_property
    def by_name(self) -> Mapping[str, FeatureLayout]:
        """The feature columns by name."""
        return {feature.name: feature for feature in self.features}

    @cached_property
    def places(self) -> tuple[tuple[str, int, int], ...]:
        """(name, source, index) of each feature column."""
        return tuple((f.name, f.source, f.index) for f in self.features)


class OnlineResponse:
    """The features of some entities as of an instant, one item an entity row, in their order.

    Args:
        layout: Names, types and origins.
        rows: The number of entity rows.
        as_of_us: The instant that was answered for, microseconds.
        keys: The join key columns.
        blocks: The columns of each source.
    """

    def __init__(
        self, layout: Layout, rows: int, as_of_us: int, keys: Block, blocks: Sequence[Block]
    ) -> None:
        self.layout = layout
        self.rows = rows
        self.as_of_us = as_of_us
        self.keys = keys
        self.blocks = blocks

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        names = ", ".join(feature.name for feature in self.layout.features)
        as_of = format_instant(self.as_of_us)
        return f"<OnlineResponse of {self.rows} rows as of {as_of}: {names}>"

    @property
    def as_of(self) -> datetime:
        """The instant that was answered for."""
        return to_datetime(self.as_of_us)

    @property
    def service(self) -> str | None:
        """The feature service that was asked for, if any."""
        return self.layout.service

    @property
    def feature_names(self) -> list[str]:
        """The feature columns in the order asked for."""
        return [feature.name for feature in self.layout.features]

    @property
    def fingerprints(self) -> dict[str, str]:
        """{view: fingerprint of the definition that answered}, on-demand views included."""
        return {source.view: source.fingerprint for source in self.layout.sources}

    @cached_property
    def newest_events(self) -> tuple[int | None, ...]:
        """The newest event timestamp of each source, microseconds; None where it has none."""
        return tuple([_newest(block.statuses, block.events) for block in self.blocks])

    @cached_property
    def statuses(self) -> dict[str, list[FeatureStatus]]:
        """{feature: a status for each entity row}."""
        return {feature.name: self._statuses(feature) for feature in self.layout.features}

    @cached_property
    def event_timestamps(self) -> dict[str, list[datetime | None]]:
        """{feature: for each entity row when its fact happened, None where there is none}.

        A row that is too old still tells its instant; features of on-demand views have none.
        """
        by_source = [self._events(block) for block in self.blocks]
        return {f.name: list(by_source[f.source]) for f in self.layout.features}

    @cached_property
    def applied(self) -> dict[str, dict[str, list[int | None]]]:
        """{windowed view as it is called here: {stream partition: a position for each entity row}}.

        The highest position of the stream that the values had been computed from, None where
        nothing of the partition was. What the values were is computed again from these (law V2).
        """
        return {
            source.alias: {name: self._positions(data) for name, data in block.applied.items()}
            for source, block in zip(self.layout.sources, self.blocks, strict=True)
            if block.applied
        }

    def column(self, name: str) -> pa.Array:
        """Return one feature as an Arrow array.

        Raises:
            KeyError: No feature has this name.
        """
        feature = self.layout.by_name[name]
        return self.blocks[feature.source].array(feature.index)

    def to_dict(self) -> dict[str, list[Any]]:
        """Return {column: one Python value an entity row}, join keys first; a map is a dict."""
        columns = {name: self.keys.pylist(i) for i, (name, _) in enumerate(self.layout.keys)}
        blocks = self.blocks
        for name, source, index in self.layout.places:
            columns[name] = blocks[source].pylist(index)
        return columns

    def to_arrow(self) -> pa.Table:
        """Return a table with a row for each entity row, join keys first."""
        import pyarrow as pa

        columns = {name: self.keys.array(i) for i, (name, _) in enumerate(self.layout.keys)}
        for feature in self.layout.features:
            columns[feature.name] = self.blocks[feature.source].array(feature.index)
        return pa.table(columns)

    def to_polars(self) -> pl.DataFrame:
        """Return a data frame with a row for each entity row, join keys first.

        A map is a list of structs of `key` and `value`.
        """
        return to_polars(self.to_arrow())

    def to_numpy(self) -> dict[str, Any]:
        """Return {column: an array with one item an entity row}, join keys first.

        Nothing is lost: see `services.arrays`. Numbers, dates and instants with nulls among them
        come as masked arrays, vectors as two-dimensional ones, all else as arrays of objects.
        """
        from featurestore.services.arrays import to_numpy

        columns = {}
        for i, (name, dtype) in enumerate(self.layout.keys):
            key = self.keys.array(i)
            # A key that does not fit its declared type is shown as it came.
            columns[name] = to_numpy(from_arrow(key.type) or dtype, key)
        for feature in self.layout.features:
            array = self.blocks[feature.source].array(feature.index)
            columns[feature.name] = to_numpy(feature.dtype, array)
        return columns

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas frame with a row for each entity row, join keys first.

        Integers and booleans come as pandas' nullable types, so that they stay exact beside nulls.

        Raises:
            RequestError: pandas is not installed.
        """
        from featurestore.services.retrieval_job import to_pandas

        return to_pandas(self.to_arrow(), 0)

    def _statuses(self, feature: FeatureLayout) -> list[FeatureStatus]:
        block = self.blocks[feature.source]
        validity = block.validity(feature.index)
        present, null = FeatureStatus.PRESENT, FeatureStatus.NULL_VALUE
        valid = [True] * self.rows if validity is None else unpack_bits(validity, self.rows)
        if not block.statuses:
            return [present if v else null for v in valid]
        seen = [_STATUSES[code - 1] for code in block.statuses]
        return [null if s is present and not v else s for s, v in zip(seen, valid, strict=True)]

    def _positions(self, data: bytes) -> list[int | None]:
        return [None if p < 0 else p for p in struct.unpack(f"<{self.rows}q", data)]

    def _events(self, block: Block) -> list[datetime | None]:
        if not block.statuses:
            return [None] * self.rows
        found = [_STATUSES[code - 1] is not FeatureStatus.NOT_FOUND for code in block.statuses]
        events = struct.unpack(f"<{self.rows}q", block.events)
        return [to_datetime(e) if f else None for e, f in zip(events, found, strict=True)]


def _newest(statuses: bytes, events: bytes) -> int | None:
    if len(statuses) == 1:
        if statuses[0] == NOT_FOUND:
            return None
        return int.from_bytes(events, "little", signed=True)
    if not statuses:
        return None
    import numpy as np

    instants = np.frombuffer(events, dtype="<i8")
    if NOT_FOUND in statuses:
        instants = instants[np.frombuffer(statuses, dtype=np.uint8) != NOT_FOUND]
    return int(instants.max()) if len(instants) else None
