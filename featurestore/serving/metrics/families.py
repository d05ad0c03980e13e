"""Every metric that a server has: its name, its kind, its labels, and how processes add up.

Labels hold only what exists: methods, statuses, views, services and sources of the applied
definitions, classes of errors. Nothing that a caller wrote becomes a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "featurestore_"
_REQUEST_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_STORE_SECONDS = (0.00001, 0.000025, 0.00005, *_REQUEST_SECONDS[:-2])
_ENTITIES = (
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
)  # fmt: skip
_MINUTE, _HOUR, _DAY = 60.0, 3_600.0, 86_400.0
_STALENESS = (
    1.0, 5.0, 15.0, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR,
    _DAY, 2 * _DAY, 7 * _DAY, 30 * _DAY, 90 * _DAY,
)  # fmt: skip

Kind = Literal["counter", "gauge", "histogram"]
Together = Literal["sum", "min", "max"]


@dataclass(frozen=True)
class Family:
    """A metric.

    Attributes:
        name: Without the prefix.
        kind: What Prometheus takes it for.
        help: What it counts or measures, for people.
        labels: What its series differ by.
        bounds: The upper bounds of a histogram's buckets, ascending; the last, infinity, is left
            out.
        together: How the gauges of several processes become one. Counters and histograms add up.
        sparse: Whether a series of zero is left out: it says that something no longer is.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    together: Together = "sum"
    sparse: bool = False

    @property
    def size(self) -> int:
        """The numbers of a series: of a histogram the sum, then one a bucket."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


REQUESTS = Family(
    "requests_total", "counter", "Calls that ended, by gRPC status.", ("method", "status")
)
SECONDS = Family(
    "request_seconds", "histogram", "From a call's coming to its end, whatever its status.",
    ("method",), _REQUEST_SECONDS,
)  # fmt: skip
IN_FLIGHT = Family("requests_in_flight", "gauge", "Calls that a thread is at.")
ENTITIES = Family(
    "request_entities", "histogram", "Entity rows of a lookup that was answered.", (), _ENTITIES
)
ANSWERS = Family(
    "answers_total", "counter", "Lookups answered, by feature service; empty where features were"
    " named one by one.", ("service",),
)  # fmt: skip
VALUES = Family("values_total", "counter", "Feature values answered.", ("view", "status"))
STALENESS = Family(
    "staleness_seconds", "histogram", "From the newest event in an answer to the answer's instant;"
    " not of aggregated views, whose values are of the instant itself.", ("view",), _STALENESS,
)  # fmt: skip
NEWEST_EVENT = Family(
    "newest_event_timestamp_seconds", "gauge", "The newest event that was answered with.",
    ("view",), together="max", sparse=True,
)  # fmt: skip
STORE_SECONDS = Family(
    "store_read_seconds", "histogram", "A round trip to the online store, by operation.",
    ("operation",), _STORE_SECONDS,
)  # fmt: skip
STORE_FAILURES = Family(
    "store_failures_total", "counter", "Round trips that failed, by class of error.", ("error",)
)
STORE_UP = Family(
    "online_store_up", "gauge", "1 while the online store answers a ping; of several processes the"
    " lowest.", together="min",
)  # fmt: skip
BREAKER_OPEN = Family(
    "breaker_open", "gauge", "Processes that leave the online store alone, as it keeps failing."
)
PLANS = Family(
    "plans_total", "counter", "Lookups answered, by whether their request had been resolved before"
    " (hit) or not (miss).", ("result",),
)  # fmt: skip
SHED = Family(
    "shed_requests_total", "counter", "Calls refused at once: the queue was full (queue), or the"
    " store was left alone (breaker).", ("reason",),
)  # fmt: skip
PUSHED = Family(
    "pushed_rows_total", "counter", "Events that came, by gRPC status of their push.",
    ("source", "status"),
)  # fmt: skip
REVISION = Family(
    "definitions_revision", "gauge",
    "The revision that is served; of several processes the lowest.", together="min",
)  # fmt: skip
VIEW_INFO = Family(
    "view_info", "gauge", "1 for the definition that answers.", ("view", "fingerprint"),
    together="max", sparse=True,
)  # fmt: skip
MATERIALIZED_UNTIL = Family(
    "materialized_until_timestamp_seconds", "gauge", "The end of the newest interval that was"
    " materialized.", ("view",), together="max", sparse=True,
)  # fmt: skip
MATERIALIZED_AT = Family(
    "materialized_timestamp_seconds", "gauge", "When the last materialization that succeeded"
    " ended.", ("view",), together="max", sparse=True,
)  # fmt: skip
SERVED_LOG = Family(
    "served_log_rows_total", "counter", "Rows that were drawn for the log of what was served: in"
    " its tables (logged), without room in the queue (dropped), or lost otherwise (failed).",
    ("outcome",),
)  # fmt: skip
PROCESSES = Family("processes", "gauge", "Processes that serve.")

FAMILIES = (
    REQUESTS, SECONDS, IN_FLIGHT, SHED, ENTITIES, ANSWERS, VALUES, STALENESS, NEWEST_EVENT,
    STORE_SECONDS, STORE_FAILURES, STORE_UP, BREAKER_OPEN, PLANS, PUSHED, REVISION, VIEW_INFO,
    MATERIALIZED_UNTIL, MATERIALIZED_AT, SERVED_LOG, PROCESSES,
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
