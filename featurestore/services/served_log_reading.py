"""Reading back what was served: rows as they were answered, for training and for audits (law L5).

The log is read file by file, so that a result may be larger than memory. Definitions change, and
with them the columns: a row has null in a feature that was not asked for when it was served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.compile.request import FeaturesArgument
from featurestore.errors import NameClashError, RequestError, StorageError, listing, near_miss
from featurestore.model.declarations import FeatureSelection, FeatureService
from featurestore.semantics.timeline import to_instant
from featurestore.services.frames import to_polars, write_parquet
from featurestore.services.lossless import exact
from featurestore.services.retrieval_job import to_pandas
from featurestore.services.served_log_shape import (
    AS_OF,
    ENTITY,
    EVENTS,
    FEATURES,
    REQUEST,
    REQUEST_ID,
    ROW,
    SERVED_AT,
    STATUS,
    Shape,
    served_id,
)

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import polars as pl
    import pyarrow as pa

    from featurestore.ports.tables import TableFile, Tables

_BATCH_ROWS = 65_536
_METADATA = {"served_at": SERVED_AT, "request_id": REQUEST_ID, "request_row": ROW}
Instant = datetime | str | int


@dataclass(frozen=True)
class ServedTable:
    """The answers of one shape that were served in a span of time.

    Attributes:
        shape: What they have in common.
        files: Where they are, and perhaps others.
        start: The first instant, microseconds; None without one.
        end: The first instant that is not wanted.
    """

    shape: Shape
    files: tuple[TableFile, ...]
    start: int | None
    end: int | None

    def batches(
        self, columns: Sequence[str] | None = None, rows: int = _BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows, about in the order in which they were served.

        Args:
            columns: Only these columns of the table.
            rows: Rows in a batch at most.

        Raises:
            StorageError: A file cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = None if columns is None else [*dict.fromkeys([SERVED_AT, *columns])]
        for file in sorted(self.files, key=lambda file: (file.min_event, file.path)):
            try:
                with pq.ParquetFile(file.path) as source:
                    for batch in source.iter_batches(rows, columns=wanted):
                        yield self._within(batch)
            except (OSError, pa.ArrowException) as error:
                raise StorageError(
                    "A file of the served log cannot be read.",
                    where=file.path,
                    got=str(error),
                    hint="If it was merged or forgotten meanwhile, ask again.",
                ) from error

    def _within(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        import numpy as np
        import pyarrow as pa

        at = batch.column(SERVED_AT).cast("int64").to_numpy()
        kept = np.ones(len(at), dtype=bool)
        if self.start is not None:
            kept &= at >= self.start
        if self.end is not None:
            kept &= at < self.end
        return batch if kept.all() else batch.filter(pa.array(kept))


class ServedReader:
    """Finds what was logged.

    Args:
        project: The project.
        tables: Hold the logs.
    """

    def __init__(self, project: str, tables: Tables) -> None:
        self._project = project
        self._tables = tables

    def find(
        self, features: FeaturesArgument | None, start: Instant | None, end: Instant | None
    ) -> list[ServedTable]:
        """Return the answers to a request that were served in `[start, end)`, by their shapes.

        Args:
            features: A service, its name, or references; None for all that was logged.
            start: The first instant; None without one.
            end: The first instant that is not wanted.

        Raises:
            RequestError: Nothing was logged.
        """
        first = None if start is None else to_instant(start, "start")
        last = None if end is None else to_instant(end, "end")
        asked = None if features is None else _Asked.of(features)
        found, others = list[ServedTable](), set[str]()
        for table_id in self._tables.names(served_id(self._project)):
            snapshot = self._tables.snapshot(table_id)
            if not snapshot.files:
                continue  # Whoever made the table may have died before it held anything.
            shape = Shape.model_validate_json(snapshot.metadata["shape"])
            files = tuple(
                file
                for file in snapshot.files
                if (first is None or file.max_event >= first)
                and (last is None or file.min_event < last)
            )
            if asked is not None and not asked.is_of(shape):
                others.add(shape.service or ", ".join(shape.references))
            elif files:
                found.append(ServedTable(shape, files, first, last))
        if not found:
            raise RequestError(
                "Nothing was logged of what was served.",
                got="all services" if asked is None else str(asked),
                allowed=f"logged: {listing(others)}" if others else None,
                hint=near_miss(str(asked), others)
                or "serving.served_log_sample says how much is logged; what is served is in the"
                " log some seconds later.",
            )
        return sorted(found, key=lambda each: max(file.max_event for file in each.files))

    def views(
        self, features: FeaturesArgument | None, start: Instant | None, end: Instant | None
    ) -> set[str]:
        """Return the views, on-demand ones too, that the answers of `find` were made from."""
        found = self.find(features, start, end)
        return {source.view for table in found for source in table.shape.sources}

    def job(
        self,
        features: FeaturesArgument,
        start: Instant | None,
        end: Instant | None,
        *,
        full_feature_names: bool,
        include_metadata: bool,
    ) -> ServedJob:
        """Return what was served in `[start, end)`; see `FeatureStore.get_served_features`.

        Raises:
            RequestError: Nothing was logged, or a column changed its type in that time.
            NameClashError: Two columns would share a name.
        """
        tables = self.find(features, start, end)
        return ServedJob(tables, full_names=full_feature_names, include_metadata=include_metadata)


class ServedJob:
    """Rows as they were served, ready to be fetched as often as wanted.

    The columns: the join keys, the request's fields, `as_of`, and the features.

    Args:
        tables: The answers by shape, the newest last; its columns come first.
        full_names: Name features `view__feature`.
        include_metadata: Add when and by what each row was served.
    """

    def __init__(
        self, tables: Sequence[ServedTable], *, full_names: bool, include_metadata: bool
    ) -> None:
        self._tables = tables
        self._columns: dict[str, tuple[pa.DataType, str, str]] = {}
        for table in reversed(tables):
            for name, found in _columns(table.shape, full_names, include_metadata).items():
                self._add(name, found)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the result as Arrow types."""
        import pyarrow as pa

        return pa.schema([(name, kind) for name, (kind, _, _) in self._columns.items()])

    def to_batches(self, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Return the rows in batches, read while they are asked for; older definitions first.

        Args:
            batch_rows: Rows in a batch at most.
        """
        import pyarrow as pa

        if batch_rows < 1:
            raise RequestError("A batch has one row or more.", got=str(batch_rows))
        schema = self.schema

        def batches() -> Iterator[pa.RecordBatch]:
            for table in self._tables:
                tops = {top for _, top, _ in self._columns.values()}
                held = [name for name in table.shape.schema.names if name in tops]
                for batch in table.batches(held, batch_rows):
                    if batch.num_rows:
                        arrays = [self._array(batch, name) for name in schema.names]
                        yield pa.RecordBatch.from_arrays(arrays, schema=schema)

        return batches()

    def to_arrow(self) -> pa.Table:
        """Return the rows as one Arrow table."""
        import pyarrow as pa

        return pa.Table.from_batches(self.to_batches(), self.schema)

    def to_polars(self) -> pl.DataFrame:
        """Return the rows as a Polars frame; a map is a list of structs of `key` and `value`."""
        return to_polars(self.to_arrow())

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a pandas frame, with pandas' nullable types.

        Raises:
            RequestError: pandas is not installed.
        """
        return to_pandas(self.to_arrow(), 0)

    def to_parquet(self, path: str | Path) -> None:
        """Write the rows to a Parquet file, which appears whole or not at all.

        Args:
            path: The file; one that is there is replaced at the end.

        Raises:
            StorageError: The file cannot be written.
        """
        write_parquet(path, self.schema, self.to_batches())

    def _add(self, name: str, found: tuple[pa.DataType, str, str]) -> None:
        held = self._columns.setdefault(name, found)
        if held[1:] != found[1:]:
            raise NameClashError(
                f"Two columns of the result would share the name '{name}'.",
                got=f"{'.'.join(held[1:])} and {'.'.join(found[1:])}",
                hint="Ask with full_feature_names=True.",
            )
        if held[0] != found[0]:
            raise RequestError(
                f"The column '{name}' changed its type in the time that is asked for.",
                got=f"{found[0]}, later {held[0]}",
                hint="Ask for the time before and after it apart.",
            )

    def _array(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        import pyarrow as pa

        kind, top, inner = self._columns[name]
        if top not in batch.schema.names:
            return pa.nulls(batch.num_rows, kind)
        column = batch.column(top)
        if inner:
            place = column.type.get_field_index(inner)
            if place < 0:
                return pa.nulls(batch.num_rows, kind)
            column = column.field(place)
        return exact(column, kind)


def _columns(shape: Shape, full_names: bool, metadata: bool) -> Mapping[str, Any]:  # noqa: FBT001
    """Return {result column: (type, column of the table, field of it)}."""
    schema = shape.schema
    found: dict[str, tuple[pa.DataType, str, str]] = {}

    def add(name: str, top: str, inner: str = "") -> None:
        kind = schema.field(top).type
        place = (kind.field(inner).type if inner else kind, top, inner)
        if found.setdefault(name, place) != place:
            raise NameClashError(
                f"Two columns of the result would share the name '{name}'.",
                got=f"{'.'.join(found[name][1:])} and {'.'.join(place[1:])}",
                hint="Ask with full_feature_names=True.",
            )

    for key in shape.keys:
        add(key.name, ENTITY, key.name)
    for field in shape.request:
        add(field.name, REQUEST, field.name)
    add("as_of", AS_OF)
    for feature in shape.features:
        add(feature.name if full_names else _short(shape, feature.name), FEATURES, feature.name)
    if metadata:
        for name, top in _METADATA.items():
            add(name, top)
        for source in shape.sources:
            if not source.on_demand:
                add(f"{source.alias}__status", STATUS, source.alias)
                add(f"{source.alias}__event_timestamp", EVENTS, source.alias)
    return found


def _short(shape: Shape, full: str) -> str:
    """Return a feature's own name."""
    leads = [s.alias for s in shape.selections if full.startswith(f"{s.alias}__")]
    names = {f"{s.alias}__{name}": name for s in shape.selections for name in s.features}
    return names.get(full, full.removeprefix(f"{leads[0]}__") if leads else full)


@dataclass(frozen=True)
class _Asked:
    """What was asked for: a service, or references, or the whole of some views."""

    service: str | None = None
    references: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()

    @classmethod
    def of(cls, features: FeaturesArgument) -> _Asked:
        if isinstance(features, str):
            return cls(service=features)
        if isinstance(features, FeatureService):
            return cls(service=features.name)
        references, views = set[str](), set[str]()
        for item in features:
            if isinstance(item, str):
                (references if ":" in item else views).add(item)
            elif isinstance(item, FeatureSelection):
                alias = item.alias_name or item.view
                references |= {f"{alias}:{name}" for name in item.features or ()}
                views |= set() if item.features else {alias}
            else:
                views.add(item.name)
        return cls(None, frozenset(references), frozenset(views))

    def is_of(self, shape: Shape) -> bool:
        """Whether the answers of a shape are answers to it."""
        if self.service or shape.service:
            return self.service == shape.service
        known = {each: each.partition(":")[0] for each in shape.references}
        whole = {each for each, view in known.items() if view in self.views}
        asked = self.references | whole
        return asked == known.keys() and self.views <= {*known.values()}

    def __str__(self) -> str:
        return self.service or listing({*self.references, *self.views})
