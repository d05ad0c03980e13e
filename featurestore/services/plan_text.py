"""An `ApplyPlan` as lines of text: `+` added, `~` changed, `-` removed. Colour is the CLI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featurestore.compile.diff import ApplyPlan, ChangeItem, FieldChange, SchemaChange

_SIGNS = {"added": "+", "changed": "~", "removed": "-"}
_LABELS = {
    "entity": "entity",
    "feature_view": "feature view",
    "on_demand_feature_view": "on-demand feature view",
    "feature_service": "feature service",
}
_UNITS = ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"))


def plan_lines(plan: ApplyPlan) -> list[str]:
    """Return a plan as lines for people.

    Args:
        plan: The plan.
    """
    if not plan.changes:
        state = f"Project '{plan.project}' is as declared (revision {plan.base_revision})"
        return [f"{state}; nothing to apply."]
    lines = [f"Plan for project '{plan.project}' (from revision {plan.base_revision}):"]
    for item in plan.changes:
        lines += _item_lines(item)
    counts = [sum(item.action == action for item in plan.changes) for action in _SIGNS]
    lines.append(f"{counts[0]} to add, {counts[1]} to change, {counts[2]} to remove.")
    if plan.destructive:
        lines.append("It drops data: apply it with --allow-destructive.")
    return lines


def duration(microseconds: int) -> str:
    """Return a duration in its largest whole unit.

    >>> duration(7_200_000_000), duration(5)
    ('2h', '5us')
    """
    for size, unit in _UNITS:
        if microseconds % size == 0:
            return f"{microseconds // size}{unit}"
    return f"{microseconds}us"


def _item_lines(item: ChangeItem) -> Iterator[str]:
    yield f"{_SIGNS[item.action]} {_LABELS[item.kind]} {item.name}"
    if item.action != "removed":
        yield from (_schema_line(change) for change in item.features)
        yield from (line for change in item.fields for line in _field_lines(change))
    if item.rebuild:
        yield f"    rebuilds its table: {item.rebuild_reason};"
        yield "        what serves now goes on until 'materialize' has covered as much"
    if item.destructive:
        yield f"    DROPS DATA: {item.destructive_reason}"


def _schema_line(change: SchemaChange) -> str:
    if change.action == "added":
        return f"    + {change.feature}: {change.after}"
    if change.action == "removed":
        return f"    - {change.feature}: {change.before}"
    return f"    ~ {change.feature}: {change.before} -> {change.after}"


def _field_lines(change: FieldChange) -> Iterator[str]:
    before, after = change.before, change.after
    if change.path == "code":
        yield "    ~ code: changed"
    elif isinstance(before, list) and isinstance(after, list) and set(before) != set(after):
        yield f"    ~ {change.path}:"
        yield from (f"        - {item}" for item in before if item not in after)
        yield from (f"        + {item}" for item in after if item not in before)
    elif change.path == "ttl_us":
        yield f"    ~ ttl: {_ttl(before)} -> {_ttl(after)}"
    else:
        yield f"    ~ {change.path}: {_shown(before)} -> {_shown(after)}"


def _ttl(value: int | None) -> str:
    return "for ever" if value is None else duration(value)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "(none)"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
