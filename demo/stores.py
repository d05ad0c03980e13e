"""The stores of the demonstration and the server beside them: made, found again, stopped.

Each store is the repository's own definitions over a state folder of its own, so that the demo
touches nothing else. The server is another process; it is stopped by its process id, whatever
happens to the demo.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from featurestore import FeatureStore, OnlineClient
from featurestore.clock import Clock
from featurestore.errors import UnavailableError
from featurestore.wiring import load_settings

REPOSITORY = Path(__file__).resolve().parents[1]
FLIGHTS = "'definitions/data/flights.parquet'"
SERVICE = "departure_delay"
# The views that the service joins, by the names under which it does.
VIEWS = {
    "origin_weather": "origin_weather",
    "origin_airport": "airport_facts",
    "destination_airport": "airport_facts",
    "aircraft_facts": "aircraft_facts",
    "aircraft_last_departure": "aircraft_last_departure",
    "route_last_flight": "route_last_flight",
    "day_plan": "day_plan",
}
BEGINNING = datetime(2013, 1, 1, tzinfo=UTC)
END = datetime(2014, 1, 2, tzinfo=UTC)
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


class ServerFailedError(RuntimeError):
    """The server did not come up; holds the end of its log."""


def urls(state: Path, *, inherit: bool = False) -> dict[str, str]:
    """Return the settings of a state folder as environment variables, our own ones too if asked."""
    return {
        **(os.environ if inherit else {}),
        "FEATURESTORE_REGISTRY_URL": f"sqlite:///{state / 'registry.db'}",
        "FEATURESTORE_OFFLINE_PATH": str(state / "offline"),
        "FEATURESTORE_ONLINE_URL": f"lmdb:{state / 'online'}",
    }


def open_store(
    state: Path, repository: Path = REPOSITORY, clock: Clock | None = None
) -> FeatureStore:
    """Open a repository over a state folder."""
    state.mkdir(parents=True, exist_ok=True)
    settings = load_settings(repository)
    values = urls(state)
    settings = settings.model_copy(
        update={
            "registry": settings.registry.model_copy(
                update={"url": values["FEATURESTORE_REGISTRY_URL"]}
            ),
            "offline": settings.offline.model_copy(
                update={"path": values["FEATURESTORE_OFFLINE_PATH"]}
            ),
            "online": settings.online.model_copy(update={"url": values["FEATURESTORE_ONLINE_URL"]}),
        }
    )
    return FeatureStore(repository, settings=settings, clock=clock)


@contextlib.contextmanager
def server(state: Path, repository: Path = REPOSITORY) -> Iterator[tuple[str, int]]:
    """Run `featurestore serve` over a state folder; give its address and process id.

    Raises:
        ServerFailedError: It ended, or did not answer in time.
    """
    address = f"127.0.0.1:{_free_port()}"
    command = [str(Path(sys.executable).with_name("featurestore")), "serve", "--address", address]
    log = state / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  (our own command)
            command,
            cwd=repository,
            env=urls(state, inherit=True),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _await(process, address, log)
            yield address, process.pid
        finally:
            _stop(process)


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the program like Ctrl-C, so that what was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    with OnlineClient(address, timeout=1.0) as client:
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(UnavailableError):
                client.serving_info()
                return
    text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise ServerFailedError(f"The server at {address} did not come up:\n{text}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
