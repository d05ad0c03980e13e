"""What the models take: each service is the list of features of one of them."""

from definitions.views import (
    aircraft_facts,
    aircraft_last_departure,
    airport_facts,
    carrier_punctuality,
    day_plan,
    departure_conditions,
    origin_congestion,
    origin_weather,
    route_last_flight,
)
from featurestore import FeatureService

# The airports' register is joined twice, under other keys; so two features are called `latitude`,
# and the service is asked for with full_feature_names=True.
departure_delay = FeatureService(
    name="departure_delay",
    features=[
        origin_weather,
        airport_facts.alias("origin_airport", join_keys={"airport": "origin"})[
            "latitude", "longitude"
        ],
        airport_facts.alias("destination_airport", join_keys={"airport": "dest"})[
            "latitude", "longitude", "zone"
        ],
        aircraft_facts,
        aircraft_last_departure,
        route_last_flight,
        day_plan,
        departure_conditions,
    ],
    owner="delay-model",
    description="Everything that is known of a flight at its scheduled departure.",
)

airport_traffic = FeatureService(
    name="airport_traffic",
    features=[
        origin_congestion,
        carrier_punctuality["late_share_24h", "late_at_worst", "aircraft_in_use"],
        aircraft_last_departure["left_from", "left_late_minutes"],
    ],
    owner="operations",
    description="What is going on at the airports, up to the last flight that left.",
)

airport_board = FeatureService(
    name="airport_board",
    features=[
        origin_weather["temp", "wind_kmh", "visibility"],
        day_plan["flights_planned"],
    ],
    owner="terminal-screens",
    description="What the screens of an airport show.",
)
