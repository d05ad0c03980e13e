"""Events handed in by a call go to the stream of their source: checked, encoded, and appended.

Whoever pushes is told at once what does not fit the source's history, and nothing of the call is
appended then. What was appended is durable; an ingest process puts it online and into the tables.
Refuses columns that the source does not have: a misspelt one would be null for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile.live_sql import raw_name
from featurestore.errors import (
    FeatureNotFoundError,
    MissingColumnError,
    RequestError,
    listing,
    near_miss,
)
from featurestore.ports.stream_laws import partition_of
from featurestore.services.event_table import events_table
from featurestore.services.event_values import ERRORS, fitted
from featurestore.services.payloads import MAX_EVENTS, Decoder, encode

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.compile.plan import SourcePlan
    from featurestore.ports.streams import EventStream
    from featurestore.services.source_columns import SourceColumns
    from featurestore.services.state import StateCache

_PAYLOADS_A_CALL = 64
_LEAST_WAIT = 0.001
# The order of versions follows from positions, unless they are declared; so does the partition of
# an event from its id, where the URL says that there are several.
_PARTITIONS = re.compile(r"[?&]partitions=(\d+)")


@dataclass(frozen=True)
class PushReceipt:
    """What became of pushed events: they are in the stream, durably.

    Attributes:
        accepted: How many events were taken: all that were handed in.
        positions: {stream partition: the highest position that these events have in it}.
    """

    accepted: int
    positions: Mapping[str, int]


class EventPusher:
    """Appends events to the streams of a project.

    Args:
        state: The applied definitions.
        columns: Tells the columns of a source's history.
        open_stream: Returns the stream of a URL, the same one for the same URL.
        clock: Measures waits.
    """

    def __init__(
        self,
        state: StateCache,
        columns: SourceColumns,
        open_stream: Callable[[str], EventStream],
        clock: Clock,
    ) -> None:
        self._state = state
        self._columns = columns
        self._open_stream = open_stream
        self._clock = clock

    def push(self, source: str, events: Any, *, timeout: float | None = None) -> PushReceipt:
        """Append events to the stream of a source.

        Args:
            source: The source's name.
            events: A list of dicts, a dict of lists, or a pyarrow, polars or pandas table, with the
                columns of the source's history; those that are missing are null.
            timeout: Seconds to wait for the stream at most; None takes the stream's setting.

        Returns:
            How many were taken, and how far the stream's partitions are with them.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: The source has no stream, or the events do not fit its history. Nothing
                was appended.
            StreamUnavailableError: The stream is gone. Some of the events may have been appended;
                pushing all of them again changes nothing.
        """
        plan = self.source(source)
        table = self._fitted(plan, events_table(events))
        _require_roles(plan, table)
        positions: dict[str, int] = {}
        payloads: list[bytes] = []
        keys: list[bytes] = []
        stream = self._open_stream(str(plan.stream))
        until = None if timeout is None else self._clock.monotonic() + timeout

        def append() -> None:
            left = None if until is None else max(until - self._clock.monotonic(), _LEAST_WAIT)
            for partition, position in stream.append(payloads, keys, timeout=left):
                positions[partition] = max(position, positions.get(partition, -1))
            payloads.clear()
            keys.clear()

        partitions = int((_PARTITIONS.search(str(plan.stream)) or [0, 1])[1])
        for piece, key in _pieces(table, raw_name(plan, str(plan.event_id)), partitions):
            payloads.append(encode(piece))
            keys.append(key)
            if len(payloads) == _PAYLOADS_A_CALL:
                append()
        if payloads:
            append()
        return PushReceipt(table.num_rows, positions)

    def source(self, name: str) -> SourcePlan:
        """Return the plan of a source with a stream.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: It has no stream.
        """
        views = self._state.get().catalog.views.values()
        plans = {view.source.name: view.source for view in views}
        streams = [plan.name for plan in plans.values() if plan.stream is not None]
        if name not in plans:
            raise FeatureNotFoundError(
                f"No applied view has a source called '{name}'.",
                allowed=listing(streams),
                hint=near_miss(name, streams) or "Run 'featurestore apply' if it is new.",
            )
        if plans[name].stream is None:
            raise RequestError(
                f"The source '{name}' is a FileSource; it takes no live events.",
                allowed=listing(streams),
                hint="Declare a StreamSource over it, or write its files.",
            )
        return plans[name]

    def columns(self, name: str) -> pa.Schema:
        """Return the columns that events of a source have.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: It has no stream.
        """
        return self._columns.of(self.source(name))

    def typed(self, name: str, objects: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Return JSON objects as events of a source, their values read as its columns' types.

        Args:
            name: The source.
            objects: Events as a JSON parser gives them; instants are ISO 8601, bytes base64.

        Raises:
            FeatureNotFoundError: No applied view has a source of this name.
            RequestError: It has no stream, or a value does not fit its column.
        """
        import pyarrow as pa

        plan = self.source(name)
        known = dict.fromkeys(key for item in objects for key in item)
        schema = self._schema(plan, list(known))
        decoder = Decoder(pa.schema([f for f in schema if f.name in known]), plan.timezone)
        try:
            return decoder.table(objects)
        except ERRORS as error:
            faults = ((number, decoder.fault(item)) for number, item in enumerate(objects))
            number, fault = next((n, fault) for n, fault in faults if fault is not None)
            raise RequestError(
                f"A value does not fit its column of the source '{name}'.",
                where=f"event {number} of {len(objects)}",
                got=fault,
                allowed="JSON's own numbers, texts and lists; instants as ISO 8601 with a zone",
            ) from error

    def _fitted(self, plan: SourcePlan, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        schema = self._schema(plan, table.column_names)
        fields = [field for field in schema if field.name in table.column_names]
        found = [_column(plan, table, field) for field in fields]
        return pa.Table.from_arrays(found, schema=pa.schema(fields))

    def _schema(self, plan: SourcePlan, names: Sequence[str]) -> pa.Schema:
        """Return the columns of a source, which are to have all of some names."""
        schema = self._columns.of(plan)
        if set(names) - set(schema.names):
            schema = self._columns.of(plan, anew=True)
        for name in names:
            if name not in schema.names:
                raise RequestError(
                    f"The source '{plan.name}' has no column '{name}'.",
                    got=listing(names),
                    allowed=listing(schema.names),
                    hint=near_miss(name, schema.names),
                )
        return schema


def _column(plan: SourcePlan, table: pa.Table, field: pa.Field) -> Any:
    column = fitted(table.column(field.name), field.type)
    if column is None:
        got = table.schema.field(field.name).type
        raise RequestError(
            f"The column '{field.name}' of the events cannot be read as {field.type} without loss.",
            where=f"source '{plan.name}'",
            got=str(got),
            allowed=str(field.type),
            hint=_advice(got, field.type),
        )
    return column


def _advice(got: pa.DataType, wanted: pa.DataType) -> str | None:
    import pyarrow.types as pat

    if not (pat.is_timestamp(got) and pat.is_timestamp(wanted)):
        return None
    if wanted.tz is not None:
        return "Say which time zone the instants are in; it is never guessed."
    return "The history has wall-clock times without a zone here; push them alike."


def _require_roles(plan: SourcePlan, table: pa.Table) -> None:
    """Refuse events that tell nobody which they are, or when they happened."""
    roles = {"event_id": str(plan.event_id), "event_timestamp": plan.event_timestamp}
    if plan.version is not None:
        roles["version"] = plan.version
    for role, declared in roles.items():
        name = raw_name(plan, declared)
        if name not in table.column_names:
            raise MissingColumnError(
                f"The events lack the column '{name}', the {role} of the source '{plan.name}'.",
                got=listing(table.column_names),
                hint=near_miss(name, table.column_names),
            )
        nulls = table.column(name).null_count
        if nulls:
            raise RequestError(
                f"The column '{name}' is the {role} of the source '{plan.name}', and null.",
                got=f"null in {nulls} of {table.num_rows} events",
                allowed="a value in every event",
            )


def _pieces(table: pa.Table, event_id: str, partitions: int) -> Iterator[tuple[pa.Table, bytes]]:
    """Yield events payload by payload, and what decides on the partition of each.

    Versions of one event come in payloads of their own, in the order in which they were handed in,
    and go to one partition: so it is told which is the later one.
    """
    import numpy as np

    ids = _ids(table.column(event_id))
    names, codes = np.unique(ids, return_inverse=True)
    nth = _occurrences(codes)
    places = np.zeros(len(codes), dtype=np.int64)
    if partitions > 1:
        each = [partition_of(str(name).encode(), partitions) for name in names.tolist()]
        places = np.array(each, dtype=np.int64)[codes]
    groups = nth * partitions + places
    for group in np.unique(groups).tolist():
        rows = np.flatnonzero(groups == group)
        for begin in range(0, len(rows), MAX_EVENTS):
            chosen = rows[begin : begin + MAX_EVENTS]
            piece = table if len(chosen) == table.num_rows else table.take(chosen)
            yield piece, str(ids[chosen[0]]).encode()


def _occurrences(codes: Any) -> Any:
    """Return for each item how many equal ones stand before it."""
    import numpy as np

    order = np.argsort(codes, kind="stable")
    first = np.r_[True, codes[order][1:] != codes[order][:-1]][: len(order)]
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    nth = np.empty(len(order), dtype=np.int64)
    nth[order] = np.arange(len(order)) - starts
    return nth


def _ids(column: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    if pa.types.is_integer(column.type):
        return column.to_numpy()
    return np.array(column.cast(pa.string()).to_pylist(), dtype=str)
