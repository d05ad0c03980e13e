"""A request for online features, prepared once and used for every call that asks the same.

From the resolved request come the namespaces of the keys, a reader of packed rows for each view,
the layout of the answer, and the ways from slots to columns. Nothing here reads a store.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from featurestore.compile.request import FeaturesArgument, Join, RequestPlan, slot
from featurestore.dtypes import DType
from featurestore.errors import RequestError
from featurestore.model.declarations import (
    FeatureSelection,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
)
from featurestore.semantics.keys import namespace
from featurestore.semantics.packed import PackedReader
from featurestore.services.response import FeatureLayout, Layout, SourceLayout
from featurestore.services.state_reading import WindowReader

_LONGEST_REPR = 200


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Entity columns that make a key, in declared order; several joins may share it.

    Attributes:
        columns: The columns of the entity rows.
        dtypes: Their declared types.
        needed_by: Who joins by it, for errors.
    """

    columns: tuple[str, ...]
    dtypes: tuple[DType, ...]
    needed_by: str


@dataclass(frozen=True, slots=True)
class LookupJoin:
    """A view to look up: where its keys begin, how its rows are read, which key it is found by.

    Attributes:
        join: The view and what is asked of it.
        namespace: What its keys begin with.
        reader: Reads its rows.
        group: Which key group it is found by.
        windows: Reads its states instead, where it is an aggregated view.
    """

    join: Join
    namespace: bytes
    reader: PackedReader
    group: int
    windows: WindowReader | None = None


class Lookup:
    """A resolved request, ready to be looked up.

    Args:
        project: The project, which leads every key.
        plan: The resolved request.

    Raises:
        RequestError: A view is not online.
    """

    def __init__(self, project: str, plan: RequestPlan) -> None:
        self.plan = plan
        self.groups: list[KeyGroup] = []
        self.joins = [self._join(project, join) for join in plan.joins]
        self.has_windows = any(join.windows is not None for join in self.joins)
        self.key_columns = tuple((name, column.type) for name, column in plan.key_columns)
        places = self._places()
        self.step_inputs = [
            (held, *places[held]) for held in {s for step in plan.steps for _, s in step.inputs}
        ]
        self.layout = Layout(
            service=plan.service,
            keys=self.key_columns,
            features=tuple(
                FeatureLayout(output.name, output.column.type, *places[output.slot])
                for output in plan.outputs
            ),
            sources=(
                *(SourceLayout(j.view.name, j.alias, j.view.fingerprint) for j in plan.joins),
                *(SourceLayout(s.plan.name, s.plan.name, s.plan.fingerprint) for s in plan.steps),
            ),
        )
        self.output_names = frozenset(output.name for output in plan.outputs)

    def _join(self, project: str, join: Join) -> LookupJoin:
        view = join.view
        if not view.online:
            raise RequestError(
                f"The view '{view.name}' is not online.",
                where=f"FeatureView '{view.name}'",
                got="online=False",
                hint="Declare it with online=True, or ask for historical features.",
            )
        dtypes = tuple(key.type for key in view.join_keys)
        same = [(group.columns, group.dtypes) for group in self.groups]
        if (join.key_columns, dtypes) not in same:
            self.groups.append(KeyGroup(join.key_columns, dtypes, f"FeatureView '{view.name}'"))
            same.append((join.key_columns, dtypes))
        return LookupJoin(
            join,
            namespace(project, view.name, view.table_fingerprint),
            PackedReader(view.name, view.row_schema),
            same.index((join.key_columns, dtypes)),
            WindowReader(view, join.features) if view.aggregates else None,
        )

    def _places(self) -> dict[str, tuple[int, int]]:
        """Return {slot: (source, index of the column in it)}."""
        places = {}
        for source, join in enumerate(self.plan.joins):
            for index, name in enumerate(join.view.row_schema.names):
                places[slot(join.alias, name)] = (source, index)
        for source, step in enumerate(self.plan.steps, start=len(self.plan.joins)):
            for index, feature in enumerate(step.plan.features):
                places[slot(step.plan.name, feature.name)] = (source, index)
        return places


def features_key(features: FeaturesArgument) -> Hashable:
    """Return what tells one `features` argument from another.

    Raises:
        RequestError: It is neither a service nor a list.
    """
    if isinstance(features, str):
        return features
    if isinstance(features, FeatureService):
        return features.name
    if not isinstance(features, list | tuple):
        raise RequestError(
            "Features come as a list.", got=f"{features!r}"[:_LONGEST_REPR], hint="Write [...]."
        )
    key = tuple(features)
    try:
        hash(key)
    except TypeError:
        # Declarations hold dicts; their names say all that resolving looks at.
        return tuple(_item_key(item) for item in features)
    return key


def _item_key(item: Any) -> Hashable:
    if isinstance(item, FeatureSelection):
        keys = tuple(item.join_keys.items())
        return (item.view, item.features, item.alias_name, keys)
    if isinstance(item, FeatureView | OnDemandFeatureView):
        return (item.name,)
    return item if isinstance(item, str) else id(item)
