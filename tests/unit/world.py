"""A folder with sources and an engine over it, for tests of compiling and applying."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.adapters.duckdb import DuckDBEngine
from featurestore.adapters.files import LocalFiles
from featurestore.compile.catalog import SourceEyes, compile_catalog
from featurestore.compile.declared import Declarations
from featurestore.compile.plan import Catalog, ViewPlan
from featurestore.compile.source_sql import view_rows
from featurestore.model.base import Declaration
from featurestore.model.declarations import Entity, FeatureView
from featurestore.model.sources import FileSource

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")
DRIVER = Entity(name="driver", join_keys=["driver_id"])


class World:
    """Sources below a folder and the engine that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = DuckDBEngine(
            folder, memory_limit=500_000_000, threads=1, temp_path=folder / "spill"
        )
        self.sources = LocalFiles(folder)

    def write(self, name: str, **columns: Any) -> None:
        """Write a Parquet file of columns; lists become Arrow arrays as they are."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)

    def drivers(self, name: str = "drivers.parquet") -> None:
        """Write one driver's row with columns of usual types."""
        self.write(
            name,
            driver_id=pa.array([1], pa.int32()),
            ts=pa.array([NOON], INSTANT),
            learnt=pa.array([NOON], INSTANT),
            rate=[0.5],
            trips=pa.array([7], pa.int16()),
            note=["x"],
        )

    @contextmanager
    def eyes(self) -> Iterator[SourceEyes]:
        """Open a session and look through it."""
        with self.engine.session() as session:
            yield SourceEyes(
                describe=session.schema,
                relation=lambda source: self.sources.listing(source).relation,
                kind=self.sources.kind,
            )

    def compile(self, *declarations: Declaration) -> Catalog:
        """Compile declarations that stand in no file."""
        return self.compile_all(Declarations.of(*declarations))

    def compile_all(self, declarations: Declarations) -> Catalog:
        """Compile declarations."""
        with self.eyes() as eyes:
            return compile_catalog("shop", declarations, eyes)

    def rows(self, view: FeatureView) -> pa.Table:
        """Compile a view and read its rows."""
        return self.plan_rows(self.compile(view).views[view.name])

    def plan_rows(self, plan: ViewPlan) -> pa.Table:
        """Read the rows of a compiled view."""
        with self.engine.session() as session:
            relation = self.sources.listing(plan.source).relation
            return session.fetch(view_rows(plan, relation, session.schema))


def source(**arguments: Any) -> FileSource:
    """Return the source of `World.drivers`, with other arguments where they are given."""
    return FileSource(
        **{"name": "drivers", "path": "drivers.parquet", "event_timestamp": "ts"} | arguments
    )


def stats(**arguments: Any) -> FeatureView:
    """Return a view of that source, with other arguments where they are given."""
    defaults = {"name": "stats", "entities": [DRIVER], "source": source(), "features": ["rate"]}
    return FeatureView(**defaults | arguments)
