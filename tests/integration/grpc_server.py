"""A feature server in a process of its own: python -m tests.integration.grpc_server '<JSON>'.

Keys: `online` and `registry` (URLs), `settings` (of the server), `gate` (a file that the on-demand
view `gated` waits for), `calls` (a file that grows by a byte when `gated` or `counted` is called).
Logs are JSON lines on standard output.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import structlog

from featurestore.adapters.lmdb import LmdbOnlineStore
from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.clock import SystemClock
from featurestore.model.settings import ServingSettings
from featurestore.ports.online import OnlineStore
from featurestore.services.on_demand import OnDemandFunctions
from featurestore.services.online import OnlineReader
from featurestore.services.state import StateCache
from featurestore.serving.observers import observers_of
from featurestore.serving.server import FeatureServer
from tests.served import CODE, PROJECT, Functions

GATE_SECONDS = 20.0


def open_store(url: str) -> OnlineStore:
    """Return the online store that a URL names."""
    if url.startswith("lmdb:"):
        return LmdbOnlineStore(Path(url.removeprefix("lmdb:")))
    return RedisOnlineStore.from_url(url, timeout=2.0)


def functions(gate: Path | None = None, calls: Path | None = None) -> Functions:
    """Return the functions of the on-demand views that tests use."""

    def doubled(inputs: pl.DataFrame) -> pl.DataFrame:
        return inputs.select(
            doubled=pl.col("score") * 2, plus=pl.col("score") + pl.col("amount").cast(pl.Float64)
        )

    def echoed(inputs: pl.DataFrame) -> pl.DataFrame:
        return inputs.select(pl.col(name).alias(f"same_{name}") for name in inputs.columns)

    def failing(inputs: pl.DataFrame) -> pl.DataFrame:
        raise KeyError(inputs.columns[0])

    def count() -> None:
        if calls is not None:
            with calls.open("ab", buffering=0) as file:
                file.write(b".")

    def gated(inputs: pl.DataFrame) -> pl.DataFrame:
        count()
        pause, clock = threading.Event(), SystemClock()
        end = clock.monotonic() + GATE_SECONDS
        while gate is not None and not gate.exists() and clock.monotonic() < end:
            pause.wait(0.005)
        return inputs.select(passed=pl.col("score") + 1)

    def counted(inputs: pl.DataFrame) -> pl.DataFrame:
        count()
        return inputs.select(counted=pl.col("score"))

    known = (doubled, echoed, failing, gated, counted)
    found = {function.__name__: function for function in known}
    return {name: (function, CODE) for name, function in found.items()}


def main(config: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    settings = ServingSettings(**{"address": "127.0.0.1:0", **config.get("settings", {})})
    clock = SystemClock()
    registry = SqlRegistry(config["registry"])
    gate, calls = (Path(config[key]) if key in config else None for key in ("gate", "calls"))
    reader = OnlineReader(
        PROJECT,
        StateCache(registry, PROJECT, clock, settings.refresh_seconds),
        open_store(config["online"]),
        OnDemandFunctions(lambda: functions(gate, calls), clock),
        clock,
    )
    observers = observers_of(settings, Path(), reader, clock, structlog.get_logger())
    FeatureServer(reader, settings, observers=observers).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
