"""Windowed features are read from states: of all entities, windows and aggregates at once (W2-W6).

Raw events and merged states of nodes become one column for each family of aggregates; every window
of every entity is some ranges of it, merged in one call. Since merging is exact, what a state looks
like decides what is read and never what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.semantics.aggregates import AggregateSpec, algebra
from featurestore.semantics.states.cover import Edges, field_names
from featurestore.semantics.states.evaluation import Evaluation, StateRow
from featurestore.semantics.states.layout import NO_TREE, read_header
from featurestore.semantics.states.schema import Family, StateSchema, Wanted
from featurestore.semantics.states.versions import EMPTY

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.semantics.windowing import WindowFeature
    from featurestore.semantics.windows import Window


@dataclass(frozen=True)
class _Group:
    """Features that are answered from the same states.

    Attributes:
        family: The states.
        number: The family's number in the schema.
        windows: The numbers of their windows.
        results: For each spec, (the feature, its window's place in `windows`) of each feature.
    """

    family: Family
    number: int
    windows: list[int]
    results: dict[AggregateSpec, list[tuple[int, int]]]


class StateQuery:
    """Features of one view; made once and used for every request.

    Args:
        schema: The layout of the view's states.
        features: What is computed.
    """

    def __init__(self, schema: StateSchema, features: Sequence[WindowFeature]) -> None:
        self.schema = schema
        self._count = len(features)
        self._windows = list(dict.fromkeys(feature.window for feature in features))
        self._groups = _groups(schema, self._windows, features)
        self._wanted = Wanted.of([group.family for group in self._groups])

    def edges(self, instant: int) -> list[Edges]:
        """Return the edges of each window at an instant."""
        return [window.bounds(instant) for window in self._windows]

    def first_needed(self, instant: int) -> int | None:
        """Return the earliest instant that some window holds; None where none has a beginning."""
        lows = [low for low, high in self.edges(instant) if low is not None and low < high]
        return min(lows, default=None)

    def names(self, instant: int, depth: int) -> list[bytes]:
        """Return the fields to read beside header and recent versions, for a tree of that depth."""
        return [] if depth == NO_TREE else field_names(self.edges(instant), depth)

    def row(
        self, header: bytes | None, recent: bytes | None, nodes: Mapping[bytes, bytes | None]
    ) -> StateRow:
        """Return a state from its fields.

        Raises:
            DataError: It was written under another schema (law O4), or is damaged.
        """
        if header is None:
            return StateRow(None, EMPTY, None)
        read = read_header(self.schema, header)
        return StateRow(read, recent or EMPTY, None if read.depth == NO_TREE else nodes)

    def evaluate(self, rows: Sequence[StateRow], instant: int) -> list[pa.Array]:
        """Return each feature, a value a row, as of an instant.

        Raises:
            DataError: A state is damaged, or an integer sum does not fit int64.
        """
        evaluation = Evaluation(self.schema, self.edges(instant), rows, self._wanted)
        arrays: list[pa.Array] = [None] * self._count
        for group in self._groups:
            states = evaluation.merged(group.family, group.number, group.windows)
            kind = algebra(group.family.state)
            for spec, places in group.results.items():
                result = kind.finalize(spec, states)
                for feature, window in places:
                    arrays[feature] = result.slice(window * len(rows), len(rows))
        return arrays


def _groups(
    schema: StateSchema, windows: list[Window], features: Sequence[WindowFeature]
) -> list[_Group]:
    groups: dict[Family, _Group] = {}
    for number, feature in enumerate(features):
        family = Family(feature.spec.state, feature.input, feature.by)
        group = groups.setdefault(family, _Group(family, schema.families.index(family), [], {}))
        window = windows.index(feature.window)
        if window not in group.windows:
            group.windows.append(window)
        place = (number, group.windows.index(window))
        group.results.setdefault(feature.spec, []).append(place)
    return list(groups.values())
