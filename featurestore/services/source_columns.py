"""The columns of a source's history as they are now: what its live events have, too.

Asking costs a session of the engine and a look at files, so answers are kept for a while; whoever
meets a column that is not among them asks anew.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from featurestore.compile.live_sql import LIVE_COLUMNS
from featurestore.errors import SourceSchemaError, listing
from featurestore.services.payloads import plain_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.compile.plan import SourcePlan
    from featurestore.ports.engine import Engine, EngineSession, Sources

_KEEP_SECONDS = 60.0


class SourceColumns:
    """Looks at histories.

    Args:
        engine: Tells what a query would return.
        sources: Tells what a source consists of.
        clock: Tells when an answer is too old.
    """

    def __init__(self, engine: Engine, sources: Sources, clock: Clock) -> None:
        self._engine = engine
        self._sources = sources
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, pa.Schema]] = {}

    def of(self, source: SourcePlan, *, anew: bool = False) -> pa.Schema:
        """Return the columns of a source's history, at most a minute old.

        Args:
            source: The source.
            anew: Whether to look again in any case.

        Raises:
            SourceError: The history cannot be read, or a column has a name of ours.
        """
        key = source.model_dump_json()
        with self._lock:
            kept = self._kept.get(key)
            if kept and not anew and self._clock.monotonic() < kept[0] + _KEEP_SECONDS:
                return kept[1]
            with self._engine.session(threads=1) as session:
                schema = self.look(source, session)
            self._kept[key] = (self._clock.monotonic(), schema)
            return schema

    def look(self, source: SourcePlan, session: EngineSession) -> pa.Schema:
        """Return the columns as they are now, seen through a session that is open already."""
        history = source.model_copy(update={"stream": None})
        relation = self._sources.listing(history).relation
        schema = plain_schema(session.schema(f"SELECT * FROM {relation}"))
        taken = sorted(set(schema.names) & set(LIVE_COLUMNS))
        if taken:
            raise SourceSchemaError(
                f"The history of the stream '{source.name}' has columns with names of ours.",
                got=listing(taken),
                hint="Call them otherwise by query=, and so in the live events.",
            )
        return schema
