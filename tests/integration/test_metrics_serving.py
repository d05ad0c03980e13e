"""Metrics of real servers: one process, several, one that is killed, and one that drains."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import polars as pl
import pytest
from click.testing import CliRunner
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from featurestore import FeatureStore
from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.cli.app import cli
from featurestore.errors import FeatureNotFoundError
from featurestore.serving.client import OnlineClient
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import ServerProcess
from tests.integration.grpc_server import open_store
from tests.integration.test_serve_workers import DEFINITIONS, WORKERS, Server
from tests.served import NOW_US, on_demand, publish, push, select, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64"})
GATED = on_demand("gated", [select("users", "score")], {"passed": "float64"})
ROWS = [{"user": 1}]


def scrape(address, accept="text/plain"):
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return answer.read().decode()


def value(address, name, **labels):
    """Return a sample, None where there is none."""
    for family in text_string_to_metric_families(scrape(address)):
        for sample in family.samples:
            if sample.name == f"featurestore_{name}" and labels.items() <= sample.labels.items():
                return sample.value
    return None


class Project:
    """A registry and a store on LMDB, with one user."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"sqlite:///{folder / 'registry.db'}"
        publish(SqlRegistry(self.url), state([USERS], [GATED]))
        store = open_store(f"lmdb:{folder / 'online'}")
        push(store, USERS, [((1,), NOW_US, (0.5,))])
        store.close()

    def calls(self):
        file = self.folder / "calls"
        return file.stat().st_size if file.exists() else 0

    def serve(self, **settings):
        return ServerProcess(
            online=f"lmdb:{self.folder / 'online'}",
            registry=self.url,
            gate=str(self.folder / "gate"),
            calls=str(self.folder / "calls"),
            settings={"refresh_seconds": 0.1, "metrics_address": "127.0.0.1:0", **settings},
        )


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_what_a_server_did_can_be_read_while_it_serves(project):
    with project.serve() as server, OnlineClient(server.address) as client:
        metrics = server.log("metrics")["address"]
        for _ in range(3):
            client.get_online_features(["users:score"], ROWS)
        with pytest.raises(FeatureNotFoundError):
            client.get_online_features(["nosuch:x"], ROWS)
        client.serving_info()
        get = {"method": "GetOnlineFeatures"}
        wait_until(
            lambda: value(metrics, "requests_total", method="GetServingInfo", status="OK") == 1,
            what="the last call to be counted",
        )
        assert value(metrics, "requests_total", status="OK", **get) == 3
        assert value(metrics, "requests_total", status="NOT_FOUND", **get) == 1
        assert value(metrics, "request_seconds_count", **get) == 4
        assert value(metrics, "values_total", view="users", status="PRESENT") == 3
        assert value(metrics, "store_read_seconds_count", operation="read") == 3
        assert value(metrics, "definitions_revision") == 1
        assert value(metrics, "online_store_up") == 1
        wait_until(
            lambda: value(metrics, "newest_event_timestamp_seconds", view="users") == NOW_US / 1e6,
            what="the newest event",
        )
        text = scrape(metrics)
        assert "process_resident_memory_bytes" in text
        assert "nosuch" not in text
        # The other format that Prometheus asks for.
        families = list(openmetrics(scrape(metrics, "application/openmetrics-text")))
        assert "featurestore_requests" in {family.name for family in families}


def test_metrics_are_answered_while_calls_in_flight_are_finished(project):
    with (
        project.serve() as server,
        OnlineClient(server.address, timeout=20) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        metrics = server.log("metrics")["address"]
        waiting = threads.submit(client.get_online_features, ["gated:passed"], ROWS)
        wait_until(lambda: project.calls() == 1, what="the gate to be entered")
        server.send(signal.SIGTERM)
        server.log("draining")
        assert value(metrics, "requests_in_flight") == 1
        (project.folder / "gate").touch()
        assert waiting.result().to_dict()["passed"] == [1.5]
        assert server.wait() == 0
        with pytest.raises(urllib.error.URLError):
            scrape(metrics)


def test_slow_calls_and_calls_that_were_shed_are_logged_with_their_ids(project):
    settings = {"threads": 1, "max_concurrent_requests": 2, "slow_seconds": 0.05}
    with (
        project.serve(**settings) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as threads,
        OnlineClient(server.address, timeout=20) as client,
    ):
        metrics = server.log("metrics")["address"]
        waiting = threads.submit(client.get_online_features, ["gated:passed"], ROWS)
        wait_until(lambda: project.calls() == 1, what="the gate to be entered")
        method = channel.unary_unary("/featurestore.serving.v1.FeatureServing/GetServingInfo")

        def refused():
            # The first waits, for in vain; there is no room for a second.
            try:
                method(b"", timeout=0.3, metadata=(("x-request-id", "mine-1"),))
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        wait_until(refused, what="a call to be refused")
        shed = server.log("call shed")
        assert (shed["request_id"], shed["status"]) == ("mine-1", "RESOURCE_EXHAUSTED")
        assert value(metrics, "shed_requests_total", reason="queue") >= 1
        (project.folder / "gate").touch()
        waiting.result()
        slow = server.log("slow call")
        assert (slow["method"], slow["rows"], slow["status"]) == ("GetOnlineFeatures", 1, "OK")
        assert slow["request_id"]
        assert slow["latency_ms"] > 50


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "users.py").write_text(DEFINITIONS)
    (folder / "featurestore.toml").write_text(
        'project = "shop"\n[online]\nurl = "lmdb:online"\n[serving]\ndrain_seconds = 10\n'
        'metrics_address = "127.0.0.1:0"\n'
    )
    at = datetime(2024, 1, 1, tzinfo=UTC)
    rows = pl.DataFrame({"user": range(10), "at": [at] * 10, "score": [0.5] * 10})
    rows.write_parquet(folder / "rows.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize_incremental()
    return folder


def look_up(address, count):
    for _ in range(count):
        with OnlineClient(address) as client:
            client.get_online_features("all", {"user": [1]})


def test_the_workers_count_as_one_and_a_killed_one_loses_no_count(repository, monkeypatch):
    with tempfile.TemporaryDirectory() as scratch:
        monkeypatch.setenv("TMPDIR", scratch)
        with Server(repository, "--address", "127.0.0.1:0") as server:
            metrics = server.wait_for("metrics")["address"]
            address = server.wait_for("supervising")["address"]
            server.wait_for("worker answers", WORKERS)
            (folder,) = Path(scratch).glob("featurestore-metrics-*")
            assert len(list(folder.glob("*.board"))) == WORKERS

            def counted():
                return value(metrics, "requests_total", method="GetOnlineFeatures", status="OK")

            look_up(address, 12)
            wait_until(lambda: counted() == 12, what="all calls to be counted")
            assert value(metrics, "processes") == WORKERS
            assert value(metrics, "values_total", view="users", status="PRESENT") == 12
            os.kill(server.pids()[1], signal.SIGKILL)
            server.wait_for("worker answers", WORKERS + 1)
            look_up(address, 5)
            wait_until(lambda: counted() == 17, what="all calls to be counted")
            wait_until(lambda: value(metrics, "processes") == WORKERS, what="the new worker")
            assert len(list(folder.glob("*.board"))) == WORKERS
            assert value(metrics, "requests_in_flight") == 0
        assert list(Path(scratch).iterdir()) == []


def test_what_a_server_serves_and_how_fresh_it_is_can_be_asked(repository):
    with Server(repository, "--address", "127.0.0.1:0", workers=1) as server:
        address = server.wait_for("supervising")["address"]
        server.wait_for("worker answers")
        with OnlineClient(address) as client:
            before = client.serving_info().views["users"]
            client.get_online_features("all", {"user": [1, 99]})
            info = client.serving_info()
        served = info.views["users"]
        assert before.newest_served_event is None
        assert served.newest_served_event == datetime(2024, 1, 1, tzinfo=UTC)
        assert served.materialized_until > served.newest_served_event
        with FeatureStore(repository) as store:
            (local,) = store.status()
        finished, fingerprint = local.last_success.finished_at_us, local.fingerprint
        assert int(served.materialized_at.timestamp() * 1e6) == pytest.approx(finished, abs=1)
        assert served.fingerprint == fingerprint
        assert served.materialized_positions == {}
        assert served.materialized_at <= info.freshness_as_of <= info.now
        asked = ["--output", "json", "status", "--server", address]
        shown = json.loads(CliRunner().invoke(cli, asked).stdout)
        assert shown["views"]["users"]["newest_served_event"] == "2024-01-01T00:00:00Z"
        assert shown["views"]["users"]["materialized_at"].startswith(
            served.materialized_at.strftime("%Y-%m-%dT%H:%M:%S")
        )
        text = CliRunner().invoke(cli, ["status", "--server", address]).stdout
        assert " ago" in text
        assert fingerprint in text
