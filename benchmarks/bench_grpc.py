"""Online reads over gRPC: requests a second, latency, and whose processor time it takes.

Floor: an echo of as many bytes by a grpcio server of the same settings. Peers: Feast's HTTP server
(`feast serve`) and its gRPC server (`feast listen`). All servers stand ready side by side and are
loaded in turns, so that whatever else the machine does meets all of them. Processor time is read
from /proc and told apart: the server's, the store's, the load's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.common import Sizes, Table, cpu_seconds, make_views, micros, number, workplace
from benchmarks.grpc_servers import THREADS, Contestant, Servers
from benchmarks.load import Load, drive, tool
from featurestore.testing.valkey import ValkeyServer

# (entities, in flight)
CASES = ((1, 1), (1, 16), (100, 1), (100, 16))
ROUNDS = 3
_MINE = "ours, Valkey"
_LEAST_REQUESTS = 32
_BARS = {
    1: {"Feast HTTP": 25.0, "Feast gRPC": 4.5, "echo": 0.55},
    100: {"Feast HTTP": 100.0, "Feast gRPC": 30.0},
}
_BAR_CPU = 1e-3


@dataclass(frozen=True)
class Round:
    """A load, and the processor seconds a request of the server and of the store."""

    load: Load
    server: float
    store: float | None


def run(sizes: Sizes) -> list[Table]:
    """Load the server over Valkey and LMDB, the floor, and the peers."""
    rows = sizes.pick(5_000, 20_000)
    best: dict[tuple[str, int, int], Round] = {}
    with workplace() as folder, ExitStack() as stack:
        views = make_views(folder, rows, [20, 20, 20])
        servers = Servers(folder, views, stack)
        ours, theirs = (stack.enter_context(ValkeyServer()) for _ in range(2))
        running = [
            servers.ours(_MINE, ours.url, ours),
            servers.ours("ours, LMDB", "lmdb:data/online", None),
            servers.echo(),
        ]
        if sizes.feast:
            running += servers.feast(sizes.feast, theirs)
        for case in CASES:
            for _ in range(ROUNDS):
                for server in running:
                    _take_turn(best, server, *case, sizes.pick(3_000, 9_000))
    return [_figures(best, rows), _ratios(best)]


def _take_turn(
    best: dict[tuple[str, int, int], Round],
    server: Contestant,
    entities: int,
    in_flight: int,
    requests: int,
) -> None:
    """Load a server once, after a warm-up, and keep the round if it was its fastest."""
    if entities not in server.targets:
        return
    target = server.targets[entities]
    count = max(_LEAST_REQUESTS, requests // server.slowness[entities])
    drive(target, max(in_flight, count // 10), in_flight)
    before = cpu_seconds(server.pid), cpu_seconds(server.store.pid) if server.store else 0.0
    load = drive(target, count, in_flight)
    cpu = (cpu_seconds(server.pid) - before[0]) / count
    held = (cpu_seconds(server.store.pid) - before[1]) / count if server.store else None
    key = (server.name, entities, in_flight)
    if key not in best or load.rate > best[key].load.rate:
        best[key] = Round(load, cpu, held)


def _figures(best: dict[tuple[str, int, int], Round], rows: int) -> Table:
    table = Table(
        f"gRPC: 60 float32 features in 3 views, {rows:,} entities",
        [
            "server",
            "entities",
            "in flight",
            "requests/s",
            "p50 us",
            "p99 us",
            "server CPU us/request",
            "Valkey CPU us/request",
            "load CPU us/request",
        ],
    )
    for (name, entities, in_flight), found in best.items():
        load, held = found.load, found.store
        table.add(
            name,
            entities,
            in_flight,
            number(load.rate),
            micros(load.timing.p50),
            micros(load.timing.p99),
            micros(found.server),
            "" if held is None else micros(held),
            micros(load.load_cpu / load.requests),
        )
    table.notes += [
        f"Load: {tool()}; one request over and over.",
        "16 in flight are 4 connections of 4 over gRPC, 16 connections over HTTP.",
        f"The fastest of {ROUNDS} rounds, in turns with all the others.",
        f"Server: grpcio with {THREADS} threads, the default; the echo returns as many bytes.",
        "Feast is asked by references, its fast way, and by a feature service, as ours is.",
        "Before: the values of ours and of the peers were compared, and every answer's size.",
    ]
    return table


def _ratios(best: dict[tuple[str, int, int], Round]) -> Table:
    """Compare ours over Valkey with the floor and the peers, case by case."""
    table = Table(
        "gRPC: ours over Valkey beside the others", ["case", "beside", "ratio", "bar", ""]
    )
    for entities, in_flight in CASES:
        mine = best[_MINE, entities, in_flight]
        case = f"{entities} x 60, {in_flight} in flight"
        for name, *where in best:
            if name.startswith("ours") or where != [entities, in_flight]:
                continue
            ratio = mine.load.rate / best[name, entities, in_flight].load.rate
            bar = _BARS[entities].get(name.split(",")[0])
            verdict = "" if bar is None else "reached" if ratio >= bar else "NOT reached"
            table.add(case, name, f"{ratio:.3g} x", f">= {bar}" if bar else "", verdict)
        floor, local = best["echo", entities, in_flight], best["ours, LMDB", entities, in_flight]
        table.add(
            case, "echo, ours over LMDB", f"{local.load.rate / floor.load.rate:.3g} x", "", ""
        )
        if entities > 1:
            verdict = "reached" if mine.server <= _BAR_CPU else "NOT reached"
            bar_cpu = f"<= {micros(_BAR_CPU)} us"
            table.add(case, "server CPU a request", f"{micros(mine.server)} us", bar_cpu, verdict)
    return table
