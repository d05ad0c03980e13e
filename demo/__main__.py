"""The worked example as a story: plan, apply, materialize, train, serve, and prove parity.

A year of flights is materialized into one store and becomes a training set. Then the year is
replayed into a second store, while a server in another process answers from it; its answers are
compared, bit for bit, with training rows of the first store. At last some days are replayed as live
events, and whatever windows over them are served is verified. Any difference ends the demo with
exit code 1. It works in a folder of its own and stops what it started, also when interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from demo.live import LIVE, go_live
from demo.proof import prove
from demo.stores import (
    BEGINNING,
    END,
    REPOSITORY,
    VIEWS,
    open_store,
    terminated_as_interrupt,
)
from demo.story import Story, megabytes
from demo.training import train

if TYPE_CHECKING:
    from featurestore import FeatureStore

_WIDTH = 110
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 0 when everything was equal, 1 when something was not, 130 when it was
        interrupted.
    """
    options = _options(arguments)
    terminal = sys.stdout.isatty()
    story = Story(Console(width=None if terminal else _WIDTH, highlight=False))
    started = time.perf_counter()
    for former in ("store", "replay", "live"):
        shutil.rmtree(options.state / former, ignore_errors=True)
    _tell_machine(story, options.state)
    try:
        with terminated_as_interrupt(), open_store(options.state / "store") as store:
            apply(story, store)
            materialize(story, store, options.state / "store", options.until)
            train(story, store, options.until)
            equal = prove(story, store, options.state / "replay", options.until)
            if options.until > LIVE:
                equal = go_live(story, options.state / "live") and equal
    except KeyboardInterrupt:
        story.console.print("\nInterrupted; the server is stopped.")
        return _INTERRUPTED
    story.console.print(f"\nDone in {time.perf_counter() - started:.1f} s.")
    return 0 if equal else 1


def apply(story: Story, store: FeatureStore) -> None:
    """Show the plan and apply it."""
    story.chapter("Plan and apply the definitions")
    plan = store.plan()
    for kind in dict.fromkeys(change.kind for change in plan.changes):
        names = [change.name for change in plan.changes if change.kind == kind]
        story.say(f"[green]+[/green] {kind.replace('_', ' ')}: {', '.join(names)}")
    result = store.apply()
    story.say(f"Applied as revision {result.revision}.")


def materialize(story: Story, store: FeatureStore, state: Path, until: datetime) -> None:
    """Write every view's table and push the newest rows online."""
    story.chapter(f"Materialize [{BEGINNING:%Y-%m-%d}, {until:%Y-%m-%d})")
    with story.progress() as progress:
        views = sorted(set(VIEWS.values()))
        report = store.materialize(BEGINNING, until, views, progress=progress)
    story.table(
        ("view", ">rows read", ">written", ">newest online", ">tied", ">seconds"),
        [
            [
                view.view,
                *(
                    f"{number:,}"
                    for number in (
                        view.rows_read, view.rows_written, view.rows_pushed, view.rows_tied,
                    )
                ),
                f"{view.seconds:.2f}",
            ]
            for view in report.views
        ],
    )  # fmt: skip
    story.say(
        f"{report.rows_written:,} rows in {report.seconds:.1f} s"
        f" ({report.rows_written / report.seconds:,.0f} rows/s);"
        f" tables {megabytes(state / 'offline')}, online store {megabytes(state / 'online')}."
    )


def _tell_machine(story: Story, state: Path) -> None:
    shown = state.relative_to(REPOSITORY) if state.is_relative_to(REPOSITORY) else state
    story.console.print("[bold]Flights out of New York City, 2013[/bold]")
    story.say(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python"
        f" {platform.python_version()}; data {megabytes(REPOSITORY / 'definitions' / 'data')},"
        f" state in {shown}"
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Run the worked example from end to end."
    )
    parser.add_argument(
        "--state",
        type=lambda given: Path(given).resolve(),
        default=REPOSITORY / "data" / "demo",
        help="where to keep the folders store, replay and live, made anew (default: data/demo)",
    )
    parser.add_argument(
        "--until",
        type=lambda given: datetime.fromisoformat(given).replace(tzinfo=UTC),
        default=END,
        help="leave out all that came later, as in 2013-01-15 (default: the whole year)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
