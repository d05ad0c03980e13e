"""The Connect front over its life: batches, TLS, several processes on one port, an end."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featurestore.access.keys import KeyFile
from featurestore.clock import FixedClock
from featurestore.errors import OnlineStoreUnavailableError, SettingsError
from featurestore.serving.http import gathering
from featurestore.serving.together import MOST_BYTES
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.testing.valkey import wait_until
from tests.credentials import issued
from tests.integration.connect_front import (
    HEALTH,
    LOOKUP,
    ONE,
    SERVICE,
    ConnectFronts,
    call,
    lookup,
    scores,
    told,
)
from tests.integration.http_front import held_store, parsed, read_all
from tests.integration.test_buf_curl import ASKED
from tests.integration.test_http_lifecycle import OTHER, ROOT, gate, trusting
from tests.integration.test_serve_workers import Server, repository  # noqa: F401  (a fixture)
from tests.served import NOW_US

GATED = lookup("gated").SerializeToString()

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture
def start(tmp_path):
    begun = []

    def start(**settings):
        begun.append(ConnectFronts(tmp_path, tmp_path / "gate", **settings))
        return begun[-1]

    yield start
    for fronts in begun:
        fronts.stop()


@pytest.fixture
def counted(start):
    """A server, and how many keys each read of its store was for."""
    fronts = start()
    with held_store(fronts):
        yield fronts


def send(fronts, *bodies):
    """Send a lookup on a connection of its own each; return these."""
    held = []
    for body in bodies:
        head = f"POST {LOOKUP} HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n"
        connection = socket.create_connection((fronts.host, fronts.port), timeout=20)
        connection.sendall(
            f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        held.append(connection)
    return held


def answers(held):
    found = []
    for connection in held:
        with connection:
            found.append(parsed(read_all(connection)))
    return found


def in_hand(fronts, count):
    wait_until(
        lambda: fronts.server._connect._gathering.held == count, what="the calls to be taken"
    )


def test_lookups_that_wait_are_read_together_and_answered_one_by_one(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    bodies = [lookup("users:score", user=user).SerializeToString() for user in (1, 2, 3, 4)]
    bodies += [lookup("no").SerializeToString(), b"\xff", lookup("users:score", "world")]
    bodies[-1] = bodies[-1].SerializeToString()
    rest = send(counted, *bodies)
    in_hand(counted, 8)
    counted.open.set()
    assert [scores(answer) for answer in answers(first)] == [[0.5]]
    one, null, old, missing, unknown, noise, two = answers(rest)
    assert scores(one) == scores(two) == [0.5]
    for answer in (null, old, missing):
        assert scores(answer) == [0.0]
        found = pb.GetOnlineFeaturesResponse.FromString(answer.body)
        assert found.features[0].validity == b"\x00"
    assert told(unknown)[0] == "not_found"
    assert told(noise)[0] == "invalid_argument"
    assert counted.reads == [1, 6]


def lookup_of(users):
    message = lookup("users:score")
    del message.entity_rows[0].int64s.values[:]
    message.entity_rows[0].int64s.values.extend(users)
    return message.SerializeToString()


def test_lookups_of_many_rows_are_read_together_up_to_a_limit(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    many, most = lookup_of([1, *range(100, 199)]), lookup_of([1, *range(1000, 1128)])
    rest = send(counted, many, ONE, many, most)
    in_hand(counted, 5)
    counted.open.set()
    answers(first)
    assert [scores(answer)[0] for answer in answers(rest)] == [0.5] * 4
    assert sorted(counted.reads) == [1, 129, 201]


def test_bodies_that_are_long_together_are_not_read_together(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    long = lookup_of([1, *range(2**62, 2**62 + 126)])
    assert 3 * len(long) < MOST_BYTES < 4 * len(long)
    rest = send(counted, *[long] * 5)
    in_hand(counted, 6)
    counted.open.set()
    answers(first)
    assert [scores(answer)[0] for answer in answers(rest)] == [0.5] * 5
    assert counted.reads == [1, 381, 254]


def test_one_that_fails_when_it_is_read_fails_alone(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    late = lookup("users:score", as_of=NOW_US - 100).SerializeToString()
    rest = send(counted, ONE, late, ONE)
    in_hand(counted, 4)
    counted.open.set()
    answers(first)
    good, bad, other = answers(rest)
    assert scores(good) == scores(other) == [0.5]
    assert told(bad)[0] == "out_of_range"
    assert counted.reads == [1, 3]


def test_a_store_that_is_gone_is_told_to_all_of_them(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    rest = send(counted, ONE, ONE, ONE)
    in_hand(counted, 4)

    def fail(*_, **__):
        raise OnlineStoreUnavailableError("The store is gone.")

    counted.served.store.read = fail
    counted.open.set()
    answers(first)
    assert [told(answer)[0] for answer in answers(rest)] == ["unavailable"] * 3


def test_a_slow_read_does_not_hold_up_those_that_come_later(counted):
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    held = send(counted, ONE)
    more = [*held]

    def another():
        more.extend(send(counted, ONE))
        return len(counted.reads) > 1

    wait_until(another, what="another thread to take what has gathered")
    counted.open.set()
    assert all(scores(answer) == [0.5] for answer in answers([*first, *more]))


def test_a_caller_whose_time_is_over_is_told_while_the_others_wait(counted, monkeypatch):
    monkeypatch.setattr(gathering, "_PATIENCE", 60.0)
    head = f"POST {LOOKUP} HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n"
    first = send(counted, ONE)
    wait_until(lambda: counted.reads, what="the first lookup to be read")
    with socket.create_connection((counted.host, counted.port), timeout=20) as hasty:
        lines = f"connect-timeout-ms: 50\r\ncontent-length: {len(ONE)}\r\n\r\n"
        hasty.sendall((head + "connection: close\r\n" + lines).encode() + ONE)
        assert told(parsed(read_all(hasty)))[0] == "deadline_exceeded"
    counted.open.set()
    assert [scores(answer) for answer in answers(first)] == [[0.5]]
    in_hand(counted, 0)
    ended = [item[2] for item in counted.recorder.heard if item[0] == "ended"]
    assert sorted(ended) == ["DEADLINE_EXCEEDED", "OK"]
    assert counted.reads == [1]


def test_connections_are_kept(start):
    fronts = start()
    connection = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
    held = None
    for number in range(6):
        answer = call(connection, body=ONE if number % 2 else lookup("no").SerializeToString())
        assert answer.status == (200 if number % 2 else 404)
        held = held or connection.sock
        assert connection.sock is held
    assert call(connection, HEALTH, b"").body == b"\x08\x01"
    connection.close()


def test_a_large_body_of_a_stranger_is_not_read(start, tmp_path):
    keys = KeyFile(tmp_path / "keys.json", FixedClock(NOW_US))
    secret, _ = keys.create("all", ("*:shop",))
    fronts = start(keys_file="keys.json")
    head = f"POST {SERVICE}/Push HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\n"
    # It says that it comes, and never does: the answer is there all the same.
    answer = parsed(fronts.raw(f"{head}content-length: 1000000\r\n\r\n".encode()))
    assert (answer.status, told(answer)[0]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    large = lookup("users:score")
    large.entity_rows.add(name="more").strings.values.append("x" * 1_000_000)
    body = large.SerializeToString()
    assert scores(fronts.look_up(body, {"x-api-key": secret})) == [0.5]
    assert fronts.look_up(body, {"x-api-key": "fs_no"}).status == 401
    assert fronts.server._connect._held == 0


def test_what_nobody_foresaw_ends_one_connection(start, monkeypatch, logs):
    fronts = start()

    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(fronts.server._connect, "_begin", fail)
        with pytest.raises((OSError, http.client.HTTPException)):
            fronts.look_up()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["request failed"]
    assert scores(fronts.look_up()) == [0.5]


def test_tls(start, tmp_path):
    issued(ROOT, "server").write(tmp_path)
    ROOT.write(tmp_path, "root")
    fronts = start(tls_certificate="server.pem", tls_key="server.key", tls_client_ca="root.pem")
    mine = trusting(pair=issued(ROOT, "client"), folder=tmp_path)
    large = lookup("users:score")
    large.entity_rows.add(name="more").strings.values.append("x" * 1_000_000)
    for body in (ONE, large.SerializeToString()):
        assert scores(fronts.call(LOOKUP, body, context=mine)) == [0.5]
    theirs = trusting(pair=issued(OTHER, "stranger"), folder=tmp_path)
    for context in (trusting(), theirs, trusting(OTHER)):
        with pytest.raises(OSError):  # noqa: PT011  (of TLS, or of the connection)
            fronts.call(LOOKUP, ONE, context=context)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        fronts.look_up()


def test_an_idle_connection_does_not_hold_up_the_end(start, tmp_path):
    fronts = start(drain_seconds=20.0)
    gate(fronts)
    idle = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
    assert call(idle).status == 200
    busy = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
    found = []
    asking = threading.Thread(target=lambda: found.append(call(busy, body=GATED)))
    asking.start()
    wait_until(lambda: len(fronts.recorder.heard) == 4, what="the call to begin")
    ending = threading.Thread(target=fronts.stop)
    ending.start()
    assert read_all(idle.sock) == b""
    idle.close()
    with pytest.raises(OSError, match=r"refused|reset"):
        fronts.look_up()
    assert ending.is_alive()
    (tmp_path / "gate").touch()
    asking.join(20)
    ending.join(20)
    assert not ending.is_alive()
    assert scores(found[0]) == [1.5]
    assert found[0].headers["connection"] == "close"
    busy.close()


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


def test_an_address_that_is_taken_or_none(start):
    first = start()
    for address in (first.connect_address, "nonsense", "127.0.0.1:70000"):
        with pytest.raises(SettingsError, match="cannot listen") as caught:
            start(connect_address=address)
        assert (caught.value.where, caught.value.got) == ("serving.connect_address", address)


def test_without_its_library_it_says_what_to_install():
    code = (
        "import sys; sys.modules['httptools'] = sys.modules['aiohttp'] = None\n"
        "from tests.integration.connect_front import ConnectFronts\n"
        "ConnectFronts(connect_address=None).stop()\n"
        "try:\n    ConnectFronts()\n"
        "except Exception as error:\n    print(type(error).__name__, error.hint)"
    )
    ended = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "SettingsError" in ended.stdout
    assert "featurestore[connect]" in ended.stdout


def test_it_needs_no_library_of_the_http_front():
    code = (
        "import sys; sys.modules['aiohttp'] = sys.modules['orjson'] = None\n"
        "from tests.integration.connect_front import ConnectFronts, scores\n"
        "fronts = ConnectFronts(); print(scores(fronts.look_up())); fronts.stop()"
    )
    ended = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "[0.5]" in ended.stdout


def test_several_processes_serve_on_one_port_until_they_are_told_to_end(repository):  # noqa: F811
    options = ("--address", "127.0.0.1:0", "--connect-address", "127.0.0.1:0")
    with Server(repository, *options) as server:
        server.wait_for("worker answers", 2)
        address = server.told("supervising")[0]["connect_address"]
        assert {line["connect_address"] for line in server.told("serving")} == {address}
        host, _, port = address.rpartition(":")
        message = pb.GetOnlineFeaturesRequest(service="all")
        message.entity_rows.add(name="user").int64s.values.append(3)
        for _ in range(10):
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            assert scores(call(connection, body=message.SerializeToString())) == [3.0]
            connection.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert len(server.told("stopped")) == 2


def buf(fronts, method, body, *options):
    found = Path(sys.executable).with_name("buf")
    command = [str(found if found.exists() else shutil.which("buf")), "curl"]
    command += ["--protocol", "connect", "--schema", "proto", *options]
    return subprocess.run(  # noqa: S603  (of the developers' own tools)
        [*command, "-d", json.dumps(body), f"http://{fronts.connect_address}{SERVICE}/{method}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_buf_curl_speaks_with_it(start):
    fronts = start()
    ended = buf(fronts, "GetOnlineFeatures", ASKED)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["features"][0]["doubles"]["values"] == [0.5, 0]
    ended = buf(fronts, "GetOnlineFeatures", {"service": "al"})
    error = json.loads(ended.stderr)
    assert error["code"] == "not_found"
    assert "'all'" in error["message"]
    columns = {"columns": [{"name": "id", "int64s": {"values": ["1", "2"]}}]}
    ended = buf(fronts, "Push", {"source": "clicks", "columns": columns})
    assert json.loads(ended.stdout)["accepted"] == "2", ended.stderr
