"""The audit: one JSON line a call, who asked what and how it ended; never keys' values or secrets.

Calls do not wait for it: lines go through a bounded queue to a thread that writes them, and when
the disk is too slow they are dropped, counted, and the count is written. The file may be moved away
at any time, as logrotate does; a new one is begun.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import SettingsError

STDERR = "stderr"
LONGEST_NAME = 100
MOST_NAMES = 1_000
"""How much the audit says of what was asked for: names are the caller's."""

_QUEUED = 10_000
_IDLE_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
# Ids need not be secret, only distinct: a random beginning a process, and a number.
_PROCESS = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


def new_request_id() -> str:
    """Return an id that no other call has."""
    return f"{_PROCESS}-{next(_NUMBERS)}"


def audit_of(place: str | None, folder: Path, setting: str, log: Any) -> Audit | None:
    """Return the audit that a setting names, None where it names none.

    Args:
        place: A file, or "stderr".
        folder: Where its path begins.
        setting: The name of the setting.
        log: Told of lines that were lost.

    Raises:
        SettingsError: The folder of the file does not exist.
    """
    if place is None:
        return None
    path = None if place == STDERR else folder / place
    if path is not None and not path.parent.is_dir():
        raise SettingsError(
            "The folder of the audit does not exist.", where=setting, got=str(path.parent)
        )
    return Audit(path, log)


class Audit:
    """Writes lines.

    Args:
        path: The file; None is standard error.
        log: Told of lines that were lost.
        queued: How many lines may wait.
    """

    def __init__(self, path: Path | None, log: Any, queued: int = _QUEUED) -> None:
        self._path = path
        self._log = log
        self._limit = queued
        self._lines: deque[Mapping[str, Any]] = deque()
        self._wake = threading.Event()
        self._counting = threading.Lock()
        self._closing = False
        self._file: int | None = None
        self._torn = False
        self._told = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Queue a line, or drop it if too many wait."""
        if len(self._lines) >= self._limit:
            self._drop(1)
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what is queued, as far as that is possible in a few seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _drop(self, count: int) -> None:
        with self._counting:
            self.dropped += count

    def _work(self) -> None:
        while True:
            self._wake.wait(_IDLE_SECONDS)
            self._wake.clear()
            closing = self._closing
            self._write_all()
            if closing:
                break
        if self._file is not None:
            os.close(self._file)

    def _write_all(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        dropped = self.dropped
        told = [{"event": "audit lines dropped", "count": dropped - self._told}]
        text = "".join(f"{json.dumps(line)}\n" for line in (*lines, *told[: dropped - self._told]))
        if not text:
            return
        try:
            self._put(text)
            self._told = dropped
        except OSError as error:
            self._give_up()
            self._drop(len(lines))
            self._log.error("audit lines lost", count=len(lines), error=error.strerror)

    def _put(self, text: str) -> None:
        if self._path is None:
            sys.stderr.write(text)
            sys.stderr.flush()
            return
        file = self._opened(self._path)
        left = memoryview(f"\n{text}".encode() if self._torn else text.encode())
        # A line that breaks off, on a full disk, must not spoil the next one as well.
        self._torn = True
        while left:
            left = left[os.write(file, left) :]
        self._torn = False

    def _opened(self, path: Path) -> int:
        if self._file is not None:
            if not _moved(path, self._file):
                return self._file
            self._give_up()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    def _give_up(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _moved(path: Path, file: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return True
    here = os.fstat(file)
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
