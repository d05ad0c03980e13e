"""The settings of a repository as values: what `featurestore.toml` and the environment may say.

Reading files and variables is `wiring`'s work. Secrets never stand in the file.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that a size such as "512MB" or "4GiB" means.

    >>> parse_size("1KiB"), parse_size("2MB")
    (1024, 2000000)
    """
    match = _SIZE.match(text)
    if not match:
        raise ValueError(f"'{text}' is no size; write it like 512MB or 4GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def _size(text: str) -> str:
    parse_size(text)
    return text


Size = Annotated[str, AfterValidator(_size)]


class Section(BaseModel):
    """A table of the settings file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RegistrySettings(Section):
    """Where definitions, runs and the ledger live.

    Attributes:
        url: `sqlite:///path` (relative to the repository) or `postgresql://user@host/database`.
        password: Only from FEATURESTORE_REGISTRY_PASSWORD.
        timeout_seconds: How long to wait for a lock or a connection.
    """

    url: str = "sqlite:///data/registry.db"
    password: SecretStr | None = None
    timeout_seconds: float = 10.0


class OfflineSettings(Section):
    """Where the tables live and what a job may use.

    Attributes:
        path: The folder of the Delta tables.
        memory_limit: The memory of all jobs of one process together, such as "4GiB".
        threads: The threads of all of them together; 0 takes every core.
        workers: How many views are materialized side by side.
        temp_path: Where work larger than memory spills; by default a folder beside the tables.
        target_file_size: About the size of a table's files.
    """

    path: str = "data/offline"
    memory_limit: Size = "4GiB"
    threads: int = 0
    workers: int = 2
    temp_path: str | None = None
    target_file_size: Size = "128MiB"


class OnlineSettings(Section):
    """Where the newest values live.

    Attributes:
        url: lmdb:PATH, redis://, rediss://, redis+cluster:// or memory:.
        username: For Redis with ACL users; only from FEATURESTORE_ONLINE_USERNAME or the file.
        password: Only from FEATURESTORE_ONLINE_PASSWORD.
        timeout_seconds: The longest wait for the store.
        gc_grace_hours: How long past its ttl Redis keeps a value, so that it can be told expired.
        batch_rows: Rows written in one round trip.
    """

    url: str = "lmdb:data/online"
    username: str | None = None
    password: SecretStr | None = None
    timeout_seconds: float = 2.0
    gc_grace_hours: float = 168.0
    batch_rows: int = 5_000


class ServingSettings(Section):
    """The gRPC server.

    Attributes:
        address: host:port to listen on.
        threads: Requests handled at once.
        refresh_seconds: How often the registry is asked for new definitions and tables.
        drain_seconds: How long requests in flight may take after SIGTERM.
        max_message_bytes: The largest request or response.
    """

    address: str = "127.0.0.1:6566"
    threads: int = 8
    refresh_seconds: float = 1.0
    drain_seconds: float = 30.0
    max_message_bytes: int = 16 * 1024 * 1024


class SchedulingSettings(Section):
    """The scheduler.

    Attributes:
        max_retries: How often a failed run is tried again.
        retry_seconds: The first pause; each further one doubles.
        misfire_grace_seconds: How late a missed run still starts.
    """

    max_retries: int = 3
    retry_seconds: float = 10.0
    misfire_grace_seconds: int = 3600


class Settings(Section):
    """All of `featurestore.toml`.

    Attributes:
        project: The project's name; tables, online keys and definitions are kept apart by it.
        definitions: The folder of the Python modules that declare.
    """

    project: str
    definitions: str = "definitions"
    registry: RegistrySettings = RegistrySettings()
    offline: OfflineSettings = OfflineSettings()
    online: OnlineSettings = OnlineSettings()
    serving: ServingSettings = ServingSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
