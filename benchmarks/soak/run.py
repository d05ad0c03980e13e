"""Runs the soak and judges it: what `make soak` calls.

    python -m benchmarks.soak [--minutes 10] [--workers 2] [--seconds-a-line 10]

One `featurestore serve`, one `featurestore ingest` and one `featurestore schedule` are processes of
their own over one Valkey. The peak is measured first, with all the rest going on; then the server
is loaded at a share of it, while events are pushed, rows are materialized and definitions change.
In the end `featurestore verify` compares online with offline. PASS, and exit code 0, is for: no
error, no answer that is wrong, no difference, and no process that grows.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import machine, workplace
from benchmarks.load import Load, Target, drive, pace, tool
from benchmarks.processes import HOST, free_port, listens, running, stop
from benchmarks.run import keep
from benchmarks.servers import METHOD, call
from benchmarks.soak import report
from benchmarks.soak.actors import Actors, Beat
from benchmarks.soak.repository import SERVICE, USERS, Repository, request
from benchmarks.soak.watching import Watcher
from featurestore.testing.valkey import ValkeyServer, wait_until

SHARE = 0.7
# Whom the load asks for.
_USERS = range(USERS // 2, USERS // 2 + 10)
_IN_FLIGHT = 32
_SETTLE_SECONDS = 60
_SAMPLE = 500


@dataclass(frozen=True)
class Plan:
    """How long the soak lasts and what it does.

    Attributes:
        seconds: Of load, after the peak was measured.
        peak_seconds: About how long the peak is measured.
        line_seconds: How long each piece of the load is: a line of the record.
        workers: Processes of the server; None is one without a supervisor.
        beat: How often the rest happens.
        rate: Requests a second at most; None takes 70 % of the peak.
    """

    seconds: float
    peak_seconds: float = 12.0
    line_seconds: float = 10.0
    workers: int | None = None
    beat: Beat = field(default_factory=Beat)
    rate: float | None = None


@dataclass
class Result:
    """What came of it.

    Attributes:
        peak: Requests a second at most.
        rate: Requests a second that were sent.
        lines: The pieces of the load, each with the seconds since the begin.
        actors: What went on beside.
        watcher: What the processes held.
        verified: What `verify` said, of the store and through the server.
    """

    peak: float
    rate: float
    lines: list[tuple[float, Load]]
    actors: Actors
    watcher: Watcher
    verified: list[dict[str, Any]]

    @property
    def failures(self) -> dict[str, int]:
        """All that failed, by kind; `{}` where nothing did."""
        found = dict(self.actors.errors)
        if self.watcher.failure:
            found[f"watching: {self.watcher.failure}"] = 1
        for _, load in self.lines:
            for status, count in load.failures.items():
                found[f"load: {status}"] = found.get(f"load: {status}", 0) + count
        return found


def soak(plan: Plan, folder: Path) -> Result:
    """Run it in an empty folder.

    Raises:
        RuntimeError: A process did not start.
    """
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer())
        repository = Repository(folder / "repository", valkey.url)
        port = free_port()
        actors = Actors(repository, f"{HOST}:{port}", plan.beat)
        if not (
            actors.command("apply") and actors.command("materialize-incremental", "--view", "spend")
        ):
            raise RuntimeError("the repository of the soak could not be made")
        # It runs at once what it has missed: all that it needs is loaded before it is judged.
        schedule = _start(stack, repository, lambda: True, "schedule")
        wait_until(actors.is_scheduled_done, seconds=_SETTLE_SECONDS, what="the scheduled view")
        server = _start(stack, repository, lambda: listens(port), *_serve(port, plan))
        ingest = _start(stack, repository, lambda: True, "ingest")
        roots = {"valkey": valkey.pid, "serve": server.pid}
        roots |= {"ingest": ingest.pid, "schedule": schedule.pid}
        watcher = Watcher(roots, plan.line_seconds / 4, lambda: _held(valkey))
        actors.prime(_USERS)
        for begin, end in ((watcher.start, watcher.stop), (actors.start, actors.stop)):
            stack.callback(end)
            begin()
        target = _target(port, folder)
        peak = _peak(target, plan)
        rate = peak * SHARE if plan.rate is None else min(plan.rate, peak * SHARE)
        lines = _load(target, plan, rate, watcher)
        actors.stop()
        watcher.stop()
        actors.checker.finish()
        wait_until(actors.is_read_back, seconds=_SETTLE_SECONDS, what="the last events")
        if ended := stop(ingest):
            actors.failed(f"ingest: exit code {ended}", "")
        return Result(peak, rate, lines, actors, watcher, _verified(actors, f"{HOST}:{port}"))


def _serve(port: int, plan: Plan) -> list[str]:
    words = ["serve", "--address", f"{HOST}:{port}"]
    return words if plan.workers is None else [*words, "--workers", str(plan.workers)]


def _start(
    stack: ExitStack, repository: Repository, ready: Callable[[], bool], *words: str
) -> subprocess.Popen[bytes]:
    """Run a command of the project until the stack ends."""
    program = [sys.executable, "-m", "featurestore.cli", *words, "--output", "json"]
    log = repository.folder.parent / f"{words[0]}.log"
    program += ["--repo", str(repository.folder)]
    return stack.enter_context(running(program, log, ready))


def _target(port: int, folder: Path) -> Target:
    """Return the lookup that the load makes, once it is answered."""
    body = request(_USERS, folder)
    answer = call(port, METHOD, body.read_bytes())
    return Target("grpc", port, METHOD, str(body), len(answer))


def _peak(target: Target, plan: Plan) -> float:
    """Return the requests a second that the server answers beside all that goes on."""
    rate = drive(target, 4 * _IN_FLIGHT, _IN_FLIGHT).rate
    count = max(_IN_FLIGHT, int(rate * plan.peak_seconds))
    return drive(target, count, _IN_FLIGHT).rate


def _load(target: Target, plan: Plan, rate: float, watcher: Watcher) -> list[tuple[float, Load]]:
    lines: list[tuple[float, Load]] = []
    begun = time.monotonic()
    _say(report.heading())
    while (at := time.monotonic() - begun) < plan.seconds:
        seconds = min(plan.line_seconds, max(1.0, plan.seconds - at))
        load = pace(target, max(1, int(rate * seconds)), rate)
        lines.append((at + seconds, load))
        _say(report.line(*lines[-1], watcher))
    return lines


def _verified(actors: Actors, address: str) -> list[dict[str, Any]]:
    """Bring all that was pushed into the tables, and compare; `{}` stands for what failed."""
    actors.command("ingest", "--until-idle")
    actors.command("materialize-incremental")
    asked = ["verify", "--service", SERVICE, "--sample", str(_SAMPLE)]
    return [actors.command(*asked), actors.command(*asked, "--server", address)]


def _held(valkey: ValkeyServer) -> int:
    lines = valkey.command("INFO", "memory").splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith("used_memory:"))


def main() -> int:
    """Parse the arguments, run, print and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load; 10 by default")
    parser.add_argument("--workers", type=int, help="processes of the server")
    parser.add_argument("--seconds-a-line", type=float, default=10.0, help="of the record")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the verdict")
    found = parser.parse_args()
    plan = Plan(found.minutes * 60, line_seconds=found.seconds_a_line, workers=found.workers)
    # A soak that is told to end ends what it has started.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    where = f"{machine()}. Load: {tool()}."
    _say(where)
    with workplace() as folder:
        result = soak(plan, folder)
    passed, text = report.judged(result)
    _say(text)
    if found.write:
        keep(found.write, "soak", f"{found.minutes:g} minutes. {where}\n\n{text}")
    return 0 if passed else 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
