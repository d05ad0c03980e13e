"""A training set to be fetched: nothing is joined before one of the `to_` methods is called.

Batches and Parquet files are written as they are computed, so that a result may be larger than
memory; a whole table is in memory by nature. Entity rows in memory come back as the very columns
that were handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import RequestError
from featurestore.services.entity_memory import MemoryRows
from featurestore.services.explanation import explain
from featurestore.services.frames import to_polars, write_parquet
from featurestore.services.retrieval import Retrieval

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    import polars as pl
    import pyarrow as pa

    from featurestore.ports.engine import Engine, EngineSession
    from featurestore.services.entity_needs import Loaded

_BATCH_ROWS = 65_536
Fill = Callable[[Retrieval, Mapping[str, int], int, int], bool]


class RetrievalJob:
    """Features of entity rows, ready to be fetched as often as wanted.

    Args:
        prepare: Checks the request against the definitions and tables as they are now.
        engine: Runs the join.
        fill: Materializes what is missing before the first run; None where nobody asked for it.
        quiet: Whether nobody is to be warned of entity rows outside what has been materialized.
    """

    def __init__(
        self,
        prepare: Callable[[], Retrieval],
        engine: Engine,
        fill: Fill | None,
        *,
        quiet: bool = False,
    ) -> None:
        self._prepare = prepare
        self._engine = engine
        self._fill = fill
        self._quiet = quiet
        self._retrieval = prepare()
        self._outside: dict[str, int] | None = None

    @property
    def outside(self) -> dict[str, int]:
        """For each view, how many entity rows fall outside what has been materialized.

        Their features may be missing because nobody has materialized them yet. What is filled on
        request before the join no longer counts.
        """
        if self._outside is None:
            with self._open():
                pass
        return dict(self._outside or {})

    @property
    def schema(self) -> pa.Schema:
        """The columns of the result as Arrow types."""
        import pyarrow as pa

        return pa.schema([*self._retrieval.entity.schema, *self._retrieval.feature_schema])

    def to_batches(self, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Return the result in batches, computed while they are read.

        Args:
            batch_rows: Rows in a batch at most; fewer where rows are wide.
        """
        import pyarrow as pa

        if batch_rows < 1:
            raise RequestError("A batch has one row or more.", got=str(batch_rows))

        def batches() -> Iterator[pa.RecordBatch]:
            schema = self.schema
            with self._open() as (session, loaded):
                entity = self._retrieval.entity
                for batch in self._retrieval.run(session, loaded, batch_rows):
                    columns = [*entity.columns(batch.raw, batch.first), *batch.features.values()]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

        return batches()

    def to_arrow(self) -> pa.Table:
        """Return the result as one Arrow table: the entity rows' columns, then the features."""
        import pyarrow as pa

        entity = self._retrieval.entity
        if not isinstance(entity, MemoryRows):
            return pa.Table.from_batches(self.to_batches(), self.schema)
        columns = [*entity.table.columns, *self._features().columns]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def to_polars(self) -> pl.DataFrame:
        """Return the result as a Polars frame; a frame that came in keeps its columns."""
        import polars as pl

        kept = self._retrieval.entity.kept
        if isinstance(kept, pl.DataFrame):
            return kept.hstack(to_polars(self._features()))
        return to_polars(self.to_arrow())

    def to_pandas(self) -> pd.DataFrame:
        """Return the result as a pandas frame; a frame that came in keeps its columns and index.

        Integers and booleans come as pandas' nullable types, so that they stay exact beside nulls.

        Raises:
            RequestError: pandas is not installed.
        """
        pd = _pandas()
        kept = self._retrieval.entity.kept
        if not isinstance(kept, pd.DataFrame):
            return to_pandas(self.to_arrow(), len(self._retrieval.entity.names))
        features = to_pandas(self._features(), 0)
        return pd.concat([kept, features.set_axis(kept.index)], axis="columns")

    def to_parquet(self, path: str | Path) -> None:
        """Write the result to a Parquet file, which appears whole or not at all.

        Args:
            path: The file; one that is there is replaced at the end.

        Raises:
            StorageError: The file cannot be written.
        """
        write_parquet(path, self.schema, self.to_batches())

    def explain(self) -> str:
        """Return how the result would be computed: joins, files, rows, and the SQL of each stage.

        The entity rows are read for it, and nothing is joined.
        """
        with self._open() as (session, loaded):
            return explain(self._retrieval, session, loaded, self._outside or {})

    def _features(self) -> pa.Table:
        import pyarrow as pa

        schema = self._retrieval.feature_schema
        with self._open() as (session, loaded):
            batches = [
                pa.RecordBatch.from_arrays(list(batch.features.values()), schema=schema)
                for batch in self._retrieval.run(session, loaded, _BATCH_ROWS)
            ]
        return pa.Table.from_batches(batches, schema)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[EngineSession, Loaded]]:
        """Open a session with the entity rows in it, after filling what is missing if asked to."""
        if self._fill is not None:
            with self._session() as (session, loaded):
                outside = self._retrieval.outside(session, loaded)
            # The session is closed: materializing takes the memory that it had.
            if self._fill(self._retrieval, outside, loaded.low, loaded.high):
                self._retrieval = self._prepare()
            self._fill = None
        with self._session() as (session, loaded):
            if self._outside is None:
                self._outside = self._retrieval.outside(session, loaded)
                if not self._quiet:
                    _warn(self._outside, loaded.rows)
            yield session, loaded

    @contextlib.contextmanager
    def _session(self) -> Iterator[tuple[EngineSession, Loaded]]:
        with self._engine.session(memory_limit=self._retrieval.memory_limit) as session:
            yield session, self._retrieval.entity.load(session)


def _warn(outside: Mapping[str, int], rows: int) -> None:
    import structlog

    for view, count in outside.items():
        if count:
            structlog.get_logger(__name__).warning(
                "entity rows fall outside what has been materialized",
                view=view,
                outside=count,
                entity_rows=rows,
            )


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise RequestError(
            "pandas is not installed.",
            hint="Install the extra: pip install 'featurestore[pandas]'; or use to_polars().",
        ) from error
    return pd


def to_pandas(table: pa.Table, given: int) -> pd.DataFrame:
    """Return a frame; the first `given` columns change type only where they hold nulls.

    Maps of features become dicts, value by value: pandas would make floats of their integers.

    Raises:
        RequestError: pandas is not installed.
    """
    import pyarrow as pa

    pd = _pandas()

    exact = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint8(): pd.UInt8Dtype(),
        pa.uint16(): pd.UInt16Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    series = {}
    for i, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if i >= given and pa.types.is_map(column.type):
            dicts = column.to_pylist(maps_as_pydicts="strict")
            series[name] = pd.Series(dicts, dtype="object")
            continue
        mapper = exact.get if i >= given or column.null_count else None
        series[name] = column.to_pandas(types_mapper=mapper)
    return pd.DataFrame(series)
