"""Online reads over the network: requests a second, latency, and whose processor time it takes.

Floor: an echo of as many bytes by a grpcio server of the same settings. Peers: Feast's HTTP server
(`feast serve`) and its gRPC server (`feast listen`). All servers stand ready side by side and are
loaded in turns, so that whatever else the machine does meets all of them; then ours once more while
another process materializes into the store that they read. Processor time is read from /proc and
told apart: the server's with its workers, the store's, the load's. In the end each server of one
process is kept to one core, and the store and the load to the others: what a core serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.common import Sizes, Table, cpu_seconds, make_views, micros, number, workplace
from benchmarks.feast_servers import FeastServers
from benchmarks.load import CONNECTIONS, Load, drive, tool
from benchmarks.processes import one_processor_each
from benchmarks.profiling import profile
from benchmarks.servers import ENTITIES, THREADS, Contestant, Servers
from benchmarks.writing import Written, writing
from featurestore.testing.valkey import ValkeyServer

IN_FLIGHT = (1, 16, 64)
CASES = tuple((entities, in_flight) for entities in ENTITIES for in_flight in IN_FLIGHT)
CORE_CASES = tuple((entities, in_flight) for entities in (1, 100) for in_flight in (1, 16, 64))
ROWS = 10_000
VALKEY, LMDB, WORKERS, ECHO = "ours, Valkey", "ours, LMDB", "ours, Valkey, 2 pinned workers", "echo"
HTTP, CONNECT = f"{VALKEY}, HTTP", (f"{VALKEY}, Connect", f"{LMDB}, Connect")
_WORKERS = 2
_ON_ONE = ", each server on one core"
# A case of a server that would take longer is left out; Feast's largest requests do.
_LONGEST_SECONDS = 10.0
# A round that takes longer is not taken twice.
_LONG_SECONDS = 2.0
_LEAST_REQUESTS = 16
_BARS = {
    1: {"Feast HTTP": 25.0, "Feast gRPC": 4.5, ECHO: 0.55},
    100: {"Feast HTTP": 100.0, "Feast gRPC": 30.0},
}
# Requests a second of the server's processor time, with most of them in flight.
_BAR_CORE = {1: 10_000.0}
_BAR_CPU = {100: 1e-3}
_BAR_P50 = {1: 0.5e-3, 100: 1e-3}
_COLUMNS = (
    "server", "entities", "in flight", "requests/s", "p50 us", "p99 us",
    "server CPU us/request", "Valkey CPU us/request", "load CPU us/request",
)  # fmt: skip

_Key = tuple[str, int, int]
_Cases = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Round:
    """A load, and the processor seconds a request of the server and of the store."""

    load: Load
    server: float
    store: float | None


class _Turns:
    """Loads servers in turns and keeps the fastest round of each case.

    Args:
        seconds: About how long a round lasts.
    """

    def __init__(self, seconds: float) -> None:
        self.best: dict[_Key, Round] = {}
        self._seconds = seconds
        self._rates: dict[_Key, float] = {}
        self.failed: list[_Key] = []

    def take_all(self, servers: Sequence[Contestant], cases: _Cases, rounds: int = 1) -> None:
        """Load servers in turns, case by case."""
        for case in cases:
            for _ in range(rounds):
                for server in servers:
                    self.take(server, *case)

    def take(self, server: Contestant, entities: int, in_flight: int) -> None:
        """Load a server once, after a warm-up, and keep the round if it was its fastest.

        A peer that fails is left out; that one of ours fails is an error.
        """
        key = (server.name, entities, in_flight)
        if entities not in server.targets or key in self.failed or self._is_slow(key):
            return
        try:
            found = self._round(server, key)
        except RuntimeError:
            if server.repository is not None:
                raise
            self.failed.append(key)
            return
        self._rates[key] = found.load.rate
        if key not in self.best or found.load.rate > self.best[key].load.rate:
            self.best[key] = found

    def _is_slow(self, key: _Key) -> bool:
        """Whether a case would take too long, or a second round of it long for what it tells."""
        name, entities, in_flight = key
        alone = self._rates.get((name, entities, 1))
        if alone is not None and in_flight / alone > _LONGEST_SECONDS:
            return True
        return key in self.best and self.best[key].load.seconds > _LONG_SECONDS

    def _round(self, server: Contestant, key: _Key) -> Round:
        _, entities, in_flight = key
        target = server.targets[entities]
        if key not in self._rates:
            self._rates[key] = drive(target, max(in_flight, 8), in_flight).rate
        count = max(_LEAST_REQUESTS, in_flight, int(self._rates[key] * self._seconds))
        before = cpu_seconds(server.pid), cpu_seconds(server.store.pid) if server.store else 0.0
        load = drive(target, count, in_flight)
        cpu = (cpu_seconds(server.pid) - before[0]) / count
        held = (cpu_seconds(server.store.pid) - before[1]) / count if server.store else None
        return Round(load, cpu, held)


def run(sizes: Sizes) -> list[Table]:
    """Load the server over Valkey and LMDB, the floor, and the peers."""
    seconds, rounds = sizes.pick(0.6, 2.0), sizes.pick(2, 3)
    turns, beside, core = (_Turns(seconds) for _ in range(3))
    written: dict[str, Written] = {}
    with workplace() as folder, ExitStack() as stack:
        views = make_views(folder, ROWS, [20, 20, 20])
        servers = Servers(folder, views, stack)
        ours, theirs = (stack.enter_context(ValkeyServer()) for _ in range(2))
        valkey, lmdb = servers.repository("valkey", ours.url), servers.repository("lmdb", "lmdb:o")
        mine = [
            *servers.ours(VALKEY, valkey, ours),
            *servers.ours(WORKERS, valkey, ours, workers=_WORKERS),
            *servers.ours(LMDB, lmdb, None, fronts=["Connect"]),
        ]
        others = [servers.echo()]
        if sizes.feast:
            others += FeastServers(servers, sizes.feast, theirs).start()
        turns.take_all([*mine, *others], CASES, rounds)
        profiles = profile(mine[0]) if sizes.profile else []
        for repository in (valkey, lmdb):
            readers = [server for server in mine if server.repository == repository]
            with writing(repository, views, ROWS) as written[repository.name]:
                beside.take_all(readers, CASES)
        single = [server for server in (*mine, *others) if not server.name.startswith(WORKERS)]
        stores = [store.pid for store in (ours, theirs)]
        with one_processor_each([server.pid for server in single], stores) as could:
            core.take_all(single, CORE_CASES if could else (), rounds)
    tables = [_figures(turns, rounds, ""), _ratios(turns.best, CASES, "")]
    if core.best:
        tables += [_figures(core, rounds, _ON_ONE), _ratios(core.best, CORE_CASES, _ON_ONE)]
    return [*tables, _while_writing(turns.best, beside.best, written), *profiles]


def _figures(turns: _Turns, rounds: int, how: str) -> Table:
    title = f"Serving 60 float32 features in 3 views, {ROWS:,} entities{how}"
    table = Table(title, _COLUMNS)
    for key in _ordered(turns.best):
        table.add(*key, *_cells(turns.best[key]))
    table.notes += [
        f"Load: {tool()}; one request over and over.",
        f"Over gRPC on {CONNECTIONS} connections at most, over HTTP/1.1 on one for each in flight.",
        f"The fastest of {rounds} rounds, in turns with all the others; of long ones there is one.",
        f"Server: grpcio with {THREADS} threads, the default; the echo returns as many bytes.",
        "Feast is asked by references, its fast way, and by a feature service, as ours is.",
        f"What would take longer than {_LONGEST_SECONDS:.0f} s is left out.",
        "Before: the values of ours and of the peers were compared; and every answer's size.",
    ]
    table.notes += [f"{name} failed: {e} entities, {n} in flight." for name, e, n in turns.failed]
    return table


def _while_writing(
    best: dict[_Key, Round], beside: dict[_Key, Round], written: dict[str, Written]
) -> Table:
    title = "Serving while another process materializes into the same store"
    table = Table(title, [*_COLUMNS, "rate beside alone", "p99 beside alone"])
    for key in _ordered(beside):
        load, alone = beside[key].load, best[key].load
        rate = f"{load.rate / alone.rate:.3g} x"
        late = f"{load.timing.p99 / alone.timing.p99:.3g} x"
        table.add(*key, *_cells(beside[key]), rate, late)
    table.notes += [
        f"{name}: {found.rows:,} rows of 20 features in {found.rounds} runs were written online"
        f" beside the load, {number(found.rows / found.seconds)} rows/s."
        for name, found in written.items()
    ]
    table.notes.append("Server, store, load and materialization share the machine's cores.")
    return table


def _cells(found: Round) -> Sequence[str]:
    load, held = found.load, found.store
    return (
        number(load.rate),
        micros(load.timing.p50),
        micros(load.timing.p99),
        micros(found.server),
        "" if held is None else micros(held),
        micros(load.load_cpu / load.requests),
    )


def _ordered(found: dict[_Key, Round]) -> list[_Key]:
    """Return what was measured case by case, servers in the order in which they came."""
    names = list(dict.fromkeys(name for name, *_ in found))
    return sorted(found, key=lambda key: (key[1], key[2], names.index(key[0])))


def _ratios(best: dict[_Key, Round], cases: _Cases, how: str) -> Table:
    """Compare ours over Valkey with the floor and the peers, case by case."""
    title = f"Serving: {VALKEY}, beside the others{how}"
    table = Table(title, ["case", "beside", "found", "bar", ""])
    for entities, in_flight in cases:
        mine = best[VALKEY, entities, in_flight]
        case = f"{entities} x 60, {in_flight} in flight"
        for name, *where in _ordered(best):
            if name == VALKEY or where != [entities, in_flight]:
                continue
            theirs = best[name, entities, in_flight].load.rate
            bar = _BARS.get(entities, {}).get(name.split(",")[0])
            shown = "" if bar is None else f">= {bar} x"
            # A peer is met by each front of ours that its caller could take instead.
            fronts = {"": mine}
            if bar is not None:
                fronts[": ours over Connect"] = best[CONNECT[0], entities, in_flight]
            if name.startswith("Feast HTTP"):
                fronts[": ours over HTTP"] = best[HTTP, entities, in_flight]
            for front, found in fronts.items():
                ratio = found.load.rate / theirs
                verdict = _verdict(bar, bar and ratio >= bar)
                table.add(case, f"{name}{front}", f"{ratio:.3g} x", shown, verdict)
        if entities in _BAR_CORE and in_flight == max(IN_FLIGHT):
            _add_rates(table, case, best, (entities, in_flight), _BAR_CORE[entities])
        if entities in _BAR_CPU:
            _add_time(table, case, "server CPU a request", mine.server, _BAR_CPU[entities])
        if entities in _BAR_P50 and in_flight == 1:
            _add_time(table, case, "p50", mine.load.timing.p50, _BAR_P50[entities])
    table.notes.append("Rates of ours over Valkey by one process, divided by those of the other.")
    return table


def _add_rates(
    table: Table, case: str, best: dict[_Key, Round], at: tuple[int, int], bar: float
) -> None:
    for name in CONNECT:
        rate = 1 / best[name, *at].server
        what = f"{name}: requests/s of one core"
        table.add(case, what, number(rate), f">= {number(bar)}", _verdict(bar, rate >= bar))


def _add_time(table: Table, case: str, what: str, found: float, bar: float) -> None:
    verdict = _verdict(bar, found <= bar)
    table.add(case, what, f"{micros(found)} us", f"<= {micros(bar)} us", verdict)


def _verdict(bar: float | None, reached: object) -> str:
    return "" if bar is None else "reached" if reached else "NOT reached"
