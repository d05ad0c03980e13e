"""Files of the local file system as sources: Parquet, CSV, and queries over them.

Tells which files a source has and what tells a change: size, modification time and inode. Reads
nothing itself; the SQL that it returns is for DuckDB.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from featurestore.compile.plan import SourcePlan
from featurestore.errors import SourceError, SourceNotFoundError, near_miss
from featurestore.ports.engine import SourceFile, SourceListing

_MAGIC = frozenset("*?[")
_CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst")


class LocalFiles:
    """Sources of kind "parquet", "csv" and "query" below a folder.

    Args:
        folder: The repository; relative paths start there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def kind(self, path: str) -> Literal["parquet", "csv", "delta"]:
        """Return the format of a path: a folder with a Delta log, a CSV suffix, else Parquet."""
        if (self._folder / path / "_delta_log").is_dir():
            return "delta"
        return "csv" if path.lower().endswith(_CSV_SUFFIXES) else "parquet"

    def listing(self, source: SourcePlan) -> SourceListing:
        """Return the files of a source as of now."""
        if source.kind == "query":
            return SourceListing((), f"({source.query})", opaque=True)
        files = tuple(_file(path, source) for path in self._paths(source))
        # CSV types are told from all files together: some of them alone may read otherwise.
        opaque = source.kind == "csv" and len(files) > 1
        relation = self.relation(source, [file.path for file in files])
        return SourceListing(files, relation, opaque=opaque)

    def relation(self, source: SourcePlan, files: Sequence[str]) -> str:
        """Return the SQL of a relation over some of the files."""
        if source.kind == "query":
            return f"({source.query})"
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in files)
        reader, hive = "read_parquet", self._hive(source)
        if source.kind == "csv":
            reader = "read_csv"
        return f"{reader}([{names}], union_by_name = true, hive_partitioning = {hive})"

    def _hive(self, source: SourcePlan) -> str:
        path = source.path or ""
        inside = "=" in path or _MAGIC & set(path) or (self._folder / path).is_dir()
        return "true" if inside else "false"

    def _paths(self, source: SourcePlan) -> list[Path]:
        path = self._folder / (source.path or "")
        if _MAGIC & set(str(source.path)):
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
            found = [name for name in found if name.is_file()]
        elif path.is_dir():
            suffix = ".csv" if source.kind == "csv" else ".parquet"
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffix))
            found = [p for p in found if not _hidden(p.relative_to(path))]
        else:
            found = [path] if path.is_file() else []
        if not found:
            raise SourceNotFoundError(
                f"The source '{source.name}' has no files.",
                where=str(path),
                allowed="a file, a glob, or a folder of Parquet files or a Delta table",
                hint=_suggest(path),
            )
        return found


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _suggest(path: Path) -> str:
    if _MAGIC & set(str(path)):
        return "Check the pattern; nothing matches it."
    if not path.parent.is_dir():
        return f"The folder '{path.parent}' does not exist."
    return near_miss(path.name, list(_names(path.parent))) or "Check the path."


def _names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in folder.iterdir())


def _file(path: Path, source: SourcePlan) -> SourceFile:
    try:
        stat = path.stat()
    except OSError as error:
        raise SourceError(
            f"A file of the source '{source.name}' cannot be read.",
            where=str(path),
            got=error.strerror,
        ) from error
    return SourceFile(str(path), f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}")
