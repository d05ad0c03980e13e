"""What `apply` would change, as data: one item a definition, field by field.

Compares catalogs; whether tables hold data is told by the caller. A change is *destructive* when a
table that holds data loses columns that nothing brings back, and *rebuilds* when the rows of a
view are no longer those of its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from featurestore.compile.aggregate_text import aggregate_texts
from featurestore.compile.plan import (
    Catalog,
    EntityPlan,
    OnDemandPlan,
    Plan,
    Selection,
    ServicePlan,
    ViewPlan,
)

Action = Literal["added", "changed", "removed"]
Kind = Literal["entity", "feature_view", "on_demand_feature_view", "feature_service"]
Definition = EntityPlan | ViewPlan | OnDemandPlan | ServicePlan
HasData = Callable[[ViewPlan], bool]

_INTERNAL = {"name", "fingerprint", "table_fingerprint"}
# What decides a view's rows beside its features, by the path of the change.
_ROW_PATHS = ("where", "source.", "join_keys", "aggregates")


class FieldChange(Plan):
    """A declared value that differs; `path` is dotted, as in "source.path" or "ttl_us"."""

    path: str
    before: Any = None
    after: Any = None


class SchemaChange(Plan):
    """A feature of a view that differs.

    Attributes:
        before: Its type, or its expression where that is what differs; None when it is added.
        after: The same afterwards; None when it is removed.
    """

    feature: str
    action: Literal["added", "removed", "retyped", "re-expressed"]
    before: str | None = None
    after: str | None = None


class ChangeItem(Plan):
    """A definition that is added, changed or removed.

    Attributes:
        fields: What differs beside features; empty unless it is changed.
        features: For feature views: the features that differ, all of them when the view is new.
        rebuild: Whether its table has to be built anew.
        rebuild_reason: What makes that so.
        destructive: Whether data would be dropped.
        destructive_reason: Which data.
    """

    action: Action
    kind: Kind
    name: str
    fields: tuple[FieldChange, ...] = ()
    features: tuple[SchemaChange, ...] = ()
    rebuild: bool = False
    rebuild_reason: str = ""
    destructive: bool = False
    destructive_reason: str = ""


class ApplyPlan(Plan):
    """What `apply` would do.

    Attributes:
        project: The project's name.
        base_revision: The revision that it was made from; it is applied to that one, or to one with
            the same definitions.
        changes: Entities first, then views, on-demand views and services, each sorted by name.
    """

    project: str
    base_revision: int
    changes: tuple[ChangeItem, ...] = ()

    @property
    def destructive(self) -> tuple[ChangeItem, ...]:
        """The changes that would drop data."""
        return tuple(item for item in self.changes if item.destructive)

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return self.model_dump_json()


def diff(
    before: Catalog,
    after: Catalog,
    *,
    base_revision: int,
    serving: Mapping[str, ViewPlan],
    has_data: HasData,
) -> ApplyPlan:
    """Return what makes one catalog of another.

    Args:
        before: The applied definitions.
        after: The new ones.
        base_revision: The revision of `before`.
        serving: The plans that reads are answered from; older than `before` while a table is
            being rebuilt.
        has_data: Tells whether the table of a plan holds anything; asked only of views that
            change.
    """
    changes: list[ChangeItem] = []
    for kind, old, new in _kinds(before, after):
        for name in sorted(old.keys() | new.keys()):
            item = _item(kind, name, old.get(name), new.get(name))
            if item is not None and kind == "feature_view":
                held = (before.views.get(name), serving.get(name))
                item = _judged(item, [p for p in held if p is not None], after, has_data)
            if item is not None:
                changes.append(item)
    return ApplyPlan(project=after.project, base_revision=base_revision, changes=tuple(changes))


def _kinds(
    before: Catalog, after: Catalog
) -> Iterator[tuple[Kind, Mapping[str, Definition], Mapping[str, Definition]]]:
    yield "entity", before.entities, after.entities
    yield "feature_view", before.views, after.views
    yield "on_demand_feature_view", before.on_demand, after.on_demand
    yield "feature_service", before.services, after.services


def _item(
    kind: Kind, name: str, before: Definition | None, after: Definition | None
) -> ChangeItem | None:
    if before == after:
        return None
    features = tuple(_features(before, after)) if kind == "feature_view" else ()
    if before is None or after is None:
        action: Action = "added" if before is None else "removed"
        return ChangeItem(action=action, kind=kind, name=name, features=features)
    fields = tuple(_fields("", _plain(before), _plain(after)))
    return ChangeItem(action="changed", kind=kind, name=name, fields=fields, features=features)


def _features(before: Any, after: Any) -> Iterator[SchemaChange]:
    old = {f.name: f for f in before.features} if before else {}
    new = {f.name: f for f in after.features} if after else {}
    for name, feature in new.items():
        if name not in old:
            yield SchemaChange(feature=name, action="added", after=feature.dtype)
            continue
        was = old[name]
        if was.dtype != feature.dtype:
            yield SchemaChange(
                feature=name, action="retyped", before=was.dtype, after=feature.dtype
            )
        if was.expression != feature.expression:
            yield SchemaChange(
                feature=name,
                action="re-expressed",
                before=was.expression or f"column {name}",
                after=feature.expression or f"column {name}",
            )
    for name, feature in old.items():
        if name not in new:
            yield SchemaChange(feature=name, action="removed", before=feature.dtype)


def _plain(definition: Definition) -> dict[str, Any]:
    """Return what is declared as plain data, references as texts."""
    values = definition.model_dump(mode="json", exclude=_INTERNAL)
    if isinstance(definition, ServicePlan):
        values["features"] = list(_references(definition.features))
    elif isinstance(definition, OnDemandPlan):
        values["inputs"] = list(_references(definition.inputs))
        values["code"] = values.pop("code_fingerprint")
    elif isinstance(definition, ViewPlan):
        # Types and expressions are told as changes of the schema.
        values["features"] = [
            {"name": f.name, "description": f.description} for f in definition.features
        ]
        values["aggregates"] = aggregate_texts(definition)
        del values["inputs"]
    return values


def _references(selections: Iterable[Selection]) -> Iterator[str]:
    for item in selections:
        keys = ", ".join(f"{key}={column}" for key, column in sorted(item.join_keys.items()))
        alias = f" (alias of {item.view}{f' by {keys}' if keys else ''})"
        suffix = alias if item.alias != item.view or keys else ""
        yield from (f"{item.alias}:{feature}{suffix}" for feature in item.features)


def _fields(path: str, before: Any, after: Any) -> Iterator[FieldChange]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            inner = f"{path}.{key}" if path else key
            yield from _fields(inner, before.get(key), after.get(key))
    elif _are_named(before) and _are_named(after):
        yield from _named_items(path, before, after)
    else:
        yield FieldChange(path=path, before=before, after=after)


def _named_items(path: str, before: list[Any], after: list[Any]) -> Iterator[FieldChange]:
    old = {item["name"]: item for item in before}
    new = {item["name"]: item for item in after}
    if path == "join_keys" and list(old) != list(new):
        yield FieldChange(path=path, before=list(old), after=list(new))
        return
    both = [name for name in new if name in old]
    for name in both:
        yield from _fields(f"{path}.{name}", old[name], new[name])
    if both != [name for name in old if name in new]:
        yield FieldChange(path=f"{path}.order", before=list(old), after=list(new))
    # The features of views are told as changes of the schema.
    if any("dtype" in item for item in (*before, *after)):
        for name in [*(n for n in old if n not in new), *(n for n in new if n not in old)]:
            yield FieldChange(
                path=f"{path}.{name}", before=_type(old.get(name)), after=_type(new.get(name))
            )


def _type(item: dict[str, Any] | None) -> Any:
    return None if item is None else item.get("dtype")


def _are_named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, dict) and "name" in i for i in value)


def _judged(
    item: ChangeItem, held: list[ViewPlan], after: Catalog, has_data: HasData
) -> ChangeItem:
    """Return a view's change with what it means for its tables."""
    new = after.views.get(item.name)
    filled = [plan for plan in held if has_data(plan)]
    if new is None:
        reason = "its table and its online values are deleted" if filled else ""
        return item.model_copy(update={"destructive": bool(filled), "destructive_reason": reason})
    rebuild = item.action == "changed" and all(
        plan.table_fingerprint != new.table_fingerprint for plan in held
    )
    losses = dict.fromkeys(loss for plan in filled for loss in _losses(plan, new))
    return item.model_copy(
        update={
            "rebuild": rebuild,
            "rebuild_reason": _row_changes(item) if rebuild else "",
            "destructive": bool(losses),
            "destructive_reason": "; ".join(losses),
        }
    )


def _losses(old: ViewPlan, new: ViewPlan) -> Iterator[str]:
    if old.join_keys != new.join_keys:
        yield "rows are kept by other join keys"
    for feature in old.features:
        kept = new.feature(feature.name)
        if kept is None:
            yield f"the values of '{feature.name}' are dropped"
        elif kept.dtype != feature.dtype:
            yield f"the values of '{feature.name}' as {feature.dtype} are dropped"


def _row_changes(item: ChangeItem) -> str:
    parts = [f"feature '{change.feature}' is {change.action}" for change in item.features]
    for change in item.fields:
        if change.path.startswith(_ROW_PATHS) and change.path != "source.name":
            parts.append(f"{change.path} differs")
        elif change.path == "features.order":
            parts.append("the features are in another order")
    return "; ".join(parts) or "it differs from the table that serves"
