"""`featurestore serve --workers`: processes on one port, under load while they come and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc
import polars as pl
import pytest
import structlog

from featurestore import FeatureStore
from featurestore.clock import SystemClock
from featurestore.errors import UnavailableError
from featurestore.serving.client import OnlineClient
from featurestore.serving.processors import pin
from featurestore.serving.supervisor import Supervisor
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import health

WORKERS = 2
DEFINITIONS = """
from featurestore import Entity, FeatureService, FeatureView, FileSource
user = Entity(name="user", join_keys=["user"])
source = FileSource(name="rows", path="rows.parquet", event_timestamp="at")
view = FeatureView(name="users", entities=[user], source=source, features=["score"])
service = FeatureService(name="all", features=[view])
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "users.py").write_text(DEFINITIONS)
    (folder / "featurestore.toml").write_text(
        'project = "shop"\n[online]\nurl = "lmdb:online"\n[serving]\ndrain_seconds = 10\n'
    )
    at = datetime(2024, 1, 1, tzinfo=UTC)
    scores = [float(user) for user in range(10)]
    rows = pl.DataFrame({"user": range(10), "at": [at] * 10, "score": scores})
    rows.write_parquet(folder / "rows.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize_incremental()
    return folder


class Server:
    """`featurestore serve --workers` as a process; its logs as they come."""

    def __init__(self, folder, *options, workers=WORKERS):
        self.logs = []
        command = [sys.executable, "-m", "featurestore.cli", "serve", "--repo", str(folder)]
        self.process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            [*command, "--output", "json", "--workers", str(workers), *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def told(self, event):
        return [line for line in self.logs if line.get("event") == event]

    def wait_for(self, event, count=1):
        def found():
            return len(self.told(event)) >= count or not self._reader.is_alive()

        wait_until(found, seconds=60, what=f"'{event}'")
        assert len(self.told(event)) >= count, self.logs
        return self.told(event)[count - 1]

    def wait(self):
        code = self.process.wait(30)
        self._reader.join(30)
        return code

    def pids(self):
        return {line["worker"]: line["pid"] for line in self.told("worker started")}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.wait()
        finally:
            # Without it, its workers end by themselves.
            self.process.kill()
            self._reader.join(30)
            self.process.stderr.close()

    def _read(self):
        for line in self.process.stderr:
            try:
                self.logs.append(json.loads(line))
            except ValueError:
                # Of an error, which is printed over several lines.
                self.logs.append({"event": line.strip()})


class Load:
    """Clients that look up all the time: some keep their connection, some make a new one often."""

    def __init__(self, address, keeping=3, changing=1):
        self.answered = 0
        self.failures = []
        self._address = address
        self._end = threading.Event()
        self._lock = threading.Lock()
        works = [self._keep] * keeping + [self._change] * changing
        self._threads = [threading.Thread(target=work, args=(i,)) for i, work in enumerate(works)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(30)

    def more(self, count=100):
        """Wait for so many answers more."""
        goal = self.answered + count
        wait_until(lambda: self.answered >= goal or self.failures, what="answers")
        assert self.failures == []

    def _keep(self, key):
        with OnlineClient(self._address) as client:
            while not self._end.is_set():
                self._ask(client, key)

    def _change(self, key):
        while not self._end.is_set():
            with OnlineClient(self._address) as client:
                for _ in range(3):
                    self._ask(client, key)

    def _ask(self, client, key):
        try:
            found = client.get_online_features("all", {"user": [key]}).to_dict()
        except UnavailableError as error:
            self.failures.append(error)
            self._end.set()
            return
        with self._lock:
            self.answered += 1
        if found != {"user": [key], "score": [float(key)]}:
            self.failures.append(found)


@pytest.fixture(scope="module")
def server(repository):
    with Server(repository, "--address", "127.0.0.1:0") as server:
        server.wait_for("worker answers", WORKERS)
        yield server


@pytest.fixture
def address(server):
    return server.told("supervising")[0]["address"]


def test_all_workers_take_connections_of_one_port(server, address):
    assert {line["address"] for line in server.told("serving")} == {address}
    pids = set(server.pids().values())
    assert len(pids) == WORKERS
    served = set()

    def meet():
        # Each new connection meets one of them, by the kernel's choice.
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            assert health(channel) == "SERVING"
            served.update(pid for pid in pids if _connections(pid, address))
        return served == pids

    wait_until(meet, what="a connection to each worker")


def _connections(pid, address):
    """Whether a process holds an open connection that came to an address."""
    port = f"{int(address.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    inodes = {f"socket:[{r[9]}]" for r in rows if r[1].endswith(f":{port}") and r[3] == "01"}
    links = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        try:
            links.add(os.readlink(f"/proc/{pid}/fd/{fd}"))  # noqa: PTH115
        except FileNotFoundError:
            continue
    return bool(inodes & links)


def test_no_lookup_is_lost_while_all_workers_are_renewed(server, address):
    with Load(address, keeping=8, changing=2) as load:
        load.more()
        before = set(server.pids().values())
        done = len(server.told("workers renewed"))
        for round_ in range(1, 3):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("workers renewed", done + round_)
            load.more()
        assert not before & set(server.pids().values())
    assert load.failures == []
    assert server.told("worker died") == []


def test_no_lookup_is_lost_when_a_worker_is_killed(server, address):
    def answers(pid):
        return pid in [line["pid"] for line in server.told("worker answers")]

    with Load(address) as load:
        load.more()
        killed = server.pids()[1]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: server.pids()[1] != killed, what="a new worker")
        wait_until(lambda: answers(server.pids()[1]), what="the new worker to answer")
        load.more()
    assert server.told("worker died")[-1]["exit_code"] == -signal.SIGKILL
    assert load.failures == []


def test_what_was_begun_is_answered_before_all_end(repository):
    with Server(repository, "--address", "127.0.0.1:0") as server:
        server.wait_for("worker answers", WORKERS)
        address = server.told("supervising")[0]["address"]
        with Load(address) as load:
            load.more()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
            wait_until(lambda: load.failures, what="the end")
    assert all(isinstance(each, UnavailableError) for each in load.failures)
    assert len(server.told("stopped")) == WORKERS
    assert server.told("worker did not drain in time") == []


def test_what_keeps_it_from_serving_is_said_once(repository, tmp_path):
    with Server(repository, "--address", "127.0.0.1:0") as server:
        taken = server.wait_for("supervising")["address"]
        server.wait_for("worker answers", 1)
        with Server(repository, "--address", taken) as second:
            assert second.wait() == 1
        said = [line["event"] for line in second.logs if "cannot listen" in line["event"]]
        assert len(said) == 1
        assert taken in said[0]
    with Server(tmp_path, "--address", "127.0.0.1:0") as nowhere:
        assert nowhere.wait() == 1


def places(pid):
    """Return where the threads of a process may run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {frozenset(os.sched_getaffinity(int(task.name))) for task in tasks}


def test_pinned_workers_keep_to_a_processor_each(repository):
    allowed = sorted(os.sched_getaffinity(0))
    mine = [{frozenset([allowed[i % len(allowed)]])} for i in range(WORKERS)]
    with Server(repository, "--address", "127.0.0.1:0", "--pin") as server:
        server.wait_for("worker answers", WORKERS)
        assert [places(pid) for _, pid in sorted(server.pids().items())] == mine
        with OnlineClient(server.told("supervising")[0]["address"]) as client:
            client.get_online_features("all", [{"user": 1}])
        assert [places(pid) for _, pid in sorted(server.pids().items())] == mine
        os.kill(server.pids()[1], signal.SIGKILL)
        server.wait_for("worker answers", WORKERS + 1)
        assert [places(pid) for _, pid in sorted(server.pids().items())] == mine
        assert places(server.process.pid) == {frozenset(allowed)}


def test_workers_are_free_unless_asked(repository):
    with Server(repository, "--address", "127.0.0.1:0", workers=1) as server:
        server.wait_for("worker answers")
        assert places(server.pids()[1]) == {frozenset(os.sched_getaffinity(0))}


def test_what_is_pinned_are_workers(repository):
    command = [
        sys.executable,
        "-m",
        "featurestore.cli",
        "serve",
        "--repo",
        str(repository),
        "--pin",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 2
    assert "--workers" in done.stderr


def test_more_workers_than_processors_share_them():
    supervisor = Supervisor(
        lambda _: [sys.executable, "-c", "input()"],
        3,
        clock=SystemClock(),
        log=structlog.get_logger(),
        drain_seconds=1,
        processors=(4, 7),
    )
    with supervisor._signals, supervisor._waker:
        workers = [supervisor._started(place) for place in supervisor._places]
        assert [worker._processor for worker in workers] == [4, 7, 4]
        for worker in workers:
            worker.kill()
            worker._process.wait()
            worker.close()


def test_a_process_that_is_gone_is_not_pinned():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    pin(process.pid, (0,))
