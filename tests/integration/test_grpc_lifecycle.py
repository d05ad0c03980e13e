"""A feature server over its life: new definitions, a store that is gone, and a quiet end."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.clock import SystemClock
from featurestore.errors import (
    DeadlineExceededError,
    FeatureNotFoundError,
    OnlineStoreUnavailableError,
    UnavailableError,
)
from featurestore.serving.client import OnlineClient
from featurestore.testing.valkey import ValkeyServer, wait_until
from tests.integration.grpc_process import ServerProcess, health, watched
from tests.integration.grpc_server import open_store
from tests.served import NOW_US, on_demand, publish, push, select, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
GATED = on_demand("gated", [select("users", "score")], {"passed": "float64"})
COUNTED = on_demand("counted", [select("users", "score")], {"counted": "float64"})
ROWS = [{"user": 1}]
CLOCK = SystemClock()


class Project:
    """A registry, a store on LMDB, and servers of them."""

    def __init__(self, folder, online=None):
        self.folder = folder
        self.url = f"sqlite:///{folder / 'registry.db'}"
        self.registry = SqlRegistry(self.url)
        self.online = online or f"lmdb:{folder / 'online'}"
        self.apply(USERS, score=0.5)

    def apply(self, plan, **values):
        publish(self.registry, state([plan], [GATED, COUNTED]))
        store = open_store(self.online)
        push(store, plan, [((1,), NOW_US, tuple(values[f.name] for f in plan.features))])
        store.close()

    def calls(self):
        """Return how often the server has called a function."""
        file = self.folder / "calls"
        return file.stat().st_size if file.exists() else 0

    def serve(self, **settings):
        return ServerProcess(
            online=self.online,
            registry=self.url,
            gate=str(self.folder / "gate"),
            calls=str(self.folder / "calls"),
            settings={"refresh_seconds": 0.1, **settings},
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def score(client, **options):
    answer = client.get_online_features(["users:score"], ROWS, **options)
    return answer.to_dict()["score"][0]


def test_new_definitions_are_picked_up_without_a_restart(project):
    with project.serve() as server, OnlineClient(server.address) as client:
        assert score(client) == 0.5
        with pytest.raises(FeatureNotFoundError):
            client.get_online_features(["users:rank"], ROWS)
        wider = view("users", {"user": "int64"}, {"score": "int64", "rank": "int64"}, version="2")
        project.apply(wider, score=7, rank=1)
        # Every answer on the way is the old one or the new one, and none fails.
        seen = []
        wait_until(lambda: seen.append(score(client)) or seen[-1] == 7, what="the new table")
        assert set(seen) == {0.5, 7} or seen == [7]
        assert client.serving_info().revision == 2
        answer = client.get_online_features(["users"], ROWS)
        assert answer.to_dict() == {"user": [1], "score": [7], "rank": [1]}
        assert answer.fingerprints == {"users": wider.fingerprint}


def test_requests_in_flight_are_finished_after_sigterm(project):
    with (
        project.serve(threads=6) as server,
        OnlineClient(server.address, timeout=20) as client,
        ThreadPoolExecutor(4) as threads,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert health(channel) == "SERVING"
        waiting = [
            threads.submit(client.get_online_features, ["gated:passed"], ROWS) for _ in range(4)
        ]
        wait_until(lambda: project.calls() == 4, what="the gate to be entered")
        assert score(client) == 0.5
        server.send(signal.SIGTERM)
        server.log("draining")
        wait_until(lambda: health(channel) != "SERVING", what="the end of service")
        with OnlineClient(server.address) as late, pytest.raises(UnavailableError):
            score(late)
        assert not any(future.done() for future in waiting)
        assert server.process.poll() is None
        (project.folder / "gate").touch()
        assert [f.result(20).to_dict()["passed"] for f in waiting] == [[1.5]] * 4
        assert server.wait() == 0
        assert server.log("stopped")


def test_those_who_watch_are_told_and_do_not_hold_up_the_end(project):
    with (
        project.serve(drain_seconds=30) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = watched(channel)
        assert next(watch) == "SERVING"
        start = CLOCK.monotonic()
        server.send(signal.SIGTERM)
        assert list(watch) == ["NOT_SERVING"]
        assert server.wait() == 0
        assert CLOCK.monotonic() - start < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_under_load_no_request_that_was_begun_is_lost(project, number):
    with project.serve(threads=4) as server:
        answered, refused = [], []
        begun = threading.Event()

        def ask():
            with OnlineClient(server.address) as client:
                while True:
                    try:
                        answer = client.get_online_features(["counted:counted"], ROWS)
                    except UnavailableError as error:
                        refused.append(error)
                        return
                    answered.append(answer.to_dict()["counted"])
                    if len(answered) > 100:
                        begun.set()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert begun.wait(20)
        server.send(number)
        for thread in threads:
            thread.join(20)
        assert server.wait() == 0
    assert len(refused) == 6
    assert all(server.address in error.what for error in refused)
    assert answered == [[0.5]] * len(answered)
    assert project.calls() == len(answered)


def test_draining_ends_in_time_though_a_request_hangs(project):
    with (
        project.serve(drain_seconds=0.2) as server,
        OnlineClient(server.address, timeout=20) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        hanging = threads.submit(client.get_online_features, ["gated:passed"], ROWS)
        wait_until(lambda: project.calls() == 1, what="the gate to be entered")
        start = CLOCK.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait(10) == 0
        assert CLOCK.monotonic() - start < 10
        with pytest.raises(UnavailableError):
            hanging.result(20)


def test_a_deadline_holds_though_a_function_hangs(project):
    with project.serve() as server, OnlineClient(server.address) as client:
        start = CLOCK.monotonic()
        with pytest.raises(DeadlineExceededError, match=server.address):
            client.get_online_features(["gated:passed"], ROWS, timeout=0.2)
        assert CLOCK.monotonic() - start < 3
        assert score(client) == 0.5
        (project.folder / "gate").touch()


def test_a_request_that_waited_past_its_deadline_is_not_begun(project):
    with (
        project.serve(threads=1) as server,
        OnlineClient(server.address, timeout=20) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(client.get_online_features, ["gated:passed"], ROWS)
        wait_until(lambda: project.calls() == 1, what="the gate to be entered")
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                client.get_online_features(["counted:counted"], ROWS, timeout=0.1)
        (project.folder / "gate").touch()
        assert first.result(20).to_dict()["passed"] == [1.5]
        assert score(client) == 0.5
        assert project.calls() == 1


def test_a_client_finds_a_server_that_came_back(project):
    with project.serve() as server:
        client = OnlineClient(server.address)
        assert score(client) == 0.5
    with pytest.raises(UnavailableError, match=server.address) as caught:
        score(client)
    assert caught.value.where == server.address
    with project.serve(address=server.address):
        wait_until(lambda: answers(client), what="the server")
    client.close()
    with pytest.raises(UnavailableError, match="closed"):
        score(client)


def answers(client, **options):
    try:
        return score(client, **options) == 0.5
    except UnavailableError:
        return False


def test_a_store_that_is_killed_is_told_before_the_deadline(tmp_path):
    with ValkeyServer() as valkey:
        project = Project(tmp_path, valkey.url)
        with (
            project.serve() as server,
            OnlineClient(server.address) as client,
            grpc.insecure_channel(server.address) as channel,
        ):
            assert score(client) == 0.5
            valkey.stop()
            for timeout in (1.0, 3.0):
                start = CLOCK.monotonic()
                with pytest.raises(OnlineStoreUnavailableError) as caught:
                    score(client, timeout=timeout)
                assert CLOCK.monotonic() - start < timeout
                assert str(valkey.port) in str(caught.value)
            wait_until(lambda: health(channel) == "NOT_SERVING", what="the health to tell")
            assert server.log("unavailable")["part"] == "online store"
            # What needs no store is still answered.
            assert client.serving_info().revision == 1
            valkey.start()
            project.apply(USERS, score=0.5)
            wait_until(lambda: answers(client, timeout=1.0), what="the store")
            wait_until(lambda: health(channel) == "SERVING", what="the health to tell")


def test_a_store_that_hangs_is_told_before_the_deadline(tmp_path):
    with ValkeyServer() as valkey:
        project = Project(tmp_path, valkey.url)
        with project.serve() as server, OnlineClient(server.address) as client:
            assert score(client) == 0.5
            valkey.pause()
            try:
                for timeout in (1.0, 2.0):
                    start = CLOCK.monotonic()
                    with pytest.raises(OnlineStoreUnavailableError):
                        score(client, timeout=timeout)
                    assert CLOCK.monotonic() - start < timeout
            finally:
                valkey.resume()
            wait_until(lambda: answers(client, timeout=1.0), what="the store")
