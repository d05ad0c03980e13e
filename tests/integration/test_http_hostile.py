"""What strangers send to the HTTP front over raw sockets: told clearly, and the server lives on."""

from __future__ import annotations

import gzip
import json
import random
import select
import socket
import ssl

import pytest

from featurestore.testing.valkey import wait_until
from tests.integration.http_front import Fronts, mutated, parsed, read_all

LOOKUP = "/v1/get-online-features"
GOOD = {"features": ["users:score"], "entity_rows": [{"user": 1}]}
RECEIVE_SECONDS = 0.3

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="module")
def fronts():
    fronts = Fronts(
        receive_seconds=RECEIVE_SECONDS, max_message_bytes=200_000, threads=2, drain_seconds=5.0
    )
    yield fronts
    fronts.stop()


@pytest.fixture(autouse=True)
def _lives_on(fronts, logs):
    yield
    assert fronts.look_up(GOOD).json["values"] == {"score": [0.5]}
    assert fronts.server._front._thread.is_alive()
    assert [line for line in logs if line["log_level"] in {"error", "critical"}] == []


def head(*lines, verb="POST", path=LOOKUP, version="HTTP/1.1"):
    named = ("host: x", "content-type: application/json", *lines)
    return "\r\n".join([f"{verb} {path} {version}", *named, "", ""]).encode()


def request(body, *lines, **options):
    body = body if isinstance(body, bytes) else body.encode()
    return head(f"content-length: {len(body)}", "connection: close", *lines, **options) + body


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"path": "/"}, 404, "NOT_FOUND"),
        ({"path": "/v1/get-online-feature"}, 404, "NOT_FOUND"),
        ({"path": "/v1/%67et-online-features/.."}, 404, "NOT_FOUND"),
        ({"path": "/" + "x" * 5_000}, 404, "NOT_FOUND"),
        ({"path": "/%ff%00"}, 404, "NOT_FOUND"),
        ({"path": "*", "verb": "OPTIONS"}, 404, "NOT_FOUND"),
        ({"verb": "GET"}, 405, "UNIMPLEMENTED"),
        ({"verb": "PUT"}, 405, "UNIMPLEMENTED"),
        ({"verb": "OPTIONS"}, 405, "UNIMPLEMENTED"),
        ({"verb": "TRACE"}, 405, "UNIMPLEMENTED"),
        ({"path": "/v1/health"}, 405, "UNIMPLEMENTED"),
    ],
)
def test_what_is_not_there(fronts, options, status, code):
    answer = parsed(fronts.raw(request("{}", **options)))
    assert (answer.status, answer.error["code"]) == (status, code)
    assert ("allow" in answer.headers) is (status == 405)
    assert answer.error["request_id"] == answer.headers["x-request-id"]


def test_a_near_miss_is_told(fronts):
    answer = parsed(fronts.raw(request("{}", path="/v1/get-online-feature")))
    assert answer.error["hint"] == "Did you mean '/v1/get-online-features'?"


@pytest.mark.parametrize(
    "line",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
        "",
        "\xff",
    ],
)
def test_what_is_not_json_by_its_own_word(fronts, line):
    body = json.dumps(GOOD).encode()
    raw = f"POST {LOOKUP} HTTP/1.1\r\nhost: x\r\ncontent-type: {line}\r\n".encode("latin-1")
    answer = parsed(
        fronts.raw(raw + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
    )
    assert (answer.status, answer.error["where"]) == (415, "content-type")


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", "Application/JSON"])
def test_what_is_json_by_other_words(fronts, kind):
    assert fronts.ask(LOOKUP, GOOD, {"content-type": kind}).status == 200


def test_a_compressed_body_is_refused_before_it_could_grow(fronts):
    body = gzip.compress(b" " * 10_000_000)
    answer = parsed(fronts.raw(request(body, "content-encoding: gzip")))
    assert (answer.status, answer.error["where"]) == (415, "content-encoding")


DEEP = 100_000
LARGE = "9" * 5_000


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ('{"features": ["a"]} {}', "no JSON"),
        ("\ufeff{}", "no JSON"),
        (b'{"features": "\xff"}', "no JSON"),
        (b'{"features": "\xed\xa0\x80"}', "no JSON"),
        ('{"features": "\\ud800"}', "no JSON"),
        ('{"features": "a\x01"}', "no JSON"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ('"text"', "no JSON object"),
        ('{"features": "a", "features": "b"}', "twice"),
        ('{"features": ["a"], "entity_rows": [{"user": 1, "user": 2}]}', "twice"),
        ('{"features": ["a"], "entity_rows": [{"user": NaN}]}', "no such number"),
        ('{"features": ["a"], "entity_rows": [{"user": -Infinity}]}', "no such number"),
        ('{"features": ["a"], "entity_rows": [{"user": 1e400}]}', "too large"),
        (f'{{"features": ["a"], "entity_rows": [{{"user": {LARGE}}}]}}', "no JSON"),
        ("[" * DEEP, "too deep"),
        ('{"a":' * 30_000, "too deep"),
        (f'{{"features": {"[" * 900}{"]" * 900}}}', ""),
        (f'{{"features": ["users"], "entity_rows": {"[" * 900}{"]" * 900}}}', ""),
        (f'{{"features": ["users"], "entity_rows": {{"user": {"[" * 900}{"]" * 900}}}}}', ""),
        ("{}", "'features' is missing"),
        ('{"features": null}', "'features' is missing"),
        ('{"features": 5}', "another kind"),
        ('{"features": [5]}', "another kind"),
        ('{"features": [["users:score"]]}', "another kind"),
        ('{"features": [{"views": "users"}]}', "no field 'views'"),
        ('{"features": [{"view": 5}]}', "makes no sense"),
        ('{"features": [{"view": "users", "join_keys": []}]}', ""),
        ('{"features": [{"view": "users", "features": []}]}', ""),
        ('{"features": ["users"], "entity_row": []}', "no field 'entity_row'"),
        ('{"features": ["users"], "entity_rows": null}', "another kind"),
        ('{"features": ["users"], "entity_rows": "x"}', "another kind"),
        ('{"features": ["users"], "entity_rows": [1]}', "another kind"),
        ('{"features": ["users"], "entity_rows": {"user": 1}}', "another kind"),
        ('{"features": ["users"], "entity_rows": {"user": "1"}}', "another kind"),
        ('{"features": ["users"], "entity_rows": [{"user": {}}]}', "cannot be read as int64"),
        ('{"features": ["users"], "entity_rows": [{"user": [1]}]}', "cannot be read as int64"),
        ('{"features": ["users"], "entity_rows": [{"user": true}]}', "cannot be read as int64"),
        ('{"features": ["users"], "entity_rows": [{"user": 9007199254740993.0}]}', ""),
        ('{"features": ["users"], "full_feature_names": 1}', "another kind"),
        ('{"features": ["users"], "as_of": 5}', "no instant"),
        ('{"features": ["users"], "as_of": "2024-13-01T00:00:00Z"}', "no instant"),
        ('{"features": ["users"], "as_of": "2024-01-01T00:00:60Z"}', "no instant"),
        ('{"features": ["users"], "as_of": "0001-01-01T00:00:00+23:00"}', ""),
        ('{"features": ["doubled"], "entity_rows": [{"user": 1}], "request": 5}', "another kind"),
        ('{"features": ["doubled"], "entity_rows": [{"user": 1}], "request": [{}, {}]}', ""),
        ('{"features": ["doubled"], "entity_rows": [{"user": 1}], "request": {"amount": "x"}}', ""),
        ('{"features": ["users"], "entity_rows": [{}, {"user": 1}]}', "lacks"),
    ],
)
def test_bodies_that_make_no_sense(fronts, body, what):
    answer = parsed(fronts.raw(request(body)))
    assert answer.status in {400, 404}, answer.body
    assert answer.error["code"] in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert what in answer.error["what"], answer.error
    assert len(answer.body) < 3_000


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9, 400),
        (b"hello\r\n\r\n", 400),
        (b"\r\n\r\n\r\nGET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n", 400),
        (head("content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\x00y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlarge: " + b"y" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 400),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_http(fronts, raw, status):
    answer = parsed(fronts.raw(raw))
    assert (answer.status, answer.error["code"]) == (status, "INVALID_ARGUMENT")
    assert answer.error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.body) < 2_000


def test_a_body_in_chunks_that_are_none(fronts):
    answer = parsed(fronts.raw(head("transfer-encoding: chunked") + b"zz\r\nxx\r\n0\r\n\r\n"))
    assert (answer.status, answer.error["code"]) == (400, "INVALID_ARGUMENT")


def test_a_body_in_good_chunks(fronts):
    body = json.dumps(GOOD).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    answer = parsed(
        fronts.raw(head("transfer-encoding: chunked", "connection: close") + chunks + b"0\r\n\r\n")
    )
    assert answer.status == 200


def test_who_asks_whether_to_go_on_is_told(fronts):
    body = json.dumps(GOOD).encode()
    with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
        lines = ("expect: 100-continue", f"content-length: {len(body)}", "connection: close")
        connection.sendall(head(*lines))
        assert connection.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert parsed(read_all(connection)).status == 200
    lines = ("expect: 100-continue", "content-length: 99999999")
    assert parsed(fronts.raw(head(*lines))).status == 413


@pytest.mark.parametrize("sent", [b"", b"P", head("content-length: 9")[:60]])
def test_heads_that_do_not_come(fronts, sent):
    raw = fronts.raw(sent)
    if not sent:
        assert raw == b""
        return
    answer = parsed(raw)
    assert (answer.status, answer.error["code"]) == (408, "CANCELLED")


def test_a_head_that_comes_byte_by_byte_has_no_more_time_than_another(fronts):
    data, raw = iter(head("a: " + "b" * 3_000)), b""
    with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
        while not select.select([connection], [], [], 0.005)[0]:
            connection.sendall(bytes([next(data)]))
        raw = read_all(connection)
    assert parsed(raw).status == 408


def test_a_second_request_of_a_connection_must_come_whole_as_well(fronts):
    good = json.dumps(GOOD).encode()
    with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
        connection.sendall(head(f"content-length: {len(good)}") + good)
        first = connection.recv(1 << 16)
        assert b" 200 " in first.split(b"\r\n")[0]
        connection.sendall(head()[:50])
        assert parsed(read_all(connection)).status == 408


@pytest.mark.parametrize("sent", [b"", b"{", b'{"features"'])
def test_bodies_that_do_not_come(fronts, sent):
    answer = parsed(fronts.raw(head("content-length: 100") + sent))
    assert (answer.status, answer.error["code"]) == (408, "CANCELLED")
    assert "receive_seconds" in answer.error["hint"]


@pytest.mark.parametrize("sent", [b"", b"P", head("content-length: 100") + b"{"])
def test_who_hangs_up_in_the_middle(fronts, sent):
    for _ in range(20):
        with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
            connection.sendall(sent)
    fronts.raw(sent, end=True)


def test_who_hangs_up_before_the_answer(fronts):
    before = len(fronts.recorder.heard)
    body = json.dumps(GOOD).encode()
    for _ in range(20):
        connection = socket.create_connection((fronts.host, fronts.port), timeout=20)
        connection.sendall(head(f"content-length: {len(body)}") + body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    def is_even():
        heard = fronts.recorder.heard[before:]
        kinds = [item[0] for item in heard]
        return kinds.count("begun") == kinds.count("ended")

    wait_until(is_even, what="every call that began to end")


def test_connections_beyond_number_that_send_nothing(fronts):
    held = [socket.create_connection((fronts.host, fronts.port), timeout=20) for _ in range(300)]
    try:
        assert fronts.look_up(GOOD).status == 200
        assert all(read_all(connection) == b"" for connection in held)
    finally:
        for connection in held:
            connection.close()


def test_bodies_that_are_held_together_are_bounded(fronts):
    """Each is small enough, all of them together are not."""
    each = 190_000
    held, refused = [], 0
    try:
        for _ in range(12):
            connection = socket.create_connection((fronts.host, fronts.port), timeout=20)
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
    assert fronts.server._front._bodies._held == 0


def test_a_body_that_is_answered_is_held_no_more(fronts):
    fronts.look_up({**GOOD, "entity_rows": [{"user": 1, "more": "x" * 100_000}]})
    assert fronts.server._front._bodies._held == 0


def test_requests_that_come_all_at_once(fronts):
    body = json.dumps(GOOD).encode()
    one = head(f"content-length: {len(body)}") + body
    raw = fronts.raw(one * 50 + request(body))
    assert raw.count(b"HTTP/1.1 200 OK") == 51


def test_who_asks_for_another_protocol_gets_this_one(fronts):
    for name in ("h2c", "websocket", "tcp"):
        lines = ("connection: upgrade, close", f"upgrade: {name}")
        body = json.dumps(GOOD).encode()
        answer = parsed(fronts.raw(head(*lines, f"content-length: {len(body)}") + body))
        assert answer.json["values"] == {"score": [0.5]}
        assert parsed(fronts.raw(head(*lines, verb="GET", path="/v1/health"))).status == 200


def test_an_old_client(fronts):
    body = json.dumps(GOOD).encode()
    raw = fronts.raw(request(body, version="HTTP/1.0"))
    assert parsed(raw).status == 200


@pytest.mark.parametrize("value", ["a b", "x" * 200, "\xe9", "a\tb", '"<>'])
def test_an_id_that_does_not_fit_is_replaced(fronts, value):
    lines = f"x-request-id: {value}".encode("latin-1")
    raw = head("connection: close", verb="GET", path="/v1/health")
    answer = parsed(fronts.raw(raw.replace(b"host: x", b"host: x\r\n" + lines)))
    assert answer.status == 200
    assert answer.headers["x-request-id"] != value
    assert answer.headers["x-request-id"].isascii()


def test_tls_that_is_spoken_to_plain_text(fronts):
    context = ssl.create_default_context()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        fronts.ask("/v1/health", context=context)


def test_noise(fronts):
    """Requests with bytes changed, cut and repeated: every answer is one of ours, or none."""
    rng = random.Random(7)  # noqa: S311  (nothing secret)
    good = request(json.dumps(GOOD), "x-request-timeout: 5")
    for _ in range(150):
        data = mutated(good, rng)
        with socket.create_connection((fronts.host, fronts.port), timeout=20) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            raw = read_all(connection)
        if raw:
            answer = parsed(raw)
            assert 200 <= answer.status < 500, raw
            assert answer.json is not None
