"""The example's features, tried on a handful of flights: no store, no clock, no year of data."""

from __future__ import annotations

from typing import Any

from definitions.views import (
    aircraft_last_departure,
    carrier_punctuality,
    origin_congestion,
    origin_weather,
)
from featurestore.testing import feed


def flight(at: str, delay: float | None, **others: Any) -> dict[str, Any]:
    """Return a departure as the source has it; each instant makes a flight of its own."""
    event = {"flight_id": at, "origin": "JFK", "dest": "LAX", "carrier": "B6", "flight": 1}
    return {**event, "tailnum": "N1", "departed_at": at, "dep_delay": delay, **others}


MORNING = [
    flight("2013-07-01T08:10:00Z", 4.0, dest="BOS"),
    flight("2013-07-01T08:40:00Z", -2.0, dest="LAX", carrier="AA", tailnum="N2"),
    flight("2013-07-01T08:50:00Z", 40.0, dest="SFO", carrier="AA", tailnum="N3"),
    flight("2013-07-01T09:00:00Z", 99.0, dest="ORD"),
]


def test_congestion_counts_what_left_before_the_question():
    at_nine = feed(origin_congestion, MORNING).at("2013-07-01T09:00:00Z", origin="JFK")
    assert at_nine["count_1h"] == 3  # the one that leaves at nine sharp is not known yet
    assert at_nine["dep_delay_mean_1h"] == 14.0
    assert at_nine["dep_delay_max_6h"] == 40.0
    assert at_nine["departures_by_carrier"] == {"AA": 2, "B6": 1}
    assert at_nine["latest_destinations"] == ["SFO", "LAX", "BOS"]


def test_congestion_is_forgotten_hour_by_hour():
    morning = feed(origin_congestion, MORNING)
    later = morning.at(["2013-07-01T10:00:00Z", "2013-07-01T10:00:01Z"], origin="JFK")
    assert [values["count_1h"] for values in later] == [1, 1]  # the hop of an hour is a minute
    assert morning.at("2013-07-01T10:01:00Z", origin="JFK")["count_1h"] == 0
    assert morning.at("2013-07-02T10:01:00Z", origin="JFK")["dep_delay_mean_24h"] is None


def test_an_airport_without_flights_has_no_delay():
    empty = feed(origin_congestion, MORNING).at("2013-07-01T09:00:00Z", origin="EWR")
    assert (empty["count_24h"], empty["dep_delay_mean_24h"]) == (0, None)


def test_a_delay_that_is_corrected_counts_once():
    corrected = flight("2013-07-01T08:10:00Z", 14.0, flight_id="one")
    first = flight("2013-07-01T08:00:00Z", 4.0, flight_id="one")
    values = feed(origin_congestion, [first, corrected]).at("2013-07-01T09:00:00Z", origin="JFK")
    assert (values["count_1h"], values["dep_delay_mean_1h"]) == (1, 14.0)


def test_punctuality_is_a_share_of_late_flights():
    values = feed(carrier_punctuality, MORNING).at("2013-07-01T12:00:00Z", carrier=["AA", "B6"])
    assert [each["late_share_24h"] for each in values] == [0.5, 0.5]
    assert [each["aircraft_in_use"] for each in values] == [2, 1]


def test_the_last_departure_of_an_aircraft_expires():
    fed = feed(aircraft_last_departure, MORNING)
    seen = fed.at("2013-07-01T09:00:00Z", tailnum=["N1", "N2", "N9"])
    assert [values["left_for"] for values in seen] == ["ORD", "LAX", None]
    assert fed.at("2013-07-04T09:00:00.000001Z", tailnum="N1")["left_for"] is None


def test_the_wind_is_told_in_kilometres():
    hour = {"origin": "JFK", "time_hour": "2013-07-01T08:00:00Z", "wind_speed": 10.0}
    others = ["temp", "humid", "pressure", "visib", "wind_gust", "wind_dir"]
    types = dict.fromkeys(others, "float64")  # of columns that the event leaves out
    values = feed(origin_weather, [hour], dtypes=types).at("2013-07-01T09:00:00Z", origin="JFK")
    assert values["wind_kmh"] == 10.0 * 1.609344
    assert values["wind_vector"] is None
