"""Declarations say what is wrong with them, in words that help."""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from pydantic import ValidationError

from featurestore.errors import DefinitionError
from featurestore.model.base import Declaration
from featurestore.model.columns import Field
from featurestore.model.declarations import (
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    on_demand_feature_view,
)
from featurestore.model.sources import FileSource, RequestSource
from tests.unit.world import DRIVER, source, stats


def refused(make, *words: str) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        make()
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert "Input should be" not in text  # pydantic's own words
    return caught.value


def test_an_unknown_argument_suggests_the_near_miss():
    error = refused(lambda: stats(tll=timedelta(1)), "FeatureView('stats') has no argument 'tll'")
    assert error.hint == "Did you mean 'ttl'?"


def test_a_missing_argument_is_named():
    refused(lambda: FileSource(name="a", path="p"), "lacks its argument 'event_timestamp'")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Entity("driver"), ["by name", "Entity(name=...)"]),
        (
            lambda: Entity(name="d", join_keys="d"),
            ["'join_keys': a list is needed", "join_keys=[...]"],
        ),
        (lambda: Entity(name="d", join_keys=[1]), ["join_keys[0]", "a text is needed"]),
        (lambda: Entity(name="d", join_keys=[]), ["one join key or more"]),
        (lambda: Entity(name="d", join_keys=["a", "A"]), ["differ"]),
        (lambda: Entity(name="d", join_keys=["event_timestamp"]), ["column of every table"]),
        (lambda: Entity(name="a b", join_keys=["d"]), ["letters, digits and underscores"]),
        (lambda: Entity(name="a__b", join_keys=["d"]), ["two in a row"]),
        (lambda: Field(name="Event_Timestamp"), ["column of every table"]),
        (lambda: Field(name="event_period"), ["column of every table"]),
        (lambda: Field(name="x", dtype="flot64"), ["'flot64' is no value type", "'float64'"]),
        (lambda: Field(name="x", expression=" "), ["an empty text"]),
        (lambda: stats(entities=DRIVER), ["a list is needed", "entities=[...]"]),
        (lambda: stats(entities=["driver"]), ["class Entity is needed", "'driver'"]),
        (lambda: stats(source="drivers"), ["class FileSource is needed"]),
        (lambda: stats(features="rate"), ["a list is needed"]),
        (lambda: stats(features=[]), ["one feature or more"]),
        (lambda: stats(features=["rate", "Rate"]), ["'Rate' is declared twice", "case"]),
        (lambda: stats(features=["driver_id"]), ["'driver_id' is declared twice"]),
        (lambda: stats(features=["a b"]), ["'features'", "letters, digits"]),
        (lambda: stats(ttl="6h"), ["timedelta(hours=6)"]),
        (lambda: stats(ttl=timedelta(0)), ["positive"]),
        (lambda: stats(ttl=timedelta.max), ["10,000 years"]),
        (lambda: stats(schedule="* * * *"), ["five fields"]),
        (lambda: stats(schedule="99 * * * *"), ["'99' is no minute", "0 to 59"]),
        (lambda: stats(where=""), ["an empty text"]),
        (lambda: stats(tags={"a": 1}), ["tags.a", "a text is needed"]),
        (lambda: source(timezone="america/new_york"), ["Did you mean 'America/New_York'?"]),
        (lambda: source(timezone="localtime"), ["'localtime' is no time zone"]),
        (lambda: source(query="SELECT 1"), ["either a path or a query"]),
        (lambda: source(path=None), ["either a path or a query"]),
        (lambda: source(path=None, query="SELECT 1", format="csv"), ["format= goes with path="]),
        (lambda: source(field_mapping={"a": "x", "b": "X"}), ["two columns", "'X'"]),
        (lambda: RequestSource(name="r", fields=[Field(name="d")]), ["needs its dtype; 'd'"]),
        (
            lambda: RequestSource(
                name="r", fields=[Field(name="d", dtype="int64", expression="1")]
            ),
            ["has no expression"],
        ),
        (lambda: FeatureService(name="s", features=stats()), ["a list is needed"]),
        (lambda: FeatureService(name="s", features=[]), ["one view or more"]),
        (lambda: FeatureService(name="s", features=[DRIVER]), ["Entity('driver') is none of"]),
        (lambda: stats()["rat"], ["'stats:rat' names no feature", "Did you mean 'rate'?"]),
        (lambda: stats()[()], ["one feature or more"]),
        (lambda: FeatureSelection(view="stats", features=[]), ["one feature or more"]),
        (lambda: stats().alias("a b"), ["letters, digits"]),
    ],
)
def test_a_mistake_is_told(make, words):
    refused(make, *words)


def test_two_entities_of_one_join_key_do_not_go_together():
    twin = Entity(name="twin", join_keys=["driver_id"])
    refused(lambda: stats(entities=[DRIVER, twin]), "two of its entities", "'driver_id'")


def test_an_on_demand_view_says_what_it_needs():
    fields = [Field(name="x", dtype="float64")]
    refused(
        lambda: on_demand_feature_view(sources=stats(), features=fields)(len), "a list is needed"
    )
    refused(
        lambda: on_demand_feature_view(sources=[source()], features=fields)(doubled),
        "FileSource('drivers') is none of",
    )
    refused(
        lambda: on_demand_feature_view(sources=[stats()], features=[Field(name="x")])(doubled),
        "needs its dtype; 'x'",
    )


def doubled(inputs):
    """What it does.

    More words.
    """
    return inputs


def test_an_on_demand_view_is_named_and_described_by_its_function_and_stays_callable():
    declare = on_demand_feature_view(sources=[stats()], features=[Field(name="x", dtype="float64")])
    view = declare(doubled)
    assert (view.name, view.description) == ("doubled", "What it does.")
    assert view(3) == 3
    refused(lambda: declare(lambda inputs: inputs), "'<lambda>'", "letters, digits")


def test_selections_narrow_and_keep_their_alias():
    chosen = stats(features=["rate", "trips"]).alias("other", join_keys={"driver_id": "rival"})[
        "trips"
    ]
    assert chosen == FeatureSelection(
        view="stats", features=("trips",), alias_name="other", join_keys={"driver_id": "rival"}
    )


def test_declarations_are_frozen_and_short_in_errors():
    with pytest.raises(ValidationError, match="frozen"):
        DRIVER.name = "x"
    assert repr(stats(features=[Field(name="rate")])) == "FeatureView('stats')"
    assert issubclass(FeatureView, Declaration)


def test_an_error_survives_a_process_boundary():
    error = refused(lambda: stats(tll=1))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(again), type(again)) == (str(error), DefinitionError)
