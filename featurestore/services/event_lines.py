"""What became of each version of an event in one window: it counts, or why it does not (law W1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.compile.plan import DELETED, EVENT_ID, PARTITION, POSITION, VERSION
from featurestore.compile.window_sql import packed_schema
from featurestore.semantics.rows import payloads
from featurestore.services.value_report import EventLine

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import AggregatePlan, ViewPlan

Row = dict[str, Any]


def event_lines(
    view: ViewPlan,
    plan: AggregatePlan,
    table: pa.Table,
    window: tuple[int | None, int],
    applied: Mapping[str, int] | None,
) -> tuple[EventLine, ...]:
    """Return the versions of a log with what became of them.

    Args:
        view: The aggregated view.
        plan: The aggregate.
        table: Rows of the log of one entity.
        window: The first instant in the window, None for no beginning; the one behind its last.
        applied: {stream partition: how far it was applied online}; None where that is not known.
    """
    rows: list[Row] = table.to_pylist(maps_as_pydicts="strict")
    instants = table.column("event_timestamp").cast("int64").to_pylist()
    best: dict[str, int] = {}
    ranks = _ranks(view, table)
    for place, row in enumerate(rows):
        held = best.get(row[EVENT_ID])
        if held is None or (rows[held][VERSION], ranks[held]) < (row[VERSION], ranks[place]):
            best[row[EVENT_ID]] = place
    lines = []
    for place, row in enumerate(rows):
        line = _line(view, plan, row)
        winner = best[row[EVENT_ID]]
        counted = None if plan.by is not None and line.by is None else line.value
        is_in = _is_in(instants[place], window)
        became = _became(row, rows[winner], place == winner, is_in, counted)
        if applied is not None and line.partition is not None:
            is_behind = (line.position or 0) > applied.get(line.partition, -1)
            became = "not applied" if is_behind else became
        lines.append(replace(line, became=became))
    return tuple(lines)


def _line(view: ViewPlan, plan: AggregatePlan, row: Row) -> EventLine:
    return EventLine(
        id=row[EVENT_ID],
        version=row[VERSION],
        event_timestamp=row["event_timestamp"],
        created_timestamp=row["created_timestamp"],
        value=True if plan.input is None else row[view.inputs[plan.input].name],
        by=None if plan.by is None else row[view.inputs[plan.by].name],
        partition=row[PARTITION],
        position=row[POSITION],
        became="",
    )


def _became(row: Row, winner: Row, is_winner: bool, is_in: bool, value: Any) -> str:  # noqa: FBT001
    if not is_winner:
        return "deleted" if winner[DELETED] else "superseded"
    if row[DELETED]:
        return "deletes"
    if not is_in:
        return "outside"
    is_null = value is None or (isinstance(value, float) and math.isnan(value))
    return "null" if is_null else "counts"


def _is_in(instant: int, window: tuple[int | None, int]) -> bool:
    low, high = window
    return (low is None or low <= instant) and instant < high


def _ranks(view: ViewPlan, table: pa.Table) -> list[bytes]:
    """Return the canonical bytes of each version, which settle versions that tie."""
    schema = packed_schema(view)
    names = ["event_timestamp", DELETED, *(each.name for each in view.inputs)]
    columns = [
        table.column(name).combine_chunks().cast(dtype.arrow)
        for name, dtype in zip(names, schema.dtypes, strict=True)
    ]
    return payloads(schema, columns, table.num_rows)
