"""Deletes a view's table with everything that belongs to it (law M7): ledger, files, online values.

The ledger goes first: whoever takes the definition up again finds a table of which nothing is known
to be done, and so builds it anew. Every step may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from featurestore.compile.plan import table_id
from featurestore.semantics.keys import namespace
from featurestore.services.served_log_shape import served_id

if TYPE_CHECKING:
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import ProjectState, Registry, Version
    from featurestore.ports.streams import EventStream
    from featurestore.ports.tables import Tables
    from featurestore.services.stream_log import StreamLog


class LiveDisposal:
    """Deletes what a project keeps of its streams; the streams themselves are not its own.

    Args:
        logs: Holds the logs.
        open_stream: Returns the stream of a URL.
        group: Returns the consumer group of a source.
    """

    def __init__(
        self,
        logs: StreamLog,
        open_stream: Callable[[str], EventStream],
        group: Callable[[str], str],
    ) -> None:
        self._logs = logs
        self._open_stream = open_stream
        self._group = group

    def delete(self, source: str, stream: str) -> tuple[str, ...]:
        """Delete the log and the quarantine of a source, and its consumer group.

        Whoever takes the definition up again begins at the start of the stream, so the group must
        go first: with it, a new log would begin where the former one ended.

        Raises:
            StreamUnavailableError: The stream is gone; the log is still there.
        """
        self._open_stream(stream).forget(self._group(source))
        return self._logs.drop(source)


class TableDisposal:
    """Deletes tables of one project.

    Args:
        project: The project's name.
        registry: Holds the ledgers.
        tables: Holds the files.
        online: Holds the values.
        live: Deletes what is kept of streams.
    """

    def __init__(
        self,
        project: str,
        registry: Registry,
        tables: Tables,
        online: OnlineStore,
        live: LiveDisposal | None = None,
    ) -> None:
        self._live = live
        self._project = project
        self._registry = registry
        self._tables = tables
        self._online = online

    def has_files(self, plan: ViewPlan) -> bool:
        """Whether the table of a plan holds rows."""
        return bool(self._tables.snapshot(table_id(self._project, plan)).files)

    def delete(self, view: str, table_fingerprint: str) -> str:
        """Delete one table; return its id."""
        name = f"{self._project}/{view}/{table_fingerprint}"
        self._registry.delete_ledger(self._project, view, table_fingerprint)
        self._tables.drop(name)
        self._online.delete_namespace(namespace(self._project, view, table_fingerprint))
        return name

    def delete_all(self, state: ProjectState, versions: Iterable[Version]) -> tuple[str, ...]:
        """Delete every table and log that the project ever had; return the tables' ids.

        Args:
            state: The project's state.
            versions: All versions of its feature views.
        """
        plans = (*state.catalog.views.values(), *state.serving.values())
        known = {(plan.name, plan.table_fingerprint) for plan in plans}
        known |= {(table.view, table.table_fingerprint) for table in state.retired}
        bodies = [(version.name, json.loads(version.body)) for version in versions]
        known |= {(name, body["table_fingerprint"]) for name, body in bodies}
        streams = {plan.source.name: plan.source.stream for plan in plans}
        for _, body in bodies:
            streams.setdefault(body["source"]["name"], body["source"].get("stream"))
        if self._live is not None:
            for name, stream in sorted(streams.items()):
                if stream is not None:
                    self._live.delete(name, stream)
        served = self._tables.names(served_id(self._project))
        for name in served:
            self._tables.drop(name)
        return (*(self.delete(view, fingerprint) for view, fingerprint in sorted(known)), *served)
