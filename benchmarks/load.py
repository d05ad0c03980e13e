"""Load on a server by a process of its own: h2load where it is installed, else one in Python.

One request is sent over and over, so many in flight. The load's own processor time is told beside
the figures: where it comes near the time that passed, the load was measured and not the server.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Timing, children_cpu, fresh

_SECONDS = 300
_DONE = re.compile(r"finished in .*?, ([\d.]+) req/s")
_COUNTS = re.compile(r"(\d+) succeeded, (\d+) failed")
_GRPC_HEAD = 5


@dataclass(frozen=True)
class Target:
    """One request of one server.

    Attributes:
        protocol: "grpc" or "http" (1.1, a POST of JSON).
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
    """What came of it: seconds of each request, and the processor time of the load itself."""

    timing: Timing
    seconds: float
    load_cpu: float
    requests: int

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
        return _h2load(target, requests, in_flight)
    found = fresh(python_load, target=asdict(target), requests=requests, in_flight=in_flight)
    return Load(Timing(found["samples"]), found["seconds"], found["cpu"], requests)


def _h2load(target: Target, requests: int, in_flight: int) -> Load:
    http = target.protocol == "http"
    connections = in_flight if http else min(in_flight, 4)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        message = Path(target.body).read_bytes()
        head = b"" if http else b"\x00" + len(message).to_bytes(4, "big")
        body.write_bytes(head + message)
        command = ["h2load", "-n", str(requests), "-c", str(connections), "-t", "1"]
        command += ["-m", str(in_flight // connections), "-d", str(body), "--log-file", str(log)]
        kind = "application/json" if http else "application/grpc"
        command += ["-H", f"content-type: {kind}"]
        command += ["--h1"] if http else ["-H", "te: trailers"]
        command.append(f"http://127.0.0.1:{target.port}{target.path}")
        cpu = children_cpu()
        done = subprocess.run(  # noqa: S603
            command, check=True, capture_output=True, text=True, timeout=_SECONDS
        )
        cpu = children_cpu() - cpu
        samples = [int(line.split("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
    _check(done.stdout, target, requests)
    rate = _DONE.search(done.stdout)
    seconds = requests / float(rate[1]) if rate else 0.0
    return Load(Timing(samples), seconds, cpu, requests)


def _check(output: str, target: Target, requests: int) -> None:
    """Stop unless every request was answered with about the bytes that an answer has.

    An error of gRPC has the status 200 and no data: it shows in the bytes alone.
    """
    counts = _COUNTS.search(output)
    data = re.search(r"\((\d+)\) data", output)
    head = _GRPC_HEAD if target.protocol == "grpc" else 0
    wanted = requests * (target.answer + head)
    received = int(data[1]) if data else 0
    if not counts or int(counts[1]) != requests or not 0.95 < received / wanted < 1.05:  # noqa: PLR2004
        raise RuntimeError(f"requests failed; {wanted} bytes were expected:\n{output}")


def python_load(target: dict[str, Any], requests: int, in_flight: int) -> dict[str, Any]:
    """Be the load in Python (a step in a process of its own); slower than most servers."""
    goal = Target(**target)
    body = Path(goal.body).read_bytes()
    send = _grpc_sender(goal) if goal.protocol == "grpc" else _http_sender(goal)
    samples: list[float] = []
    lock = threading.Lock()
    left = iter(range(requests))

    def work() -> None:
        call = send()
        while True:
            with lock:
                if next(left, None) is None:
                    return
            started = time.perf_counter()
            size = len(call(body))
            samples.append(time.perf_counter() - started)
            if not 0.95 < size / goal.answer < 1.05:  # noqa: PLR2004
                raise RuntimeError(f"the answer has {size} bytes, not {goal.answer}")

    threads = [threading.Thread(target=work) for _ in range(in_flight)]
    started, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if len(samples) != requests:
        raise RuntimeError(f"{requests - len(samples)} requests failed")
    return {"samples": samples, "seconds": seconds, "cpu": cpu}


def _grpc_sender(target: Target) -> Any:
    import grpc

    channel = grpc.insecure_channel(
        f"127.0.0.1:{target.port}", [("grpc.max_receive_message_length", -1)]
    )
    call = channel.unary_unary(target.path)
    return lambda: lambda body: call(body, timeout=30)


def _http_sender(target: Target) -> Any:
    import http.client

    def connect() -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)

        def call(body: bytes) -> bytes:
            connection.request("POST", target.path, body, {"Content-Type": "application/json"})
            return connection.getresponse().read()

        return call

    return connect
