"""One member of a consumer group: takes the live events of one source online and into its log.

poll -> decode -> rows of every view -> online -> buffer; now and then: buffer -> log -> commit. The
stream is the durable log until then: whatever was not committed comes again after a crash, and is
applied again, which changes nothing. Nothing is dropped but what is in the quarantine, and what is
gone (stream, store, registry, disk) is tried again until it is back. See `services.ingestion` for
how definitions change meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError, StorageError
from featurestore.services.ingest_buffer import AppliedRanges, Buffer
from featurestore.services.ingest_flush import LogFlusher
from featurestore.services.ingest_status import IngestEvent, PartitionStatus, Rate, SourceStatus
from featurestore.services.live_views import LiveViews, Projected
from featurestore.services.patience import Patience, Stopped
from featurestore.services.payloads import Decoder

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import SourcePlan, ViewPlan
    from featurestore.model.settings import StreamsSettings
    from featurestore.ports.engine import Engine
    from featurestore.ports.streams import Entry, EventStream, StreamConsumer
    from featurestore.services.live_views import OnlineApplier
    from featurestore.services.payloads import Refused
    from featurestore.services.source_columns import SourceColumns
    from featurestore.services.stream_log import Appended, StreamLog

_LOOK_SECONDS = 30.0
_LAG_SECONDS = 1.0
_BUSY_LAG_SECONDS = 0.2
_MAX_BUFFERS = 4
_FIRST_ENTRIES = 64


@dataclass(frozen=True)
class WorkerParts:
    """What workers share.

    Attributes:
        settings: The settings of streams.
        group: The consumer group.
        clock: Tells now.
        engine: Opens sessions.
        columns: Looks at histories.
        log: Keeps the events.
        applier: Puts them online.
        views: Returns the views to feed of a source, every generation of each.
        look_again: Asks the registry now; raises when it does not answer.
        flushed: Is called when the log has grown or promises something else.
        tell: Is told what is worth a line.
    """

    settings: StreamsSettings
    group: str
    clock: Clock
    engine: Engine
    columns: SourceColumns
    log: StreamLog
    applier: OnlineApplier
    views: Callable[[str], Mapping[str, ViewPlan]]
    look_again: Callable[[], None]
    flushed: Callable[[], None]
    tell: Callable[[IngestEvent], None]


class SourceWorker:
    """A member at work. All methods but `stop` and `status` are for one thread.

    Args:
        source: The source.
        member: The member's name.
        stream: Its stream.
        parts: What workers share.

    Attributes:
        source: The source.
        applied: What this worker has put online itself.
        promised: The generations that its last commit of the log promises to feed.
        eager: Whether to flush as soon as nothing more comes in, whatever the clock says.
    """

    eager = False

    def __init__(
        self,
        source: SourcePlan,
        member: str,
        stream: EventStream,
        parts: WorkerParts,
    ) -> None:
        self.source = source
        self.applied = AppliedRanges()
        self._member = member
        self._stream = stream
        self._parts = parts
        self._stopping = threading.Event()
        self._patience = Patience(
            self._stopping,
            parts.settings.retry_seconds,
            lambda kind, text: parts.tell(IngestEvent(kind, source.name, text)),
        )
        self._held = contextlib.ExitStack()
        self._session = self._held.enter_context(parts.engine.session(threads=1))
        self._flusher = LogFlusher(
            source.name, member, log=parts.log, engine=parts.engine, patience=self._patience
        )
        self._held.callback(self._flusher.close)
        self._consumer: StreamConsumer | None = None
        self._decoder: Decoder | None = None
        self._views: LiveViews | None = None
        self._looked = float("-inf")
        self._claimed: frozenset[str] = frozenset()
        self.promised: frozenset[str] = frozenset()
        self._positions: dict[str, int] = {}
        self._logged: dict[str, int] = {}
        self._uncommitted: dict[str, int] = {}
        self._buffer = Buffer()
        self._max_entries = _FIRST_ENTRIES
        self._rate = Rate()
        self._events = self._refused = self._last_event_us = 0
        self._lag: dict[str, int] | None = None
        self._lag_due = float("-inf")
        self._empty = False

    def run(self) -> None:
        """Work until `stop`; then flush, commit and leave the group."""
        try:
            with contextlib.suppress(Stopped):
                while not self._stopping.is_set():
                    self.step()
        finally:
            self.close()

    def stop(self) -> None:
        """Make `run` end; from any thread."""
        self._stopping.set()

    def step(self) -> int:
        """Take what has come in, and flush when it is time; return how many entries there were."""
        tries = self._patience
        entries: list[Entry] = []
        ready = self._consumer is not None and not self._uncommitted
        ready = ready or tries.attempt("stream", self._connect, otherwise=False)
        if ready and tries.attempt("definitions", self._adopt, otherwise=False):
            self._finish_flush(wait=self._buffer.rows >= self._full)
            entries = tries.attempt("stream", self._poll, otherwise=[])
        self._empty = not entries
        if entries:
            self._take(entries)
        if self._flush_due():
            self._start_flush()
        if self._lag_is_old():
            tries.attempt("stream", self._ask_lag, otherwise=False)
        return len(entries)

    def settle(self) -> None:
        """Flush and commit all that is online, and wait for it."""
        self._finish_flush(wait=True)
        self._start_flush()
        self._finish_flush(wait=True)
        self._patience.until_done("stream", self._connect)

    def close(self) -> None:
        """Flush, commit, claim nothing any more, and leave the group; what fails comes again."""
        self._stopping.set()
        try:
            self._finish_flush(wait=True)
            if self._decoder is not None:
                appended = self._flusher.write(self._buffer, None, self._decoder.schema)
                self._done(appended, self._buffer)
            if self._consumer is not None and self._uncommitted:
                self._consumer.commit(self._uncommitted)
        except Stopped:
            pass
        except FeatureStoreError as error:
            self._parts.tell(IngestEvent("trouble", self.source.name, error.what))
        finally:
            self._held.close()
            if self._consumer is not None:
                with contextlib.suppress(FeatureStoreError):
                    self._consumer.close()

    def status(self) -> SourceStatus:
        """Return how far it is; from any thread."""
        lag = self._lag or {}
        names = self._positions.keys() | self._logged.keys() | lag.keys()
        return SourceStatus(
            source=self.source.name,
            member=self._member,
            partitions={
                name: PartitionStatus(
                    self._positions.get(name), self._logged.get(name), lag.get(name)
                )
                for name in sorted(names)
            },
            events=self._events,
            events_per_second=self._rate.at(self._parts.clock.monotonic()),
            refused=self._refused,
            waiting=self._buffer.rows,
            last_event_us=self._last_event_us or None,
            idle=self.is_idle,
            trouble=self._patience.trouble,
            age_seconds=self._age(),
        )

    def _age(self) -> float | None:
        last = self._last_event_us
        return max(0, self._parts.clock.now_us() - last) / 1e6 if last else None

    @property
    def error(self) -> FeatureStoreError | None:
        """What is in the way, None when nothing is."""
        return self._patience.error

    @property
    def is_idle(self) -> bool:
        """Whether the group has done all entries, and everything is in the log."""
        waiting = self._buffer.positions or self._flusher.is_busy or self._uncommitted
        none_left = self._lag is not None and not any(self._lag.values())
        return self._empty and none_left and not (waiting or self._flush_due())

    @property
    def _full(self) -> int:
        return _MAX_BUFFERS * self._parts.settings.flush_rows

    def _connect(self) -> bool:
        """See that the consumer is there, and commit what is in the log."""
        if self._consumer is None:
            self._check_stream()
            self._consumer = self._stream.consumer(self._parts.group, self._member)
        if self._uncommitted:
            self._consumer.commit(self._uncommitted)
            self._uncommitted = {}
            self._lag = None
        return True

    def _check_stream(self) -> None:
        logged = self._parts.log.live(self.source.name).positions
        ends = self._stream.ends()
        behind = [name for name, at in logged.items() if ends.get(name, at) < at]
        if behind:
            raise StorageError(
                f"The stream of '{self.source.name}' is not the one that was logged.",
                where=", ".join(f"partition {name}" for name in behind),
                got=", ".join(f"newest position {ends[name]}" for name in behind),
                allowed=", ".join(
                    f"{logged[name]} or later, the last one logged" for name in behind
                ),
                hint="Bring the stream back, or give the source another name with the new stream.",
            )
        self._logged = dict(logged)

    def _adopt(self) -> bool:
        """Take over changed definitions, and columns that the history has got meanwhile."""
        now = self._parts.clock.monotonic()
        decoder = self._decoder
        if decoder is None or now >= self._looked + _LOOK_SECONDS:
            schema = self._parts.columns.look(self.source, self._session)
            self._looked = now
            if decoder is None or schema != decoder.schema:
                decoder = Decoder(schema, self.source.timezone)
        wanted = dict(self._parts.views(self.source.name))
        if self._views is not None:
            # What the log promises to feed is fed until the log says otherwise.
            held = self._views.views.items()
            wanted |= {key: view for key, view in held if key in self.promised}
        same = self._views is not None and self._views.views.keys() == wanted.keys()
        if decoder is not self._decoder or not same:
            self._views = LiveViews(self._session, decoder.schema, wanted.values())
            self._decoder = decoder
        return True

    def _poll(self) -> list[Entry]:
        assert self._consumer is not None  # noqa: S101  (made by _connect)
        settings = self._parts.settings
        wait = settings.poll_seconds
        if self._buffer.since is not None:
            left = self._buffer.since + settings.flush_seconds - self._parts.clock.monotonic()
            wait = max(0.0, min(wait, left))
        return self._consumer.poll(self._max_entries, wait)

    def _take(self, entries: list[Entry]) -> None:
        for again in {
            e.partition for e in entries if e.position <= self._logged.get(e.partition, -1)
        }:
            # Delivered again, though it is in the log: the group does not know of it yet.
            self._uncommitted[again] = self._logged[again]
        entries = [e for e in entries if e.position > self._positions.get(e.partition, -1)]
        if not entries:
            return
        tries = self._patience
        foreign = {entry.partition for entry in entries} - self._claimed
        if foreign:
            tries.until_done("log", lambda: self._claim(foreign))
        views, projected, refused = tries.until_done("definitions", lambda: self._project(entries))
        apply, now = self._parts.applier.apply, self._parts.clock.now_us()
        for key, rows in projected.rows.items():
            tries.until_done("online", partial(apply, views.views[key], rows, now))
        if self._buffer.since is None:
            self._buffer.since = self._parts.clock.monotonic()
        self._buffer.add(entries, projected.events, refused, views.views)
        for entry in entries:
            self._positions[entry.partition] = entry.position
        self._count(entries, projected.events.num_rows, len(refused))

    def _project(self, entries: list[Entry]) -> tuple[LiveViews, Projected, list[Refused]]:
        self._adopt()
        views, decoder = self._views, self._decoder
        assert views is not None  # noqa: S101  (made by _adopt)
        assert decoder is not None  # noqa: S101
        events, refused = decoder.decode(entries)
        projected = views.project(events)
        return views, projected, refused + projected.refused

    def _count(self, entries: list[Entry], events: int, refused: int) -> None:
        self._events += events
        self._refused += refused
        self._rate.add(self._parts.clock.monotonic(), events)
        newest = max(entry.accepted_us for entry in entries)
        self._last_event_us = max(newest, self._last_event_us)
        rows = self._parts.settings.batch_rows
        self._max_entries = max(1, min(rows, rows * len(entries) // max(events, 1)))

    def _claim(self, partitions: set[str]) -> None:
        """Say in the log who reads partitions, then see that definitions are no older than that."""
        assert self._views is not None  # noqa: S101
        assert self._decoder is not None  # noqa: S101
        self._finish_flush(wait=True)
        self._flusher.claim(partitions, self._views.views, self._decoder.schema)
        self.promised |= self._views.views.keys()
        self._parts.look_again()
        self._adopt()
        self._claimed |= partitions

    @property
    def _fed(self) -> frozenset[str]:
        """The views that are wanted and indeed fed."""
        held = self._views.views if self._views is not None else {}
        return frozenset(held.keys() & self._parts.views(self.source.name).keys())

    def _flush_due(self) -> bool:
        if self._flusher.is_busy:
            return False
        if self._claimed and self._fed != self.promised:
            return True
        settings, since = self._parts.settings, self._buffer.since
        if since is None:
            return False
        late = self._parts.clock.monotonic() >= since + settings.flush_seconds
        late = late or (self.eager and self._empty)
        return late or self._buffer.rows >= settings.flush_rows

    def _start_flush(self) -> None:
        """Begin to write the buffer to the log, unless that goes on already."""
        if self._flusher.is_busy or self._decoder is None:
            return
        buffer, self._buffer = self._buffer, Buffer()
        self._flusher.start(buffer, self._fed, self._decoder.schema)

    def _finish_flush(self, *, wait: bool) -> None:
        finished = self._flusher.finish(wait=wait)
        if finished is not None:
            flush, appended = finished
            self._done(appended, flush.buffer)
            self.promised = flush.fed

    def _done(self, appended: Appended, buffer: Buffer) -> None:
        self.applied.flushed(buffer, appended.before, appended.own)
        # Who lost a partition and gets it back claims it anew.
        self._claimed &= appended.own
        self._logged |= buffer.positions
        self._uncommitted |= buffer.positions
        self._parts.flushed()

    def _lag_is_old(self) -> bool:
        late = self._lag is None or self._parts.clock.monotonic() >= self._lag_due
        return self._consumer is not None and late

    def _ask_lag(self) -> bool:
        assert self._consumer is not None  # noqa: S101
        self._lag = self._consumer.lag()
        pause = _BUSY_LAG_SECONDS if any(self._lag.values()) else _LAG_SECONDS
        self._lag_due = self._parts.clock.monotonic() + pause
        return True
