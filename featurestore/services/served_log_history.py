"""What a view's table had pushed online when an answer was given (law L4).

Each version of a table was committed by a run, and a run that succeeds has pushed what it committed
and whatever runs before it had left. So of each instant it is known which version was online at the
least, and which at the most; they differ only while runs were going on, or had failed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.compile.plan import table_id
from featurestore.ports.tables import TableSnapshot

if TYPE_CHECKING:
    from featurestore.compile.plan import ViewPlan
    from featurestore.ports.registry import Registry, Run
    from featurestore.ports.tables import Tables

_ALL_RUNS = 1_000_000


@dataclass(frozen=True)
class Epoch:
    """What was online at one time, as far as runs tell.

    Attributes:
        low: The version of the table that was surely online, -1 for none.
        high: The newest one that may have been.
        horizon: Rows up to this instant had come of age when a run pushed; None before the first.
    """

    low: int
    high: int
    horizon: int | None

    @property
    def is_exact(self) -> bool:
        """Whether no run was between its commit and its end."""
        return self.low == self.high


class TableHistory:
    """The versions of a view's table and the runs that made them.

    Args:
        project: The project.
        view: The view.
        tables: Hold the table.
        registry: Holds the runs.
    """

    def __init__(self, project: str, view: ViewPlan, tables: Tables, registry: Registry) -> None:
        self.table_id = table_id(project, view)
        self._tables = tables
        self.newest = tables.snapshot(self.table_id)
        known = registry.runs(project, view.name, limit=_ALL_RUNS)
        runs = [run for run in known if run.table_fingerprint == view.table_fingerprint]
        self._runs = {run.id: run for run in runs}
        self._done = [run for run in runs if run.state == "succeeded"]
        self._ledger = registry.ledger(project, view.name, view.table_fingerprint)
        versions = reversed(tables.history(self.table_id))
        self._versions = [(v.version, self._runs.get(v.metadata.get("run", ""))) for v in versions]
        stamps = {run.started_at_us for run in runs}
        self._stamps = sorted(stamps | {r.finished_at_us for r in runs if r.finished_at_us})
        self._epochs: dict[tuple[int, int], Epoch] = {}
        self._snapshots: dict[int, TableSnapshot | None] = {}

    @property
    def exists(self) -> bool:
        """Whether the table is still kept; one without any rows has a ledger all the same."""
        return self.newest.version >= 0 or self._ledger.version > 0

    def epoch(self, asked: int, served: int) -> Epoch:
        """Return what was online for a call that came and was answered at these instants."""
        key = bisect_right(self._stamps, asked), bisect_right(self._stamps, served)
        # Between two stamps nothing begins or ends.
        if key not in self._epochs:
            self._epochs[key] = self._make(asked, served)
        return self._epochs[key]

    def snapshot(self, version: int) -> TableSnapshot | None:
        """Return the table at a version, None where some of its files are gone."""
        if version not in self._snapshots:
            self._snapshots[version] = self._load(version)
        return self._snapshots[version]

    def since(self, version: int) -> list[str]:
        """Return the files that the table has now and had not at a version."""
        former = self._at(version)
        known = {file.path for file in former.files}
        return [file.path for file in self.newest.files if file.path not in known]

    def _make(self, asked: int, served: int) -> Epoch:
        low = high = -1
        is_settled = True
        for version, run in self._versions:
            if run is None or run.started_at_us > served:
                break
            high = version
            is_settled = is_settled and self._is_settled(run, asked)
            low = version if is_settled else low
        ends = [run.started_at_us for run in self._done if (run.finished_at_us or 0) <= asked]
        return Epoch(low, high, max(ends, default=None))

    def _is_settled(self, run: Run, asked: int) -> bool:
        """Whether all that a run committed had been pushed."""
        end = run.finished_at_us
        if run.state == "succeeded" and end is not None and end <= asked:
            return True
        return end is not None and any(
            other.started_at_us >= end and (other.finished_at_us or 0) <= asked
            for other in self._done
        )

    def _load(self, version: int) -> TableSnapshot | None:
        if version == self.newest.version:
            return self.newest
        found = self._at(version)
        return found if all(Path(file.path).is_file() for file in found.files) else None

    def _at(self, version: int) -> TableSnapshot:
        if version < 0:
            return TableSnapshot(self.table_id, -1)
        return self._tables.at(self.table_id, version)
