"""Features of flights, each as of the instant at which somebody asks.

Ask at the scheduled departure: whatever these views answer was known then.
"""

from datetime import timedelta

import polars as pl

from definitions.sources import airports, departures, landings, planes, timetable, weather
from featurestore import (
    Aggregate,
    Entity,
    FeatureView,
    Field,
    RequestSource,
    on_demand_feature_view,
)

origin = Entity(name="origin", join_keys=["origin"], description="An airport of departure.")
airport = Entity(name="airport", join_keys=["airport"], description="Any airport, by FAA code.")
aircraft = Entity(name="aircraft", join_keys=["tailnum"], description="An aircraft.")
carrier = Entity(name="carrier", join_keys=["carrier"], description="An airline.")
destination = Entity(name="destination", join_keys=["dest"], description="Where a flight goes.")

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    source=weather,
    # Observations are hourly; one that is older than three hours says nothing about now.
    ttl=timedelta(hours=3),
    features=[
        "temp",
        "humidity",
        "pressure",
        "visibility",
        "wind_gust",
        Field(name="wind_kmh", expression="wind_speed * 1.609344"),
        Field(
            name="wind_vector",
            dtype="vector<float64, 2>",
            expression="""
                CASE WHEN wind_dir IS NOT NULL AND wind_speed IS NOT NULL THEN
                    array_value(wind_speed * sin(radians(wind_dir)),
                                wind_speed * cos(radians(wind_dir)))
                END
            """,
            description="Miles an hour from the east and from the north.",
        ),
    ],
    schedule="5 * * * *",
    owner="operations",
    description="The newest observation at the airport.",
)

aircraft_facts = FeatureView(
    name="aircraft_facts",
    entities=[aircraft],
    source=planes,
    features=[
        "manufacturer",
        "model",
        Field(name="built", dtype="int32", expression="CAST(year AS INTEGER)"),
        "seats",
        "engines",
    ],
    owner="fleet",
    description="What the register says of an aircraft.",
)

airport_facts = FeatureView(
    name="airport_facts",
    entities=[airport],
    source=airports,
    features=["latitude", "longitude", "elevation_ft", Field(name="zone", expression="tzone")],
    owner="operations",
    description="What the register says of an airport.",
)

aircraft_last_departure = FeatureView(
    name="aircraft_last_departure",
    entities=[aircraft],
    source=departures,
    ttl=timedelta(days=3),
    features=[
        Field(name="left_at", expression="departed_at"),
        Field(name="left_from", expression="origin"),
        Field(name="left_for", expression="dest"),
        Field(name="left_late_minutes", expression="dep_delay"),
    ],
    owner="fleet",
    description="The last time that the aircraft left New York.",
)

# Two flights of a carrier may leave for one destination in the same minute and land in the same
# minute. Then two rows tie: which of them is the newest is settled by law T2, alike in tables and
# online, and the run reports the tie.
route_last_flight = FeatureView(
    name="route_last_flight",
    entities=[carrier, destination],
    source=landings,
    ttl=timedelta(days=7),
    features=[
        Field(name="flight_number", expression="flight"),
        Field(name="minutes_in_the_air", expression="air_time"),
        Field(name="arrived_late_minutes", expression="arr_delay"),
    ],
    owner="network",
    description="The carrier's last flight to the destination that has landed.",
)

day_plan = FeatureView(
    name="day_plan",
    source=timetable,
    # The longest local day has 25 hours.
    ttl=timedelta(hours=25),
    features=[
        Field(name="flights_planned", expression="flights"),
        Field(name="carriers_flying", dtype="list<string>", expression="carriers"),
    ],
    owner="network",
    description="What the timetable has for the day, for all airports together.",
)

# Windows are half-open and end before the instant of the question: a flight that leaves at that
# very instant is not in them. So a model may be asked at the scheduled departure itself.
origin_congestion = FeatureView(
    name="origin_congestion",
    entities=[origin],
    source=departures,
    where="dep_delay IS NOT NULL",
    features=[
        Aggregate("mean", column="dep_delay", windows=["1h", "6h", "24h"]),
        Aggregate("max", column="dep_delay", windows=["6h"]),
        Aggregate("count", windows=["1h", "24h"]),
        Aggregate("count", windows=["6h"], by="carrier", name="departures_by_carrier"),
        Aggregate("last_k", column="dest", k=3, windows=["1h"], name="latest_destinations"),
    ],
    schedule="* * * * *",
    owner="operations",
    description="How busy the airport is, and how late.",
)

carrier_punctuality = FeatureView(
    name="carrier_punctuality",
    entities=[carrier],
    source=departures,
    where="dep_delay IS NOT NULL",
    features=[
        Aggregate("stddev", column="dep_delay", windows=["24h", "7d"]),
        Aggregate("approx_quantile", column="dep_delay", quantile=0.9, windows=["7d"],
                  name="late_at_worst"),
        Aggregate("mean", column="CAST(dep_delay > 15 AS INTEGER)", windows=["24h", "7d"],
                  name="late_share"),
        Aggregate("count_distinct", column="tailnum", windows=["24h"], name="aircraft_in_use"),
    ],
    owner="network",
    description="How well the airline keeps to its timetable.",
)  # fmt: skip

POOR_SIGHT_MILES = 3
STRONG_WIND_KMH = 30

flight_plan = RequestSource(
    name="flight_plan",
    fields=[
        Field(name="scheduled_at", dtype="timestamp"),
        Field(name="distance", dtype="float64", description="Miles."),
    ],
)


@on_demand_feature_view(
    sources=[
        origin_weather["wind_kmh", "visibility"],
        aircraft_last_departure["left_at"],
        flight_plan,
    ],
    features=[
        Field(name="hours_since_last_departure", dtype="float64"),
        Field(name="wind_per_100_miles", dtype="float64"),
        Field(name="poor_sight_and_wind", dtype="bool"),
    ],
    owner="operations",
)
def departure_conditions(inputs: pl.DataFrame) -> pl.DataFrame:
    """Computed when asked: what needs the flight's own plan."""
    since = (inputs["scheduled_at"] - inputs["left_at"]).dt.total_seconds()
    return inputs.select(
        hours_since_last_departure=since / 3600,
        wind_per_100_miles=pl.col("wind_kmh") * 100 / pl.col("distance"),
        poor_sight_and_wind=(pl.col("visibility") < POOR_SIGHT_MILES)
        & (pl.col("wind_kmh") > STRONG_WIND_KMH),
    )
