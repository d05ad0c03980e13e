"""Apply publishes all at once, reads go over to complete tables, nothing else is deleted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from featurestore.adapters.memory_online import MemoryOnlineStore
from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.adapters.memory_tables import MemoryTables
from featurestore.clock import FixedClock
from featurestore.compile.declared import Declarations
from featurestore.compile.plan import table_id
from featurestore.compile.request import resolve
from featurestore.errors import (
    ConflictError,
    DefinitionError,
    DestructiveChangeError,
    NotMaterializedError,
    OnlineStoreUnavailableError,
)
from featurestore.model.columns import Field
from featurestore.model.declarations import FeatureService, on_demand_feature_view
from featurestore.ports.registry import LedgerEntry
from featurestore.ports.tables import TableFile
from featurestore.semantics.keys import namespace
from featurestore.semantics.rows import pack
from featurestore.services.registration import Registration
from tests.unit.world import World, source, stats

NOW = 1_700_000_000_000_000


class Shop:
    """A project over memory adapters, with what jobs would do to its tables."""

    def __init__(self, world, project="shop", *, registry=None, tables=None, online=None):
        self.project = project
        self.world = world
        self.clock = FixedClock(NOW)
        self.registry = registry or MemoryRegistry()
        self.tables = tables or MemoryTables(world.folder / "offline")
        self.online = online or MemoryOnlineStore()
        self.registration = Registration(
            project,
            registry=self.registry,
            engine=world.engine,
            sources=world.sources,
            clock=self.clock,
            tables=self.tables,
            online=self.online,
        )

    @property
    def state(self):
        return self.registry.state(self.project)

    def apply(self, *declarations, **options):
        declared = Declarations.of(*declarations)
        return self.registration.apply(declared, **{"applied_by": "ann"} | options)

    def plan(self, *declarations):
        return self.registration.plan(Declarations.of(*declarations))

    def fill(self, plan, *intervals):
        """Do as a job does: commit a file, push a row, write the ledger."""
        name = table_id(self.project, plan)
        snapshot = self.tables.snapshot(name)
        file = TableFile(f"event_period=all/{len(snapshot.files)}.parquet", "all", 1, 1, 0, 0)
        path = Path(self.tables.folder(name)) / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"rows")
        self.tables.commit(
            name, pa.schema([]), read_version=snapshot.version, add=[file], metadata={}
        )
        row = pack(plan.row_schema, _int64(5), _int64(5), [_column(f) for f in plan.features])
        self.online.write([self.space(plan) + b"key"], row, None)
        self.note(plan, *intervals)
        return plan

    def note(self, plan, *intervals):
        ledger = self.registry.ledger(self.project, plan.name, plan.table_fingerprint)
        entries = tuple(LedgerEntry(start=start, end=end) for start, end in intervals)
        self.registry.write_ledger(
            self.project,
            plan.name,
            plan.table_fingerprint,
            ledger.model_copy(update={"entries": entries}),
        )

    def space(self, plan):
        return namespace(self.project, plan.name, plan.table_fingerprint)

    def holds(self, plan):
        """Return whether table, online values and ledger are there; all or none in these tests."""
        found = {
            bool(self.tables.snapshot(table_id(self.project, plan)).files),
            Path(self.tables.folder(table_id(self.project, plan))).exists(),
            bool(self.online.count(self.space(plan))),
            bool(self.registry.ledger(self.project, plan.name, plan.table_fingerprint).version),
        }
        assert len(found) == 1
        return found.pop()


def _int64(value):
    import numpy as np

    return np.array([value], dtype=np.int64)


def _column(feature):
    return pa.array([None], feature.type.arrow)


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    world.drivers()
    return world


@pytest.fixture
def shop(world):
    return Shop(world)


ALL = (0, 100)


def test_a_first_apply_publishes_and_serves(shop):
    result = shop.apply(stats(), FeatureService(name="s", features=["stats"]))
    assert (result.revision, result.published, result.rebuilding, result.deleted) == (
        1,
        True,
        (),
        (),
    )
    assert shop.state.serving == shop.state.catalog.views
    assert [*shop.state.catalog.services] == ["s"]
    (change,) = shop.registry.changes("shop")
    assert (change.applied_by, change.applied_at_us) == ("ann", NOW)
    assert (
        change.summary == "added entity driver; added feature_view stats; added feature_service s"
    )


def test_planning_writes_nothing(shop):
    planned = shop.plan(stats())
    assert [item.action for item in planned.plan.changes] == ["added", "added"]
    assert (planned.base.revision, shop.state.revision, shop.registry.versions("shop")) == (
        0,
        0,
        [],
    )


def test_applying_the_same_again_publishes_nothing(shop):
    shop.apply(stats())
    result = shop.apply(stats())
    assert (result.revision, result.published, result.plan.changes) == (1, False, ())
    assert len(shop.registry.changes("shop")) == 1


def test_a_wrong_definition_leaves_everything_as_it_was(shop):
    shop.apply(stats())
    before = shop.state
    with pytest.raises(DefinitionError):
        shop.apply(stats(where="nope > 1"))
    assert shop.state == before


def test_what_does_not_touch_the_rows_serves_at_once(shop):
    shop.apply(stats())
    shop.fill(shop.state.serving["stats"], ALL)
    result = shop.apply(stats(ttl=timedelta(hours=1)))
    assert result.rebuilding == ()
    assert shop.state.serving["stats"].ttl_us == 3_600_000_000
    assert shop.holds(shop.state.serving["stats"])


def test_a_changed_view_without_data_serves_at_once(shop):
    shop.apply(stats())
    result = shop.apply(stats(features=["trips"]))
    assert result.rebuilding == ()
    assert shop.state.serving == shop.state.catalog.views


def test_a_changed_view_keeps_serving_until_its_new_table_covers_as_much(shop):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], (0, 50), (60, 100))
    result = shop.apply(stats(features=["rate", "trips"]))
    new = shop.state.catalog.views["stats"]
    assert (result.rebuilding, shop.state.serving["stats"]) == (("stats",), old)

    assert not shop.registration.complete(new)
    shop.fill(new, (0, 99))
    assert not shop.registration.complete(new)
    shop.note(new, (0, 40), (40, 120))
    assert shop.state.serving["stats"] == old
    assert shop.registration.complete(new)
    assert shop.state.serving["stats"] == new
    assert [(t.view, t.table_fingerprint, t.retired_at_us) for t in shop.state.retired] == [
        ("stats", old.table_fingerprint, NOW)
    ]
    assert shop.registry.changes("shop")[0].summary == "'stats' serves from its new table"

    revision = shop.state.revision
    assert shop.registration.complete(new)
    assert shop.state.revision == revision
    assert not shop.registration.complete(old)


def test_a_run_of_a_definition_that_was_replaced_switches_nothing(shop):
    shop.apply(stats())
    first = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(features=["rate", "trips"]))
    second = shop.fill(shop.state.catalog.views["stats"], ALL)
    shop.apply(stats(where="rate > 0"), allow_destructive=True)
    assert not shop.registration.complete(second)
    assert shop.state.serving["stats"] == first
    # Nobody needs the table of the second definition any more.
    assert [t.table_fingerprint for t in shop.state.retired] == [second.table_fingerprint]


def test_a_view_that_is_gone_is_not_completed(shop):
    shop.apply(stats(), stats(name="other"))
    plan = shop.state.catalog.views["stats"]
    shop.apply(stats(name="other"))
    assert not shop.registration.complete(plan)


def test_going_back_while_the_new_table_is_built_serves_on(shop):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    half = shop.fill(shop.state.catalog.views["stats"], (0, 10))
    result = shop.apply(stats())
    assert (result.rebuilding, shop.state.serving["stats"]) == ((), old)
    assert [t.table_fingerprint for t in shop.state.retired] == [half.table_fingerprint]


def test_a_retired_table_that_is_applied_again_is_taken_back(shop):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    new = shop.fill(shop.state.catalog.views["stats"], ALL)
    assert shop.registration.complete(new)
    result = shop.apply(stats())
    # It still covers all that the other one does, so it serves at once.
    assert (result.rebuilding, shop.state.serving["stats"]) == ((), old)
    assert [t.table_fingerprint for t in shop.state.retired] == [new.table_fingerprint]
    assert shop.registration.sweep(NOW + 10, 0) == (table_id("shop", new),)
    assert shop.holds(old)
    assert not shop.holds(new)


def test_dropping_data_must_be_allowed(shop):
    shop.apply(stats(features=["rate", "trips"]))
    shop.fill(shop.state.serving["stats"], ALL)
    before = shop.state
    with pytest.raises(DestructiveChangeError) as caught:
        shop.apply(stats(features=["rate"]))
    assert "'stats': the values of 'trips' are dropped" in str(caught.value)
    assert "--allow-destructive" in str(caught.value)
    assert shop.state == before
    assert shop.apply(stats(features=["rate"]), allow_destructive=True).rebuilding == ("stats",)


def test_data_counts_even_before_the_ledger_knows_of_it(shop):
    shop.apply(stats())
    plan = shop.fill(shop.state.serving["stats"])
    shop.registry.delete_ledger("shop", plan.name, plan.table_fingerprint)
    with pytest.raises(DestructiveChangeError):
        shop.apply(stats(features=["trips"]))


def test_a_removed_view_takes_its_table_online_values_and_ledger_with_it(shop):
    shop.apply(stats(), stats(name="other"))
    gone = shop.fill(shop.state.serving["stats"], ALL)
    kept = shop.fill(shop.state.serving["other"], ALL)
    with pytest.raises(DestructiveChangeError, match="drops data of 1 feature view;"):
        shop.apply(stats(name="other"))
    result = shop.apply(stats(name="other"), allow_destructive=True)
    assert result.deleted == (table_id("shop", gone),)
    assert result.revision == shop.state.revision == 3
    assert [*shop.state.serving] == [*shop.state.catalog.views] == ["other"]
    assert (shop.state.retired, shop.holds(gone), shop.holds(kept)) == ((), False, True)


def test_a_removed_view_that_is_being_rebuilt_leaves_nothing(shop):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(features=["rate", "trips"]))
    new = shop.fill(shop.state.catalog.views["stats"], (0, 10))
    result = shop.apply(source(), allow_destructive=True)
    assert set(result.deleted) == {table_id("shop", old), table_id("shop", new)}
    assert not shop.holds(old)
    assert not shop.holds(new)


def test_a_view_without_data_is_removed_without_a_word(shop):
    shop.apply(stats())
    assert shop.apply(source()).published
    assert shop.state.catalog.views == {}


class Failing(MemoryOnlineStore):
    """An online store that is gone."""

    broken = True

    def delete_namespace(self, namespace):
        if self.broken:
            raise OnlineStoreUnavailableError("The online store cannot be reached.")
        return super().delete_namespace(namespace)


def test_what_a_crash_left_is_deleted_by_the_next_apply(world):
    shop = Shop(world, online=Failing())
    shop.apply(stats())
    plan = shop.fill(shop.state.serving["stats"], ALL)
    with pytest.raises(OnlineStoreUnavailableError) as caught:
        shop.apply(source(), allow_destructive=True)
    assert "definitions are applied" in str(caught.value.hint)
    assert shop.state.catalog.views == {}
    assert [t.table_fingerprint for t in shop.state.retired] == [plan.table_fingerprint]
    assert shop.online.count(shop.space(plan)) == 1

    shop.online.broken = False
    result = shop.apply(source())
    assert (result.published, result.deleted) == (False, (table_id("shop", plan),))
    assert not shop.holds(plan)
    assert shop.state.retired == ()


def test_a_definition_that_comes_back_before_its_table_was_deleted_is_built_anew(world):
    shop = Shop(world, online=Failing())
    shop.apply(stats())
    plan = shop.fill(shop.state.serving["stats"], ALL)
    with pytest.raises(OnlineStoreUnavailableError):
        shop.apply(source(), allow_destructive=True)
    shop.apply(stats())
    assert (shop.state.retired, shop.state.serving["stats"]) == ((), plan)
    # Its ledger went first, so nobody takes what is left for complete.
    assert shop.registry.ledger("shop", "stats", plan.table_fingerprint).entries == ()
    assert shop.registration.sweep(NOW + 10, 0) == ()


def test_former_tables_are_deleted_after_a_while(shop):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    new = shop.fill(shop.state.catalog.views["stats"], ALL)
    shop.registration.complete(new)
    assert shop.registration.sweep(NOW + 9, 10) == ()
    assert shop.holds(old)
    revision = shop.state.revision
    assert shop.registration.sweep(NOW + 10, 10) == (table_id("shop", old),)
    assert (shop.holds(old), shop.holds(new)) == (False, True)
    assert (shop.state.retired, shop.state.revision) == ((), revision + 1)
    assert shop.registration.sweep(NOW + 10, 10) == ()
    assert shop.state.revision == revision + 1


def test_of_two_appliers_the_second_is_told_who_was_first(shop):
    mine = shop.plan(stats())
    shop.apply(stats(name="other"), applied_by="bob")
    with pytest.raises(ConflictError) as caught:
        shop.registration.apply(mine, applied_by="ann")
    assert "'bob'" in str(caught.value)
    assert "plan" in str(caught.value.hint)
    assert [*shop.state.catalog.views] == ["other"]


def test_a_plan_is_applied_as_it_was_shown(shop):
    planned = shop.plan(stats())
    shop.world.drivers("elsewhere.parquet")
    (shop.world.folder / "drivers.parquet").unlink()
    result = shop.registration.apply(planned, applied_by="ann")
    assert (result.plan, shop.state.catalog) == (planned.plan, planned.catalog)


class Racing(MemoryRegistry):
    """A registry in which somebody else publishes just before each of our first publications."""

    races = 0

    def publish(self, state, **options):
        if self.races:
            self.races -= 1
            super().publish(self.state(state.catalog.project), **options | {"summary": "race"})
        return super().publish(state, **options)


def test_completing_tries_again_when_others_publish(world):
    shop = Shop(world, registry=Racing())
    shop.apply(stats())
    shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    new = shop.fill(shop.state.catalog.views["stats"], ALL)
    shop.registry.races = 3
    assert shop.registration.complete(new)
    assert shop.state.serving["stats"] == new
    assert [c.summary for c in shop.registry.changes("shop", 5)].count("race") == 3


def test_applying_tries_again_when_only_tables_were_switched(world):
    shop = Shop(world, registry=Racing())
    shop.apply(stats())
    shop.fill(shop.state.serving["stats"], ALL)
    shop.registry.races = 3
    shop.apply(stats(where="rate > 0"))
    assert [c.summary for c in shop.registry.changes("shop", 5)].count("race") == 3
    assert shop.state.catalog.views["stats"].where == "rate > 0"


def test_applying_gives_up_in_the_end(world):
    shop = Shop(world, registry=Racing())
    shop.registry.races = 1_000
    with pytest.raises(ConflictError):
        shop.apply(stats())
    assert shop.registry.races > 900


def test_completing_gives_up_in_the_end(world):
    shop = Shop(world, registry=Racing())
    shop.apply(stats())
    shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    new = shop.fill(shop.state.catalog.views["stats"], ALL)
    shop.registry.races = 1_000
    with pytest.raises(ConflictError):
        shop.registration.complete(new)
    assert shop.registry.races > 900


def test_sweeping_spares_a_table_that_is_taken_back_meanwhile(shop, monkeypatch):
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"], ALL)
    shop.apply(stats(where="rate > 0"))
    shop.registration.complete(shop.fill(shop.state.catalog.views["stats"], ALL))
    stale = shop.state
    states = [stale]
    shop.apply(stats())
    current = shop.registry.state
    monkeypatch.setattr(shop.registry, "state", lambda p: states.pop() if states else current(p))
    assert shop.registration.sweep(NOW + 10, 0) == ()
    assert shop.holds(old)


def test_teardown_deletes_all_of_one_project_and_nothing_of_another(world):
    shop = Shop(world)
    other = Shop(world, "mall", registry=shop.registry, tables=shop.tables, online=shop.online)
    other.apply(stats())
    kept = other.fill(other.state.serving["stats"], ALL)
    plans = []
    for where in ("rate > 0", "rate > 1", "rate > 2"):
        shop.apply(stats(where=where))
        plans.append(shop.fill(shop.state.catalog.views["stats"], ALL))
    shop.apply(source(), allow_destructive=True)
    shop.apply(stats(), stats(name="b"))
    plans += [shop.fill(plan, ALL) for plan in shop.state.serving.values()]
    deleted = shop.registration.teardown()
    assert set(deleted) == {table_id("shop", plan) for plan in plans}
    assert not any(shop.holds(plan) for plan in plans)
    assert (shop.state.revision, shop.registry.versions("shop")) == (0, [])
    assert other.holds(kept)
    assert other.state.serving["stats"] == kept


def test_a_teardown_that_fails_half_way_is_finished_by_running_it_again(world):
    shop = Shop(world, online=Failing())
    shop.apply(stats())
    plan = shop.fill(shop.state.serving["stats"], ALL)
    with pytest.raises(OnlineStoreUnavailableError):
        shop.registration.teardown()
    assert shop.state.revision == 1
    shop.online.broken = False
    shop.registration.teardown()
    assert not shop.holds(plan)
    assert shop.registration.teardown() == ()


def test_a_long_summary_is_cut(shop):
    shop.apply(*(stats(name=f"view_number_{i}") for i in range(30)))
    (change,) = shop.registry.changes("shop")
    assert len(change.summary) == 500
    assert change.summary.endswith("...")


def test_rows_that_no_ledger_tells_of_go_on_serving_until_the_new_table_is_written(shop):
    """Pushed rows, or a job that died before its last word."""
    shop.apply(stats())
    old = shop.fill(shop.state.serving["stats"])
    assert shop.apply(stats(where="rate > 0")).rebuilding == ("stats",)
    new = shop.state.catalog.views["stats"]
    assert not shop.registration.complete(new)
    assert shop.state.serving["stats"] == old
    assert shop.registration.complete(shop.fill(new, ALL))


def on_demand(view):
    @on_demand_feature_view(sources=[view], features=[Field(name="made", dtype="float64")])
    def computed(inputs):
        return inputs

    return computed


def answers(shop, features):
    state = shop.state
    plan = resolve(state.answering, state.serving, features, full_feature_names=True)
    return [output.name for output in plan.outputs]


def test_a_service_that_asks_for_more_is_answered_as_before_until_the_table_is_complete(shop):
    """What refers to a view that is being rebuilt goes on serving, as the view does."""
    view = stats()
    shop.apply(view, on_demand(view), FeatureService(name="s", features=[view, "computed"]))
    shop.fill(shop.state.serving["stats"], ALL)
    assert answers(shop, "s") == ["stats__rate", "computed__made"]

    wider = stats(features=["rate", "trips"])
    new_service = FeatureService(name="new", features=["stats:trips"])
    service = FeatureService(name="s", features=[wider, "computed"], owner="ops")
    shop.apply(wider, on_demand(wider), service, new_service)
    assert shop.state.catalog.services["s"].owner == "ops"
    assert answers(shop, "s") == ["stats__rate", "computed__made"]
    assert answers(shop, ["computed"]) == ["computed__made"]
    with pytest.raises(NotMaterializedError):
        answers(shop, "new")

    # A further change that cannot be answered yet either keeps to the one that could.
    later = service.model_copy(update={"owner": "else"})
    shop.apply(wider, on_demand(wider), later, new_service)
    assert answers(shop, "s") == ["stats__rate", "computed__made"]

    assert shop.registration.complete(shop.fill(shop.state.catalog.views["stats"], ALL))
    assert answers(shop, "s") == ["stats__rate", "stats__trips", "computed__made"]
    assert answers(shop, "new") == ["stats__trips"]
    assert (shop.state.former_services, shop.state.former_on_demand) == ({}, {})
    assert shop.state.answering == shop.state.catalog


def test_a_service_without_a_former_definition_that_could_be_answered_is_not_kept(shop):
    shop.apply(stats(), FeatureService(name="s", features=["stats"]))
    shop.fill(shop.state.serving["stats"], ALL)
    other = stats(name="other", features=["rate", "trips"])
    shop.apply(other, FeatureService(name="s", features=["other:trips"]), allow_destructive=True)
    assert answers(shop, "s") == ["other__trips"]
    assert shop.state.former_services == {}
