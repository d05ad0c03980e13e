"""Materializes a small repository and dies by SIGKILL at the n-th step, for every n.

Run as a program: `python -m tests.integration.kill_driver every FOLDER ONLINE_URL`. Every call that
the job makes to the outside (registry, tables, engine, online store) is a step; the process is
killed right before it and, in another round, right after it. Then the job is started again, and
what is in the table, in the online store and in the ledger is compared with what a run that never
died gives. A line is printed for each.
Each attempt is a forked process of its own; this one only imports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import deltalake  # noqa: F401  (imported once, before the forks)
import duckdb
import lmdb  # noqa: F401
import polars  # noqa: F401, ICN001
import pyarrow.parquet  # noqa: F401
import redis
import sqlalchemy  # noqa: F401

from featurestore import FeatureStore
from featurestore.compile.plan import table_id
from featurestore.semantics.keys import encode_key, namespace

DEFINITIONS = """
from datetime import timedelta
from featurestore import Entity, FeatureView, FileSource
rides = FeatureView(
    name="rides",
    entities=[Entity(name="driver", join_keys=["driver"])],
    source=FileSource(name="rides_source", path="rides/*.parquet",
                      event_timestamp="happened", created_timestamp="seen"),
    features=["fare", "note"],
)
"""
_EVENT = "TIMESTAMPTZ '2024-01-01 00:00:00+00' + INTERVAL (i) MINUTE"
FILES = {
    "first": f"SELECT i % 7 AS driver, {_EVENT} AS happened, happened + INTERVAL 1 HOUR AS seen,"
    " i * 1.5e0 AS fare, 'a' || i AS note FROM range(200) t(i)",
    # Late rows, corrections of the same events, and new events.
    "second": f"SELECT i % 9 AS driver, {_EVENT} AS happened, happened + INTERVAL 5 HOUR AS seen,"
    " i * 2.5e0 AS fare, 'b' || i AS note FROM range(100, 300) t(i)",
}
_STEPS = {
    "registry": ("save_run", "write_ledger", "save_snapshot", "publish"),
    "tables": ("commit",),
    "online_store": ("write",),
    "engine": ("session",),
}


class Dying:
    """Passes calls on and kills this process at one of them.

    Args:
        inner: What is called.
        methods: The methods that count as steps.
        counter: [steps so far], shared by all.
        at: The step to die at; None never dies.
        after: Whether to die after the call instead of before it.
    """

    def __init__(
        self,
        inner: Any,
        methods: tuple[str, ...],
        counter: list[int],
        at: int | None,
        *,
        after: bool,
    ) -> None:
        self._inner = inner
        self._methods = methods
        self._counter = counter
        self._at = at
        self._after = after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._methods:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._counter[0] += 1
            due = self._counter[0] == self._at
            if due and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*args, **kwargs)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def add_file(folder: Path, name: str) -> None:
    """Write one of the source's files."""
    (folder / "rides").mkdir(exist_ok=True)
    connection = duckdb.connect()
    connection.execute(f"COPY ({FILES[name]}) TO '{folder}/rides/{name}.parquet' (FORMAT parquet)")
    connection.close()


def prepare(folder: Path, url: str, project: str) -> None:
    """Write a repository whose first file is there and whose definitions are applied."""
    (folder / "definitions").mkdir(parents=True)
    (folder / "definitions" / "rides.py").write_text(DEFINITIONS, encoding="utf-8")
    (folder / "featurestore.toml").write_text(
        f'project = "{project}"\n[online]\nurl = "{url}"\nbatch_rows = 4\n[offline]\nworkers = 1\n',
        encoding="utf-8",
    )
    add_file(folder, "first")
    with FeatureStore(folder) as store:
        store.apply()


def run(folder: Path, at: int | None = None, *, after: bool = False) -> int:
    """Materialize what is new; return how many steps there were."""
    counter = [0]
    with FeatureStore(folder) as store:
        for part, methods in _STEPS.items():
            inner = getattr(store.services, part)
            store.services.__dict__[part] = Dying(inner, methods, counter, at, after=after)
        store.materialize_incremental()
    return counter[0]


def observe(folder: Path) -> dict[str, Any]:
    """Return what is in the table, online and in the ledger, without what differs by chance."""
    with FeatureStore(folder) as store:
        services = store.services
        project = store.project
        view = services.registry.state(project).catalog.views["rides"]
        files = [f.path for f in services.tables.snapshot(table_id(project, view)).files]
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(
            "SELECT driver, event_timestamp::VARCHAR, created_timestamp::VARCHAR, fare, note"
            " FROM read_parquet(?, hive_partitioning = false) ORDER BY ALL",
            [files],
        ).fetchall()
        connection.close()
        lead = namespace(project, view.name, view.table_fingerprint)
        keys = [encode_key([n], [view.join_keys[0].type]) for n in range(12)]
        values = services.online_store.read([lead + key for key in keys if key is not None])
        ledger = services.registry.ledger(project, view.name, view.table_fingerprint)
        runs = services.registry.runs(project, state="running")
        # The end of the last interval is the instant of the run.
        starts = [entry.start for entry in ledger.entries]
        return {
            "rows": [list(row) for row in rows],
            "online": [value.hex() if value else None for value in values],
            "ledger": [starts, len(ledger.open_runs)],
            "still running": len(runs),
        }


def forked(call: Any) -> tuple[int, Any]:
    """Call in a forked process; return its wait status and its result as read from a pipe."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        code = 1
        try:
            result = json.dumps(call())
            with os.fdopen(write_end, "w") as pipe:
                pipe.write(result)
            code = 0
        except BaseException:  # noqa: BLE001  (the parent reads it from our standard error)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return status, json.loads(text) if text else None


class Stage:
    """A repository that is about to have its first or its second run, to be had again and again.

    It is always in the same folder, and what is online is put back with it.

    Args:
        base: Where the folder is made.
        url: The online store; what a Redis has of other projects is left alone.
        name: `first` or `second`.
    """

    def __init__(self, base: Path, url: str, name: str) -> None:
        self.folder = base / name
        self._kept = base / f"{name}-kept"
        self._redis = redis.Redis.from_url(url) if url.startswith("redis") else None
        self._others = self._keys(set())
        forked(lambda: prepare(self.folder, url, f"killed_{name}"))
        if name == "second":
            forked(lambda: run(self.folder))
            add_file(self.folder, "second")
        shutil.copytree(self.folder, self._kept)
        self._online = self._dump()

    def renew(self) -> None:
        """Bring everything back to how it was before the run."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._kept, self.folder)
        if self._redis is not None:
            for key in self._keys(self._others):
                self._redis.delete(key)
            for key, value in self._online.items():
                self._redis.restore(key, 0, value)

    def _keys(self, others: set[bytes]) -> set[bytes]:
        return set() if self._redis is None else {*self._redis.keys()} - others

    def _dump(self) -> dict[bytes, bytes]:
        if self._redis is None:
            return {}
        return {key: self._redis.dump(key) for key in self._keys(self._others)}


def truths(base: Path, url: str) -> dict[str, tuple[int, Any]]:
    """Return for each stage how many steps its run has, and how all is in the end."""
    calm = base / "calm"
    forked(lambda: prepare(calm, url, "never_killed"))
    _, steps = forked(lambda: run(calm))
    _, first = forked(lambda: observe(calm))
    forked(lambda: add_file(calm, "second"))
    _, more_steps = forked(lambda: run(calm))
    _, second = forked(lambda: observe(calm))
    return {"first": (steps, first), "second": (more_steps, second)}


def main(base: Path, url: str) -> int:
    """Print one JSON line for each step; return 0 when all ends were the same."""
    wrong = 0
    for name, (count, truth) in truths(base, url).items():
        stage = Stage(base, url, name)
        folder = stage.folder
        for step in range(1, count + 1):
            for after in (False, True):
                stage.renew()
                status, _ = forked(lambda f=folder, n=step, a=after: run(f, n, after=a))
                killed = os.WIFSIGNALED(status)
                status, found = forked(lambda f=folder: (run(f), observe(f))[1])
                same = found == truth
                wrong += not (same and killed and status == 0)
                line = {"stage": name, "step": step, "after": after, "killed": killed, "same": same}
                sys.stdout.write(json.dumps(line) + "\n")
    return 1 if wrong else 0


def command(arguments: list[str]) -> int:
    """Run one of: every FOLDER URL | prepare FOLDER URL PROJECT | run FOLDER | observe FOLDER."""
    name, folder, *rest = arguments
    if name == "every":
        return main(Path(folder), rest[0])
    if name == "prepare":
        prepare(Path(folder), rest[0], rest[1])
        add_file(Path(folder), "second")
    elif name == "run":
        run(Path(folder))
    else:
        sys.stdout.write(json.dumps(observe(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
