"""The servers that bench_grpc loads: ours, an echo of as many bytes, and Feast's two.

Each is a process of its own on a free loopback port, ended by its process id. Before a server is
given out it has answered, and its values were the same as those of the others.
`python -m benchmarks.grpc_servers PORT FILE...` is the echo.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_materialize import materialize
from benchmarks.common import ROOT, View, clean_environment, fresh, make_repository, peer
from benchmarks.load import Target
from featurestore.model.settings import ServingSettings
from featurestore.testing.valkey import ValkeyServer, wait_until

ENTITIES = (1, 100)
THREADS = ServingSettings().threads
_METHOD = "/featurestore.serving.v1.FeatureServing/GetOnlineFeatures"
_HOST = "127.0.0.1"
_START_SECONDS = 90
_STOP_SECONDS = 20


@dataclass(frozen=True)
class Contestant:
    """A server that runs.

    Attributes:
        name: Its name in tables.
        pid: Its process.
        store: The Valkey that it reads, if any.
        targets: A request by its number of entities.
        slowness: Divides the number of requests that are sent.
    """

    name: str
    pid: int
    store: ValkeyServer | None
    targets: dict[int, Target]
    slowness: dict[int, int]


class Servers:
    """Starts servers over the same views.

    Args:
        folder: For their files.
        views: What they serve.
        stack: Ends them.
    """

    def __init__(self, folder: Path, views: Sequence[View], stack: ExitStack) -> None:
        self._folder = folder
        self._views = views
        self._stack = stack
        self._answers: dict[int, Path] = {}
        self._values: dict[str, list[Any]] = {}

    def ours(self, name: str, url: str, store: ValkeyServer | None) -> Contestant:
        """Serve from an online store, as `featurestore serve` does."""
        repository = make_repository(self._folder / name.replace(", ", "-"), self._views, url)
        fresh(materialize, folder=str(repository), kind="all")
        port, targets = _free_port(), {}
        program = [str(Path(sys.executable).parent / "featurestore"), "--repo", str(repository)]
        pid = self._start([*program, "serve", "--address", f"{_HOST}:{port}"], port, name)
        for entities in ENTITIES:
            answer = _call(port, _METHOD, _request(entities))
            self._check(_our_values(answer), entities)
            self._answers[entities] = self._write(f"answer-{entities}", answer)
            body = self._write(f"ours-{entities}", _request(entities))
            targets[entities] = Target("grpc", port, _METHOD, str(body), len(answer))
        return Contestant(name, pid, store, targets, {1: 1, 100: 3})

    def echo(self) -> Contestant:
        """Serve our answers without making them, by the same settings of grpcio."""
        port, targets = _free_port(), {}
        command = [sys.executable, "-m", "benchmarks.grpc_servers", str(port)]
        pid = self._start([*command, *map(str, self._answers.values())], port, "echo")
        for entities, path in self._answers.items():
            body, size = self._folder / f"ours-{entities}", path.stat().st_size
            method = f"/floor.Echo/Answer{entities}"
            targets[entities] = Target("grpc", port, method, str(body), size)
        return Contestant("echo", pid, None, targets, {1: 1, 100: 1})

    def feast(self, python: str, valkey: ValkeyServer) -> list[Contestant]:
        """Serve the same by Feast, over HTTP and over gRPC, each asked in two ways."""
        repo = str(self._folder / "feast")
        declared = [view.for_peer() for view in self._views]
        peer(python, "apply", repo=repo, views=declared, redis=f"{_HOST}:{valkey.port}")
        peer(python, "materialize", repo=repo)
        program = [str(Path(python).parent / "feast"), "-c", repo]
        references = [f"{view.name}:{name}" for view in self._views for name in view.features]
        ways: list[tuple[str, list[str] | None, tuple[int, ...]]] = [
            ("by references", references, ENTITIES),
            ("by service", None, ENTITIES[:1]),
        ]
        return [
            *self._feast_http(program, valkey, ways),
            *self._feast_grpc(python, program, repo, valkey, ways),
        ]

    def _feast_http(self, program: list[str], valkey: ValkeyServer, ways: Any) -> list[Contestant]:
        port, found = _free_port(), []
        # Its workers end after 1,000 requests by default; restarts are not what is measured here.
        options = ["--port", str(port), "--no-access-log", "--max-requests", "0"]
        pid = self._start([*program, "serve", *options], port, "feast-http")
        for way, references, counts in ways:
            targets = {}
            for entities in counts:
                asked = {"features": references} if references else {"feature_service": "service"}
                message = {**asked, "entities": {"entity_id": list(range(entities))}}
                body = self._write(f"http-{way}-{entities}", json.dumps(message).encode())
                answer = _post(port, body.read_bytes())
                self._check(_http_values(answer), entities)
                path = "/get-online-features"
                targets[entities] = Target("http", port, path, str(body), len(answer))
            found.append(Contestant(f"Feast HTTP, {way}", pid, valkey, targets, {1: 10, 100: 100}))
        return found

    def _feast_grpc(
        self, python: str, program: list[str], repo: str, valkey: ValkeyServer, ways: Any
    ) -> list[Contestant]:
        port, found = _free_port(), []
        pid = self._start([*program, "listen", "--address", f"{_HOST}:{port}"], port, "feast-grpc")
        for way, references, counts in ways:
            targets = {}
            for entities in counts:
                body = Path(repo) / f"grpc-{way}-{entities}"
                asked = {"path": str(body), "features": references, "ids": list(range(entities))}
                method = peer(python, "grpc_body", **asked)["method"]
                answer = _call(port, method, body.read_bytes())
                saved = self._write("feast-answer", answer)
                self._check(peer(python, "grpc_values", path=str(saved)), entities)
                targets[entities] = Target("grpc", port, method, str(body), len(answer))
            found.append(Contestant(f"Feast gRPC, {way}", pid, valkey, targets, {1: 5, 100: 50}))
        return found

    def _start(self, command: list[str], port: int, name: str) -> int:
        log = self._folder / f"{name}.log"
        return self._stack.enter_context(_running(command, lambda: _listens(port), log))

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path

    def _check(self, values: dict[str, list[Any]], entities: int) -> None:
        """Stop unless an answer holds the values that the first one held, as float32."""
        import numpy as np

        for name in (name for view in self._views for name in view.features):
            mine = np.array(values[name], dtype=np.float32).tolist()
            wanted = self._values.setdefault(f"{name} {entities}", mine)
            if len(mine) != entities or mine != wanted:
                raise RuntimeError(f"answers differ in {name}: {mine[:3]} {wanted[:3]}")


@contextmanager
def _running(command: list[str], ready: Callable[[], bool], log: Path) -> Iterator[int]:
    """Run a server until the block ends; give its process id once it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or ready(),
                seconds=_START_SECONDS,
                what=command[0],
            )
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended:\n{log.read_text()[-3000:]}")
            yield process.pid
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, and the workers that it may have left in its own session."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((_HOST, port)) == 0


def _request(entities: int) -> bytes:
    from featurestore.serving.v1 import serving_pb2 as pb

    column = pb.Column(name="entity_id", int64s=pb.Int64Values(values=range(entities)))
    message = pb.GetOnlineFeaturesRequest(service="service", entity_rows=[column])
    data: bytes = message.SerializeToString()
    return data


def _our_values(answer: bytes) -> dict[str, list[Any]]:
    from featurestore.serving.v1 import serving_pb2 as pb

    message = pb.GetOnlineFeaturesResponse.FromString(answer)
    return {column.name: list(column.floats.values) for column in message.features}


def _http_values(answer: bytes) -> dict[str, list[Any]]:
    found = json.loads(answer)
    names = found["metadata"]["feature_names"]
    return {name: c["values"] for name, c in zip(names, found["results"], strict=True)}


def _call(port: int, method: str, body: bytes) -> bytes:
    import grpc

    with grpc.insecure_channel(f"{_HOST}:{port}") as channel:
        answer: bytes = channel.unary_unary(method)(body, timeout=60, wait_for_ready=True)
        return answer


def _post(port: int, body: bytes) -> bytes:
    url, head = f"http://{_HOST}:{port}/get-online-features", {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, head)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
        return data


def _be_echo(port: int, answers: list[Path]) -> None:
    """Be the floor: /floor.Echo/Answer1 and /floor.Echo/Answer100 give saved bytes."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def handler(data: bytes) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: data)

    size = 16 * 1024 * 1024
    options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    server = grpc.server(ThreadPoolExecutor(THREADS), options=options)
    methods = {f"Answer{p.name.rpartition('-')[2]}": handler(p.read_bytes()) for p in answers}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Echo", methods),))
    server.add_insecure_port(f"{_HOST}:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    _be_echo(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
