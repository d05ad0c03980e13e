"""Calls as traces: what spans say, whose children they are, and that a collector gets them."""

from __future__ import annotations

import logging
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2 as otlp,
)
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2_grpc as otlp_grpc,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from featurestore.clock import SystemClock
from featurestore.errors import OnlineStoreUnavailableError, SettingsError
from featurestore.model.settings import ServingSettings
from featurestore.serving.client import OnlineClient
from featurestore.serving.conversion import write_arrow
from featurestore.serving.observers import observers_of
from featurestore.serving.observing import READS
from featurestore.serving.security.calls import Call
from featurestore.serving.server import FeatureServer
from featurestore.serving.tracing import Traces, provider_of, traces_to
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.testing.valkey import wait_until
from tests.served import NOW_US, Served, array, select, state, view

SERVICE = "featurestore.serving.v1.FeatureServing"
METHOD = f"{SERVICE}/GetOnlineFeatures"
CUSTOMER = "customer-4711"
USERS = view("users", {"user": "string"}, {"score": "float64"})
CLOCK = SystemClock()


def world():
    served = Served(state([USERS], services={"all": [select("users", "score")]}))
    served.push(USERS, ((CUSTOMER,), NOW_US, (123456.5,)))
    return served


class Traced:
    """A server whose spans stay here."""

    def __init__(self):
        self.spans = InMemorySpanExporter()
        self.served = world()
        self.traces = Traces(
            provider_of(SimpleSpanProcessor(self.spans)), self.served.reader, CLOCK
        )
        settings = ServingSettings(address="127.0.0.1:0")
        self.server = FeatureServer(self.served.reader, settings, observers=[self.traces])
        self.address = self.server.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop()

    def call(self, *, metadata=(), features="all", rows=1):
        column = pb.Column(name="user")
        write_arrow(column, array([CUSTOMER] * rows, "string"))
        request = pb.GetOnlineFeaturesRequest(service=features, entity_rows=[column])
        with grpc.insecure_channel(self.address) as channel:
            method = channel.unary_unary(f"/{METHOD}")
            return method(request.SerializeToString(), metadata=metadata, timeout=10)

    def finished(self, count):
        wait_until(lambda: len(self.spans.get_finished_spans()) >= count, what="spans")
        found = self.spans.get_finished_spans()
        assert len(found) == count
        return found


@pytest.fixture
def traced():
    with Traced() as traced:
        yield traced


def test_a_call_is_a_span_and_its_read_of_the_store_a_child(traced):
    traced.call(metadata=(("x-request-id", "mine-7"),), rows=3)
    read, call = traced.finished(2)
    assert (call.name, call.kind, call.parent) == (METHOD, SpanKind.SERVER, None)
    assert dict(call.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "GetOnlineFeatures",
        "rpc.grpc.status_code": 0,
        "featurestore.request_id": "mine-7",
        "featurestore.entities": 3,
        "featurestore.views": ("users",),
        "featurestore.service": "all",
    }
    assert call.status.status_code is StatusCode.UNSET
    assert (read.name, read.kind) == ("online_store read", SpanKind.CLIENT)
    assert read.parent.span_id == call.context.span_id
    assert read.context.trace_id == call.context.trace_id
    assert dict(read.attributes) == {"db.operation.name": "read", "db.operation.batch.size": 1}
    assert read.start_time <= read.end_time
    assert call.resource.attributes["service.name"] == "featurestore"


def test_lookups_that_are_read_together_have_a_span_of_the_read_each(traced):
    calls = [Call("GetOnlineFeatures", ()) for _ in range(2)]
    for call in calls:
        traced.traces.begun(call)
    with READS.made_for(calls):
        traced.traces.has_read("read", 5, 0.001, None)
    for call in calls:
        traced.traces.ended(call, "OK", None)
    spans = traced.finished(4)
    reads, ended = spans[:2], spans[2:]
    assert [r.parent.span_id for r in reads] == [e.context.span_id for e in ended]
    assert [r.attributes["db.operation.batch.size"] for r in reads] == [5, 5]


def test_no_span_holds_a_key_or_a_value(traced):
    traced.call(rows=2)
    text = "".join(span.to_json() for span in traced.finished(2))
    assert "users" in text
    assert CUSTOMER not in text
    assert "123456.5" not in text


def test_the_parent_is_whom_the_caller_names(traced):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traced.call(metadata=(("traceparent", f"00-{trace}-{parent}-01"),))
    _, call = traced.finished(2)
    assert f"{call.context.trace_id:032x}" == trace
    assert f"{call.parent.span_id:016x}" == parent
    assert call.parent.is_remote


@pytest.mark.parametrize(
    ("sent", "kept"), [("rojo=1,congo=t61", {"rojo": "1", "congo": "t61"}), ("x" * 5000, {})]
)
def test_what_others_on_the_way_have_noted_goes_along(traced, sent, kept):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    told = (("traceparent", f"00-{trace}-{parent}-01"), ("tracestate", sent))
    traced.call(metadata=told)
    store, call = traced.finished(2)
    assert dict(call.context.trace_state) == dict(store.context.trace_state) == kept


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01", "x" * 5000])
def test_a_parent_that_is_none_begins_a_trace(traced, parent):
    traced.call(metadata=(("traceparent", parent),))
    assert traced.finished(2)[1].parent is None


def test_a_caller_that_does_not_sample_makes_no_span(traced):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traced.call(metadata=(("traceparent", f"00-{trace}-{parent}-00"),))
    traced.call()
    assert traced.finished(2)[1].parent is None


def test_what_the_caller_did_wrong_is_a_status_and_no_error_of_ours(traced):
    with pytest.raises(grpc.RpcError):
        traced.call(features="nosuch")
    (call,) = traced.finished(1)
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert call.attributes["error.type"] == "FeatureNotFoundError"
    assert call.status.status_code is StatusCode.UNSET


def test_a_store_that_is_gone_is_an_error_of_both_spans(traced):
    def fail(*_, **__):
        raise OnlineStoreUnavailableError("gone")

    traced.served.reader._online._read = fail
    with pytest.raises(grpc.RpcError):
        traced.call()
    read, call = traced.finished(2)
    assert read.attributes["error.type"] == "OnlineStoreUnavailableError"
    assert read.status.status_code is call.status.status_code is StatusCode.ERROR
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.UNAVAILABLE.value[0]


class Collector(otlp_grpc.TraceServiceServicer):
    """What takes OTLP, as a collector does."""

    def __init__(self):
        self.requests = []
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, _):  # noqa: N802  (gRPC's name)
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stop(0).wait()


@pytest.fixture
def _logs_of_the_library_as_before():
    logger = logging.getLogger("opentelemetry")
    held, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = held, propagate


@pytest.mark.usefixtures("_logs_of_the_library_as_before")
@pytest.mark.parametrize("by", ["setting", "variables"])
def test_a_collector_gets_the_spans_by_the_time_the_server_has_ended(by, monkeypatch):
    with Collector() as collector:
        target = collector.url
        if by == "variables":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout-features")
            target = "env"
        served = world()
        settings = ServingSettings(address="127.0.0.1:0", traces=target)
        log = structlog.get_logger()
        observers = observers_of(settings, Path(), served.reader, CLOCK, log)
        server = FeatureServer(served.reader, settings, observers=observers)
        address = server.start()
        with OnlineClient(address) as client:
            client.get_online_features("all", {"user": [CUSTOMER]})
        server.stop()
        spans = [
            span
            for request in collector.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert sorted(span.name for span in spans) == [METHOD, "online_store read"]
        about = collector.requests[0].resource_spans[0].resource.attributes
        name = {item.key: item.value.string_value for item in about}["service.name"]
        assert name == ("checkout-features" if by == "variables" else "featurestore")
        assert CUSTOMER not in str(collector.requests)


@pytest.mark.usefixtures("_logs_of_the_library_as_before")
def test_a_collector_that_is_gone_costs_no_call_and_holds_up_no_end():
    served = world()
    settings = ServingSettings(address="127.0.0.1:0")
    with structlog.testing.capture_logs() as logs:
        traces = traces_to("http://127.0.0.1:1", served.reader, CLOCK, structlog.get_logger())
        server = FeatureServer(served.reader, settings, observers=[traces])
        address = server.start()
        with OnlineClient(address) as client:
            answer = client.get_online_features("all", {"user": [CUSTOMER]})
        assert answer.to_dict()["score"] == [123456.5]
        began = CLOCK.monotonic()
        server.stop()
        assert CLOCK.monotonic() - began < 10
        wait_until(lambda: any(line["event"] == "traces" for line in logs), what="a log line")


@pytest.mark.parametrize("target", ["localhost:4317", "ftp://x:1", ""])
def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(SettingsError) as caught:
        traces_to(target, world().reader, CLOCK, structlog.get_logger())
    assert caught.value.where == "serving.traces"


def test_a_protocol_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(SettingsError, match="over gRPC only"):
        traces_to("env", world().reader, CLOCK, structlog.get_logger())


def test_without_the_library_the_extra_is_named(monkeypatch):
    name = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(SettingsError) as caught:
        traces_to("http://localhost:4317", world().reader, CLOCK, structlog.get_logger())
    assert "featurestore[telemetry]" in caught.value.hint
