"""Commands that show what is applied and what happened: `list` and `describe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table, duration

if TYPE_CHECKING:
    from featurestore.wiring import FeatureStore

Items = list[dict[str, Any]]
_RUN_STYLES: dict[str, Style] = {"succeeded": "good", "failed": "bad", "running": "warning"}


@click.command("list", cls=Command, short_help="List what is applied, or what happened.")
@click.argument("kind", metavar="[KIND]", default="views", required=False, type=click.Choice(
    ["views", "services", "entities", "sources", "versions", "runs", "changes"]))  # fmt: skip
@click.option("--view", metavar="VIEW", help="With 'runs': only those of this view.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="How many 'versions', 'runs' or 'changes' to show, the newest first.",
)
@pass_invocation
def list_(invocation: Invocation, kind: str, view: str | None, limit: int) -> Output:
    """List what is applied, or what happened.

    Applied: views (the default), services, entities, sources. Happened: versions, runs, changes.
    """
    if view is not None and kind != "runs":
        raise click.UsageError("--view goes with 'runs'.")
    with invocation.store() as store:
        items = _items(store, kind, view, limit)
    columns, row = _ROWS[kind]
    empty = f"No {kind}." if items or kind in _HAPPENED else f"No {kind} are applied."
    table = Table(columns, [row(item) for item in items], empty=empty)
    return Output({kind: items}, [table, *_errors(kind, items)])


@click.command("describe", cls=Command, short_help="Show all about one definition.")
@click.argument("name")
@pass_invocation
def describe(invocation: Invocation, name: str) -> Output:
    """Show everything about a view, on-demand view, service, entity or source."""
    from featurestore.cli import describing

    with invocation.store() as store:
        registry, project = store.services.registry, store.project
        found = describing.describe(
            registry.state(project), registry.versions(project, name=name), name
        )
    blocks: list[Block] = []
    for item in found:
        blocks += _described(item)
    return Output({"name": name, "definitions": found}, blocks)


_HAPPENED = {"versions", "runs", "changes"}


def _items(store: FeatureStore, kind: str, view: str | None, limit: int) -> Items:
    from featurestore.cli import describing

    registry, project = store.services.registry, store.project
    if kind == "runs":
        return [describing.run(run) for run in registry.runs(project, view, limit=limit)]
    if kind == "versions":
        newest = registry.versions(project)[::-1][:limit]
        return [describing.version(version) for version in newest]
    if kind == "changes":
        return [describing.change(change) for change in registry.changes(project, limit)]
    return describing.applied(registry.state(project), kind)


def _view_row(item: dict[str, Any]) -> Sequence[str | Cell]:
    keys = item.get("join_keys")
    return [
        item["name"],
        "on-demand" if keys is None else ", ".join(item["entities"]) or "(global)",
        ", ".join(feature["name"] for feature in item["features"]),
        item["source"]["name"] if keys is not None else _views_of(item["inputs"]),
        _ttl(item) if keys is not None else "",
        item.get("schedule") or "",
    ]


def _views_of(references: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(text.partition(":")[0] for text in references))


def _run_row(item: dict[str, Any]) -> Sequence[str | Cell]:
    end = item["finished_at"]
    seconds = (end - item["started_at"]).total_seconds() if end else None
    return [
        _moment(item["started_at"]),
        item["view"],
        Cell(_run_state(item), _RUN_STYLES.get(item["state"], "plain")),
        f"{item['rows_read']:,}",
        f"{item['rows_written']:,}",
        f"{item['rows_pushed']:,}",
        "" if seconds is None else duration(seconds),
    ]


def _run_state(item: dict[str, Any]) -> str:
    return f"{item['state']} (try {item['attempt']})" if item["attempt"] > 1 else item["state"]


def _errors(kind: str, items: Items) -> list[Block]:
    if kind != "runs":
        return []
    return [
        Cell(f"{_moment(item['started_at'])} {item['view']}: {item['error']}", "bad")
        for item in items
        if item["error"]
    ]


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names)


_Row = Callable[[dict[str, Any]], Sequence[str | Cell]]
_ROWS: dict[str, tuple[tuple[str, ...], _Row]] = {
    "views": (
        ("view", "~entities", "~features", "~source", "ttl", "schedule"),
        _view_row,
    ),
    "services": (
        ("service", "~features", "owner"),
        lambda item: [item["name"], _joined(item["features"]), item["owner"]],
    ),
    "entities": (
        ("entity", "~join keys", "~used by"),
        lambda item: [
            item["name"],
            _joined([f"{key['name']} {key['dtype']}" for key in item["join_keys"]]),
            _joined([user.partition(" ")[2] for user in item["used_by"]]),
        ],
    ),
    "sources": (
        ("source", "format", "~path", "~event timestamp", "~created timestamp", "~used by"),
        lambda item: [
            item["name"],
            item["format"],
            item["path"] or "(query)",
            item["event_timestamp"],
            item["created_timestamp"] or "",
            _joined([user.partition(" ")[2] for user in item["used_by"]]),
        ],
    ),
    "versions": (
        (">revision", "~kind", "~name", "fingerprint", "applied at", "~applied by"),
        lambda item: [
            str(item["revision"]),
            item["kind"],
            item["name"],
            item["fingerprint"],
            _moment(item["applied_at"]),
            item["applied_by"],
        ],
    ),
    "runs": (
        ("started at", "view", "state", ">read", ">written", ">pushed", ">took"),
        _run_row,
    ),
    "changes": (
        (">revision", "applied at", "applied by", "~what"),
        lambda item: [
            str(item["revision"]),
            _moment(item["applied_at"]),
            item["applied_by"],
            item["summary"],
        ],
    ),
}  # fmt: skip


def _described(item: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Cell(f"{item['kind'].replace('_', ' ')} {item['name']}", "heading")]
    blocks.append(Facts(_facts(item)))
    for label, key in (
        ("join keys", "join_keys"),
        ("request", "request"),
        ("features", "features"),
    ):
        columns = item.get(key) or []
        if columns and isinstance(columns[0], dict):
            blocks += [Cell(label, "heading"), _columns_table(columns)]
        elif columns:
            blocks += [Cell(label, "heading"), *(Cell(f"  {text}") for text in columns)]
    if item["versions"]:
        shown, row = _ROWS["versions"]
        rows = [[row(version)[i] for i in (0, 3, 4, 5)] for version in item["versions"]]
        columns_shown = tuple(shown[i] for i in (0, 3, 4, 5))
        blocks += [Cell("versions", "heading"), Table(columns_shown, rows)]
    return blocks


def _columns_table(columns: Items) -> Table:
    more = [key for key in ("expression", "description") if any(c.get(key) for c in columns)]
    rows = [[f"  {c['name']}", c["dtype"], *(c.get(key) or "" for key in more)] for c in columns]
    return Table(("  name", "type", *(f"~{key}" for key in more)), rows)


_TABLES = {"kind", "name", "join_keys", "request", "features", "versions", "ttl_seconds"}


def _facts(item: dict[str, Any]) -> list[tuple[str, str | Cell]]:
    pairs: list[tuple[str, str | Cell]] = []
    if "ttl_seconds" in item:
        pairs.append(("ttl", _ttl(item)))
    for key, value in item.items():
        if key in _TABLES or value in (None, "", [], (), {}):
            continue
        if key == "source":
            pairs.append(("source", _source(value)))
        else:
            pairs.append((key.replace("_", " "), _shown(value)))
    return pairs


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(part).replace("_", " ", 0) for part in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _source(source: dict[str, Any]) -> str:
    created = source["created_timestamp"]
    parts = [
        f"{source['name']} ({source['format']})",
        source["path"] or " ".join((source["query"] or "").split()),
        f"event timestamp {source['event_timestamp']}",
        f"created timestamp {created}" if created else "",
        f"zone {source['timezone']}" if source["timezone"] else "",
    ]
    return ", ".join(part for part in parts if part)


def _ttl(item: dict[str, Any]) -> str:
    seconds = item["ttl_seconds"]
    return "for ever" if seconds is None else duration(seconds)


def _moment(moment: Any) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"


COMMANDS = (list_, describe)
