"""A program of the tests at work in a process of its own; killed at the end whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar, Self

DEADLINE = 60


class WorkerProcess:
    """Runs `program`, by this interpreter, with these arguments."""

    program: ClassVar[Path]

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, our own script
            [sys.executable, str(self.program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._timer = threading.Timer(DEADLINE, self.process.kill)
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        output, _ = self.process.communicate()
        assert self.process.returncode == 0, output

    def kill(self) -> list[str]:
        """Kill it, if it has not ended; return what it had said that nobody read yet."""
        if self.process.poll() is None:
            self.process.kill()
            # It may have ended by itself a moment ago, but not badly.
            assert self.process.wait() in {0, -signal.SIGKILL}
        self._timer.cancel()
        if self.process.stdout.closed:
            return []
        output = self.process.stdout.read()  # `communicate` would skip what `line` has buffered
        self.process.stdout.close()
        self.process.stdin.close()
        return [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
