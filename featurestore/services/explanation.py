"""How a retrieval would run, as text for people: joins, files, rows, ranges, and the SQL.

The SQL is that of the very functions that run it; nothing is described from memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from featurestore.compile import join_sql, window_sql
from featurestore.compile.aggregate_text import aggregate_texts
from featurestore.compile.join_sql import JoinSpec
from featurestore.semantics.timeline import format_instant
from featurestore.services import window_retrieval
from featurestore.services.retrieval import (
    CANONICAL,
    JoinTable,
    Retrieval,
    ranges,
    row_width,
)
from featurestore.services.window_retrieval import choices

if TYPE_CHECKING:
    from featurestore.ports.engine import EngineSession
    from featurestore.semantics.windowing import Choice
    from featurestore.services.entity_needs import Loaded


def explain(
    retrieval: Retrieval, session: EngineSession, loaded: Loaded, outside: Mapping[str, int]
) -> str:
    """Return the plan of a retrieval.

    Args:
        retrieval: The request.
        session: Holds the entity rows.
        loaded: How many there are, and the span of their instants.
        outside: For each view, how many of them fall outside what has been materialized.
    """
    lines = list(_head(retrieval, loaded))
    specs = retrieval.specs(loaded)
    for spec, table in zip(specs, retrieval.tables, strict=True):
        lines += _head_of_join(spec, table, outside.get(spec.view.name, 0))
        if spec.view.aggregates:
            chosen = choices(session, spec, loaded.rows, retrieval.memory_limit)
            lines += _windows(spec, chosen)
            continue
        parts = ranges(loaded.rows, row_width(session, spec, loaded.rows), retrieval.memory_limit)
        lines += _join(spec, parts)
    for step in retrieval.plan.steps:
        inputs = [name for name, _ in step.inputs] + [f"request {f.name}" for f in step.request]
        lines.append(f"on demand: {step.plan.name}({', '.join(inputs)}), batch by batch")
    lines.append(f"result: {', '.join(retrieval.feature_schema.names)}")
    lines.append(f"    {join_sql.result(specs, retrieval.entity.given)}")
    return "\n".join(lines)


def _head(retrieval: Retrieval, loaded: Loaded) -> Iterator[str]:
    span = ""
    if loaded.rows:
        span = f", {format_instant(loaded.low)} to {format_instant(loaded.high)}"
    yield f"entity rows: {retrieval.entity.describe()}, {loaded.rows} rows{span}"
    yield f"knowledge: {'known' if retrieval.known else 'healed'}"


def _head_of_join(spec: JoinSpec, table: JoinTable, outside: int) -> Iterator[str]:
    view, join, snapshot = spec.view, spec.join, table.snapshot
    alias = f" as {join.alias}" if join.alias != view.name else ""
    pairs = zip(join.key_columns, view.join_keys, strict=True)
    keys = ", ".join(f"{column} = {key.name}" for column, key in pairs)
    ttl = "none" if view.ttl_us is None else str(timedelta(microseconds=view.ttl_us))
    chosen = set(spec.files)
    rows = sum(file.rows for file in snapshot.files if file.path in chosen)
    yield f"join: {view.name}{alias}, features {', '.join(join.features)}"
    yield f"  keys: {keys or 'none, every row gets the same'}; ttl: {ttl}"
    yield (
        f"  table: {snapshot.table_id} version {snapshot.version};"
        f" {len(spec.files)} of {len(snapshot.files)} files,"
        f" {rows} of {snapshot.rows} rows may matter"
    )
    yield f"  entity rows outside what has been materialized: {outside}"


def _windows(spec: JoinSpec, chosen: Sequence[Choice] | None) -> Iterator[str]:
    """Tell how windows are found, and by which plan the kernel merges what is in them."""
    known = " that had been learnt" if spec.known else ""
    yield f"  versions: the highest of each event{known} counts; deletions take theirs away"
    texts = aggregate_texts(spec.view)
    for i, name in enumerate(column.name for column in spec.columns):
        how = (
            f"{chosen[i].plan}, {chosen[i].pairs} pairs of event and row" if chosen else "by chunk"
        )
        yield f"  {name} = {texts[name]}: {how}"
    if chosen is None:
        yield "  some keys at a time; each chunk of them is merged by frames or by prefix"
    if not spec.files:
        yield "  there are no events: counts are 0, lists and maps empty, all else null"
        return
    for name, statement in _window_statements(spec):
        yield f"  {name}:"
        yield f"    {statement}"


def _window_statements(spec: JoinSpec) -> Iterator[tuple[str, str]]:
    if spec.keys:
        yield "keys with their numbers", window_sql.spans(spec)
    yield "entity rows by number of their key", join_sql.probes(spec)
    yield "sorted", window_sql.order(spec)
    if window_sql.is_corrected(spec.view) or not spec.unique:
        yield "events of several versions, if any", window_sql.contested(spec)
        yield "their versions", window_sql.versions(spec)
        canonical = window_retrieval.CANONICAL.format(spec.number)
        yield (
            "settled by version, and by bytes where these tie",
            window_sql.settled(spec, canonical),
        )
    yield "events, sorted for the kernel", window_sql.events(spec, apart=True)


def _join(spec: JoinSpec, parts: list[tuple[int, int]]) -> Iterator[str]:
    yield f"  ties: {_ties(spec)}"
    yield f"  features are written in {len(parts)} range{'s' if len(parts) != 1 else ''} of rows"
    if not spec.files:
        yield "  no row can be visible: all features are null"
        return
    for name, statement in _statements(spec, parts):
        yield f"  {name}:"
        yield f"    {statement}"


def _ties(spec: JoinSpec) -> str:
    if spec.known:
        return "reduced; newest by (event, created, canonical bytes) of what was known"
    if spec.unique:
        return "none: the table promises one row a key and event timestamp"
    return "reduced; newest by (created, canonical bytes) at each instant that was found"


def _statements(spec: JoinSpec, parts: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    if spec.keys:
        yield "keys with their span of instants", join_sql.spans(spec)
    yield "entity rows by number of their key", join_sql.probes(spec)
    if spec.direct:
        yield "position of the newest row", join_sql.matches(spec)
    else:
        yield "instant of the newest row", join_sql.found(spec)
        yield "rows at these instants", join_sql.candidates(spec)
        yield "newest of them", join_sql.winners(spec)
        yield "rows that tie fully, if any", join_sql.tied(spec)
        yield "settled by bytes, if any", join_sql.settle(spec, CANONICAL.format(spec.number))
        yield "position of the newest row", join_sql.chosen(spec, ties=True)
    for first, last in parts[:1]:
        for statement in join_sql.block(spec, first, last):
            yield f"features of rows {first} to {last - 1}", statement
