"""Declaring aggregates and streams: names, and what is wrong with them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurestore import Aggregate, Entity, FeatureView, FileSource, StreamSource
from featurestore.errors import DefinitionError

CARD = Entity(name="card", join_keys=["card_id"])
PAYMENTS = FileSource(
    name="payments", path="payments.parquet", event_timestamp="at", event_id="payment_id"
)


@pytest.mark.parametrize(
    ("aggregate", "names"),
    [
        (
            Aggregate("mean", column="amount", windows=["1h", "7d"]),
            ("amount_mean_1h", "amount_mean_7d"),
        ),
        (Aggregate("count", windows=["90s"]), ("count_90s",)),
        (
            Aggregate("sum", column="amount", windows=["lifetime"], offset="-3d"),
            ("amount_sum_lifetime",),
        ),
        (Aggregate("sum", column="amount", windows=["1d"], name="spend"), ("spend",)),
        (
            Aggregate("sum", column="amount * rate", windows=["1d", "7d"], name="spend"),
            ("spend_1d", "spend_7d"),
        ),
        (Aggregate(function="max", column="amount", windows=["1d"]), ("amount_max_1d",)),
    ],
)
def test_names(aggregate: Aggregate, names: tuple[str, ...]) -> None:
    """A feature for each window, named after column, function and window."""
    assert aggregate.names == names


def test_a_view_has_the_features_of_its_aggregates() -> None:
    """They can be chosen like any others."""
    view = FeatureView(
        name="spend",
        entities=[CARD],
        source=PAYMENTS,
        features=[
            Aggregate("sum", column="amount", windows=["1h", "1d"]),
            Aggregate("count", windows=["1h"]),
        ],
    )
    assert view.feature_names == ["amount_sum_1h", "amount_sum_1d", "count_1h"]
    assert view["amount_sum_1d", "count_1h"].features == ("amount_sum_1d", "count_1h")
    with pytest.raises(DefinitionError, match=r"Did you mean 'amount_sum_1d'"):
        view["amount_sum_2d"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"function": "sum", "column": "amount", "windows": []}, "one window or more"),
        ({"function": "sum", "column": "amount", "windows": ["1h", "1h"]}, "twice"),
        ({"function": "sum", "column": "amount * 2", "windows": ["1h"]}, "needs a name="),
        ({"function": "sum", "column": "amount", "window": ["1h"]}, "Did you mean 'windows'"),
        ({"function": "sum", "column": "amount"}, "lacks its argument 'windows'"),
        ({"function": "sum", "column": "amount", "windows": "1h"}, "a list is needed"),
        ({"function": "sum", "column": "x", "windows": ["1h"], "name": "a__b"}, "a name"),
    ],
)
def test_a_wrong_aggregate_is_told(arguments: dict[str, Any], told: str) -> None:
    """Each mistake by its own words."""
    with pytest.raises(DefinitionError, match=told):
        Aggregate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            {"features": ["amount", Aggregate("count", windows=["1h"])]},
            "do not go into one view",
        ),
        (
            {"features": [Aggregate("count", windows=["1h"])], "ttl": timedelta(hours=1)},
            "have no ttl",
        ),
        (
            {
                "features": [
                    Aggregate("sum", column="amount", windows=["1h"]),
                    Aggregate("sum", column="amount", windows=["1h"], offset="-1d"),
                ]
            },
            "declared twice",
        ),
    ],
)
def test_a_wrong_view_is_told(arguments: dict[str, Any], told: str) -> None:
    """What does not go together is refused when it is declared."""
    with pytest.raises(DefinitionError, match=told):
        FeatureView(name="spend", entities=[CARD], source=PAYMENTS, **arguments)


def test_a_stream_and_its_history_are_one_source() -> None:
    """What the stream does not say of its events, the batch does."""
    stream = StreamSource(
        name="live", batch=PAYMENTS, stream="redis://localhost:6379/0/payments", deleted="gone"
    )
    assert stream.history.name == "live"
    assert stream.history.event_id == "payment_id"
    assert stream.history.deleted == "gone"
    assert stream.history.event_timestamp == "at"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"stream": "payments"}, "a URL of one of"),
        ({"stream": "amqp://host/payments"}, "a URL of one of"),
        ({"stream": "redis://user:secret@host/0/x"}, "holds no password"),
        ({"stream": "kafka://broker:9092/payments"}, "needs version="),
        (
            {
                "stream": "lmdb:data/payments",
                "batch": FileSource(name="b", path="b.parquet", event_timestamp="at"),
            },
            "needs event_id=",
        ),
    ],
)
def test_a_wrong_stream_is_told(arguments: dict[str, Any], told: str) -> None:
    """The password, if any, is in no message."""
    with pytest.raises(DefinitionError, match=told) as caught:
        StreamSource(**{"name": "live", "batch": PAYMENTS, **arguments})
    assert "secret" not in str(caught.value)


def test_versions_and_deletions_are_of_events() -> None:
    """Without an event_id there is nothing that a version could be of."""
    with pytest.raises(DefinitionError, match="told by event_id="):
        FileSource(name="x", path="x.parquet", event_timestamp="at", deleted="gone")
