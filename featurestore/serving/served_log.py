"""Collects answers for the log of what was served; lookups never wait for it (law L2).

Of every call it is drawn whether its answer is logged, whole. The answer is put into a queue as it
is; a thread in the background makes rows of it and appends them to the tables. The queue is
bounded: what does not fit is dropped and counted, and so is what could not be written in the end.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.services.served_log import Served, ServedLog

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.model.settings import ServingSettings
    from featurestore.ports.registry import ProjectState
    from featurestore.services.response import OnlineResponse
    from featurestore.services.served_log_shape import Shape
    from featurestore.serving.requests import ReadRequest
    from featurestore.serving.security.calls import Call

# Rows that are converted at once.
_CHUNK_ROWS = 20_000
_TELL_SECONDS = 60.0
_LONGEST_END_SECONDS = 10.0


class Counts(NamedTuple):
    """Entity rows: in the tables, not logged as there was no room, not logged for other reasons."""

    logged: int
    dropped: int
    failed: int


class ServedLogObserver:
    """Hears answers, and logs some of them.

    Args:
        writer: Writes the tables.
        state: Returns the definitions by which requests are answered.
        settings: How many are logged, how many may wait, and how often they are written.
        clock: Stamps the answers.
        log: Told what is lost, and why; not more than once a minute.
        draw: Returns numbers of [0, 1), by default at random.

    Raises:
        SettingsError: A setting makes no sense.
    """

    def __init__(
        self,
        writer: ServedLog,
        state: Callable[[], ProjectState],
        settings: ServingSettings,
        clock: Clock,
        log: Any,
        *,
        draw: Callable[[], float] | None = None,
    ) -> None:
        _check(settings)
        self._writer = writer
        self._state = state
        self._clock = clock
        self._log = log
        self._rate = settings.served_log_sample
        self._limit = settings.served_log_rows
        self._seconds = settings.served_log_seconds
        self._end_seconds = min(_LONGEST_END_SECONDS, settings.drain_seconds)
        self._draw = draw or random.Random().random  # noqa: S311  (nobody gains by guessing it)
        self._lock = threading.Lock()
        self._queue: list[Served] = []
        self._pending: list[tuple[Shape, pa.Table]] = []
        self._held = 0
        self._logged = self._dropped = self._failed = 0
        self._told = Counts(0, 0, 0)
        self._error: FeatureStoreError | None = None
        self._told_error: str | None = None
        self._count: Callable[[Mapping[str, int]], None] = lambda _: None
        self._quiet_until = float("-inf")
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """What became of the rows that were to be logged so far."""
        return Counts(self._logged, self._dropped, self._failed)

    def count_by(self, tell: Callable[[Mapping[str, int]], None]) -> None:
        """Tell the counts of rows to somebody, on the thread that writes."""
        self._count = tell

    def begun(self, call: Call) -> None:
        """Hear of a call; there is nothing to log yet."""

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """Keep an answer that was drawn, if there is room."""
        if self._draw() >= self._rate:
            return
        clock = self._clock
        served = Served(
            answer,
            asked.features,
            asked.entity_rows,
            asked.request,
            call.id,
            call.front,
            self._state(),
            clock.monotonic() - call.begun if call.begun else 0.0,
            clock.now_us(),
        )
        rows = answer.rows
        with self._lock:
            if self._held + rows > self._limit or self._ending.is_set():
                self._dropped += rows
                return
            self._held += rows
            self._queue.append(served)
            is_half_full = 2 * self._held >= self._limit
        if is_half_full:
            self._wake.set()

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """Hear how a call ended; what it answered is logged already."""

    def close(self) -> None:
        """Write what is held, for some seconds at most; what is left then is lost, and told."""
        self._ending.set()
        self._wake.set()
        self._thread.join(self._end_seconds)
        with self._lock:
            self._failed += self._held
            self._held = 0
        self._quiet_until = float("-inf")
        self._tell()
        self._count = lambda _: None  # whoever counts may be closed next

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(self._seconds)
            self._wake.clear()
            self._write()
            self._tell()
        # What came after the last time; nothing comes any more.
        self._write()

    def _write(self) -> None:
        """Write all that is held; what cannot be written stays for the next time."""
        shapes = []
        try:
            while self._pending or self._convert():
                shape, rows = self._pending[0]
                self._writer.append(shape, rows)
                self._pending.pop(0)
                self._let_go(rows.num_rows)
                self._logged += rows.num_rows
                shapes.append(shape)
            if not self._ending.is_set():
                self._writer.tidy(shapes)
        except FeatureStoreError as error:
            self._error = error
        except Exception:  # noqa: BLE001  (the log must not end; what made it fail is given up)
            self._log.exception("the served log failed")
            self._give_up()

    def _convert(self) -> bool:
        """Make rows of the next answers; return whether there were any."""
        with self._lock:
            rows = taken = 0
            while taken < len(self._queue) and rows < _CHUNK_ROWS:
                rows += len(self._queue[taken].response)
                taken += 1
            part, self._queue = self._queue[:taken], self._queue[taken:]
        if not part:
            return False
        try:
            found = self._writer.convert(part)
        except BaseException:
            self._lose(rows)
            raise
        self._pending = found.batches
        if found.error is not None:
            self._error = found.error
            self._lose(found.refused)
        return True

    def _give_up(self) -> None:
        self._lose(sum(rows.num_rows for _, rows in self._pending))
        self._pending = []

    def _lose(self, rows: int) -> None:
        self._let_go(rows)
        self._failed += rows

    def _let_go(self, rows: int) -> None:
        with self._lock:
            self._held -= rows

    def _tell(self) -> None:
        """Tell what went wrong since it was told last; what is new at once."""
        counts = self.counts
        self._count(counts._asdict())
        error = None if self._error is None else str(self._error)
        lost = (counts.dropped, counts.failed) != (self._told.dropped, self._told.failed)
        now = self._clock.monotonic()
        is_new = error is not None and error != self._told_error
        if not (lost or error) or (now < self._quiet_until and not is_new):
            return
        self._log.warning(
            "served log behind",
            dropped=counts.dropped - self._told.dropped,
            failed=counts.failed - self._told.failed,
            waiting=self._held,
            error=error,
        )
        self._told, self._quiet_until = counts, now + _TELL_SECONDS
        self._told_error, self._error = error or self._told_error, None


def _check(settings: ServingSettings) -> None:
    for name, is_right, allowed in (
        ("served_log_sample", 0 <= settings.served_log_sample <= 1, "a number from 0 to 1"),
        ("served_log_rows", settings.served_log_rows > 0, "a number of rows"),
        ("served_log_seconds", settings.served_log_seconds > 0, "a number of seconds"),
        ("served_log_retention_days", settings.served_log_retention_days >= 0, "0 or more"),
    ):
        if not is_right:
            raise SettingsError(
                f"serving.{name} makes no sense.",
                where=f"serving.{name}",
                got=str(getattr(settings, name)),
                allowed=allowed,
            )
