"""Where rows come from: files, a stream with its history, and the request itself.

Pure values: nothing is opened here. Column types are read when the definitions are compiled.
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from featurestore.errors import near_miss
from featurestore.model.base import Declaration, Name, Tags, Text, repeated
from featurestore.model.columns import Field, require_types

STREAM_KINDS = ("lmdb", "redis", "rediss", "kafka", "memory")


class FileSource(Declaration):
    """Rows in files: Parquet, CSV, a Delta table, or a DuckDB query over such files.

    Attributes:
        name: The source's name.
        path: A file, a glob, a folder of (Hive-partitioned) Parquet files or a Delta table,
            relative to the repository's folder.
        query: Instead of `path`: a DuckDB SELECT; `delta_scan('path')` reads a Delta table in it.
        format: "parquet", "csv" or "delta"; by default told from the path.
        event_timestamp: The column that says when a row's fact happened.
        created_timestamp: The column that says when it was learnt; without one, a fact counts as
            known when it happened.
        timezone: The zone of naive timestamp columns, such as "America/New_York"; without it they
            are refused (law T1). It makes instants of all of them, in expressions too. A wall-clock
            time that occurs twice is taken as the later one, one that never occurs as if the clocks
            had not been put forward yet.
        field_mapping: New names of source columns, {column: name}; all else uses the new names.
        event_id: For rows that are events: the column that tells an event from all others of its
            entity. Without one, an event is told by its row and how often that stands in its file.
        version: The column that orders versions of one event; the highest counts (law W1). Without
            one it is `created_timestamp`, or else the position in the file.
        deleted: The column that is true where a version takes its event away.
    """

    name: Name
    path: Text | None = None
    query: Text | None = None
    format: Literal["parquet", "csv", "delta"] | None = None
    event_timestamp: Text
    created_timestamp: Text | None = None
    timezone: str | None = None
    field_mapping: dict[Text, Text] = {}
    event_id: Text | None = None
    version: Text | None = None
    deleted: Text | None = None
    description: str = ""
    owner: str = ""
    tags: Tags

    @model_validator(mode="after")
    def _path_or_query(self) -> FileSource:
        if (self.path is None) == (self.query is None):
            raise ValueError("a source has either a path or a query")
        if self.query is not None and self.format is not None:
            raise ValueError("format= goes with path=; a query names its own readers")
        if self.event_id is None and (self.version or self.deleted):
            raise ValueError("version= and deleted= speak of an event, told by event_id=")
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        import zoneinfo

        if value is None:
            return None
        zones = zoneinfo.available_timezones() - {"localtime"}
        if value not in zones:
            lowered = {zone.lower(): zone for zone in zones}
            close = near_miss(value.lower(), lowered)
            meant = f"Did you mean '{lowered[close.split(chr(39))[1]]}'?" if close else ""
            raise ValueError(f"'{value}' is no time zone. {meant or 'Use an IANA name'}")
        return value

    @field_validator("field_mapping")
    @classmethod
    def _distinct_names(cls, value: dict[str, str]) -> dict[str, str]:
        twice = repeated(value.values())
        if twice:
            raise ValueError(f"two columns cannot both be called '{twice}'")
        return value


class StreamSource(Declaration):
    """Events of one logical source: their history in files, and what comes in live.

    Live events have the columns of the history. They count as learnt when the stream took them.

    Attributes:
        name: The source's name.
        batch: The history; it tells the columns and their types, and may have no rows.
        stream: The live events: "lmdb:data/streams/clicks", "redis://host:6379/0/clicks" or
            "kafka://broker:9092/clicks". Secrets come from the environment.
        event_id: The column that tells an event, in the history and live; by default the batch's.
        version: The column that orders versions of one event; by default the batch's, and without
            one the order in which they were taken.
        deleted: The column that is true where a version takes its event away.
        event_timestamp: The column that says when an event happened; by default the batch's.
    """

    name: Name
    batch: FileSource
    stream: Text
    event_id: Text | None = None
    version: Text | None = None
    deleted: Text | None = None
    event_timestamp: Text | None = None
    description: str = ""
    owner: str = ""
    tags: Tags

    @field_validator("stream")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        kind, colon, rest = value.partition(":")
        if not colon or kind not in STREAM_KINDS or not rest.strip("/"):
            raise ValueError(f"a stream is a URL of one of {', '.join(STREAM_KINDS)}")
        if "@" in value and ":" in value.rsplit("//", maxsplit=1)[-1].split("@", maxsplit=1)[0]:
            raise ValueError(
                "a stream's URL holds no password; set FEATURESTORE_STREAMS_PASSWORD instead"
            )
        return value

    @model_validator(mode="after")
    def _identified(self) -> StreamSource:
        if (self.event_id or self.batch.event_id) is None:
            raise ValueError(
                "a stream needs event_id=: an event that is in the history and comes in live as"
                " well is told by it"
            )
        if self.stream.startswith("kafka:") and (self.version or self.batch.version) is None:
            raise ValueError(
                "a Kafka stream with a history needs version=: offsets do not tell which of two"
                " versions of an event is the later one"
            )
        return self

    @property
    def history(self) -> FileSource:
        """The batch source under this name, with all that is said of events."""
        told = {
            "name": self.name,
            "event_id": self.event_id or self.batch.event_id,
            "version": self.version or self.batch.version,
            "deleted": self.deleted or self.batch.deleted,
            "event_timestamp": self.event_timestamp or self.batch.event_timestamp,
        }
        return self.batch.model_copy(update=told)


class RequestSource(Declaration):
    """Values that come with the request and are in no table: the inputs of on-demand views."""

    name: Name
    fields: tuple[Field, ...]
    description: str = ""

    @field_validator("fields")
    @classmethod
    def _typed(cls, value: tuple[Field, ...]) -> tuple[Field, ...]:
        require_types(value, "a request field")
        return value
