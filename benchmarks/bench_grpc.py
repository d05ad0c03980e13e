"""Online reads over gRPC: the server in its own process, the load in another.

Floor: an echo of as many bytes by a grpcio server of the same settings. Peers: Feast's HTTP server
(`feast serve`) and its gRPC server (`feast listen`). Processor time is read from /proc and told
apart: the server's, the store's, the load's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_materialize import materialize
from benchmarks.common import (
    ROOT,
    Sizes,
    Table,
    View,
    clean_environment,
    cpu_seconds,
    fresh,
    make_repository,
    make_views,
    micros,
    number,
    peer,
    workplace,
)
from benchmarks.load import Load, Target, drive, tool
from featurestore.testing.valkey import ValkeyServer, wait_until

METHOD = "/featurestore.serving.v1.FeatureServing/GetOnlineFeatures"
THREADS = 8
ROUNDS = 3
_HOST = "127.0.0.1"
_START_SECONDS = 90
# (entities, in flight): how many requests, by the time that each server takes for one.
CASES = ((1, 1), (1, 16), (100, 1), (100, 16))
_REQUESTS = {"ours": (3_000, 1_000), "echo": (5_000, 3_000), "grpc": (800, 60), "http": (200, 32)}
_BARS = {
    1: {"Feast HTTP": 25.0, "Feast gRPC": 4.5, "echo": 0.55},
    100: {"Feast HTTP": 100.0, "Feast gRPC": 30.0},
}
_BAR_CPU = 1e-3


def run(sizes: Sizes) -> list[Table]:
    """Load the server over Valkey and LMDB, the floor, and the peers."""
    rows = sizes.pick(5_000, 20_000)
    table = Table(
        f"gRPC: 60 float32 features in 3 views, {rows:,} entities",
        ["server", "entities", "in flight", "requests/s", "p50 us", "p99 us"]
        + ["server CPU us/request", "Valkey CPU us/request", "load CPU us/request"],
    )
    rates: dict[tuple[str, int, int], float] = {}
    with workplace() as folder, ExitStack() as stack:
        views = make_views(folder, rows, [20, 20, 20])
        bench = _Bench(folder, views, sizes, table, rates)
        ours, theirs = (stack.enter_context(ValkeyServer()) for _ in range(2))
        bench.ours("ours, Valkey", ours.url, ours)
        bench.ours("ours, LMDB", "lmdb:data/online", None)
        bench.echo()
        if sizes.feast:
            bench.feast(sizes.feast, theirs)
    table.notes += [
        f"Load: {tool()}. One request over and over; in flight 16 is 4 connections of 4 (gRPC) or 16"
        " of 1 (HTTP).",
        f"The best of {ROUNDS} rounds of each case, for every server alike.",
        f"Server: grpcio with {THREADS} threads, the default; the echo returns as many bytes.",
        "Feast is asked by references: with a feature service it takes 3 ms more a request.",
        "Before: the values of ours and of both peers were compared, and every answer's size.",
    ]
    return [table, _ratios(table, rates)]


class _Bench:
    """Runs one server after the other on the same data and collects the rows."""

    def __init__(
        self,
        folder: Path,
        views: list[View],
        sizes: Sizes,
        table: Table,
        rates: dict[tuple[str, int, int], float],
    ) -> None:
        self._folder = folder
        self._views = views
        self._scale = sizes.pick(1, 4)
        self._table = table
        self._rates = rates
        self._answers: dict[int, Path] = {}
        self._values: dict[str, list[Any]] = {}

    def ours(self, name: str, url: str, store: ValkeyServer | None) -> None:
        """Serve from a store."""
        repository = make_repository(self._folder / name.replace(", ", "-"), self._views, url)
        fresh(materialize, folder=str(repository), kind="all")
        port, bodies = free_port(), {n: self._folder / f"ours-{n}" for n in (1, 100)}
        for entities, path in bodies.items():
            path.write_bytes(_request(entities))
        program = str(Path(sys.executable).parent / "featurestore")
        command = [program, "--repo", str(repository), "serve", "--address", f"{_HOST}:{port}"]
        with _server(command, port, self._folder / f"{name}.log") as pid:
            for entities, path in bodies.items():
                answer = _call(port, METHOD, path.read_bytes())
                self._answers[entities] = self._folder / f"answer-{entities}"
                self._answers[entities].write_bytes(answer)
                self._check(_ours_values(answer), entities)
            self._load(name, "ours", pid, store, port, METHOD, bodies)

    def echo(self) -> None:
        """Serve our answers without making them."""
        port = free_port()
        files = {n: self._folder / f"ours-{n}" for n in (1, 100)}
        command = [sys.executable, "-m", "benchmarks.bench_grpc", str(port)]
        command += [str(path) for path in self._answers.values()]
        with _server(command, port, self._folder / "echo.log") as pid:
            self._load("echo", "echo", pid, None, port, "/floor.Echo/Answer{}", files)

    def feast(self, python: str, valkey: ValkeyServer) -> None:
        """Serve the same by Feast, over HTTP and over gRPC."""
        repo = str(self._folder / "feast")
        declared = [view.for_peer() for view in self._views]
        peer(python, "apply", repo=repo, views=declared, redis=f"{_HOST}:{valkey.port}")
        peer(python, "materialize", repo=repo)
        program = [str(Path(python).parent / "feast"), "-c", repo]
        # By references it answers several times faster than by a feature service.
        features = [f"{view.name}:{name}" for view in self._views for name in view.features]
        port = free_port()
        bodies = {n: self._folder / f"feast-http-{n}" for n in (1, 100)}
        for n, path in bodies.items():
            path.write_text(
                json.dumps({"features": features, "entities": {"entity_id": list(range(n))}})
            )
        command = [*program, "serve", "--port", str(port), "--no-access-log"]
        # Its workers end after 1,000 requests by default; a restart is not what is measured here.
        command += ["--max-requests", "0"]
        with _server(command, port, self._folder / "feast-http.log") as pid:
            for n, path in bodies.items():
                self._check(_http_values(_post(port, path.read_bytes())), n)
            path_ = "/get-online-features"
            self._load("Feast HTTP", "http", pid, valkey, port, path_, bodies, protocol="http")
        port = free_port()
        bodies = {n: self._folder / f"feast-grpc-{n}" for n in (1, 100)}
        for n, path in bodies.items():
            asked = {"path": str(path), "features": features, "ids": list(range(n))}
            method = peer(python, "grpc_body", **asked)["method"]
        command = [*program, "listen", "--address", f"{_HOST}:{port}"]
        with _server(command, port, self._folder / "feast-grpc.log") as pid:
            for n, path in bodies.items():
                saved = self._folder / "feast-answer"
                saved.write_bytes(_call(port, method, path.read_bytes()))
                self._check(peer(python, "grpc_values", path=str(saved)), n)
            self._load("Feast gRPC", "grpc", pid, valkey, port, method, bodies)

    def _load(
        self,
        name: str,
        kind: str,
        pid: int,
        store: ValkeyServer | None,
        port: int,
        method: str,
        bodies: dict[int, Path],
        *,
        protocol: str = "grpc",
    ) -> None:
        for entities, in_flight in CASES:
            path, body = method.format(entities), bodies[entities].read_bytes()
            size = len(_post(port, body) if protocol == "http" else _call(port, path, body))
            target = Target(protocol, port, path, str(bodies[entities]), size)
            requests = _REQUESTS[kind][entities != 1] * self._scale
            drive(target, max(in_flight, requests // 10), in_flight)
            rounds = [self._round(target, requests, in_flight, pid, store) for _ in range(ROUNDS)]
            load, server, held = max(rounds, key=lambda found: found[0].rate)
            self._rates[name, entities, in_flight] = load.rate
            if name == "ours, Valkey":
                self._rates["cpu", entities, in_flight] = server
            self._add(name, entities, in_flight, load, server, held)

    @staticmethod
    def _round(
        target: Target, requests: int, in_flight: int, pid: int, store: ValkeyServer | None
    ) -> tuple[Load, float, float | None]:
        """Return the load, and the seconds a request of the server and of the store."""
        before = cpu_seconds(pid), cpu_seconds(store.pid) if store else 0.0
        load = drive(target, requests, in_flight)
        server = (cpu_seconds(pid) - before[0]) / requests
        held = (cpu_seconds(store.pid) - before[1]) / requests if store else None
        return load, server, held

    def _add(
        self,
        name: str,
        entities: int,
        in_flight: int,
        load: Load,
        server: float,
        held: float | None,
    ) -> None:
        self._table.add(
            name,
            entities,
            in_flight,
            number(load.rate),
            micros(load.timing.p50),
            micros(load.timing.p99),
            micros(server),
            "" if held is None else micros(held),
            micros(load.load_cpu / load.requests),
        )

    def _check(self, values: dict[str, list[Any]], entities: int) -> None:
        """Stop unless an answer holds the values that the first one held, as float32."""
        import numpy as np

        for view in self._views:
            for name in view.features:
                mine = [float(v) for v in np.float32(values[name])]
                wanted = self._values.setdefault(f"{name} {entities}", mine)
                if len(mine) != entities or mine != wanted:
                    raise RuntimeError(f"answers differ in {name}: {mine[:3]} {wanted[:3]}")


def _ratios(table: Table, rates: dict[tuple[str, int, int], float]) -> Table:
    """Compare ours over Valkey with the floor and the peers, case by case."""
    found = Table("gRPC: ours over Valkey beside the others", ["case", "beside", "ratio", "bar", ""])
    for entities, in_flight in CASES:
        mine = rates["ours, Valkey", entities, in_flight]
        case = f"{entities} entities, {in_flight} in flight"
        for name in ("echo", "Feast HTTP", "Feast gRPC"):
            other = rates.get((name, entities, in_flight))
            if other:
                bar, ratio = _BARS[entities].get(name), mine / other
                verdict = "" if bar is None else "reached" if ratio >= bar else "NOT reached"
                found.add(case, name, f"{ratio:.3g} x", f">= {bar}" if bar else "", verdict)
        cpu = rates["cpu", entities, in_flight]
        if entities > 1:
            verdict = "reached" if cpu <= _BAR_CPU else "NOT reached"
            found.add(case, "server CPU", f"{micros(cpu)} us", f"<= {micros(_BAR_CPU)} us", verdict)
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _server(command: list[str], port: int, log: Path) -> Iterator[int]:
    """Run a server until the block ends; give its process id once it listens."""
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
                lambda: process.poll() is not None or _listens(port),
                seconds=_START_SECONDS,
                what=command[0],
            )
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended:\n{log.read_text()[-3000:]}")
            yield process.pid
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, and what is left of its own process group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


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


def _ours_values(answer: bytes) -> dict[str, list[Any]]:
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
    request = urllib.request.Request(  # noqa: S310
        f"http://{_HOST}:{port}/get-online-features",
        body,
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
        return data


def _echo_server(port: int, answers: list[Path]) -> None:
    """Be the floor: /floor.Echo/Answer1 and /floor.Echo/Answer100 give saved bytes."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def handler(data: bytes) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: data)

    size = 16 * 1024 * 1024
    options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    server = grpc.server(ThreadPoolExecutor(THREADS), options=options)
    methods = {f"Answer{p.name.rpartition('-')[2]}": handler(p.read_bytes()) for p in answers}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("floor.Echo", methods),)
    )
    server.add_insecure_port(f"{_HOST}:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    _echo_server(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
