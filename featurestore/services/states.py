"""Applies events to the online states of aggregated views (laws W1, O1, M7).

Applying is idempotent and commutative, so delivering at least once has the effect of exactly once,
in any order and from any number of processes: a state that somebody else changed meanwhile is read
and changed again.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.compile.state_plan import state_schema
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.semantics.keys import encode_columns, namespace
from featurestore.semantics.states.schema import GRACE_US, StateSchema

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.semantics.states.applying import Change, Job, Rules
    from featurestore.semantics.states.batch import Batch

_ROWS = 10_000
_ATTEMPTS = 1_000
_LAST_INSTANT = 2**63 - 1


@dataclass(frozen=True)
class Applied:
    """What became of rows.

    Attributes:
        rows: How many belong to an entity.
        changed: How many states they changed.
    """

    rows: int
    changed: int

    def __add__(self, other: Applied) -> Applied:
        return Applied(self.rows + other.rows, self.changed + other.changed)


class StateWriter:
    """Applies event logs to the states of one project.

    Args:
        project: The project, part of every key's namespace.
        online: The store.
        grace_us: How long events are kept beyond the reach of a view's widest window; what readers
            take it to be (`WindowReader`).
        recent_rows: How many versions a state has before it grows a tree; None takes the usual.
        page_rows: How many versions a page of the tree takes; None takes the usual.
    """

    def __init__(
        self,
        project: str,
        online: OnlineStore,
        *,
        grace_us: int = GRACE_US,
        recent_rows: int | None = None,
        page_rows: int | None = None,
    ) -> None:
        self._project = project
        self._online = online
        self._grace_us = grace_us
        self._recent_rows = recent_rows
        self._page_rows = page_rows
        self._schemas: dict[tuple[str, str], StateSchema] = {}

    def apply(self, view: ViewPlan, rows: pa.Table, now_us: int) -> Applied:
        """Apply rows of a view's event log.

        Args:
            view: The aggregated view.
            rows: The columns of `view.log`: join keys, event_timestamp, created_timestamp, then its
                features. In any order, any number of times.
            now_us: The instant from which is counted how long events are kept.

        Raises:
            DataError: A state was written under another schema or is damaged, or a row cannot be
                packed.
            OnlineStoreUnavailableError: The store is gone, or others change a state all the time.
        """
        total = Applied(0, 0)
        for start in range(0, rows.num_rows, _ROWS):
            total += self._apply(view, rows.slice(start, _ROWS), now_us)
        return total

    def _apply(self, view: ViewPlan, rows: pa.Table, now_us: int) -> Applied:
        from featurestore.semantics.states.batch import batch_of

        rules = self._rules(view, now_us)
        columns = [_whole(column) for column in rows.columns]
        width = len(view.join_keys)
        instants, learnt, *log = columns[width:]
        exact = [
            column if column.type.equals(plan.type.arrow) else column.cast(plan.type.arrow)
            for column, plan in zip(log, view.log.features, strict=True)
        ]
        batch = batch_of(rules.schema, [instants, learnt, *exact], rules.horizon)
        pending = self._keys(view, columns[:width], rows.num_rows)
        count = sum(map(len, pending.values()))
        changed = 0
        for _ in range(_ATTEMPTS):
            if not pending:
                return Applied(count, changed)
            made, pending = self._round(rules, batch, pending)
            changed += made
        raise OnlineStoreUnavailableError(
            f"States of '{view.name}' were changed by others all the time.",
            got=f"{_ATTEMPTS} attempts in vain for {len(pending)} states",
            hint="Let fewer processes apply events of the same entities.",
        )

    def _rules(self, view: ViewPlan, now_us: int) -> Rules:
        from featurestore.semantics.states.applying import RECENT_ROWS, Rules
        from featurestore.semantics.states.tree import PAGE_ROWS

        known = (view.name, view.table_fingerprint)
        schema = self._schemas.get(known)
        if schema is None:
            schema = self._schemas[known] = state_schema(view)
        retention = schema.retention(self._grace_us)
        return Rules(
            schema,
            None if retention is None else now_us - retention,
            retention,
            # Somebody else's new state must not look like this one.
            secrets.randbits(64),
            self._recent_rows or RECENT_ROWS,
            self._page_rows or PAGE_ROWS,
        )

    def _keys(self, view: ViewPlan, keys: Sequence[pa.Array], rows: int) -> dict[bytes, list[int]]:
        """Return the rows of each state."""
        lead = namespace(self._project, view.name, view.table_fingerprint)
        if not view.join_keys:
            return {lead: list(range(rows))}
        groups: dict[bytes, list[int]] = {}
        for row, key in enumerate(encode_columns(keys, [key.type for key in view.join_keys])):
            if key is not None:
                groups.setdefault(lead + key, []).append(row)
        return groups

    def _round(
        self, rules: Rules, batch: Batch, pending: dict[bytes, list[int]]
    ) -> tuple[int, dict[bytes, list[int]]]:
        """Read states, change them, write them; return how many were written, and which not."""
        from featurestore.semantics.states.applying import Job, append
        from featurestore.semantics.states.layout import RECENT

        names = (VERSION, RECENT)
        found, _ = self._online.read_states([StateRead(key, names) for key in pending])
        changes: list[StateChange] = []
        jobs: dict[bytes, Job] = {}
        for (key, rows), (header, recent) in zip(pending.items(), found, strict=True):
            change = append(rules, batch, rows, header, recent)
            if change is None:
                jobs[key] = Job(rules, batch, rows, {VERSION: header, RECENT: recent})
            else:
                changes.append(_state_change(rules, key, header, change))
        lost = self._run(rules, jobs) if jobs else set()
        for key, job in jobs.items():
            change = None if key in lost else job.change()
            if change is not None:
                changes.append(_state_change(rules, key, job.version, change))
        made = self._online.write_states(changes) if changes else []
        lost |= {change.key for change, was_made in zip(changes, made, strict=True) if not was_made}
        return sum(made), {key: rows for key, rows in pending.items() if key in lost}

    def _run(self, rules: Rules, jobs: dict[bytes, Job]) -> set[bytes]:
        """Run jobs, reading for all of them at once; return which states changed meanwhile."""
        from featurestore.semantics.states.tree import summarize

        running = {key: job.run() for key, job in jobs.items()}
        lost: set[bytes] = set()
        while running:
            wanted: dict[bytes, list[bytes]] = {}
            for key, steps in list(running.items()):
                needs = _next_needs(steps, jobs[key].fields)
                if needs:
                    wanted[key] = needs
                else:
                    del running[key]
            reads = [StateRead(key, (VERSION, *names)) for key, names in wanted.items()]
            found = self._online.read_states(reads)[0] if reads else []
            for read, (version, *values) in zip(reads, found, strict=True):
                job = jobs[read.key]
                if version != job.version:
                    lost.add(read.key)
                    del running[read.key]
                job.fields.update(zip(read.fields[1:], values, strict=True))
        summarize(rules.schema, [job.tree for key, job in jobs.items() if key not in lost])
        return lost


def _next_needs(steps: object, fields: dict[bytes, bytes | None]) -> list[bytes]:
    """Go on until fields are needed that are not there; return them, none at the end."""
    for needs in steps:  # type: ignore[attr-defined]
        missing = [name for name in needs if name not in fields]
        if missing:
            return missing
    return []


def _whole(column: pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    chunks = column.combine_chunks()
    return pa.concat_arrays(chunks.chunks) if isinstance(chunks, pa.ChunkedArray) else chunks


def _state_change(rules: Rules, key: bytes, version: bytes | None, change: Change) -> StateChange:
    expires = 0
    if rules.retention is not None:
        expires = min(change.latest + rules.retention, _LAST_INSTANT)
    return StateChange(
        key,
        version,
        {name: value for name, value in change.fields.items() if value is not None},
        [name for name, value in change.fields.items() if value is None],
        expires,
    )
