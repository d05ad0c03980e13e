"""What a feature server refuses and hides, and how it starts; servers in this process."""

from __future__ import annotations

import signal
import socket
import threading

import grpc
import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.errors import (
    AuthenticationError,
    FeatureStoreError,
    RegistryUnavailableError,
    RequestError,
    SettingsError,
    UnavailableError,
)
from featurestore.model.settings import ServingSettings
from featurestore.serving.client import OnlineClient
from featurestore.serving.handling import Handling
from featurestore.serving.pool import DaemonPool
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import wait_until
from tests.integration.grpc_process import health
from tests.integration.wire import CERTIFICATE, KEY
from tests.served import NOW_US, Served, publish, state, view

USERS = view("users", {"user": "int64"}, {"name": "string"})


class Store(MemoryOnlineStore):
    """Raises what it is told to."""

    trouble: Exception | None = None

    def read(self, keys, *, timeout=None):
        if self.trouble is not None:
            raise self.trouble
        return super().read(keys, timeout=timeout)

    def ping(self, *, timeout=None):  # noqa: ARG002
        if self.trouble is not None:
            raise self.trouble


pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def served():
    served = Served(state([USERS]), store=Store())
    served.push(USERS, ((1,), NOW_US, ("x" * 1000,)))
    return served


@pytest.fixture
def start(served):
    servers = []

    def start(**settings):
        credentials = settings.pop("credentials", None)
        merged = {"address": "127.0.0.1:0", "refresh_seconds": 0.05, **settings}
        server = FeatureServer(served.reader, ServingSettings(**merged), credentials=credentials)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def names(client, rows=1):
    return client.get_online_features(["users:name"], {"user": [1] * rows}).to_dict()["name"]


def test_answers_and_requests_that_are_too_large_are_refused(start):
    server = start(max_message_bytes=50_000)
    with OnlineClient(server.address) as client:
        assert len(names(client, 40)) == 40
        with pytest.raises(RequestError, match="larger than the server sends") as caught:
            names(client, 60)
        assert caught.value.allowed == "50000 bytes"
        with pytest.raises(RequestError, match=server.address):
            names(client, 100_000)
        with pytest.raises(RequestError, match="larger than the server sends"):
            client.get_online_features(["users:name"], [{}] * 6_000)
        assert len(names(client)) == 1


def test_a_request_whose_time_is_over_is_not_begun(start):
    class Context:
        def time_remaining(self):
            return -0.001

        def invocation_metadata(self):
            return ()

        def set_trailing_metadata(self, metadata):
            self.metadata = metadata

        def abort(self, code, details):
            raise LookupError(code, details)

    begun = []
    server = start()
    handling = Handling(server._guard, server._receiver, server._pool, server._log, ())
    handle = handling.handler("Look", lambda *given: begun.append(given))
    with pytest.raises(LookupError) as caught:
        handle(iter([b""]), Context())
    assert caught.value.args[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert begun == []


def test_what_goes_wrong_inside_stays_inside(start, served, logs):
    server = start()
    served.store.trouble = RuntimeError("the password is s3cret")
    with OnlineClient(server.address) as client:
        with pytest.raises(FeatureStoreError) as caught:
            names(client)
        assert "s3cret" not in repr(caught.value.__dict__)
        (line,) = [line for line in logs if line["event"] == "request failed"]
        assert line["reference"] in caught.value.got
        served.store.trouble = None
        assert len(names(client)) == 1


def test_an_error_of_a_class_without_a_status_keeps_its_class(start, served):
    server = start()
    served.store.trouble = AuthenticationError("refused", where="there")
    with OnlineClient(server.address) as client, pytest.raises(AuthenticationError) as caught:
        names(client)
    assert caught.value.where == "there"


def test_the_watch_survives_what_it_did_not_expect(start, served, logs):
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        served.store.trouble = RuntimeError("odd")
        wait_until(lambda: any(x["event"] == "the watch failed" for x in logs), what="the watch")
        served.store.trouble = UnavailableError("gone")
        wait_until(lambda: health(channel) == "NOT_SERVING", what="the health")
        served.store.trouble = None
        wait_until(lambda: health(channel) == "SERVING", what="the health")
        events = [x["event"] for x in logs if x.get("part") == "online store"]
        assert events == ["unavailable", "available again"]


def test_serving_goes_on_without_the_registry(start, served, logs, monkeypatch):
    server = start()

    def gone(*_):
        raise RegistryUnavailableError("gone")

    monkeypatch.setattr(served.registry, "revision", gone)
    wait_until(lambda: any(x.get("part") == "registry" for x in logs), what="the log")
    with OnlineClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        assert len(names(client)) == 1
        assert health(channel) == "SERVING"
        monkeypatch.undo()
        publish(served.registry, state([USERS]))
        wait_until(lambda: client.serving_info().revision == 2, what="the new revision")


def test_a_server_without_definitions_does_not_start(monkeypatch):
    def gone(*_):
        raise RegistryUnavailableError("gone")

    monkeypatch.setattr(MemoryRegistry, "state", gone)
    served = Served(state([USERS]))
    server = FeatureServer(served.reader, ServingSettings(address="127.0.0.1:0"))
    with pytest.raises(RegistryUnavailableError):
        server.start()
    server.stop()


@pytest.mark.parametrize("address", [None, "no such host:1", "127.0.0.1:99999", ":1", "localhost"])
def test_an_address_that_cannot_be_listened_on_is_named(start, address):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = address or f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match="cannot listen") as caught:
            start(address=wanted)
    assert caught.value.got == wanted
    assert caught.value.where == "serving.address"


def test_stopping_twice_is_stopping_once(start, logs):
    server = start()
    server.stop()
    server.stop()
    assert [x["event"] for x in logs].count("stopped") == 1


def test_run_gives_the_signal_handlers_back(served):
    server = FeatureServer(served.reader, ServingSettings(address="127.0.0.1:0"))
    before = signal.getsignal(signal.SIGTERM)

    def end():
        wait_until(lambda: answers(server), what="the server")
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    server.run()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def answers(server):
    if server.address.endswith(":0"):
        return False
    with OnlineClient(server.address) as client:
        try:
            return bool(names(client))
        except UnavailableError:
            return False


def test_tls(start):
    credentials = grpc.ssl_server_credentials([(KEY.encode(), CERTIFICATE.encode())])
    server = start(credentials=credentials)
    trusted = grpc.ssl_channel_credentials(CERTIFICATE.encode())
    with OnlineClient(server.address, credentials=trusted) as client:
        assert len(names(client)) == 1
    strange = grpc.ssl_channel_credentials()
    for options in ({}, {"credentials": strange}):
        with OnlineClient(server.address, **options) as client, pytest.raises(UnavailableError):
            names(client)


def test_the_pool_makes_calls_in_order_and_gives_back_what_they_raise():
    pool = DaemonPool(1)
    made = []
    futures = [pool.submit(made.append, i) for i in range(5)]
    failed = pool.submit(int, "x")
    with pytest.raises(ValueError, match="'x'"):
        failed.result(10)
    assert [future.result(10) for future in futures] == [None] * 5
    assert made == list(range(5))
    pool.shutdown()
    assert not any(worker.is_alive() for worker in pool._workers)
    assert all(worker.daemon for worker in pool._workers)
