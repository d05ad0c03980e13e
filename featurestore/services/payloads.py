"""Payloads of a stream: events as bytes, and back, in the columns of their source's history.

A payload is an Arrow IPC stream of at most 512 events, a JSON object, or a JSON array of objects.
Columns that the source does not have are ignored, those that are missing are null. What cannot be
read is refused event by event with the reason, and never stops what lies beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile.event_sql import ACCEPTED, INDEX, INDEX_BITS
from featurestore.compile.plan import PARTITION, POSITION
from featurestore.services.event_values import ERRORS, fitted, json_reader

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.streams import Entry

MAX_EVENTS = 1 << INDEX_BITS
_SHOWN = 80


@dataclass(frozen=True)
class Refused:
    """An event that cannot be taken.

    Attributes:
        partition: Of the stream.
        position: Of its entry.
        index: Its place in the entry; -1 where all of the entry is refused.
        accepted_us: When the stream took the entry.
        reason: Why, for people.
        payload: The smallest payload that holds it; pushing it again does the same again.
    """

    partition: str
    position: int
    index: int
    accepted_us: int
    reason: str
    payload: bytes


def refused_table(refused: Sequence[Refused]) -> pa.Table:
    """Return refused events as the table in which they are kept."""
    import pyarrow as pa

    return pa.table(
        {
            PARTITION: pa.array([r.partition for r in refused], pa.string()),
            POSITION: pa.array([r.position for r in refused], pa.int64()),
            INDEX: pa.array([r.index for r in refused], pa.int32()),
            ACCEPTED: pa.array([r.accepted_us for r in refused], pa.timestamp("us", "UTC")),
            "reason": pa.array([r.reason for r in refused], pa.string()),
            "payload": pa.array([r.payload for r in refused], pa.binary()),
        }
    )


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a source's columns as payloads and the log have them: nothing by dictionary."""
    import pyarrow as pa

    fields = [
        f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema
    ]
    return pa.schema([pa.field(f.name, f.type) for f in fields])


def live_schema(schema: pa.Schema) -> pa.Schema:
    """Return a source's columns with those of its log behind them."""
    import pyarrow as pa

    live = [
        pa.field(PARTITION, pa.string()),
        pa.field(POSITION, pa.int64()),
        pa.field(INDEX, pa.int32()),
        pa.field(ACCEPTED, pa.timestamp("us", "UTC")),
    ]
    return pa.schema([*schema, *live])


def encode(table: pa.Table | pa.RecordBatch) -> bytes:
    """Return a payload of some events."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return bytes(sink.getvalue())


class Decoder:
    """Reads the payloads of one source.

    Args:
        schema: The columns of its history.
        zone: The zone of instants in columns that have none.
    """

    def __init__(self, schema: pa.Schema, zone: str | None) -> None:
        self.schema = schema
        self._live = live_schema(schema)
        self._readers = {field.name: json_reader(field.type, zone) for field in schema}

    def decode(self, entries: Iterable[Entry]) -> tuple[pa.Table, list[Refused]]:
        """Return the events of entries, with their places, and those that cannot be read."""
        import pyarrow as pa

        refused: list[Refused] = []
        # Payloads of the same columns are read as one: few events a payload must not cost more.
        alike: dict[pa.Schema, list[tuple[Entry, pa.Table]]] = {}
        objects: list[tuple[Entry, int, dict[str, Any]]] = []
        for entry in entries:
            try:
                found = self._read(entry.payload)
            except _DAMAGE as error:
                refused.append(_whole(entry, f"The payload cannot be read: {_brief(error)}"))
                continue
            if isinstance(found, list):
                objects += [(entry, index, item) for index, item in enumerate(found)]
            else:
                alike.setdefault(found.schema, []).append((entry, found))
        tables = [t for group in alike.values() for t in self._typed(group, refused)]
        if objects:
            tables += self._from_objects(objects, refused)
        if not tables:
            return self._live.empty_table(), refused
        return pa.concat_tables(tables).combine_chunks(), refused

    def _read(self, payload: bytes) -> pa.Table | list[dict[str, Any]]:
        import pyarrow as pa

        found: Any
        if payload.lstrip()[:1] in {b"{", b"["}:
            found = json.loads(payload)
            found = found if isinstance(found, list) else [found]
            if not all(isinstance(item, dict) for item in found):
                raise ValueError("an event is a JSON object")
            count = len(found)
        else:
            found = pa.ipc.RecordBatchStreamReader(pa.py_buffer(payload)).read_all()
            found.validate(full=True)
            count = found.num_rows
            if len(set(found.column_names)) < found.num_columns:
                raise ValueError("two columns share a name")
        if count > MAX_EVENTS:
            raise ValueError(f"{count} events; a payload has {MAX_EVENTS} at most")
        return found

    def _typed(
        self, group: Sequence[tuple[Entry, pa.Table]], refused: list[Refused]
    ) -> list[pa.Table]:
        """Return the events of payloads of the same columns, as one table or piece by piece."""
        import pyarrow as pa

        whole = pa.concat_tables([table for _, table in group])
        columns, wrong = [], None
        for field in self.schema:
            place = whole.schema.get_field_index(field.name)
            column: Any = pa.nulls(whole.num_rows, field.type)
            if place >= 0:
                column = fitted(whole.column(place), field.type)
            if column is None:
                wrong = f"'{field.name}': {whole.field(place).type} is no {field.type}"
                break
            columns.append(column)
        if wrong is None:
            typed = pa.Table.from_arrays(columns, schema=self.schema)
            return [self._placed(typed, [(entry, table.num_rows) for entry, table in group])]
        if len(group) > 1:
            return [t for each in group for t in self._typed([each], refused)]
        entry, table = group[0]
        if table.num_rows == 1:
            refused.append(_one(entry, 0, wrong, encode(table)))
            return []
        return self._row_by_row(entry, table, refused)

    def _row_by_row(self, entry: Entry, table: pa.Table, refused: list[Refused]) -> list[pa.Table]:
        import pyarrow as pa

        found = []
        for index in range(table.num_rows):
            alone: list[Refused] = []
            for row in self._typed([(entry, table.slice(index, 1))], alone):
                place = row.schema.get_field_index(INDEX)
                found.append(row.set_column(place, INDEX, pa.array([index], pa.int32())))
            refused += [_one(entry, index, each.reason, each.payload) for each in alone]
        return found

    def _from_objects(
        self, objects: list[tuple[Entry, int, dict[str, Any]]], refused: list[Refused]
    ) -> list[pa.Table]:
        try:
            return [self._object_table(objects)]
        except ERRORS:
            good = []
            for entry, index, item in objects:
                reason = self.fault(item)
                if reason is None:
                    good.append((entry, index, item))
                else:
                    refused.append(_one(entry, index, reason, json.dumps(item).encode()))
            return [self._object_table(good)] if good else []

    def _object_table(self, objects: list[tuple[Entry, int, dict[str, Any]]]) -> pa.Table:
        import pyarrow as pa

        typed = self.table([item for _, _, item in objects])
        placed = self._placed(typed, [(entry, 1) for entry, _, _ in objects])
        indexes = pa.array([index for _, index, _ in objects], pa.int32())
        return placed.set_column(placed.schema.get_field_index(INDEX), INDEX, indexes)

    def table(self, objects: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Return JSON objects in the source's columns.

        Raises:
            Exception: One of `event_values.ERRORS`: a value does not fit; `fault` tells which.
        """
        import pyarrow as pa

        columns = []
        for field in self.schema:
            name, read = field.name, self._readers[field.name]
            values = [item.get(name) for item in objects]
            values = [None if value is None else read(value) for value in values]
            columns.append(pa.array(values, type=field.type))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def fault(self, item: Mapping[str, Any]) -> str | None:
        """Return why a JSON object is no event of the source, None when it is one."""
        import pyarrow as pa

        for field in self.schema:
            value = item.get(field.name)
            if value is None:
                continue
            try:
                pa.array([self._readers[field.name](value)], type=field.type)
            except ERRORS as error:
                shown = json.dumps(value)[:_SHOWN]
                return f"'{field.name}': {shown} is no {field.type} ({_brief(error)})"
        return None

    def _placed(self, typed: pa.Table, counts: Sequence[tuple[Entry, int]]) -> pa.Table:
        """Return events with their places, of (entry, how many of them it has)."""
        import numpy as np
        import pyarrow as pa

        sizes = np.array([count for _, count in counts], dtype=np.int64)
        begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
        positions = np.array([entry.position for entry, _ in counts], dtype=np.int64)
        accepted = np.array([entry.accepted_us for entry, _ in counts], dtype=np.int64)
        names = pa.array([entry.partition for entry, _ in counts], pa.string())
        rows = np.repeat(np.arange(len(sizes)), sizes)
        live = [
            names.take(pa.array(rows)),
            pa.array(positions[rows]),
            pa.array((np.arange(typed.num_rows) - begins).astype(np.int32)),
            pa.array(accepted[rows]).cast(pa.timestamp("us", "UTC")),
        ]
        return pa.Table.from_arrays([*typed.columns, *live], schema=self._live)


# What bytes that are no payload make Arrow and the JSON reader raise.
_DAMAGE = (*ERRORS, OSError, RecursionError, KeyError, IndexError)


def _whole(entry: Entry, reason: str) -> Refused:
    return _one(entry, -1, reason, entry.payload)


def _one(entry: Entry, index: int, reason: str, payload: bytes) -> Refused:
    return Refused(entry.partition, entry.position, index, entry.accepted_us, reason, payload)


def _brief(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:_SHOWN]
