"""Settings become a `FeatureStore`: the only room that knows the adapters.

Reads `featurestore.toml` and the `FEATURESTORE_...` variables, which win. Secrets come from
variables only. Adapters are made on first use: a server never loads the engine.
"""

from __future__ import annotations

import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from featurestore.clock import Clock, SystemClock
from featurestore.errors import SettingsError, near_miss
from featurestore.model.settings import Settings, parse_size
from featurestore.store import BaseStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from featurestore.compile.catalog import Declarations
    from featurestore.ports.engine import Engine, Sources
    from featurestore.ports.online import OnlineStore
    from featurestore.ports.registry import Registry
    from featurestore.ports.tables import Tables
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.jobs import Materializer
    from featurestore.services.on_demand import OnDemandFunctions
    from featurestore.services.online import OnlineReader
    from featurestore.services.registration import Registration
    from featurestore.services.state import StateCache
    from featurestore.services.status import StatusReader

FILE_NAME = "featurestore.toml"
_SECRETS = (("registry", "password"), ("online", "password"))


class _FromEnvironment(BaseSettings, Settings):
    """The settings with the environment laid over the file's values."""

    model_config = SettingsConfigDict(
        env_prefix="FEATURESTORE_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        frozen=True,
        extra="forbid",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables first, then the file, which comes as arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load_settings(folder: Path) -> Settings:
    """Return the settings of a repository.

    Raises:
        SettingsError: The file is missing or wrong, or holds a secret; names the key.
    """
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(
            f"There is no {FILE_NAME} here.",
            where=str(folder.resolve()),
            hint="Run 'featurestore init DIR' to begin, or name the folder with --repo.",
        ) from error
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{FILE_NAME} cannot be read.", where=str(path), got=str(error)
        ) from error
    _refuse_secrets(values, path)
    try:
        return _FromEnvironment(**values)
    except ValidationError as error:
        raise _settings_error(error, path) from error


def _refuse_secrets(values: Mapping[str, Any], path: Path) -> None:
    for section, key in _SECRETS:
        table = values.get(section)
        if not isinstance(table, dict):
            continue
        inside = isinstance(table.get("url"), str) and urlsplit(table["url"]).password
        if key in table or inside:
            raise SettingsError(
                f"A secret stands in {FILE_NAME}.",
                where=f"{path}, [{section}]",
                hint=f"Take it out and set FEATURESTORE_{section.upper()}_{key.upper()}.",
            )


def _settings_error(error: ValidationError, path: Path) -> SettingsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    known = [*Settings.model_fields]
    for name, field in Settings.model_fields.items():
        nested = getattr(field.annotation, "model_fields", {})
        known += [f"{name}.{inner}" for inner in nested]
    if first["type"] == "extra_forbidden":
        return SettingsError(
            f"The setting '{key}' does not exist.",
            where=str(path),
            hint=near_miss(key, known) or "See docs/settings.md for all of them.",
        )
    if first["type"] == "missing":
        return SettingsError(f"The setting '{key}' is missing.", where=str(path))
    message = first["msg"].removeprefix("Value error, ")
    return SettingsError(
        f"The setting '{key}' is wrong: {message}.", where=str(path), got=repr(first["input"])
    )


class WiredServices:
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
        if scheme in {"redis", "rediss", "redis+cluster", "rediss+cluster"}:
            from featurestore.adapters.redis import RedisOnlineStore

            return RedisOnlineStore.from_url(
                settings.url,
                username=settings.username,
                password=_reveal(settings.password),
                timeout=settings.timeout_seconds,
                clock=self.clock,
            )
        raise SettingsError(
            f"No online store is called '{scheme}'.",
            where="online.url",
            got=settings.url,
            allowed="lmdb:PATH, redis://, rediss://, redis+cluster:// or memory:",
        )

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
        """Local files and Delta tables."""
        from featurestore.adapters.delta import DeltaSources
        from featurestore.adapters.files import LocalFiles
        from featurestore.services.sources import SourceRouter

        return SourceRouter(LocalFiles(self.folder), DeltaSources(self.folder))

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
        )

    @cached_property
    def materializer(self) -> Materializer:
        """The jobs."""
        from featurestore.services.jobs import Materializer
        from featurestore.services.materialization import ViewJob
        from featurestore.services.pushing import Pusher
        from featurestore.services.runs import RunLog

        project, offline, online = (
            self.settings.project,
            self.settings.offline,
            self.settings.online,
        )
        job = ViewJob(
            project,
            engine=self.engine,
            sources=self.sources,
            tables=self.tables,
            registry=self.registry,
            runs=RunLog(project, self.registry, self.clock),
            pusher=Pusher(
                project,
                self.online_store,
                batch_rows=online.batch_rows,
                gc_grace_hours=online.gc_grace_hours,
            ),
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

    Raises:
        SettingsError: The settings are missing or wrong.
    """

    def __init__(
        self,
        folder: str | Path = ".",
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        root = Path(folder).resolve()
        found = settings or load_settings(root)
        super().__init__(WiredServices(root, found, clock or SystemClock()))


def _reveal(secret: Any) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _functions(declarations: Declarations) -> Mapping[str, tuple[Callable[..., Any], str]]:
    from featurestore.compile.fingerprints import code_fingerprint

    return {
        view.name: (view.function, code_fingerprint(view.function))
        for view in declarations.on_demand
    }
