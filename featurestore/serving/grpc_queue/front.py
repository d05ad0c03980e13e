"""Takes lookups over gRPC as events, and has those that wait at the same time read together.

One thread takes in all that has come: calls of lookups wait for nothing but their message, and
never for a thread; whoever does not send it is let go. All other calls are grpcio's own matter.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from featurestore.clock import SystemClock
from featurestore.model.settings import ServingSettings
from featurestore.serving.exchange import Exchange, Surroundings
from featurestore.serving.grpc_queue.calls import GRPC, QueuedCall
from featurestore.serving.grpc_queue.inside import Inside, certificate_of, peer_of
from featurestore.serving.grpc_queue.lead import Lead
from featurestore.serving.handling import overloaded, without_message
from featurestore.serving.pool import DaemonPool
from featurestore.serving.replies import Reply
from featurestore.serving.security.calls import Call
from featurestore.serving.status import code_of
from featurestore.serving.together import MOST_BYTES, Lookup, LookupMethods, Together, fitting

if TYPE_CHECKING:
    import grpc

_IDLE_SECONDS = 1.0
_LOOK_SECONDS = 0.1
# Lookups that wait for a thread are looked at so often.
_BUSY_SECONDS = 0.005
_MOST_THREADS = 4
# A deadline that is further away than so many seconds is none: gRPC has a number for it.
_FOREVER = 1e9
_FAILED = "The server failed."
# What has been taken in is handed on after so many events, though there be more.
_MOST_EVENTS = 256
# gRPC counts by the system's clock, whatever clock the server goes by.
_SYSTEM = SystemClock()


class LookupQueue:
    """Serves all calls of a server, its lookups as events.

    Args:
        server: Made by `grpc.server`, not started.
        method: The path of the lookups.
        methods: Answer them.
        around: What all calls need.
        settings: The limits.
    """

    def __init__(
        self,
        server: grpc.Server,
        method: str,
        methods: LookupMethods,
        around: Surroundings,
        settings: ServingSettings,
    ) -> None:
        self._inside = Inside(server)
        self._lead = Lead(self._serve, _SYSTEM)
        self._path = method.encode()
        self._name = method.rpartition("/")[2]
        self._around = around
        self._together = Together(methods)
        self._restricted = around.guard.access.restricted
        self._most = settings.max_concurrent_requests
        self._receive_seconds = settings.receive_seconds
        # Calls whose messages have not come, the oldest first, and since when.
        self._silent: dict[QueuedCall, float] = {}
        # Calls without a message, to be looked at once all that has come was taken in.
        self._empty: list[tuple[QueuedCall, float]] = []
        # Lookups whose messages have come.
        self._waiting: list[Lookup] = []
        # Its own threads: those of the pool may be busy with what takes long.
        self._apart = DaemonPool(_MOST_THREADS)
        self._threads = 0
        self._lock = threading.Lock()
        self._held = 0

    def start(self) -> None:
        """Begin to take calls."""
        self._lead.start(self._inside.start)

    def stop(self) -> None:
        """End its threads, once the server has ended."""
        self._apart.shutdown(wait=False)

    @property
    def held(self) -> int:
        """How many lookups have come and not been answered."""
        return self._held

    # -- events

    def _serve(self) -> bool:
        """Take in events until another thread does, or the server has ended: that is returned."""
        while self._lead.is_mine:
            try:
                if not self._turn():
                    return True
            except Exception as error:  # noqa: BLE001  (all other calls go on)
                self._tell("an event of gRPC could not be handled", error)
        return False

    def _turn(self) -> bool:
        """Take in what has come, and answer it; return whether the server goes on."""
        began = _now()
        for _ in range(_MOST_EVENTS):
            now = _now()
            event = self._inside.next(now, self._patience())
            if event is None:
                break
            if self._inside.is_call_of(event, self._path):
                self._begin(event)
            elif not self._inside.handle(event):
                # The queue is no more, whatever happens here.
                with contextlib.suppress(Exception):
                    self._forgo()
                return False
            # Not kept while we wait: grpcio ends a call once nothing refers to it.
            event = None
            if now - began > _LOOK_SECONDS:
                break
        self._let_go()
        self._catch_up()
        return True

    def _patience(self) -> float:
        """Return for how many seconds there is nothing to do if nothing comes."""
        if self._waiting and (self._lead.is_watched or self._threads < _MOST_THREADS):
            return 0.0
        if self._waiting or self._empty:
            return _BUSY_SECONDS
        return _LOOK_SECONDS if self._silent else _IDLE_SECONDS

    def _begin(self, event: Any) -> None:
        self._inside.take_another()
        call = QueuedCall(event.call, self._exchange(event), self._came)
        self._inside.keep(call)
        if not self._restricted:
            self._ask(call)
        elif call.exchange.call.authorization is None:
            self._admit(call)
        else:
            # On a thread: the keys of tokens may be far away.
            self._around.pool.submit(lambda: self._admit(call))

    def _exchange(self, event: Any) -> Exchange:
        left = event.call_details.deadline - _now()
        told = self._restricted or self._around.guard.audited
        return Exchange(
            self._around,
            Call(self._name, event.invocation_metadata),
            code_of,
            None if left > _FOREVER else left,
            peer_of(event.call) if told else "",
            certificate_of(event.call) if told else None,
            GRPC,
        )

    def _admit(self, call: QueuedCall) -> None:
        """Find out who calls, before the message is read."""
        refused = call.exchange.admit()
        if refused is None:
            self._ask(call)
        else:
            self._answer(call, refused)

    def _ask(self, call: QueuedCall) -> None:
        """Ask for the message of a call, if lookups are taken on."""
        if self._is_full(call):
            return
        with self._lock:
            self._silent[call] = _SYSTEM.monotonic()
        if not call.ask():
            self._heard(call)
            call.exchange.forgo()

    def _is_full(self, call: QueuedCall) -> bool:
        """Refuse a call if it is one too many; return whether it is."""
        if self._held < self._most:
            return False
        self._answer(call, call.exchange.refuse(overloaded()))
        return True

    def _heard(self, call: QueuedCall) -> None:
        """Wait for the message of a call no more."""
        with self._lock:
            self._silent.pop(call, None)

    def _came(self, call: QueuedCall, message: bytes | None) -> None:
        self._heard(call)
        if message is None:
            self._empty.append((call, _SYSTEM.monotonic()))
            return
        exchange = call.exchange
        exchange.handed_over = True
        if self._is_full(call):
            return
        with self._lock:
            self._held += 1

        def told(reply: Reply) -> None:
            with self._lock:
                self._held -= 1
            self._answer(call, reply)

        lookup = Lookup(exchange, message, told)
        if len(message) > MOST_BYTES:
            self._aside(lookup)
        else:
            self._waiting.append(lookup)

    def _let_go(self) -> None:
        """Let go of callers who do not send; of the oldest first, where there are too many."""
        if not self._silent:
            return
        patient = _SYSTEM.monotonic() - self._receive_seconds
        with self._lock:
            crowd = max(0, len(self._silent) - self._most)
            slow = list(islice(self._silent, crowd))
            slow += takewhile(
                lambda call: self._silent[call] <= patient, islice(self._silent, crowd, None)
            )
            for call in slow:
                del self._silent[call]
        for call in slow:
            call.cancel()

    # -- answers

    def _catch_up(self) -> None:
        """Answer those that wait: here, or on other threads where that may take long."""
        if self._empty:
            self._answer_the_empty()
        if not self._waiting or self._lead.here(lambda: self._work(self._next())):
            return
        if self._threads < _MOST_THREADS:
            batch = self._next()
            with self._lock:
                self._threads += 1
            self._apart.submit(lambda: self._work_apart(batch))

    def _next(self) -> Sequence[Lookup]:
        """Return those of them that are answered next."""
        count = fitting(self._waiting)
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _work(self, batch: Sequence[Lookup]) -> None:
        aside: set[Lookup] = set()
        try:
            self._together.answer(batch, aside.add)
        finally:
            for lookup in batch:
                if lookup in aside:
                    self._aside(lookup)
                else:
                    self._finish(lookup)

    def _work_apart(self, batch: Sequence[Lookup]) -> None:
        try:
            self._work(batch)
        finally:
            with self._lock:
                self._threads -= 1

    def _aside(self, lookup: Lookup) -> None:
        """Have one lookup answered by itself."""

        def work() -> None:
            try:
                self._together.alone(lookup)
            finally:
                self._finish(lookup)

        self._around.pool.submit(work)

    def _finish(self, lookup: Lookup) -> None:
        """Have the answer to a lookup told; where there is none, that the server failed."""
        lookup.told(lookup.reply or GRPC.breakdown(_FAILED, lookup.exchange.call.id))

    def _answer(self, call: QueuedCall, reply: Reply) -> None:
        try:
            call.answer(reply)
        except Exception as error:  # noqa: BLE001  (the answers to others are sent all the same)
            self._tell("an answer could not be sent", error)
            call.cancel()

    def _answer_the_empty(self) -> None:
        """Answer calls that came without a message a moment ago, if they are not over by now."""
        patient = _SYSTEM.monotonic() - _BUSY_SECONDS
        while self._empty and self._empty[0][1] <= patient:
            call, _ = self._empty.pop(0)
            if call.is_over:
                call.exchange.forgo()
            else:
                self._answer(call, call.exchange.refuse(without_message()))

    def _forgo(self) -> None:
        """End the calls that were not answered when the server ended: nobody waits any more."""
        for call, _ in self._empty:
            call.exchange.forgo()
        for lookup in self._waiting:
            lookup.told(lookup.exchange.forgo())
        self._empty, self._waiting = [], []

    def _tell(self, what: str, error: Exception) -> None:
        """Write down what nobody foresaw; without the log all the same goes on."""
        with contextlib.suppress(Exception):
            self._around.log.error(what, exc_info=error)


def _now() -> float:
    """Return the seconds since 1970."""
    return _SYSTEM.now_us() / 1e6
