"""A feature server in another process, on LMDB and on Valkey: the same answers as in this one."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta

import grpc
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.clock import SystemClock
from featurestore.errors import (
    AsOfBeforeRowError,
    DataError,
    DeadlineExceededError,
    FeatureNotFoundError,
    FeatureStoreError,
    MissingColumnError,
    NaiveTimestampError,
    RequestError,
)
from featurestore.model.declarations import FeatureSelection
from featurestore.semantics import maps
from featurestore.services.on_demand import OnDemandFunctions
from featurestore.services.online import OnlineReader
from featurestore.services.state import StateCache
from featurestore.serving.client import OnlineClient
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.v1.serving_pb2_grpc import FeatureServingStub
from featurestore.testing.valkey import ValkeyServer
from tests.integration.grpc_process import SERVICE, ServerProcess, health
from tests.integration.grpc_server import functions, open_store
from tests.served import (
    EVERY_TYPE,
    HOUR_US,
    NOW,
    NOW_US,
    PROJECT,
    on_demand,
    publish,
    push,
    select,
    state,
    view,
)

EVERY = view("every", {"k": "int64"}, EVERY_TYPE)
USERS = view("users", {"user": "int64"}, {"score": "float64", "name": "string"}, ttl_us=HOUR_US)
PAIRS = view("pairs", {"left": "string", "right": "int32"}, {"weight": "float32"})
WORLD = view("world", {}, {"rate": "float64"})
HIDDEN = view("hidden", {"user": "int64"}, {"secret": "int64"}, online=False)
DOUBLED = on_demand(
    "doubled",
    [select("users", "score")],
    {"doubled": "float64", "plus": "float64"},
    {"amount": "float32"},
)
ECHOED = on_demand(
    "echoed", [select("every", *EVERY_TYPE)], {f"same_{n}": t for n, t in EVERY_TYPE.items()}
)
FAILING = on_demand("failing", [select("users", "score")], {"x": "float64"})
STALE = on_demand("doubled_stale", [select("users", "score")], {"x": "float64"})
STATE = state(
    [EVERY, USERS, PAIRS, WORLD, HIDDEN],
    [DOUBLED, ECHOED, FAILING, STALE],
    {"all": [select("users", "score", "name"), select("world", "rate")]},
)

FULL = (
    True,
    -(2**31),
    2**53 + 1,
    -0.0,
    float("nan"),
    "größe\x00",
    b"\x00\xff\x00",
    date(1959, 12, 31),
    datetime(1960, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
    [True, None],
    [],
    [1.5, None],
    ["", None],
    [b"", b"\x00"],
    [date(1, 1, 1), None],
    [datetime(9999, 12, 31, tzinfo=UTC)],
    [float("nan"), -0.0, 1.0],
    [0.1, float("inf")],
    {"": -0.0, "a": None, "größe": float("nan")},
    {date(1969, 12, 31): 2**53 + 1, date(1970, 1, 2): None},
    {-(2**63): b"", -1: None, 7: b"\x00"},
    {b"": datetime(1960, 1, 1, tzinfo=UTC), b"\xff": None},
    {False: "no", True: None},
)
NULLS = (None,) * len(EVERY_TYPE)
EMPTY = tuple([] if t.startswith(("list", "map")) else None for t in EVERY_TYPE.values())


class Pair:
    """A server in another process, a client of it, and a reader of the same store in this one."""

    def __init__(self, online, folder):
        url = f"sqlite:///{folder / 'registry.db'}"
        registry = SqlRegistry(url)
        publish(registry, STATE)
        self.store = open_store(online)
        push(
            self.store, EVERY, [((1,), NOW_US, FULL), ((2,), NOW_US, NULLS), ((3,), NOW_US, EMPTY)]
        )
        push(
            self.store,
            USERS,
            [
                ((1,), NOW_US - 1, (0.5, "one")),
                ((2,), NOW_US - 2, (None, "two")),
                ((3,), NOW_US - HOUR_US - 1, (3.0, "old")),
            ],
        )
        push(self.store, PAIRS, [(("1", 23), NOW_US, (1.0,)), (("12", 3), NOW_US, (2.0,))])
        push(self.store, WORLD, [((), NOW_US, (9.0,))])
        clock = SystemClock()
        held = OnDemandFunctions(functions, clock)
        cache = StateCache(registry, PROJECT, clock, 1.0)
        self.reader = OnlineReader(PROJECT, cache, self.store, held, clock)
        self.server = ServerProcess(online=online, registry=url, settings={"threads": 4})
        self.client = OnlineClient(self.server.address)
        self.channel = grpc.insecure_channel(self.server.address)

    def close(self):
        self.client.close()
        self.channel.close()
        self.server.stop()
        self.store.close()

    def read(self, *args, **kwargs):
        """Ask both, hold the answers against each other, and return the client's."""
        here = self.reader.get_online_features(*args, **kwargs)
        there = self.client.get_online_features(*args, **kwargs)
        table, expected = there.to_arrow(), here.to_arrow()
        assert table.schema.equals(expected.schema)
        for name in table.column_names:
            assert same_bits(table[name], expected[name]), name
        assert there.statuses == here.statuses
        assert there.event_timestamps == here.event_timestamps
        assert there.fingerprints == here.fingerprints
        assert there.service == here.service
        if "as_of" in kwargs:
            assert there.as_of == here.as_of
        return there

    def fail(self, *args, **kwargs):
        """Ask both, hold the errors against each other, and return the client's."""
        with pytest.raises(FeatureStoreError) as here:
            self.reader.get_online_features(*args, **kwargs)
        with pytest.raises(FeatureStoreError) as there:
            self.client.get_online_features(*args, **kwargs)
        assert type(there.value) is type(here.value)
        assert there.value.__dict__ == here.value.__dict__
        return there.value


def same_bits(one, other):
    """Whether two columns are equal, floats by their bits."""
    if isinstance(one, pa.ChunkedArray):
        one, other = one.combine_chunks(), other.combine_chunks()
    if one.is_valid().to_pylist() != other.is_valid().to_pylist():
        return False
    if pa.types.is_fixed_size_list(one.type) or pa.types.is_list(one.type):
        return [v and len(v) for v in one.to_pylist()] == [
            v and len(v) for v in other.to_pylist()
        ] and same_bits(one.flatten(), other.flatten())
    if pa.types.is_map(one.type):
        pairs = [maps.entries_of(column) for column in (one, other)]
        return (
            pairs[0].lengths.tolist() == pairs[1].lengths.tolist()
            and pairs[0].keys.equals(pairs[1].keys)
            and same_bits(pairs[0].values, pairs[1].values)
        )
    if pa.types.is_floating(one.type):
        bits = np.uint32 if one.type == pa.float32() else np.uint64
        pair = [c.drop_null().to_numpy().view(bits).tolist() for c in (one, other)]
        return pair[0] == pair[1]
    return one.equals(other)


@pytest.fixture(scope="module", params=["lmdb", "valkey"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "lmdb":
        pair = Pair(f"lmdb:{folder / 'online'}", folder)
        yield pair
        pair.close()
        return
    with ValkeyServer() as valkey:
        pair = Pair(valkey.url, folder)
        yield pair
        pair.close()


@pytest.mark.parametrize("keys", [[1], [2], [3], [9], [1, 2, 3, 9, 1]])
def test_every_type_bit_for_bit(pair, keys):
    answer = pair.read(["every"], {"k": keys})
    rows = {1: FULL, 2: NULLS, 3: EMPTY, 9: NULLS}
    table = answer.to_arrow()
    for index, (name, dtype) in enumerate(EVERY_TYPE.items()):
        expected = pa.array([rows[key][index] for key in keys], type=table[name].type)
        assert same_bits(table[name].combine_chunks(), expected), (name, dtype)


def test_there_is_one_nan(pair):
    quiet, payload = 0x7FC00001, 0xFFF8000000000002
    row = list(FULL)
    store = {"a_float32": np.uint32(quiet), "a_float64": np.uint64(payload)}
    names = list(EVERY_TYPE)
    row[names.index("a_float32")] = float(store["a_float32"].view(np.float32))
    row[names.index("a_float64")] = float(store["a_float64"].view(np.float64))
    push(pair.store, EVERY, [((77,), NOW_US, tuple(row))])
    answer = pair.read(["every:a_float32", "every:a_float64"], [{"k": 77}])
    assert answer.column("a_float32").to_numpy().view(np.uint32)[0] == 0x7FC00000
    assert answer.column("a_float64").to_numpy().view(np.uint64)[0] == 0x7FF8000000000000


def test_four_statuses_and_a_null_key(pair):
    rows = {"user": [1, 2, 3, 4, None]}
    answer = pair.read(["users:score"], rows, as_of=NOW)
    present, null, outside, missing = "PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"
    assert answer.statuses["score"] == [present, null, outside, missing, missing]
    assert answer.to_dict() == {"user": [1, 2, 3, 4, None], "score": [0.5, None, None, None, None]}
    us = timedelta(microseconds=1)
    stamps = [NOW - us, NOW - 2 * us, NOW - timedelta(hours=1) - us, None, None]
    assert answer.event_timestamps["score"] == stamps
    assert answer.as_of == NOW


def test_composite_keys(pair):
    rows = pl.DataFrame({"left": ["1", "12", "123", None], "right": [23, 3, 3, 3]})
    answer = pair.read(["pairs:weight"], rows)
    assert answer.to_dict()["weight"] == [1.0, 2.0, None, None]


def test_aliases_services_and_global_features(pair):
    features = [
        FeatureSelection(view="users", features=("score", "name"), alias_name="buyer",
                         join_keys={"user": "buyer_id"}),
        FeatureSelection(view="users", features=("score",), alias_name="seller",
                         join_keys={"user": "seller_id"}),
    ]  # fmt: skip
    rows = [{"buyer_id": 1, "seller_id": 2}]
    answer = pair.read(features, rows, as_of=NOW, full_feature_names=True)
    assert answer.feature_names == ["buyer__score", "buyer__name", "seller__score"]
    answer = pair.read("all", [{"user": 1, "other": "x", "junk": object()}], as_of=NOW)
    assert answer.service == "all"
    assert answer.to_dict() == {"user": [1], "score": [0.5], "name": ["one"], "rate": [9.0]}
    assert pair.read(["world:rate"], [{}] * 3).to_dict() == {"rate": [9.0] * 3}
    assert pair.read(["users:score"], {"user": []}).to_dict() == {"user": [], "score": []}


def test_on_demand_features(pair):
    rows = [{"user": 1}, {"user": 2}]
    answer = pair.read(["doubled"], rows, as_of=NOW, request={"amount": 0.1})
    tenth = float(np.float32(0.1))
    assert answer.to_dict()["doubled"] == [1.0, None]
    assert answer.to_dict()["plus"] == [0.5 + tenth, None]
    assert answer.statuses["plus"] == ["PRESENT", "NULL_VALUE"]
    assert answer.event_timestamps["plus"] == [None, None]
    assert answer.fingerprints == {"users": USERS.fingerprint, "doubled": DOUBLED.fingerprint}
    pair.read(["doubled:plus"], rows, as_of=NOW, request=[{"amount": 1}, {"amount": 2.0}])


def test_on_demand_features_of_every_type(pair):
    pair.read(["echoed"], {"k": [1, 2, 3, 9]})
    pair.read(["echoed"], [{"k": 1}])


NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001  (that is the point)
USER = [{"user": 1}]


@pytest.mark.parametrize(
    ("features", "rows", "options", "error"),
    [
        (["users:scor"], USER, {}, FeatureNotFoundError),
        (["user:score"], USER, {}, FeatureNotFoundError),
        ("al", USER, {}, FeatureNotFoundError),
        ([], USER, {}, RequestError),
        (["users:score"], [{"usr": 1}], {}, MissingColumnError),
        (["users:score"], [{"user": "1"}], {}, RequestError),
        (["users:score"], [{"user": 1.5}], {}, RequestError),
        (["users:score"], [{"user": 1, "score": 1}], {}, FeatureStoreError),
        (["users:score"], USER, {"as_of": NAIVE}, NaiveTimestampError),
        (["users:score"], USER, {"as_of": NOW - timedelta(days=1)}, AsOfBeforeRowError),
        (["hidden:secret"], USER, {}, RequestError),
        (["doubled"], USER, {}, MissingColumnError),
        (["doubled"], USER, {"request": {"amount": "x"}}, RequestError),
        (["doubled"], USER, {"request": {"amount": 1e300}}, RequestError),
        (["doubled"], USER, {"request": {"amount": [1, 2]}}, RequestError),
        (["failing"], USER, {"as_of": NOW}, DataError),
        (["doubled_stale"], USER, {"as_of": NOW}, FeatureStoreError),
        (["users:score", "every"], [{"user": 1, "k": None}], {"as_of": 0}, AsOfBeforeRowError),
    ],
    ids=range(18),
)
def test_the_same_errors_as_in_process(pair, features, rows, options, error):
    assert isinstance(pair.fail(features, rows, **options), error)


def test_a_naive_key_is_refused_though_it_cannot_be_sent(pair):
    with pytest.raises(NaiveTimestampError, match="'user'"):
        pair.client.get_online_features(["users:score"], [{"user": NAIVE}])
    assert pair.read(["users:name"], [{"user": 1, "when": NAIVE}], as_of=NOW).to_dict() == {
        "user": [1],
        "name": ["one"],
    }


def test_a_deadline_in_the_past_is_over(pair):
    with pytest.raises(DeadlineExceededError):
        pair.client.get_online_features(["users:score"], USER, timeout=-1)


def test_plain_generated_stubs(pair):
    stub = FeatureServingStub(pair.channel)
    answer = stub.GetOnlineFeatures(
        pb.GetOnlineFeaturesRequest(
            references={
                "references": [
                    {"view": "users", "features": ["score", "name"]},
                    {"view": "every", "features": ["a_int64", "embedding", "many_strings"]},
                ]
            },
            entity_rows=[
                pb.Column(name="user", int64s={"values": [1, 2, 4]}),
                pb.Column(name="k", validity=b"\x03", int64s={"values": [1, 2, 0]}),
            ],
            as_of=NOW_US,
        ),
        timeout=5,
    )
    assert (answer.rows, answer.as_of, answer.service) == (3, NOW_US, "")
    score, name, number, vector, texts = answer.features
    assert list(score.doubles.values) == [0.5, 0.0, 0.0]
    assert score.validity == b"\x01"
    assert list(name.strings.values) == ["one", "two", ""]
    assert list(number.int64s.values) == [2**53 + 1, 0, 0]
    assert vector.vectors.length == 3
    assert len(vector.vectors.floats.values) == 9
    assert list(texts.lists.lengths) == [2, 0, 0]
    assert list(texts.lists.items.strings.values) == ["", ""]
    assert texts.lists.items.validity == b"\x01"
    assert list(answer.feature_sources) == [0, 0, 1, 1, 1]
    users, every = answer.sources
    assert (users.view, users.alias, users.fingerprint) == ("users", "users", USERS.fingerprint)
    present, missing = pb.FEATURE_STATUS_PRESENT, pb.FEATURE_STATUS_NOT_FOUND
    assert list(users.statuses) == [present, present, missing]
    assert list(users.event_timestamps) == [NOW_US - 1, NOW_US - 2, 0]
    assert list(every.statuses) == [present, present, missing]
    assert [column.name for column in answer.entity_keys] == ["user", "k"]
    info = stub.GetServingInfo(pb.GetServingInfoRequest(), timeout=5)
    assert info.project == PROJECT


@pytest.mark.parametrize(
    "message",
    [
        pb.GetOnlineFeaturesRequest(),
        pb.GetOnlineFeaturesRequest(service="all", entity_rows=[pb.Column(name="user")]),
        pb.GetOnlineFeaturesRequest(
            service="all",
            entity_rows=[pb.Column(name="user", validity=b"\1", int64s={"values": [0] * 9})],
        ),
        pb.GetOnlineFeaturesRequest(
            service="all", rows=3, entity_rows=[pb.Column(name="user", int64s={"values": [1]})]
        ),
        pb.GetOnlineFeaturesRequest(service="all", rows=2**32 - 1),
        pb.GetOnlineFeaturesRequest(
            service="all", as_of=2**63 - 1, entity_rows=[pb.Column(name="user", int64s={})]
        ),
    ],
    ids=["empty", "no values", "validity", "lengths", "rows", "as_of"],
)
def test_malformed_messages_are_invalid_arguments(pair, message):
    with pytest.raises(grpc.RpcError) as caught:
        FeatureServingStub(pair.channel).GetOnlineFeatures(message, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details()


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x02\xff\xff", b"\x1a\x7f"])
def test_bytes_that_are_no_message_are_invalid_arguments(pair, raw):
    with pytest.raises(grpc.RpcError) as caught:
        pair.channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")(raw, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        pair.channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_is_served(pair):
    info = pair.client.serving_info()
    assert (info.project, info.revision) == (PROJECT, 1)
    assert info.server_version
    assert info.services == {"all": STATE.catalog.services["all"].fingerprint}
    assert set(info.views) == {"every", "users", "pairs", "world", "doubled", "echoed",
                               "failing", "doubled_stale"}  # fmt: skip
    pairs, doubled = info.views["pairs"], info.views["doubled"]
    assert pairs.join_keys == {"left": "string", "right": "int32"}
    assert pairs.features == {"weight": "float32"}
    assert (pairs.fingerprint, pairs.on_demand) == (PAIRS.fingerprint, False)
    assert (doubled.request, doubled.on_demand) == ({"amount": "float32"}, True)


def test_health_and_reflection(pair):
    assert health(pair.channel) == "SERVING"
    assert health(pair.channel, "") == "SERVING"
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(pair.channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    assert answer.file_descriptor_response.file_descriptor_proto


def test_one_client_for_many_threads(pair):
    wrong = []

    def ask(key):
        for _ in range(20):
            answer = pair.client.get_online_features(["every:a_int64"], {"k": [key, 9]})
            if answer.statuses["a_int64"] != [expected[key], "NOT_FOUND"]:
                wrong.append(key)

    expected = {1: "PRESENT", 2: "NULL_VALUE", 3: "NULL_VALUE", 8: "NOT_FOUND"}
    threads = [threading.Thread(target=ask, args=(key,)) for key in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_client_loads_no_engine_no_store_and_no_registry():
    code = (
        "import sys, featurestore; featurestore.OnlineClient('localhost:1').close();"
        "loaded = {m.partition('.')[0] for m in sys.modules};"
        "print(sorted(loaded & {'duckdb', 'deltalake', 'lmdb', 'redis', 'sqlalchemy',"
        " 'apscheduler', 'pandas', 'polars', 'structlog'}))"
    )
    ended = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
