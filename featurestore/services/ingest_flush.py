"""Writes what is online into the log of its stream, beside the work and not in its way.

One flush at a time. A flush that fails is tried again until it works; nothing is committed to the
stream before.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.services.payloads import live_schema, refused_table

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.ports.engine import Engine
    from featurestore.services.ingest_buffer import Buffer
    from featurestore.services.patience import Patience
    from featurestore.services.stream_log import Appended, StreamLog

_TIDY_FLUSHES = 8


@dataclass(frozen=True)
class Flush:
    """A flush that goes on or is over.

    Attributes:
        buffer: What is written.
        fed: The generations that the log promises to feed from then on.
    """

    buffer: Buffer
    fed: frozenset[str]
    future: Future[Appended]


class LogFlusher:
    """Writes the log of one source for one member.

    Args:
        source: The source's name.
        member: The member's name.
        log: The logs.
        engine: Opens the session that writes files.
        patience: Tries again.
    """

    def __init__(
        self, source: str, member: str, *, log: StreamLog, engine: Engine, patience: Patience
    ) -> None:
        self._source = source
        self._member = member
        self._log = log
        self._patience = patience
        self._held = ExitStack()
        self._session = self._held.enter_context(engine.session(threads=1))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"flush-{source}")
        self._flush: Flush | None = None
        self._count = 0

    @property
    def is_busy(self) -> bool:
        """Whether a flush was started and not taken note of."""
        return self._flush is not None

    def start(self, buffer: Buffer, fed: frozenset[str], columns: pa.Schema) -> None:
        """Begin a flush; none may go on.

        Args:
            buffer: What to write.
            fed: The generations that get online all that comes behind it.
            columns: The source's own columns.
        """

        def write() -> Appended:
            return self._patience.until_done("log", lambda: self.write(buffer, fed, columns))

        self._flush = Flush(buffer, fed, self._pool.submit(write))

    def finish(self, *, wait: bool) -> tuple[Flush, Appended] | None:
        """Return the flush that is over, once; None when there is none.

        Args:
            wait: Whether to wait for one that goes on.

        Raises:
            Stopped: It did not work, and is not to be tried any more.
        """
        flush = self._flush
        if flush is None or not (wait or flush.future.done()):
            return None
        self._flush = None
        return flush, flush.future.result()

    def write(self, buffer: Buffer, fed: Iterable[str] | None, columns: pa.Schema) -> Appended:
        """Write now; see `StreamLog.append`."""
        import pyarrow as pa

        if buffer.refused:
            refused = refused_table(buffer.refused)
            self._log.quarantine(self._session, self._source, refused, buffer.positions)
        rows = live_schema(columns).empty_table()
        if buffer.tables:
            rows = pa.concat_tables(buffer.tables, promote_options="permissive")
        appended = self._log.append(
            self._session,
            self._source,
            rows,
            positions=buffer.positions,
            member=self._member,
            views=fed,
        )
        self._count += 1
        if self._count % _TIDY_FLUSHES == 0:
            self._log.tidy(self._session, self._source)
        return appended

    def claim(self, partitions: Iterable[str], fed: Iterable[str], columns: pa.Schema) -> None:
        """Say in the log that this member reads partitions; no flush may go on."""
        views = tuple(fed)
        self._log.claim(
            self._session,
            self._source,
            live_schema(columns),
            member=self._member,
            claims=dict.fromkeys(partitions, views),
        )

    def close(self) -> None:
        """Let go of the session."""
        self._pool.shutdown()
        self._held.close()
