"""What `trying.feed` sets to work: one view's own code on events in memory, offline and online.

Every part is the one that works in production but for where things are kept: the table is a file in
a folder that is gone at the end, registry and online store are in memory. The instant of the
question is the clock.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import FixedClock
from featurestore.compile import table_sql
from featurestore.compile.catalog import SourceEyes, compile_catalog
from featurestore.compile.declared import Declarations
from featurestore.compile.plan import Catalog, ViewPlan, table_id
from featurestore.compile.source_sql import view_rows
from featurestore.errors import DataError
from featurestore.ports.registry import Ledger, LedgerEntry, ProjectState
from featurestore.ports.tables import TableFile
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, format_instant
from featurestore.services.comparison import differing
from featurestore.services.historical import HistoricalReader
from featurestore.services.on_demand import OnDemandFunctions
from featurestore.services.online import OnlineReader
from featurestore.services.pushing import Pusher
from featurestore.services.state import StateCache

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.model.declarations import FeatureView
    from featurestore.ports.engine import EngineSession

PROJECT = "trial"
_EVENTS, _ALL, _ROWS = "_events", "_all_rows", "_rows"
_MEMORY = 1_000_000_000
_INSTANT = "_as_of"


class Trial:
    """A view and the rows that its source's events are.

    Args:
        view: The view.
        events: What the source holds.

    Raises:
        DefinitionError: The view does not compile.
        SourceError: The events lack what it needs.
    """

    def __init__(self, view: FeatureView, events: pa.Table) -> None:
        with ExitStack() as opened:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            self._engine = DuckDBEngine(folder, memory_limit=_MEMORY, threads=1, temp_path=folder)
            self._session = opened.enter_context(self._engine.session())
            self._session.register(_EVENTS, events)
            self._catalog = _compiled(view, self._session)
            self.plan: ViewPlan = self._catalog.views[view.name]
            self._make_rows()
            self._registry = _registry(self.plan, self._catalog)
            self._state = StateCache(self._registry, PROJECT, FixedClock(0), 1.0)
            self._tables = self._written(folder)
            # Kept until nobody asks any more.
            weakref.finalize(self, opened.pop_all().close)

    def _make_rows(self) -> None:
        log, session = self.plan.log, self._session
        rows = session.fetch(view_rows(log, _EVENTS, session.schema))
        session.register(_ALL, rows)
        kept = session.fetch(f"SELECT * FROM {_ALL} WHERE NOT {table_sql.rejected(log)}")
        session.register(_ROWS, kept)
        self.rejected = rows.num_rows - kept.num_rows
        broken = table_sql.broken_vectors(log)
        if broken and session.fetch(f"SELECT 1 FROM {_ROWS} WHERE {broken} LIMIT 1").num_rows:
            raise DataError(
                f"A vector of the view '{self.plan.name}' has another length, or a null item.",
                allowed="as many numbers as declared, or null as a whole",
            )

    def answer(
        self,
        instants: Sequence[int],
        keys: Mapping[str, Sequence[Any]],
        knowledge: Literal["healed", "known"],
    ) -> list[dict[str, Any]]:
        """Return the features of entities, each as of its instant, once both sides agree.

        Raises:
            DataError: Online gives other bits than offline.
        """
        import pyarrow as pa

        types = {key.name: key.type.arrow for key in self.plan.join_keys}
        asked = pa.table({name: pa.array(keys[name], kind) for name, kind in types.items()})
        offline = self._offline(instants, asked, knowledge)
        for instant in dict.fromkeys(instants):
            places = pa.array([i for i, held in enumerate(instants) if held == instant])
            part = asked.take(places) if types else None
            online = self._online(instant, part, len(places), knowledge)
            self._compare(instant, online, offline.take(places), part)
        rows: list[dict[str, Any]] = offline.to_pylist(maps_as_pydicts="strict")
        return rows

    def _offline(self, instants: Sequence[int], asked: pa.Table, knowledge: Any) -> pa.Table:
        import pyarrow as pa

        column = pa.array(instants, pa.timestamp("us", tz="UTC"))
        reader = HistoricalReader(
            PROJECT,
            state=self._state,
            engine=self._engine,
            tables=self._tables,
            functions=_NO_FUNCTIONS,
            registry=self._registry,
            clock=FixedClock(MAX_INSTANT),
            memory_limit=_MEMORY,
        )
        job = reader.get_historical_features(
            pa.table(
                {**dict(zip(asked.column_names, asked.columns, strict=True)), _INSTANT: column}
            ),
            self._features,
            timestamp_column=_INSTANT,
            knowledge=knowledge,
        )
        return job.to_arrow().select([feature.name for feature in self.plan.features])

    @property
    def _features(self) -> list[str]:
        return [f"{self.plan.name}:{feature.name}" for feature in self.plan.features]

    def _written(self, folder: Path) -> MemoryTables:
        """Return tables that hold the view's rows."""
        tables, session = MemoryTables(folder), self._session
        query = table_sql.sorted_rows(self.plan.log, f"SELECT * FROM {_ROWS}", "all")
        name = table_id(PROJECT, self.plan)
        files = session.write_parquet(query, tables.folder(name))
        tables.commit(
            name,
            session.schema(query),
            read_version=-1,
            add=[
                TableFile(f.path, f.period, f.rows, f.bytes, f.min_event, f.max_event)
                for f in files
            ],
            metadata={"unique": "false"},
        )
        return tables

    def _online(
        self, instant: int, asked: pa.Table | None, rows: int, knowledge: str
    ) -> dict[str, pa.Array]:
        """Return the features that a store gives which holds all that it may know."""
        store, clock = MemoryOnlineStore(), FixedClock(instant)
        self._fill(store, instant, known=knowledge == "known")
        reader = OnlineReader(PROJECT, self._state, store, _NO_FUNCTIONS, clock)
        response = reader.get_online_features(
            self._features, [{}] * rows if asked is None else asked, as_of=instant
        )
        return {feature.name: response.column(feature.name) for feature in self.plan.features}

    def _fill(self, store: MemoryOnlineStore, instant: int, *, known: bool) -> None:
        rows = f"SELECT * FROM {_ROWS}"
        if known and self.plan.source.tells_created:
            # What is learnt at the very instant, a window does not know yet; a newest row does.
            before = "<" if self.plan.aggregates else "<="
            rows += f" WHERE created_timestamp {before} {table_sql.instant(instant)}"
        if self.plan.aggregates:
            self._apply(store, self._session.fetch(table_sql.events(self.plan.log, rows)), instant)
            return
        pusher = Pusher(PROJECT, store, batch_rows=65_536, gc_grace_hours=1.0)
        query = table_sql.newest(self.plan, rows, instant)
        pusher.push(self.plan, self._session.stream(query), instant)

    def _apply(self, store: MemoryOnlineStore, events: pa.Table, instant: int) -> None:
        from featurestore.services.states import StateWriter

        StateWriter(PROJECT, store).apply(self.plan, events, instant)

    def _compare(
        self,
        instant: int,
        online: Mapping[str, pa.Array],
        offline: pa.Table,
        asked: pa.Table | None,
    ) -> None:
        for name, held in online.items():
            computed = offline.column(name).combine_chunks()
            wrong = differing(held, computed).nonzero()[0].tolist()
            if not wrong:
                continue
            keys = {} if asked is None else asked.slice(wrong[0], 1).to_pylist()[0]
            raise DataError(
                f"'{self.plan.name}:{name}' is not the same online and offline. This is a bug of"
                " featurestore.",
                where=f"{keys} as of {format_instant(instant)}",
                got=f"{held[wrong[0]].as_py()!r} online",
                allowed=f"{computed[wrong[0]].as_py()!r}, as offline",
            )


_NO_FUNCTIONS = OnDemandFunctions(dict)


def _compiled(view: FeatureView, session: EngineSession) -> Catalog:
    eyes = SourceEyes(describe=session.schema, relation=lambda _: _EVENTS, kind=lambda _: "parquet")
    return compile_catalog(PROJECT, Declarations.of(view), eyes)


def _registry(plan: ViewPlan, catalog: Catalog) -> MemoryRegistry:
    registry = MemoryRegistry()
    registry.publish(
        ProjectState(revision=0, catalog=catalog, serving=catalog.views),
        applied_by="",
        applied_at_us=0,
        summary="",
    )
    whole = Ledger(entries=(LedgerEntry(start=MIN_INSTANT, end=MAX_INSTANT + 1),))
    registry.write_ledger(PROJECT, plan.name, plan.table_fingerprint, whole)
    return registry
