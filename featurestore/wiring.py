"""Settings become a `FeatureStore`: the only room that knows the adapters.

Adapters are made on first use: a server never loads the engine.
"""

from __future__ import annotations

import os
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.access.gate import OPEN, Gate
from featurestore.clock import Clock, SystemClock
from featurestore.errors import SettingsError
from featurestore.model.settings import Settings, parse_size
from featurestore.settings_file import FILE_NAME, load_settings
from featurestore.store import BaseStore
from featurestore.wired_served import ServedServices
from featurestore.wired_streams import StreamServices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featurestore.compile.catalog import Declarations
    from featurestore.ports.engine import Engine, Sources
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Registry
    from featurestore.ports.streams import EventStream
    from featurestore.ports.tables import Tables
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.jobs import Materializer
    from featurestore.services.on_demand import OnDemandFunctions
    from featurestore.services.online import OnlineReader
    from featurestore.services.registration import Registration
    from featurestore.services.state import StateCache
    from featurestore.services.states import StateWriter
    from featurestore.services.status import StatusReader
    from featurestore.services.value_explaining import ValueExplainer
    from featurestore.services.verification import Verifier

__all__ = ["FILE_NAME", "FeatureStore", "WiredServices", "load_settings"]


class WiredServices(StreamServices, ServedServices):
    """Makes each adapter and service of one repository on first use.

    Args:
        folder: The repository's folder.
        settings: Its settings.
        clock: What tells the time.
    """

    def __init__(self, folder: Path, settings: Settings, clock: Clock) -> None:
        self.folder = folder
        self.settings = settings
        self.clock = clock
        self._closers: list[Callable[[], None]] = []
        self._streams: dict[str, EventStream] = {}
        self._opening = threading.Lock()

    @cached_property
    def registry(self) -> Registry:
        """The SQL registry."""
        from featurestore.adapters.sql_registry import SqlRegistry

        settings = self.settings.registry
        registry = SqlRegistry(
            settings.url,
            password=_reveal(settings.password),
            timeout_seconds=settings.timeout_seconds,
            base_folder=self.folder,
        )
        self._closers.append(registry.close)
        return registry

    @cached_property
    def online_store(self) -> OnlineStore:
        """The online store that the URL names."""
        store = self._open_online()
        self._closers.append(store.close)
        return store

    def _open_online(self) -> OnlineStore:
        settings = self.settings.online
        scheme, _, rest = settings.url.partition(":")
        if scheme == "lmdb":
            from featurestore.adapters.lmdb import LmdbOnlineStore

            return LmdbOnlineStore(self.folder / rest, timeout=settings.timeout_seconds)
        if scheme == "memory":
            from featurestore.adapters.memory_online import MemoryOnlineStore

            return MemoryOnlineStore()
        if scheme.partition("+")[0] in {"redis", "rediss"}:
            from featurestore.adapters.redis import RedisOnlineStore

            return RedisOnlineStore.from_url(
                settings.url,
                username=settings.username,
                password=_reveal(settings.password),
                sentinel_username=settings.sentinel_username,
                sentinel_password=_reveal(settings.sentinel_password),
                timeout=settings.timeout_seconds,
                clock=self.clock,
            )
        raise SettingsError(
            f"No online store is called '{scheme}'.",
            where="online.url",
            got=f"{scheme}:..." if rest else "a text without ':'",
            allowed="lmdb:PATH, redis://, redis+cluster://, redis+sentinel://, the same with"
            " rediss for TLS, or memory:",
        )

    def open_stream(self, url: str) -> EventStream:
        """Return the stream of a URL, the same one for the same URL.

        Raises:
            SettingsError: The URL, or what it needs, is wrong.
            StreamUnavailableError: The stream is gone.
        """
        with self._opening:
            if url not in self._streams:
                self._streams[url] = self._make_stream(url)
                self._closers.append(self._streams[url].close)
            return self._streams[url]

    def _make_stream(self, url: str) -> EventStream:
        settings = self.settings.streams
        more: dict[str, Any] = {
            "username": settings.username,
            "password": _reveal(settings.password),
            "timeout": settings.timeout_seconds,
            "clock": self.clock,
        }
        scheme = url.partition(":")[0]
        if scheme == "lmdb":
            from featurestore.adapters.lmdb.streams import LmdbEventStream

            return LmdbEventStream.from_url(url, base=self.folder, **more)
        if scheme == "memory":
            from featurestore.adapters.memory_stream import MemoryEventStream

            return MemoryEventStream.from_url(url, **more)
        if scheme == "kafka":
            from featurestore.adapters.kafka import KafkaEventStream

            return KafkaEventStream.from_url(url, **more)
        from featurestore.adapters.redis.streams import RedisEventStream

        return RedisEventStream.from_url(url, **more)

    @cached_property
    def engine(self) -> Engine:
        """DuckDB."""
        from featurestore.adapters.duckdb import DuckDBEngine

        settings = self.settings.offline
        spill = Path(settings.temp_path) if settings.temp_path else Path(settings.path) / ".spill"
        return DuckDBEngine(
            self.folder,
            memory_limit=parse_size(settings.memory_limit),
            threads=settings.threads or os.cpu_count() or 1,
            temp_path=self.folder / spill,
        )

    @cached_property
    def sources(self) -> Sources:
        """Local files, Delta tables and the logs of streams."""
        from featurestore.adapters.delta_sources import DeltaSources
        from featurestore.adapters.files import LocalFiles
        from featurestore.services.sources import SourceRouter

        return SourceRouter(LocalFiles(self.folder), DeltaSources(self.folder), self.stream_log)

    @cached_property
    def tables(self) -> Tables:
        """Delta tables."""
        from featurestore.adapters.delta import DeltaTables

        return DeltaTables((self.folder / self.settings.offline.path).resolve(), self.clock)

    @cached_property
    def state(self) -> StateCache:
        """The applied definitions as reads see them."""
        from featurestore.services.state import StateCache

        return StateCache(
            self.registry, self.settings.project, self.clock, self.settings.serving.refresh_seconds
        )

    @cached_property
    def functions(self) -> OnDemandFunctions:
        """The code of on-demand views, from the definitions folder."""
        from featurestore.services.on_demand import OnDemandFunctions

        return OnDemandFunctions(lambda: _functions(self.declarations()), self.clock)

    @cached_property
    def registration(self) -> Registration:
        """Plan and apply."""
        from featurestore.services.registration import Registration

        return Registration(
            self.settings.project,
            registry=self.registry,
            engine=self.engine,
            sources=self.sources,
            clock=self.clock,
            tables=self.tables,
            online=self.online_store,
            live=self.live_disposal,
        )

    @cached_property
    def states(self) -> StateWriter:
        """Applies events to the states of aggregated views."""
        from featurestore.services.states import StateWriter

        return StateWriter(self.settings.project, self.online_store)

    @cached_property
    def materializer(self) -> Materializer:
        """The jobs."""
        from featurestore.services.jobs import Materializer
        from featurestore.services.materialization import ViewJob
        from featurestore.services.runs import RunLog

        project, offline = self.settings.project, self.settings.offline
        job = ViewJob(
            project,
            engine=self.engine,
            sources=self.sources,
            tables=self.tables,
            registry=self.registry,
            runs=RunLog(project, self.registry, self.clock),
            pusher=self.pusher,
            states=self.states,
            clock=self.clock,
            target_file_size=parse_size(offline.target_file_size),
        )
        return Materializer(
            project,
            job=job,
            registry=self.registry,
            registration=self.registration,
            clock=self.clock,
            workers=offline.workers,
            memory_limit=parse_size(offline.memory_limit),
            threads=offline.threads or os.cpu_count() or 1,
        )

    @cached_property
    def historical(self) -> HistoricalReader:
        """Training sets."""
        from featurestore.services.historical import HistoricalReader

        return HistoricalReader(
            self.settings.project,
            state=self.state,
            engine=self.engine,
            tables=self.tables,
            functions=self.functions,
            registry=self.registry,
            clock=self.clock,
            memory_limit=parse_size(self.settings.offline.memory_limit),
            materialize=lambda view, start, end: self.materializer.materialize(start, end, [view]),
        )

    @cached_property
    def online(self) -> OnlineReader:
        """Lookups."""
        from featurestore.services.online import OnlineReader

        return OnlineReader(
            self.settings.project,
            state=self.state,
            online=self.online_store,
            functions=self.functions,
            clock=self.clock,
        )

    @cached_property
    def status(self) -> StatusReader:
        """What `featurestore status` shows."""
        from featurestore.services.status import StatusReader

        return StatusReader(
            self.settings.project,
            registry=self.registry,
            tables=self.tables,
            online=self.online_store,
            clock=self.clock,
            misfire_grace_seconds=self.settings.scheduling.misfire_grace_seconds,
            refused=self.stream_log.quarantined,
        )

    @cached_property
    def verifier(self) -> Verifier:
        """Compares what is served with the tables."""
        from featurestore.services.verification import Verifier

        return Verifier(
            self.settings.project,
            state=self.state,
            ask=self.online.get_online_features,
            historical=self.historical,
            tables=self.tables,
            engine=self.engine,
            registry=self.registry,
            clock=self.clock,
        )

    @cached_property
    def value_explainer(self) -> ValueExplainer:
        """Tells where values come from."""
        from featurestore.services.value_explaining import ValueExplainer

        return ValueExplainer(
            self.settings.project,
            state=self.state,
            online=self.online,
            online_store=self.online_store,
            historical=self.historical,
            tables=self.tables,
            engine=self.engine,
            clock=self.clock,
        )

    def declarations(self) -> Declarations:
        """Import the definitions folder as it is now."""
        from featurestore.loader import load

        return load(self.folder / self.settings.definitions, self.folder)

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self._closers:
            self._closers.pop()()


class FeatureStore(BaseStore):
    """A feature store over a repository: a folder with `featurestore.toml`.

    Args:
        folder: The repository.
        settings: Instead of reading the file and the environment.
        clock: Instead of the machine's.
        api_key: Who opens it, where the settings ask for a key (`access.keys_file`); by default
            what the variable FEATURESTORE_API_KEY holds.

    Raises:
        SettingsError: The settings are missing or wrong.
        UnauthenticatedError: The settings ask for a key, and there is none, or it is not valid.
        AccessDeniedError: The key is for other projects.
    """

    def __init__(
        self,
        folder: str | Path = ".",
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
        api_key: str | None = None,
    ) -> None:
        root = Path(folder).resolve()
        services = WiredServices(root, settings or load_settings(root), clock or SystemClock())
        super().__init__(services, _gate(services, api_key))


def _gate(services: WiredServices, api_key: str | None) -> Gate:
    access = services.settings.access
    if access.keys_file is None and access.audit_log is None:
        return OPEN
    from featurestore.access.gatekeeper import VARIABLE, Gatekeeper

    return Gatekeeper(
        services.settings.project,
        access,
        services.folder,
        services.clock,
        key=api_key or os.environ.get(VARIABLE),
        state=lambda: services.state.get(),  # noqa: PLW0108
    )


def _reveal(secret: Any) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _functions(declarations: Declarations) -> Mapping[str, tuple[Callable[..., Any], str]]:
    from featurestore.compile.fingerprints import code_fingerprint

    return {
        view.name: (view.function, code_fingerprint(view.function))
        for view in declarations.on_demand
    }
