"""A process that materializes newer rows of the same entities over and over, until it is stopped.

`python -m benchmarks.writing REPOSITORY ENTITIES FOLDER=FEATURE,... ...` names the folder and the
features of each view. On SIGTERM it ends the round that it is in and prints what it wrote as JSON.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import View, write_rows
from benchmarks.processes import running, stop

# The rows of the first files lie in the 30 days before.
_FIRST_DAY = 31
_DAYS_A_ROUND = 1 / 1440


@dataclass
class Written:
    """What was written beside a load: online rows, rounds and seconds; filled when it has ended."""

    rows: int = 0
    rounds: int = 0
    seconds: float = field(default=0.0)


@contextmanager
def writing(repository: Path, views: Sequence[View], entities: int) -> Iterator[Written]:
    """Materialize beside the block, in a process of its own.

    Raises:
        RuntimeError: It failed, or wrote nothing.
    """
    log = repository / "writing.log"
    out = log.with_name("writing.log.out")
    command = [sys.executable, "-m", "benchmarks.writing", str(repository), str(entities)]
    command += [f"{view.folder}={','.join(view.features)}" for view in views]
    written = Written()
    with running(command, log, lambda: out.stat().st_size > 0) as process:
        yield written
        stop(process)
    lines = out.read_text().splitlines()
    if process.returncode or len(lines) < 2:  # noqa: PLR2004
        raise RuntimeError(f"materializing beside the load failed:\n{log.read_text()[-3000:]}")
    found = json.loads(lines[-1])
    written.rows, written.rounds, written.seconds = (
        found["rows"], found["rounds"], found["seconds"],
    )  # fmt: skip
    if not written.rows:
        raise RuntimeError("nothing was materialized beside the load")


def _write(repository: str, entities: int, views: Sequence[View]) -> None:
    from featurestore import FeatureStore

    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ending.append(number))
    rows = rounds = 0
    with FeatureStore(repository) as store:
        first = len(list(views[0].folder.iterdir()))
        begun = time.perf_counter()
        while not ending:
            number = first + rounds
            for view in views:
                path = view.folder / f"newer-{number}.parquet"
                days = _FIRST_DAY + number * _DAYS_A_ROUND
                write_rows(view, path, range(entities), seed=number, days=days)
            report = store.materialize_incremental()
            rows += sum(view.rows_pushed for view in report.views)
            rounds += 1
            if rounds == 1:
                sys.stdout.write("writing\n")
                sys.stdout.flush()
        seconds = time.perf_counter() - begun
    sys.stdout.write(f"{json.dumps({'rows': rows, 'rounds': rounds, 'seconds': seconds})}\n")


def main() -> None:
    """Be that process."""
    repository, entities, *described = sys.argv[1:]
    views = []
    for index, text in enumerate(described):
        folder, _, features = text.partition("=")
        views.append(View(f"view{index}", Path(folder), features.split(",")))
    _write(repository, int(entities), views)


if __name__ == "__main__":
    main()
