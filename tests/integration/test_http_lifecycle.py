"""The HTTP front over its life: TLS, several processes on one port, slow readers, an end."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_certificate

from featurestore.errors import SettingsError
from featurestore.serving.http import connections
from featurestore.testing.valkey import wait_until
from tests.credentials import authority, issued
from tests.integration.http_front import Fronts, ask, read_all
from tests.integration.test_grpc_serving import USERS
from tests.integration.test_serve_workers import Server, repository  # noqa: F401  (a fixture)
from tests.served import on_demand, publish, select, state

LOOKUP = "/v1/get-online-features"
ONE = {"features": ["users:score"], "entity_rows": [{"user": 1}]}
GATED = {"features": ["gated"], "entity_rows": [{"user": 1}]}
ROOT, OTHER = authority(), authority("Other")

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def start(tmp_path):
    begun = []

    def start(**settings):
        begun.append(Fronts(folder=tmp_path, gate=tmp_path / "gate", **settings))
        return begun[-1]

    yield start
    for fronts in begun:
        fronts.stop()


@pytest.fixture
def secure(start, tmp_path):
    issued(ROOT, "server").write(tmp_path)
    ROOT.write(tmp_path, "root")

    def begin(**settings):
        return start(tls_certificate="server.pem", tls_key="server.key", **settings)

    return begin


def trusting(root=ROOT, pair=None, folder=None):
    context = ssl.create_default_context(cadata=root.pem.decode())
    if pair is not None:
        context.load_cert_chain(*pair.write(folder))
    return context


def serial(fronts):
    pem = ssl.get_server_certificate((fronts.host, fronts.port), timeout=10)
    return load_pem_x509_certificate(pem.encode()).serial_number


def test_tls(secure):
    fronts = secure()
    assert fronts.ask(LOOKUP, ONE, context=trusting()).json["values"] == {"score": [0.5]}
    with pytest.raises(ssl.SSLCertVerificationError):
        fronts.ask(LOOKUP, ONE, context=trusting(OTHER))
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        fronts.ask(LOOKUP, ONE)
    old = trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert fronts.ask(LOOKUP, ONE, context=old).status == 200


def test_clients_show_a_certificate_where_one_is_wanted(secure, tmp_path):
    fronts = secure(tls_client_ca="root.pem", audit_log="audit.jsonl")
    mine = trusting(pair=issued(ROOT, "client"), folder=tmp_path)
    assert fronts.ask(LOOKUP, ONE, context=mine).status == 200
    for context in (
        trusting(),
        trusting(pair=issued(OTHER, "stranger"), folder=tmp_path),
        trusting(pair=issued(ROOT, "late", ends=-1), folder=tmp_path),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            fronts.ask(LOOKUP, ONE, context=context)
    path = tmp_path / "audit.jsonl"
    wait_until(lambda: path.exists() and path.read_text(), what="the audit")
    line = json.loads(path.read_text())
    assert (line["who"], line["certificate"]) == ("anyone", "localhost")


def test_a_new_certificate_is_taken_without_a_restart(secure, tmp_path, logs):
    fronts = secure()
    held = http.client.HTTPSConnection(fronts.host, fronts.port, timeout=20, context=trusting())
    assert ask(held, LOOKUP, ONE).status == 200
    first = serial(fronts)
    following = issued(ROOT, "server")
    following.write(tmp_path)
    assert serial(fronts) == following.certificate.serial_number != first
    # Connections that stand are not cut off.
    assert ask(held, LOOKUP, ONE).status == 200
    held.close()
    # What cannot be used is told, and what is there goes on.
    for text in ("no certificate", issued(ROOT, "server", ends=-1).pem.decode()):
        (tmp_path / "server.pem").write_text(text)
        assert serial(fronts) == following.certificate.serial_number
    refused = [line for line in logs if line["event"] == "certificate refused"]
    assert len(refused) == 2
    newest = issued(ROOT, "server")
    newest.write(tmp_path)
    assert serial(fronts) == newest.certificate.serial_number


def test_new_roots_of_clients_are_taken_without_a_restart(secure, tmp_path):
    fronts = secure(tls_client_ca="root.pem")
    theirs = trusting(pair=issued(OTHER, "theirs"), folder=tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        fronts.ask(LOOKUP, ONE, context=theirs)
    OTHER.write(tmp_path, "root")
    assert fronts.ask(LOOKUP, ONE, context=theirs).status == 200


def gate(fronts):
    plan = on_demand("gated", [select("users", "score")], {"passed": "float64"})
    publish(fronts.served.registry, state([USERS], [plan]))
    fronts.served.clock.advance(2_000_000)
    fronts.served.state.refresh()


def test_what_was_begun_is_answered_before_the_end(start, tmp_path):
    fronts = start(drain_seconds=20.0)
    gate(fronts)
    idle = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
    assert ask(idle, LOOKUP, ONE).status == 200
    answers = []
    asking = threading.Thread(target=lambda: answers.append(fronts.look_up(GATED)))
    asking.start()
    wait_until(lambda: len(fronts.recorder.heard) == 4, what="the call to begin")
    ending = threading.Thread(target=fronts.stop)
    ending.start()

    def refuses():
        try:
            fronts.ask("/v1/health")
        except OSError:
            return True
        return False

    wait_until(refuses, what="the port to be closed")
    assert read_all(idle.sock) == b""
    idle.close()
    assert ending.is_alive()
    (tmp_path / "gate").touch()
    asking.join(20)
    ending.join(20)
    assert not ending.is_alive()
    assert answers[0].json["values"] == {"passed": [1.5]}
    assert answers[0].headers["connection"] == "close"
    assert fronts.recorder.heard[-1] == ("closed",)


def test_what_takes_too_long_is_cut_off_at_the_end(start, tmp_path):
    fronts = start(drain_seconds=0.2)
    gate(fronts)
    failures = []

    def look_up():
        try:
            fronts.look_up(GATED)
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    asking = threading.Thread(target=look_up)
    asking.start()
    wait_until(lambda: fronts.recorder.heard, what="the call to begin")
    fronts.stop()
    asking.join(20)
    (tmp_path / "gate").touch()
    assert len(failures) == 1


def is_held(connection):
    """Whether the other end of a connection still is."""
    here, there = connection.getsockname(), connection.getpeername()
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f":{there[1]:04X}", f":{here[1]:04X}"
    return any(r[1].endswith(ends[0]) and r[2].endswith(ends[1]) and r[3] == "01" for r in rows)


def test_who_reads_no_answers_is_let_go(start, monkeypatch):
    monkeypatch.setattr(connections, "_WRITE_SECONDS", 0.3)
    fronts = start()
    body = json.dumps({"features": ["every"], "entity_rows": {"k": [1] * 3_000}}).encode()
    head = f"POST {LOOKUP} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    one = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(one)
        wait_until(lambda: not is_held(connection), what="the end of the wait")
    assert fronts.look_up(ONE).status == 200


def test_an_address_that_is_taken_or_none(start):
    first = start()
    for address in (first.http_address, "nonsense", "127.0.0.1:70000"):
        with pytest.raises(SettingsError, match="cannot listen") as caught:
            start(http_address=address)
        assert (caught.value.where, caught.value.got) == ("serving.http_address", address)


@pytest.mark.parametrize("library", ["aiohttp", "orjson"])
def test_without_its_library_it_says_what_to_install(library):
    code = (
        f"import sys; sys.modules['{library}'] = None\n"
        "from tests.integration.http_front import Fronts\n"
        "Fronts(http_address=None).stop()\n"
        "try:\n    Fronts()\n"
        "except Exception as error:\n    print(type(error).__name__, error.hint)"
    )
    ended = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "SettingsError" in ended.stdout
    assert "featurestore[http]" in ended.stdout


def test_a_server_without_it_does_not_load_its_libraries():
    code = (
        "import sys; from tests.integration.http_front import Fronts\n"
        "Fronts(http_address=None).stop(); print('aiohttp' in sys.modules, 'orjson' in sys.modules)"
    )
    ended = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "False False"


def test_several_processes_serve_on_one_port_until_they_are_told_to_end(repository):  # noqa: F811
    options = ("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    with Server(repository, *options) as server:
        server.wait_for("worker answers", 2)
        address = server.told("supervising")[0]["http_address"]
        assert {line["http_address"] for line in server.told("serving")} == {address}
        host, _, port = address.rpartition(":")
        body = {"features": "all", "entity_rows": [{"user": 3}]}
        for _ in range(10):
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            assert ask(connection, LOOKUP, body).json["values"] == {"score": [3.0]}
            assert ask(connection, "/v1/health").json["ready"] is True
            connection.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert len(server.told("stopped")) == 2
