"""Runs: begun, finished, failed, and told dead when their process is gone (law M4)."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from typing import TYPE_CHECKING

from featurestore.ports.registry import Run

if TYPE_CHECKING:
    from featurestore.clock import Clock
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.registry import Registry

_active: set[str] = set()
_lock = threading.Lock()


class RunLog:
    """Writes the runs of one project.

    Args:
        project: The project.
        registry: Where runs are kept.
        clock: Tells when they begin and end.
    """

    def __init__(self, project: str, registry: Registry, clock: Clock) -> None:
        self._project = project
        self._registry = registry
        self._clock = clock

    def begin(
        self, view: ViewPlan, kind: str, start_us: int | None, end_us: int | None, attempt: int
    ) -> Run:
        """Record a run of this process as running; runs of dead processes become failed."""
        self.bury_dead()
        run = Run(
            id=uuid.uuid4().hex,
            view=view.name,
            table_fingerprint=view.table_fingerprint,
            kind=kind,
            start_us=start_us,
            end_us=end_us,
            started_at_us=self._clock.now_us(),
            host=socket.gethostname(),
            pid=os.getpid(),
            attempt=attempt,
        )
        with _lock:
            _active.add(run.id)
        self._registry.save_run(self._project, run)
        return run

    def finish(self, run: Run, error: BaseException | None = None) -> Run:
        """Record a run's end: succeeded, or failed with the reason."""
        reason = None
        if error is not None:
            first = (str(error) or "stopped").split("\n")[0]
            reason = f"{type(error).__name__}: {first}"
        done = run.model_copy(
            update={
                "state": "failed" if error is not None else "succeeded",
                "finished_at_us": self._clock.now_us(),
                "error": reason,
            }
        )
        try:
            self._registry.save_run(self._project, done)
        finally:
            # Not before: while it is told as running, another thread would take it for dead.
            with _lock:
                _active.discard(run.id)
        return done

    def bury_dead(self) -> None:
        """Mark runs of this host as failed whose process died without a word."""
        for run in self._registry.runs(self._project, state="running"):
            if is_dead(run):
                self._registry.bury_run(
                    self._project,
                    run.model_copy(
                        update={
                            "state": "failed",
                            "finished_at_us": self._clock.now_us(),
                            "error": f"the process {run.pid} died in mid-run",
                        }
                    ),
                )

    def is_over(self, run_id: str) -> bool:
        """Whether a run that left its mark in a ledger no longer works on it."""
        running = self._registry.runs(self._project, state="running", limit=10_000)
        found = next((run for run in running if run.id == run_id), None)
        return found is None or is_dead(found)


def is_dead(run: Run) -> bool:
    """Whether a running run's process is gone, as far as this host can tell."""
    if run.host != socket.gethostname():
        return False
    if run.pid == os.getpid():
        with _lock:
            return run.id not in _active
    try:
        os.kill(run.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
