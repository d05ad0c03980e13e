"""Commands around a running store: `serve` and `status`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Output, Style, Table, duration

if TYPE_CHECKING:
    from featurestore.model.settings import ServingSettings
    from featurestore.services.status import ViewStatus
    from featurestore.serving.server import FeatureServer
    from featurestore.wiring import FeatureStore

_STATE_STYLES: dict[str, Style] = {"serving": "good", "rebuilding": "warning", "empty": "warning"}
_RUN_STYLES: dict[str, Style] = {"succeeded": "good", "failed": "bad"}


@click.command("serve", cls=Command, short_help="Serve online features over gRPC.")
@click.option("--address", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option(
    "--http-address", metavar="HOST:PORT", help="Where to listen for HTTP with JSON, beside gRPC."
)
@click.option(
    "--connect-address",
    metavar="HOST:PORT",
    help="Where to listen for the Connect protocol, beside gRPC.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Serve by N processes, which are kept alive; SIGHUP renews them one by one.",
)
@click.option("--pin", is_flag=True, help="Keep each worker to a processor of its own.")
@click.option("--worker-link", type=int, hidden=True)
@click.option("--metrics-folder", type=click.Path(path_type=Path), hidden=True)
@pass_invocation
def serve(  # noqa: PLR0917  (as click calls it)
    invocation: Invocation,
    address: str | None,
    http_address: str | None,
    connect_address: str | None,
    workers: int | None,
    pin: bool,  # noqa: FBT001
    worker_link: int | None,
    metrics_folder: Path | None,
) -> int:
    """Serve online features over gRPC until stopped; SIGTERM and Ctrl-C drain first."""
    asked = {
        "address": address,
        "http_address": http_address,
        "connect_address": connect_address,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if workers is not None:
        return _supervise(invocation, given, workers, pin=pin)
    if pin:
        raise click.UsageError("--pin is for workers; give --workers as well.")
    from featurestore.cli import render
    from featurestore.cli.pauses import ShortPauses

    with invocation.store() as store:
        render.log_to_stderr(invocation.output, stamped=True)
        serving = store.services.settings.serving.model_copy(update=given)
        server = _server(store, serving, metrics_folder, share_port=worker_link is not None)
        with ShortPauses():
            if worker_link is None:
                server.run()
            else:
                from featurestore.serving.worker_link import WorkerLink

                server.run(WorkerLink(worker_link, lambda: server.is_answering).begin)
    return 0


def _server(
    store: FeatureStore, serving: ServingSettings, metrics_folder: Path | None, *, share_port: bool
) -> FeatureServer:
    """Return the server of a repository, and of those who hear of its calls."""
    import structlog

    from featurestore.serving.observers import observers_of
    from featurestore.serving.server import FeatureServer
    from featurestore.store import BaseStore

    services = store.services
    log = structlog.get_logger("featurestore.serving")
    observers = observers_of(
        serving,
        services.folder,
        services.online,
        services.clock,
        log,
        metrics_folder=metrics_folder,
        served_log=lambda: services.served_log,
    )
    return FeatureServer(
        services.online,
        serving,
        # Those who push are asked by the server, by their own keys.
        events=BaseStore(services),
        event_reader=lambda *events: services.event_pusher.typed(*events),  # noqa: PLW0108
        share_port=share_port,
        folder=services.folder,
        clock=services.clock,
        observers=observers,
    )


def _supervise(invocation: Invocation, given: Mapping[str, str], workers: int, *, pin: bool) -> int:
    """Run worker processes of this command on the same addresses."""
    import contextlib

    import structlog

    from featurestore.cli import render
    from featurestore.clock import SystemClock
    from featurestore.serving.metrics.gathering import shown_together
    from featurestore.serving.processors import processors
    from featurestore.serving.shared_port import shared_port
    from featurestore.serving.supervisor import Supervisor
    from featurestore.settings_file import load_settings

    render.log_to_stderr(invocation.output, stamped=True)
    folder = invocation.folder
    settings = load_settings(folder).serving
    program = [sys.executable, "-m", "featurestore.cli", "serve", "--repo", str(folder)]
    program += ["--output", invocation.output, *(["--verbose"] if invocation.verbose else [])]
    with contextlib.ExitStack() as held:
        shared = {}
        for name in ("address", "http_address", "connect_address"):
            wanted = given.get(name, getattr(settings, name))
            if wanted is not None:
                shared[name] = held.enter_context(shared_port(wanted, f"serving.{name}"))
                program += [f"--{name.replace('_', '-')}", shared[name]]
        log = structlog.get_logger("featurestore.serving")
        program += held.enter_context(shown_together(settings.metrics_address, log))
        log.info("supervising", **shared, workers=workers)
        return Supervisor(
            lambda link: [*program, "--worker-link", str(link)],
            workers,
            clock=SystemClock(),
            log=log,
            drain_seconds=settings.drain_seconds,
            processors=processors() if pin else (),
        ).run()


@click.command("status", cls=Command, short_help="Show how fresh and healthy each view is.")
@click.option("--server", metavar="HOST:PORT", help="Ask this feature server what it serves.")
@pass_invocation
def status(invocation: Invocation, server: str | None) -> Output:
    """Show for each view whether it is fresh, on time and healthy."""
    if server is not None:
        from featurestore.cli.connecting import client_of
        from featurestore.cli.serving_info import serving_output

        with client_of(server) as client:
            return serving_output(server, client.serving_info())
    with invocation.store() as store:
        project, views = store.project, store.status()
    blocks: list[Block] = [
        Table(
            ("view", "state", "freshness", ">offline", ">online", "last run", "next run"),
            [_row(view) for view in views],
            empty="No view is applied. Run 'featurestore apply'.",
        )
    ]  # fmt: skip
    blocks += [line for view in views for line in _remarks(view)]
    return Output({"project": project, "views": [view_data(view) for view in views]}, blocks)


def view_data(view: ViewStatus) -> dict[str, Any]:
    """Return a view's status as `--output json` prints it."""
    from featurestore.cli import describing
    from featurestore.semantics.timeline import to_datetime

    def moment(instant: int | None) -> Any:
        return None if instant is None else to_datetime(instant)

    return {
        "view": view.view,
        "at": moment(view.at_us),
        "fingerprint": view.fingerprint,
        "state": view.state,
        "newest_event": moment(view.newest_event_us),
        "freshness_seconds": view.freshness_seconds,
        "covered": view.covered,
        "last_run": describing.run(view.last_run) if view.last_run else None,
        "last_success": describing.run(view.last_success) if view.last_success else None,
        "failed_runs": view.failed_runs,
        "schedule": view.schedule,
        "next_run": moment(view.next_run_us),
        "late": view.late,
        "rows_offline": view.rows_offline,
        "rows_online": view.rows_online,
        "online": view.online,
        "notes": view.notes,
    }


def _row(view: ViewStatus) -> list[str | Cell]:
    run = view.last_run
    due = view.next_run_us
    online = "?" if view.rows_online is None else f"{view.rows_online:,}"
    return [
        view.view,
        Cell("late", "bad") if view.late else Cell(view.state, _STATE_STYLES[view.state]),
        "" if view.freshness_seconds is None else duration(view.freshness_seconds),
        "?" if view.rows_offline is None else f"{view.rows_offline:,}",
        online if view.online else "-",
        Cell(run.state, _RUN_STYLES.get(run.state, "plain")) if run else "never",
        "" if due is None else f"in {duration((due - view.at_us) / 1_000_000)}",
    ]


def _remarks(view: ViewStatus) -> list[Block]:
    lines: list[Block] = []
    if view.late:
        lines.append(
            Cell(f"{view.view}: late: no run since its schedule '{view.schedule}' was due.", "bad")
        )
    if view.failed_runs and view.last_run is not None:
        runs = "run" if view.failed_runs == 1 else f"{view.failed_runs} runs"
        error = view.last_run.error or "a new run goes on"
        lines.append(Cell(f"{view.view}: last {runs} failed: {error}", "bad"))
    lines += [Cell(f"{view.view}: {note}", "warning") for note in view.notes]
    return lines


COMMANDS = (serve, status)
