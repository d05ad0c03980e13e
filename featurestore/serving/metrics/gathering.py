"""The numbers of several worker processes as one: a private folder with a board a worker.

Workers count where the supervisor can read, so none of them is asked for anything, and one that is
killed loses no count. What a worker that has ended had counted goes on counting; how it was does
not. The folder goes with the supervisor; one that a killed supervisor left is found by the next.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurestore.errors import SettingsError
from featurestore.serving.metrics.board import (
    Board,
    Values,
    add_up,
    is_abandoned,
    lasting,
    locked_file,
    read_board,
)
from featurestore.serving.metrics.exposition import MetricsServer

_PREFIX, _LOCK, _SUFFIX = "featurestore-metrics-", "supervisor.lock", ".board"
_TIDY_SECONDS = 10.0


class Gathering:
    """Reads the boards of a folder.

    Args:
        folder: Where workers put them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._ended: Values = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tidy, name="metrics", daemon=True)
        self._thread.start()

    def read(self) -> Values:
        """Return the numbers of all workers together."""
        with self._lock:
            living = []
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                # In this order: what ended in between is seen as it was at the end.
                ended = is_abandoned(path)
                values = read_board(path)
                if ended:
                    self._ended = add_up([self._ended, lasting(values)])
                    path.unlink()
                else:
                    living.append(values)
            return add_up([self._ended, *living])

    def close(self) -> None:
        """Read no more."""
        self._stopping.set()
        self._thread.join()

    def _tidy(self) -> None:
        # Workers that die again and again leave no heap of boards, even if nobody asks.
        while not self._stopping.wait(_TIDY_SECONDS):
            with contextlib.suppress(OSError):
                self.read()


@contextlib.contextmanager
def shown_together(address: str | None, log: Any) -> Iterator[list[str]]:
    """Show the numbers of all workers at one address; give what their command lines need for it.

    Args:
        address: host:port; None shows nothing.
        log: Told where they are shown.

    Raises:
        SettingsError: The address cannot be listened on, or what is needed is not there.
    """
    if address is None:
        yield []
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(shared_folder())
        except OSError as error:
            raise SettingsError(
                "The workers have nowhere to put their numbers.", got=str(error)
            ) from error
        gathering = Gathering(folder)
        stack.callback(gathering.close)
        server = MetricsServer(address, gathering.read, whole=False)
        stack.callback(server.close)
        log.info("metrics", address=server.address)
        yield ["--metrics-folder", str(folder)]


def new_board(folder: Path) -> Board:
    """Return a board of this process in a folder.

    Raises:
        OSError: It cannot be written.
    """
    return Board(folder / f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """Give a folder of this process' user alone; it is deleted in the end.

    Raises:
        OSError: It cannot be made.
    """
    top = Path(tempfile.gettempdir())
    for left in top.glob(f"{_PREFIX}*"):
        _delete_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))
    lock = locked_file(folder / _LOCK, 1)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _delete_if_left(folder: Path) -> None:
    """Delete a folder of ours whose supervisor is gone."""
    with contextlib.suppress(OSError):
        if folder.stat(follow_symlinks=False).st_uid == os.getuid() and is_abandoned(
            folder / _LOCK
        ):
            shutil.rmtree(folder, ignore_errors=True)
