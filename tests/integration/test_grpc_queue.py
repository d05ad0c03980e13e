"""Lookups over gRPC as events of one queue: read together, answered one by one, held up by none."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.serving import server
from featurestore.serving.grpc_queue import calls, front, inside
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.v1.serving_pb2_grpc import FeatureServingStub
from featurestore.testing.valkey import wait_until
from tests.integration.connect_front import LOOKUP, ONE, lookup
from tests.integration.http_front import Fronts, held_store
from tests.integration.test_grpc_serving import USERS
from tests.served import NOW_US, on_demand, publish, select, state

OK = "OK"


pytestmark = pytest.mark.usefixtures("logs")


@pytest.fixture(autouse=True)
def _is_known(monkeypatch):
    """Whatever version is installed: these tests are how a new one is tried."""
    monkeypatch.setattr(server, "is_known", lambda: True)


class Asked:
    """A server, and a channel to it."""

    def __init__(self, gate=None, **settings):
        self.fronts = Fronts(gate=gate, http_address=None, **settings)
        self.queue = self.fronts.server._queue
        self.channel = grpc.insecure_channel(self.fronts.address)
        self._call = self.channel.unary_unary(LOOKUP)

    def ask(self, message=ONE, timeout=20.0):
        """Begin a lookup; return what becomes of it."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return self._call.future(body, timeout=timeout)

    def statuses(self):
        return sorted(heard[2] for heard in self.fronts.recorder.heard if heard[0] == "ended")

    def close(self):
        self.channel.close()
        self.fronts.stop()


@pytest.fixture
def start():
    begun = []

    def start(**settings):
        begun.append(Asked(**settings))
        return begun[-1]

    yield start
    for asked in begun:
        asked.close()


@pytest.fixture(scope="module")
def shared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "is_known", lambda: True)
        shared = Asked()
    yield shared
    shared.close()


def scores(call):
    return list(pb.GetOnlineFeaturesResponse.FromString(call.result()).features[0].doubles.values)


def gather(asked, messages, monkeypatch):
    """Ask these while a first lookup is read, and have them gather; return them all."""
    wait_until(lambda: asked.queue._lead._stands_by, what="a thread to stand by")
    first = asked.ask()
    wait_until(lambda: asked.fronts.reads, what="the first lookup to be read")
    monkeypatch.setattr(front, "_MOST_THREADS", 0)
    rest = [asked.ask(message) for message in messages]
    wait_until(lambda: asked.queue.held == 1 + len(rest), what="the calls to be taken")
    return first, rest


def go_on(asked, monkeypatch):
    """Let those that have gathered be answered."""
    monkeypatch.setattr(front, "_MOST_THREADS", 4)
    asked.fronts.open.set()


def test_they_are_read_together_and_answered_one_by_one(start, monkeypatch):
    asked = start()
    two = lookup("users:score", user=2)
    two.entity_rows[0].int64s.values.append(1)
    early = lookup("users:score", as_of=1)
    messages = [lookup("users:score", user=4), two, lookup("nothing"), b"\xff", early]
    with held_store(asked.fronts):
        first, rest = gather(asked, messages, monkeypatch)
        go_on(asked, monkeypatch)
        assert scores(first) == [0.5]
        assert [call.code().name for call in rest] == [
            OK, OK, "NOT_FOUND", "INVALID_ARGUMENT", "OUT_OF_RANGE"
        ]  # fmt: skip
    assert scores(rest[0]) == [0.0]
    assert scores(rest[1]) == [0.0, 0.5]
    assert sorted(asked.fronts.reads) == [1, 4]
    assert asked.queue.held == 0


def test_a_quick_lookup_is_answered_by_who_takes_it_in(shared):
    names = []
    read = shared.fronts.served.store.read

    def noted(keys, **options):
        names.append(threading.current_thread().name)
        return read(keys, **options)

    shared.fronts.served.store.read = noted
    wait_until(lambda: shared.queue._lead._stands_by, what="a thread to stand by")
    assert scores(shared.ask()) == [0.5]
    shared.fronts.served.store.read = read
    assert names[0].startswith("grpc-")


def test_a_slow_store_holds_up_nobody_else(start):
    asked = start()
    stub = FeatureServingStub(asked.channel)
    health = health_pb2_grpc.HealthStub(asked.channel)
    with held_store(asked.fronts):
        held = []
        for count in range(1, 8):
            held.append(asked.ask())
            # One is held by who took it in, the next by who took over, on threads of the pool.
            wait_until(lambda n=count: asked.queue.held == n, what="the lookup to be taken")
            checked = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
            assert stub.GetServingInfo(pb.GetServingInfoRequest(), timeout=5).project == "shop"
            if count < 4:
                unknown = asked.ask(lookup("nothing"), timeout=5)
                assert unknown.code() is grpc.StatusCode.NOT_FOUND
        asked.fronts.open.set()
        assert [scores(call) for call in held] == [[0.5]] * 7
    wait_until(lambda: asked.queue._lead._stands_by, what="a thread to stand by again")
    assert scores(asked.ask()) == [0.5]


def test_a_store_that_is_gone_is_told_to_all_of_them(start, monkeypatch):
    asked = start()
    with held_store(asked.fronts):
        first, rest = gather(asked, [ONE] * 3, monkeypatch)

        def fail(*_, **__):
            raise OnlineStoreUnavailableError("The store is gone.")

        asked.fronts.served.store.read = fail
        go_on(asked, monkeypatch)
        assert first.code().name == OK
        assert [call.code().name for call in rest] == ["UNAVAILABLE"] * 3


def test_too_many_are_refused_at_once(start, monkeypatch):
    asked = start(max_concurrent_requests=3)
    with held_store(asked.fronts):
        first, rest = gather(asked, [ONE] * 2, monkeypatch)
        refused = asked.ask()
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        go_on(asked, monkeypatch)
        assert [call.code().name for call in (first, *rest)] == [OK] * 3
    assert scores(asked.ask()) == [0.5]


def test_who_goes_away_is_not_read_for(start, monkeypatch):
    asked = start()
    with held_store(asked.fronts):
        first, (gone,) = gather(asked, [ONE], monkeypatch)
        # Not so soon that the answer of the client's own clock could come first.
        late = asked.ask(timeout=0.5)
        gone.cancel()
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        states = asked.fronts.server._server._state.rpc_states
        wait_until(lambda: len(states) == 1, what="the server to know")
        go_on(asked, monkeypatch)
        assert scores(first) == [0.5]
        wait_until(lambda: asked.queue.held == 0, what="the calls to end")
    assert asked.fronts.reads == [1]
    assert asked.statuses() == ["CANCELLED", "DEADLINE_EXCEEDED", OK]


def test_a_call_without_a_message(shared):
    call = shared.channel.stream_unary(LOOKUP).future(iter(()), timeout=5)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a message" in call.details()
    assert "one message" in call.details()


def test_who_goes_away_before_the_message_comes(start):
    asked = start()
    silence = threading.Event()

    def nothing():
        silence.wait(20)
        yield from ()

    call = asked.channel.stream_unary(LOOKUP).future(nothing(), timeout=20)
    wait_until(lambda: asked.queue._silent, what="the call to be taken")
    call.cancel()
    wait_until(asked.statuses, what="the call to end")
    silence.set()
    assert asked.statuses() == ["CANCELLED"]
    assert not asked.queue._silent


def test_those_who_send_nothing_make_room(start):
    asked = start(max_concurrent_requests=4)
    silence = threading.Event()

    def nothing():
        silence.wait(20)
        yield from ()

    method = asked.channel.stream_unary(LOOKUP)
    silent = [method.future(nothing(), timeout=20) for _ in range(6)]
    assert scores(asked.ask()) == [0.5]
    # One more of them may have gone for the lookup.
    wait_until(lambda: sum(call.done() for call in silent) >= 2, what="two to be let go")
    assert {call.code() for call in silent if call.done()} == {grpc.StatusCode.CANCELLED}
    silence.set()


def test_deadlines_bound_the_wait_for_the_store(shared):
    patience = []
    read = shared.fronts.served.store.read

    def noted(keys, **options):
        patience.append(options.get("timeout"))
        return read(keys, **options)

    shared.fronts.served.store.read = noted
    assert scores(shared.ask(timeout=5)) == [0.5]
    assert scores(shared.ask(timeout=None)) == [0.5]
    shared.fronts.served.store.read = read
    bounded, free = patience
    assert 3 < bounded < 4.1
    assert free is None


def test_what_nobody_foresaw_ends_one_call(start, monkeypatch, logs):
    asked = start()
    made = asked.queue._exchange

    def broken(_event):
        monkeypatch.setattr(asked.queue, "_exchange", made)
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(asked.queue, "_exchange", broken)
    assert asked.ask(timeout=5).code() is not grpc.StatusCode.OK
    assert scores(asked.ask()) == [0.5]
    send = calls.send

    def failing(*_):
        monkeypatch.setattr(calls, "send", send)
        raise RuntimeError("nor this")

    monkeypatch.setattr(calls, "send", failing)
    assert asked.ask(timeout=5).code() is grpc.StatusCode.CANCELLED
    assert scores(asked.ask()) == [0.5]
    assert asked.queue.held == 0
    told = [line["event"] for line in logs if line["log_level"] == "error"]
    assert told == ["an event of gRPC could not be handled", "an answer could not be sent"]


def test_a_server_ends_though_a_lookup_hangs(start):
    asked = start(drain_seconds=0.2)
    with held_store(asked.fronts):
        call = asked.ask()
        wait_until(lambda: asked.fronts.reads, what="the lookup to be read")
        began = time.monotonic()
        asked.fronts.stop()
        assert time.monotonic() - began < 10
        assert call.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_what_has_begun_is_answered_before_a_server_ends(start):
    asked = start()
    with held_store(asked.fronts), ThreadPoolExecutor(1) as threads:
        call = asked.ask()
        wait_until(lambda: asked.fronts.reads, what="the lookup to be read")
        stopped = threads.submit(asked.fronts.stop)
        wait_until(lambda: not asked.fronts.server.is_answering, what="the draining")
        asked.fronts.open.set()
        assert scores(call) == [0.5]
        stopped.result(20)


def test_many_callers_at_once(start):
    asked = start(max_concurrent_requests=5_000)
    messages = [lookup("users:score", user=1 + n % 2, as_of=NOW_US) for n in range(2_000)]
    answers = [asked.ask(message) for message in messages]
    for n, call in enumerate(answers):
        assert scores(call) == ([0.5] if n % 2 == 0 else [0.0])
    assert len(asked.fronts.recorder.heard) == 3 * len(messages)
    assert asked.queue.held == 0


def test_slow_views_do_not_hold_up_quick_lookups(start, tmp_path):
    gate = tmp_path / "gate"
    asked = start(threads=1, gate=gate)
    plan = on_demand("gated", [select("users", "score")], {"passed": "float64"})
    publish(asked.fronts.served.registry, state([USERS], [plan]))
    asked.fronts.served.clock.advance(2_000_000)
    asked.fronts.served.state.refresh()
    message = lookup("gated")
    slow = [asked.ask(message) for _ in range(3)]
    wait_until(lambda: asked.queue.held == 3, what="the slow ones to be taken")
    wait_until(lambda: asked.fronts.server._pool.is_behind, what="the pool to be busy")
    assert scores(asked.ask()) == [0.5]
    with held_store(asked.fronts):
        held = [asked.ask()]
        wait_until(lambda: asked.fronts.reads, what="a lookup to be held")
        wait_until(lambda: not asked.queue._lead.is_watched, what="a change")
        # These are taken by threads that the slow ones do not have.
        for count in range(2, 5):
            held.append(asked.ask())
            wait_until(lambda n=count: len(asked.fronts.reads) == n, what="another one")
        asked.fronts.open.set()
        assert [scores(call) for call in held] == [[0.5]] * 4
    wait_until(lambda: asked.queue._lead.is_watched, what="a thread to stand by again")
    assert scores(asked.ask()) == [0.5]
    gate.touch()
    assert [scores(call) for call in slow] == [[1.5]] * 3


def test_what_cannot_be_told_is_told_as_that(start, monkeypatch):
    asked = start()

    def broken(*_):
        raise ValueError("\udcff")

    monkeypatch.setattr(asked.fronts.server._guard.access, "discreet", broken)
    assert asked.ask(lookup("nothing")).code() is grpc.StatusCode.INTERNAL
    monkeypatch.undo()
    assert asked.queue.held == 0
    assert asked.statuses() == ["INTERNAL"]


def test_a_broken_log_stops_nothing(start, monkeypatch):
    asked = start()

    def broken(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(asked.queue._around.log, "error", broken, raising=False)
    made = asked.queue._exchange
    monkeypatch.setattr(asked.queue, "_exchange", broken)
    assert asked.ask(timeout=5).code() is not grpc.StatusCode.OK
    monkeypatch.setattr(asked.queue, "_exchange", made)
    monkeypatch.setattr(asked.fronts.server._guard.access, "discreet", broken)
    assert asked.ask(lookup("nothing")).code() is grpc.StatusCode.INTERNAL
    assert scores(asked.ask()) == [0.5]


def test_lookups_that_were_never_begun_are_heard_of_at_the_end(start, monkeypatch):
    asked = start(drain_seconds=0.2)
    with held_store(asked.fronts):
        gather(asked, [ONE] * 3, monkeypatch)
        asked.fronts.stop()
        assert asked.statuses() == ["CANCELLED"] * 3
        asked.fronts.open.set()
        wait_until(lambda: len(asked.statuses()) == 4, what="the last to end")
    assert asked.statuses() == ["CANCELLED"] * 4
    assert asked.queue.held == 0


def test_a_version_that_nobody_has_tried(start, monkeypatch, logs):
    monkeypatch.setattr(server, "is_known", inside.is_known)
    monkeypatch.setattr(inside, "KNOWN_DIGESTS", frozenset())
    asked = start()
    assert asked.queue is None
    assert scores(asked.ask()) == [0.5]
    (told,) = [line for line in logs if line["log_level"] == "warning"]
    assert told["got"] == f"grpcio {grpc.__version__}"


def test_a_version_that_differs_in_anything_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(inside, "KNOWN_DIGESTS", frozenset({inside.digest()}))
    assert inside.is_known()
    other = tmp_path / "_server.py"
    other.write_bytes(Path(inside.inside.__file__).read_bytes() + b"#")
    for place in (str(other), str(tmp_path / "gone.py")):
        monkeypatch.setattr(inside.inside, "__file__", place)
        assert not inside.is_known()
    monkeypatch.setattr(inside, "inside", None)
    assert not inside.is_known()
