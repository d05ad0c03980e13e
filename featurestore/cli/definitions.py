"""Commands about definitions: `init`, `plan`, `apply` and `teardown`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.context import Command, Invocation, StoppedError, pass_invocation
from featurestore.cli.output import Block, Cell, Output, Style, count
from featurestore.errors import RequestError

if TYPE_CHECKING:
    from featurestore.compile.diff import ApplyPlan

_LOOKUP = (
    "featurestore get-online-features --features purchase_risk --entity customer_id=1"
    " --request amount=120"
)
_APPLY_STOPPED = (
    "Definitions are applied all at once or not at all: 'featurestore plan' tells which."
)
_TEARDOWN_STOPPED = "What was deleted is gone; run it again to delete the rest."


@click.command("init", cls=Command, short_help="Begin a repository with an example that works.")
@click.argument("directory", type=click.Path(path_type=Path))
def init(directory: Path) -> Output:
    """Begin a repository in DIRECTORY, with a small example that works at once."""
    from featurestore.cli.scaffold import write_repository
    from featurestore.clock import SystemClock

    project, files = write_repository(directory, SystemClock())
    steps = (
        f"cd {directory}",
        "featurestore apply",
        "featurestore materialize-incremental",
        _LOOKUP,
        "featurestore status",
    )
    shown = [str(file) for file in files]
    return Output(
        {"project": project, "folder": str(directory.resolve()), "files": shown, "next": steps},
        [
            Cell(f"Project '{project}' begins in {directory}:", "heading"),
            *(Cell(f"  {file}") for file in shown),
            Cell("Next, and README.md there tells more:", "heading"),
            *(Cell(f"  {step}") for step in steps),
        ],
    )


@click.command("plan", cls=Command, short_help="Show what apply would change.")
@pass_invocation
def plan(invocation: Invocation) -> Output:
    """Show what 'apply' would change. Nothing is written."""
    with invocation.store() as store, invocation.working("Reading definitions and sources"):
        found = store.plan()
    return Output(_plan_data(found), _plan_blocks(found))


@click.command(
    "apply",
    cls=Command,
    short_help="Make the definitions the applied ones.",
    interrupted=_APPLY_STOPPED,
)
@click.option("--allow-destructive", is_flag=True, help="Allow to drop data.")
@pass_invocation
def apply(invocation: Invocation, *, allow_destructive: bool) -> Output:
    """Make the definitions the applied ones, all at once."""
    with invocation.store() as store, invocation.working("Reading definitions and sources"):
        result = store.apply(allow_destructive=allow_destructive)
    blocks = _plan_blocks(result.plan)
    if result.published:
        # The plan's last line says how to allow what has just been allowed.
        blocks = blocks[:-1] if result.plan.destructive else blocks
        blocks.append(Cell(f"Applied: revision {result.revision}.", "good"))
    if result.rebuilding:
        names = ", ".join(result.rebuilding)
        blocks.append(
            Cell(
                f"Serving from the former table until materialized anew: {names}."
                " Run 'featurestore materialize-incremental'.",
                "warning",
            )
        )
    if result.deleted:
        blocks.append(Cell(f"Deleted: {', '.join(result.deleted)}.", "warning"))
    data = {
        **_plan_data(result.plan),
        "revision": result.revision,
        "published": result.published,
        "rebuilding": result.rebuilding,
        "deleted": result.deleted,
    }
    return Output(data, blocks)


@click.command(
    "teardown",
    cls=Command,
    short_help="Delete the project and all its data.",
    interrupted=_TEARDOWN_STOPPED,
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def teardown(invocation: Invocation, *, yes: bool) -> Output:
    """Delete the project: its tables, online values and applied definitions, nothing else."""
    with invocation.store() as store:
        if not yes:
            _confirm(store.project)
        with invocation.working("Deleting"):
            deleted = store.teardown()
        project = store.project
    text = f"Project '{project}' is deleted: {count(len(deleted), 'table')}."
    return Output({"project": project, "deleted": deleted}, [Cell(text, "good")])


def _confirm(project: str) -> None:
    question = f"This deletes all data of project '{project}'. Type its name to go on"
    try:
        answer = click.prompt(question, err=True, default="", show_default=False)
    except click.Abort as error:
        # Raised for Ctrl-C and for the end of the input alike.
        if isinstance(error.__context__, KeyboardInterrupt):
            click.echo(err=True)
            raise StoppedError("Interrupted. Nothing was deleted.") from error
        answer = ""
    if not sys.stdin.isatty():
        click.echo(err=True)  # nobody typed a line break
    if answer.strip() != project:
        raise RequestError(
            "Nothing was deleted: the name is not that of the project.",
            got=repr(answer.strip()),
            allowed=project,
            hint="Type the project's name, or use --yes.",
        )


def _plan_data(plan: ApplyPlan) -> dict[str, object]:
    data: dict[str, object] = json.loads(plan.to_json())
    return {**data, "destructive": bool(plan.destructive)}


_SIGN_STYLES: dict[str, Style] = {"+": "good", "~": "warning", "-": "bad"}


def _plan_blocks(plan: ApplyPlan) -> list[Block]:
    from featurestore.services.plan_text import plan_lines

    return [Cell(line, _line_style(line)) for line in plan_lines(plan)]


def _line_style(line: str) -> Style:
    text = line.lstrip()
    if text.startswith("DROPS DATA") or line.startswith("It drops data"):
        return "bad"
    if line.startswith("Plan for"):
        return "heading"
    return _SIGN_STYLES.get(text[:1], "plain")


COMMANDS = (init, plan, apply, teardown)
