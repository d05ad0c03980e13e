"""A worker process as its supervisor sees it: started, heard of, told to go, killed."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Sequence

from featurestore.clock import Clock
from featurestore.serving.processors import pin
from featurestore.serving.worker_link import ANSWERING

Command = Callable[[int], Sequence[str]]
_ENOUGH_BYTES = 4096


class Worker:
    """A process that serves on the shared address.

    It is in a session of its own: what a terminal sends to everybody goes to the supervisor alone.

    Args:
        command: Returns the command line, from the descriptor of the line to the supervisor.
        clock: Tells when it was heard of.
        processor: Where it is to stay once it serves; None is anywhere.

    Attributes:
        link: Our end of the line.
        began: When it was started, by the clock's `monotonic`.
        heard: When it last gave a sign of life.
        is_ready: Whether it takes connections.
        is_answering: Whether it said that lookups can be answered.
    """

    def __init__(self, command: Command, clock: Clock, processor: int | None = None) -> None:
        self._clock = clock
        self._processor = processor
        self.link, theirs = socket.socketpair()
        self.link.settimeout(0)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  (our own command line)
                command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.began = self.heard = clock.monotonic()
        self.is_ready = False
        self.is_answering = False

    @property
    def exit_code(self) -> int | None:
        """What it ended with, a signal as a negative number; None while it runs."""
        return self._process.poll()

    def listen(self) -> None:
        """Take in what it has said."""
        try:
            said = self.link.recv(_ENOUGH_BYTES)
        except OSError:
            # Nothing was said, or it is gone, which its exit code tells.
            return
        if said:
            self.heard = self._clock.monotonic()
            if not self.is_ready and self._processor is not None:
                # Not before: while it starts, it is not to take the time of one that serves.
                pin(self.pid, (self._processor,))
            self.is_ready = True
            self.is_answering = said.endswith(ANSWERING)

    def terminate(self) -> None:
        """Tell it to drain and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """Forget it, once it has ended."""
        self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0)
