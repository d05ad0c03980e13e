"""What a verification computes again, and where it differs from what was answered (laws V1, V2).

A windowed view is computed from the rows of its log that had been applied to the entity when it
answered: those at or below the positions that the answer names. Where an entity was asked for at
several instants and more had been applied in between, its answers are checked apart.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.compile import applied_sql
from featurestore.compile.plan import table_id
from featurestore.semantics.timeline import to_datetime
from featurestore.services.comparison import differing
from featurestore.services.verification_reading import Answer, Batch, needs
from featurestore.services.verification_report import Difference

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.compile.request import Join, RequestPlan
    from featurestore.ports.engine import Engine
    from featurestore.ports.tables import Tables
    from featurestore.services.historical import HistoricalReader

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

INSTANT = "_as_of"
BEHIND = "the table does not hold yet what was applied online (materialize-incremental adds it)"
AHEAD = "the table has rows that have come of age since the last run pushed"
_STATUSES = ("", "PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE")
_PRESENT, _NULL, _NOT_FOUND, _TOO_OLD = 1, 2, 3, 4
_PAUSE_SECONDS = 0.25


@dataclass(frozen=True)
class Different:
    """A value that differs: its row in the batch, its column, and what was found there.

    Attributes:
        reason: Why that may be no mistake: table and online store were not as far as each other.
    """

    place: int
    name: str
    online: Any
    offline: Any
    online_status: str
    offline_status: str
    reason: str | None = None


@dataclass
class Finding:
    """What became of a batch."""

    compared: int = 0
    present: int = 0
    differing: list[Different] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    late: dict[str, Counter[str]] = field(default_factory=dict)


class Checker:
    """Computes batches again.

    Args:
        plan: The request, resolved under full feature names.
        project: The project's name.
        historical: Makes training sets.
        tables: Hold what was applied.
        engine: Reads them.
        pushed: {alias of a plain view: up to when its rows were pushed; None for never}.
        patience: Seconds to wait for a table to hold what was applied.
        lateness: Whether to compare with what was known at the time, too.
    """

    def __init__(
        self,
        plan: RequestPlan,
        project: str,
        *,
        historical: HistoricalReader,
        tables: Tables,
        engine: Engine,
        pushed: Mapping[str, int | None],
        patience: float,
        lateness: bool = True,
    ) -> None:
        self.plan = plan
        self._project = project
        self._historical = historical
        self._tables = tables
        self._engine = engine
        # States hold events that are dated ahead: windows see them when their time has come.
        self._pushed = {j.alias: pushed.get(j.alias) for j in plan.joins if not j.view.aggregates}
        self._live = {join.alias for join in plan.joins if join.view.source.stream}
        self._waits = max(1, round(patience / _PAUSE_SECONDS))
        self._needed = needs(plan)
        self._references = {output.name: output.reference for output in plan.outputs}
        self._ttls = {join.alias: join.view.ttl_us for join in plan.joins}
        self._streamed = [j for j in plan.joins if j.view.aggregates and j.view.source.stream]
        told = {j.alias for j in plan.joins if lateness and j.view.source.tells_created}
        self._told = [o.name for o in plan.outputs if self._needed[o.name] & told]

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """Return the batch, or each of its answers apart where positions moved between them."""
        if not batch.answers:
            return
        if all(applied_sql.is_one(self._positions(join, batch)) for join in self._streamed):
            yield batch
            return
        for answer in batch.answers:
            part = batch.take(answer.places)
            part.answers = [Answer(np.arange(part.rows), answer.response)]
            yield part

    def check_all(self, batch: Batch) -> Finding:
        """Return what differs of a batch, whatever has moved."""
        found = Finding()
        for answer in batch.answers:
            part = batch.take(answer.places)
            part.answers = [Answer(np.arange(part.rows), answer.response)]
            here = self.check(part)
            places = answer.places.tolist()
            found.differing += [replace(d, place=places[d.place]) for d in here.differing]
        return found

    def check(self, batch: Batch) -> Finding:
        """Compute a batch again and compare."""
        found = Finding()
        applied = {join.alias: self._positions(join, batch) for join in self._streamed}
        behind = {join.alias: self._behind(join, batch) for join in self._streamed}
        healed = self._training_set(batch, applied, "healed")
        for answer in batch.answers:
            self._compare(answer, batch, healed, behind, found)
        if self._told:
            self._compare_knowledge(
                batch, healed, self._training_set(batch, applied, "known"), found
            )
        return found

    def difference(self, batch: Batch, different: Different) -> Difference:
        """Return a difference as a report has it."""
        keys = dict(self.plan.key_columns)
        place = different.place
        return Difference(
            reference=self._references[different.name],
            entity={name: batch.columns[name][place].as_py() for name in keys},
            as_of=to_datetime(int(batch.instants[place])),
            online=different.online,
            offline=different.offline,
            online_status=different.online_status,
            offline_status=different.offline_status,
        )

    def _training_set(self, batch: Batch, applied: dict[str, pa.Table], knowledge: Any) -> pa.Table:
        import pyarrow as pa

        instants = pa.array(batch.instants, pa.timestamp("us", tz="UTC"))
        job = self._historical.get_historical_features(
            pa.table({**batch.columns, INSTANT: instants}),
            self._features(),
            timestamp_column=INSTANT,
            knowledge=knowledge,
            full_feature_names=True,
            include_timestamps=True,
            applied={alias: applied_sql.limits(wanted) for alias, wanted in applied.items()},
        )
        return job.to_arrow().combine_chunks()

    def _features(self) -> Any:
        from featurestore.services.verification_reading import selections

        return self.plan.service or selections(self.plan, self.plan.outputs)

    def _compare(
        self,
        answer: Answer,
        batch: Batch,
        healed: pa.Table,
        behind: dict[str, Bools],
        found: Finding,
    ) -> None:
        import pyarrow as pa

        index, response = pa.array(answer.places), answer.response
        rows = {
            source.alias: self._statuses(source.alias, block, answer.places, batch, healed)
            for source, block in zip(response.layout.sources, response.blocks, strict=True)
        }
        for feature in response.layout.features:
            source = response.layout.sources[feature.source].alias
            online = response.column(feature.name)
            offline = healed.column(feature.name).combine_chunks().take(index)
            codes, wanted, wrong, _ = rows[source]
            reasons = [rows[alias][3] for alias in sorted(self._needed[feature.name] & rows.keys())]
            skipped = self._skipped(feature.name, answer, behind)
            different = (differing(online, offline) | wrong) & ~skipped
            found.left_out[BEHIND] += int(skipped.sum())
            found.compared += int((~skipped).sum())
            found.present += int((~skipped & _valid(online)).sum())
            found.differing += [
                Different(
                    int(answer.places[row]),
                    feature.name,
                    _plain(online[row]),
                    _plain(offline[row]),
                    _status(int(codes[row]), online[row]),
                    _status(int(wanted[row]), offline[row]),
                    next((found[row] for found in reasons if row in found), None),
                )
                for row in np.flatnonzero(different).tolist()
            ]
        found.left_out = +found.left_out

    def _skipped(self, name: str, answer: Answer, behind: dict[str, Bools]) -> Bools:
        """Return the rows for which a column's tables cannot answer yet."""
        result = np.zeros(len(answer.places), dtype=bool)
        for alias in self._needed[name] & behind.keys():
            result |= behind[alias][answer.places]
        return result

    def _statuses(
        self, alias: str, block: Any, places: Int64s, batch: Batch, healed: pa.Table
    ) -> tuple[Any, Any, Bools, dict[int, str]]:
        """Return of each row the status of its view online and offline, and whether they clash.

        The last one is {row: why it may differ without a mistake}.
        """
        if not block.statuses:
            # What an on-demand view gives has a value or has none.
            codes = np.full(len(places), _PRESENT)
            return codes, codes, np.zeros(len(places), dtype=bool), {}
        codes = np.frombuffer(block.statuses, dtype=np.uint8).astype(np.int64)
        events = np.frombuffer(block.events, dtype="<i8")
        column = healed.column(f"{alias}__event_timestamp").combine_chunks()
        matched = _valid(column)[places]
        instants = column.cast("int64").fill_null(0).to_numpy()[places]
        ttl = self._ttls[alias]
        kept = codes != _NOT_FOUND
        expired = kept & (ttl is not None) & (batch.instants[places] - events > (ttl or 0))
        # An expired row is told as such until it is collected; then there is none.
        wanted = np.where(matched, _PRESENT, np.where(expired, _TOO_OLD, _NOT_FOUND))
        here = np.where(codes == _NULL, _PRESENT, codes)
        reasons: dict[int, str] = {}
        if alias in self._live:
            newer = kept & (~matched | (events > instants))
            reasons |= dict.fromkeys(np.flatnonzero(newer).tolist(), BEHIND)
        pushed = self._pushed.get(alias)
        if pushed is not None:
            reasons |= dict.fromkeys(np.flatnonzero(matched & (instants > pushed)).tolist(), AHEAD)
        return codes, wanted, (here != wanted) | (matched & (events != instants)), reasons

    def _compare_knowledge(
        self, batch: Batch, healed: pa.Table, known: pa.Table, found: Finding
    ) -> None:
        import pyarrow as pa

        index = pa.array(np.unique(np.concatenate([a.places for a in batch.answers])))
        for name in self._told:
            now = healed.column(name).combine_chunks().take(index)
            then = known.column(name).combine_chunks().take(index)
            counts = found.late.setdefault(self._references[name], Counter())
            counts["compared"] += len(index)
            counts["changed"] += int(differing(now, then).sum())

    def _positions(self, join: Join, batch: Batch) -> pa.Table:
        """Return what had been applied of a view's stream: keys, partition, position, place."""
        import pyarrow as pa

        parts = []
        answers = [(a, _block(a, join.alias)) for a in batch.answers]
        names = sorted({name for _, block in answers if block for name in block.applied})
        for answer, block in answers:
            if block is None:
                continue
            keys = [batch.columns[c].take(pa.array(answer.places)) for c in join.key_columns]
            for name in names:
                held = block.applied.get(name)
                positions = (
                    np.frombuffer(held, dtype="<i8")
                    if held
                    else np.full(len(answer.places), -1, dtype=np.int64)
                )
                parts.append(applied_sql.positions(keys, name, positions, answer.places))
        return pa.concat_tables(parts) if parts else applied_sql.no_positions(join)

    def _behind(self, join: Join, batch: Batch) -> Bools:
        """Return which rows a view's table cannot answer for yet, after waiting a while."""
        result = np.zeros(batch.rows, dtype=bool)
        wanted = self._positions(join, batch)
        places = np.zeros(0, dtype=np.int64)
        for _ in range(self._waits):
            files = self._tables.snapshot(table_id(self._project, join.view)).files
            with self._engine.session() as session:
                session.register(applied_sql.WANTED, wanted)
                paths = [file.path for file in files]
                places = session.fetch(applied_sql.behind(join, paths))["place"].to_numpy()
            if not len(places):
                return result
            threading.Event().wait(_PAUSE_SECONDS)
        result[places] = True
        return result


def _block(answer: Answer, alias: str) -> Any:
    response = answer.response
    pairs = zip(response.layout.sources, response.blocks, strict=True)
    return next((block for source, block in pairs if source.alias == alias), None)


def _valid(column: pa.Array) -> Bools:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)


def _plain(value: pa.Scalar) -> Any:
    import pyarrow as pa

    return value.as_py(maps_as_pydicts="strict") if pa.types.is_map(value.type) else value.as_py()


def _status(code: int, value: pa.Scalar) -> str:
    return _STATUSES[_NULL if code == _PRESENT and not value.is_valid else code]
