"""Live events as the rows of each view, by the same SQL as the history's, and on into the store.

A micro-batch is one Arrow table; each view makes one query of it in a session that stays open. A
view's SQL may fail for the values of one event: such events are found by halving and taken out for
all views, because no view's table could ever be built from a log that holds them. An event without
a key, id, version or instant is no event of that view, and stays one of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.compile import table_sql
from featurestore.compile.event_sql import ACCEPTED, INDEX
from featurestore.compile.live_sql import REASON, ROW, rejection
from featurestore.compile.plan import EVENT_ID, PARTITION, POSITION, VERSION
from featurestore.compile.source_sql import view_rows
from featurestore.errors import DataError, FeatureStoreError, RequestError
from featurestore.services.payloads import Refused, encode, live_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.engine import EngineSession
    from featurestore.services.pushing import Pusher
    from featurestore.services.states import StateWriter

_BATCH = "_micro_batch"
_BROKEN = "_broken"
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Projected:
    """A micro-batch as the views see it.

    Attributes:
        events: The events that go into the log.
        rows: The rows of each view, by its generation.
        refused: Events that some view, or every one, does not take.
    """

    events: pa.Table
    rows: Mapping[str, pa.Table]
    refused: list[Refused]


class LiveViews:
    """The views over one source, in one session. For one thread.

    Args:
        session: Runs the queries.
        schema: The columns of the source's history.
        views: The views to feed, several generations of one among them.

    Raises:
        SourceSchemaError: The history no longer has the columns that a view needs.
    """

    def __init__(
        self, session: EngineSession, schema: pa.Schema, views: Iterable[ViewPlan]
    ) -> None:
        self.views = {view.generation: view for view in views}
        self._feed = session.feed(_BATCH, _numbered(live_schema(schema)))
        self._queries = {
            key: session.prepare(_query(view, session)) for key, view in self.views.items()
        }

    def project(self, events: pa.Table) -> Projected:
        """Return the rows of each view, and what is refused.

        Raises:
            FeatureStoreError: A view's SQL fails whatever the events are.
        """
        import numpy as np
        import pyarrow as pa

        numbers = pa.array(np.arange(events.num_rows, dtype=np.int32))
        numbered = events.append_column(ROW, numbers)
        broken: dict[int, str] = {}
        found: dict[str, pa.Table] = {}
        for key in self.views:
            found[key], wrong = self._rows(key, numbered, broken)
            broken |= wrong
        refused = [_refused(events, row, why) for row, why in sorted(broken.items())]
        rejected: dict[int, list[str]] = {}
        kept = {key: self._split(key, rows, broken, rejected) for key, rows in found.items()}
        refused += [_refused(events, n, "; ".join(why)) for n, why in sorted(rejected.items())]
        return Projected(_without(events, broken), kept, refused)

    def _rows(
        self, key: str, numbered: pa.Table, broken: Mapping[int, str]
    ) -> tuple[pa.Table, dict[int, str]]:
        try:
            return self._run(key, _without(numbered, broken)), {}
        except (DataError, RequestError) as error:
            self._must_run_on_nothing(key, numbered, error)
            wrong = self._culprits(key, numbered)
            return self._run(key, _without(numbered, {**broken, **wrong})), wrong

    def _must_run_on_nothing(self, key: str, events: pa.Table, cause: FeatureStoreError) -> None:
        try:
            self._run(key, events.slice(0, 0))
        except (DataError, RequestError) as error:
            error.where = f"FeatureView '{self.views[key].name}'"
            raise error from cause

    def _culprits(self, key: str, events: pa.Table) -> dict[int, str]:
        """Return the events for which a view's SQL fails, found by halving."""
        try:
            self._run(key, events)
        except (DataError, RequestError) as error:
            if events.num_rows == 1:
                name = self.views[key].name
                return {events.column(ROW)[0].as_py(): f"view '{name}': {error.got or error.what}"}
            half = events.num_rows // 2
            return self._culprits(key, events.slice(0, half)) | self._culprits(
                key, events.slice(half)
            )
        return {}

    def _run(self, key: str, events: pa.Table) -> pa.Table:
        self._feed(events)
        rows = self._queries[key]()
        if _any(rows.column(_BROKEN)):
            raise DataError(
                "A vector has another length than declared, or a null item.",
                where=f"FeatureView '{self.views[key].name}'",
            )
        return rows.drop_columns([_BROKEN])

    def _split(
        self,
        key: str,
        rows: pa.Table,
        broken: Mapping[int, str],
        rejected: dict[int, list[str]],
    ) -> pa.Table:
        """Return the rows that are events of a view; tell why the others are none."""
        reasons, numbers = rows.column(REASON), rows.column(ROW)
        if broken or reasons.null_count < rows.num_rows:
            import pyarrow as pa
            import pyarrow.compute as pc

            lost = pc.is_in(numbers, pa.array(broken, pa.int32()))
            bad = pc.and_(pc.is_valid(reasons), pc.invert(lost))
            name = self.views[key].name
            for row in rows.select([ROW, REASON]).filter(bad).to_pylist():
                rejected.setdefault(row[ROW], []).append(f"view '{name}': {row[REASON]}")
            rows = rows.filter(pc.invert(pc.or_(lost, pc.is_valid(reasons))))
        return rows.drop_columns([ROW, REASON])


class OnlineApplier:
    """Puts rows of views online: events of aggregated views, or the newest row of an entity.

    Args:
        states: Applies events.
        pusher: Writes rows.

    Attributes:
        ahead_until_us: The latest instant that an event was dated ahead of now, a day at most. Jobs
            take such rows into tables, and the newest ones online, when they have come of age.
    """

    def __init__(self, states: StateWriter, pusher: Pusher) -> None:
        self._states = states
        self._pusher = pusher
        self.ahead_until_us = 0

    def apply(self, view: ViewPlan, rows: pa.Table, now_us: int) -> None:
        """Put rows online; doing it again changes nothing.

        Args:
            view: The view.
            rows: The columns of its table.
            now_us: The instant. Newest rows dated ahead of it are left to the job that runs then.
        """
        if not rows.num_rows:
            return
        import pyarrow as pa
        import pyarrow.compute as pc

        instants = rows.column("event_timestamp")
        latest = pc.max(instants).cast(pa.int64()).as_py()
        if latest > now_us:
            self.ahead_until_us = max(self.ahead_until_us, min(latest, now_us + _DAY_US))
        if view.online and view.aggregates:
            self._states.apply(view, rows, now_us)
        elif view.online:
            if latest > now_us:
                now = pa.scalar(now_us, pa.timestamp("us", tz="UTC"))
                rows = rows.filter(pc.less_equal(instants, now))
            self._pusher.push(view, rows.to_reader(self._pusher.batch_rows), now_us)


def _query(view: ViewPlan, session: EngineSession) -> str:
    log = view.log
    rows = view_rows(log, _BATCH, session.schema, live=True, carried=(ROW,))
    reasons = {f"no {key.name}": f"{table_sql.quote(key.name)} IS NULL" for key in view.join_keys}
    if log.is_log:
        reasons |= {"no event_id": f"{EVENT_ID} IS NULL", "no version": f"{VERSION} IS NULL"}
    reasons["no event_timestamp, or none of this world"] = table_sql.rejected(log)
    broken = table_sql.broken_vectors(log) or "false"
    return f"SELECT *, {rejection(reasons)}, ({broken}) AS {_BROKEN} FROM ({rows})"


def _numbered(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return schema.append(pa.field(ROW, pa.int32()))


def _any(column: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(column).as_py())


def _without(events: pa.Table, rows: Mapping[int, str]) -> pa.Table:
    import numpy as np

    if not rows:
        return events
    keep = np.ones(events.num_rows, dtype=bool)
    keep[list(rows)] = False
    import pyarrow as pa

    return events.filter(pa.array(keep))


def _refused(events: pa.Table, row: int, reason: str) -> Refused:
    import pyarrow as pa

    one = events.slice(row, 1)
    places = one.select([PARTITION, POSITION, INDEX]).to_pylist()[0]
    own = one.drop_columns([PARTITION, POSITION, INDEX, ACCEPTED]).combine_chunks()
    return Refused(
        places[PARTITION],
        places[POSITION],
        places[INDEX],
        one.column(ACCEPTED).cast(pa.int64())[0].as_py(),
        reason,
        encode(own),
    )
