"""Which processor a worker keeps to, where each is to have its own.

Threads of one interpreter take turns. On several processors each turn wakes another processor and
finds its caches cold; on one, half of that cost is gone. Processes that share the machine with
others had better stay free: this is for those who ask for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from featurestore.errors import SettingsError


def processors() -> Sequence[int]:
    """Return the processors that this process may use, in order.

    Raises:
        SettingsError: This system does not let processes choose.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise SettingsError(
            "Workers cannot keep to processors here.",
            where="serve --pin",
            allowed="Linux",
            hint="Leave --pin out.",
        )
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, processors: Collection[int]) -> None:
    """Keep all threads of a process, and those that they start, to some processors.

    A process that has ended is left alone.
    """
    tasks, done = Path(f"/proc/{pid}/task"), set[str]()
    with contextlib.suppress(OSError):
        # Those that were started meanwhile, by a thread that was free yet, are there next time.
        while found := {task.name for task in tasks.iterdir()} - done:
            for task in found:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task), processors)
            done |= found
