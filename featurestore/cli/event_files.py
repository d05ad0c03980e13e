"""Files of events, read piece by piece: Parquet, CSV and JSON lines, as a source has its columns.

The source says the types of a CSV file's columns and of JSON's values; Parquet has its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from featurestore.errors import RequestError

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.services.pushing_events import EventPusher

_ROWS = 50_000
_LINES = 5_000
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SHOWN = 80


def read(file: Path, kind: str | None, pusher: EventPusher, source: str) -> Iterator[pa.Table]:
    """Yield the events of a file as tables.

    Args:
        file: The file, "-" for standard input.
        kind: "parquet", "csv" or "jsonl"; None tells it from the name.
        pusher: Knows the columns of sources.
        source: The source.

    Raises:
        RequestError: The file cannot be read, or a value is none of its column.
    """
    if str(file) == "-":
        if kind not in {None, "jsonl"}:
            raise RequestError("Standard input is read as JSON lines.", got=f"--format {kind}")
        yield from _json_lines(sys.stdin, "standard input", pusher, source)
        return
    kind = kind or _SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise RequestError(
            f"The format of '{file.name}' cannot be told from its name.",
            allowed=", ".join(_SUFFIXES),
            hint="Say --format parquet, csv or jsonl.",
        )
    try:
        if kind == "jsonl":
            with file.open(encoding="utf-8") as lines:
                yield from _json_lines(lines, str(file), pusher, source)
        else:
            yield from (_parquet(file) if kind == "parquet" else _csv(file, pusher, source))
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            "The file cannot be read.", where=str(file), got=_first(error)
        ) from error


def _parquet(file: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_ROWS):
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _damaged(file, error) from error


def _csv(file: Path, pusher: EventPusher, source: str) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.csv as pc

    types = {field.name: field.type for field in pusher.columns(source)}
    options = pc.ConvertOptions(column_types=types, strings_can_be_null=True)
    try:
        with pc.open_csv(file, convert_options=options) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise _damaged(file, error) from error


def _json_lines(lines: IO[str], where: str, pusher: EventPusher, source: str) -> Iterator[pa.Table]:
    for first, piece in _pieces(lines):
        objects: list[Any] = []
        for number, line in piece:
            try:
                found = json.loads(line)
            except ValueError as error:
                raise _no_object(where, number, line) from error
            if not isinstance(found, dict):
                raise _no_object(where, number, line)
            objects.append(found)
        try:
            yield pusher.typed(source, objects)
        except RequestError as error:
            error.where = f"{where}, lines {first} to {piece[-1][0]}: {error.where or ''}".rstrip(
                ": "
            )
            raise


def _pieces(lines: Iterable[str]) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    piece: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            piece.append((number, line))
        if len(piece) == _LINES:
            yield piece[0][0], piece
            piece = []
    if piece:
        yield piece[0][0], piece


def _no_object(where: str, number: int, line: str) -> RequestError:
    return RequestError(
        "A line is no event.",
        where=f"{where}, line {number}",
        got=line.strip()[:_SHOWN],
        allowed='a JSON object, such as {"id": "e1", "happened_at": "2013-01-31T12:00:00Z"}',
    )


def _damaged(file: Path, error: Exception) -> RequestError:
    return RequestError(
        "The file is damaged, or a value is none of its column.", where=str(file), got=_first(error)
    )


def _first(error: Exception) -> str:
    return str(error).split("\n")[0]
