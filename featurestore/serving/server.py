"""The gRPC server: lookups, pushes, what is served, health, reflection; it drains before it ends.

A request's deadline bounds the wait for the store, so that a store that is gone is told as such
before the caller gives up. New definitions are noticed by a thread in the background; requests
never wait for the registry. The server refuses to start without definitions to serve. Who may call,
and how much, is `security`'s matter.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from featurestore.clock import Clock, SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.serving.cautions import Cautions
from featurestore.serving.client_calls import SERVICE, is_loopback
from featurestore.serving.exchange import Surroundings
from featurestore.serving.freshness import Freshness
from featurestore.serving.fronts import connect_front, http_front
from featurestore.serving.grpc_queue.front import LookupQueue
from featurestore.serving.grpc_queue.inside import is_known
from featurestore.serving.handling import Handling
from featurestore.serving.health import Health
from featurestore.serving.methods import Methods
from featurestore.serving.observing import Condition, Observer, Watcher
from featurestore.serving.pool import DaemonPool
from featurestore.serving.push import EventReader, EventSink, push_code_of
from featurestore.serving.receiving import Receiver
from featurestore.serving.security.guard import Guard
from featurestore.serving.security.tls import ServerTls, certificate_files
from featurestore.serving.shared_port import cannot_listen, split_address
from featurestore.serving.standard import StandardServices
from featurestore.serving.status import code_of

if TYPE_CHECKING:
    from featurestore.serving.connect.front import ConnectFront
    from featurestore.serving.http.front import HttpFront

_PING_SECONDS = 1.0
_ONLINE_STORE = "online store"
_LOOKUP = "GetOnlineFeatures"


class FeatureServer:
    """Serves a project's online features, and takes events for them.

    Args:
        reader: Answers the lookups.
        settings: The address and the limits; port 0 takes a free one.
        events: Takes pushed events; without it pushes are refused.
        credentials: For TLS, instead of those of the settings.
        share_port: Whether other processes listen on the address too, as `shared_port` has it.
        folder: Where paths in the settings begin: the repository.
        clock: Tells the time for expiries, limits and the audit.
        observers: Hear of calls; closed once the last has ended.
        event_reader: Reads events that come as JSON; without it pushes over HTTP are refused.

    Raises:
        SettingsError: What the settings say of TLS, keys, tokens or the audit cannot be used.
    """

    def __init__(
        self,
        reader: OnlineReader,
        settings: ServingSettings,
        *,
        events: EventSink | None = None,
        credentials: grpc.ServerCredentials | None = None,
        share_port: bool = False,
        folder: Path = Path(),
        clock: Clock | None = None,
        observers: Sequence[Observer] = (),
        event_reader: EventReader | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._reader = reader
        self._settings = settings
        self._log = structlog.get_logger("featurestore.serving")
        self._credentials = credentials or self._tls(folder)
        self._guard = Guard(reader.project, settings, folder, clock)
        self._freshness = Freshness(reader.state, clock)
        self._observers = (self._freshness, *observers)
        self._methods = Methods(
            reader, self._guard, settings, events, self._observers, self._freshness
        )
        self._health = Health(SERVICE)
        self._troubles: dict[str, str] = {}
        self._cautions = Cautions(self._log, clock)
        self._stopping = threading.Event()
        self._watchers = self._made_watchers()
        self._pool = _pool(settings)
        self._receiver = Receiver(self._pool, clock, settings.receive_seconds)
        self._standard = self._made_standard(clock)
        self._server = grpc.server(self._pool, options=_options(settings, share_port=share_port))
        self.address = settings.address
        self.http_address: str | None = None
        self.connect_address: str | None = None
        around = Surroundings(self._guard, self._pool, clock, self._log, self._observers)
        self._queue = self._made_queue(around)
        self._front = self._made_front(around, folder, events, event_reader, share_port=share_port)
        self._connect = self._made_connect(around, folder, share_port=share_port)

    def start(self) -> str:
        """Begin to serve; return the address that is listened on.

        Raises:
            RegistryUnavailableError: The definitions cannot be read.
            SettingsError: The address cannot be listened on.
        """
        state = self._reader.state.get()
        self._add_services()
        self.address = self._bind()
        self._freshness.refresh()
        self._look()
        if self._front is not None:
            self.http_address = self._front.start()
        if self._connect is not None:
            self.connect_address = self._connect.start()
        self._receiver.start()
        (self._server if self._queue is None else self._queue).start()
        for watcher in self._watchers:
            watcher.start()
        self._log.info(
            "serving",
            address=self.address,
            http_address=self.http_address,
            connect_address=self.connect_address,
            project=self._reader.project,
            revision=state.revision,
            views=len(state.serving),
            tls=self._credentials is not None,
            restricted=self._guard.access.restricted,
        )
        addresses = (self.address, self.http_address, self.connect_address)
        open_addresses = [a for a in addresses if a and not is_loopback(a)]
        plain = self._credentials is None and open_addresses
        if plain and self._guard.access.restricted:
            self._log.warning("keys and tokens come in plain text", hint="set serving.tls_*")
        return self.address

    def stop(self) -> None:
        """Tell that we are going, take no more requests, and finish those that are in flight."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._health.end()
        self._log.info("draining", address=self.address, seconds=self._settings.drain_seconds)
        fronts = [front for front in (self._front, self._connect) if front is not None]
        drained = [front.drain() for front in fronts]
        self._server.stop(self._settings.drain_seconds).wait()
        for wait in drained:
            wait()
        if self._queue is not None:
            self._queue.stop()
        self._pool.shutdown(wait=False)
        self._standard.stop()
        self._receiver.stop()
        for watcher in self._watchers:
            if watcher.is_alive():
                watcher.join()
        self._guard.close()
        for observer in self._observers:
            observer.close()
        self._log.info("stopped", address=self.address)

    @property
    def is_answering(self) -> bool:
        """Whether lookups can be answered now, as far as is known."""
        return _ONLINE_STORE not in self._troubles and not self._stopping.is_set()

    def run(self, started: Callable[[], None] | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then drain; to be called from the main thread.

        Args:
            started: Called once connections are taken.

        Raises:
            RegistryUnavailableError: The definitions cannot be read.
            SettingsError: The address cannot be listened on.
        """
        # A queue, as an event that is set while its lock is held, in a handler, never gets it.
        asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        held = {
            number: signal.signal(number, lambda number, _: asked.put(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self.start()
            if started is not None:
                started()
            # Not for ever: once Polars is loaded, Ctrl-C does not end a wait without a limit.
            waiting = True
            while waiting:
                with contextlib.suppress(queue.Empty):
                    asked.get(timeout=0.5)
                    waiting = False
            self.stop()
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)

    def _tls(self, folder: Path) -> grpc.ServerCredentials | None:
        files = certificate_files(self._settings, folder)
        if files is None:
            return None
        tls = ServerTls(files, self._log)
        self._log.info("certificate loaded", expires=tls.expires)
        return tls.credentials()

    def _add_services(self) -> None:
        handling = Handling(self._guard, self._receiver, self._pool, self._log, self._observers)
        methods = (
            (_LOOKUP, self._methods.get_online_features, code_of),
            ("Push", self._methods.push, push_code_of),
            ("GetServingInfo", self._methods.get_serving_info, code_of),
        )
        # As streams, of which one message is taken: see `receiving`.
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(handling.handler(name, method, code))
            for name, method, code in methods
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self._standard.add_to(self._server)

    def _bind(self) -> str:
        address = self._settings.address
        host, _ = split_address(address)
        try:
            if self._credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise cannot_listen(address) from error
        return f"{host}:{bound}"

    def _made_queue(self, around: Surroundings) -> LookupQueue | None:
        """Return what takes lookups as events, where grpcio is as we know it."""
        if is_known():
            path = f"/{SERVICE}/{_LOOKUP}"
            return LookupQueue(self._server, path, self._methods, around, self._settings)
        self._log.warning(
            "lookups over gRPC are not read together",
            got=f"grpcio {grpc.__version__}",
            hint="Nobody has tried this version with it; 1.85 answers twice as many.",
        )
        return None

    def _made_front(
        self,
        around: Surroundings,
        folder: Path,
        events: EventSink | None,
        event_reader: EventReader | None,
        *,
        share_port: bool,
    ) -> HttpFront | None:
        if self._settings.http_address is None:
            return None
        return http_front(
            self._settings,
            folder,
            self._reader,
            self._methods,
            around,
            events=events,
            event_reader=event_reader,
            is_answering=lambda: self.is_answering,
            share_port=share_port,
        )

    def _made_connect(
        self, around: Surroundings, folder: Path, *, share_port: bool
    ) -> ConnectFront | None:
        if self._settings.connect_address is None:
            return None
        return connect_front(
            self._settings,
            folder,
            self._methods,
            around,
            is_answering=lambda: self.is_answering,
            share_port=share_port,
        )

    def _made_standard(self, clock: Clock) -> StandardServices:
        shown = () if self._guard.access.restricted else (SERVICE,)
        return StandardServices(self._health, shown, clock, self._settings.receive_seconds)

    def _made_watchers(self) -> list[threading.Thread]:
        looks = {
            "watch": self._look,
            "keys": self._guard.refresh,
            "freshness": self._freshness.refresh,
        }
        return [
            threading.Thread(target=self._watch, args=(look,), name=name, daemon=True)
            for name, look in looks.items()
        ]

    def _watch(self, look: Callable[[], None]) -> None:
        # Twice in the time for which a state is used: no request finds it too old.
        while not self._stopping.wait(self._settings.refresh_seconds / 2):
            try:
                look()
            except Exception:  # noqa: BLE001  (the watch must go on)
                self._log.exception("the watch failed")

    def _look(self) -> None:
        """Look for new definitions, and whether the store is there; tell what has changed."""
        before = self._troubles
        state = self._reader.state
        troubles = {}
        try:
            state.refresh()
            if state.last_error is not None:
                troubles["registry"] = state.last_error.what
            self._reader.ping(timeout=_PING_SECONDS)
        except FeatureStoreError as error:
            troubles[_ONLINE_STORE] = error.what
        self._health.tell(serving=_ONLINE_STORE not in troubles)
        self._troubles = troubles
        for name in troubles.keys() - before.keys():
            self._log.warning("unavailable", part=name, error=troubles[name])
        for name in before.keys() - troubles.keys():
            self._log.info("available again", part=name)
        condition = Condition(
            state=state.get(),
            store_up=_ONLINE_STORE not in troubles,
            breaker_open=self._guard.breaker.is_open,
            freshness=self._freshness.tables,
            newest_served=self._freshness.newest_by_view(),
        )
        for observer in self._observers:
            if isinstance(observer, Watcher):
                observer.watched(condition)
        if _ONLINE_STORE not in troubles and self._cautions.are_due():
            self._cautions.look(self._reader)


def _pool(settings: ServingSettings) -> DaemonPool:
    """Return the threads that answer."""
    waiting = max(1, settings.max_concurrent_requests - settings.threads)
    return DaemonPool(settings.threads, waiting)


def _options(settings: ServingSettings, *, share_port: bool) -> tuple[tuple[str, int], ...]:
    """Return how gRPC is to listen."""
    return (
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # What one connection sends beyond that waits at its own end.
        ("grpc.max_concurrent_streams", 2 * settings.max_concurrent_requests),
        ("grpc.so_reuseport", int(share_port)),
    )
