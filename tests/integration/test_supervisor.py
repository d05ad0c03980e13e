"""A supervisor over its workers' troubles: they die, hang, cannot start, do not go; or it does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from featurestore.clock import SystemClock
from featurestore.errors import SettingsError
from featurestore.serving.shared_port import shared_port
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import ROOT
from tests.integration.supervised import COUNT

CLOCK = SystemClock()


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.logs = []
        self.process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            [sys.executable, "-m", "tests.integration.supervised", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def told(self, event):
        return [line for line in self.logs if line["event"] == event]

    def wait_for(self, event, count=1):
        wait_until(lambda: len(self.told(event)) >= count, what=f"'{event}' in {self.logs}")
        return self.told(event)[count - 1]

    def pids(self):
        """Return the worker processes that were started, by place the newest."""
        return {line["worker"]: line["pid"] for line in self.told("worker started")}

    def wait(self):
        code = self.process.wait(20)
        self._reader.join(20)
        return code

    def _read(self):
        for line in self.process.stdout:
            self.logs.append({**json.loads(line), "at": CLOCK.monotonic()})


@pytest.fixture
def supervised(tmp_path):
    running = []

    def start():
        running.append(Supervised(tmp_path))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()
        try:
            wait_until(lambda: not any(map(is_alive, each.pids().values())), what="all to end")  # noqa: B023
        finally:
            for pid in filter(is_alive, each.pids().values()):
                os.kill(pid, signal.SIGKILL)
            each._reader.join(20)
            each.process.stdout.close()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_drain_at_sigterm(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not any(map(is_alive, server.pids().values()))


def test_a_dead_worker_is_started_again(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    before = server.pids()
    os.kill(before[2], signal.SIGKILL)
    died = server.wait_for("worker died")
    assert (died["worker"], died["pid"], died["exit_code"]) == (2, before[2], -9)
    server.wait_for("worker answers", COUNT + 1)
    after = server.pids()
    assert after[1] == before[1]
    assert after[2] != before[2]


def test_a_worker_that_cannot_start_is_tried_less_and_less_often(supervised, tmp_path):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    (tmp_path / "broken").touch()
    os.kill(server.pids()[1], signal.SIGKILL)
    server.wait_for("worker died", 4)
    starts = [line["at"] for line in server.told("worker started") if line["worker"] == 1]
    deaths = [line["at"] for line in server.told("worker died")]
    pauses = [start - death for death, start in zip(deaths, starts[1:], strict=False)]
    assert pauses[2] > 1.5 * pauses[0] > 0
    assert is_alive(server.pids()[2])
    (tmp_path / "broken").unlink()
    server.wait_for("worker answers", COUNT + 1)


def test_a_worker_that_hangs_is_replaced(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    pid = server.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    assert server.wait_for("worker hangs")["pid"] == pid
    assert server.wait_for("worker died")["exit_code"] == -9
    server.wait_for("worker answers", COUNT + 1)


def test_the_health_of_each_worker_is_told(supervised, tmp_path):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    (tmp_path / "silent").touch()
    server.wait_for("worker does not answer", COUNT)
    assert {line["worker"] for line in server.told("worker does not answer")} == {1, 2}
    (tmp_path / "silent").unlink()
    server.wait_for("worker answers", 2 * COUNT)


def test_what_keeps_all_from_starting_ends_it_and_is_tried_once(supervised, tmp_path):
    (tmp_path / "broken").touch()
    server = supervised()
    assert server.wait() == 7
    assert len(server.told("worker started")) == 1


def test_each_worker_is_renewed_after_its_successor_serves(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    before = server.pids()
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("workers renewed")
    after = server.pids()
    assert not set(before.values()) & set(after.values())
    wait_until(lambda: not any(map(is_alive, before.values())), what="the end of the old ones")
    # The second is begun only when the first has taken over.
    events = [line["event"] for line in server.logs]
    assert events.index("workers renewed") > events.index("worker answers")
    assert not server.told("worker died")


def test_a_renewal_that_cannot_start_leaves_the_old_ones(supervised, tmp_path):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    before = server.pids()
    (tmp_path / "broken").touch()
    server.process.send_signal(signal.SIGHUP)
    assert server.wait_for("renewal given up: the new worker did not start; the old ones go on")
    assert all(map(is_alive, before.values()))
    (tmp_path / "broken").unlink()
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("workers renewed")


def test_a_worker_that_does_not_go_is_killed(supervised, tmp_path):
    (tmp_path / "stubborn").touch()
    server = supervised()
    server.wait_for("worker answers", COUNT)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    told = [line["pid"] for line in server.told("worker did not drain in time")]
    assert sorted(told) == sorted(server.pids().values())
    assert not any(map(is_alive, server.pids().values()))


def test_no_worker_outlives_its_supervisor(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(is_alive, server.pids().values())), what="the workers' end")


def test_a_terminal_s_interrupt_reaches_the_supervisor_alone(supervised):
    server = supervised()
    server.wait_for("worker answers", COUNT)
    groups = {os.getpgid(pid) for pid in server.pids().values()}
    assert len(groups) == COUNT
    assert os.getpgid(server.process.pid) not in groups
    server.process.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_a_shared_port_is_held_while_nobody_listens():
    with shared_port("127.0.0.1:0") as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            with pytest.raises(SettingsError, match="cannot listen"), shared_port(address):
                pass
    with shared_port(address) as again:
        assert again == address


@pytest.mark.parametrize("address", ["", "x", ":1", "127.0.0.1:x", "127.0.0.1:65536", "no host:1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(SettingsError, match="cannot listen") as caught, shared_port(address):
        pass
    assert caught.value.got == address


def test_trouble_while_a_port_is_held_is_not_the_port_s():
    with pytest.raises(OSError, match="disk"), shared_port("127.0.0.1:0"):
        raise OSError("disk")
