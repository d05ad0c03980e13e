"""Where the rows come from, and when each of them happened and was learnt.

The data invites a leak. A flight's row holds its schedule and its outcome side by side, as if both
had been known at once; but `dep_delay` is known only when the aircraft has left, and `arr_delay`
only when it has landed. A model that is asked at the scheduled departure may use neither. So no
source here takes the schedule for the event:

- a departure happens at the scheduled instant *plus the delay*;
- how the flight went is learnt at the landing, which `created_timestamp` says.

`time_hour` is the scheduled hour as an instant. The other clock columns are wall clocks: New York's
for departures, the destination's for arrivals; they cross midnight, time zones and daylight saving.
Adding minutes to an instant is safe, adding them to a wall clock is not.
"""

import os

from featurestore import FileSource, StreamSource

# For all 328,521 flights that left, New York's clock at `departed_at` shows exactly `dep_time`. A
# flight number is used once a day at an airport, so these make an id that lasts.
past_departures = FileSource(
    name="past_departures",
    query="""
        SELECT carrier || flight || ' ' || make_date(year, month, day) || ' ' || origin
                   AS flight_id,
               origin, dest, carrier, flight, tailnum, dep_delay,
               time_hour + to_minutes(minute) + to_minutes(CAST(dep_delay AS BIGINT)) AS departed_at
        FROM 'definitions/data/flights.parquet'
        WHERE dep_delay IS NOT NULL  -- a cancelled flight never left
    """,
    event_timestamp="departed_at",
    created_timestamp="departed_at",
    event_id="flight_id",
    description="Flights that left, at the instant when they did.",
)

# What is pushed to the stream has the columns of the history; a flight that is in both is one.
# Where it flows is a matter of the installation: docker/compose.yaml names a Redis.
departures = StreamSource(
    name="departures",
    batch=past_departures,
    stream=os.environ.get("DEPARTURES_STREAM", "lmdb:data/streams/departures"),
    description="The same, and those that leave now.",
)

# The landing is the first instant after departure and air time at which the destination's clock
# shows `arr_time`. It agrees with scheduled arrival + `arr_delay` for 327,345 of 327,346 flights;
# the other landed in Los Angeles in the hour that the clocks of 3 November showed twice, and is
# taken for the later one. Four destinations, in Puerto Rico and the Virgin Islands, are missing
# from the airports; they share a zone.
landings = FileSource(
    name="landings",
    query="""
        WITH flown AS (
            SELECT f.*,
                   time_hour + to_minutes(minute) + to_minutes(CAST(dep_delay AS BIGINT))
                       AS departed_at,
                   coalesce(a.tzone, 'America/Puerto_Rico') AS zone,
                   CAST(arr_time AS BIGINT) AS clock
            FROM 'definitions/data/flights.parquet' AS f
            LEFT JOIN 'definitions/data/airports.parquet' AS a ON a.faa = f.dest
            WHERE air_time IS NOT NULL  -- a diverted flight has none
        ),
        arrived AS (
            SELECT *,
                   timezone(zone, departed_at + to_minutes(CAST(air_time AS BIGINT))) AS down,
                   date_trunc('day', down) + to_minutes(clock // 100 * 60 + clock % 100) AS shown
            FROM flown
        )
        SELECT carrier, dest, flight, air_time, arr_delay, departed_at,
               timezone(zone, shown + CASE WHEN shown < down THEN to_days(1) ELSE to_days(0) END)
                   AS landed_at
        FROM arrived
    """,
    event_timestamp="departed_at",
    created_timestamp="landed_at",
    description="Flights that left and arrived: an event at departure, learnt at landing.",
)

weather = FileSource(
    name="weather",
    path="definitions/data/weather.parquet",
    event_timestamp="time_hour",
    field_mapping={"dewp": "dew_point", "humid": "humidity", "visib": "visibility"},
    description="Hourly observations at the three airports.",
)

# The timetable is known long before the day, so counting it leaks nothing. A local day begins at
# New York's midnight: a wall-clock time, which becomes an instant under the declared zone.
timetable = FileSource(
    name="timetable",
    query="""
        SELECT make_timestamp(year, month, day, 0, 0, 0) AS local_midnight,
               count(*) AS flights,
               list_sort(list(DISTINCT carrier)) AS carriers
        FROM 'definitions/data/flights.parquet'
        GROUP BY ALL
    """,
    event_timestamp="local_midnight",
    timezone="America/New_York",
    description="What is planned for each local day, cancelled flights included.",
)

# Registers carry no dates. They count as known since the year began.
planes = FileSource(
    name="planes",
    query="""
        SELECT *, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS listed_at
        FROM 'definitions/data/planes.parquet'
    """,
    event_timestamp="listed_at",
    description="The register of aircraft.",
)

airports = FileSource(
    name="airports",
    query="""
        SELECT *, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS listed_at
        FROM 'definitions/data/airports.parquet'
    """,
    event_timestamp="listed_at",
    field_mapping={"faa": "airport", "lat": "latitude", "lon": "longitude", "alt": "elevation_ft"},
    description="The register of airports.",
)
