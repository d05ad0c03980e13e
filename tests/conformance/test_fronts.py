"""Fronts that speak the service's messages pass one suite: answers, errors, limits, health."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2

from featurestore.access.keys import KeyFile
from featurestore.clock import FixedClock
from featurestore.errors import OnlineStoreUnavailableError, RequestError
from featurestore.serving import server
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.testing.valkey import wait_until
from tests.integration.connect_front import ConnectFronts, lookup
from tests.integration.test_grpc_serving import USERS
from tests.served import NOW_US, on_demand, publish, select, state

SERVICE = "featurestore.serving.v1.FeatureServing"
ONE = lookup("users:score")


@dataclass
class Result:
    """How a call ended: `code` as gRPC writes it, and the whole error if there was one."""

    code: str
    data: bytes = b""
    message: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> list[float]:
        """The values of the first feature."""
        assert self.code == "OK", self.message
        answer = pb.GetOnlineFeaturesResponse.FromString(self.data)
        return list(answer.features[0].doubles.values)


class Front(Protocol):
    """Calls methods over one protocol."""

    def __call__(
        self, method: str, body: bytes, *, timeout: float | None = None, **metadata: str
    ) -> Result:
        """Call once; underscores of `metadata` are dashes."""
        ...


def over_grpc(fronts: ConnectFronts) -> Front:
    """Return what calls over gRPC."""

    def call(method: str, body: bytes, *, timeout: float | None = None, **metadata: str) -> Result:
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        with grpc.insecure_channel(fronts.address) as channel:
            try:
                data, ended = channel.unary_unary(f"/{method}").with_call(
                    body, timeout=timeout, metadata=sent
                )
            except grpc.RpcError as error:
                told = dict(error.trailing_metadata() or ())  # type: ignore[attr-defined]
                parts = json.loads(told.pop("featurestore-error-bin", "{}"))
                return Result(
                    error.code().name,  # type: ignore[attr-defined]
                    message=error.details(),  # type: ignore[attr-defined]
                    parts={name: text for name, text in parts.items() if text is not None},
                    metadata=told,
                )
            return Result("OK", data, metadata=dict(ended.trailing_metadata() or ()))

    return call


def over_connect(fronts: ConnectFronts) -> Front:
    """Return what calls over the Connect protocol, by its own specification and no code of ours."""

    def call(method: str, body: bytes, *, timeout: float | None = None, **metadata: str) -> Result:
        headers = {"content-type": "application/proto", "connect-protocol-version": "1"}
        headers |= {name.replace("_", "-"): value for name, value in metadata.items()}
        if timeout is not None:
            headers["connect-timeout-ms"] = str(int(timeout * 1e3))
        connection = http.client.HTTPConnection(fronts.host, fronts.port, timeout=20)
        try:
            connection.request("POST", f"/{method}", body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        told = {name.lower(): value for name, value in answer.getheaders()}
        if answer.status == 200:
            assert told["content-type"] == "application/proto"
            return Result("OK", data, metadata=told)
        assert told["content-type"] == "application/json"
        return _failed(json.loads(data), told)

    return call


def _failed(error: dict[str, Any], told: Mapping[str, str]) -> Result:
    code = error["code"].upper().replace("CANCELED", "CANCELLED")
    parts: dict[str, str] = {}
    for detail in error.get("details", []):
        assert detail["type"] == "google.protobuf.Struct"
        value = detail["value"]
        held = Struct.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
        parts = {name: held[name] for name in held}
        assert parts == detail["debug"]
    return Result(code, message=error["message"], parts=parts, metadata=told)


pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(
    params=[(over_grpc, True), (over_grpc, False), (over_connect, True)],
    ids=["grpc", "grpc, a thread a call", "connect"],
)
def speak(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What calls; gRPC as a version of grpcio that is known answers it, and as others do."""
    way, is_known = request.param
    monkeypatch.setattr(server, "is_known", lambda: is_known)
    return way


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    begun: list[ConnectFronts] = []

    def start(**settings: Any) -> ConnectFronts:
        begun.append(ConnectFronts(tmp_path, tmp_path / "gate", **settings))
        return begun[-1]

    yield start
    for fronts in begun:
        fronts.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[dict[bool, ConnectFronts]]:
    """Servers that tests share."""
    running: dict[bool, ConnectFronts] = {}
    yield running
    for fronts in running.values():
        fronts.stop()


@pytest.fixture
def fronts(running: dict[bool, ConnectFronts], request: pytest.FixtureRequest) -> ConnectFronts:
    if "speak" in request.fixturenames:
        request.getfixturevalue("speak")
    is_known = server.is_known()
    if is_known not in running:
        running[is_known] = ConnectFronts()
    return running[is_known]


def ask(front: Front, message: Any = ONE, **options: Any) -> Result:
    return front(f"{SERVICE}/GetOnlineFeatures", message.SerializeToString(), **options)


def every(*keys: int, **fields: Any) -> pb.GetOnlineFeaturesRequest:
    message = pb.GetOnlineFeaturesRequest(as_of=NOW_US, **fields)
    message.references.references.add(view="every")
    message.entity_rows.add(name="k").int64s.values.extend(keys)
    return message


def request_fields() -> pb.GetOnlineFeaturesRequest:
    message = lookup("doubled", as_of=NOW_US)
    message.request.add(name="amount").floats.values.append(1.5)
    return message


def renamed() -> pb.GetOnlineFeaturesRequest:
    message = lookup("world", as_of=NOW_US, full_feature_names=True)
    message.references.references.add(
        view="users", features=["name"], alias="other", join_keys={"user": "who"}
    )
    message.entity_rows.add(name="who").int64s.values.append(2)
    return message


@pytest.mark.parametrize(
    "message",
    [
        lookup("users:score", "users:name", as_of=NOW_US),
        lookup("users", user=4, as_of=NOW_US),
        lookup("users", "world", as_of=NOW_US),
        every(1),
        every(1, 2, 3, 4),
        every(*range(50)),
        request_fields(),
        renamed(),
        pb.GetOnlineFeaturesRequest(service="all", rows=0, as_of=NOW_US, entity_rows=[
            pb.Column(name="user", int64s=pb.Int64Values())
        ]),
    ],
    ids=range(9),
)  # fmt: skip
def test_answers_are_the_same_bytes(fronts: ConnectFronts, message: Any) -> None:
    first, second = (ask(speak(fronts), message) for speak in (over_grpc, over_connect))
    assert (first.code, second.code) == ("OK", "OK"), (first.message, second.message)
    assert first.data == second.data
    assert len(first.data) > 50


@pytest.mark.parametrize(
    ("message", "code", "kind"),
    [
        (pb.GetOnlineFeaturesRequest(), "INVALID_ARGUMENT", "RequestError"),
        (pb.GetOnlineFeaturesRequest(service="al"), "NOT_FOUND", "FeatureNotFoundError"),
        (lookup("users:scor"), "NOT_FOUND", "FeatureNotFoundError"),
        (lookup("hidden"), "INVALID_ARGUMENT", "RequestError"),
        (lookup("every"), "INVALID_ARGUMENT", "MissingColumnError"),
        (lookup("users", as_of=NOW_US - 5), "OUT_OF_RANGE", "AsOfBeforeRowError"),
        (lookup("users", as_of=2**62), "INVALID_ARGUMENT", "RequestError"),
        (lookup("doubled_stale"), "FAILED_PRECONDITION", "NotMaterializedError"),
        (lookup("failing"), "FAILED_PRECONDITION", "DataError"),
    ],
    ids=range(9),
)
def test_errors_are_the_same(fronts: ConnectFronts, message: Any, code: str, kind: str) -> None:
    first, second = (ask(speak(fronts), message) for speak in (over_grpc, over_connect))
    assert (first.code, first.parts["class"]) == (code, kind)
    assert (second.code, second.message, second.parts) == (code, first.message, first.parts)


def test_an_id_is_kept_or_given(fronts: ConnectFronts, speak: Any) -> None:
    front = speak(fronts)
    assert ask(front, x_request_id="mine-7").metadata["x-request-id"] == "mine-7"
    assert ask(front, lookup("no"), x_request_id="mine-8").metadata["x-request-id"] == "mine-8"
    ids = {ask(front).metadata["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(ids)


def test_observers_hear_of_each_call(fronts: ConnectFronts, speak: Any) -> None:
    front, heard = speak(fronts), fronts.recorder.heard
    heard.clear()
    ask(front)
    ask(front, lookup("no"))
    name = "connect" if speak is over_connect else "grpc"
    assert heard == [
        ("begun", "GetOnlineFeatures", name),
        ("answered", "GetOnlineFeatures", ["users:score"], 1),
        ("ended", "GetOnlineFeatures", "OK", "NoneType"),
        ("begun", "GetOnlineFeatures", name),
        ("ended", "GetOnlineFeatures", "NOT_FOUND", "FeatureNotFoundError"),
    ]


def test_a_push_and_what_is_served(fronts: ConnectFronts, speak: Any) -> None:
    front = speak(fronts)
    events = pb.EventColumns(columns=[pb.Column(name="id", int64s=pb.Int64Values(values=[1, 2]))])
    pushed = pb.PushRequest(source="clicks", columns=events)
    found = front(f"{SERVICE}/Push", pushed.SerializeToString())
    assert pb.PushResponse.FromString(found.data).accepted == 2
    assert fronts.sink.pushed[-1][1].column("id").to_pylist() == [1, 2]
    info = front(f"{SERVICE}/GetServingInfo", b"")
    assert pb.GetServingInfoResponse.FromString(info.data).project == "shop"


def gated(fronts: ConnectFronts) -> pb.GetOnlineFeaturesRequest:
    """Publish the on-demand view that waits for a file; return a lookup of it."""
    plan = on_demand("gated", [select("users", "score")], {"passed": "float64"})
    publish(fronts.served.registry, state([USERS], [plan]))
    fronts.served.clock.advance(2_000_000)
    fronts.served.state.refresh()
    return lookup("gated")


def test_a_deadline_is_told_in_time(start: Any, speak: Any, tmp_path: Path) -> None:
    fronts = start(threads=1)
    front, message = speak(fronts), gated(fronts)
    assert ask(front, message, timeout=0.2).code == "DEADLINE_EXCEEDED"
    (tmp_path / "gate").touch()
    assert ask(front, message, timeout=20).scores == [1.5]


def test_what_takes_long_holds_up_nobody(start: Any, speak: Any, tmp_path: Path) -> None:
    fronts = start(threads=2)
    front, message = speak(fronts), gated(fronts)
    slow: list[Result] = []
    asking = threading.Thread(target=lambda: slow.append(ask(front, message)))
    asking.start()
    wait_until(lambda: fronts.recorder.heard, what="the slow call to begin")
    assert [ask(front).scores for _ in range(5)] == [[0.5]] * 5
    assert slow == []
    (tmp_path / "gate").touch()
    asking.join(20)
    assert slow[0].scores == [1.5]


def test_too_much_is_told_at_once(start: Any, speak: Any, tmp_path: Path) -> None:
    fronts = start(threads=1, max_concurrent_requests=2)
    front, message = speak(fronts), gated(fronts)
    answers: list[Result] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(front, message))) for _ in range(2)
    ]
    threads[0].start()
    wait_until(lambda: fronts.recorder.heard, what="a call that is answered")
    threads[1].start()
    wait_until(lambda: _waits(fronts, speak), what="a call that waits")
    refused = ask(front, message)
    (tmp_path / "gate").touch()
    for thread in threads:
        thread.join(20)
    assert (refused.code, refused.parts["class"]) == ("RESOURCE_EXHAUSTED", "OverloadedError")
    again = {"retry-after": "1", "grpc-retry-pushback-ms": "1000"}
    assert any(refused.metadata.get(name) == value for name, value in again.items())
    assert [answer.scores for answer in answers] == [[1.5], [1.5]]


def _waits(fronts: ConnectFronts, speak: Any) -> bool:
    """Whether a second call is held."""
    connect, queue = fronts.server._connect, fronts.server._queue
    if speak is over_connect:
        return connect is not None and connect._gathering.held == 2
    return fronts.server._pool.is_behind if queue is None else queue.held == 2


def test_an_error_whose_text_is_no_unicode(start: Any, speak: Any, monkeypatch: Any) -> None:
    """What a user's function raises may hold anything."""
    fronts = start()

    def broken(*_: Any) -> None:
        raise RequestError("This is \udcff.", got="\udcff" * 2)

    monkeypatch.setattr(fronts.server._methods, "planned", broken)
    found = ask(speak(fronts))
    assert (found.code, found.parts["what"]) == ("INVALID_ARGUMENT", "This is ?.")
    assert found.parts["got"] == "??"


def test_limits(start: Any, speak: Any) -> None:
    fronts = start(max_message_bytes=1_000, max_entity_rows=3)
    front = speak(fronts)
    message = lookup("users:score")
    message.entity_rows[0].int64s.values.extend([2, 3, 4])
    many = ask(front, message)
    assert (many.code, many.parts["allowed"]) == ("INVALID_ARGUMENT", "3")
    message.entity_rows.add(name="more").strings.values.append("x" * 3_000)
    assert ask(front, message).code == "RESOURCE_EXHAUSTED"
    large = ask(front, every(1, 1, 1))
    assert (large.code, large.parts["allowed"]) == ("INVALID_ARGUMENT", "1000 bytes")
    assert ask(front).scores == [0.5]


def test_a_store_that_fails_is_left_alone(start: Any, speak: Any) -> None:
    fronts = start(breaker_failures=2, breaker_seconds=7.5)
    front = speak(fronts)

    def fail(*_: Any, **__: Any) -> None:
        raise OnlineStoreUnavailableError("The store is gone.", where="redis://db")

    fronts.served.store.read = fail
    first = ask(front)
    assert (first.code, first.parts["what"]) == ("UNAVAILABLE", "The store is gone.")
    ask(front)
    assert "left alone" in ask(front).parts["what"]


def test_what_nobody_foresaw_is_told_without_its_insides(
    start: Any, speak: Any, logs: list[Any]
) -> None:
    fronts = start()

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    fronts.served.store.read = fail
    answer = ask(speak(fronts), x_request_id="r9")
    assert (answer.code, answer.parts) == ("INTERNAL", {})
    assert "secret" not in answer.message
    told = [line for line in logs if line.get("request_id") == "r9"]
    assert [line["event"] for line in told] == ["request failed"]
    assert told[0]["reference"] in answer.message


def test_health(start: Any, speak: Any) -> None:
    fronts = start()
    front = speak(fronts)

    def health(service: str = "") -> Any:
        asked = health_pb2.HealthCheckRequest(service=service)
        found = front("grpc.health.v1.Health/Check", asked.SerializeToString())
        return found.code, health_pb2.HealthCheckResponse.FromString(found.data).status

    serving = health_pb2.HealthCheckResponse
    assert health() == health(SERVICE) == ("OK", serving.SERVING)
    assert health("other")[0] == "NOT_FOUND"

    def fail(*_: Any, **__: Any) -> None:
        raise OnlineStoreUnavailableError("The store is gone.")

    fronts.served.store.ping = fail
    wait_until(lambda: health() == ("OK", serving.NOT_SERVING), what="health to follow")


def test_who_may_what(start: Any, speak: Any, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json", FixedClock(NOW_US))
    secret, _ = keys.create("reader", ("read_online:shop/view/users",))
    fronts = start(keys_file="keys.json", audit_log="audit.jsonl")
    front = speak(fronts)
    assert ask(front, x_api_key=secret).scores == [0.5]
    assert ask(front, authorization=f"Bearer {secret}").scores == [0.5]
    for metadata in (
        {},
        {"x_api_key": "wrong"},
        {"x_api_key": secret, "authorization": "Bearer x"},
    ):
        assert ask(front, **metadata).code == "UNAUTHENTICATED"
    refused = ask(front, lookup("world"), x_api_key=secret)
    assert (refused.code, refused.parts["class"]) == ("PERMISSION_DENIED", "AccessDeniedError")
    unknown = ask(front, lookup("users:scor"), x_api_key=secret)
    assert unknown.code == "NOT_FOUND"
    assert "allowed" not in unknown.parts
    pushed = pb.PushRequest(source="clicks", columns=pb.EventColumns()).SerializeToString()
    assert front(f"{SERVICE}/Push", pushed, x_api_key=secret).code == "PERMISSION_DENIED"
    path = tmp_path / "audit.jsonl"
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) == 8, what="the audit")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == [
        *("OK", "OK", *["UNAUTHENTICATED"] * 3),
        *("PERMISSION_DENIED", "NOT_FOUND", "PERMISSION_DENIED"),
    ]
    assert [("reader" in line["who"]) for line in lines] == [True] * 2 + [False] * 3 + [True] * 3
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in lines)


def test_what_was_begun_is_answered_before_the_end(start: Any, speak: Any, tmp_path: Path) -> None:
    fronts = start(drain_seconds=20.0)
    front, message = speak(fronts), gated(fronts)
    answers: list[Result] = []
    asking = threading.Thread(target=lambda: answers.append(ask(front, message)))
    asking.start()
    wait_until(lambda: fronts.recorder.heard, what="the call to begin")
    ending = threading.Thread(target=fronts.stop)
    ending.start()
    wait_until(lambda: not fronts.server.is_answering, what="the end to begin")
    (tmp_path / "gate").touch()
    asking.join(20)
    ending.join(20)
    assert not ending.is_alive()
    assert answers[0].scores == [1.5]
    assert fronts.recorder.heard[-1] == ("closed",)
