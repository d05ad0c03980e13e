"""Versions of events are applied to a state (law W1): once or often, in any order and grouping.

Most states are small and most events are new: those are appended to the recent versions without
looking at them one by one. All else is done by `Job`, which asks for further fields as it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featurestore.semantics.states.batch import Batch
from featurestore.semantics.states.index import Index, Needs, entries_of
from featurestore.semantics.states.layout import (
    HEADER,
    NEVER,
    NO_TREE,
    RECENT,
    Header,
    id_hash,
    read_header,
)
from featurestore.semantics.states.schema import StateSchema
from featurestore.semantics.states.tree import PAGE_ROWS, Tree
from featurestore.semantics.states.versions import (
    EMPTY,
    FIXED,
    HEAD,
    MOVED,
    PAGE,
    SEPARATOR,
    Version,
    is_many,
    pack_page,
    read_page,
    settle,
)

RECENT_ROWS = 128
_RECENT_BYTES = 1 << 15
# Recent versions are looked through for old ones once they are about twice as many as last time.
_SLACK = 16
# Nodes are dropped once so much of what is kept, as a part of it, is past.
_SWEEPS = 16

Fields = dict[bytes, bytes | None]


@dataclass(frozen=True)
class Rules:
    """What applying goes by.

    Attributes:
        schema: The view's.
        horizon: What happened before may be dropped; None keeps everything.
        retention: How long events are kept at least; None for ever.
        first_counter: What the counter of a new state begins with; differs from call to call.
        recent_rows: How many versions stay outside of the tree.
        page_rows: How many versions a page of the tree takes.
    """

    schema: StateSchema
    horizon: int | None
    retention: int | None
    first_counter: int
    recent_rows: int = RECENT_ROWS
    page_rows: int = PAGE_ROWS


@dataclass(frozen=True, slots=True)
class Change:
    """Fields to change, None for one that goes away, and the last instant of all versions."""

    fields: Fields
    latest: int


def append(
    rules: Rules, batch: Batch, rows: Sequence[int], header: bytes | None, recent: bytes | None
) -> Change | None:
    """Return the change that new events of a small state make; None where more is to be looked at.

    Args:
        rules: What to go by.
        batch: Rows of a log.
        rows: Those of this state.
        header: Its header; None where there is no state.
        recent: Its recent versions.
    """
    held = _header(rules, header)
    page = EMPTY if recent is None else recent
    kind, count, named = HEAD.unpack_from(page)
    total = count + len(rows)
    is_pruned = rules.horizon is not None and total > 2 * held.settled + _SLACK
    is_large = total > rules.recent_rows or len(page) > _RECENT_BYTES
    if held.depth != NO_TREE or is_pruned or is_large or kind != PAGE:
        return None
    start = HEAD.size + count * (FIXED.size + batch.fixed_bytes)
    end = start + named
    ids = page[start:end]
    horizon = NEVER if rules.horizon is None else rules.horizon
    for row in rows:
        event_id = batch.ids[row] + SEPARATOR
        place = batch.places[row]
        if SEPARATOR + event_id in ids or place < horizon:
            return None
        ids += event_id
        held.latest = max(held.latest, place)
        if batch.flags[row] == MOVED:
            # Of a put, what lies at its instant is dropped here; the guard alone is kept.
            held.horizon = max(held.horizon, horizon)
    _note_positions(held, batch, rows)
    held.counter += 1
    page = b"".join(
        (
            HEAD.pack(PAGE, total, len(ids)),
            page[HEAD.size : start],
            *[batch.rows[row] for row in rows],
            ids,
            page[end:],
            *[batch.tails[row] for row in rows],
        )
    )
    fields: Fields = {HEADER: held.packed(rules.schema.fingerprint), RECENT: page}
    return Change(fields, held.latest)


class Job:
    """Applies versions to one state, whatever it looks like.

    Args:
        rules: What to go by.
        batch: Rows of a log.
        rows: Those of this state.
        fields: `HEADER` and `RECENT` of the state; further fields are put in as they are asked for.
    """

    def __init__(self, rules: Rules, batch: Batch, rows: Sequence[int], fields: Fields) -> None:
        self.fields = fields
        self.version = fields[HEADER]
        self._rules = rules
        self._schema = rules.schema
        self._new = not fields[HEADER]
        self._header = _header(rules, fields[HEADER])
        self._positions = dict(self._header.applied)
        _note_positions(self._header, batch, rows)
        self._given = _by_id(map(batch.version, rows))
        data = fields[RECENT]
        self._recent = _by_id([] if data is None else read_page(self._schema, data))
        self._index = Index(self._header, fields)
        self.tree = Tree(self._schema, self._header, fields, rules.page_rows)
        self._dirty = False

    def run(self) -> Needs:
        """Apply, asking for fields on the way. What nodes come to is computed behind it."""
        if self._header.depth != NO_TREE:
            yield from self._fetch_older()
        for event_id, versions in self._given.items():
            held = self._recent.get(event_id, ())
            kept = self._settled((*held, *versions))
            if kept != tuple(held):
                self._recent[event_id] = list(kept)
                self._dirty = True
        self._drop_old()
        recent = [version for held in self._recent.values() for version in held]
        if is_many(recent, self._rules.recent_rows, _RECENT_BYTES):
            yield from self._fold(recent)
        yield from self._sweep()

    def change(self) -> Change | None:
        """Return the change, None without any; `summarize` was called on the tree before."""
        if not self._dirty and self._header.applied == self._positions:
            return None
        fields = self.tree.changes() | self._index.changes()
        if self._dirty:
            versions = [v for held in self._recent.values() for v in held]
            fields[RECENT] = pack_page(self._schema, versions) if versions else None
        if self._new and fields.get(RECENT) is None and not self.tree.touched:
            return None  # nothing of it can be reached
        self._header.counter += 1
        fields[HEADER] = self._header.packed(self._schema.fingerprint)
        return Change(fields, self._header.latest)

    def _settled(self, versions: Sequence[Version]) -> tuple[Version, ...]:
        """Return what is kept of an event, nothing where none of it can be reached."""
        kept = settle(self._schema.inputs, versions)
        horizon = self._rules.horizon
        if horizon is not None and kept[0].place < horizon:
            self._dropped(horizon)
            kept = tuple(version for version in kept if version.place >= horizon)
        if kept:
            self._header.latest = max(self._header.latest, kept[-1].place)
        return kept

    def _dropped(self, horizon: int) -> None:
        if self._header.horizon < horizon:
            self._header.horizon = horizon
            self._dirty = True

    def _fetch_older(self) -> Needs:
        """Take events of the tree that a delivery changes back to the recent ones."""
        unknown = [event_id for event_id in self._given if event_id not in self._recent]
        yield from self._index.load(unknown)
        found = [
            (i, id_hash(i), place) for i in unknown for place in self._index.places(id_hash(i))
        ]
        if not found:
            return
        yield from self.tree.load([(hashed, place) for _, hashed, place in found])
        held: dict[bytes, list[Version]] = {}
        for event_id, hashed, place in found:
            for version in self.tree.find(event_id, hashed, place):
                if version not in held.setdefault(event_id, []):
                    held[event_id].append(version)
        for event_id, versions in held.items():
            kept = settle(self._schema.inputs, (*versions, *self._given[event_id]))
            if set(kept) == set(versions):
                del self._given[event_id]
                continue
            for version in versions:
                self.tree.remove(event_id, id_hash(event_id), version.place)
                self._index.remove(id_hash(event_id), version.place)
            self._recent[event_id] = versions
            self._dirty = True

    def _drop_old(self) -> None:
        """Let go of recent versions from before the horizon, every now and then."""
        horizon = self._rules.horizon
        count = sum(map(len, self._recent.values()))
        if horizon is None or not self._dirty or count <= 2 * self._header.settled + _SLACK:
            return
        kept = {}
        for event_id, held in self._recent.items():
            versions = [version for version in held if version.place >= horizon]
            if len(versions) < len(held):
                self._dropped(horizon)
            if versions:
                kept[event_id] = versions
        self._recent = kept
        self._header.settled = sum(map(len, kept.values()))

    def _fold(self, versions: list[Version]) -> Needs:
        """Put all recent versions into the tree."""
        entries = entries_of(versions)
        yield from self._index.grow(len(entries))
        yield from self._index.load(self._recent)
        yield from self.tree.load(entries)
        for entry in entries:
            self._index.add(*entry)
        self.tree.insert(versions)
        self._recent = {}
        self._header.settled = 0
        if self._header.swept == NEVER and self._rules.horizon is not None:
            self._header.swept = self._rules.horizon
        self._dirty = True

    def _sweep(self) -> Needs:
        """Drop nodes from before the horizon, once there are some of them."""
        horizon, retention = self._rules.horizon, self._rules.retention
        header = self._header
        if horizon is None or retention is None or header.depth == NO_TREE or not self._dirty:
            return
        if horizon - header.swept < retention // _SWEEPS:
            return
        yield from self.tree.sweep(horizon)
        header.swept = horizon
        self._dropped(horizon)


def _header(rules: Rules, data: bytes | None) -> Header:
    if data is not None:
        return read_header(rules.schema, data)
    # What was there before, if anything, may have been dropped without a trace.
    horizon = NEVER if rules.horizon is None else rules.horizon
    return Header(rules.first_counter, horizon=horizon)


def _note_positions(header: Header, batch: Batch, rows: Sequence[int]) -> None:
    applied = header.applied
    for row in rows:
        partition, position = batch.partitions[row], batch.positions[row]
        if partition is not None and position is not None:
            applied[partition] = max(applied.get(partition, -1), position)


def _by_id(versions: Iterable[Version]) -> dict[bytes, list[Version]]:
    found: dict[bytes, list[Version]] = {}
    for version in versions:
        found.setdefault(version.id, []).append(version)
    return found
