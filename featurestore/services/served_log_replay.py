"""The audit of what was served: every logged answer is computed again and compared (law L4).

First from the tables as they are; what differs, from the tables as they were. What no state of the
tables explains was served wrongly, whether the cause was in the store or on the way.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from featurestore.compile.request import FeaturesArgument, RequestPlan, resolve
from featurestore.errors import NotMaterializedError, RequestError
from featurestore.semantics.timeline import MAX_INSTANT, MIN_INSTANT, to_datetime
from featurestore.services.historical import HistoricalReader
from featurestore.services.served_log_explaining import Explainer, Verdict
from featurestore.services.served_log_history import TableHistory
from featurestore.services.served_log_report import ServedReport
from featurestore.services.served_log_rows import LoggedRows
from featurestore.services.served_log_shape import SERVED_AT, Shape
from featurestore.services.verification_checking import Checker
from featurestore.services.verification_reading import needs, selections
from featurestore.services.verification_report import SHOWN, Difference, Lateness

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.engine import Engine
    from featurestore.ports.registry import ProjectState, Registry, Version
    from featurestore.ports.tables import Tables
    from featurestore.services.on_demand import OnDemandFunctions
    from featurestore.services.served_log_reading import Instant, ServedReader, ServedTable
    from featurestore.services.state import StateCache

__all__ = ["ServedReport", "ServedVerifier"]

GONE_TABLE = "the table of the definition that answered is gone"
GONE_CODE = "the code of the on-demand view that answered is gone"
GONE_DEFINITION = "the definition that answered is no longer known"
# Logged rows that are computed again at once.
_BATCH_ROWS = 50_000


@dataclass
class _Tally:
    """What was found so far."""

    rows: int = 0
    first: int = MAX_INSTANT
    last: int = MIN_INSTANT
    compared: int = 0
    present: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)

    def see(self, rows: pa.RecordBatch) -> None:
        """Count rows."""
        at = rows.column(SERVED_AT).cast("int64").to_numpy()
        self.rows += rows.num_rows
        self.first, self.last = min(self.first, int(at.min())), max(self.last, int(at.max()))


@dataclass(frozen=True)
class _Fixed:
    """Definitions that stay; all that a historical reader asks a state cache for."""

    state: ProjectState

    def get(self) -> ProjectState:
        """Return them."""
        return self.state


class ServedVerifier:
    """Audits what one project has served.

    Args:
        project: The project's name.
        reader: Finds what was logged.
        tables: Hold what was materialized.
        engine: Reads them.
        registry: Knows definitions and runs.
        functions: The functions of on-demand views.
        clock: Tells how long it takes.
        memory_limit: Bytes that a join may use before it spills.
    """

    def __init__(
        self,
        project: str,
        *,
        reader: ServedReader,
        tables: Tables,
        engine: Engine,
        registry: Registry,
        functions: OnDemandFunctions,
        clock: Clock,
        memory_limit: int,
    ) -> None:
        self._project = project
        self._reader = reader
        self._tables = tables
        self._engine = engine
        self._registry = registry
        self._functions = functions
        self._clock = clock
        self._memory_limit = memory_limit

    def verify(
        self,
        features: FeaturesArgument | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        *,
        sample: int | None = None,
        seed: int = 0,
    ) -> ServedReport:
        """Compare what was served in `[since, until)` with what the tables say.

        Args:
            features: A service, its name, or references; None for all that was logged.
            since: The first instant; None without one.
            until: The first instant that is not wanted.
            sample: How many rows to draw; None takes all of them.
            seed: Draws another sample.

        Raises:
            RequestError: Nothing was logged, or nothing could be compared.
        """
        started = self._clock.monotonic()
        found = self._reader.find(features, since, until)
        versions = self._registry.versions(self._project)
        drawn = _Draw(found, sample, seed)
        tally = _Tally()
        for table in found:
            replay = self._replay(table.shape, versions, tally)
            for rows in _gathered(drawn.of(table)):
                tally.see(rows)
                replay(rows)
        if not tally.compared:
            raise _nothing(tally)
        return ServedReport(
            services=tuple(
                dict.fromkeys(t.shape.service or ", ".join(t.shape.references) for t in found)
            ),
            rows=tally.rows,
            first=to_datetime(tally.first),
            last=to_datetime(tally.last),
            compared=tally.compared,
            present=tally.present,
            different=tally.different,
            differences=tuple(tally.differences),
            not_comparable=dict(tally.left_out),
            late={n: Lateness(count, tally.late[n]) for n, count in tally.of.items()},
            seconds=self._clock.monotonic() - started,
        )

    def _replay(self, shape: Shape, versions: Iterable[Version], tally: _Tally) -> Any:
        """Return the function that compares rows of a shape, and counts what cannot be."""
        lost = Counter[str]()
        replay: _Replay | None = None
        try:
            state = shape.state(self._project, versions)
        except NotMaterializedError:
            lost[GONE_DEFINITION] = len(shape.features)
        else:
            replay = self._of_state(shape, state, lost)

        def run(rows: pa.RecordBatch) -> None:
            for reason, values in lost.items():
                tally.left_out[reason] += values * rows.num_rows
            if replay is not None:
                replay.run(rows, tally)

        return run

    def _of_state(self, shape: Shape, state: ProjectState, lost: Counter[str]) -> _Replay | None:
        plan = resolve(state.catalog, state.serving, shape.name, full_feature_names=True)
        histories = {
            join.alias: TableHistory(self._project, join.view, self._tables, self._registry)
            for join in plan.joins
        }
        reasons = {alias: GONE_TABLE for alias, held in histories.items() if not held.exists}
        units = needs(plan)
        stale = {step.plan.name for step in plan.steps if not self._has_code(step.plan)}
        kept = []
        for output in plan.outputs:
            gone = units[output.name] & reasons.keys()
            is_stale = bool(self._steps_of(plan, output.reference.partition(":")[0]) & stale)
            if gone or is_stale:
                lost[GONE_TABLE if gone else GONE_CODE] += 1
            else:
                kept.append(output)
        if not kept:
            return None
        asked = selections(plan, kept)
        part = resolve(state.catalog, state.serving, asked, full_feature_names=True)
        used = {join.alias: histories[join.alias] for join in part.joins}
        return _Replay(self, shape, part, state, used)

    def _has_code(self, plan: Any) -> bool:
        try:
            self._functions.get(plan)
        except NotMaterializedError:
            return False
        return True

    @staticmethod
    def _steps_of(plan: RequestPlan, name: str) -> set[str]:
        """Return an on-demand view and those that it is made from."""
        steps = {step.plan.name: step for step in plan.steps}
        found, waiting = set[str](), [name] if name in steps else []
        while waiting:
            current = waiting.pop()
            found.add(current)
            waiting += [s.view for s in steps[current].plan.inputs if s.view in steps]
        return found

    def historical(self, state: ProjectState, tables: Tables) -> HistoricalReader:
        """Return what computes features by some definitions, over some tables."""
        return HistoricalReader(
            self._project,
            state=cast("StateCache", _Fixed(state)),
            engine=self._engine,
            tables=tables,
            functions=self._functions,
            registry=self._registry,
            clock=self._clock,
            memory_limit=self._memory_limit,
        )

    def checker(
        self,
        plan: RequestPlan,
        historical: HistoricalReader,
        pushed: Mapping[str, int | None],
    ) -> Checker:
        """Return what compares batches with what a reader computes."""
        return Checker(
            plan,
            self._project,
            historical=historical,
            tables=self._tables,
            engine=self._engine,
            pushed=pushed,
            patience=0.0,
            lateness=False,
        )

    def explainer(
        self,
        plan: RequestPlan,
        logged: LoggedRows,
        state: ProjectState,
        histories: Mapping[str, TableHistory],
    ) -> Explainer:
        """Return what explains differences."""
        return Explainer(
            plan,
            logged,
            histories,
            check=lambda historical, pushed: self.checker(plan, historical, pushed),
            historical=lambda tables: self.historical(state, tables),
            tables=self._tables,
            engine=self._engine,
        )

    @property
    def tables(self) -> Tables:
        """The tables as they are."""
        return self._tables


class _Replay:
    """Compares the rows of one shape."""

    def __init__(
        self,
        verifier: ServedVerifier,
        shape: Shape,
        plan: RequestPlan,
        state: ProjectState,
        histories: Mapping[str, TableHistory],
    ) -> None:
        self._logged = LoggedRows(shape, plan)
        self._references = {output.name: output.reference for output in plan.outputs}
        self._checker = verifier.checker(plan, verifier.historical(state, verifier.tables), {})
        self._explainer = verifier.explainer(plan, self._logged, state, histories)

    def run(self, rows: pa.RecordBatch, tally: _Tally) -> None:
        """Compare rows; what they differ in is explained or counted."""
        import pyarrow as pa

        for places in self._logged.groups(rows):
            part = rows.take(pa.array(places))
            batch = self._logged.batch(part)
            found = self._checker.check(batch)
            tally.compared += found.compared
            tally.present += found.present
            tally.left_out.update(found.left_out)
            for reference in self._references.values():
                tally.of[reference] += part.num_rows
            for verdict in self._explainer.explain(part, found.differing):
                self._count(verdict, batch, tally)

    def _count(self, verdict: Verdict, batch: Any, tally: _Tally) -> None:
        if verdict.kind == "late":
            tally.late[self._references[verdict.difference.name]] += 1
        elif verdict.kind == "unknown":
            tally.compared -= 1
            tally.left_out[verdict.reason] += 1
        else:
            tally.different += 1
            if len(tally.differences) < SHOWN:
                tally.differences.append(self._checker.difference(batch, verdict.difference))


class _Draw:
    """Which rows are looked at: all, or some that are drawn over all tables."""

    def __init__(self, tables: list[ServedTable], sample: int | None, seed: int) -> None:
        self._chosen: dict[str, Any] | None = None
        if sample is None:
            return
        counts = [sum(b.num_rows for b in table.batches([SERVED_AT])) for table in tables]
        total = sum(counts)
        drawn = random.Random(seed).sample(range(total), min(sample, total))  # noqa: S311
        places = np.sort(np.array(drawn, dtype=np.int64))
        firsts = np.cumsum([0, *counts])
        self._chosen = {
            table.shape.id: places[(places >= first) & (places < last)] - first
            for table, first, last in zip(tables, firsts[:-1], firsts[1:], strict=True)
        }

    def of(self, table: ServedTable) -> Iterator[pa.RecordBatch]:
        """Yield the chosen rows of a table."""
        import pyarrow as pa

        first = 0
        for batch in table.batches():
            last = first + batch.num_rows
            if self._chosen is None:
                yield batch
            else:
                places = self._chosen[table.shape.id]
                here = places[(places >= first) & (places < last)] - first
                yield batch.take(pa.array(here))
            first = last


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of about so many rows that a join is worth its while."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    for batch in batches:
        held += [batch] if batch.num_rows else []
        if sum(each.num_rows for each in held) >= _BATCH_ROWS:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def _nothing(tally: _Tally) -> RequestError:
    reasons = "; ".join(f"{count} values: {reason}" for reason, count in tally.left_out.items())
    return RequestError(
        "Nothing was compared.",
        got=reasons or f"{tally.rows} rows",
        allowed="answers whose definitions and tables are still there",
        hint="Ask for a later time.",
    )
