"""Online reads over the store in memory: laws T3, K2, O1 to O4 and V2, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.errors import (
    AsOfBeforeRowError,
    DataError,
    FeatureNotFoundError,
    MissingColumnError,
    NaiveTimestampError,
    NameClashError,
    NotMaterializedError,
    RequestError,
)
from featurestore.model.declarations import Entity, FeatureSelection, FeatureService, FeatureView
from featurestore.model.sources import FileSource
from featurestore.semantics.keys import encode_key, namespace
from tests.served import (
    HOUR_US,
    NOW,
    NOW_US,
    PROJECT,
    Served,
    on_demand,
    publish,
    push,
    select,
    state,
    view,
)

USERS = view("users", {"user": "int64"}, {"score": "float64", "name": "string"}, ttl_us=HOUR_US)
PAIRS = view("pairs", {"left": "string", "right": "int32"}, {"weight": "float32"})
WORLD = view("world", {}, {"rate": "float64"})
HIDDEN = view("hidden", {"user": "int64"}, {"secret": "int64"}, online=False)
NAIVE = datetime(2024, 6, 1)  # noqa: DTZ001  (that is the point)
VIEWS = (USERS, PAIRS, WORLD, HIDDEN)


class SpyStore(MemoryOnlineStore):
    """Remembers what was read."""

    def __init__(self):
        super().__init__()
        self.reads: list[tuple[int, float | None]] = []

    def read(self, keys, *, timeout=None):
        assert len(set(keys)) == len(keys)
        self.reads.append((len(keys), timeout))
        return super().read(keys, timeout=timeout)


@pytest.fixture
def store() -> SpyStore:
    return SpyStore()


@pytest.fixture
def served(store) -> Served:
    services = {"all": [select("users", "score", "name"), select("world", "rate")]}
    served = Served(state(VIEWS, services=services), store=store)
    served.push(
        USERS,
        ((1,), NOW_US - 1, (0.5, "one")),
        ((2,), NOW_US - 2, (None, "two")),
        ((3,), NOW_US - HOUR_US - 1, (3.0, "old")),
        ((4,), NOW_US - HOUR_US, (4.0, "edge")),
    )
    served.push(PAIRS, (("a", 1), NOW_US, (1.0,)), (("b", 2), NOW_US, (2.0,)))
    served.push(WORLD, ((), NOW_US, (9.0,)))
    return served


def test_four_statuses_and_their_timestamps(served):
    rows = [{"user": key} for key in (1, 2, 3, 4, 5, None)]
    answer = served.read(["users:score"], rows)
    assert answer.to_dict() == {
        "user": [1, 2, 3, 4, 5, None],
        "score": [0.5, None, None, 4.0, None, None],
    }
    assert answer.statuses["score"] == [
        "PRESENT",
        "NULL_VALUE",
        "OUTSIDE_MAX_AGE",
        "PRESENT",
        "NOT_FOUND",
        "NOT_FOUND",
    ]
    us = timedelta(microseconds=1)
    hour = timedelta(hours=1)
    stamps = answer.event_timestamps["score"]
    assert stamps == [NOW - us, NOW - 2 * us, NOW - hour - us, NOW - hour, None, None]
    assert answer.as_of == NOW


def test_one_round_trip_for_all_views_and_each_key_once(served, store):
    rows = {"user": [1, 1, 2, None], "left": ["a", "a", "b", "b"], "right": [1, 1, 2, 2]}
    answer = served.read(["users:score", "pairs:weight", "world:rate"], rows)
    assert store.reads == [(2 + 2 + 1, None)]
    assert answer.to_dict() == {
        "user": [1, 1, 2, None],
        "left": ["a", "a", "b", "b"],
        "right": [1, 1, 2, 2],
        "score": [0.5, 0.5, None, None],
        "weight": [1.0, 1.0, 2.0, 2.0],
        "rate": [9.0] * 4,
    }


def test_repeated_entities_keep_count_and_order(served):
    rows = [{"user": key} for key in (2, 1, 2)]
    assert served.read(["users:name"], rows).to_dict()["name"] == ["two", "one", "two"]


def test_the_timeout_goes_to_the_store(served, store):
    served.read(["users:score"], [{"user": 1}], timeout=0.25)
    assert store.reads == [(1, 0.25)]


def test_nothing_is_read_where_every_key_is_null(served, store):
    answer = served.read(["users:score"], [{"user": None}])
    assert store.reads == []
    assert answer.statuses["score"] == ["NOT_FOUND"]


@pytest.mark.parametrize(
    "rows", [{"user": []}, pa.table({"user": pa.array([], pa.int64())})], ids=["dict", "table"]
)
def test_no_entity_rows_give_no_rows(served, rows):
    served = served.read(["users:score", "world:rate"], rows)
    assert served.to_dict() == {"user": [], "score": [], "rate": []}
    assert served.to_arrow().num_rows == 0


def test_a_list_without_rows_lacks_its_join_key(served):
    with pytest.raises(MissingColumnError):
        served.read(["users:score"], [])


def test_features_without_entities(served):
    answer = served.read(["world:rate"], [{}, {}])
    assert answer.to_dict() == {"rate": [9.0, 9.0]}


def test_global_features_beside_others_and_a_service(served):
    answer = served.read("all", [{"user": 1, "unused": object()}])
    assert answer.to_dict() == {"user": [1], "score": [0.5], "name": ["one"], "rate": [9.0]}
    assert answer.service == "all"
    assert answer.fingerprints == {"users": USERS.fingerprint, "world": WORLD.fingerprint}


def test_full_feature_names(served):
    answer = served.read(["users:score"], [{"user": 1}], full_feature_names=True)
    assert answer.feature_names == ["users__score"]


def test_a_view_joined_twice_under_other_keys(served):
    features = [
        FeatureSelection(view="users", features=("score",), alias_name="buyer",
                         join_keys={"user": "buyer_id"}),
        FeatureSelection(view="users", features=("score",), alias_name="seller",
                         join_keys={"user": "seller_id"}),
    ]  # fmt: skip
    rows = [{"buyer_id": 1, "seller_id": 4}]
    answer = served.read(features, rows, full_feature_names=True)
    assert answer.to_dict() == {
        "buyer_id": [1],
        "seller_id": [4],
        "buyer__score": [0.5],
        "seller__score": [4.0],
    }
    assert answer.fingerprints == {"users": USERS.fingerprint}
    with pytest.raises(NameClashError, match="score"):
        served.read(features, rows)


# ------------------------------------------------------------------------------------- instants


def test_as_of_decides_what_is_expired(served):
    at = NOW - timedelta(microseconds=1)
    assert served.read(["users:score"], [{"user": 3}], as_of=at).statuses["score"] == ["PRESENT"]
    later = (NOW + timedelta(hours=1)).isoformat()
    answer = served.read(["users:score"], [{"user": 1}], as_of=later)
    assert answer.statuses["score"] == ["OUTSIDE_MAX_AGE"]
    assert answer.as_of == NOW + timedelta(hours=1)


@pytest.mark.parametrize("others", [0, 2])
def test_as_of_before_the_stored_row_is_refused_by_name(served, others):
    rows = [{"user": 4}] * others + [{"user": 1}]
    with pytest.raises(AsOfBeforeRowError) as caught:
        served.read(["users:score"], rows, as_of=NOW - timedelta(minutes=1))
    error = caught.value
    assert error.where == "view 'users', user=1"
    assert error.got == "as_of 2024-06-01T11:59:00Z, row of 2024-06-01T11:59:59.999999Z"


def test_as_of_at_the_stored_row_is_answered(served):
    answer = served.read(["users:score"], [{"user": 1}], as_of=NOW_US - 1)
    assert answer.to_dict()["score"] == [0.5]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_from_a_clock_that_goes_ahead_is_not_hidden(served, rows):
    served.push(USERS, ((1,), NOW_US + 7, (7.0, "new")))
    answer = served.read(["users:score"], [{"user": 1}] + [{"user": 4}] * (rows - 1))
    assert answer.statuses["score"][0] == "PRESENT"
    assert answer.to_dict()["score"][0] == 7.0
    assert answer.as_of == NOW + timedelta(microseconds=7)
    # Law T3 at that instant: the row that was just within its ttl is now outside of it.
    assert answer.statuses["score"][1:] == ["OUTSIDE_MAX_AGE"] * (rows - 1)


def test_now_is_the_instant_after_the_read(served, store, monkeypatch):
    read = store.read

    def slow(keys, *, timeout=None):
        served.clock.advance(5)
        return read(keys, timeout=timeout)

    monkeypatch.setattr(store, "read", slow)
    assert served.read(["world:rate"], [{}]).as_of == NOW + timedelta(microseconds=5)


@pytest.mark.parametrize("as_of", [NAIVE, "2024-06-01T00:00:00"])
def test_a_naive_as_of_is_refused(served, store, as_of):
    with pytest.raises(NaiveTimestampError):
        served.read(["users:score"], [{"user": 1}], as_of=as_of)
    assert store.reads == []


@pytest.mark.parametrize("as_of", [2**62, -(2**62), "yesterday"])
def test_an_as_of_that_is_no_instant_is_refused(served, as_of):
    with pytest.raises(RequestError):
        served.read(["users:score"], [{"user": 1}], as_of=as_of)


def test_a_row_of_another_schema_is_refused_not_decoded(served, store):
    key = namespace(PROJECT, "users", USERS.table_fingerprint) + encode_key(
        (1,), [USERS.join_keys[0].type]
    )
    store.write([key], [b"\xff" * 100], None)
    with pytest.raises(DataError, match="'users'") as caught:
        served.read(["users:score"], [{"user": 1}])
    assert caught.value.got == "ffffffff"
    assert served.read(["users:score"], [{"user": 2}]).statuses["score"] == ["NULL_VALUE"]


# ----------------------------------------------------------------------------------------- keys

INSTANT = datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC)
KEYS = {
    "bool": [True, np.True_],
    "int32": [7, 7.0, np.int8(7), np.uint64(7)],
    "int64": [7, 7.0, np.float32(7), np.int64(7)],
    "string": ["x"],
    "bytes": [b"\x00x", bytearray(b"\x00x")],
    "date": [datetime(1960, 2, 29, tzinfo=UTC).date()],
    "timestamp": [INSTANT, INSTANT.astimezone(tz=None), pd.Timestamp(INSTANT)],
}


@pytest.mark.parametrize("dtype", KEYS)
def test_keys_of_every_type(dtype):
    plan = view("v", {"key": dtype}, {"x": "int64"})
    served = Served(state([plan]))
    served.push(plan, ((KEYS[dtype][0],), 0, (1,)))
    for value in KEYS[dtype]:
        for rows in (1, 20):
            answer = served.read(["v:x"], [{"key": value}] * rows)
            assert answer.to_dict() == {"key": [KEYS[dtype][0]] * rows, "x": [1] * rows}
    table = pa.table({"key": pa.array([KEYS[dtype][0]]).dictionary_encode()})
    assert served.read(["v:x"], table).to_dict()["x"] == [1]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", "7"),
        ("int64", True),
        ("int64", 7.5),
        ("int64", 2**63),
        ("int64", [7]),
        ("int32", b"7"),
        ("string", 7),
        ("string", b"x"),
        ("bytes", "x"),
        ("bool", 1),
        ("date", datetime(2024, 1, 1, tzinfo=UTC)),
        ("date", 7),
        ("timestamp", 7),
        ("timestamp", "2024-01-01T00:00:00Z"),
        ("timestamp", datetime(2024, 1, 1, tzinfo=UTC).date()),
    ],
)
@pytest.mark.parametrize("rows", [1, 20])
def test_keys_of_another_type_are_refused(store, dtype, value, rows):
    plan = view("v", {"key": dtype}, {"x": "int64"})
    served = Served(state([plan]), store=store)
    with pytest.raises(RequestError) as caught:
        served.read(["v:x"], [{"key": value}] * rows)
    assert dtype in str(caught.value)
    assert "key" in caught.value.what
    assert store.reads == []


@pytest.mark.parametrize("value", [NAIVE, np.datetime64("2024-01-01T00:00:00")])
def test_a_naive_key_is_refused(value):
    served = Served(state([view("v", {"key": "timestamp"}, {"x": "int64"})]))
    with pytest.raises(NaiveTimestampError, match="'key'"):
        served.read(["v:x"], [{"key": value}])


def test_the_time_of_day_is_not_cut_off_a_date():
    served = Served(state([view("v", {"key": "date"}, {"x": "int64"})]))
    with pytest.raises(RequestError, match="date"):
        served.read(["v:x"], [{"key": NOW.date()}, {"key": NOW}])


def test_one_zone_is_not_taken_for_all():
    served = Served(state([view("v", {"key": "timestamp"}, {"x": "int64"})]))
    with pytest.raises(NaiveTimestampError):
        served.read(["v:x"], [{"key": NOW}, {"key": NAIVE}])


def test_composite_keys_are_not_glued_together():
    plan = view("v", {"a": "string", "b": "string"}, {"x": "int64"})
    served = Served(state([plan]))
    served.push(plan, (("1", "23"), 0, (1,)), (("12", "3"), 0, (2,)))
    rows = [{"a": "1", "b": "23"}, {"a": "12", "b": "3"}, {"a": "123", "b": ""}]
    assert served.read(["v:x"], rows).to_dict()["x"] == [1, 2, None]
    answer = served.read(["v:x"], [*rows, {"a": "1", "b": None}])
    assert answer.statuses["x"] == ["PRESENT", "PRESENT", "NOT_FOUND", "NOT_FOUND"]


def test_an_integer_beyond_int32_is_just_not_there(served):
    answer = served.read(["pairs:weight"], [{"left": "a", "right": 2**40}])
    assert answer.statuses["weight"] == ["NOT_FOUND"]
    assert answer.to_dict()["right"] == [2**40]


@pytest.mark.parametrize(
    "rows",
    [
        [{"user": 1}, {"user": None}],
        ({"user": 1}, {"user": None}),
        {"user": [1, None]},
        {"user": (1, None)},
        {"user": np.array([1.0, np.nan])},
        {"user": pd.Series([1, None])},
        {"user": pl.Series([1, None])},
        {"user": pa.chunked_array([[1], [None]])},
        pa.table({"user": pa.chunked_array([[1], [None]])}),
        pa.record_batch({"user": [1, None]}),
        pl.DataFrame({"user": [1, None]}),
        pd.DataFrame({"user": [1, None]}),
        pd.DataFrame({"user": [1, pd.NA]}, dtype="object"),
        pd.DataFrame({"user": [1, None]}, dtype="Int64"),
    ],
    ids=[
        "dicts",
        "tuple of dicts",
        "dict of lists",
        "dict of tuples",
        "dict of numpy",
        "dict of pandas",
        "dict of polars",
        "dict of chunks",
        "arrow table",
        "arrow batch",
        "polars",
        "pandas",
        "pandas objects",
        "pandas Int64",
    ],
)
def test_every_form_of_entity_rows(served, rows):
    answer = served.read(["users:name"], rows)
    assert answer.to_dict() == {"user": [1, None], "name": ["one", None]}
    assert answer.to_arrow().schema.field("user").type == pa.int64()


def test_a_column_that_nobody_reads_may_hold_anything(served):
    rows = pd.DataFrame({"user": [1, 2], "junk": [object(), "x"]})
    assert served.read(["users:name"], rows).to_dict()["name"] == ["one", "two"]
    frame = pl.DataFrame({"user": [1, 2], "junk": pl.Series([{1}, {2}], dtype=pl.Object)})
    assert served.read(["users:name"], frame).to_dict()["name"] == ["one", "two"]


def test_changing_the_rows_afterwards_does_not_change_the_answer(served):
    keys = [1, 2]
    frame = pd.DataFrame({"user": [1, 2]})
    answers = [served.read(["users:name"], {"user": keys}), served.read(["users:name"], frame)]
    keys[0] = 9
    frame.loc[0, "user"] = 9
    assert [answer.to_dict()["user"] for answer in answers] == [[1, 2], [1, 2]]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"usr": 1}], MissingColumnError),
        ([{"user": 1}, {"usr": 1}], MissingColumnError),
        ({"user": [1], "left": [1, 2]}, RequestError),
        ({"user": 1}, RequestError),
        ([1, 2], RequestError),
        ("user", RequestError),
        (7, RequestError),
        (pa.table([[1], [2]], names=["user", "user"]), RequestError),
        ([{"user": 1, "score": 2}], NameClashError),
    ],
)
def test_wrong_entity_rows_are_refused_before_any_work(served, store, rows, error):
    with pytest.raises(error):
        served.read(["users:score"], rows)
    assert store.reads == []


def test_a_missing_join_key_is_named_with_its_near_miss(served):
    with pytest.raises(MissingColumnError) as caught:
        served.read(["users:score"], [{"usr": 1}])
    assert caught.value.what == "'entity_rows' lacks the column 'user'."
    assert caught.value.where == "FeatureView 'users'"
    assert caught.value.hint == "Did you mean 'usr'?"


def test_a_column_that_one_row_lacks_is_named_with_the_row(served):
    with pytest.raises(MissingColumnError, match="Row 2 of 'entity_rows' lacks 'x'"):
        served.read(["users:score"], [{"user": 1, "x": 1}, {"user": 2, "x": 1}, {"user": 3}])


@pytest.mark.parametrize(
    ("features", "error"),
    [
        (["users:scor"], FeatureNotFoundError),
        (["user:score"], FeatureNotFoundError),
        ("al", FeatureNotFoundError),
        ([], RequestError),
        ([7], RequestError),
        (7, RequestError),
        (["users:score", "users:score", "users:score"], None),
    ],
)
def test_features_that_are_not_there(served, store, features, error):
    if error is None:
        assert served.read(features, [{"user": 1}]).feature_names == ["score"]
        return
    with pytest.raises(error):
        served.read(features, [{"user": 1}])
    assert store.reads == []


def test_a_view_that_is_not_online_says_so(served):
    with pytest.raises(RequestError, match="'hidden' is not online"):
        served.read(["hidden:secret"], [{"user": 1}])


# ---------------------------------------------------------------------------------- definitions


def test_new_definitions_are_seen_and_prepared_again(served):
    before = served.read(["users:score"], [{"user": 1}])
    wider = view("users", {"user": "int64"}, {"score": "int64"}, version="2")
    publish(served.registry, state([wider, WORLD]))
    push(served.store, wider, [((1,), NOW_US, (5,))])
    assert served.read(["users:score"], [{"user": 1}]).fingerprints == before.fingerprints
    served.state.invalidate()
    after = served.read(["users:score"], [{"user": 1}])
    assert after.to_dict()["score"] == [5]
    assert after.fingerprints == {"users": wider.fingerprint}
    with pytest.raises(FeatureNotFoundError):
        served.read(["pairs:weight"], [{"left": "a", "right": 1}])


def test_declared_objects_mean_what_their_names_mean(served):
    source = FileSource(name="s", path="x.parquet", event_timestamp="at")
    users = FeatureView(
        name="users",
        entities=(Entity(name="user", join_keys=("user",)),),
        source=source,
        features=("score", "name"),
    )
    rows = [{"user": 1}]
    expected = {"user": [1], "score": [0.5], "name": ["one"]}
    for _ in range(2):
        assert served.read([users], rows).to_dict() == expected
        assert served.read(["users"], rows).to_dict() == expected
        assert served.read([users["name"]], rows).to_dict() == {"user": [1], "name": ["one"]}
        renamed = users.alias("you", {"user": "id"})["name"]
        assert served.read([renamed], [{"id": 1}]).to_dict() == {"id": [1], "name": ["one"]}
        renamed = users.alias("you", {"user": "other"})["name"]
        assert served.read([renamed], [{"other": 2}]).to_dict() == {"other": [2], "name": ["two"]}
        service = FeatureService(name="all", features=(users,))
        assert served.read(service, rows).to_dict()["rate"] == [9.0]


def test_many_different_requests_do_not_pile_up(served):
    for i in range(600):
        selection = FeatureSelection(
            view="users", features=("score",), alias_name=f"a{i}", join_keys={}
        )
        served.read([selection], [{"user": 1}])
    assert len(served.reader._prepared[1]) <= 256


def test_an_applied_feature_whose_table_is_not_complete_is_told(served):
    wider = view("users", {"user": "int64"}, {"score": "float64", "new": "int64"}, version="2")
    wanted = state([wider, WORLD])
    publish(served.registry, wanted.model_copy(update={"serving": {"users": USERS}}))
    served.state.invalidate()
    with pytest.raises(NotMaterializedError):
        served.read(["users:new"], [{"user": 1}])
    assert served.read(["users:score"], [{"user": 1}]).to_dict()["score"] == [0.5]


# ------------------------------------------------------------------------------------- on demand

BONUS = on_demand(
    "bonus",
    [select("users", "score")],
    {"total": "float64"},
    {"amount": "float64", "label": "string"},
)


def total(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(total=pl.col("score") + pl.col("amount"))


@pytest.fixture
def computed(store) -> Served:
    served = Served(state([USERS], [BONUS]), {"bonus": (total, BONUS.code_fingerprint)}, store)
    served.push(USERS, ((1,), NOW_US, (0.5, "one")), ((2,), NOW_US, (None, "two")))
    return served


@pytest.mark.parametrize(
    "request_fields",
    [
        {"amount": 1, "label": "x"},
        {"amount": [1, 1], "label": ["x", None]},
        {"amount": np.array([1.0, 1.0]), "label": "x"},
        [{"amount": 1.0, "label": "x"}, {"amount": 1, "label": "y"}],
        pl.DataFrame({"amount": [1.0, 1.0], "label": ["x", "y"], "extra": [1, 2]}),
        pd.DataFrame({"amount": [1, 1], "label": ["x", None]}),
    ],
    ids=["values", "lists", "mixed", "rows", "polars", "pandas"],
)
def test_on_demand_features_and_their_request(computed, request_fields):
    answer = computed.read(["bonus:total"], {"user": [1, 2]}, request=request_fields)
    assert answer.to_dict() == {"user": [1, 2], "total": [1.5, None]}
    assert answer.statuses["total"] == ["PRESENT", "NULL_VALUE"]
    assert answer.event_timestamps["total"] == [None, None]
    assert answer.fingerprints == {"users": USERS.fingerprint, "bonus": BONUS.fingerprint}


def test_request_fields_may_stand_in_the_entity_rows(computed):
    rows = [{"user": 1, "amount": 2.0, "label": "x"}]
    assert computed.read(["bonus:total"], rows).to_dict()["total"] == [2.5]
    answer = computed.read(["bonus:total"], rows, request={"amount": 3})
    assert answer.to_dict()["total"] == [3.5]


@pytest.mark.parametrize("value", [[1e300], [1e300, 0.1], [float("inf")]])
def test_a_float_is_rounded_to_float32_but_never_made_infinite(value):
    plan = on_demand("od", [select("users", "score")], {"x": "float32"}, {"f": "float32"})
    served = Served(
        state([USERS], [plan]), {"od": (lambda f: f.select(x="f"), plan.code_fingerprint)}
    )
    rows = [{"user": 1}] * len(value)
    if 1e300 in value:
        with pytest.raises(RequestError, match="float32"):
            served.read(["od:x"], rows, request={"f": value})
    else:
        assert served.read(["od:x"], rows, request={"f": value}).to_dict()["x"] == value
    tenths = served.read(["od:x"], rows, request={"f": 0.1}).to_dict()["x"]
    assert tenths == [float(np.float32(0.1))] * len(value)


def test_an_input_that_nobody_may_see_is_null_for_the_function(computed):
    later = NOW + timedelta(hours=2)
    rows = [{"user": 1, "amount": 2.0, "label": "x"}]
    answer = computed.read(["bonus:total", "users:score"], rows, as_of=later)
    assert answer.statuses == {"total": ["NULL_VALUE"], "score": ["OUTSIDE_MAX_AGE"]}


@pytest.mark.parametrize(
    ("request_fields", "error", "says"),
    [
        (None, MissingColumnError, "'entity_rows' lacks the column 'amount'"),
        ({"amunt": 1, "label": "x"}, MissingColumnError, "Did you mean 'amunt'?"),
        ({"amount": "1", "label": "x"}, RequestError, "float64"),
        ({"amount": 2**60 + 1, "label": "x"}, RequestError, "float64"),
        ({"amount": [1], "label": ["x"]}, RequestError, "another number of rows"),
        ([{"amount": 1, "label": "x"}], RequestError, "another number of rows"),
        ({"amount": [1, 2, 3], "label": "x"}, RequestError, "differ in length"),
        (7, RequestError, "cannot be read as rows"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(computed, store, request_fields, error, says):
    with pytest.raises(error) as caught:
        computed.read(["bonus:total"], [{"user": 1}, {"user": 2}], request=request_fields)
    assert says in str(caught.value)
    assert store.reads == []


def test_a_naive_instant_in_the_request_is_refused():
    plan = on_demand("od", [select("users", "score")], {"x": "float64"}, {"at": "timestamp"})
    served = Served(state([USERS], [plan]), {"od": (total, plan.code_fingerprint)})
    with pytest.raises(NaiveTimestampError, match="'at' of 'request'"):
        served.read(["od:x"], [{"user": 1}], request={"at": NAIVE})
