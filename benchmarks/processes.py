"""Processes that benchmarks run beside themselves, and what the kernel says of any process.

A process that is started here is ended here, by its id, whatever happens in between; what it leaves
in its own session is ended too. Refuses to end anything by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, children, clean_environment
from featurestore.serving.processors import pin
from featurestore.testing.valkey import wait_until

HOST = "127.0.0.1"
_START_SECONDS = 90
_STOP_SECONDS = 40


@dataclass(frozen=True)
class Usage:
    """What a process holds: bytes of memory, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], bool],
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends; give it once it is ready.

    Args:
        command: The command line.
        log: Takes what it prints; standard output goes to the same name with `.out`.
        ready: Whether it is ready.

    Raises:
        RuntimeError: It ended before it was ready; holds the end of its log.
        TimeoutError: It never got ready.
    """
    out = log.with_name(f"{log.name}.out")
    with log.open("wb") as errors, out.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or ready(),
                seconds=_START_SECONDS,
                what=" ".join(command),
            )
            if process.poll() is not None:
                said = (log.read_text() + out.read_text())[-3000:]
                raise RuntimeError(f"{list(command)} ended:\n{said}")
            yield process
        finally:
            stop(process)


@contextmanager
def one_processor_each(servers: Sequence[int], others: Sequence[int]) -> Iterator[bool]:
    """Keep each server to the last processor, and all else to the others, until the block ends.

    Gives whether that could be done: it takes two processors.

    Args:
        servers: Processes, with those that they have started; they are loaded one at a time.
        others: Processes, beside this one and those that it starts.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        yield False
        return
    whole = [pid for server in servers for pid in (server, *children(server))]
    try:
        for pid in whole:
            pin(pid, allowed[-1:])
        for pid in (os.getpid(), *others):
            pin(pid, allowed[:-1])
        yield True
    finally:
        for pid in (*whole, os.getpid(), *others):
            pin(pid, allowed)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Stop a process, and what it may have left in its own session; return its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def usage(pid: int) -> Usage | None:
    """Return what a process holds now; None where it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        return None
    if "VmRSS" not in found:
        return None
    return Usage(int(found["VmRSS"].split()[0]) * 1024, descriptors, int(found["Threads"]))


def free_port() -> int:
    """Return a port that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
