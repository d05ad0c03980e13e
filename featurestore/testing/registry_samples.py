"""Sample states and runs for tests of registries, with every field away from its default."""

from __future__ import annotations

from typing import Any

from featurestore.compile.plan import (
    AggregatePlan,
    Catalog,
    Column,
    EntityPlan,
    FeaturePlan,
    OnDemandPlan,
    Selection,
    ServicePlan,
    SourcePlan,
    ViewPlan,
)
from featurestore.ports.registry import ProjectState, Registry, RetiredTable, Run

ADA, BOB = "ada", "Bob Ünïcøde"
NOON_US = 1_357_041_600_000_000
NOON = "2013-01-01T12:00:00Z"
LAST_INSTANT_US = 253_402_300_799_999_999
FIRST_INSTANT_US = -62_135_596_800_000_000
TEXT = "größe ≤ 5 · 温度 🌡 \"quoted\" 'single' \\ %s :p \n\t end\x00"

_SOURCE = SourcePlan(
    name="weather",
    kind="query",
    path="data/wetter größe.parquet",
    query="select ':x' as a",
    event_timestamp="time_hour",
    created_timestamp="recorded_at",
    timezone="America/New_York",
    field_mapping={"tmp": "temp"},
    event_id="id",
    version="revision",
    deleted="gone",
    stream="redis://localhost:6379/0/weather",
)
_AGGREGATE = AggregatePlan(
    function="approx_quantile",
    input=1,
    by=2,
    size=2**62,
    hop=300_000_000,
    head_hop=60_000_000,
    offset=-1,
    k=3,
    limit=5,
    element_wise=True,
    quantile=0.1,
    relative_error=1e-3,
    default=0.1 + 0.2,
)


def view_plan(name: str = "weather", fingerprint: str = "00112233aabbccdd") -> ViewPlan:
    """Return a view with every field set to something else than its default."""
    key = Column(name="origin", dtype="string")
    return ViewPlan(
        name=name,
        entities=("origin",),
        join_keys=(key,),
        features=(
            FeaturePlan(name="temp", dtype="float64", description=TEXT),
            FeaturePlan(name="wind", dtype="float32", expression="wind_speed * 1.6"),
        ),
        source=_SOURCE,
        aggregates=(_AGGREGATE,),
        inputs=(FeaturePlan(name="_input_0", dtype="float64", expression=TEXT, description=TEXT),),
        where="temp > -10",
        ttl_us=2**62,
        online=False,
        schedule="*/15 * * * *",
        description=TEXT,
        owner=BOB,
        tags={"tier": "1", "größe": "🌡"},
        fingerprint=fingerprint,
        table_fingerprint=fingerprint[::-1],
    )


def full_state(project: str, revision: int = 0) -> ProjectState:
    """Return a state in which every field of every plan differs from its default."""
    view = view_plan()
    selection = Selection(
        view="weather", features=("temp",), alias="there", join_keys={"origin": "dest"}
    )
    about: dict[str, Any] = {"description": TEXT, "owner": BOB, "tags": {"a": "b"}}
    entity = EntityPlan(name="origin", join_keys=view.join_keys, **about)
    derived = OnDemandPlan(
        name="wind_per_mile",
        inputs=(selection,),
        request=(Column(name="distance", dtype="float64"),),
        features=(FeaturePlan(name="ratio", dtype="float64"),),
        **about,
        code_fingerprint="c0de",
        fingerprint="d0d0",
    )
    service = ServicePlan(
        name="delays",
        features=(selection,),
        **about,
        fingerprint="5e41ce",
    )
    return ProjectState(
        revision=revision,
        catalog=Catalog(
            project=project,
            entities={"origin": entity},
            views={"weather": view},
            on_demand={"wind_per_mile": derived},
            services={"delays": service},
        ),
        serving={"weather": view_plan(fingerprint="ffee000000000011")},
        retired=(RetiredTable(view="weather", table_fingerprint="01d", retired_at_us=-5),),
        former_services={"delays": service.model_copy(update={"fingerprint": "f0e"})},
        former_on_demand={"wind_per_mile": derived.model_copy(update={"fingerprint": "f0d"})},
    )


def with_views(state: ProjectState, *views: ViewPlan) -> ProjectState:
    """Return the state with these views instead of its own."""
    catalog = state.catalog.model_copy(update={"views": {view.name: view for view in views}})
    return state.model_copy(update={"catalog": catalog})


def apply(
    registry: Registry, state: ProjectState, *, by: str = ADA, at: int = NOON_US, what: str = "x"
) -> ProjectState:
    """Publish with the arguments that a test does not care about."""
    return registry.publish(state, applied_by=by, applied_at_us=at, summary=what)


def full_run(run_id: str = "r1", *, started_at_us: int = NOON_US, view: str = "weather") -> Run:
    """Return a run with every field set to something else than its default."""
    return Run(
        id=run_id,
        view=view,
        table_fingerprint="aabb",
        kind="materialize",
        state="failed",
        start_us=FIRST_INSTANT_US,
        end_us=LAST_INSTANT_US,
        started_at_us=started_at_us,
        finished_at_us=started_at_us + 1,
        host="größe",
        pid=2**22,
        attempt=3,
        rows_read=2**40,
        rows_written=4,
        rows_pushed=3,
        rows_rejected=2,
        rows_tied=1,
        error=f"disk full at /data/\udcff{TEXT}",
    )
