"""Commands around a running store: `serve` and `status`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table, duration

if TYPE_CHECKING:
    from featurestore.services.status import ViewStatus
    from featurestore.serving.info import ServingInfo

_STATE_STYLES: dict[str, Style] = {"serving": "good", "rebuilding": "warning", "empty": "warning"}
_RUN_STYLES: dict[str, Style] = {"succeeded": "good", "failed": "bad"}


@click.command("serve", cls=Command, short_help="Serve online features over gRPC.")
@click.option("--address", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Serve by N processes, which are kept alive; SIGHUP renews them one by one.",
)
@click.option("--worker-link", type=int, hidden=True)
@pass_invocation
def serve(
    invocation: Invocation, address: str | None, workers: int | None, worker_link: int | None
) -> int:
    """Serve online features over gRPC until stopped; SIGTERM and Ctrl-C drain first."""
    if workers is not None:
        return _supervise(invocation, address, workers)
    from featurestore.cli import render
    from featurestore.serving.server import FeatureServer

    with invocation.store() as store:
        render.log_to_stderr(invocation.output, stamped=True)
        serving = store.services.settings.serving
        if address is not None:
            serving = serving.model_copy(update={"address": address})
        server = FeatureServer(
            store.services.online,
            serving,
            events=store,
            share_port=worker_link is not None,
            folder=store.services.folder,
            clock=store.services.clock,
        )
        if worker_link is None:
            server.run()
        else:
            from featurestore.serving.worker_link import WorkerLink

            server.run(WorkerLink(worker_link, lambda: server.is_answering).begin)
    return 0


def _supervise(invocation: Invocation, address: str | None, workers: int) -> int:
    """Run worker processes of this command on one address."""
    import structlog

    from featurestore.cli import render
    from featurestore.clock import SystemClock
    from featurestore.serving.shared_port import shared_port
    from featurestore.serving.supervisor import Supervisor
    from featurestore.settings_file import load_settings

    render.log_to_stderr(invocation.output, stamped=True)
    folder = invocation.folder
    settings = load_settings(folder).serving
    program = [sys.executable, "-m", "featurestore.cli", "serve", "--repo", str(folder)]
    program += ["--output", invocation.output, *(["--verbose"] if invocation.verbose else [])]
    with shared_port(address or settings.address) as shared:
        log = structlog.get_logger("featurestore.serving")
        log.info("supervising", address=shared, workers=workers)
        return Supervisor(
            lambda link: [*program, "--address", shared, "--worker-link", str(link)],
            workers,
            clock=SystemClock(),
            log=log,
            drain_seconds=settings.drain_seconds,
        ).run()


@click.command("status", cls=Command, short_help="Show how fresh and healthy each view is.")
@click.option("--server", metavar="HOST:PORT", help="Ask this feature server what it serves.")
@pass_invocation
def status(invocation: Invocation, server: str | None) -> Output:
    """Show for each view whether it is fresh, on time and healthy."""
    if server is not None:
        from featurestore.cli.connecting import client_of

        with client_of(server) as client:
            return _server_output(server, client.serving_info())
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


def _server_output(address: str, info: ServingInfo) -> Output:
    facts = Facts(
        [
            ("server", address),
            ("version", info.server_version),
            ("project", info.project),
            ("revision", str(info.revision)),
            ("services", ", ".join(info.services) or "(none)"),
        ]
    )
    rows = [
        [
            name,
            "on-demand" if view.on_demand else ", ".join(view.join_keys) or "(global)",
            ", ".join(view.features),
            view.fingerprint,
        ]
        for name, view in info.views.items()
    ]
    data = {
        "address": address,
        "server_version": info.server_version,
        "project": info.project,
        "revision": info.revision,
        "views": {
            name: {
                "fingerprint": view.fingerprint,
                "on_demand": view.on_demand,
                "join_keys": view.join_keys,
                "features": view.features,
                "request": view.request,
            }
            for name, view in info.views.items()
        },
        "services": info.services,
    }
    return Output(data, [facts, Table(("view", "~join keys", "~features", "fingerprint"), rows)])


COMMANDS = (serve, status)
