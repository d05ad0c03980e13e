"""Commands that bring rows into tables: `materialize`, `materialize-incremental`, `schedule`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, StoppedError, pass_invocation
from featurestore.cli.output import Block, Cell, Output, Table, count, duration

if TYPE_CHECKING:
    from featurestore.scheduling import SchedulerEvent
    from featurestore.services.jobs import MaterializationReport
    from featurestore.services.materialization import Progress, ViewReport

_views = click.option(
    "--view", "views", multiple=True, metavar="VIEW", help="Only this view; may be repeated."
)
_AGAIN = "Running the command again does the rest; nothing is done twice."


@click.command("materialize", cls=Command, short_help="Materialize an interval.")
@click.argument("start")
@click.argument("end")
@_views
@pass_invocation
def materialize(invocation: Invocation, start: str, end: str, views: tuple[str, ...]) -> Output:
    """Materialize the rows of the interval [START, END).

    START and END are ISO 8601 instants with a zone, such as 2013-01-31T00:00:00Z. Running it again
    changes nothing; it also fills a lost online store again.
    """
    with _stages(invocation) as progress, invocation.store() as store:
        report = store.materialize(start, end, views or None, progress=progress)
    return _report(report)


@click.command("materialize-incremental", cls=Command, short_help="Materialize all that is new.")
@click.argument("end", required=False)
@_views
@pass_invocation
def materialize_incremental(
    invocation: Invocation, end: str | None, views: tuple[str, ...]
) -> Output:
    """Materialize all that is new up to END, late rows included; by default up to now."""
    with _stages(invocation) as progress, invocation.store() as store:
        report = store.materialize_incremental(end, views or None, progress=progress)
    return _report(report)


@contextlib.contextmanager
def _stages(invocation: Invocation) -> Iterator[Progress]:
    """Show how far each view is; after an interrupt, say what was done and what was not."""
    from featurestore.cli import render

    reached: dict[str, str] = {}
    try:
        with _terminable(), render.view_progress(invocation.output) as show:

            def progress(view: str, stage: str) -> None:
                reached[view] = stage
                show(view, stage)

            yield progress
    except KeyboardInterrupt as error:
        raise StoppedError(_left_behind(reached)) from error


def _left_behind(reached: dict[str, str]) -> str:
    done = sorted(view for view, stage in reached.items() if stage == "done")
    stopped = sorted(view for view, stage in reached.items() if stage != "done")
    text = f"Interrupted. Done: {', '.join(done) or 'no view'}."
    if stopped:
        text += f" Stopped, and not marked done: {', '.join(stopped)}."
    return f"{text} {_AGAIN}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that the runs say in the registry that they were stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _report(report: MaterializationReport) -> Output:
    columns = (
        "view", ">read", ">written", ">pushed", ">rejected", ">tied", ">seconds",
    )  # fmt: skip
    rows = [_report_row(view) for view in report.views]
    blocks: list[Block] = [Table(columns, rows, empty="No view is applied.")]
    blocks += [warning for view in report.views for warning in _warnings(view)]
    data = {
        "views": [dataclasses.asdict(view) for view in report.views],
        "seconds": report.seconds,
    }
    return Output(data, blocks)


def _report_row(view: ViewReport) -> list[str | Cell]:
    def odd(number: int) -> Cell:
        return Cell(f"{number:,}", "warning" if number else "plain")

    return [
        view.view,
        f"{view.rows_read:,}",
        f"{view.rows_written:,}",
        f"{view.rows_pushed:,}",
        odd(view.rows_rejected),
        odd(view.rows_tied),
        f"{view.seconds:.2f}",
    ]


def _warnings(view: ViewReport) -> Iterator[Cell]:
    if view.rows_rejected:
        rows = count(view.rows_rejected, "row")
        yield Cell(
            f"Warning: {view.view}: {rows} left out: without a join key or an event timestamp.",
            "warning",
        )
    if view.rows_tied:
        rows = count(view.rows_tied, "row")
        yield Cell(
            f"Warning: {view.view}: {rows} with the same key and timestamps as another, but other"
            " values; one of them was taken.",
            "warning",
        )


@click.command("schedule", cls=Command, short_help="Materialize views when they are due.")
@pass_invocation
def schedule(invocation: Invocation) -> int:
    """Materialize views when their schedules are due, until stopped.

    Schedules are cron expressions in UTC. SIGTERM and Ctrl-C let the runs that go on end; a second
    one stops them. Newly applied definitions are picked up. With --output json each event is one
    line.
    """
    from featurestore import scheduling

    if not invocation.verbose:
        # What APScheduler logs, tracebacks included, comes as events of ours.
        logging.getLogger("apscheduler").addHandler(logging.NullHandler())
    with scheduling.open_store(invocation.folder) as store:
        teller = _Teller(invocation)
        scheduler = scheduling.Scheduler(store, tell=teller.tell)
        scheduler.run()
    return 0


class _Teller:
    """Prints what the scheduler does, a line an event; with JSON one object a line."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._lock = threading.Lock()

    def tell(self, event: SchedulerEvent) -> None:
        """Print an event."""
        from featurestore.cli import render

        with self._lock:
            if self._invocation.output == "json":
                render.write_json_line(event_data(event))
            else:
                render.show_line(event_line(event), _EVENT_STYLES.get(event.kind, "plain"))


_EVENT_STYLES: dict[str, Any] = {
    "succeeded": "good",
    "failed": "bad",
    "gave up": "bad",
    "bug": "bad",
    "unreachable": "bad",
    "skipped": "warning",
    "stopped": "warning",
}


def event_data(event: SchedulerEvent) -> dict[str, Any]:
    """Return an event as `--output json` prints it."""
    from featurestore.semantics.timeline import to_datetime

    return {
        "at": to_datetime(event.at_us),
        "event": event.kind,
        "view": event.view,
        "attempt": event.attempt,
        "next": None if event.next_us is None else to_datetime(event.next_us),
        "report": None if event.report is None else dataclasses.asdict(event.report),
        "error": None if event.error is None else _one_line(event.error),
        "text": event.text,
    }


def event_line(event: SchedulerEvent) -> str:
    """Return an event as a line for people."""
    from featurestore.semantics.timeline import format_instant

    parts = [format_instant(event.at_us // 1_000_000 * 1_000_000), event.view or "scheduler"]
    parts.append(f"{event.kind}{f' (try {event.attempt})' if event.attempt > 1 else ''}")
    more = [event.text] if event.text else []
    if event.report is not None:
        report = event.report
        more.append(
            f"{count(report.rows_read, 'row')} read, {report.rows_written:,} written,"
            f" {report.rows_pushed:,} pushed in {duration(report.seconds)}"
        )
    if event.error is not None:
        more.append(_one_line(event.error))
    if event.next_us is not None:
        verb = "next try" if event.kind == "failed" else "next"
        more.append(f"{verb} {format_instant(event.next_us // 1_000_000 * 1_000_000)}")
    return "  ".join(parts) + (f": {'; '.join(more)}" if more else "")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


COMMANDS = (materialize, materialize_incremental, schedule)
