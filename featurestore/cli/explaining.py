"""The command that shows where a value comes from: `explain`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table, duration, plain

if TYPE_CHECKING:
    from featurestore.services.value_report import ValueReport
    from featurestore.wiring import FeatureStore

_SHOWN = 50
_STYLES: dict[str, Style] = {"counts": "good", "chosen": "good", "not applied": "warning"}


@click.command("explain", cls=Command, short_help="Show which rows or events make a value.")
@click.argument("reference", metavar="VIEW:FEATURE")
@click.option(
    "--entity",
    "entities",
    multiple=True,
    metavar="KEY=VALUE[,...]",
    help="The join keys of the entity.",
)
@click.option("--as-of", metavar="INSTANT", help="The instant to explain. By default now.")
@pass_invocation
def explain(
    invocation: Invocation, reference: str, entities: tuple[str, ...], as_of: str | None
) -> Output:
    """Show where one value comes from.

    For windows: their bounds, every version of an event that has to do with them, what the online
    state makes them of. For others: the rows that it was chosen from. Then the value online,
    offline, and with what was known at the time.
    """
    if len(entities) > 1:
        raise click.UsageError("explain takes one entity.")
    with invocation.store() as store:
        entity = _entity(store, reference, entities)
        report = store.explain(reference, entity, as_of=as_of)
    return Output(dataclasses.asdict(report), list(_blocks(report)))


def _entity(store: FeatureStore, reference: str, entities: tuple[str, ...]) -> dict[str, Any]:
    from featurestore.cli import arguments

    view = store.services.state.get().serving.get(reference.partition(":")[0])
    keys = {} if view is None else {key.name: key.type for key in view.join_keys}
    if keys and not entities:
        raise click.UsageError(
            f"The view needs an entity: --entity {','.join(f'{name}=...' for name in keys)}"
        )
    found = arguments.records("--entity", entities, keys, exact=view is not None)
    return found[0] if found else {}


def _blocks(report: ValueReport) -> Iterator[Block]:
    yield Facts(list(_facts(report)))
    if report.window is not None:
        yield _events(report)
        yield from _rest(len(report.events))
        yield Table(
            ("online state", "from", "to", ">events"),
            [
                (
                    t.kind,
                    _instant(t.start),
                    _instant(t.end),
                    str(t.events),
                )
                for t in report.tiles[:_SHOWN]
            ],
            empty="The online store has no state of this entity.",
        )
        return
    yield Table(
        ("row of", "learnt", "~value", ""),
        [
            (
                _instant(r.event_timestamp),
                _instant(r.created_timestamp),
                _text(r.value),
                _cell(r.became),
            )
            for r in report.rows
        ],
        empty="No row had happened by then.",
    )


def _facts(report: ValueReport) -> Iterator[tuple[str, str | Cell]]:
    yield "feature", report.reference
    yield "is", report.what
    yield "entity", ", ".join(f"{n}={_text(v)}" for n, v in report.entity.items()) or "(none)"
    yield "as of", _instant(report.as_of)
    if report.window is not None:
        start = "the beginning" if report.window[0] is None else _instant(report.window[0])
        yield "window", f"[{start}, {_instant(report.window[1])})"
    elif report.ttl_seconds is not None:
        yield "ttl", duration(report.ttl_seconds)
    yield "offline", _text(report.offline)
    if report.online_error:
        yield "online", Cell(f"cannot be told: {report.online_error}", "warning")
    else:
        is_equal = Cell("equal", "good") if report.equal else Cell("NOT EQUAL", "bad")
        yield "online", f"{_text(report.online)} {report.online_status}"
        yield "parity", is_equal
    late = " (late data changed it)" if report.late else ""
    yield "known then", f"{_text(report.known)}{late}"
    if report.applied:
        yield "applied", ", ".join(f"{name} up to {at}" for name, at in report.applied.items())


def _events(report: ValueReport) -> Table:
    lines = report.events[:_SHOWN]
    by = any(line.by is not None for line in lines)
    names = ["event", ">version", "happened", "learnt", "~value", *(["by"] if by else []), ""]
    rows: list[list[str | Cell]] = [
        [
            line.id,
            str(line.version),
            _instant(line.event_timestamp),
            _instant(line.created_timestamp),
            _text(line.value),
            *([_text(line.by)] if by else []),
            _cell(line.became),
        ]
        for line in lines
    ]
    return Table(names, rows, empty="No event of this entity has to do with the window.")


def _rest(count: int) -> Iterator[Block]:
    if count > _SHOWN:
        yield Cell(f"{count - _SHOWN:,} more; --output json has all.", "faint")


def _cell(became: str) -> Cell:
    return Cell(became, _STYLES.get(became, "faint"))


def _instant(value: Any) -> str:
    return "" if value is None else str(plain(value))


def _text(value: Any) -> str:
    shown = plain(value)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)


COMMANDS = (explain,)
