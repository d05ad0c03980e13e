"""Delta Lake as the tables: DuckDB writes the files, deltalake commits them (laws M2, M3).

Each commit carries an application transaction for the table, so that of two writers who read the
same version only one succeeds; the other gets `ConflictError`. File statistics hold the row count
and the span of event timestamps, which readers of this project and others prune by.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from featurestore.compile.event_sql import ACCEPTED
from featurestore.compile.plan import POSITION, SERVED
from featurestore.errors import ConflictError, StorageError
from featurestore.ports.tables import TableFile, TableSnapshot, TableVersion
from featurestore.semantics.timeline import format_instant

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock

_APPLICATION = "featurestore"
_PREFIX = "featurestore."
# Commits of other programs, such as an OPTIMIZE, that may lie behind the last one of ours.
_OTHERS = 100


class DeltaTables:
    """Delta tables below one folder.

    Args:
        folder: The offline path.
        clock: Stamps the files of a commit.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    def folder(self, table_id: str) -> str:
        """Return the absolute folder of a table."""
        return str(self._folder / table_id)

    def snapshot(self, table_id: str) -> TableSnapshot:
        """Return the newest version of a table; -1 when there is none."""
        with _translated(self.folder(table_id)):
            table = self._open(table_id)
            if table is None:
                return TableSnapshot(table_id, -1)
            actions = table.get_add_actions(flatten=True)
            return TableSnapshot(
                table_id,
                table.version(),
                tuple(_files(actions, self._folder / table_id)),
                _metadata(self._folder / table_id, table.version()),
            )

    def names(self, prefix: str) -> list[str]:
        """Return the tables below a prefix, by their logs."""
        top = self._folder / prefix
        with _translated(str(top)):
            return [path.relative_to(self._folder).as_posix() for path in _tables_below(top)]

    def history(self, table_id: str) -> list[TableVersion]:
        """Return the versions whose commits are still in the log, the newest first."""
        folder = self._folder / table_id
        with _translated(str(folder)):
            numbers = sorted(int(path.stem) for path in folder.glob("_delta_log/*[0-9].json"))
            known = [(number, _commit_metadata(folder, number)) for number in reversed(numbers)]
        return [TableVersion(number, said) for number, said in known if said]

    def at(self, table_id: str, version: int) -> TableSnapshot:
        """Return a former version, as the log tells it."""
        folder = self._folder / table_id
        with _translated(str(folder)):
            actions = deltalake.DeltaTable(folder, version=version).get_add_actions(flatten=True)
            said = _commit_metadata(folder, version) or {}
            return TableSnapshot(table_id, version, tuple(_files(actions, folder)), said)

    def commit(
        self,
        table_id: str,
        schema: pa.Schema,
        *,
        read_version: int,
        add: Sequence[TableFile],
        remove: Sequence[TableFile] = (),
        metadata: Mapping[str, str],
    ) -> int:
        """Add and remove files in one Delta commit that fails if another came between."""
        path = self.folder(table_id)
        with _translated(path):
            table = self._open(table_id)
            if table is None:
                table = self._create(path, schema)
            _add_columns(table, schema)
            found = table.version()
            # A table that was just created by this call or by a writer who died has version 0.
            if found != read_version and not (read_version == -1 and found == 0):
                raise _conflict(table_id, f"version {found} where {read_version} was read")
            now_ms = self._clock.now_us() // 1000
            actions: list[Any] = [_add_action(file, now_ms) for file in add]
            actions += [_remove_action(file, Path(path), now_ms) for file in remove]
            try:
                table.create_write_transaction(
                    actions,
                    "append",
                    _declared(schema),
                    ["event_period"],
                    commit_properties=CommitProperties(
                        custom_metadata={_PREFIX + key: value for key, value in metadata.items()},
                        app_transactions=[Transaction(_APPLICATION, found + 1)],
                        max_commit_retries=0,
                    ),
                )
            except CommitFailedError as error:
                raise _conflict(table_id, str(error)) from error
            return found + 1

    def drop(self, table_id: str) -> None:
        """Delete a table's folder."""
        target = self._folder / table_id
        try:
            shutil.rmtree(target)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(
                "A table cannot be deleted.", where=str(target), got=error.strerror
            ) from error

    def vacuum(self, table_id: str, *, before_us: int) -> int:
        """Delete older data files that the newest version does not refer to."""
        known = {file.path for file in self.snapshot(table_id).files}
        deleted = 0
        for path in (self._folder / table_id).glob("event_period=*/*.parquet"):
            if str(path) not in known and path.stat().st_mtime_ns // 1000 < before_us:
                path.unlink(missing_ok=True)
                deleted += 1
        return deleted

    def _open(self, table_id: str) -> deltalake.DeltaTable | None:
        path = self._folder / table_id
        if not (path / "_delta_log").is_dir():
            return None
        try:
            return deltalake.DeltaTable(path)
        except TableNotFoundError:
            return None

    @staticmethod
    def _create(path: str, schema: pa.Schema) -> deltalake.DeltaTable:
        Path(path).mkdir(parents=True, exist_ok=True)
        deltalake.DeltaTable.create(
            path,
            _declared(schema),
            mode="ignore",
            partition_by=["event_period"],
            configuration=_LIVE if _LOGS & {*schema.names} else _CONFIGURATION,
        )
        return deltalake.DeltaTable(path)


# The log is the table's history: it is small, and verification reads it back.
_CONFIGURATION = {
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 1 days",
}
# A log is committed to every few seconds, and nobody asks for its former versions.
_LOGS = {ACCEPTED, SERVED}
_LIVE = _CONFIGURATION | {"delta.logRetentionDuration": "interval 1 days"}


def _add_columns(table: deltalake.DeltaTable, schema: pa.Schema) -> None:
    """Declare columns that are new; a commit of its own, so that the caller's conflicts once."""
    known = {field.name for field in table.schema().fields}
    new = [field for field in _declared(schema) if field.name not in known]
    if new:
        import pyarrow as pa

        table.alter.add_columns(list(deltalake.Schema.from_arrow(pa.schema(new)).fields))


def _declared(schema: pa.Schema) -> pa.Schema:
    """Return the columns as Delta can declare them: text for what it has no type for.

    Our own readers take the types from the files, which have all of them.
    """
    import pyarrow as pa

    return pa.schema([f if _has_type(f.type) else f.with_type(pa.string()) for f in schema])


def _has_type(arrow: Any) -> bool:
    import pyarrow.types as pat

    if pat.is_struct(arrow) or pat.is_map(arrow) or hasattr(arrow, "value_type"):
        inner = [arrow.field(i).type for i in range(arrow.num_fields)]
        return all(_has_type(each) for each in inner or [arrow.value_type])
    refused = (pat.is_time, pat.is_float16, pat.is_duration, pat.is_interval, pat.is_null)
    return not any(check(arrow) for check in refused)


def _files(actions: Any, folder: Path) -> Iterator[TableFile]:
    """Yield the files; the span of a stream's log is told by our stamp (`ports.tables`)."""
    import pyarrow as pa

    rows = pa.table(actions)
    if rows.num_rows == 0:
        return
    accepted = f"min.{ACCEPTED}" in rows.schema.names
    instant = ACCEPTED if accepted else "event_timestamp"
    columns = {
        "path": rows["path"].to_pylist(),
        "period": rows["partition.event_period"].to_pylist(),
        "rows": rows["num_records"].to_pylist(),
        "bytes": rows["size_bytes"].to_pylist(),
        "min_event": rows[f"min.{instant}"].cast(pa.int64()).to_pylist(),
        "max_event": rows[f"max.{instant}"].cast(pa.int64()).to_pylist(),
    }
    if accepted:
        columns["last_position"] = rows[f"max.{POSITION}"].to_pylist()
    for path, *rest in zip(*columns.values(), strict=True):
        yield TableFile(str(folder / path), *rest)


def _metadata(folder: Path, version: int) -> dict[str, str]:
    """Return what our last commit said, as of a version.

    Read from the log itself: `DeltaTable.history` tells of the newest commit that there is by now,
    under the number of the version that was opened.
    """
    for number in range(version, max(-1, version - _OTHERS), -1):
        found = _commit_metadata(folder, number)
        if found is None or found:
            return found or {}
    return {}


def _commit_metadata(folder: Path, number: int) -> dict[str, str] | None:
    """Return what a commit of ours said, {} for that of another, None where it is not there."""
    file = folder / "_delta_log" / f"{number:020}.json"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    commits = (json.loads(line).get("commitInfo") for line in lines if _PREFIX in line)
    for commit in commits:
        found = {
            key.removeprefix(_PREFIX): str(value)
            for key, value in (commit or {}).items()
            if key.startswith(_PREFIX)
        }
        if found:
            return found
    return {}


def _tables_below(folder: Path) -> Iterator[Path]:
    if (folder / "_delta_log").is_dir():
        yield folder
    elif folder.is_dir():
        for child in sorted(folder.iterdir()):
            yield from _tables_below(child)


def _add_action(file: TableFile, now_ms: int) -> AddAction:
    instant = "event_timestamp" if file.last_position is None else ACCEPTED
    low: dict[str, Any] = {instant: format_instant(file.min_event)}
    high: dict[str, Any] = {instant: format_instant(file.max_event)}
    if file.last_position is not None:
        high[POSITION] = file.last_position
    stats = {
        "numRecords": file.rows,
        "minValues": low,
        "maxValues": high,
        "nullCount": {instant: 0},
    }
    return AddAction(
        path=file.path,
        size=file.bytes,
        partition_values={"event_period": file.period},
        modification_time=now_ms,
        data_change=True,
        stats=json.dumps(stats),
    )


def _remove_action(file: TableFile, folder: Path, now_ms: int) -> Any:
    return RemoveAction(
        path=str(Path(file.path).relative_to(folder)),
        data_change=True,
        deletion_timestamp=now_ms,
        size=file.bytes,
        partition_values={"event_period": file.period},
    )


def _conflict(table_id: str, got: str) -> ConflictError:
    return ConflictError(
        "Another run committed to the table first; nothing of this run was added.",
        where=table_id,
        got=got,
        hint="Run it again: what is there already is not written twice.",
    )


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        if isinstance(error, ConflictError | StorageError):
            raise
        text = str(error).split("\n")[0]
        full = "No space left" in text
        raise StorageError(
            "The disk is full; the table is unchanged." if full else "The table cannot be used.",
            where=path,
            got=text,
            hint="Free space and run it again." if full else "Check the folder and its rights.",
        ) from error
