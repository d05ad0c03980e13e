"""What pages and nodes come to: merged states of their events, for many of them at once (W5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurestore.semantics.aggregates import algebra
from featurestore.semantics.states.events import EventColumns, Tails, unpack_inputs
from featurestore.semantics.states.nodes import Inner, Summary
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.versions import Version


def of_pages(schema: StateSchema, pages: Sequence[Sequence[Version]]) -> list[Summary]:
    """Return what each page comes to."""
    if not pages:
        return []
    live = [[version for version in page if not version.flags] for page in pages]
    counts = [len(versions) for versions in live]
    events = columns_of(schema, [version for versions in live for version in versions])
    starts, ends = ranges_of(counts)
    states = [events.lift(f).merge(starts, ends).encode() for f in schema.families]
    return [Summary(count, list(found)) for count, *found in zip(counts, *states, strict=True)]


def of_parts(schema: StateSchema, nodes: Sequence[Inner]) -> list[Summary]:
    """Return what the parts of each node come to together."""
    if not nodes:
        return []
    parts = [list(node.parts.values()) for node in nodes]
    starts, ends = ranges_of([len(held) for held in parts])
    flat = [summary for held in parts for summary in held]
    states = [
        algebra(family.state)
        .decode([summary.states[i] for summary in flat])
        .merge(starts, ends)
        .encode()
        for i, family in enumerate(schema.families)
    ]
    counts = [sum(summary.count for summary in held) for held in parts]
    return [Summary(count, list(found)) for count, *found in zip(counts, *states, strict=True)]


def columns_of(schema: StateSchema, versions: Sequence[Version]) -> EventColumns:
    """Return versions that count as columns."""
    size = schema.inputs.fixed_bytes
    data = b"".join([version.payload[:size] for version in versions])
    fixed = np.frombuffer(data, dtype=np.uint8).reshape(len(versions), size)
    parts = [version.payload[size:] for version in versions]
    starts, _ = ranges_of([len(part) for part in parts])
    tails = Tails(b"".join(parts), starts) if schema.inputs.varying else None
    instants = np.array([version.place for version in versions], dtype=np.int64)
    inputs = unpack_inputs(schema, fixed, tails, schema.wanted.inputs)
    return EventColumns(instants, [version.id for version in versions], inputs)


def ranges_of(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranges of neighbours that have these sizes: int64[n] starts, int64[n] ends."""
    ends = np.cumsum(np.array(counts, dtype=np.int64))
    return ends - np.array(counts, dtype=np.int64), ends
