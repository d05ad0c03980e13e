"""Load on a server by a process of its own: h2load where it is installed, else one in Python.

One request is sent over and over: so many in flight, or so many a second whether the answers come
or not. The load's own processor time is told beside the figures: where it comes near the time that
passed, the load was measured and not the server.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Timing, children_cpu, fresh

CONNECTIONS = 8
KINDS = {"grpc": "application/grpc", "http": "application/json", "connect": "application/proto"}
_SECONDS = 120
_DONE = re.compile(r"finished in .*?, ([\d.]+) req/s")
_COUNTS = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_CODES = re.compile(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
_GRPC_HEAD = 5
# Shares by which answers to one request differ: texts of another length, fewer bits of a timestamp.
_ALIKE = 0.05
# A rate is kept up while so many are not answered yet, on each connection.
_BACKLOG = 64
_PYTHON_THREADS = 32


@dataclass(frozen=True)
class Target:
    """One request of one server.

    Attributes:
        protocol: "grpc", or over HTTP/1.1 "http" (a POST of JSON) or "connect".
        port: On 127.0.0.1.
        path: The method.
        body: A file with the message, without gRPC's five bytes before it.
        answer: How many bytes the message of the answer has, about.
    """

    protocol: str
    port: int
    path: str
    body: str
    answer: int


@dataclass(frozen=True)
class Load:
    """What came of it.

    Attributes:
        timing: Seconds of each request.
        seconds: How long all of it took.
        load_cpu: Processor seconds of the load itself.
        requests: How many there were.
        failures: How many of them failed, by their status.
    """

    timing: Timing
    seconds: float
    load_cpu: float
    requests: int
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def tool() -> str:
    """Return what makes the load."""
    path = shutil.which("h2load")
    if path is None:
        return "a Python process (h2load is not installed; its Debian package is nghttp2-client)"
    done = subprocess.run([path, "--version"], check=True, capture_output=True, text=True)  # noqa: S603
    return done.stdout.strip()


def drive(target: Target, requests: int, in_flight: int) -> Load:
    """Send so many requests, so many at a time.

    Raises:
        RuntimeError: A request failed, or the answers are not of the expected size.
    """
    if shutil.which("h2load"):
        load = _h2load(target, requests, in_flight, None)
    else:
        load = _python(target, requests, in_flight, None)
    if load.failures:
        raise RuntimeError(f"{requests} requests for {target.path} failed so: {load.failures}")
    return load


def pace(target: Target, requests: int, rate: float) -> Load:
    """Send so many requests at so many a second, and count what fails."""
    if shutil.which("h2load"):
        return _h2load(target, requests, CONNECTIONS * _BACKLOG, rate)
    return _python(target, requests, _PYTHON_THREADS, rate)


def _python(target: Target, requests: int, in_flight: int, rate: float | None) -> Load:
    found = fresh(
        python_load, target=asdict(target), requests=requests, in_flight=in_flight, rate=rate
    )
    timing = Timing(found["samples"] or [0.0])
    return Load(timing, found["seconds"], found["cpu"], requests, found["failures"])


def _h2load(target: Target, requests: int, in_flight: int, rate: float | None) -> Load:
    http = target.protocol != "grpc"
    connections = min(requests, in_flight if http and rate is None else min(in_flight, CONNECTIONS))
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        message = Path(target.body).read_bytes()
        head = b"" if http else b"\x00" + len(message).to_bytes(4, "big")
        body.write_bytes(head + message)
        command = ["h2load", "-n", str(requests), "-c", str(connections), "-t", "1"]
        command += ["-m", str(max(1, in_flight // connections)), "-d", str(body)]
        command += ["--log-file", str(log)]
        command += [] if rate is None else ["--rps", f"{rate / connections:.3f}"]
        command += ["-H", f"content-type: {KINDS[target.protocol]}"]
        command += ["--h1"] if http else ["-H", "te: trailers"]
        command.append(f"http://127.0.0.1:{target.port}{target.path}")
        cpu = children_cpu()
        try:
            done = subprocess.run(  # noqa: S603
                command, check=True, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"h2load on {target.path} failed: {error}") from error
        cpu = children_cpu() - cpu
        samples = [int(line.split("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
    rate_found = _DONE.search(done.stdout)
    seconds = requests / float(rate_found[1]) if rate_found and float(rate_found[1]) else 1e-9
    failures = _failures(done.stdout, target, requests)
    return Load(Timing(samples or [0.0]), seconds, cpu, requests, failures)


def _failures(output: str, target: Target, requests: int) -> dict[str, int]:
    """Return what failed, by what h2load says.

    An error of gRPC has the status 200 and no data: it shows in the bytes alone. They are counted
    exactly where answers are of one size; a single error is told where that is so.
    """
    counts, codes = _COUNTS.search(output), _CODES.search(output)
    data = re.search(r"\((\d+)\) data", output)
    if not counts or not codes or not data:
        return {f"h2load said {output[-300:]!r}": requests}
    found = dict(zip(("3xx", "4xx", "5xx"), map(int, codes.groups()), strict=True))
    found["no answer"] = max(0, requests - int(counts[1]) - sum(found.values()))
    head = _GRPC_HEAD if target.protocol == "grpc" else 0
    answered = (requests - sum(found.values())) * (target.answer + head)
    off = 1 - int(data[1]) / answered if answered else 0.0
    if target.protocol == "grpc" and off > 0:
        found["without data"] = round(off * requests)
    elif abs(off) > _ALIKE:
        found["of another size"] = max(1, round(abs(off) * requests))
    return {status: count for status, count in found.items() if count}


def python_load(
    target: dict[str, Any], requests: int, in_flight: int, rate: float | None
) -> dict[str, Any]:
    """Be the load in Python (a step in a process of its own); slower than most servers."""
    goal = Target(**target)
    send = _grpc_sender(goal) if goal.protocol == "grpc" else _http_sender(goal)
    work = _Work(goal, requests, rate)
    threads = [threading.Thread(target=work.run, args=(send(),)) for _ in range(in_flight)]
    started, cpu = time.perf_counter(), time.process_time()
    work.begun = started
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "samples": work.samples,
        "seconds": seconds,
        "cpu": cpu,
        "failures": dict(work.failures),
    }


class _Work:
    """The requests that threads share."""

    def __init__(self, target: Target, requests: int, rate: float | None) -> None:
        self.samples: list[float] = []
        self.failures: Counter[str] = Counter()
        self.begun = 0.0
        self._body = Path(target.body).read_bytes()
        self._size = target.answer
        self._rate = rate
        self._left = iter(range(requests))
        self._lock = threading.Lock()

    def run(self, call: Callable[[bytes], bytes]) -> None:
        """Send one after the other until none is left."""
        while True:
            with self._lock:
                index = next(self._left, None)
            if index is None:
                return
            started = time.perf_counter()
            if self._rate:
                # Counted from when it was due: waiting for a free thread is waiting, too.
                due = self.begun + index / self._rate
                time.sleep(max(0.0, due - started))
                started = due
            status = self._send(call)
            taken = time.perf_counter() - started
            with self._lock:
                self.samples.append(taken)
                self.failures.update([status] if status else [])

    def _send(self, call: Callable[[bytes], bytes]) -> str | None:
        """Return what failed, None where nothing did."""
        import grpc

        try:
            size = len(call(self._body))
        except grpc.RpcError as error:
            return str(error.code().name)
        except OSError as error:
            return type(error).__name__
        return None if abs(1 - size / self._size) <= _ALIKE else "of another size"


def _grpc_sender(target: Target) -> Callable[[], Callable[[bytes], bytes]]:
    import grpc

    # Channels of the same arguments would share one connection.
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{target.port}"
    turns = itertools.cycle([grpc.insecure_channel(address, options) for _ in range(CONNECTIONS)])

    def connect() -> Callable[[bytes], bytes]:
        method = next(turns).unary_unary(target.path)
        return lambda body: method(body, timeout=30)

    return connect


def _http_sender(target: Target) -> Callable[[], Callable[[bytes], bytes]]:
    import http.client

    def connect() -> Callable[[bytes], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)

        def call(body: bytes) -> bytes:
            connection.request("POST", target.path, body, {"Content-Type": KINDS[target.protocol]})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != http.client.OK:
                raise ConnectionError(f"status {answer.status}")
            return data

        return call

    return connect
