"""A worker's side of the line to its supervisor: a sign of life each second, and an ear.

A supervisor that is gone, however it went, ends its workers: none is left behind on the port with
nobody to restart or stop it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

ANSWERING, NOT_ANSWERING = b"+", b"-"
_SECONDS = 1.0


class WorkerLink:
    """Tells the supervisor that this process serves, and whether lookups can be answered.

    Args:
        fd: The socket that the supervisor has given.
        is_answering: Says whether lookups can be answered now.
    """

    def __init__(self, fd: int, is_answering: Callable[[], bool]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._is_answering = is_answering

    def begin(self) -> None:
        """Tell from now on; to be called once connections are taken."""
        threading.Thread(target=self._talk, name="worker-link", daemon=True).start()

    def _talk(self) -> None:
        self._socket.settimeout(_SECONDS)
        while self._told() and self._still_there():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def _told(self) -> bool:
        try:
            self._socket.sendall(ANSWERING if self._is_answering() else NOT_ANSWERING)
        except TimeoutError:
            # It does not listen just now; it may be stopped by a debugger.
            return True
        except OSError:
            return False
        return True

    def _still_there(self) -> bool:
        try:
            # Nothing is ever sent this way, so either time passes or the line is cut.
            return bool(self._socket.recv(1))
        except TimeoutError:
            return True
        except OSError:
            return False
