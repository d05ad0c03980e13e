"""Where a server's processor time goes, taken from outside while it is loaded.

Two looks. py-spy says which Python code holds the interpreter's lock, by room: that bounds what one
process can serve. perf, where it is installed, says in which library or in the kernel the rest is
spent, threads without Python included. Looking at a process needs root, or
`kernel.yama.ptrace_scope` (py-spy) and `kernel.perf_event_paranoid` (perf) of 0.
"""

from __future__ import annotations

import linecache
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import ROOT, Table, cpu_seconds, micros
from benchmarks.load import Load, drive
from benchmarks.servers import Contestant

_CASES = ((1, 16), (100, 16))
_SECONDS = 4
_SAMPLES_A_SECOND = 250
_PERF_HERTZ = 499
# What begins and ends the looking, during which the load goes on.
_MARGIN_SECONDS = 2.0
_FRAME = re.compile(r"\(([^()]+?)(?::(\d+))?\)$")
_LIBRARY = re.compile(r"^\s*([\d.]+)%\s+(\S+)\s*$")
# The C code that a line of Python runs is no frame of its own: the line says what it is.
_PROTOBUF = re.compile(r"FromString|SerializeToString|MergeFrom")
_ROOMS = (
    (re.compile(r"^featurestore/adapters/(\w+)"), "ours: adapters/{}"),
    (re.compile(r"^featurestore/serving/(security|http|metrics)"), "ours: serving/{}"),
    (re.compile(r"^featurestore/(\w+)"), "ours: {}"),
    (re.compile(r"^(?:redis|hiredis)/"), "redis client (redis-py, hiredis)"),
    (re.compile(r"^grpc/"), "grpc, its Python layer"),
    (re.compile(r"^(?:pyarrow|polars|numpy)/"), "Arrow, NumPy, Polars"),
)
_LIBRARIES = {
    "[kernel": "kernel: sockets, waking threads",
    "cygrpc": "gRPC core",
    "libpython": "Python interpreter",
    "python3": "Python interpreter",
    "_message": "protobuf (upb)",
    "hiredis": "hiredis",
    "libc": "libc",
}
_OTHER = "other"


def profile(server: Contestant) -> list[Table]:
    """Load a server and tell where its time goes.

    Raises:
        RuntimeError: py-spy is not installed, or may not look at the server.
    """
    cases = [f"{entities} x 60, {in_flight} in flight" for entities, in_flight in _CASES]
    columns = [f"{case}: {what}" for case in cases for what in ("share", "us a request")]
    title = f"Who holds the interpreter's lock: {server.name}"
    tables = [Table(title, ["room", *columns])]
    _fill(tables[0], [_rooms(server, *case) for case in _CASES])
    tables[0].notes += [
        f"py-spy, {_SAMPLES_A_SECOND} times a second for {_SECONDS} s.",
        "Each sample counts for the innermost room of the thread that holds the lock.",
        "C code counts for the line that runs it.",
        "Without the lock: gRPC core, system calls, waking threads; processor time less the rest.",
    ]
    if shutil.which("perf"):
        title = f"Where the processor time is spent: {server.name}"
        tables.append(Table(title, ["library", *columns]))
        _fill(tables[1], [_libraries(server, *case) for case in _CASES])
        tables[1].notes.append("perf, all threads of the process.")
    return tables


def _fill(table: Table, found: list[dict[str, float]]) -> None:
    """Add a row for each room, from its microseconds a request in each case."""
    rooms = dict.fromkeys(room for case in found for room in sorted(case, key=lambda r: -case[r]))
    for room in rooms:
        cells = []
        for case in found:
            seconds = case.get(room, 0.0)
            cells += [f"{seconds / sum(case.values()):.1%}", micros(seconds)]
        table.add(room, *cells)


def _rooms(server: Contestant, entities: int, in_flight: int) -> dict[str, float]:
    """Return processor seconds a request of each room."""
    program = Path(sys.executable).parent / "py-spy"
    if not program.exists():
        raise RuntimeError("--profile needs py-spy in the environment: `make setup` installs it")
    out = Path(server.targets[entities].body).with_name(f"profile-{entities}.txt")
    command = [str(program), "record", "--gil", "--format", "raw", "--output", str(out)]
    command += ["--rate", str(_SAMPLES_A_SECOND), "--duration", str(_SECONDS)]
    load, used = _look(server, entities, in_flight, [*command, "--pid", str(server.pid)])
    held = rooms_of(out.read_text().splitlines())
    a_sample = 1 / _SAMPLES_A_SECOND / (load.rate * min(_SECONDS, load.seconds))
    found = {room: count * a_sample for room, count in held.items()}
    found["without the lock"] = max(0.0, used - sum(found.values()))
    return found


def _libraries(server: Contestant, entities: int, in_flight: int) -> dict[str, float]:
    """Return processor seconds a request of each library."""
    out = Path(server.targets[entities].body).with_name(f"perf-{entities}.data")
    command = ["perf", "record", "-q", "-F", str(_PERF_HERTZ), "-o", str(out)]
    command += ["-p", str(server.pid), "--", "sleep", str(_SECONDS)]
    _, used = _look(server, entities, in_flight, command)
    asked = ["perf", "report", "-i", str(out), "--stdio", "--sort", "dso"]
    done = subprocess.run(asked, check=True, capture_output=True, text=True)  # noqa: S603
    shares: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        found = _LIBRARY.match(line)
        if found:
            names = (v for k, v in _LIBRARIES.items() if found[2].startswith(k))
            shares[next(names, _OTHER)] += float(found[1])  # type: ignore[assignment]
    total = sum(shares.values()) or 1.0
    return {name: share / total * used for name, share in shares.items()}


def _look(
    server: Contestant, entities: int, in_flight: int, command: list[str]
) -> tuple[Load, float]:
    """Run a profiler on a loaded server; return the load and the processor seconds of a request.

    Raises:
        RuntimeError: The profiler failed.
    """
    target = server.targets[entities]
    guess = drive(target, 20 * in_flight, in_flight).rate
    # The first requests are slower, and the load is to go on as long as the looking does.
    guess = drive(target, max(in_flight, int(guess)), in_flight).rate
    count = max(in_flight, int(guess * (_SECONDS + _MARGIN_SECONDS)))
    before = cpu_seconds(server.pid)
    process = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        load = drive(target, count, in_flight)
        used = (cpu_seconds(server.pid) - before) / count
    finally:
        said, _ = process.communicate(timeout=60)
    if process.returncode:
        raise RuntimeError(f"{command[0]} could not look at the server:\n{said[-1000:]}")
    return load, used


def rooms_of(lines: Iterable[str]) -> Counter[str]:
    """Return how many samples each room has, from stacks as py-spy writes them.

    >>> rooms_of(["run (threading.py:3);read (redis/client.py:9) 4", "a (x.py:1) 2"])
    Counter({'redis client (redis-py, hiredis)': 4, 'other': 2})
    """
    found: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        found[_room(stack.split(";"))] += int(count)
    return found


def _room(frames: list[str]) -> str:
    inner = _FRAME.search(frames[-1])
    if inner and inner[2] and inner[1].startswith("featurestore/"):
        line = linecache.getline(str(ROOT / inner[1]), int(inner[2]))
        if _PROTOBUF.search(line):
            return "protobuf"
    for frame in reversed(frames):
        file = _FRAME.search(frame)
        for pattern, room in _ROOMS:
            found = pattern.search(file[1]) if file else None
            if found:
                return room.format(*found.groups())
    return _OTHER
