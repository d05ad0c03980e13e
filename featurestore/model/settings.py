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
        url: lmdb:PATH, redis://, redis+cluster://, redis+sentinel:// (docs/redis.md; rediss for
            TLS) or memory:.
        username: For Redis with ACL users; only from FEATURESTORE_ONLINE_USERNAME or the file.
        password: Only from FEATURESTORE_ONLINE_PASSWORD.
        sentinel_username: Of an ACL user of the sentinels.
        sentinel_password: Of the sentinels; only from FEATURESTORE_ONLINE_SENTINEL_PASSWORD.
        timeout_seconds: The longest wait for the store.
        gc_grace_hours: How long past its ttl Redis keeps a value, so that it can be told expired.
        batch_rows: Rows written in one round trip.
    """

    url: str = "lmdb:data/online"
    username: str | None = None
    password: SecretStr | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
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
        http_address: host:port to listen on for HTTP with JSON (docs/clients.md), beside gRPC;
            without it there is none.
        connect_address: host:port to listen on for the Connect protocol (docs/clients.md), which
            takes the least of a core for single entities; without it there is none.
        max_message_bytes: The largest request or response.
        max_concurrent_requests: Requests in flight, waiting ones too, that gRPC, HTTP/JSON and
            Connect each take on; further ones are refused at once.
        max_entity_rows: Entity rows of one request; 0 leaves it to the size of a message.
        receive_seconds: How long a request may take to arrive once its turn has come.
        breaker_failures: Failures of the online store in a row after which it is left alone.
        breaker_seconds: How long it is left alone before the first new try; each further one
            doubles.
        tls_certificate: PEM file of the server's certificate and those that lead to its root.
            With it the server speaks TLS only. Read again when it changes.
        tls_key: PEM file of its key.
        tls_client_ca: PEM file of the roots of clients' certificates; with it every client must
            show one (mTLS).
        keys_file: File of the API keys that `featurestore keys` writes. With it, or with
            `jwt_keys`, a call must say who makes it.
        jwt_keys: File or https URL of the key set (JWKS) by which tokens (JWT) are checked.
        jwt_issuer: Who must have issued a token (`iss`).
        jwt_audience: Whom a token must be for (`aud`).
        jwt_scope_claim: The claim that holds a token's scopes: text with spaces, or a list.
        jwt_leeway_seconds: How far the issuer's clock may be off.
        audit_log: File of the audit, one JSON line a call, or `stderr`; without it there is none.
        metrics_address: host:port where Prometheus finds the metrics; without it there are none.
        traces: Where traces go by OTLP over gRPC: http://host:port or https://host:port; `env`
            leaves it to the variables OTEL_*; without it there are none.
        slow_seconds: A call that takes longer is written to the log; 0 writes none.
        served_log_sample: The share of answers that is logged with keys and values, from 0 for
            none to 1 for all.
        served_log_rows: Entity rows that may wait to be logged; further ones are not logged.
        served_log_seconds: How often they are written.
        served_log_retention_days: How long they are kept; 0 for ever.
    """

    address: str = "127.0.0.1:6566"
    threads: int = 8
    refresh_seconds: float = 1.0
    drain_seconds: float = 30.0
    http_address: str | None = None
    connect_address: str | None = None
    max_message_bytes: int = 16 * 1024 * 1024
    max_concurrent_requests: int = 1_000
    max_entity_rows: int = 0
    receive_seconds: float = 5.0
    breaker_failures: int = 5
    breaker_seconds: float = 1.0
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    keys_file: str | None = None
    jwt_keys: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_scope_claim: str = "scope"
    jwt_leeway_seconds: float = 30.0
    audit_log: str | None = None
    metrics_address: str | None = None
    traces: str | None = None
    slow_seconds: float = 0.0
    served_log_sample: float = 0.0
    served_log_rows: int = 100_000
    served_log_seconds: float = 10.0
    served_log_retention_days: float = 30.0


class AccessSettings(Section):
    """Who may use the repository from Python and the command line (docs/security.md).

    Attributes:
        keys_file: File of the API keys that `featurestore keys` writes; the servers' file will do.
            With it, whoever opens the repository must show a key (FEATURESTORE_API_KEY).
        audit_log: File of the audit, one JSON line a call, or `stderr`; without it there is none.
    """

    keys_file: str | None = None
    audit_log: str | None = None


class StreamsSettings(Section):
    """Live events: `featurestore push` and `featurestore ingest`.

    Attributes:
        username: For Redis with ACL users, or Kafka with SASL.
        password: Only from FEATURESTORE_STREAMS_PASSWORD.
        timeout_seconds: The longest wait for a stream.
        group: Begins the name of the consumer group, which goes on with project and source.
        batch_rows: About how many events are put online in one go.
        poll_seconds: How long to wait for events before looking for anything else to do.
        flush_seconds: How often events are written to the log of their stream.
        flush_rows: After how many events they are written before that time.
        log_seconds: How often the views' tables follow that log.
        retention_days: How long the log keeps events; 0 for ever. A changed view is built anew
            from the history and the log.
        retry_seconds: The longest pause before what is gone is tried again.
    """

    username: str | None = None
    password: SecretStr | None = None
    timeout_seconds: float = 5.0
    group: str = "featurestore"
    batch_rows: int = 4_096
    poll_seconds: float = 0.2
    flush_seconds: float = 2.0
    flush_rows: int = 100_000
    log_seconds: float = 10.0
    retention_days: float = 0.0
    retry_seconds: float = 5.0


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
    streams: StreamsSettings = StreamsSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    access: AccessSettings = AccessSettings()
