"""Somebody's Delta tables as sources of kind "delta": read, and never written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from featurestore.compile.plan import SourcePlan
from featurestore.dtypes import from_arrow
from featurestore.errors import SourceCorruptError, SourceError, SourceNotFoundError
from featurestore.ports.engine import SourceFile, SourceListing

if TYPE_CHECKING:
    import pyarrow as pa


class DeltaSources:
    """Sources of kind "delta": somebody's Delta table as it is now.

    Its files never change once written, so a new table version shows as new files.

    Args:
        folder: The repository; relative paths start there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kind(self, path: str) -> Literal["parquet", "csv", "delta"]:
        """Return "delta": this adapter knows nothing else."""
        del path
        return "delta"

    def listing(self, source: SourcePlan) -> SourceListing:
        """Return the files of the table's newest version."""
        table = self._open(source)
        files = [SourceFile(uri, "delta") for uri in sorted(table.file_uris())]
        return SourceListing(tuple(files), self._relation(table, [f.path for f in files]))

    def relation(self, source: SourcePlan, files: Sequence[str]) -> str:
        """Return the SQL of a relation over some of the table's files."""
        return self._relation(self._open(source), files)

    def _open(self, source: SourcePlan) -> deltalake.DeltaTable:
        path = self._folder / (source.path or "")
        try:
            table = deltalake.DeltaTable(path)
            features = set(table.protocol().reader_features or ())
        except TableNotFoundError as error:
            raise SourceNotFoundError(
                f"The source '{source.name}' is no Delta table.", where=str(path)
            ) from error
        except (DeltaError, OSError) as error:
            raise SourceCorruptError(
                f"The Delta table of the source '{source.name}' cannot be read.",
                where=str(path),
                got=str(error).split("\n")[0],
            ) from error
        refused = features & {"deletionVectors", "columnMapping"}
        if refused:
            raise SourceError(
                f"The Delta table of the source '{source.name}' uses features that are not read.",
                where=str(path),
                got=", ".join(sorted(refused)),
                hint="Rewrite the table without them (REORG ... APPLY (PURGE)).",
            )
        return table

    @staticmethod
    def _relation(table: deltalake.DeltaTable, files: Sequence[str]) -> str:
        import pyarrow as pa

        schema = pa.schema(table.schema().to_arrow())
        if not files:
            columns = ", ".join(
                f'CAST(NULL AS {_duckdb_type(field.type)}) AS "{field.name}"' for field in schema
            )
            return f"(SELECT {columns} WHERE false)"
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in files)
        partitions = table.metadata().partition_columns
        types = ", ".join(
            f"'{name}': {_duckdb_type(schema.field(name).type)}" for name in partitions
        )
        hive = f", hive_types = {{{types}}}" if partitions else ""
        return (
            f"read_parquet([{names}], union_by_name = true,"
            f" hive_partitioning = {'true' if partitions else 'false'}{hive})"
        )


def _duckdb_type(arrow: pa.DataType) -> str:
    dtype = from_arrow(arrow)
    return dtype.duckdb if dtype is not None else "VARCHAR"
