"""What the processes of the soak hold as time goes by, and whether it grows.

Growth is that of a straight line through the second half of the samples: what a process takes while
it warms up is not growth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.common import children
from benchmarks.processes import Usage, usage

_MIB = 2**20
# A second half that is shorter is still part of warming up.
_LEAST_SECONDS = 120.0


@dataclass(frozen=True)
class Limit:
    """How much a process may grow over the second half: the larger of the two.

    Attributes:
        bytes: In bytes.
        share: Of what it holds on average.
        descriptors: How many more open descriptors.
        threads: How many more threads.
    """

    bytes: float
    share: float
    descriptors: float
    threads: float


# Servers answer the same all the time; the others have more and more files, runs and rows to read,
# and the Delta library has threads that come with work and go when there has been none for a while.
SERVER = Limit(8 * _MIB, 0.04, descriptors=4, threads=4)
WORKER = Limit(32 * _MIB, 0.10, descriptors=8, threads=24)


@dataclass(frozen=True)
class Sample:
    """What a process held at a time, in seconds since the begin."""

    at: float
    usage: Usage


@dataclass(frozen=True)
class Growth:
    """How a process grew over the second half, and whether it may.

    Attributes:
        name: The process.
        samples: How many samples it has.
        first: The first sample of the second half.
        last: The last one.
        memory: Bytes by which the fitted line rises over the second half.
        descriptors: Descriptors by which it rises.
        threads: Threads by which it rises.
        judged: Whether there was time enough to judge by.
        flat: Whether that is within its limit.
    """

    name: str
    samples: int
    first: Usage
    last: Usage
    memory: float
    descriptors: float
    threads: float
    judged: bool
    flat: bool


class Watcher:
    """Takes samples in a thread.

    Args:
        roots: The processes by name; those that they have started are watched, too.
        seconds: Between two samples.
        store_memory: Returns the bytes that the store holds.

    Attributes:
        samples: What each process held, by name and process id.
        store: When and what the store held.
        failure: Why it stopped watching; None while it did not.
    """

    def __init__(
        self, roots: dict[str, int], seconds: float, store_memory: Callable[[], int]
    ) -> None:
        self._roots = roots
        self._seconds = seconds
        self._store_memory = store_memory
        self._begun = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.samples: dict[tuple[str, int], list[Sample]] = {}
        self.store: list[tuple[float, int]] = []
        self.failure: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        if self._thread.is_alive():
            self._ending.set()
            self._thread.join()

    def now(self) -> dict[str, Usage]:
        """Return the newest sample of each process."""
        return {_name(key): found[-1].usage for key, found in list(self.samples.items())}

    def growth(self, limits: dict[str, Limit]) -> list[Growth]:
        """Return how each process grew; those that have no limit are left out."""
        return [
            growth_of(_name(key), found, limits[key[0]])
            for key, found in self.samples.items()
            if key[0] in limits
        ]

    def _run(self) -> None:
        try:
            self._sample()
            while not self._ending.wait(self._seconds):
                self._sample()
        except Exception as error:  # noqa: BLE001  (told in the end: nothing watched is nothing seen)
            self.failure = repr(error)

    def _sample(self) -> None:
        at = time.monotonic() - self._begun
        for name, pid in self._roots.items():
            for each in [pid, *children(pid)]:
                found = usage(each)
                if found is not None:
                    self.samples.setdefault((name, each), []).append(Sample(at, found))
        self.store.append((at, self._store_memory()))


def growth_of(name: str, samples: Sequence[Sample], limit: Limit) -> Growth:
    """Return how a process grew over the second half of its samples."""
    half = samples[len(samples) // 2 :]
    memory = _rise([(s.at, s.usage.memory) for s in half])
    descriptors = _rise([(s.at, s.usage.descriptors) for s in half])
    threads = _rise([(s.at, s.usage.threads) for s in half])
    mean = sum(s.usage.memory for s in half) / len(half)
    judged = half[-1].at - half[0].at >= _LEAST_SECONDS
    flat = (
        memory <= max(limit.bytes, limit.share * mean)
        and descriptors <= limit.descriptors
        and threads <= limit.threads
    )
    return Growth(
        name,
        len(samples),
        half[0].usage,
        half[-1].usage,
        memory,
        descriptors,
        threads,
        judged,
        flat or not judged,
    )


def _rise(points: Sequence[tuple[float, float]]) -> float:
    """Return by how much the best straight line rises from the first to the last point."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return 0.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return slope * (points[-1][0] - points[0][0])


def _name(key: tuple[str, int]) -> str:
    return f"{key[0]} {key[1]}"
