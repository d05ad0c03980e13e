"""Arrow tables as what callers hold: Polars frames, and Parquet files.

A map is a list of structs of `key` and `value` in a Polars frame. So it is in every version of
Polars, in what an on-demand function is given as in what a call returns, and so the expressions for
lists work on it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError, StorageError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


def to_polars(table: pa.Table) -> pl.DataFrame:
    """Return a table as a frame."""
    import polars as pl
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_map(field.type):
            pair = pa.struct([("key", field.type.key_type), ("value", field.type.item_type)])
            table = table.set_column(index, field.name, table[index].cast(pa.list_(pair)))
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"a table became {type(frame).__name__}")
    return frame


def write_parquet(path: str | Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches to a Parquet file, which appears whole or not at all.

    Args:
        path: The file; one that is there is replaced at the end.
        schema: The columns.
        batches: The rows.

    Raises:
        StorageError: The file cannot be written.
    """
    import pyarrow.parquet as pq

    target = Path(path)
    begun = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with pq.ParquetWriter(begun, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        begun.replace(target)
    except BaseException as error:
        begun.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FeatureStoreError):
            raise StorageError(
                "The result cannot be written.", where=str(target), got=error.strerror
            ) from error
        raise
