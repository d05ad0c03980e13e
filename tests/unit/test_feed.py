"""`feed` answers as production does: the same SQL, the same kernel, online and offline alike."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from featurestore import Aggregate, Entity, FeatureView, Field, FileSource, StreamSource
from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.errors import (
    DataError,
    DefinitionError,
    NaiveTimestampError,
    RequestError,
    SourceSchemaError,
)
from featurestore.semantics.reference_windows import value
from featurestore.semantics.timeline import to_datetime
from featurestore.testing import feed
from tests import window_worlds as worlds
from tests.window_worlds import bits

CARD = Entity(name="card", join_keys=["card_id"])
NINE = "2024-01-01T09:00:00Z"
TEN = datetime(2024, 1, 1, 10, tzinfo=UTC)


def source(**more: Any) -> FileSource:
    return FileSource(**{"name": "s", "path": "s.parquet", "event_timestamp": "at"} | more)


def windows(**more: Any) -> FeatureView:
    return FeatureView(
        **{
            "name": "spend",
            "entities": [CARD],
            "source": source(),
            "features": [Aggregate("sum", column="amount", windows=["1h"]),
                         Aggregate("count", windows=["1h"])],
        }
        | more
    )  # fmt: skip


def paid(amount: float | None = 1.0, at: Any = NINE, **more: Any) -> dict[str, Any]:
    return {"card_id": 1, "amount": amount, "at": at, **more}


def test_an_answer_is_a_dict_from_feature_to_value():
    fed = feed(windows(), [paid(9.5, "2024-01-01T09:30:00Z")])
    assert fed.at(TEN, card_id=1) == {"amount_sum_1h": 9.5, "count_1h": 1}
    assert fed.at("2024-01-01T10:30:00+00:00", card_id=2) == {"amount_sum_1h": None, "count_1h": 0}


def test_lists_ask_for_several_entities_and_instants():
    fed = feed(windows(), [paid(1.0), paid(2.0, card_id=2)])
    half = TEN - timedelta(minutes=30)
    assert [v["amount_sum_1h"] for v in fed.at(half, card_id=[2, 1, 3])] == [2.0, 1.0, None]
    assert [v["count_1h"] for v in fed.at([half, NINE, TEN], card_id=1)] == [1, 0, 1]
    both = fed.at([half, TEN + timedelta(minutes=1)], card_id=[2, 2])
    assert [v["count_1h"] for v in both] == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_random_windows_are_those_of_the_reference(seed: int):
    rng = random.Random(seed)  # noqa: S311
    definition = worlds.definition(rng)
    versions = [v for key in range(2) for v in worlds.versions(rng, key, 7)]
    rows = [
        v.row() | {"at": to_datetime(v.instant), "learnt": to_datetime(v.created)} for v in versions
    ]
    files = source(created_timestamp="learnt", event_id="id", version="version", deleted="gone")
    view = FeatureView(
        name="w",
        entities=[Entity(name="t", join_keys=["key"])],
        source=files,
        features=definition.aggregates,
    )
    types = {"id": "string", "version": "int64", "num": "int64", "dbl": "float64"}
    types |= {"tame": "float64", "txt": "string", "lst": "list<float64>", "vec": "list<float64>"}
    fed = feed(view, rows, dtypes=types | {"mp": "map<string, float64>", "by": "string"})
    for knowledge in ("healed", "known"):
        for asked in worlds.questions(rng, versions, 2):
            found = fed.at(to_datetime(asked), key=[0, 1, 2], knowledge=knowledge)
            for key in range(3):
                for feature in definition.features:
                    if feature.question is None:
                        continue
                    mine = [v for v in versions if v.key == key]
                    events = worlds.events_of(mine, feature)
                    expected = value(events, feature.question, asked, knowledge)
                    assert bits(found[key][feature.name]) == bits(expected), (asked, feature)


def test_a_plain_view_gives_the_newest_row():
    view = windows(
        features=["amount", Field(name="twice", expression="amount * 2")],
        source=source(created_timestamp="learnt"),
        ttl=timedelta(hours=2),
        where="amount > 0",
    )
    late = paid(3.0, "2024-01-01T09:30:00Z", learnt="2024-01-01T11:00:00Z")
    fed = feed(view, [paid(1.0, learnt=NINE), late, paid(-1.0, TEN, learnt=TEN)])
    assert fed.at(TEN, card_id=1) == {"amount": 3.0, "twice": 6.0}
    assert fed.at(TEN, card_id=1, knowledge="known") == {"amount": 1.0, "twice": 2.0}
    assert fed.at("2024-01-01T11:30:00.000001Z", card_id=1) == {"amount": None, "twice": None}


def test_streams_global_views_and_tables_work_too():
    stream = StreamSource(name="live", batch=source(event_id="id"), stream="memory:clicks")
    events = pl.DataFrame(
        {"id": ["a", "a", "b"], "amount": [1.0, 2.0, 4.0], "at": [TEN] * 3, "card_id": [1] * 3}
    )
    after = TEN + timedelta(seconds=1)
    assert feed(windows(source=stream), events).at(after, card_id=1)["amount_sum_1h"] == 6.0
    everywhere = feed(windows(entities=[]), events.to_arrow())
    assert everywhere.at(after) == {"amount_sum_1h": 7.0, "count_1h": 3}


def test_no_events_need_types():
    none = feed(windows(), [], dtypes={"card_id": "int64", "amount": "float64", "at": "timestamp"})
    assert none.at(TEN, card_id=1) == {"amount_sum_1h": None, "count_1h": 0}


def test_columns_may_be_left_out_and_given_types():
    view = windows(features=[Aggregate("max", column="day", windows=["1h"])])
    half = TEN - timedelta(minutes=30)
    fed = feed(view, [paid(day=date(2024, 1, 1)), paid()])
    assert fed.at(half, card_id=1) == {"day_max_1h": date(2024, 1, 1)}
    typed = feed(view, [paid()], dtypes={"day": "date"})
    assert typed.at(half, card_id=1) == {"day_max_1h": None}
    with pytest.raises(DataError, match="cannot be read as int32"):
        feed(view, [paid(day="monday")], dtypes={"day": "int32"})


def test_naive_texts_take_the_zone_of_the_source():
    view = windows(source=source(timezone="America/New_York"))
    fed = feed(view, [paid(at="2024-01-01T04:30:00")])
    assert fed.at(TEN, card_id=1)["count_1h"] == 1
    with pytest.raises(NaiveTimestampError):
        feed(windows(), [paid(at="2024-01-01T04:30:00")])


def test_events_without_key_or_instant_are_counted():
    assert feed(windows(), [paid(), paid(card_id=None), paid(at=None)]).rejected == 2


def test_renamed_columns_that_nobody_needs_may_be_left_out():
    view = windows(source=source(field_mapping={"amt": "amount", "zzz": "other"}))
    event = {"card_id": 1, "amt": 2.0, "at": "2024-01-01T09:30:00Z"}
    assert feed(view, [event]).at(TEN, card_id=1)["amount_sum_1h"] == 2.0


def test_what_is_wrong_is_told():
    fed = feed(windows(), [paid()])
    with pytest.raises(RequestError, match="not those of the view"):
        fed.at(TEN, card=1)
    with pytest.raises(RequestError, match="not those of the view"):
        fed.at(TEN)
    with pytest.raises(RequestError, match="differ in length"):
        fed.at([TEN, TEN], card_id=[1, 2, 3])
    with pytest.raises(SourceSchemaError, match="no column 'amount'"):
        feed(windows(), [{"card_id": 1, "at": NINE}])
    with pytest.raises(DefinitionError, match="no aggregate function"):
        feed(windows(features=[Aggregate("summ", column="amount", windows=["1h"])]), [paid()])


def test_a_mistake_of_the_online_store_would_be_found(monkeypatch: pytest.MonkeyPatch):
    fed = feed(windows(), [paid(5.0)])
    read = MemoryOnlineStore.read_states

    def wrong(self: Any, reads: Any, rows: Any = (), **more: Any) -> Any:
        found, values = read(self, reads, rows, **more)
        five, six = (pa.array([x]).buffers()[1].to_pybytes()[:8] for x in (5.0, 6.0))
        return [[f and f.replace(five, six) for f in fields] for fields in found], values

    monkeypatch.setattr(MemoryOnlineStore, "read_states", wrong)
    with pytest.raises(DataError, match="not the same online and offline") as caught:
        fed.at(TEN - timedelta(minutes=1), card_id=1)
    assert "6.0 online" in str(caught.value)


def test_whoever_tests_an_adapter_loads_no_engine():
    code = (
        "import sys, featurestore.testing, featurestore.testing.online;"
        "assert 'duckdb' not in sys.modules; from featurestore.testing import feed;"
        "assert 'duckdb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  (our own interpreter)
