"""Verification: what is served online is computed again from the tables and compared (laws V1, V2).

Entities are asked for online at given instants; a training set of the same rows, made from what had
been applied when the answer was given and nothing else, must hold the same bits. A row that differs
is asked for again, since tables and online store may have changed in between; what then still
differs is a bug. Late data is none: how much it changed is told apart.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.compile.request import FeaturesArgument, Join, RequestPlan, resolve
from featurestore.errors import RequestError
from featurestore.model.declarations import FeatureService
from featurestore.semantics.timeline import to_datetime
from featurestore.services import verification_entities as entities_of
from featurestore.services.columns import InputRows
from featurestore.services.verification_checking import Checker, Finding
from featurestore.services.verification_reading import Ask, Batch, Questioner
from featurestore.services.verification_report import (
    SHOWN,
    Difference,
    Lateness,
    VerificationReport,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.clock import Clock
    from featurestore.ports.engine import Engine
    from featurestore.ports.registry import Ledger, Registry
    from featurestore.ports.tables import Tables
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.state import StateCache

    Int64s = npt.NDArray[np.int64]

# Entity rows that are computed again at once: enough to make a join worth its while.
_BATCH_ROWS = 50_000
_ROUNDS = 2
_PAUSE_SECONDS = 0.2
_BEING_WRITTEN = "a run has written a table and not pushed it yet"


@dataclass
class _Tally:
    """What was found so far."""

    compared: int = 0
    present: int = 0
    different: int = 0
    differences: list[Difference] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    late: dict[str, Counter[str]] = field(default_factory=dict)


class Verifier:
    """Verifies what one project serves.

    Args:
        project: The project's name.
        state: The applied definitions.
        ask: `get_online_features` in this process.
        historical: Computes features again.
        tables: Hold what was applied.
        engine: Reads them.
        registry: Tells which runs are going on.
        clock: Tells now.
        patience_seconds: How long to wait for the tables to hold what had been applied online.
    """

    def __init__(
        self,
        project: str,
        *,
        state: StateCache,
        ask: Ask,
        historical: HistoricalReader,
        tables: Tables,
        engine: Engine,
        registry: Registry,
        clock: Clock,
        patience_seconds: float = 10.0,
    ) -> None:
        self._project = project
        self._state = state
        self._ask = ask
        self._historical = historical
        self._tables = tables
        self._engine = engine
        self._registry = registry
        self._clock = clock
        self._patience = patience_seconds

    def verify(
        self,
        features: FeaturesArgument,
        *,
        sample: int | None = None,
        entities: Any = None,
        as_of: Sequence[int] = (),
        seed: int = 0,
        ask: Ask | None = None,
    ) -> VerificationReport:
        """Compare what is served with what the tables say.

        Args:
            features: A service, its name, or a list of `view:feature` references.
            sample: How many keys of each view to draw from its table; None takes all of them.
            entities: Instead: a Parquet or CSV file, or a table, with the join keys, and the
                fields of on-demand views where they are not to be made up.
            as_of: The instants, microseconds; none at all is now.
            seed: Draws another sample.
            ask: `get_online_features` of a client; without one, this process is asked.

        Raises:
            RequestError: Nothing could be compared, or an argument makes no sense.
            ConflictError: A server answers by other definitions.
        """
        started = self._clock.monotonic()
        if sample is not None and entities is not None:
            raise RequestError("Entities are either drawn or given.", got="sample and entities")
        instants = list(dict.fromkeys(as_of)) or [self._clock.now_us()]
        state = self._state.get()
        plan = resolve(state.answering, state.serving, features, full_feature_names=True)
        rows = self._rows(plan, sample, entities, instants[0], seed)
        questioner = Questioner(plan, features, ask or self._ask)
        checker = self._checker(plan)
        tally = _Tally()
        for batch in _batches(rows, instants):
            self._verify_batch(batch, questioner, checker, tally)
        count = len(next(iter(rows.values()))) if rows else 1
        if not tally.compared:
            raise _nothing(tally, count)
        return VerificationReport(
            features=_named(features),
            entities=count,
            instants=tuple(to_datetime(instant) for instant in instants),
            compared=tally.compared,
            present=tally.present,
            different=tally.different,
            differences=tuple(tally.differences),
            not_comparable=dict(tally.left_out),
            late={n: Lateness(c["compared"], c["changed"]) for n, c in tally.late.items()},
            seconds=self._clock.monotonic() - started,
        )

    def _checker(self, plan: RequestPlan) -> Checker:
        return Checker(
            plan,
            self._project,
            historical=self._historical,
            tables=self._tables,
            engine=self._engine,
            pushed={j.alias: self._ledger(j).pushed_until_us for j in plan.joins},
            patience=self._patience,
        )

    def _rows(
        self, plan: RequestPlan, sample: int | None, entities: Any, as_of: int, seed: int
    ) -> dict[str, pa.Array]:
        """Return the columns of join keys and request fields."""
        keys: dict[str, pa.Array]
        if entities is None:
            given = None
            keys = entities_of.from_tables(
                plan,
                self._project,
                tables=self._tables,
                engine=self._engine,
                sample=sample,
                seed=seed,
            )
            rows = len(next(iter(keys.values()))) if keys else 1
        else:
            given = entities_of.from_caller(entities, self._engine)
            rows = given.rows
            keys = {
                name: given.key(name, key.type, "the features") for name, key in plan.key_columns
            }
        made = entities_of.made_up(plan.request_fields, rows, as_of, seed)
        fields = {}
        for column in plan.request_fields:
            is_given = given is not None and column.name in given.columns
            source = given if given is not None and is_given else InputRows(made, rows, "request")
            fields[column.name] = source.column(
                column.name, column.type, "the features", rounding=True
            )
        return {**keys, **fields}

    def _verify_batch(
        self, batch: Batch, questioner: Questioner, checker: Checker, tally: _Tally
    ) -> None:
        questioner.fill(batch)
        tally.left_out.update(batch.refused)
        for part in checker.parts(batch):
            found = checker.check(part)
            tally.compared += found.compared
            tally.present += found.present
            tally.left_out.update(found.left_out)
            for name, counts in found.late.items():
                tally.late.setdefault(name, Counter()).update(counts)
            self._settle(part, found, questioner, checker, tally)

    def _settle(
        self,
        batch: Batch,
        found: Finding,
        questioner: Questioner,
        checker: Checker,
        tally: _Tally,
    ) -> None:
        """Ask again for the rows that differ; count what still does."""
        for _ in range(_ROUNDS):
            if not found.differing:
                return
            threading.Event().wait(_PAUSE_SECONDS)
            batch = batch.take(np.array(sorted({d.place for d in found.differing})))
            questioner.fill(batch)
            found = checker.check_all(batch)
        is_written = any(self._ledger(join).open_runs for join in checker.plan.joins)
        for different in found.differing:
            # The table of a run that goes on is ahead of what the run has pushed.
            reason = _BEING_WRITTEN if is_written else different.reason
            if reason is not None:
                tally.compared -= 1
                tally.left_out[reason] += 1
                continue
            tally.different += 1
            if len(tally.differences) < SHOWN:
                tally.differences.append(checker.difference(batch, different))

    def _ledger(self, join: Join) -> Ledger:
        view = join.view
        return self._registry.ledger(self._project, view.name, view.table_fingerprint)


def _batches(rows: dict[str, pa.Array], instants: Sequence[int]) -> Any:
    """Yield all rows at all instants, some at a time."""
    count = len(next(iter(rows.values()))) if rows else 1
    total = count * len(instants)
    moments = np.array(instants, dtype=np.int64)
    whole = Batch(rows, np.zeros(count, dtype=np.int64))
    for first in range(0, total, _BATCH_ROWS):
        places = np.arange(first, min(first + _BATCH_ROWS, total))
        part = whole.take(places % count)
        part.instants = moments[places // count]
        yield part


def _named(features: FeaturesArgument) -> str:
    if isinstance(features, str):
        return features
    return features.name if isinstance(features, FeatureService) else ", ".join(map(str, features))


def _nothing(tally: _Tally, rows: int) -> RequestError:
    reasons = "; ".join(f"{count} values: {reason}" for reason, count in tally.left_out.items())
    return RequestError(
        "Nothing was compared.",
        got=reasons or f"{rows} entities",
        allowed="an entity with a feature that the online store can answer for",
        hint="Materialize first, name entities, or ask for an instant that is not before the rows"
        " that are kept online.",
    )
