"""Feature servers as processes: started, watched by their logs, stopped by signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featurestore.testing.valkey import wait_until

ROOT = Path(__file__).parents[2]
SERVICE = "featurestore.serving.v1.FeatureServing"


class ServerProcess:
    """A server of `tests.integration.grpc_server`.

    Args:
        config: See there.
    """

    def __init__(self, **config: Any) -> None:
        self.logs: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "tests.integration.grpc_server", json.dumps(config)]
        self.process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self.log("serving")["address"]

    def log(self, event: str) -> dict[str, Any]:
        """Return the log line of an event, once there is one."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.logs if line.get("event") == event]

        wait_until(
            lambda: bool(found()) or not self._reader.is_alive(), what=f"the log line '{event}'"
        )
        assert found(), f"the server ended without '{event}': {self.logs}"
        return found()[0]

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """Return the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def stop(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            try:
                self.logs.append(json.loads(line))
            except ValueError:
                self.logs.append({"event": line})


def watched(channel: grpc.Channel, service: str = SERVICE) -> Iterator[str]:
    """Yield what a server's health service says, until it ends the stream."""
    request = health_pb2.HealthCheckRequest(service=service)
    for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=20):
        yield str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def health(channel: grpc.Channel, service: str = SERVICE) -> str:
    """Return what a server's health service says, UNREACHABLE where it does not answer."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return "UNREACHABLE"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
