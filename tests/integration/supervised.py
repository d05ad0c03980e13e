"""A supervisor over workers that serve nothing: python -m tests.integration.supervised FOLDER.

While there is a file `broken` in the folder a worker that starts exits with 7; `silent` makes it
say that it does not answer, `stubborn` makes it ignore SIGTERM. Logs are JSON lines on standard
output. `... FOLDER FD` is a worker.
"""

from __future__ import annotations

import queue
import signal
import sys
from pathlib import Path

import structlog

from featurestore.clock import SystemClock
from featurestore.serving import supervisor
from featurestore.serving.worker_link import WorkerLink

COUNT = 2
SILENCE_SECONDS = 2.5


def be_worker(folder: Path, fd: int) -> int:
    """Live until SIGTERM."""
    if (folder / "broken").exists():
        return 7
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    stubborn = (folder / "stubborn").exists()
    signal.signal(signal.SIGTERM, lambda number, _: None if stubborn else ended.put(number))
    WorkerLink(fd, lambda: not (folder / "silent").exists()).begin()
    ended.get()
    return 0


def be_supervisor(folder: Path) -> int:
    """Run workers until SIGTERM."""
    supervisor._END_SECONDS = 0.5
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    program = [sys.executable, "-m", "tests.integration.supervised", str(folder)]
    return supervisor.Supervisor(
        lambda fd: [*program, str(fd)],
        COUNT,
        clock=SystemClock(),
        log=structlog.get_logger(),
        drain_seconds=0.5,
        silence_seconds=SILENCE_SECONDS,
    ).run()


if __name__ == "__main__":
    place, *more = sys.argv[1:]
    sys.exit(be_worker(Path(place), int(more[0])) if more else be_supervisor(Path(place)))
