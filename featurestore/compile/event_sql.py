"""SQL of what makes a source's row an event: identity, version, deletion and position (law W1).

In files, an event's identity is its declared `event_id`, or else its row and how often that row has
stood in its file so far: equal rows of one file are different events, and an event that stands in
two files is one. A version is the declared one, or `created_timestamp`, or the position in a file.
Versions of files and of live events are on one scale where both follow from when a fact was learnt:
a millisecond is 2**21 steps. Dialect: DuckDB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.compile.plan import DELETED, EVENT_ID, PARTITION, POSITION, VERSION
from featurestore.compile.table_sql import quote
from featurestore.errors import DefinitionError, SourceSchemaError

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import SourcePlan
    from featurestore.compile.source_sql import MappedSource

FILE, ROW, TEXT = "__file", "__row", "__text"
INDEX, ACCEPTED = "_index", "_accepted_at"
INDEX_BITS = 9
"""A live event's version is its entry's position and, in so many bits, its place in the entry."""


def extras(source: SourcePlan, relation: str, *, live: bool) -> dict[str, str]:
    """Return columns, by name, that are needed of a relation beside its own."""
    if live or source.event_id is not None:
        single = not live and source.version is None and source.created_timestamp is None
        return {ROW: "row_number() OVER ()"} if single else {}
    # Only a reader knows which file a row is from; other relations count as one file.
    return {FILE: "filename" if relation.startswith("read_") else "''"}


def event_columns(mapped: MappedSource, created: str, *, live: bool) -> dict[str, str]:
    """Return the SQL of each column of an event log, `EVENT_ID` left out where it is not declared.

    Args:
        mapped: The source's relation.
        created: The SQL of `created_timestamp`.
        live: Whether the relation is a stream's own log.

    Raises:
        SourceSchemaError: A declared column is not there, or of a type that tells nothing.
    """
    source = mapped.source
    columns = {
        VERSION: _version(mapped, created, live=live),
        DELETED: "false",
        PARTITION: quote(PARTITION) if live else "CAST(NULL AS VARCHAR)",
        POSITION: quote(POSITION) if live else "CAST(NULL AS BIGINT)",
    }
    if source.event_id is not None:
        columns[EVENT_ID] = _event_id(mapped, source.event_id)
    if source.deleted is not None:
        column = mapped.column(source.deleted, "deleted")
        _require(mapped, column, {"bool", "int32", "int64"}, "deleted")
        columns[DELETED] = f"coalesce(CAST({quote(column)} AS BOOLEAN), false)"
    return columns


def check_events(mapped: MappedSource) -> None:
    """Raise unless the source tells events and their versions in a way that lasts.

    Raises:
        DefinitionError: `event_id` stands alone though the source has many files: the position in
            a file then does not tell which version is the later one.
    """
    source = mapped.source
    event_columns(mapped, "CAST(NULL AS TIMESTAMPTZ)", live=False)
    alone = source.version is None and source.created_timestamp is None
    single = source.kind in {"parquet", "csv"} and not set("*?[") & set(source.path or "")
    if source.event_id is not None and alone and not single:
        raise DefinitionError(
            f"The versions of an event cannot be ordered in FileSource '{source.name}'.",
            got=f"event_id='{source.event_id}' without version= and created_timestamp=",
            allowed="version=, or created_timestamp=; a single file may go without",
            hint="Name the column that tells which of two rows of an event is the later one.",
        )


def with_identity(select: str, names: list[str]) -> str:
    """Return rows with the `EVENT_ID` of events that declare none.

    Args:
        select: A SELECT of the columns `names` and `FILE`.
        names: The log's columns but `EVENT_ID`, quoted.
    """
    row = ", ".join(f"epoch_us({n})" if n.endswith("_timestamp") else n for n in names)
    text = f"SELECT *, CAST(ROW({row}) AS VARCHAR) AS {TEXT} FROM ({select})"
    nth = f"row_number() OVER (PARTITION BY {FILE}, {TEXT})"
    return f"SELECT {', '.join(names)}, md5({TEXT} || '#' || {nth}) AS {EVENT_ID} FROM ({text})"


def _event_id(mapped: MappedSource, name: str) -> str:
    column = mapped.column(name, "event_id")
    kind = _require(mapped, column, {"int32", "int64", "string"}, "event_id")
    # Numbers are to be in the order of numbers where events of one instant are ordered by their id.
    return quote(column) if kind == "string" else f"printf('%020d', {quote(column)})"


def _version(mapped: MappedSource, created: str, *, live: bool) -> str:
    source = mapped.source
    if source.version is not None:
        column = mapped.column(source.version, "version")
        kind = _require(mapped, column, {"int32", "int64", "timestamp"}, "version")
        named = quote(column)
        return f"epoch_us({named})" if kind == "timestamp" else f"CAST({named} AS BIGINT)"
    if live:
        return f"({quote(POSITION)} * {1 << INDEX_BITS} + {INDEX})::BIGINT"
    if source.event_id is None:
        return "0::BIGINT"
    if source.created_timestamp is None:
        return f"{ROW}::BIGINT"
    moment = f"epoch_us({created})"
    steps = f"({moment} // 1000) * {1 << 21} + ({moment} % 1000) * {1 << 11}"
    return f"coalesce({steps}, 0)::BIGINT"


def _require(mapped: MappedSource, column: str, kinds: set[str], role: str) -> str:
    from featurestore.compile.source_types import infer

    arrow: pa.DataType = mapped.columns[column]
    dtype = infer(arrow, mapped.source)
    if dtype is None or str(dtype) not in kinds:
        raise SourceSchemaError(
            f"The column '{column}' cannot be the {role} of '{mapped.source.name}'.",
            got=str(arrow),
            allowed=", ".join(sorted(kinds)),
            hint="Convert it with query=.",
        )
    return str(dtype)
