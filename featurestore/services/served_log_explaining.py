"""Whether the tables as they were explain a served value that they would not give now (law L4).

Rows come late, and versions of rows: what was served was right when it follows from what had been
pushed by then. So what differs is computed again from the versions of the tables of that time. Only
where these are gone, or a run was going on, is it asked what the table ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from featurestore.compile import served_sql
from featurestore.services.comparison import differing
from featurestore.services.lossless import exact
from featurestore.services.served_log_history import Epoch, TableHistory
from featurestore.services.served_log_shape import ASKED_AT, SERVED_AT
from featurestore.services.verification_checking import Checker, Different
from featurestore.services.verification_reading import needs

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.compile.request import Join, RequestPlan
    from featurestore.ports.engine import Engine
    from featurestore.ports.tables import Tables, TableSnapshot
    from featurestore.services.historical import HistoricalReader
    from featurestore.services.served_log_rows import LoggedRows

    Int64s = npt.NDArray[np.int64]

LATE = "late"
FILES_GONE = "the files that the table consisted of are gone"
RUNNING = "a run was going on when it was served"
HISTORY = "rows of the source's history came after it was served"
LIVE = "the table cannot tell any more which live rows were online"

MakeHistorical = Callable[["Tables"], "HistoricalReader"]


class Verdict(NamedTuple):
    """What became of a value: late data explains it, it cannot be told (why), or it is wrong."""

    kind: Literal["late", "unknown", "wrong"]
    reason: str
    difference: Different


class Found(NamedTuple):
    """Values of some rows that are still open, and what was known of their views' tables."""

    places: Int64s
    open: dict[tuple[int, str], Different]
    epochs: Mapping[str, Epoch]
    gone: frozenset[str]


class Explainer:
    """Explains differences of one shape.

    Args:
        plan: The request.
        logged: Reads logged rows.
        histories: The tables of the views, by alias.
        check: Makes a checker of (historical reader, {alias: up to when rows had come of age}).
        historical: Makes a reader over tables.
        tables: Hold the rows.
        engine: Reads them.
    """

    def __init__(
        self,
        plan: RequestPlan,
        logged: LoggedRows,
        histories: Mapping[str, TableHistory],
        *,
        check: Callable[[HistoricalReader, Mapping[str, int | None]], Checker],
        historical: MakeHistorical,
        tables: Tables,
        engine: Engine,
    ) -> None:
        self._logged = logged
        self._histories = histories
        self._check = check
        self._historical = historical
        self._tables = tables
        self._engine = engine
        self._joins = {join.alias: join for join in plan.joins}
        self._needed = needs(plan)
        self._sources = {o.name: o.reference.partition(":")[0] for o in plan.outputs}

    def explain(self, rows: pa.RecordBatch, different: Sequence[Different]) -> Iterator[Verdict]:
        """Yield a verdict on each difference.

        Args:
            rows: The logged rows.
            different: Where they differ from what the tables would give now.
        """
        wanted = {(each.place, each.name): each for each in different}
        for places, epochs in self._by_epoch(rows, sorted({place for place, _ in wanted})):
            chosen = set(places.tolist())
            held = {key: each for key, each in wanted.items() if key[0] in chosen}
            found = self._compare(rows, places, held, epochs)
            for key in held.keys() - found.open.keys():
                yield Verdict("late", LATE, held[key])
            yield from self._judge(rows, found)

    def _by_epoch(
        self, rows: pa.RecordBatch, places: Sequence[int]
    ) -> Iterator[tuple[Int64s, Mapping[str, Epoch]]]:
        """Yield places for which the tables were the same."""
        asked = rows.column(ASKED_AT).cast("int64").to_numpy()
        served = rows.column(SERVED_AT).cast("int64").to_numpy()
        groups: dict[tuple[Epoch, ...], list[int]] = {}
        for place in places:
            key = tuple(
                history.epoch(int(asked[place]), int(served[place]))
                for history in self._histories.values()
            )
            groups.setdefault(key, []).append(place)
        for epochs, chosen in groups.items():
            yield np.array(chosen), dict(zip(self._histories, epochs, strict=True))

    def _compare(
        self,
        rows: pa.RecordBatch,
        places: Int64s,
        wanted: dict[tuple[int, str], Different],
        epochs: Mapping[str, Epoch],
    ) -> Found:
        """Compute rows again from the tables of their time; return what still differs."""
        import pyarrow as pa

        batch = self._logged.batch(rows.take(pa.array(places)))
        left, gone = dict(wanted), set[str]()
        highs = {alias: epoch.high for alias, epoch in epochs.items()}
        lows = {alias: epoch.low for alias, epoch in epochs.items()}
        for versions in [highs] if highs == lows else [highs, lows]:
            pinned: dict[str, TableSnapshot] = {}
            for alias, version in versions.items():
                snapshot = (
                    None if self._is_live(alias) else self._histories[alias].snapshot(version)
                )
                if snapshot is not None:
                    pinned[snapshot.table_id] = snapshot
                elif not self._is_live(alias):
                    gone.add(alias)
            horizons = {a: e.horizon for a, e in epochs.items() if not self._is_live(a)}
            checker = self._check(self._historical(_pinned(self._tables, pinned)), horizons)
            again = {
                (int(places[each.place]), each.name): replace(each, place=int(places[each.place]))
                for each in checker.check_all(batch).differing
            }
            left = {key: again[key] for key in left if key in again}
            if not left:
                break
        return Found(places, left, epochs, frozenset(gone))

    def _judge(self, rows: pa.RecordBatch, found: Found) -> Iterator[Verdict]:
        stood = self._stood(rows, found)
        history = self._with_history(rows, found)
        for (place, name), different in found.open.items():
            if different.reason is not None:
                yield Verdict("unknown", different.reason, different)
                continue
            doubts = self._doubts(place, name, found, history)
            if not doubts:
                yield Verdict("wrong", "", different)
            elif self._sources[name] in self._joins and not self._is_windowed(self._sources[name]):
                yield self._judge_row(different, doubts[0], (place, self._sources[name]) in stood)
            else:
                yield Verdict("unknown", doubts[0], different)

    @staticmethod
    def _judge_row(different: Different, doubt: str, has_stood: bool) -> Verdict:  # noqa: FBT001
        """Judge a row of a plain view: what was served must have stood in the table."""
        if different.online_status == "NOT_FOUND":
            return Verdict("unknown", doubt, different)
        return Verdict("late" if has_stood else "wrong", LATE, different)

    def _doubts(
        self, place: int, name: str, found: Found, history: Mapping[str, set[int]]
    ) -> list[str]:
        """Return why the tables cannot tell for sure what had been online."""
        doubts = []
        for alias in sorted(self._needed[name]):
            if self._is_live(alias):
                if not self._is_windowed(alias):
                    doubts.append(LIVE)
                elif place in history.get(alias, ()):
                    doubts.append(HISTORY)
            elif alias in found.gone:
                doubts.append(FILES_GONE)
            elif not found.epochs[alias].is_exact:
                doubts.append(RUNNING)
        return doubts

    def _stood(self, rows: pa.RecordBatch, found: Found) -> set[tuple[int, str]]:
        """Return (place, alias) of served rows of plain views that are versions in the table."""
        sources = {self._sources[name] for _, name in found.open}
        result = set()
        for alias in sorted(sources & self._joins.keys()):
            if not self._is_windowed(alias) and self._histories[alias].newest.files:
                result |= {(place, alias) for place in self._standing(rows, alias, found)}
        return result

    def _standing(self, rows: pa.RecordBatch, alias: str, found: Found) -> set[int]:
        import pyarrow as pa

        join = self._joins[alias]
        events = self._logged.events(rows, alias)
        open_places = sorted({place for place, name in found.open if self._sources[name] == alias})
        places = np.array([place for place in open_places if events[place].is_valid], np.int64)
        part = rows.take(pa.array(places))
        files = [file.path for file in self._histories[alias].newest.files]
        wanted = self._wanted(join, part, events.take(pa.array(places)))
        held = self._fetch(wanted, served_sql.row_versions(join, files)).combine_chunks()
        index = held["place"].combine_chunks()
        same = np.ones(len(index), dtype=bool)
        for name in join.features:
            full = f"{alias}__{name}"
            if full not in self._sources:
                continue  # An input of an on-demand view; it was not answered itself.
            served = self._logged.feature(part, full).take(index)
            same &= ~differing(served, exact(held[name].combine_chunks(), served.type))
        return set(places[index.to_numpy()[same]].tolist())

    def _with_history(self, rows: pa.RecordBatch, found: Found) -> dict[str, set[int]]:
        """Return the places of entities with rows of the history that came since, by alias."""
        import pyarrow as pa

        result: dict[str, set[int]] = {}
        places = np.array(sorted({place for place, _ in found.open}), np.int64)
        for alias, join in self._joins.items():
            if not (len(places) and self._is_live(alias) and self._is_windowed(alias)):
                continue
            files = self._histories[alias].since(found.epochs[alias].low)
            if files:
                wanted = self._wanted(join, rows.take(pa.array(places)), None)
                index = self._fetch(wanted, served_sql.has_history(join, files))["place"]
                result[alias] = set(places[index.to_numpy()].tolist())
        return result

    def _wanted(self, join: Join, rows: pa.RecordBatch, events: Any) -> pa.Table:
        import pyarrow as pa

        batch = self._logged.batch(rows)
        keys = {f"k{i}": batch.columns[name] for i, name in enumerate(join.key_columns)}
        instants = pa.nulls(rows.num_rows, pa.int64()) if events is None else events
        return pa.table({**keys, "event": instants, "place": np.arange(rows.num_rows)})

    def _fetch(self, wanted: pa.Table, sql: str) -> pa.Table:
        with self._engine.session() as session:
            session.register(served_sql.WANTED, wanted)
            return session.fetch(sql)

    def _is_live(self, alias: str) -> bool:
        return self._joins[alias].view.source.stream is not None

    def _is_windowed(self, alias: str) -> bool:
        return bool(self._joins[alias].view.aggregates)


@dataclass(frozen=True)
class _Pinned:
    """Tables, some of them as they once were; all that a historical reader asks them for."""

    tables: Tables
    pinned: Mapping[str, TableSnapshot]

    def snapshot(self, table_id: str) -> TableSnapshot:
        """Return a table as it was, or as it is."""
        return self.pinned.get(table_id) or self.tables.snapshot(table_id)


def _pinned(tables: Tables, pinned: Mapping[str, TableSnapshot]) -> Tables:
    return cast("Tables", _Pinned(tables, pinned))
