"""Runs end as they ended, whatever is looked at meanwhile (law M4)."""

from __future__ import annotations

from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.clock import FixedClock
from featurestore.services.runs import RunLog
from featurestore.testing.registry_samples import view_plan


class _Watched(MemoryRegistry):
    """A registry in which somebody looks for dead runs right before and after a run is saved."""

    def __init__(self, clock):
        super().__init__()
        self.log = RunLog("p", self, clock)

    def save_run(self, project, run):
        self.log.bury_dead()
        super().save_run(project, run)
        self.log.bury_dead()


class _Late(MemoryRegistry):
    """A registry in which a run ends between being listed and being told dead."""

    def __init__(self):
        super().__init__()
        self.ending = None

    def runs(self, *args, **options):
        found = super().runs(*args, **options)
        ending, self.ending = self.ending, None
        if ending is not None:
            self.save_run("p", ending)
        return found


def test_a_run_that_is_ending_is_not_taken_for_dead():
    clock = FixedClock(0)
    registry = _Watched(clock)
    log = RunLog("p", registry, clock)
    good = log.begin(view_plan(), "materialize", None, None, 1)
    bad = log.begin(view_plan("other"), "materialize", None, None, 1)
    log.finish(good)
    log.finish(bad, ValueError("no source"))
    assert {(run.view, run.state, run.error) for run in registry.runs("p")} == {
        ("weather", "succeeded", None),
        ("other", "failed", "ValueError: no source"),
    }


def test_a_run_that_has_ended_meanwhile_is_not_buried():
    registry = _Late()
    log = RunLog("p", registry, FixedClock(0))
    begun = log.begin(view_plan(), "materialize", None, None, 1).model_copy(update={"pid": 2**22})
    registry.save_run("p", begun)
    registry.ending = begun.model_copy(update={"state": "succeeded"})
    log.bury_dead()
    assert [run.state for run in registry.runs("p")] == ["succeeded"]


def test_a_run_whose_process_is_gone_is_buried():
    registry = MemoryRegistry()
    log = RunLog("p", registry, FixedClock(7))
    begun = log.begin(view_plan(), "materialize", None, None, 1).model_copy(update={"pid": 2**22})
    registry.save_run("p", begun)
    log.bury_dead()
    [run] = registry.runs("p")
    assert (run.state, run.finished_at_us) == ("failed", 7)
    assert run.error == "the process 4194304 died in mid-run"
