"""The HTTP front as callers see it: the values, errors, limits and credentials that gRPC has."""

from __future__ import annotations

import http.client
import json
import threading
from datetime import UTC, datetime, timedelta

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from featurestore.access.keys import KeyFile
from featurestore.clock import FixedClock
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.testing.valkey import wait_until
from tests.http_values import as_documented, bits
from tests.integration.http_front import Fronts, ask, parsed
from tests.integration.test_grpc_serving import DOUBLED, USERS
from tests.served import EVERY_TYPE, NOW, NOW_US, on_demand, publish, select, state

STAMPS = [
    "2024-06-01T11:59:59.999999Z",
    "2024-06-01T11:59:59.999998Z",
    "2024-06-01T10:59:59.999999Z",
    None,
]
LOOKUP = "/v1/get-online-features"
AS_OF = "2024-06-01T12:00:00Z"
ONE = {"features": ["users:score"], "entity_rows": [{"user": 1}], "as_of": AS_OF}

pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(scope="module")
def fronts():
    fronts = Fronts(threads=4)
    yield fronts
    fronts.stop()


@pytest.fixture
def start(tmp_path):
    begun = []

    def start(**settings):
        begun.append(Fronts(folder=tmp_path, **settings))
        return begun[-1]

    yield start
    for fronts in begun:
        fronts.stop()


@pytest.fixture(scope="module")
def schema(fronts):
    return fronts.ask("/openapi.json").json


def check(schema, path, answer, verb="post"):
    """Hold an answer against the description."""
    held = schema["paths"][path][verb]["responses"][str(answer.status)]
    if "$ref" in held:
        held = schema["components"]["responses"][held["$ref"].rpartition("/")[2]]
    kind = held["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**kind, "components": schema["components"]}).validate(
        answer.json
    )


def test_the_description_is_openapi(schema):
    OpenAPIV31SpecValidator(schema).validate()
    assert schema["openapi"] == "3.1.0"
    assert schema["info"]["version"] == "0.1.0"


def test_a_lookup(fronts, schema):
    answer = fronts.look_up(
        {"features": "all", "entity_rows": {"user": [1, 2, 3, None]}, "as_of": AS_OF},
        {"x-request-id": "mine-1"},
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["server"] == "featurestore"
    check(schema, LOOKUP, answer)
    found = answer.json
    assert found == {
        "as_of": "2024-06-01T12:00:00.000000Z",
        "service": "all",
        "rows": 4,
        "entity_keys": {"user": [1, 2, 3, None]},
        "values": {
            "score": [0.5, None, None, None],
            "name": ["one", "two", None, None],
            "rate": [9.0] * 4,
        },
        "statuses": {
            "score": ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
            "name": ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND"],
            "rate": ["PRESENT"] * 4,
        },
        "event_timestamps": {
            "score": STAMPS,
            "name": STAMPS,
            "rate": ["2024-06-01T12:00:00.000000Z"] * 4,
        },
        "fingerprints": {"users": USERS.fingerprint, "world": found["fingerprints"]["world"]},
        "applied": {},
    }
    assert list(found["values"]) == ["score", "name", "rate"]


def test_the_arguments_of_a_lookup(fronts, schema):
    rows = [{"user": 1}, {"user": 2}]
    request = {"amount": 0.1}
    answers = [
        fronts.look_up({"features": ["doubled"], "entity_rows": rows, "request": given})
        for given in (request, [request, request], {"amount": [0.1, 0.1]})
    ]
    for answer in answers:
        check(schema, LOOKUP, answer)
        assert answer.json["values"]["doubled"] == [1.0, None]
        assert answer.json["fingerprints"]["doubled"] == DOUBLED.fingerprint
        assert answer.json["event_timestamps"]["plus"] == [None, None]
        assert answer.json["statuses"]["plus"] == ["PRESENT", "NULL_VALUE"]
    full = fronts.look_up({**ONE, "full_feature_names": True}).json
    assert list(full["values"]) == ["users__score"]
    buyer = {"view": "users", "features": ["score"], "alias": "buyer", "join_keys": {"user": "id"}}
    both = fronts.look_up(
        {
            "features": [buyer, "pairs:weight"],
            "entity_rows": [{"id": 1, "left": "12", "right": 3, "more": [{"a": 1}]}],
            "full_feature_names": True,
        }
    ).json
    assert both["values"] == {"buyer__score": [0.5], "pairs__weight": [2.0]}
    assert fronts.look_up({"features": ["world:rate"]}).json["rows"] == 1
    none = fronts.look_up({"features": ["users:score"], "entity_rows": {"user": []}}).json
    assert (none["rows"], none["values"]) == (0, {"score": []})


def test_every_type_is_what_the_grpc_client_has(fronts, schema):
    keys = [1, 2, 3, 9, 1]
    answer = fronts.look_up({"features": ["every"], "entity_rows": {"k": keys}, "as_of": AS_OF})
    check(schema, LOOKUP, answer)
    with fronts.client() as client:
        there = client.get_online_features(["every"], {"k": keys}, as_of=NOW)
    found = answer.json
    for name, dtype in EVERY_TYPE.items():
        expected = there.to_dict()[name]
        read = [as_documented(value, dtype) for value in found["values"][name]]
        assert read == [bits(value) for value in expected], name
    assert found["statuses"] == there.statuses
    assert found["fingerprints"] == there.fingerprints
    stamps = [None if t is None else t.isoformat() for t in there.event_timestamps["a_bool"]]
    assert [
        None if t is None else datetime.fromisoformat(t).isoformat()
        for t in found["event_timestamps"]["a_bool"]
    ] == stamps


@pytest.mark.parametrize(
    ("body", "status", "code", "what"),
    [
        ({"features": ["users:scor"]}, 404, "NOT_FOUND", "scor"),
        ({"features": "al"}, 404, "NOT_FOUND", "al"),
        ({"entity_rows": [{"usr": 1}]}, 400, "INVALID_ARGUMENT", "lacks the column 'user'"),
        ({"entity_rows": [{"user": "1"}]}, 400, "INVALID_ARGUMENT", "cannot be read as int64"),
        ({"entity_rows": [{"user": 1.5}]}, 400, "INVALID_ARGUMENT", "cannot be read as int64"),
        ({"entity_rows": [{"user": 2**63}]}, 400, "INVALID_ARGUMENT", "int64"),
        ({"entity_rows": [{"user": 1}, {}]}, 400, "INVALID_ARGUMENT", "Row 1"),
        ({"entity_rows": {"user": [1], "x": []}}, 400, "INVALID_ARGUMENT", "differ in length"),
        ({"entity_rows": [{"user": 1, "score": 2}]}, 400, "INVALID_ARGUMENT", "named like"),
        ({"as_of": "2024-06-01T12:00:00"}, 400, "INVALID_ARGUMENT", "no time zone"),
        ({"as_of": "2024-05-01T12:00:00Z"}, 400, "OUT_OF_RANGE", "newer than 'as_of'"),
        ({"as_of": "2024-06-01T12:00:00.1234567Z"}, 400, "INVALID_ARGUMENT", "no instant"),
        ({"features": ["hidden:secret"]}, 400, "INVALID_ARGUMENT", "not online"),
        ({"features": ["doubled"]}, 400, "INVALID_ARGUMENT", "amount"),
        ({"features": ["failing"]}, 400, "FAILED_PRECONDITION", "failing"),
        ({"features": []}, 400, "INVALID_ARGUMENT", ""),
    ],
)
def test_errors_are_those_of_grpc(fronts, schema, body, status, code, what):  # noqa: PLR0917
    answer = fronts.look_up({**ONE, **body}, {"x-request-id": "r1"})
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    check(schema, LOOKUP, answer)
    assert what in answer.error["what"]
    assert answer.error["request_id"] == answer.headers["x-request-id"] == "r1"


def test_a_push(fronts, schema):
    answer = fronts.ask("/v1/push", {"source": "clicks", "events": [{"id": 1}, {"id": 2}]})
    check(schema, "/v1/push", answer)
    assert answer.json == {"accepted": 2, "positions": {"clicks/0": 2**53 + 1}}
    source, events, _ = fronts.sink.pushed[-1]
    assert (source, events.to_pylist()) == ("clicks", [{"id": 1}, {"id": 2}])
    for body in (
        {"source": "other", "events": [{"id": 1}]},
        {"source": 5, "events": []},
        {"source": "clicks", "events": {"id": [1]}},
        {"source": "clicks", "events": [[]]},
        {"source": "clicks"},
    ):
        answer = fronts.ask("/v1/push", body)
        assert (answer.status, answer.error["code"]) == (400, "INVALID_ARGUMENT"), body
        check(schema, "/v1/push", answer)


def test_what_is_served(fronts, schema):
    answer = fronts.ask("/v1/serving-info")
    check(schema, "/v1/serving-info", answer, "get")
    with fronts.client() as client:
        info = client.serving_info()
    found = answer.json
    assert (found["project"], found["revision"]) == (info.project, info.revision)
    assert found["services"] == info.services
    assert list(found["views"]) == list(info.views)
    assert found["views"]["pairs"]["join_keys"] == {"left": "string", "right": "int32"}
    assert found["views"]["doubled"]["request"] == {"amount": "float32"}
    assert as_documented(found["now"], "timestamp") <= info.now
    event = found["views"]["users"]["newest_served_event"]
    assert as_documented(event, "timestamp") == info.views["users"].newest_served_event
    assert fronts.ask("/v1/serving-info", verb="HEAD").body == b""


def test_observers_hear_of_calls(start):
    fronts = start()
    heard = fronts.recorder.heard
    fronts.look_up(ONE)
    name = "GetOnlineFeatures"
    answered = ("answered", name, ["users:score"], 1)
    ended = ("ended", name, "OK", "NoneType")
    assert heard == [("begun", name, "http"), answered, ended]
    with fronts.client() as client:
        client.get_online_features(["users:score"], [{"user": 1}])
    wait_until(lambda: len(heard) == 6, what="the call over gRPC")
    assert heard[3] == ("begun", name, "grpc")
    fronts.look_up({**ONE, "features": ["users:x"]})
    assert heard[6:] == [
        ("begun", name, "http"),
        ("ended", name, "NOT_FOUND", "FeatureNotFoundError"),
    ]
    # Only whoever calls a method is heard of.
    fronts.ask("/v1/health")
    fronts.ask("/nothing")
    assert len(heard) == 8
    fronts.stop()
    assert heard[8:] == [("closed",)]


class Restricted:
    def __init__(self, start, folder, **settings):
        keys = KeyFile(folder / "keys.json", FixedClock(NOW_US))
        self.reads, _ = keys.create("reads", ("read_online:shop/view/users",))
        self.all, _ = keys.create("all", ("*:shop",))
        self.fronts = start(keys_file="keys.json", **settings)


def test_who_may_what(start, tmp_path, schema):
    world = Restricted(start, tmp_path)
    fronts = world.fronts
    for headers in ({"x-api-key": world.reads}, {"authorization": f"Bearer {world.reads}"}):
        assert fronts.look_up(ONE, headers).status == 200
    for headers, what in (
        ({}, "does not say who"),
        ({"x-api-key": "fs_nobody"}, "none of ours"),
        ({"x-api-key": "gr\xf6\xdfe"}, "none of ours"),
        ({"x-api-key": world.all, "authorization": f"Bearer {world.all}"}, "two credentials"),
        ({"authorization": "Basic YTpi"}, "another scheme"),
    ):
        answer = fronts.look_up(ONE, headers)
        assert (answer.status, answer.error["code"]) == (401, "UNAUTHENTICATED"), answer.body
        assert answer.headers["www-authenticate"] == "Bearer"
        assert what in answer.error["what"]
        check(schema, LOOKUP, answer)
    shown = {"x-api-key": world.reads}
    world_rate = {"features": ["world:rate"], "entity_rows": [{}]}
    answer = fronts.look_up(world_rate, shown)
    assert (answer.status, answer.error["code"]) == (403, "PERMISSION_DENIED")
    assert answer.error["allowed"] == "read_online:shop/view/world"
    assert fronts.look_up(world_rate, {"x-api-key": world.all}).status == 200
    # What is not theirs is not told of, neither by what there is nor by types.
    answer = fronts.look_up({"features": ["every:a_bool"], "entity_rows": [{"k": "x"}]}, shown)
    assert answer.status == 403
    answer = fronts.look_up({**ONE, "features": ["users:scor"]}, shown)
    assert (answer.status, answer.error["allowed"], answer.error["hint"]) == (404, None, None)
    push = {"source": "clicks", "events": [{"id": 1}]}
    assert fronts.ask("/v1/push", push, shown).status == 403
    assert fronts.ask("/v1/push", push, {"x-api-key": world.all}).status == 200
    assert list(fronts.ask("/v1/serving-info", headers=shown).json["views"]) == ["users"]
    assert fronts.ask("/v1/serving-info").status == 401
    assert fronts.ask("/v1/health").status == 200


def test_a_large_body_of_a_stranger_is_not_read(start, tmp_path):
    fronts = Restricted(start, tmp_path).fronts
    # It says that it comes, and never does: the answer is there all the same.
    head = b"POST /v1/push HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    answer = fronts.raw(head + b"content-length: 1000000\r\n\r\n", end=False)
    assert b" 401 " in answer.split(b"\r\n")[0]
    assert fronts.recorder.heard[-1][2] == "UNAUTHENTICATED"


def test_the_audit_tells_of_calls_over_http(start, tmp_path):
    world = Restricted(start, tmp_path, audit_log="audit.jsonl")
    shown = {"x-api-key": world.reads, "x-request-id": "r-1"}
    world.fronts.look_up(ONE, shown)
    world.fronts.look_up(ONE, {"x-request-id": "r-2"})
    path = tmp_path / "audit.jsonl"
    wait_until(lambda: path.exists() and path.read_text().count("\n") == 2, what="the audit")
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["request_id"], first["front"]) == ("r-1", "http")
    assert "reads" in first["who"]
    assert (first["method"], first["status"]) == ("GetOnlineFeatures", "OK")
    assert (first["views"], first["rows"], first["keys"]) == (["users"], 1, 1)
    assert first["peer"].startswith("ipv4:127.0.0.1:")
    assert first["latency_ms"] >= 0
    assert (second["request_id"], second["status"]) == ("r-2", "UNAUTHENTICATED")


def test_limits(start, schema):
    fronts = start(max_message_bytes=2_000, max_entity_rows=3)
    many = {**ONE, "entity_rows": [{"user": i} for i in range(4)]}
    answer = fronts.look_up(many)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_ARGUMENT")
    assert answer.error["allowed"] == "3"
    answer = fronts.look_up({**ONE, "entity_rows": [{"user": 1, "more": "x" * 3_000}]})
    assert (answer.status, answer.error["code"]) == (413, "RESOURCE_EXHAUSTED")
    check(schema, LOOKUP, answer)
    # The same without a length that says so beforehand.
    head = b"POST /v1/push HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    chunks = (b"64\r\n" + b" " * 100 + b"\r\n") * 30
    answer = parsed(fronts.raw(head + b"transfer-encoding: chunked\r\n\r\n" + chunks))
    assert (answer.status, answer.error["code"]) == (413, "RESOURCE_EXHAUSTED")
    answer = fronts.look_up({"features": ["every"], "entity_rows": {"k": [1]}})
    assert (answer.status, answer.error["allowed"]) == (400, "2000 bytes")
    # It goes on.
    assert fronts.look_up(ONE).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-request-timeout": "0"}, 504),
        ({"x-request-timeout": "0.2"}, 504),
        ({"grpc-timeout": "200m"}, 504),
        ({"grpc-timeout": "1n"}, 504),
        ({"x-request-timeout": "soon"}, 400),
        ({"x-request-timeout": "-1"}, 400),
        ({"x-request-timeout": "nan"}, 400),
        ({"grpc-timeout": "1"}, 400),
        ({"grpc-timeout": "\xff"}, 400),
    ],
)
def test_deadlines(start, tmp_path, schema, headers, status):
    fronts = start(gate=tmp_path / "gate", threads=1)
    gated = _gated(fronts)
    answer = fronts.look_up(gated, headers)
    (tmp_path / "gate").touch()
    assert answer.status == status
    assert answer.error["code"] == {504: "DEADLINE_EXCEEDED", 400: "INVALID_ARGUMENT"}[status]
    check(schema, LOOKUP, answer)
    answer = fronts.look_up(gated, {"x-request-timeout": "20"})
    assert answer.json["values"] == {"passed": [1.5]}


def _gated(fronts):
    """Publish the on-demand view that waits for a file; return a lookup of it."""
    plan = on_demand("gated", [select("users", "score")], {"passed": "float64"})
    publish(fronts.served.registry, state([USERS], [plan]))
    fronts.served.clock.advance(2_000_000)
    fronts.served.state.refresh()
    return {"features": ["gated"], "entity_rows": [{"user": 1}]}


def test_too_much_is_told_at_once(start, tmp_path, schema):
    fronts = start(gate=tmp_path / "gate", threads=1, max_concurrent_requests=2)
    gated = _gated(fronts)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(fronts.look_up(gated))) for _ in range(2)
    ]
    pool, heard = fronts.server._pool, fronts.recorder.heard
    threads[0].start()
    wait_until(lambda: heard, what="a call that is answered")
    threads[1].start()
    wait_until(lambda: pool.is_behind, what="a call that waits")
    refused = fronts.look_up(gated)
    assert fronts.ask("/v1/health").status == 200
    (tmp_path / "gate").touch()
    for thread in threads:
        thread.join()
    assert (refused.status, refused.error["code"]) == (429, "RESOURCE_EXHAUSTED")
    assert refused.headers["retry-after"] == "1"
    check(schema, LOOKUP, refused)
    assert [answer.status for answer in answers] == [200, 200]


def test_a_store_that_fails_is_left_alone(start, schema):
    fronts = start(breaker_failures=2, breaker_seconds=7.5)

    def fail(*_, **__):
        raise OnlineStoreUnavailableError("The store is gone.", where="redis://db")

    fronts.served.store.read = fail
    for _ in range(3):
        answer = fronts.look_up(ONE)
        assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
        check(schema, LOOKUP, answer)
    assert answer.headers["retry-after"] == "8"


def test_health(start, schema):
    fronts = start()
    answer = fronts.ask("/v1/health")
    assert (answer.status, answer.json) == (200, {"live": True, "ready": True})

    def fail(*_, **__):
        raise OnlineStoreUnavailableError("The store is gone.")

    fronts.served.store.ping = fail
    wait_until(lambda: fronts.ask("/v1/health").status == 503, what="health to follow")
    for path, status in (("/v1/health", 503), ("/v1/health/ready", 503), ("/v1/health/live", 200)):
        answer = fronts.ask(path)
        assert answer.status == status
        check(schema, path, answer, "get")


def test_what_nobody_foresaw_is_told_without_its_insides(start, schema, logs):
    fronts = start()

    def fail(*_, **__):
        raise ZeroDivisionError("secret")

    fronts.served.store.read = fail
    answer = fronts.look_up(ONE, {"x-request-id": "r9"})
    assert (answer.status, answer.error["code"]) == (500, "INTERNAL")
    check(schema, LOOKUP, answer)
    assert b"secret" not in answer.body
    told = [line for line in logs if line.get("request_id") == "r9"]
    assert [line["event"] for line in told] == ["request failed"]
    assert told[0]["reference"] in answer.error["what"]


def test_connections_are_kept(fronts):
    connection = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
    held = None
    for number in range(5):
        body = ONE if number % 2 else {**ONE, "features": ["no:such"]}
        answer = ask(connection, LOOKUP, body)
        assert answer.status == (200 if number % 2 else 404)
        held = held or connection.sock
        assert connection.sock is held
    connection.close()


def test_instants_of_a_request_may_be_in_any_zone(fronts):
    zone = (NOW + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00"
    answer = fronts.look_up({**ONE, "as_of": zone})
    assert answer.json["as_of"] == "2024-06-01T12:00:00.000000Z"
    assert datetime.fromisoformat(answer.json["as_of"]) == NOW.astimezone(UTC)
