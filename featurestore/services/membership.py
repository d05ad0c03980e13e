"""A name of one's own in consumer groups: `host-0`, `host-1`, ..., the first that nobody has.

Who is restarted takes the name that it had before, and its work again at once; two processes of a
host never share one, because a locked file goes with each name.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import StorageError

_LONGEST = 60


@contextlib.contextmanager
def own_name(folder: Path) -> Iterator[str]:
    """Hold a name for the length of a `with` block.

    Args:
        folder: Where the locks are; all processes of a project on this host name the same.

    Raises:
        StorageError: The folder cannot be written.
    """
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:_LONGEST]
    for number in itertools.count():
        path = folder / f"ingest.{number}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(
                "The lock of an ingest process cannot be made.", where=str(path), got=error.strerror
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield f"{host}-{number}"
            return
