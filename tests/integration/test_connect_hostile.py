"""What strangers send to the Connect front over raw sockets: told clearly, and it lives on."""

from __future__ import annotations

import gzip
import random
import select
import socket
import ssl

import pytest

from featurestore.serving.connect import connections
from featurestore.testing.valkey import wait_until
from tests.integration.connect_front import (
    HEALTH,
    KIND,
    LOOKUP,
    ONE,
    ConnectFronts,
    lookup,
    scores,
    told,
)
from tests.integration.http_front import mutated, parsed, read_all
from tests.integration.test_http_lifecycle import is_held

RECEIVE_SECONDS = 0.3

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="module")
def fronts():
    fronts = ConnectFronts(
        receive_seconds=RECEIVE_SECONDS, max_message_bytes=200_000, threads=2, drain_seconds=5.0
    )
    yield fronts
    fronts.stop()


@pytest.fixture(autouse=True)
def _lives_on(fronts, logs):
    yield
    assert scores(fronts.look_up()) == [0.5]
    front = fronts.server._connect
    assert front._thread.is_alive()
    wait_until(lambda: (front._held, front._gathering.held) == (0, 0), what="all to be let go of")
    assert [line for line in logs if line["log_level"] in {"error", "critical"}] == []


def head(*lines, verb="POST", path=LOOKUP, version="HTTP/1.1", kind=KIND):
    named = ("host: x", f"content-type: {kind}", *lines)
    return "\r\n".join([f"{verb} {path} {version}", *named, "", ""]).encode("latin-1")


def request(body=ONE, *lines, **options):
    ends = () if "connection" in "".join(lines) else ("connection: close",)
    return head(f"content-length: {len(body)}", *ends, *lines, **options) + body


def connect(fronts):
    return socket.create_connection((fronts.host, fronts.port), timeout=20)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"path": "/"}, 404, "unimplemented"),
        ({"path": LOOKUP[:-1]}, 404, "unimplemented"),
        ({"path": f"{LOOKUP}/../x"}, 404, "unimplemented"),
        ({"path": "/" + "x" * 5_000}, 404, "unimplemented"),
        ({"path": "/%ff%00"}, 404, "unimplemented"),
        ({"path": "*", "verb": "OPTIONS"}, 404, "unimplemented"),
        ({"verb": "GET"}, 405, "unimplemented"),
        ({"verb": "PUT"}, 405, "unimplemented"),
        ({"verb": "TRACE"}, 405, "unimplemented"),
        ({"path": HEALTH, "verb": "GET"}, 405, "unimplemented"),
        ({"kind": "application/json"}, 415, "invalid_argument"),
        ({"kind": "application/grpc"}, 415, "invalid_argument"),
        ({"kind": "application/connect+proto"}, 415, "invalid_argument"),
        ({"kind": ""}, 415, "invalid_argument"),
        ({"kind": "\xff"}, 415, "invalid_argument"),
    ],
)
def test_what_is_not_there(fronts, options, status, code):
    answer = parsed(fronts.raw(request(**options)))
    assert (answer.status, told(answer)[0]) == (status, code)
    assert ("allow" in answer.headers) is (status == 405)
    assert len(answer.body) < 2_000
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("line", "status", "where"),
    [
        ("content-encoding: gzip", 501, "content-encoding"),
        ("content-encoding: br", 501, "content-encoding"),
        ("connect-protocol-version: 2", 400, "connect-protocol-version"),
        ("connect-timeout-ms: 1s", 400, "connect-timeout-ms"),
        ("connect-timeout-ms: -1", 400, "connect-timeout-ms"),
        ("connect-timeout-ms: 12345678901", 400, "connect-timeout-ms"),
    ],
)
def test_heads_that_are_refused(fronts, line, status, where):
    answer = parsed(fronts.raw(request(gzip.compress(b" " * 1_000_000), line)))
    assert (answer.status, told(answer)[1]["where"]) == (status, where)


def test_bodies_that_are_no_message(fronts):
    for body in (b"\xff" * 20, b"", lookup("users:score").SerializeToString() + b"\x0a\xff"):
        code, parts = told(parsed(fronts.raw(request(body))))
        assert (code, parts["class"]) == ("invalid_argument", "RequestError")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9, 400),
        (b"hello\r\n\r\n", 400),
        (b"\r\n\r\n\r\nGET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        (head("content-length: -5"), 400),
        (head("content-length: 5, 6"), 400),
        (head("content-length: 5", "content-length: 6"), 400),
        (head("content-length: 99999999999999999999999"), 400),
        (head("content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n", 400),
        (head("transfer-encoding: gzip"), 400),
        (head("transfer-encoding: chunked, gzip"), 400),
        (head("transfer-encoding: chunked") + b"zz\r\nxx\r\n0\r\n\r\n", 400),
        (head("transfer-encoding: chunked") + b"2\r\nabc\r\n0\r\n\r\n", 400),
        (head("host : x"), 400),
        (head(": x"), 400),
        (head("a: x\x00y"), 400),
        (head("a: b\r\n c"), 400),
        (b"GET / HTTP/1.1\nhost: x\n\n", 400),
        (head("large: " + "y" * 50_000), 431),
        (head("large: " + "y" * 1_000_000), 431),
        (b"GET /" + b"y" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 431),
    ],
    ids=range(23),
)  # fmt: skip
def test_what_is_no_http(fronts, raw, status):
    answer = parsed(fronts.raw(raw))
    assert (answer.status, told(answer)[0]) == (status, "invalid_argument")
    assert len(answer.body) < 2_000


@pytest.mark.parametrize("sent", [b"1;" + b"x" * 300_000, b"0\r\na: " + b"x" * 300_000])
def test_chunks_that_say_much_of_themselves(fronts, sent):
    assert parsed(fronts.raw(head("transfer-encoding: chunked") + sent)).status == 400


def test_a_body_in_good_chunks(fronts):
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, ONE[i : i + 1]) for i in range(len(ONE)))
    start = head("transfer-encoding: chunked", "connection: close")
    assert scores(parsed(fronts.raw(start + chunks + b"0\r\na: b\r\n\r\n"))) == [0.5]


@pytest.mark.parametrize("told_length", [True, False])
def test_a_body_that_is_too_large(fronts, told_length):
    body = b"\x00" * 200_001
    length = f"content-length: {len(body)}" if told_length else "transfer-encoding: chunked"
    sent = body[:10] if told_length else b"%x\r\n%s\r\n" % (len(body), body)
    answer = parsed(fronts.raw(head(length) + sent))
    assert (answer.status, told(answer)[0]) == (413, "resource_exhausted")


def test_who_asks_whether_to_go_on_is_told(fronts):
    with connect(fronts) as connection:
        lines = ("expect: 100-continue", f"content-length: {len(ONE)}", "connection: close")
        connection.sendall(head(*lines))
        assert connection.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(ONE)
        assert scores(parsed(read_all(connection))) == [0.5]
    lines = ("expect: 100-continue", "content-length: 99999999")
    assert parsed(fronts.raw(head(*lines))).status == 413


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"P", head("content-length: 9")[:60]])
def test_heads_that_do_not_come(fronts, sent):
    raw = fronts.raw(sent)
    if not sent.strip():
        assert raw == b""
        return
    answer = parsed(raw)
    assert (answer.status, told(answer)[0]) == (408, "canceled")


def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_another(fronts):
    data, raw = iter(head("a: " + "b" * 3_000)), b""
    with connect(fronts) as connection:
        while not select.select([connection], [], [], 0.005)[0]:
            connection.sendall(bytes([next(data)]))
        raw = read_all(connection)
    assert parsed(raw).status == 408


def test_a_second_request_of_a_connection_must_come_whole_as_well(fronts):
    with connect(fronts) as connection:
        connection.sendall(head(f"content-length: {len(ONE)}") + ONE)
        assert b" 200 " in connection.recv(1 << 16).split(b"\r\n")[0]
        connection.sendall(head()[:50])
        assert parsed(read_all(connection)).status == 408


@pytest.mark.parametrize("sent", [b"", ONE[:1], ONE[:5]])
def test_bodies_that_do_not_come(fronts, sent):
    answer = parsed(fronts.raw(head("content-length: 100") + sent))
    code, parts = told(answer)
    assert (answer.status, code) == (408, "canceled")
    assert "receive_seconds" in parts["hint"]


@pytest.mark.parametrize("sent", [b"", b"P", head("content-length: 100") + b"{"])
def test_who_hangs_up_in_the_middle(fronts, sent):
    for _ in range(20):
        with connect(fronts) as connection:
            connection.sendall(sent)
    fronts.raw(sent, end=True)


def test_who_says_that_nothing_more_comes_is_still_answered(fronts):
    raw = fronts.raw(head(f"content-length: {len(ONE)}") + ONE, end=True)
    assert scores(parsed(raw)) == [0.5]


def test_who_hangs_up_before_the_answer(fronts):
    before = len(fronts.recorder.heard)
    for _ in range(20):
        connection = connect(fronts)
        connection.sendall(head(f"content-length: {len(ONE)}") + ONE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    def is_even():
        kinds = [item[0] for item in fronts.recorder.heard[before:]]
        return kinds.count("begun") == kinds.count("ended")

    wait_until(is_even, what="every call that began to end")


@pytest.mark.parametrize("sent", [b"\x16\x03" * 20, request(path="/no"), head("a: \x00")])
def test_who_hangs_up_before_it_could_be_refused(fronts, sent):
    for _ in range(100):
        with connect(fronts) as connection:
            connection.sendall(sent + b"x" * 1_000)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: not fronts.server._connect.connections, what="all of them to be gone")


def test_connections_beyond_number_that_send_nothing(fronts):
    held = [connect(fronts) for _ in range(300)]
    try:
        assert fronts.look_up().status == 200
        assert all(read_all(connection) == b"" for connection in held)
    finally:
        for connection in held:
            connection.close()


def test_bodies_that_are_held_together_are_bounded(fronts):
    """Each is small enough, all of them together are not."""
    each, held, refused = 190_000, [], 0
    try:
        for _ in range(12):
            connection = connect(fronts)
            connection.sendall(head(f"content-length: {each + 10}") + b" " * each)
            held.append(connection)
        for connection in held:
            answer = parsed(read_all(connection))
            assert answer.status in {408, 429}
            refused += answer.status == 429
        assert refused
    finally:
        for connection in held:
            connection.close()


def test_requests_that_come_all_at_once(fronts):
    raw = fronts.raw((head(f"content-length: {len(ONE)}") + ONE) * 50 + request())
    assert raw.count(b"HTTP/1.1 200 OK") == 51


def test_more_requests_at_once_than_are_taken_are_not_lost_without_a_word(fronts):
    raw = fronts.raw((head(f"content-length: {len(ONE)}") + ONE) * 300)
    assert 100 <= raw.count(b"HTTP/1.1 200 OK") <= 300
    if raw.count(b"HTTP/1.1 200 OK") < 300:
        assert raw.count(b"connection: close") == 1


def test_what_follows_the_last_request_is_not_read(fronts):
    raw = fronts.raw(request() + request())
    assert raw.count(b"HTTP/1.1 ") == 1


def test_who_asks_for_another_protocol_gets_this_one(fronts):
    for name in ("h2c", "websocket", "tcp"):
        lines = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {name}")
        raw = head(*lines, f"content-length: {len(ONE)}") + ONE
        raw += request(ONE, "connection: upgrade, close", f"upgrade: {name}")
        assert fronts.raw(raw).count(b"HTTP/1.1 200 OK") == 2
    assert parsed(fronts.raw(head(verb="CONNECT", path="x:1"))).status == 404


def test_an_old_client(fronts):
    assert scores(parsed(fronts.raw(request(version="HTTP/1.0")))) == [0.5]


@pytest.mark.parametrize("value", ["a b", "x" * 200, "\xe9", "a\tb", '"<>'])
def test_an_id_that_does_not_fit_is_replaced(fronts, value):
    answer = parsed(fronts.raw(request(b"", f"x-request-id: {value}", path=HEALTH)))
    assert answer.status == 200
    assert answer.headers["x-request-id"] != value
    assert answer.headers["x-request-id"].isascii()


def test_tls_that_is_spoken_to_plain_text(fronts):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        fronts.call(LOOKUP, ONE, context=ssl.create_default_context())


def test_who_reads_no_answers_is_let_go(fronts, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.3)
    message = lookup("every")
    message.entity_rows[0].name = "k"
    message.entity_rows[0].int64s.values.extend([1] * 400)
    body = message.SerializeToString()
    with connect(fronts) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall((head(f"content-length: {len(body)}") + body) * 40)
        wait_until(lambda: not is_held(connection), what="the end of the wait")


def test_noise(fronts):
    """Requests with bytes changed, cut and repeated: every answer is one of ours, or none."""
    rng = random.Random(7)  # noqa: S311  (nothing secret)
    good = request(ONE, "connect-timeout-ms: 5000")
    for _ in range(300):
        data = mutated(good, rng)
        with connect(fronts) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            raw = read_all(connection)
        if raw:
            answer = parsed(raw)
            assert answer.status == 200 or 400 <= answer.status <= 501, raw
            assert answer.status == 200 or told(answer)
