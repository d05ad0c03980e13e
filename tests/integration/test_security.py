"""Who may call a feature server and what they may do; servers in this process, over real gRPC."""

from __future__ import annotations

import io
import json
import logging
import re
import threading

import grpc
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from featurestore.access.keys import KeyFile
from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.clock import FixedClock
from featurestore.errors import (
    AccessDeniedError,
    FeatureNotFoundError,
    OnlineStoreUnavailableError,
    RequestError,
    SettingsError,
    UnauthenticatedError,
)
from featurestore.model.settings import ServingSettings
from featurestore.services.pushing_events import PushReceipt
from featurestore.serving.client import OnlineClient
from featurestore.serving.client_calls import SERVICE
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import wait_until
from tests.credentials import AUDIENCE, ISSUER, STRANGER, key_set, token
from tests.integration.grpc_process import health
from tests.served import NOW_US, PROJECT, Served, on_demand, publish, select, state, view

USERS = view("users", {"user": "int64"}, {"score": "float64", "secret": "float64"})
ITEMS = view("items", {"item": "int64"}, {"price": "float64"})
MIXED = on_demand("mixed", [select("users", "score"), select("items", "price")], {"m": "float64"})
NESTED = on_demand("nested", [select("mixed", "m")], {"n": "float64"})
SERVICES = {
    "ranking": [select("users", "score"), select("mixed", "m")],
    "pricing": [select("items", "price")],
}
ROWS = {"user": [1], "item": [2]}


def mixed(inputs):
    return inputs.select(m=inputs["score"] + inputs["price"])


def nested(inputs):
    return inputs.select(n=inputs["m"])


class Store(MemoryOnlineStore):
    """Counts reads, and raises what it is told to."""

    trouble: Exception | None = None
    reads = 0

    def read(self, keys, *, timeout=None):
        self.reads += 1
        if self.trouble is not None:
            raise self.trouble
        return super().read(keys, timeout=timeout)


class Sink:
    """Takes events."""

    def __init__(self):
        self.pushed = []

    def push(self, source, events, *, timeout):  # noqa: ARG002  (as its callers call it)
        self.pushed.append((source, events.num_rows))
        return PushReceipt(events.num_rows, {"0": 1})


pytestmark = pytest.mark.usefixtures("logs")


class Place:
    """A repository's folder with keys, and servers of it."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FixedClock(NOW_US)
        self.keys = KeyFile(folder / "keys.json", self.clock)
        self.sink = Sink()
        functions = {"mixed": (mixed, MIXED.code_fingerprint), "nested": (nested, "x" * 16)}
        self.state = state([USERS, ITEMS], [MIXED, NESTED], SERVICES)
        self.served = Served(self.state, functions, Store())
        self.served.push(USERS, ((1,), NOW_US, (0.5, 41.015625)))
        self.served.push(ITEMS, ((2,), NOW_US, (1.5,)))
        (folder / "jwks.json").write_text(key_set())
        self.servers = []

    def serve(self, **settings):
        merged = {"address": "127.0.0.1:0", "refresh_seconds": 0.05, **settings}
        server = FeatureServer(
            self.served.reader,
            ServingSettings(**merged),
            events=self.sink,
            folder=self.folder,
            clock=self.clock,
        )
        self.servers.append(server)
        server.start()
        return server.address

    def key(self, *scopes, expires_us=None):
        return self.keys.create("tests", scopes, expires_us)[0]


KEYS = {"keys_file": "keys.json"}
TOKENS = {"jwt_keys": "jwks.json", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    for server in place.servers:
        server.stop()


def read(address, features, rows=ROWS, **credentials):
    with OnlineClient(address, **credentials) as client:
        return client.get_online_features(features, rows).to_dict()


# Who calls.


@pytest.mark.parametrize("settings", [KEYS, TOKENS, KEYS | TOKENS], ids=["keys", "tokens", "both"])
def test_whoever_does_not_say_who_calls_is_refused_everything(place, settings):
    address = place.serve(**settings)
    with OnlineClient(address) as client:
        for call in (
            lambda: client.get_online_features("ranking", ROWS),
            lambda: client.push("clicks", [{"a": 1}]),
            client.serving_info,
        ):
            with pytest.raises(UnauthenticatedError, match="who makes it") as caught:
                call()
            assert "x-api-key" in caught.value.allowed
    assert place.served.store.reads == 0
    assert place.sink.pushed == []


def test_keys_and_tokens_side_by_side(place):
    address = place.serve(**KEYS, **TOKENS)
    place.servers[0]._guard.refresh()
    key = place.key("read_online:shop")
    place.servers[0]._guard.refresh()
    bearer = f"{key}"
    for credentials in ({"api_key": key}, {"token": bearer}, {"token": token()}):
        assert read(address, "ranking", **credentials)["score"] == [0.5]
    assert read(address, "ranking", token=lambda: token(sub="bob"))["m"] == [2.0]
    with pytest.raises(UnauthenticatedError):
        read(address, "ranking", api_key=token())


def test_what_a_server_does_not_take_is_told(place):
    keys, tokens = place.serve(**KEYS), place.serve(**TOKENS)
    with pytest.raises(UnauthenticatedError, match="no tokens"):
        read(keys, "ranking", token=token())
    with pytest.raises(UnauthenticatedError, match="no API keys"):
        read(tokens, "ranking", api_key="fs_1")


def raw(address, metadata, message=b"", method="GetOnlineFeatures"):
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=metadata, timeout=10)
    return caught.value


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Basic YTpi")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "")],
        [("x-api-key", "")],
        [("x-api-key", "fs_"), ("authorization", "Bearer x")],
        [("x-api-key", "fs_000000000000_" + "0" * 64)],
        [("authorization", "Bearer " + "x" * 7_000)],
        [("x-api-key-bin", b"\x00\xff")],
    ],
    ids=range(9),
)
def test_credentials_that_are_none(place, metadata):
    failure = raw(place.serve(**KEYS, **TOKENS), metadata)
    assert failure.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_that_is_revoked_or_expired_is_refused_within_the_refresh_time(place):
    key = place.key("read_online:shop")
    short = place.key("read_online:shop", expires_us=NOW_US + 5)
    address = place.serve(**KEYS)
    assert read(address, "ranking", api_key=key)["score"] == [0.5]
    assert read(address, "ranking", api_key=short)["score"] == [0.5]
    place.clock.advance(5)
    with pytest.raises(UnauthenticatedError, match="has expired"):
        read(address, "ranking", api_key=short)
    place.keys.revoke(key)
    with OnlineClient(address, api_key=key) as client:
        wait_until(lambda: is_refused(client), seconds=5, what="the revocation")
        with pytest.raises(UnauthenticatedError, match="was revoked"):
            client.serving_info()
    late = place.key("read_online:shop")
    with OnlineClient(address, api_key=late) as client:
        wait_until(lambda: not is_refused(client), seconds=5, what="the new key")


def is_refused(client):
    try:
        client.serving_info()
    except UnauthenticatedError:
        return True
    return False


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"aud": "other"}, "another audience"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"exp": 1}, "expired"),
        ({"nbf": 1e12}, "not valid yet"),
        ({"kid": "unknown"}, "unknown"),
        ({"key": STRANGER}, "signature"),
    ],
)
def test_tokens_that_are_no_good(place, claims, says):
    with pytest.raises(UnauthenticatedError) as caught:
        read(place.serve(**TOKENS), "ranking", token=token(**claims))
    assert says in str(caught.value)


# What they may do.

CASES = [
    ("ranking", ["read_online:shop/service/ranking"], None),
    ("ranking", ["read_online:shop/service/*"], None),
    ("ranking", ["read_online:shop/view/*"], "read_online:shop/service/ranking"),
    ("ranking", ["read_online:other", "write:shop", "apply:*"], "read_online:shop/service/ranking"),
    ("ranking", ["read_online:shop/service/pricing"], "read_online:shop/service/ranking"),
    (["users:score"], ["read_online:shop/view/users"], None),
    (["users:score"], ["read_online:shop/service/ranking"], "read_online:shop/view/users"),
    (["users:score", "items:price"], ["read_online:shop/view/users"], "shop/view/items"),
    (["mixed:m"], ["read_online:shop/view/mixed"], "read_online:shop/view/"),
    (["mixed:m"], ["read_online:shop/view/mixed", "read_online:shop/view/users"], "view/items"),
    (["nested:n"], ["read_online:shop/view/nested", "read_online:shop/view/mixed"], "shop/view/"),
    (["users"], ["read_online:shop/view/items"], "read_online:shop/view/users"),
]  # fmt: skip


@pytest.mark.parametrize("by", ["key", "token"])
@pytest.mark.parametrize(("features", "scopes", "missing"), CASES, ids=range(len(CASES)))
def test_what_may_be_read_and_which_scope_is_missing(place, by, features, scopes, missing):
    credentials = {"api_key": place.key(*scopes)} if by == "key" else {
        "token": token(scope=" ".join(scopes))
    }  # fmt: skip
    address = place.serve(**(KEYS if by == "key" else TOKENS))
    if missing is None:
        for _ in range(2):
            assert read(address, features, **credentials)["score"] == [0.5]
        return
    for _ in range(2):
        with pytest.raises(AccessDeniedError) as caught:
            read(address, features, **credentials)
        assert missing in caught.value.allowed
    assert place.served.store.reads == 0


def test_names_that_callers_make_up_fill_no_memory(place):
    address = place.serve(**TOKENS)
    shown = token(scope="read_online:shop/view/us* read_online:shop/service/*")
    with OnlineClient(address, token=shown) as client:
        for number in range(50):
            long = f"{number}" * 5_000
            for features in ([f"us{long}:x"], f"us{long}"):
                with pytest.raises(FeatureNotFoundError):
                    client.get_online_features(features, ROWS)
            with pytest.raises(AccessDeniedError) as caught:
                client.get_online_features([f"x{long}:x"], ROWS)
            assert len(f"{caught.value}") < 2_000
        client.get_online_features(["users:score"] * 50, ROWS)
        client.get_online_features(["users:score"] * 60, ROWS)
    access = place.servers[0]._guard.access
    assert [names for _, _, names in access._allowed[1]] == [{"users"}]
    (principal,) = [good[0] for good in access._tokens._good.values()]
    assert all(len(resource.name) <= 200 for _, resource in principal._decided)


def test_an_alias_hides_no_view(place):
    from featurestore.model.declarations import FeatureSelection

    address = place.serve(**KEYS)
    features = [FeatureSelection(view="users", alias_name="items", join_keys={"user": "item"})]
    key = place.key("read_online:shop/view/items")
    place.servers[0]._guard.refresh()
    with pytest.raises(AccessDeniedError) as caught:
        read(address, features, {"item": [1]}, api_key=key)
    assert caught.value.allowed == "read_online:shop/view/users"


def test_what_was_allowed_is_asked_anew_when_definitions_change(place):
    key = place.key("read_online:shop/view/mixed", "read_online:shop/view/items")
    alone = on_demand("mixed", [select("items", "price")], {"m": "float64"}, code="c" * 16)
    functions = {"mixed": (lambda inputs: inputs.select(m=inputs["price"]), "c" * 16)}
    place.served = Served(state([USERS, ITEMS], [alone]), functions, Store())
    place.served.push(ITEMS, ((2,), NOW_US, (1.5,)))
    address = place.serve(**KEYS)
    assert read(address, ["mixed:m"], api_key=key)["m"] == [1.5]
    publish(place.served.registry, state([USERS, ITEMS], [MIXED]))
    with OnlineClient(address, api_key=key) as client:
        wait_until(lambda: is_denied(client, ["mixed:m"]), what="the new definition")


def is_denied(client, features):
    try:
        client.get_online_features(features, ROWS)
    except AccessDeniedError:
        return True
    return False


def test_pushes_need_the_scope_of_their_source(place):
    key = place.key("write:shop/source/clicks", "read_online:shop")
    address = place.serve(**KEYS)
    with OnlineClient(address, api_key=key) as client:
        assert client.push("clicks", [{"a": 1}]).accepted == 1
        with pytest.raises(AccessDeniedError) as caught:
            client.push("orders", [{"a": 1}])
    assert caught.value.allowed == "write:shop/source/orders"
    assert place.sink.pushed == [("clicks", 1)]


def test_a_denied_push_is_not_decoded(place, monkeypatch):
    monkeypatch.setattr(
        "featurestore.serving.push.read_events", lambda _: pytest.fail("it was decoded")
    )
    with OnlineClient(place.serve(**KEYS), api_key=place.key("read_online:shop")) as client:
        place.servers[0]._guard.refresh()
        with pytest.raises(AccessDeniedError):
            client.push("clicks", pa.table({"a": [1]}))


@pytest.mark.parametrize(
    ("scope", "views", "services"),
    [
        ("read_online:shop", {"users": "score secret", "items": "price", "mixed": "m",
                              "nested": "n"}, ["pricing", "ranking"]),
        ("read_online:shop/view/items", {"items": "price"}, []),
        ("read_online:shop/service/ranking",
         {"users": "score", "items": "price", "mixed": "m"}, ["ranking"]),
        ("read_online:other", {}, []),
        ("write:shop", {}, []),
    ],
)  # fmt: skip
def test_only_what_may_be_read_is_told(place, scope, views, services):
    address = place.serve(**TOKENS)
    with OnlineClient(address, token=token(scope=scope)) as client:
        info = client.serving_info()
    assert info.project == PROJECT
    assert {name: " ".join(v.features) for name, v in info.views.items()} == views
    assert sorted(info.services) == services


def test_errors_name_nothing_that_may_not_be_seen(place):
    address = place.serve(**TOKENS)
    some = {"token": token(scope="read_online:shop/*/us* read_online:shop/*/rankin")}
    for features in ("rankin", ["user:score"]):
        with pytest.raises(FeatureNotFoundError) as caught:
            read(address, features, **some)
        assert "items" not in f"{caught.value.__dict__}"
        assert "ranking" not in f"{caught.value.__dict__}"
    with pytest.raises(AccessDeniedError) as caught:
        read(address, ["no_such_view:a"], **some)
    assert "read_online:shop/view/no_such_view" in caught.value.allowed


def test_health_is_told_to_everybody_and_reflection_to_nobody(place):
    for settings, reflected in ((KEYS, False), ({}, True)):
        with grpc.insecure_channel(place.serve(**settings)) as channel:
            assert health(channel) == "SERVING"
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answers = stub.ServerReflectionInfo(iter([request]), timeout=10)
            if reflected:
                (answer,) = answers
                names = [s.name for s in answer.list_services_response.service]
                assert SERVICE in names
                continue
            with pytest.raises(grpc.RpcError) as caught:
                list(answers)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert health_pb2_grpc.HealthStub(channel)


# What is written down.


def audited(place):
    path = place.folder / "audit.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def test_the_audit_tells_who_asked_what_and_how_it_ended(place):
    key = place.key("read_online:shop/service/ranking", "write:shop/source/clicks")
    ident = key.split("_")[1]
    address = place.serve(**KEYS, audit_log="audit.jsonl")
    with OnlineClient(address, api_key=key) as client:
        client.get_online_features("ranking", {"user": [1, 1, 7], "item": [2, 2, 2]})
        client.push("clicks", [{"a": 1}, {"a": 2}])
        with pytest.raises(AccessDeniedError):
            client.get_online_features(["users:score", "items"], ROWS)
        with pytest.raises(RequestError):
            client.get_online_features("ranking", {"user": [1]})
    with OnlineClient(address) as client, pytest.raises(UnauthenticatedError):
        client.serving_info()
    wait_until(lambda: len(audited(place)) == 5, what="the audit")
    read_, pushed, denied, wrong, unknown = audited(place)
    assert read_["who"] == f"key:{ident} (tests)"
    assert read_["peer"].startswith("ipv4:127.0.0.1:")
    assert (read_["service"], read_["rows"], read_["keys"]) == ("ranking", 3, 9)
    assert read_["fingerprints"]["users"] == USERS.fingerprint
    assert (read_["status"], read_["project"], read_["method"]) == (
        "OK", PROJECT, "GetOnlineFeatures",
    )  # fmt: skip
    assert read_["at"] == "2024-06-01T12:00:00Z"
    assert read_["latency_ms"] >= 0
    assert (pushed["source"], pushed["rows"], pushed["method"]) == ("clicks", 2, "Push")
    assert (denied["status"], denied["views"]) == ("PERMISSION_DENIED", ["users", "items"])
    assert denied["missing"].startswith("read_online:shop/view/")
    assert (wrong["status"], wrong["error"]) == ("INVALID_ARGUMENT", "MissingColumnError")
    assert (unknown["status"], unknown["who"]) == ("UNAUTHENTICATED", "anyone")
    assert len({line["request_id"] for line in audited(place)}) == 5


def test_names_in_the_audit_are_cut(place):
    address = place.serve(audit_log="audit.jsonl")
    with OnlineClient(address) as client, pytest.raises(FeatureNotFoundError):
        client.get_online_features("x" * 5_000, ROWS)
    wait_until(lambda: audited(place), what="the audit")
    assert audited(place)[0]["service"] == "x" * 100


def test_secrets_and_keys_of_entities_stand_nowhere(place, logs):
    key = place.key("read_online:shop/service/ranking")
    secret, good = key.split("_")[2], token(scope="")
    other = place.key("read_online:shop")
    place.keys.revoke(other)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    address = place.serve(**KEYS, **TOKENS, audit_log="audit.jsonl")
    told = []
    shown = {"api_key": key}, {"api_key": other}, {"token": good}, {"token": good[:-4] + "AAAA"}
    for credentials in shown:
        client = OnlineClient(address, **credentials)
        told.append(repr(client))
        asked = {"user": [987654321], "item": [2]}
        for call, given in (
            (client.get_online_features, ("ranking", asked)),
            (client.get_online_features, (["users:secret"], asked)),
            (client.serving_info, ()),
        ):
            try:
                call(*given)
            except (AccessDeniedError, UnauthenticatedError) as error:
                told.append(f"{error!r} {error} {error.__dict__}")
        client.close()
    wait_until(lambda: len(audited(place)) == 12, what="the audit")
    logging.getLogger().removeHandler(handler)
    server = place.servers[0]
    told += [repr(logs), (place.folder / "audit.jsonl").read_text(), stream.getvalue()]
    told += [repr(vars(part)) for part in (server, server._guard, server._guard.access)]
    told += [repr(vars(server._guard._ring)), repr(vars(server._guard._tokens))]
    told.append((place.folder / "keys.json").read_text())
    text = " ".join(told)
    parts = {secret, other.split("_")[2], *good.split("."), "987654321", "41.015625"}
    assert [part for part in parts if part and part in text] == []
    assert "UNAUTHENTICATED" in text


def test_without_an_audit_refused_calls_are_logged(place, logs):
    address = place.serve(**TOKENS)
    with pytest.raises(AccessDeniedError):
        read(address, "ranking", token=token(scope=""))
    (line,) = [x for x in logs if x["event"] == "call refused"]
    assert line["who"] == "token:ann"
    assert line["missing"] == "read_online:shop/service/ranking"


# Request ids.


def trailing(address, metadata=(), service="ranking"):
    from featurestore.serving.v1 import serving_pb2 as pb

    columns = [
        pb.Column(name="user", int64s={"values": [1]}),
        pb.Column(name="item", int64s={"values": [2]}),
    ]
    message = pb.GetOnlineFeaturesRequest(service=service, entity_rows=columns)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")
        try:
            _, ended = call.with_call(message.SerializeToString(), metadata=metadata, timeout=10)
        except grpc.RpcError as failure:
            ended = failure
        return dict(ended.trailing_metadata())["x-request-id"]


def test_a_request_has_the_id_that_came_with_it_or_one_of_its_own(place, logs):
    address = place.serve(audit_log="audit.jsonl")
    ids = [
        trailing(address, [("x-request-id", "abc-1")]),
        trailing(address, [("x-request-id", "abc-2")], "no_such_service"),
        trailing(address),
        trailing(address),
        trailing(address, [("x-request-id", "x" * 129)]),
        trailing(address, [("x-request-id", 'a"b c')]),
    ]
    assert ids[:2] == ["abc-1", "abc-2"]
    assert len(set(ids)) == 6
    assert all(re.fullmatch("[0-9a-f]{12}-[0-9]+", made) for made in ids[2:])
    wait_until(lambda: len(audited(place)) == 6, what="the audit")
    assert [line["request_id"] for line in audited(place)] == ids
    place.served.store.trouble = RuntimeError("odd")
    trailing(address, [("x-request-id", "abc-3")])
    (line,) = [x for x in logs if x["event"] == "request failed"]
    assert line["request_id"] == "abc-3"


# Limits.


def test_more_entities_than_are_answered_at_once(place):
    address = place.serve(max_entity_rows=2)
    with OnlineClient(address) as client:
        client.get_online_features(["users:score"], {"user": [1, 1]})
        with pytest.raises(RequestError, match="more entities") as caught:
            client.get_online_features(["users:score"], {"user": [1, 1, 1]})
    assert caught.value.allowed == "2"


def test_a_store_that_keeps_failing_is_left_alone_for_a_while(place):
    address = place.serve(breaker_failures=3, breaker_seconds=2.0)
    store = place.served.store
    with OnlineClient(address) as client:
        store.trouble = OnlineStoreUnavailableError("gone", where="redis://here:1")
        for _ in range(3):
            with pytest.raises(OnlineStoreUnavailableError, match="gone"):
                client.get_online_features(["users:score"], ROWS)
        for _ in range(5):
            with pytest.raises(OnlineStoreUnavailableError, match="left alone") as caught:
                client.get_online_features(["users:score"], ROWS)
        assert store.reads == 3
        assert caught.value.where == "redis://here:1"
        assert caught.value.retry_seconds == 2.0
        assert client.serving_info().project == PROJECT
        store.trouble = None
        place.clock.advance(2_000_000)
        assert client.get_online_features(["users:score"], ROWS).to_dict()["score"] == [0.5]


# Settings.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"jwt_keys": "jwks.json"}, "all three"),
        ({"jwt_keys": "jwks.json", "jwt_issuer": ISSUER}, "all three"),
        ({"jwt_audience": AUDIENCE}, "all three"),
        (TOKENS | {"jwt_keys": "missing.json"}, "cannot be read"),
        (TOKENS | {"jwt_keys": "http://id.example/keys"}, "https"),
        ({"keys_file": "."}, "cannot be read"),
        ({"audit_log": "no/such/folder.jsonl"}, "does not exist"),
        ({"tls_certificate": "a.pem"}, "its key"),
        ({"tls_client_ca": "a.pem"}, "its key"),
    ],
    ids=range(9),
)
def test_settings_that_do_not_hold_together_stop_the_start(place, settings, says):
    with pytest.raises(SettingsError, match=says):
        place.serve(**settings)


def test_secrets_do_not_travel_in_plain_text_unless_that_was_said():
    for credentials in ({"api_key": "fs_1"}, {"token": "x"}, {"token": lambda: "x"}):
        with pytest.raises(SettingsError, match="plain text") as caught:
            OnlineClient("store.example:6566", **credentials)
        assert "fs_1" not in f"{caught.value}"
        OnlineClient("store.example:6566", tls=False, **credentials).close()
        OnlineClient("store.example:6566", tls=True, **credentials).close()
        OnlineClient("[::1]:6566", **credentials).close()
        OnlineClient("localhost:6566", **credentials).close()


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "a", "token": "b"},
        {"api_key": ""},
        {"api_key": "a\nb"},
        {"api_key": "ü"},
        {"tls": False, "root_certificates": b"-----BEGIN "},
        {"client_key": b"-----BEGIN "},
        {"root_certificates": "/no/such/file"},
        {"root_certificates": __file__.replace(".py", ".missing")},
    ],
    ids=range(8),
)
def test_what_a_client_cannot_show_is_refused_when_it_is_made(options):
    with pytest.raises(SettingsError):
        OnlineClient("127.0.0.1:1", **options)


def test_keys_in_plain_text_over_a_network_are_warned_of(place, logs):
    place.serve(**KEYS, address="0.0.0.0:0")
    place.serve(**KEYS)
    assert [x["event"] for x in logs].count("keys and tokens come in plain text") == 1


def test_many_callers_at_once_are_each_taken_for_who_they_are(place):
    address = place.serve(**TOKENS, audit_log="audit.jsonl", threads=8)
    wrong = []

    def ask(number):
        scope = "read_online:shop" if number % 2 else "read_online:other"
        shown = token(sub=f"user{number}", scope=scope)
        with OnlineClient(address, token=shown) as client:
            denied = [is_denied(client, "ranking") for _ in range(20)]
        if denied != [number % 2 == 0] * 20:
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    wait_until(lambda: len(audited(place)) == 160, what="the audit")
    for line in audited(place):
        even = int(line["who"].removeprefix("token:user")) % 2 == 0
        assert line["status"] == ("PERMISSION_DENIED" if even else "OK")
