"""Which of two threads leads, and when the other takes over."""

import threading

import pytest

from featurestore.clock import SystemClock
from featurestore.serving.grpc_queue.lead import Lead
from featurestore.testing.valkey import wait_until


class Work:
    """What the one that leads does: one piece after the other, until it is told to end."""

    def __init__(self):
        self.lead = Lead(self.serve, SystemClock())
        self.pieces, self.done, self.ended, self.end = [], [], [], threading.Event()
        lead = self.lead._lead
        self.lead._lead = lambda: (lead(), self.ended.append(threading.get_ident()))
        self.lead.start(lambda run: threading.Thread(target=run, daemon=True).start())

    def serve(self):
        while self.lead.is_mine:
            if self.end.wait(0.001):
                return True
            if self.pieces:
                piece = self.pieces.pop(0)
                if piece is None:
                    self.done.append((threading.get_ident(), False))
                    raise KeyError
                here = self.lead.here(piece)
                self.done.append((threading.get_ident(), here))
        return False


@pytest.fixture
def work():
    work = Work()
    wait_until(lambda: work.lead._stands_by, what="a thread to stand by")
    yield work
    work.end.set()


def test_quick_work_stays_with_one_thread(work):
    for _ in range(50):
        work.pieces.append(lambda: None)
    wait_until(lambda: len(work.done) == 50, what="the work to be done")
    assert {here for _, here in work.done} == {True}
    assert len({thread for thread, _ in work.done}) == 1


def test_the_other_takes_over_from_one_that_is_long_busy(work):
    going = threading.Event()
    work.pieces.append(lambda: going.wait(20))
    wait_until(lambda: not work.pieces and not work.lead._stands_by, what="a change")
    second = work.lead._leader
    # Nobody could take over from the second.
    work.pieces.append(lambda: None)
    wait_until(lambda: work.done, what="the second's work")
    assert work.done == [(second, False)]
    going.set()
    wait_until(lambda: work.lead._stands_by, what="the first to stand by")
    assert work.lead._leader == second
    assert work.done[1][0] != second
    work.pieces.append(lambda: None)
    wait_until(lambda: len(work.done) == 3, what="more work")
    assert work.done[2] == (second, True)


def test_one_that_has_slept_is_there_when_it_is_needed(work):
    wait_until(lambda: not work.lead._busy.is_set(), what="the one that stands by to sleep")
    going = threading.Event()
    work.pieces.append(lambda: going.wait(20))
    wait_until(lambda: not work.lead._stands_by, what="a change")
    going.set()


def test_work_that_fails_is_over(work):
    def fail():
        raise KeyError

    def try_it():
        with pytest.raises(KeyError):
            work.lead.here(fail)

    work.pieces.append(try_it)
    wait_until(lambda: work.done, what="the work to be done")
    assert work.lead._since is None


def test_both_end(work):
    work.end.set()
    wait_until(lambda: len(work.ended) == 2, what="both to end")


def test_a_leader_that_fails_goes_on(work):
    work.pieces.append(None)
    wait_until(lambda: work.done, what="the work to be done")
    work.pieces.append(lambda: None)
    wait_until(lambda: len(work.done) == 2, what="more work")
    assert work.done[1][1]
