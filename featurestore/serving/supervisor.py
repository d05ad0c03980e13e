"""Several worker processes on one address: kept alive, renewed one by one, drained together.

A worker that dies, or hangs so that it gives no sign of life, is started again; one that cannot
start is tried less and less often. SIGHUP renews all workers, one after the other: the new one
serves before the old one drains. SIGTERM and SIGINT drain them all. Nothing is served here, so that
nothing of a worker's trouble is.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.clock import Clock
from featurestore.serving.worker import Command, Worker

_LOOK_SECONDS = 0.2
# A worker that has lived so long did not fail at its start.
_LONG_SECONDS = 10.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0
_MOST_DOUBLINGS = 8
# What ending takes beside draining.
_END_SECONDS = 5.0


@dataclass
class _Place:
    """One of the workers that there should be.

    Attributes:
        number: From 1.
        worker: The one that serves, None while there is none.
        renewal: The one that is to take over from it.
        failures: How many in a row have died at their start.
        due: When the next may be started.
        told: What was last said of it: None that it is not ready, or whether it answers.
    """

    number: int
    worker: Worker | None = None
    renewal: Worker | None = None
    failures: int = 0
    due: float = 0.0
    told: bool | None = None


class Supervisor:
    """Runs workers.

    Args:
        command: Returns a worker's command line, from the descriptor of the line to us.
        count: How many workers there should be.
        clock: Tells when something is due.
        log: Told what happens to them.
        drain_seconds: How long a worker may finish what it has begun.
        silence_seconds: After how long without a sign of life a worker is taken for hung.
        start_seconds: How long a worker may take to start.
        processors: Where workers stay, each at one of them in turn; none is anywhere.
    """

    def __init__(
        self,
        command: Command,
        count: int,
        *,
        clock: Clock,
        log: Any,
        drain_seconds: float,
        silence_seconds: float = 30.0,
        start_seconds: float = 120.0,
        processors: Sequence[int] = (),
    ) -> None:
        self._command = command
        self._clock = clock
        self._log = log
        self._limit = drain_seconds + _END_SECONDS
        self._silence = silence_seconds
        self._start_limit = start_seconds
        self._processors = processors
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._leaving: list[tuple[Worker, float]] = []
        self._to_renew: list[_Place] = []
        self._ending = False
        self._asked_to_renew = False
        self._signals, self._waker = socket.socketpair()

    def run(self) -> int:
        """Run the workers until SIGTERM or SIGINT; to be called from the main thread.

        Returns:
            0, or what the first worker ended with where it could not even start.
        """
        with self._signals, self._waker, self._listening():
            try:
                code = self._first()
                while code is None and not self._ending:
                    self._look()
                    self._wait()
                return code or 0
            finally:
                self._end()

    def _first(self) -> int | None:
        """Start one worker, so that what keeps all of them from starting is told once."""
        place = self._places[0]
        place.worker = worker = self._started(place)
        while not self._ending and not worker.is_ready:
            code = worker.exit_code
            if code is not None:
                worker.close()
                place.worker = None
                return abs(code) or 1
            self._wait()
            worker.listen()
        return None

    def _look(self) -> None:
        now = self._clock.monotonic()
        if self._asked_to_renew:
            self._asked_to_renew = False
            begun = [place for place in self._to_renew[:1] if place.renewal is not None]
            self._to_renew = [*begun, *self._places]
            self._log.info("renewing workers", workers=len(self._places))
        for place in self._places:
            self._look_after(place, now)
        self._see_off(now)
        self._renew()

    def _look_after(self, place: _Place, now: float) -> None:
        worker = place.worker
        if worker is None:
            if now >= place.due:
                place.worker = self._started(place)
            return
        worker.listen()
        code = worker.exit_code
        if code is not None:
            self._bury(place, worker, code, now)
            return
        told = worker.is_answering if worker.is_ready else None
        if told is not place.told:
            place.told = told
            text = "worker answers" if told else "worker does not answer"
            self._log.info(text, worker=place.number, pid=worker.pid)
        self._kill_if_hung(place, worker, now)

    def _kill_if_hung(self, place: _Place, worker: Worker, now: float) -> None:
        limit = self._silence if worker.is_ready else self._start_limit
        if now - worker.heard > limit:
            self._log.error("worker hangs", worker=place.number, pid=worker.pid, seconds=limit)
            worker.heard = now
            worker.kill()

    def _bury(self, place: _Place, worker: Worker, code: int, now: float) -> None:
        worker.close()
        early = now - worker.began < _LONG_SECONDS
        place.failures = min(place.failures + 1, _MOST_DOUBLINGS) if early else 0
        pause = min(_PAUSE_SECONDS * 2**place.failures, _LONGEST_PAUSE_SECONDS) if early else 0.0
        place.worker, place.told, place.due = None, None, now + pause
        self._log.error("worker died", worker=place.number, pid=worker.pid, exit_code=code)

    def _renew(self) -> None:
        """Go on with the renewal: one place at a time, and the next when the old one is gone."""
        if not self._to_renew or self._leaving:
            return
        place = self._to_renew[0]
        if place.renewal is None:
            place.renewal = self._started(place)
            return
        new = place.renewal
        new.listen()
        if new.is_ready:
            self._to_renew.pop(0)
            old, place.worker, place.renewal, place.told = place.worker, new, None, None
            if old is not None:
                self._dismiss(old)
            if not self._to_renew:
                self._log.info("workers renewed", workers=len(self._places))
        elif new.exit_code is not None:
            self._give_up(place, new)
        elif self._clock.monotonic() - new.began > self._start_limit:
            new.kill()

    def _give_up(self, place: _Place, new: Worker) -> None:
        self._log.error(
            "renewal given up: the new worker did not start; the old ones go on",
            worker=place.number,
            pid=new.pid,
            exit_code=new.exit_code,
        )
        new.close()
        place.renewal = None
        self._to_renew.clear()

    def _started(self, place: _Place) -> Worker:
        held = self._processors
        processor = held[(place.number - 1) % len(held)] if held else None
        worker = Worker(self._command, self._clock, processor)
        self._log.info("worker started", worker=place.number, pid=worker.pid)
        return worker

    def _dismiss(self, worker: Worker) -> None:
        worker.terminate()
        self._leaving.append((worker, self._clock.monotonic() + self._limit))

    def _see_off(self, now: float) -> None:
        still: list[tuple[Worker, float]] = []
        for worker, limit in self._leaving:
            if worker.exit_code is not None:
                worker.close()
                continue
            if now > limit:
                self._log.error("worker did not drain in time", pid=worker.pid)
                worker.kill()
            still.append((worker, float("inf") if now > limit else limit))
        self._leaving = still

    def _end(self) -> None:
        for place in self._places:
            for worker in (place.worker, place.renewal):
                if worker is not None:
                    self._dismiss(worker)
            place.worker = place.renewal = None
        while self._leaving:
            self._see_off(self._clock.monotonic())
            self._wait()

    def _wait(self) -> None:
        """Wait for a signal, a word from a worker, or a while."""
        workers = [w for p in self._places for w in (p.worker, p.renewal) if w is not None]
        watched = [self._signals, *(w.link for w in workers if w.exit_code is None)]
        select.select(watched, (), (), _LOOK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(1024)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def end(*_: object) -> None:
            self._ending = True

        def renew(*_: object) -> None:
            self._asked_to_renew = True

        self._signals.settimeout(0)
        self._waker.settimeout(0)
        handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: renew}
        held = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        # The signal itself ends the wait, wherever it comes in.
        held_fd = signal.set_wakeup_fd(self._waker.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(held_fd)
            for number, handler in held.items():
                signal.signal(number, handler)
