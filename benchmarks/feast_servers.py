"""Feast's two servers as bench_serving loads them: over HTTP and over gRPC, each asked in two ways.

They run in Feast's own environment, over a Valkey of their own, and must answer what ours answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import peer
from benchmarks.load import Target
from benchmarks.processes import HOST, free_port
from benchmarks.servers import ENTITIES, Contestant, Servers, call, post
from featurestore.testing.valkey import ValkeyServer

_PATH = "/get-online-features"
_Ways = list[tuple[str, list[str] | None, tuple[int, ...]]]


class FeastServers:
    """Starts Feast's servers over the views of the others.

    Args:
        servers: Keeps files, ends processes, compares answers.
        python: The interpreter of Feast's environment.
        valkey: Its online store.
    """

    def __init__(self, servers: Servers, python: str, valkey: ValkeyServer) -> None:
        self._servers = servers
        self._python = python
        self._valkey = valkey
        self._repo = str(servers.folder / "feast")
        self._program = [str(Path(python).parent / "feast"), "-c", self._repo]

    def start(self) -> list[Contestant]:
        """Materialize, start both, and return a contestant for each way to ask them."""
        views, redis = self._servers.views, f"{HOST}:{self._valkey.port}"
        declared = [view.for_peer() for view in views]
        peer(self._python, "apply", repo=self._repo, views=declared, redis=redis)
        peer(self._python, "materialize", repo=self._repo)
        references = [f"{view.name}:{name}" for view in views for name in view.features]
        ways: _Ways = [
            ("by references", references, ENTITIES),
            ("by service", None, ENTITIES[:1]),
        ]
        return [*self._http(ways), *self._grpc(ways)]

    def _http(self, ways: _Ways) -> list[Contestant]:
        port, found = free_port(), []
        # Its workers end after 1,000 requests by default; restarts are not what is measured here.
        options = ["--port", str(port), "--no-access-log", "--max-requests", "0"]
        pid = self._servers.start([*self._program, "serve", *options], "feast-http", port)
        for way, references, counts in ways:
            targets = {}
            for entities in counts:
                asked = {"features": references} if references else {"feature_service": "service"}
                message = {**asked, "entities": {"entity_id": list(range(entities))}}
                body = self._servers.write(f"http-{way}-{entities}", json.dumps(message).encode())
                answer = post(port, _PATH, body.read_bytes())
                self._servers.check(_values(answer), entities)
                targets[entities] = Target("http", port, _PATH, str(body), len(answer))
            found.append(Contestant(f"Feast HTTP, {way}", pid, self._valkey, targets))
        return found

    def _grpc(self, ways: _Ways) -> list[Contestant]:
        port, found = free_port(), []
        options = ["listen", "--address", f"{HOST}:{port}"]
        pid = self._servers.start([*self._program, *options], "feast-grpc", port)
        for way, references, counts in ways:
            targets = {}
            for entities in counts:
                body = Path(self._repo) / f"grpc-{way}-{entities}"
                asked = {"path": str(body), "features": references, "ids": list(range(entities))}
                method = peer(self._python, "grpc_body", **asked)["method"]
                answer = call(port, method, body.read_bytes())
                saved = self._servers.write("feast-answer", answer)
                values = peer(self._python, "grpc_values", path=str(saved))
                self._servers.check(values, entities)
                targets[entities] = Target("grpc", port, method, str(body), len(answer))
            found.append(Contestant(f"Feast gRPC, {way}", pid, self._valkey, targets))
        return found


def _values(answer: bytes) -> dict[str, list[Any]]:
    found = json.loads(answer)
    names = found["metadata"]["feature_names"]
    return {name: c["values"] for name, c in zip(names, found["results"], strict=True)}
