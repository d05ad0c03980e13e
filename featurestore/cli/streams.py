"""Commands of live events: `push` sends them, `ingest` takes them online and into tables."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Cell, Facts, Output, Style, Table, count, duration
from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from featurestore.services.ingest_status import IngestEvent, SourceStatus
    from featurestore.services.ingestion import Ingestor
    from featurestore.wiring import FeatureStore

_STATUS_SECONDS = 0.5
_REPORT_SECONDS = 10.0
_SWITCH_SECONDS = 0.0005
_STYLES: dict[str, Style] = {
    "trouble": "bad",
    "bug": "bad",
    "recovered": "good",
    "serving": "good",
}


@click.command("push", cls=Command, short_help="Push live events to the stream of a source.")
@click.argument("source")
@click.argument("file", default="-", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "csv", "jsonl"]),
    help="The format of FILE; by default told from its name, and JSON lines for '-'.",
)
@pass_invocation
def push(invocation: Invocation, source: str, file: Path, kind: str | None) -> Output:
    """Push the events in FILE, Parquet, CSV or JSON lines, to the stream of SOURCE.

    Without FILE, or with '-', JSON lines are read from standard input. Events have the columns of
    the source's history; columns that are missing are null. Pushing events again changes nothing.
    """
    from featurestore.cli import event_files

    positions: dict[str, int] = {}
    done = 0
    with invocation.store() as store, _progress(invocation) as advance:
        store.gate.changing("push", "write", "source", [source]).begin()
        pusher = store.services.event_pusher
        pusher.source(source)
        for events in event_files.read(file, kind, pusher, source):
            receipt = store.push(source, events)
            done += receipt.accepted
            positions |= receipt.positions
            advance(done)
    facts = Facts(
        [
            ("source", source),
            ("events", f"{done:,}"),
            *((f"partition {name}", f"up to {at}") for name, at in sorted(positions.items())),
        ]
    )
    return Output({"source": source, "accepted": done, "positions": positions}, [facts])


@click.command("ingest", cls=Command, short_help="Take live events online and into tables.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Only this source; may be repeated.",
)
@click.option("--until-idle", is_flag=True, help="End when all that is in the streams is done.")
@click.option(
    "--workers",
    type=click.IntRange(1, 32),
    default=1,
    show_default=True,
    help="Members of the consumer group that this process has for each source.",
)
@pass_invocation
def ingest(
    invocation: Invocation, sources: tuple[str, ...], *, until_idle: bool, workers: int
) -> Output | int:
    """Take live events online and into tables, until stopped.

    SIGTERM and Ctrl-C write what is online into the logs first; a second one ends at once. Nothing
    is lost either way: what was not written comes again. With --output json each line is an object.
    """
    from featurestore.cli import render
    from featurestore.cli.pauses import ShortPauses
    from featurestore.services.membership import own_name

    # Log and tables are written beside: what is to be online in milliseconds waits for less of it.
    sys.setswitchinterval(_SWITCH_SECONDS)
    with invocation.store() as store:
        services = store.services
        locks = services.folder / services.settings.offline.path / ".locks"
        named = list(sources) or None
        with store.gate.changing("ingest", "write", "source", named):
            pass
        with own_name(locks) as member:
            screen = _Screen(invocation)
            ingestor = services.ingestor(member, sources=sources, workers=workers, tell=screen.tell)
            with (
                ShortPauses(),
                _stopping(ingestor),
                screen.showing(ingestor),
                _permitted(store, named, ingestor),
            ):
                ingestor.run(until_idle=until_idle)
            if invocation.output == "json":
                statuses = [status_data(status) for status in ingestor.finished]
                render.write_json_line({"event": "finished", "sources": statuses})
                return 0
            return _summary(ingestor.finished)


@contextlib.contextmanager
def _progress(invocation: Invocation) -> Iterator[Any]:
    from featurestore.cli import render

    with render.live_line(invocation.output) as show:
        yield lambda done: show(f"{count(done, 'event')} pushed")


@contextlib.contextmanager
def _stopping(ingestor: Ingestor) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C end the work in good order, and the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        # The interrupted thread may hold the very lock that setting an event takes.
        threading.Thread(target=ingestor.stop, name="stop", daemon=True).start()
        signal.signal(number, signal.default_int_handler)

    kinds = (signal.SIGTERM, signal.SIGINT)
    former = [signal.signal(kind, stop) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, former, strict=True):
            signal.signal(kind, handler)


@contextlib.contextmanager
def _permitted(
    store: FeatureStore, sources: list[str] | None, ingestor: Ingestor
) -> Iterator[None]:
    """End the work in good order once the key that it goes on under is refused."""
    over = threading.Event()
    errors: list[FeatureStoreError] = []

    def watch() -> None:
        while not over.wait(store.services.settings.serving.refresh_seconds):
            try:
                store.gate.changing("ingest", "write", "source", sources).begin()
            except FeatureStoreError as error:
                errors.append(error)
                ingestor.stop()
                return

    thread = threading.Thread(target=watch, name="permitted", daemon=True)
    if store.gate.asks:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if store.gate.asks:
            thread.join()
    if errors:
        raise errors[0]


class _Screen:
    """Prints events as lines, and on a terminal one line that tells how far each source is."""

    def __init__(self, invocation: Invocation) -> None:
        self._mode = invocation.output
        self._lock = threading.Lock()

    def tell(self, event: IngestEvent) -> None:
        """Print an event."""
        from featurestore.cli import render

        with self._lock:
            if self._mode == "json":
                line = {"event": event.kind, "source": event.source or None, "text": event.text}
                render.write_json_line(line)
            else:
                parts = [event.source or "ingest", event.kind]
                text = "  ".join(parts) + (f": {event.text}" if event.text else "")
                render.show_line(text, _STYLES.get(event.kind, "plain"))

    @contextlib.contextmanager
    def showing(self, ingestor: Ingestor) -> Iterator[None]:
        """Show the status while the ingestor runs."""
        from featurestore.cli import render

        over = threading.Event()
        with render.live_line(self._mode) as show:
            pause = _STATUS_SECONDS if render.is_live(self._mode) else _REPORT_SECONDS

            def watch() -> None:
                while not over.wait(pause):
                    statuses = ingestor.status()
                    if render.is_live(self._mode):
                        show("   ".join(status_line(status) for status in statuses))
                    else:
                        self._report(statuses)

            thread = threading.Thread(target=watch, name="status", daemon=True)
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()

    def _report(self, statuses: list[SourceStatus]) -> None:
        from featurestore.cli import render

        with self._lock:
            for status in statuses:
                if self._mode == "json":
                    render.write_json_line({"event": "status", **status_data(status)})
                else:
                    render.show_line(status_line(status))


def status_line(status: SourceStatus) -> str:
    """Return how far a source is, in a line."""
    lags = [part.lag for part in status.partitions.values()]
    known = [lag for lag in lags if lag is not None]
    parts = [
        f"{status.source}: {count(status.events, 'event')}",
        f"{status.events_per_second:,.0f}/s",
        f"lag {sum(known):,}" if known else "lag ?",
    ]
    if status.refused:
        parts.append(f"{status.refused:,} refused")
    if status.trouble:
        parts.append(f"waits: {status.trouble}")
    return "  ".join(parts)


def status_data(status: SourceStatus) -> dict[str, Any]:
    """Return how far a source is, as `--output json` prints it."""
    from featurestore.semantics.timeline import to_datetime

    last = status.last_event_us
    return {
        "source": status.source,
        "member": status.member,
        "events": status.events,
        "events_per_second": status.events_per_second,
        "refused": status.refused,
        "waiting": status.waiting,
        "last_event": None if last is None else to_datetime(last),
        "idle": status.idle,
        "trouble": status.trouble,
        "partitions": {
            name: {"applied": part.applied, "logged": part.logged, "lag": part.lag}
            for name, part in status.partitions.items()
        },
    }


def _summary(statuses: list[SourceStatus]) -> Output:
    columns = ("source", ">events", ">refused", ">lag", "last event")
    rows: list[list[str | Cell]] = []
    for status in statuses:
        lags = [part.lag or 0 for part in status.partitions.values()]
        refused = Cell(f"{status.refused:,}", "warning" if status.refused else "plain")
        age = "" if status.age_seconds is None else f"{duration(status.age_seconds)} ago"
        rows.append([status.source, f"{status.events:,}", refused, f"{sum(lags):,}", age])
    data = {"sources": [status_data(status) for status in statuses]}
    return Output(data, [Table(columns, rows, empty="No applied view has a stream.")])


COMMANDS = (push, ingest)
