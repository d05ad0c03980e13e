"""The servers that bench_serving loads: ours over each front, and an echo of as many bytes.

Each is a process of its own on a free loopback port, ended by its process id. Before a server is
given out it has answered, and its values were the same as those of the others.
`python -m benchmarks.servers PORT FILE...` is the echo.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_materialize import materialize
from benchmarks.common import View, fresh, make_repository
from benchmarks.load import KINDS, Target
from benchmarks.processes import HOST, free_port, listens, running
from featurestore.model.settings import ServingSettings
from featurestore.testing.valkey import ValkeyServer

ENTITIES = (1, 10, 100, 500)
THREADS = ServingSettings().threads
METHOD = "/featurestore.serving.v1.FeatureServing/GetOnlineFeatures"
_HTTP_PATH = "/v1/get-online-features"


@dataclass(frozen=True)
class Contestant:
    """A server that runs.

    Attributes:
        name: Its name in tables.
        pid: Its process; its workers are that one's children.
        store: The Valkey that it reads, if any.
        targets: A request by its number of entities.
        repository: What it serves, of our servers.
    """

    name: str
    pid: int
    store: ValkeyServer | None
    targets: dict[int, Target]
    repository: Path | None = None


class Servers:
    """Starts servers over the same views.

    Args:
        folder: For their files.
        views: What they serve.
        stack: Ends them.
    """

    def __init__(self, folder: Path, views: Sequence[View], stack: ExitStack) -> None:
        self.folder = folder
        self.views = views
        self._stack = stack
        self._answers: dict[int, Path] = {}
        self._values: dict[str, list[Any]] = {}

    def repository(self, name: str, url: str) -> Path:
        """Make a repository over an online store, and materialize all of it."""
        folder = make_repository(self.folder / name, self.views, url)
        fresh(materialize, folder=str(folder), kind="all")
        return folder

    def ours(
        self,
        name: str,
        repository: Path,
        store: ValkeyServer | None,
        *,
        workers: int | None = None,
        fronts: Sequence[str] = ("Connect", "HTTP"),
    ) -> list[Contestant]:
        """Serve as `featurestore serve` does; return a contestant for each of its fronts."""
        port, http, connect = free_port(), free_port(), free_port()
        program = [str(Path(sys.executable).parent / "featurestore"), "--repo", str(repository)]
        program += ["serve", "--address", f"{HOST}:{port}", "--http-address", f"{HOST}:{http}"]
        program += ["--connect-address", f"{HOST}:{connect}"]
        program += [] if workers is None else ["--workers", str(workers), "--pin"]
        pid = self.start(program, name, port, http, connect)
        found = [Contestant(name, pid, store, self._grpc_targets(port), repository)]
        makers = {"Connect": (self._connect_targets, connect), "HTTP": (self._http_targets, http)}
        for front in fronts:
            make, at = makers[front]
            found.append(Contestant(f"{name}, {front}", pid, store, make(at), repository))
        return found

    def echo(self) -> Contestant:
        """Serve our answers without making them, by the same settings of grpcio."""
        port, targets = free_port(), {}
        command = [sys.executable, "-m", "benchmarks.servers", str(port)]
        pid = self.start([*command, *map(str, self._answers.values())], "echo", port)
        for entities, path in self._answers.items():
            body, size = self.folder / f"ours-{entities}", path.stat().st_size
            method = f"/floor.Echo/Answer{entities}"
            targets[entities] = Target("grpc", port, method, str(body), size)
        return Contestant("echo", pid, None, targets)

    def start(self, command: list[str], name: str, *ports: int) -> int:
        """Start a server; return its process id once it takes connections on all its ports."""
        log = self.folder / f"{name.replace(' ', '-')}.log"
        server = running(command, log, lambda: all(map(listens, ports)))
        return self._stack.enter_context(server).pid

    def write(self, name: str, data: bytes) -> Path:
        """Keep bytes in a file."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def check(self, values: dict[str, list[Any]], entities: int) -> None:
        """Stop unless an answer holds the values that the first one held, as float32."""
        import numpy as np

        for name in (name for view in self.views for name in view.features):
            mine = np.array(values[name], dtype=np.float32).tolist()
            wanted = self._values.setdefault(f"{name} {entities}", mine)
            if len(mine) != entities or mine != wanted:
                raise RuntimeError(f"answers differ in {name}: {mine[:3]} {wanted[:3]}")

    def _grpc_targets(self, port: int) -> dict[int, Target]:
        targets = {}
        for entities in ENTITIES:
            answer = call(port, METHOD, _request(entities))
            self.check(_our_values(answer), entities)
            self._answers[entities] = self.write(f"answer-{entities}", answer)
            body = self.write(f"ours-{entities}", _request(entities))
            targets[entities] = Target("grpc", port, METHOD, str(body), len(answer))
        return targets

    def _connect_targets(self, port: int) -> dict[int, Target]:
        targets = {}
        for entities in ENTITIES:
            body = self.write(f"ours-{entities}", _request(entities))
            answer = post(port, METHOD, body.read_bytes(), KINDS["connect"])
            self.check(_our_values(answer), entities)
            targets[entities] = Target("connect", port, METHOD, str(body), len(answer))
        return targets

    def _http_targets(self, port: int) -> dict[int, Target]:
        targets = {}
        for entities in ENTITIES:
            message = {"features": "service", "entity_rows": {"entity_id": list(range(entities))}}
            body = self.write(f"ours-http-{entities}", json.dumps(message).encode())
            answer = post(port, _HTTP_PATH, body.read_bytes())
            self.check(json.loads(answer)["values"], entities)
            targets[entities] = Target("http", port, _HTTP_PATH, str(body), len(answer))
        return targets


def call(port: int, method: str, body: bytes) -> bytes:
    """Return the answer of a gRPC server."""
    import grpc

    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        answer: bytes = channel.unary_unary(method)(body, timeout=60, wait_for_ready=True)
        return answer


def post(port: int, path: str, body: bytes, kind: str = KINDS["http"]) -> bytes:
    """Return the answer of an HTTP server to a POST of JSON, or of something else."""
    url, head = f"http://{HOST}:{port}{path}", {"Content-Type": kind}
    request = urllib.request.Request(url, body, head)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
        return data


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


def _be_echo(port: int, answers: list[Path]) -> None:
    """Be the floor: /floor.Echo/Answer1 and the like give saved bytes."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def handler(data: bytes) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: data)

    size = 16 * 1024 * 1024
    options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    server = grpc.server(ThreadPoolExecutor(THREADS), options=options)
    methods = {f"Answer{p.name.rpartition('-')[2]}": handler(p.read_bytes()) for p in answers}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor.Echo", methods),))
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    _be_echo(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
