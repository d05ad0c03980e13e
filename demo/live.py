"""The live part of the demo: flights are pushed as they leave, served at once, and verified.

Two days are replayed: the store's clock shows their time. What has left is pushed to the stream of
departures, while a thread ingests it; the server, another process, is asked over gRPC until it
answers from what was pushed. After each push the values of some hundred entities are looked up at
several instants and computed again from the tables; in the end the command line does the same
through the server.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from demo.stores import FLIGHTS, REPOSITORY, ServerFailedError, open_store, server, urls
from demo.story import Story
from featurestore import FeatureStore, OnlineClient
from featurestore.clock import FixedClock
from featurestore.semantics.timeline import to_instant

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.services.ingestion import Ingestor

SERVICE = "airport_traffic"
VIEWS = ("origin_congestion", "carrier_punctuality", "aircraft_last_departure")
# Ten days of history fill the widest window, of a week; then it is live, around Christmas.
HISTORY = datetime(2013, 12, 12, tzinfo=UTC)
LIVE = datetime(2013, 12, 22, 10, tzinfo=UTC)
_PUSHES = 4
_SAMPLE = 300
_PATIENCE_SECONDS = 60.0
_PAUSE = threading.Event()
_SECOND = 1_000_000
_STEP = timedelta(hours=6)
_AFTER = tuple(timedelta(minutes=minutes) for minutes in (0, 1, 25, 60, 61, 150))
_SHOWN = ("dep_delay_mean_1h", "dep_delay_mean_24h", "count_1h", "late_share_24h")
_COLUMNS = (
    "it is", ">pushed", ">JFK in 1 h", ">late", ">late in 24 h", ">B6 late", ">answered in",
    ">compared", ">different",
)  # fmt: skip


def go_live(story: Story, state: Path) -> bool:
    """Replay some days as live events; return whether all that was served was right."""
    story.chapter(f"Live: flights of {LIVE:%-d %B} and after are pushed while they leave")
    folder = _repository(state)
    clock = FixedClock(to_instant(LIVE))
    with open_store(state, folder, clock) as store:
        store.apply()
        store.materialize(HISTORY, LIVE, VIEWS)
        with server(state, folder) as (address, pid), OnlineClient(address, timeout=30) as client:
            story.say(
                f"Server {pid} answers on {address}. The history ends at {_text(LIVE)}; what leaves"
                " then is pushed to the stream 'departures'."
            )
            rows, compared, different = [], 0, 0
            with _ingesting(store) as ingestor:
                _settle(ingestor, clock)
                for now, flights in _departures():
                    clock.set(to_instant(now))
                    row = _push(store, client, now, flights)
                    _settle(ingestor, clock)
                    report = store.verify(
                        SERVICE, sample=_SAMPLE, as_of=[now + after for after in _AFTER]
                    )
                    compared += report.compared
                    different += report.different
                    rows.append([*row, f"{report.compared:,}", f"{report.different:,}"])
            story.table(_COLUMNS, rows)
            told = _verify_by_command(address, state, folder, now)
    instants = len(rows) * len(_AFTER)
    colour = "green" if compared and not different else "red"
    story.say(
        f"[{colour}]{compared:,} values compared at {instants} instants, {different:,} different."
        f"[/{colour}] And through the server:"
    )
    story.say(
        f"[dim]$ featurestore verify --service {SERVICE} --sample 200 --server {address}"
        " --as-of ...[/dim]"
    )
    story.say(told.stdout.split("\n")[0] if told.returncode == 0 else told.stdout + told.stderr)
    return compared > 0 and not different and told.returncode == 0


def _push(store: FeatureStore, client: OnlineClient, now: datetime, flights: pa.Table) -> list[str]:
    """Push flights and ask the server until it answers from them; return what is to be shown."""
    started = time.perf_counter()
    positions = store.push("departures", flights).positions
    deadline = started + _PATIENCE_SECONDS
    while True:
        asked = [{"origin": "JFK", "carrier": "B6", "tailnum": "N228JB"}]
        response = client.get_online_features(SERVICE, asked, as_of=now)
        seconds = time.perf_counter() - started
        applied = response.applied.get("origin_congestion", {})
        if all(applied.get(name, [None])[0] == at for name, at in positions.items()):
            break
        if time.perf_counter() > deadline:
            raise ServerFailedError(f"The server does not answer from what was pushed at {now}.")
        _PAUSE.wait(0.005)
    answer = response.to_dict()
    hour, day, count, late = (answer[name][0] for name in _SHOWN)
    shown = [f"{now:%-d %b %H:%M}Z", f"{len(flights):,}", str(count), _minutes(hour), _minutes(day)]
    return [*shown, f"{late:.0%}", f"{seconds * 1e3:.0f} ms"]


@contextlib.contextmanager
def _ingesting(store: FeatureStore) -> Iterator[Ingestor]:
    """Ingest in a thread, as `featurestore ingest` does in a process."""
    ingestor = store.services.ingestor("demo")
    thread = threading.Thread(target=ingestor.run, name="ingest")
    thread.start()
    try:
        yield ingestor
    finally:
        ingestor.stop()
        thread.join()


def _settle(ingestor: Ingestor, clock: FixedClock) -> None:
    """Let seconds pass until what is online is in the log; then let the tables follow it."""
    deadline = time.perf_counter() + _PATIENCE_SECONDS
    while time.perf_counter() < deadline and not _is_idle(ingestor):
        clock.advance(_SECOND)
        _PAUSE.wait(0.01)
    ingestor.follow()


def _is_idle(ingestor: Ingestor) -> bool:
    statuses = ingestor.status()
    return bool(statuses) and all(status.idle for status in statuses)


def _departures() -> Iterator[tuple[datetime, pa.Table]]:
    """Yield the flights that left since the last time, and a second behind the end of that time."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET file_search_path = '{REPOSITORY}'")
        for number in range(_PUSHES):
            start = LIVE + number * _STEP
            sql = _DEPARTED.format(start=start.isoformat(), end=(start + _STEP).isoformat())
            yield start + _STEP, connection.sql(sql).to_arrow_table()


_DEPARTED = f"""
    SELECT carrier || flight || ' ' || make_date(year, month, day) || ' ' || origin AS flight_id,
           origin, dest, carrier, flight, tailnum, dep_delay,
           time_hour + to_minutes(minute) + to_minutes(CAST(dep_delay AS BIGINT)) AS departed_at
    FROM {FLIGHTS}
    WHERE dep_delay IS NOT NULL
      AND departed_at >= TIMESTAMPTZ '{{start}}' AND departed_at < TIMESTAMPTZ '{{end}}'
    ORDER BY departed_at
"""


def _verify_by_command(
    address: str, state: Path, folder: Path, now: datetime
) -> subprocess.CompletedProcess[str]:
    command = str(Path(sys.executable).with_name("featurestore"))
    instants: Sequence[str] = [
        word for after in _AFTER for word in ("--as-of", (now + after).isoformat())
    ]
    return subprocess.run(  # noqa: S603  (our own command)
        [
            command,
            "verify",
            "--service",
            SERVICE,
            "--sample",
            "200",
            "--server",
            address,
            *instants,
        ],
        cwd=folder,
        env=urls(state, inherit=True),
        capture_output=True,
        text=True,
        check=False,
    )


def _repository(state: Path) -> Path:
    """Return a repository of the same definitions, so that its stream is one of its own."""
    folder = state / "repository"
    folder.mkdir(parents=True)
    (folder / "definitions").symlink_to(REPOSITORY / "definitions", target_is_directory=True)
    shutil.copy(REPOSITORY / "featurestore.toml", folder)
    return folder


def _minutes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} min"


def _text(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M}Z"
