"""What belongs to live events, made of a repository's services; part of `wiring`.

Knows no adapter: streams are opened by `wiring`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

from featurestore.model.settings import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from featurestore.clock import Clock
    from featurestore.model.settings import Settings
    from featurestore.ports.engine import Engine, Sources
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.streams import EventStream
    from featurestore.ports.tables import Tables
    from featurestore.services.ingestion import Ingestor, Tell
    from featurestore.services.jobs import Materializer
    from featurestore.services.pushing import Pusher
    from featurestore.services.pushing_events import EventPusher
    from featurestore.services.source_columns import SourceColumns
    from featurestore.services.state import StateCache
    from featurestore.services.states import StateWriter
    from featurestore.services.stream_log import StreamLog
    from featurestore.services.table_disposal import LiveDisposal


class StreamServices(ABC):
    """The services of live events, each made on first use; `wiring` gives the others."""

    folder: Path
    settings: Settings
    clock: Clock
    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...  # noqa: D102
        @property
        def sources(self) -> Sources: ...  # noqa: D102
        @property
        def tables(self) -> Tables: ...  # noqa: D102
        @property
        def online_store(self) -> OnlineStore: ...  # noqa: D102
        @property
        def state(self) -> StateCache: ...  # noqa: D102
        @property
        def states(self) -> StateWriter: ...  # noqa: D102
        @property
        def materializer(self) -> Materializer: ...  # noqa: D102

    @abstractmethod
    def open_stream(self, url: str) -> EventStream:
        """Return the stream of a URL, the same one for the same URL."""

    @cached_property
    def pusher(self) -> Pusher:
        """Writes newest rows online."""
        from featurestore.services.pushing import Pusher

        settings = self.settings.online
        return Pusher(
            self.settings.project,
            self.online_store,
            batch_rows=settings.batch_rows,
            gc_grace_hours=settings.gc_grace_hours,
        )

    @cached_property
    def stream_log(self) -> StreamLog:
        """The logs of streams."""
        from featurestore.services.stream_log import StreamLog

        return StreamLog(
            self.settings.project,
            self.tables,
            self.clock,
            target_file_size=parse_size(self.settings.offline.target_file_size),
            retention_days=self.settings.streams.retention_days or None,
        )

    def group(self, source: str) -> str:
        """Return the consumer group of a source: one a project."""
        return f"{self.settings.streams.group}.{self.settings.project}.{source}"

    @cached_property
    def live_disposal(self) -> LiveDisposal:
        """Deletes what is kept of streams."""
        from featurestore.services.table_disposal import LiveDisposal

        return LiveDisposal(self.stream_log, self.open_stream, self.group)

    @cached_property
    def source_columns(self) -> SourceColumns:
        """The columns of streams' histories."""
        from featurestore.services.source_columns import SourceColumns

        return SourceColumns(self.engine, self.sources, self.clock)

    @cached_property
    def event_pusher(self) -> EventPusher:
        """Appends events to streams."""
        from featurestore.services.pushing_events import EventPusher

        return EventPusher(self.state, self.source_columns, self.open_stream, self.clock)

    def ingestor(
        self,
        member: str,
        *,
        sources: Sequence[str] = (),
        workers: int = 1,
        tell: Tell = lambda _: None,
    ) -> Ingestor:
        """Return what ingests streams; see `services.ingestion.Ingestor`.

        Args:
            member: Names this process in consumer groups; no other one has this name.
            sources: The sources; all that have streams when there are none.
            workers: Members a source.
            tell: Is told what is worth a line.
        """
        from featurestore.services.ingestion import Ingestor, IngestParts
        from featurestore.services.live_views import OnlineApplier

        parts = IngestParts(
            group=self.group,
            state=self.state,
            engine=self.engine,
            columns=self.source_columns,
            log=self.stream_log,
            applier=OnlineApplier(self.states, self.pusher),
            materializer=self.materializer,
            open_stream=self.open_stream,
            settings=self.settings.streams,
            clock=self.clock,
            refresh_seconds=self.settings.serving.refresh_seconds,
            drain_seconds=self.settings.serving.drain_seconds,
        )
        return Ingestor(parts, member, sources=sources, workers=workers, tell=tell)
