"""Explains one value: which rows or events it comes from, and what is served instead or alike.

Everything is looked up where reads find it: the view's table, the training set of one row, and the
online store. For views over sources; an on-demand view's features are what its function makes of
its inputs, which are explained one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.compile import explain_sql
from featurestore.compile.aggregate_text import aggregate_texts
from featurestore.compile.plan import Selection, ViewPlan, table_id
from featurestore.compile.request import resolve
from featurestore.errors import AsOfBeforeRowError, FeatureNotFoundError, RequestError, listing
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, to_datetime
from featurestore.services.columns import InputRows
from featurestore.services.comparison import differing
from featurestore.services.event_lines import event_lines
from featurestore.services.state_explaining import explain_window
from featurestore.services.value_report import RowLine, Tile, ValueReport

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.engine import Engine
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.tables import Tables
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.online import OnlineReader
    from featurestore.services.response import OnlineResponse
    from featurestore.services.state import StateCache

_INSTANT = "_as_of"
_ROWS = 20
_SECOND = 1_000_000


class ValueExplainer:
    """Explains values of one project.

    Args:
        project: The project's name.
        state: The applied definitions.
        online: Answers online.
        online_store: Holds what it answers from.
        historical: Answers offline.
        tables: Hold rows and events.
        engine: Reads them.
        clock: Tells now.
    """

    def __init__(
        self,
        project: str,
        *,
        state: StateCache,
        online: OnlineReader,
        online_store: OnlineStore,
        historical: HistoricalReader,
        tables: Tables,
        engine: Engine,
        clock: Clock,
    ) -> None:
        self._project = project
        self._state = state
        self._online = online
        self._online_store = online_store
        self._historical = historical
        self._tables = tables
        self._engine = engine
        self._clock = clock

    def explain(
        self, reference: str, entity: Mapping[str, Any], as_of: int | None = None
    ) -> ValueReport:
        """Return where a value comes from.

        Args:
            reference: `view:feature`.
            entity: A value for each join key.
            as_of: The instant, microseconds; None is now.

        Raises:
            FeatureNotFoundError: The reference names no feature.
            RequestError: It is one of an on-demand view, or the entity lacks a join key.
        """
        view, feature = self._view(reference)
        instant = self._clock.now_us() if as_of is None else as_of
        given = InputRows.of([dict(entity)], "entity")
        keys = {key.name: given.key(key.name, key.type, reference) for key in view.join_keys}
        report = self._values(view, feature, keys, instant)
        if view.aggregates:
            return self._with_events(report, view, feature, keys, instant)
        return self._with_rows(report, view, feature, keys, instant)

    def _view(self, reference: str) -> tuple[ViewPlan, str]:
        state = self._state.get()
        name, _, feature = reference.partition(":")
        derived = state.answering.on_demand.get(name)
        if derived is not None:
            raise RequestError(
                f"'{name}' is an on-demand view: its function computes features when they are asked"
                " for.",
                allowed="a feature of a view over a source",
                hint=f"Explain its inputs: {listing(_inputs(derived.inputs))}.",
            )
        if not feature:
            raise FeatureNotFoundError(
                f"'{reference}' names no single feature.", allowed="view:feature"
            )
        plan = resolve(state.answering, state.serving, [reference], full_feature_names=True)
        return plan.joins[0].view, feature

    def _values(
        self, view: ViewPlan, feature: str, keys: dict[str, pa.Array], instant: int
    ) -> ValueReport:
        healed = self._offline(view, feature, keys, instant, "healed")
        known = self._offline(view, feature, keys, instant, "known")
        response, refused = self._served(view, feature, keys, instant)
        online = None if response is None else response.column(feature)
        applied = {} if response is None else response.applied.get(view.name, {})
        return ValueReport(
            reference=f"{view.name}:{feature}",
            entity={name: column[0].as_py() for name, column in keys.items()},
            as_of=to_datetime(instant),
            what=aggregate_texts(view).get(feature) or _expression(view, feature),
            window=None,
            ttl_seconds=None if view.ttl_us is None else view.ttl_us / _SECOND,
            offline=_python(healed),
            known=_python(known),
            late=bool(differing(healed, known)[0]),
            online=None if online is None else _python(online),
            online_status=None if response is None else str(response.statuses[feature][0]),
            online_error=refused,
            equal=None if online is None else not differing(healed, online)[0],
            applied={name: at[0] for name, at in applied.items() if at[0] is not None},
        )

    def _offline(
        self, view: ViewPlan, feature: str, keys: dict[str, pa.Array], instant: int, knowledge: Any
    ) -> pa.Array:
        import pyarrow as pa

        asked = pa.array([instant], pa.timestamp("us", tz="UTC"))
        job = self._historical.get_historical_features(
            pa.table({**keys, _INSTANT: asked}),
            [f"{view.name}:{feature}"],
            timestamp_column=_INSTANT,
            knowledge=knowledge,
            full_feature_names=True,
            applied={},
        )
        return job.to_arrow().column(f"{view.name}__{feature}").combine_chunks()

    def _served(
        self, view: ViewPlan, feature: str, keys: dict[str, pa.Array], instant: int
    ) -> tuple[OnlineResponse | None, str | None]:
        if not view.online:
            return None, "the view is not online"
        try:
            found = self._online.get_online_features(
                [f"{view.name}:{feature}"], dict(keys) or [{}], as_of=instant
            )
        except AsOfBeforeRowError as error:
            return None, f"{error.what} {error.got}"
        return found, None

    def _with_events(
        self,
        report: ValueReport,
        view: ViewPlan,
        feature: str,
        keys: dict[str, pa.Array],
        instant: int,
    ) -> ValueReport:
        names = [each.name for each in view.features]
        plan = view.aggregates[names.index(feature)]
        low, high = plan.window.bounds(instant)
        table = self._fetch(view, keys, lambda files: explain_sql.events(view, files, low, high))
        window = (None if low is None else to_datetime(low), to_datetime(high))
        limits = report.applied if report.equal is not None else None
        events = () if table is None else event_lines(view, plan, table, (low, high), limits)
        tiles = self._tiles(view, feature, keys, instant) if report.equal is not None else ()
        return replace(report, window=window, events=events, tiles=tiles)

    def _tiles(
        self, view: ViewPlan, feature: str, keys: dict[str, pa.Array], instant: int
    ) -> tuple[Tile, ...]:
        """Return what the online state makes the window of, in the order of time."""
        key = [column[0].as_py() for column in keys.values()]
        if None in key:
            return ()
        store, now = self._online_store, self._clock.now_us()
        told = explain_window(store, self._project, view, key, feature, instant=instant, now=now)
        tiles = [Tile(_moment(t.start), _moment(t.end), "merged", t.events) for t in told.tiles]
        if told.events:
            first, last = told.events[0].instant, told.events[-1].instant
            tiles.append(Tile(_moment(first), _moment(last + 1), "events", len(told.events)))
        return tuple(sorted(tiles, key=lambda tile: (tile.start is not None, tile.start or 0)))

    def _with_rows(
        self,
        report: ValueReport,
        view: ViewPlan,
        feature: str,
        keys: dict[str, pa.Array],
        instant: int,
    ) -> ValueReport:
        table = self._fetch(
            view, keys, lambda files: explain_sql.rows(view, files, feature, instant, _ROWS)
        )
        lines: list[RowLine] = []
        for row in [] if table is None else table.to_pylist(maps_as_pydicts="strict"):
            expired = view.ttl_us is not None and instant - row["instant"] > view.ttl_us
            lines.append(
                RowLine(
                    to_datetime(row["instant"]),
                    None if row["learnt"] is None else to_datetime(row["learnt"]),
                    row["value"],
                    "expired" if expired else "older" if lines else "chosen",
                )
            )
        return replace(report, rows=tuple(_tied(lines, report.offline)))

    def _fetch(self, view: ViewPlan, keys: dict[str, pa.Array], sql: Any) -> pa.Table | None:
        import pyarrow as pa

        files = self._tables.snapshot(table_id(self._project, view)).files
        if not files:
            return None
        columns = {f"k{i}": column for i, column in enumerate(keys.values())}
        with self._engine.session() as session:
            session.register(explain_sql.ASKED, pa.table(columns or {"k": pa.array([0])}))
            return session.fetch(sql([file.path for file in files]))


def _tied(lines: list[RowLine], value: Any) -> list[RowLine]:
    """Mark rows that tie fully with the newest one; of these the one with the value was chosen."""
    if not lines or lines[0].became != "chosen":
        return lines
    first = lines[0]
    same = [
        i
        for i, line in enumerate(lines)
        if (line.event_timestamp, line.created_timestamp)
        == (first.event_timestamp, first.created_timestamp)
    ]
    chosen = next((i for i in same if repr(lines[i].value) == repr(value)), 0)
    return [
        replace(line, became="chosen" if i == chosen else "tied") if i in same else line
        for i, line in enumerate(lines)
    ]


def _inputs(selections: tuple[Selection, ...]) -> list[str]:
    return [f"{each.view}:{name}" for each in selections for name in each.features]


def _expression(view: ViewPlan, feature: str) -> str:
    plan = view.feature(feature)
    text = plan.expression if plan is not None and plan.expression else feature
    return f"{' '.join(text.split())} of the newest row of '{view.source.name}'"


def _python(column: pa.Array) -> Any:
    return column.to_pylist(maps_as_pydicts="strict")[0]


def _moment(instant: int) -> datetime | None:
    return to_datetime(instant) if MIN_INSTANT <= instant <= MAX_INSTANT else None
