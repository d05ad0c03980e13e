"""Slots of numbers, in memory or in a file that another process reads while they change.

A number is changed in place, so counting costs what adding does; a series' place is found once. In
a file the names of the series stand before the numbers, a line each, and are written before their
numbers are used: a reader sees all or nothing of a series, at any instant and after any death. The
whole file is taken up at once, so that a disk that fills up later stops nobody.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from featurestore.serving.metrics.families import BY_NAME, Family

_SLOTS, _NAME_BYTES = 65_536, 2 * 1024 * 1024
_BYTES = _NAME_BYTES + 8 * _SLOTS
_LENGTH = struct.Struct("<Q")

_JOINS: dict[str, Callable[[tuple[float, float]], float]] = {"sum": sum, "min": min, "max": max}

Series = tuple[Family, tuple[str, ...]]
Values = dict[Series, list[float]]


class Board:
    """The numbers of one process. Whoever changes `values` holds `lock`.

    A series for which there is no room is counted into a place that nobody reads.

    Args:
        path: The file, which must not be there yet; None keeps the numbers in memory.

    Attributes:
        values: The numbers, by slot.
        lock: For whoever changes them.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.lock = threading.Lock()
        self._places: dict[Series, int] = {}
        self._file: int | None = None
        if path is not None:
            self._file = locked_file(path, _BYTES)
        self._memory = mmap.mmap(-1 if self._file is None else self._file, _BYTES)
        self.values = memoryview(self._memory)[_NAME_BYTES:].cast("d")
        self._names = _LENGTH.size
        # What is before belongs to series that find no room.
        self._used = max(family.size for family in BY_NAME.values())

    def place(self, family: Family, *labels: str) -> int:
        """Return the first slot of a series; it begins with zeros."""
        series = (family, labels)
        place = self._places.get(series)
        if place is not None:
            return place
        with self.lock:
            return self._places.get(series) or self._new(series)

    def read(self) -> Values:
        """Return the numbers of every series."""
        with self.lock:
            return {
                series: list(self.values[place : place + series[0].size])
                for series, place in self._places.items()
            }

    def close(self) -> None:
        """Give the file up, which stays. A call that still hangs may count on, unheard."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None

    def _new(self, series: Series) -> int:
        family, labels = series
        place, end = self._used, self._used + family.size
        line = json.dumps([family.name, labels, place, family.size]).encode() + b"\n"
        if end > _SLOTS or self._names + len(line) > _NAME_BYTES:
            return 0
        self._memory[self._names : self._names + len(line)] = line
        self._names += len(line)
        self._memory[: _LENGTH.size] = _LENGTH.pack(self._names)
        self._used = end
        self._places[series] = place
        return place


def locked_file(path: Path, size: int) -> int:
    """Make a file, locked for as long as this process lives; return its descriptor.

    Raises:
        OSError: It cannot be made, or there is no room for it.
    """
    # By its name it is seen once it is whole and locked.
    unfinished = path.with_name(f"{path.name}.unfinished")
    file = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.posix_fallocate(file, 0, size)
    unfinished.rename(path)
    return file


def read_board(path: Path) -> Values:
    """Return the numbers of a process' file.

    Raises:
        OSError: It is not there.
    """
    found: Values = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), _BYTES, prot=mmap.PROT_READ) as memory:
        (end,) = _LENGTH.unpack_from(memory)
        for line in memory[_LENGTH.size : end].splitlines():
            name, labels, place, size = json.loads(line)
            family = BY_NAME.get(name)
            # A worker may be of another version than its supervisor.
            if family is not None and family.size == size and len(family.labels) == len(labels):
                at = _NAME_BYTES + 8 * place
                found[family, tuple(labels)] = list(struct.unpack_from(f"<{size}d", memory, at))
    return found


def is_abandoned(path: Path) -> bool:
    """Whether the process that made a file by `locked_file` has ended.

    Raises:
        OSError: The file is not there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def add_up(parts: list[Values]) -> Values:
    """Return the numbers of several processes as those of one."""
    total: Values = {}
    for part in parts:
        for series, numbers in part.items():
            held = total.get(series)
            if held is None:
                total[series] = list(numbers)
                continue
            family = series[0]
            join = _JOINS[family.together if family.kind == "gauge" else "sum"]
            total[series] = [join(pair) for pair in zip(held, numbers, strict=True)]
    return total


def lasting(values: Values) -> Values:
    """Return what stays of a process that has ended: what it counted, not how it was."""
    return {series: numbers for series, numbers in values.items() if series[0].kind != "gauge"}
