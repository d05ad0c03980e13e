"""Tables written by hand and read by the retrieval, without definitions, sources or jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.adapters.delta import DeltaTables
from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import FixedClock
from featurestore.compile.fingerprints import code_fingerprint
from featurestore.compile.plan import (
    Catalog,
    OnDemandPlan,
    ServicePlan,
    ViewPlan,
    table_id,
)
from featurestore.dtypes import DType
from featurestore.ports.registry import Ledger, LedgerEntry, ProjectState
from featurestore.ports.tables import TableFile
from featurestore.semantics.reference import ReferenceRow, canonical
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT
from featurestore.services.historical import HistoricalReader
from featurestore.services.on_demand import OnDemandFunctions
from featurestore.services.state import StateCache

PROJECT = "project"
NOW = 1_800_000_000_000_000
INSTANT = pa.timestamp("us", tz="UTC")


class Offline:
    """A project whose tables are written row by row.

    Args:
        folder: Where files go.
        memory_limit: Bytes of a session.
        delta: Whether tables are Delta tables, or kept in memory but for their files.
    """

    def __init__(
        self, folder: Path, *, memory_limit: int = 1_000_000_000, delta: bool = True
    ) -> None:
        self.folder = folder
        self.clock = FixedClock(NOW)
        self.engine = DuckDBEngine(
            folder, memory_limit=memory_limit, threads=2, temp_path=folder / "spill"
        )
        offline = folder / "offline"
        self.tables = DeltaTables(offline, self.clock) if delta else MemoryTables(offline)
        self.registry = MemoryRegistry()
        self.functions: dict[str, Callable[..., Any]] = {}
        self.filled: list[tuple[str, int, int]] = []
        self.on_fill: Callable[[str], None] = lambda _: None
        self.reader = HistoricalReader(
            PROJECT,
            state=StateCache(self.registry, PROJECT, self.clock, 0),
            engine=self.engine,
            tables=self.tables,
            functions=OnDemandFunctions(
                lambda: {n: (f, code_fingerprint(f)) for n, f in self.functions.items()}
            ),
            registry=self.registry,
            clock=self.clock,
            memory_limit=memory_limit,
            materialize=self._fill,
        )

    def _fill(self, view: str, start: int, end: int) -> None:
        self.filled.append((view, start, end))
        self.on_fill(view)

    def publish(
        self,
        views: Sequence[ViewPlan],
        on_demand: Sequence[OnDemandPlan] = (),
        services: Sequence[ServicePlan] = (),
    ) -> None:
        """Make these the definitions."""
        catalog = Catalog(
            project=PROJECT,
            views={view.name: view for view in views},
            on_demand={plan.name: plan for plan in on_demand},
            services={plan.name: plan for plan in services},
        )
        state = ProjectState(
            revision=self.registry.revision(PROJECT),
            catalog=catalog,
            serving={view.name: view for view in views},
        )
        self.registry.publish(state, applied_by="test", applied_at_us=NOW, summary="test")

    def write(
        self, view: ViewPlan, rows: Sequence[ReferenceRow], *, unique: bool, period: str = "%Y-%m"
    ) -> None:
        """Add rows to a view's table in one commit."""
        table = rows_table(view, rows)
        with self.engine.session() as session:
            session.register("rows", table)
            self.write_sql(view, session, "rows", unique=unique, period=period)

    def write_sql(
        self, view: ViewPlan, session: Any, relation: str, *, unique: bool, period: str = "%Y-%m"
    ) -> None:
        """Add the rows of a relation of a session to a view's table in one commit."""
        order = ", ".join(["event_period", *(k.name for k in view.join_keys), "event_timestamp"])
        name = table_id(PROJECT, view)
        sql = (
            f"SELECT *, strftime(event_timestamp AT TIME ZONE 'UTC', '{period}') AS event_period"
            f" FROM {relation} ORDER BY {order}, created_timestamp"
        )
        version = self.tables.snapshot(name).version
        files = session.write_parquet(sql, self.tables.folder(name))
        self.tables.commit(
            name,
            table_schema(view),
            read_version=version,
            add=[
                TableFile(f.path, f.period, f.rows, f.bytes, f.min_event, f.max_event)
                for f in files
            ],
            metadata={"unique": str(unique).lower()},
        )

    def cover(self, view: ViewPlan, *intervals: tuple[int, int]) -> None:
        """Write a view's ledger."""
        fingerprint = view.table_fingerprint
        held = self.registry.ledger(PROJECT, view.name, fingerprint)
        entries = tuple(LedgerEntry(start=start, end=end) for start, end in intervals)
        ledger = Ledger(version=held.version, entries=entries)
        self.registry.write_ledger(PROJECT, view.name, fingerprint, ledger)

    def cover_all(self, *views: ViewPlan) -> None:
        """Say that everything was materialized."""
        for view in views:
            self.cover(view, (MIN_INSTANT, MAX_INSTANT + 1))


def table_schema(view: ViewPlan) -> pa.Schema:
    """Return the columns of a view's table."""
    return pa.schema(
        [
            *((key.name, key.type.arrow) for key in view.join_keys),
            ("event_timestamp", INSTANT),
            ("created_timestamp", INSTANT),
            *((feature.name, feature.type.arrow) for feature in view.features),
            ("event_period", pa.string()),
        ]
    )


def rows_table(view: ViewPlan, rows: Sequence[ReferenceRow]) -> pa.Table:
    """Return rows as a table holds them, without the partition."""
    schema = table_schema(view).remove(len(table_schema(view)) - 1)
    declared = view.source.created_timestamp is not None
    columns: list[list[Any]] = [[row.key[i] for row in rows] for i in range(len(view.join_keys))]
    columns.append([row.event for row in rows])
    columns.append([row.created if declared else None for row in rows])
    columns += [[row.values[i] for row in rows] for i in range(len(view.features))]
    arrays = [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def entity_table(
    view: ViewPlan,
    entity_rows: Sequence[tuple[tuple[Any, ...], int]],
    names: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return entity rows as a table with a column `row` of their numbers."""
    renamed = names or {}
    columns: dict[str, Any] = {"row": pa.array(range(len(entity_rows)), pa.int64())}
    for i, key in enumerate(view.join_keys):
        held = [row[0][i] for row in entity_rows]
        columns[renamed.get(key.name, key.name)] = pa.array(held, key.type.arrow)
    columns["event_timestamp"] = pa.array([row[1] for row in entity_rows], INSTANT)
    return pa.table(columns)


def same_bits(found: Any, expected: Any, dtype: DType) -> bool:
    """Whether two values are the same bit for bit: NaN equals NaN, and -0.0 is not 0.0."""
    return canonical((found,), (dtype,)) == canonical((expected,), (dtype,))
