"""What a verification reads online: answers for some entity rows at some instants (laws O1, V2).

A plain view keeps one row an entity and refuses instants before it. Then it is found out which rows
of which views are too new, and everything else is asked for without them: what cannot be compared
is counted, and nothing is compared twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.compile.request import slot
from featurestore.errors import AsOfBeforeRowError, ConflictError
from featurestore.model.declarations import FeatureSelection
from featurestore.semantics.timeline import MAX_INSTANT

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.compile.request import FeaturesArgument, Join, Output, RequestPlan
    from featurestore.services.response import OnlineResponse

    Int64s = npt.NDArray[np.int64]

Ask = Callable[..., "OnlineResponse"]
"""`get_online_features` of a store or a client."""


class Answering(Protocol):
    """Who answers as a store does: a client of a server."""

    @property
    def get_online_features(self) -> Ask: ...  # noqa: D102


TOO_NEW = "the online store does not reach back to the instant"
_ATTEMPTS = 3
# Rows of a windowed view that are refused are found by halving, down to so small a part of them.
_PARTS = 128
_NOT_FOUND = 3


@dataclass(frozen=True)
class Answer:
    """An answer for some rows of a batch.

    Attributes:
        places: int64[n], the rows' places in the batch.
        response: n rows, under full feature names.
    """

    places: Int64s
    response: OnlineResponse


@dataclass
class Batch:
    """Entity rows that were asked for, each at its instant, and what came of it.

    Attributes:
        columns: Join keys and request fields, one array each.
        instants: int64[n].
        answers: What was answered; together no row's feature twice.
        refused: {reason: how many values}.
    """

    columns: dict[str, pa.Array]
    instants: Int64s
    answers: list[Answer] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many entity rows there are."""
        return len(self.instants)

    def take(self, places: Int64s) -> Batch:
        """Return some of the rows, not asked yet."""
        import pyarrow as pa

        index = pa.array(places)
        columns = {name: column.take(index) for name, column in self.columns.items()}
        return Batch(columns, self.instants[places])


class Questioner:
    """Asks for a request's features online.

    Args:
        plan: The request, resolved under full feature names.
        features: The request as it is asked.
        ask: Whom to ask.
        rows: Entity rows in one request.
    """

    def __init__(
        self, plan: RequestPlan, features: FeaturesArgument, ask: Ask, rows: int = 2_000
    ) -> None:
        self._plan = plan
        self._features = features
        self._ask = ask
        self._rows = rows
        self._units = needs(plan, _unit)
        self._fingerprints = {j.view.name: j.view.fingerprint for j in plan.joins}
        self._fingerprints |= {s.plan.name: s.plan.fingerprint for s in plan.steps}

    def fill(self, batch: Batch) -> None:
        """Ask for all rows of a batch; what is refused is counted.

        Raises:
            ConflictError: Another definition answered.
        """
        for as_of in dict.fromkeys(batch.instants.tolist()):
            places = np.flatnonzero(batch.instants == as_of)
            for first in range(0, len(places), self._rows):
                self._ask_rows(batch, places[first : first + self._rows], as_of)

    def _ask_rows(self, batch: Batch, places: Int64s, as_of: int) -> None:
        try:
            self._answered(batch, places, as_of, self._features)
        except AsOfBeforeRowError:
            self._ask_apart(batch, places, as_of)

    def _ask_apart(self, batch: Batch, places: Int64s, as_of: int) -> None:
        """Ask without the views whose rows are too new, for each set of them apart."""
        for attempt in range(_ATTEMPTS):
            held, refused = len(batch.answers), batch.refused.copy()
            try:
                for blocked, rows in self._too_new(batch, places, as_of):
                    self._ask_without(batch, rows, as_of, blocked)
            except AsOfBeforeRowError:
                # A row came in between; look again.
                del batch.answers[held:]
                batch.refused = refused
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _ask_without(
        self, batch: Batch, places: Int64s, as_of: int, blocked: frozenset[str]
    ) -> None:
        kept = [o for o in self._plan.outputs if not self._units[o.name] & blocked]
        lost = len(self._plan.outputs) - len(kept)
        if lost:
            batch.refused[TOO_NEW] += lost * len(places)
        if kept:
            self._answered(batch, places, as_of, selections(self._plan, kept))

    def _answered(
        self, batch: Batch, places: Int64s, as_of: int, features: FeaturesArgument
    ) -> None:
        part = batch.take(places)
        fields = {f.name for f in self._plan.request_fields}
        keys: dict[str, Any] = {n: c for n, c in part.columns.items() if n not in fields}
        request = {name: part.columns[name] for name in fields}
        response = self._ask(
            features,
            keys or [{}] * part.rows,
            as_of=as_of,
            request=request or None,
            full_feature_names=True,
        )
        self._check(response)
        batch.answers.append(Answer(places, response))

    def _check(self, response: OnlineResponse) -> None:
        for view, fingerprint in response.fingerprints.items():
            if fingerprint != self._fingerprints[view]:
                raise ConflictError(
                    f"'{view}' is answered by another definition than the applied one.",
                    got=f"definition {fingerprint}",
                    allowed=f"definition {self._fingerprints[view]}",
                    hint="Verify again when the server has taken over the new definitions.",
                )

    def _too_new(
        self, batch: Batch, places: Int64s, as_of: int
    ) -> Iterator[tuple[frozenset[str], Int64s]]:
        """Return sets of what cannot be answered for an instant, and for which rows."""
        part = batch.take(places)
        sets = [frozenset[str]()] * part.rows
        for join in self._plan.joins:
            for unit, names in _units(join).items():
                for row in self._refused_rows(join, names, part, as_of).tolist():
                    sets[row] |= {unit}
        for blocked in dict.fromkeys(sets):
            chosen = [row for row, held in enumerate(sets) if held == blocked]
            yield blocked, places[chosen]

    def _refused_rows(self, join: Join, names: Sequence[str], part: Batch, as_of: int) -> Int64s:
        if join.view.aggregates:
            return self._refused(join, names, part, np.arange(part.rows), as_of)
        response = self._ask_one(join, names[:1], part, MAX_INSTANT)
        codes = np.frombuffer(response.blocks[0].statuses, dtype=np.uint8)
        events = np.frombuffer(response.blocks[0].events, dtype="<i8")
        return np.flatnonzero((codes != _NOT_FOUND) & (events > as_of))

    def _refused(
        self, join: Join, names: Sequence[str], part: Batch, rows: Int64s, as_of: int
    ) -> Int64s:
        """Return the rows for which a windowed view refuses an instant, and some beside them."""
        try:
            self._ask_one(join, names, part.take(rows), as_of)
        except AsOfBeforeRowError:
            if len(rows) <= max(1, part.rows // _PARTS):
                return rows
            half = len(rows) // 2
            halves = rows[:half], rows[half:]
            return np.concatenate(
                [self._refused(join, names, part, some, as_of) for some in halves]
            )
        return rows[:0]

    def _ask_one(self, join: Join, names: Sequence[str], part: Batch, as_of: int) -> OnlineResponse:
        keys: Any = {name: part.columns[name] for name in join.key_columns}
        asked = [_selection(join, names)]
        return self._ask(asked, keys or [{}] * part.rows, as_of=as_of, full_feature_names=True)


def _unit(join: Join, feature: str) -> str:
    """Return what is refused together: a plain view, or a windowed one's features of one window."""
    if not join.view.aggregates:
        return join.alias
    names = [each.name for each in join.view.features]
    return f"{join.alias} {join.view.aggregates[names.index(feature)].window}"


def _units(join: Join) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for feature in join.features:
        found.setdefault(_unit(join, feature), []).append(feature)
    return found


def needs(
    plan: RequestPlan, unit: Callable[[Join, str], str] = lambda join, _: join.alias
) -> dict[str, frozenset[str]]:
    """Return {result column: the units that it is made from}; by default aliases of views."""
    found: dict[str, frozenset[str]] = {}
    for join in plan.joins:
        found |= {slot(join.alias, f): frozenset([unit(join, f)]) for f in join.features}
    for step in plan.steps:
        inside = frozenset[str]().union(*(found[held] for _, held in step.inputs))
        found |= {slot(step.plan.name, feature.name): inside for feature in step.plan.features}
    return {output.name: found[output.slot] for output in plan.outputs}


def selections(plan: RequestPlan, outputs: Sequence[Output]) -> list[str | FeatureSelection]:
    """Return the feature list that asks for some outputs of a request."""
    joins = {join.alias: join for join in plan.joins}
    wanted: Mapping[str, list[str]] = {}
    for output in outputs:
        alias = output.reference.partition(":")[0]
        wanted = {**wanted, alias: [*wanted.get(alias, []), output.column.name]}
    result: list[str | FeatureSelection] = []
    for alias, names in wanted.items():
        join = joins.get(alias)
        if join is None:
            result += [f"{alias}:{name}" for name in names]
        else:
            result.append(_selection(join, names))
    return result


def _selection(join: Join, features: Sequence[str]) -> FeatureSelection:
    pairs = zip(join.view.join_keys, join.key_columns, strict=True)
    renamed = {key.name: column for key, column in pairs if key.name != column}
    alias = join.alias if join.alias != join.view.name else None
    return FeatureSelection(
        view=join.view.name, features=tuple(features), alias_name=alias, join_keys=renamed
    )
