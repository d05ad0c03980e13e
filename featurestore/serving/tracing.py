"""Calls as traces of OpenTelemetry: a span a call, and one in it for each read of the store.

A span says which method, how it ended, how many entities, which views; never a key, a value, or who
called. It belongs to the caller's trace where the call says which that is. Spans are sent in the
background; a collector that is gone costs spans, not calls.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import grpc

from featurestore.clock import Clock
from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.ports.online import OnlineStore
from featurestore.services.online import OnlineReader
from featurestore.services.response import OnlineResponse
from featurestore.serving.observing import READS
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.security.headers import TRACE_PARENT, TRACE_STATE
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.watched_store import WatchedStore

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

FROM_ENVIRONMENT = "env"
_SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name
_SETTING = "serving.traces"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NUMBERS = {status.name: status.value[0] for status in grpc.StatusCode}
# By the conventions for servers, the others are the caller's.
_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
_SEND_SECONDS, _END_SECONDS = 5.0, 2.0


class Traces:
    """An observer that makes spans.

    Args:
        provider: Makes spans and sends them; it is shut down with this.
        reader: Whose reads of the store get spans.
        clock: Tells the instants of those.
    """

    def __init__(self, provider: TracerProvider, reader: OnlineReader, clock: Clock) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("featurestore.serving")
        self._trace = trace
        self._no_parent = context.Context()
        self._parents = TraceContextTextMapPropagator()
        self._clock = clock
        reader.read_through(
            lambda store: cast("OnlineStore", WatchedStore(store, clock, self.has_read))
        )

    def begun(self, call: Call) -> None:
        """See `Observer.begun`."""
        parent = self._no_parent
        if call.parent is not None:
            told = {TRACE_PARENT: call.parent}
            if call.vendors is not None:
                told[TRACE_STATE] = call.vendors
            parent = self._parents.extract(told, parent)
        attributes = {
            "rpc.system": call.front,
            "rpc.service": _SERVICE,
            "rpc.method": call.method,
            "featurestore.request_id": call.id,
        }
        call.span = self._tracer.start_span(
            f"{_SERVICE}/{call.method}",
            parent,
            self._trace.SpanKind.SERVER,
            attributes,
        )

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """See `Observer.answered`."""
        del asked
        span = cast("Span", call.span)
        if span.is_recording():
            layout = answer.layout
            span.set_attribute("featurestore.views", [source.view for source in layout.sources])
            if layout.service is not None:
                span.set_attribute("featurestore.service", layout.service)

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """See `Observer.ended`."""
        span = cast("Span", call.span)
        call.span = None
        if span.is_recording():
            span.set_attribute("rpc.grpc.status_code", _NUMBERS.get(status, _NUMBERS["UNKNOWN"]))
            span.set_attribute("featurestore.entities", call.rows)
            if error is not None:
                span.set_attribute("error.type", type(error).__name__)
            if status in _FAULTS:
                span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def has_read(self, operation: str, keys: int, seconds: float, error: str | None) -> None:
        """Make spans of a round trip to the store (`watched_store.Listener`): each call's own."""
        end = self._clock.now_us() * 1_000
        for call in READS.calls:
            span = cast("Span | None", call.span)
            if span is not None and span.is_recording():
                self._add_read(span, operation, keys, end, seconds, error)

    def _add_read(  # noqa: PLR0917
        self,
        call_span: Span,
        operation: str,
        keys: int,
        end: int,
        seconds: float,
        error: str | None,
    ) -> None:
        span = self._tracer.start_span(
            f"online_store {operation}",
            self._trace.set_span_in_context(call_span, self._no_parent),
            self._trace.SpanKind.CLIENT,
            {"db.operation.name": operation, "db.operation.batch.size": keys},
            start_time=end - int(seconds * 1e9),
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end)

    def close(self) -> None:
        """Send what is left, for as long as that does not hold up the end."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_END_SECONDS)


def traces_to(target: str, reader: OnlineReader, clock: Clock, log: Any) -> Traces:
    """Return traces that are sent by OTLP over gRPC.

    Args:
        target: A URL, or "env" for what the variables OTEL_* say.
        reader: Whose reads of the store get spans.
        clock: Tells instants.
        log: Told when spans cannot be sent.

    Raises:
        SettingsError: There is no such target, or what it needs is not installed.
    """
    provider = provider_of(_sender(target))
    _Forwarding(log).attach()
    return Traces(provider, reader, clock)


def provider_of(processor: SpanProcessor) -> TracerProvider:
    """Return a maker of spans that go to a processor; the OTEL_* variables may say more."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    about = {"service.version": importlib.metadata.version("featurestore")}
    if "OTEL_SERVICE_NAME" not in os.environ:
        about["service.name"] = "featurestore"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


def _sender(target: str) -> SpanProcessor:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "Traces need the extra 'telemetry'.",
            where=_SETTING,
            hint="pip install 'featurestore[telemetry]'",
        ) from error
    if target == FROM_ENVIRONMENT:
        _check_protocol()
        return BatchSpanProcessor(OTLPSpanExporter())
    if not target.startswith(("http://", "https://")):
        raise SettingsError(
            "Traces cannot be sent there.",
            where=_SETTING,
            got=target,
            allowed="http://host:port, https://host:port, or env",
        )
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=target, timeout=_SEND_SECONDS))


def _check_protocol() -> None:
    for name in _PROTOCOLS:
        protocol = os.environ.get(name, "grpc")
        if protocol != "grpc":
            raise SettingsError(
                "Traces are sent over gRPC only.",
                where=name,
                got=protocol,
                allowed="grpc",
                hint="Collectors take it at port 4317.",
            )


class _Forwarding(logging.Handler):
    """Puts what the library says of its trouble into our log, in its form."""

    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._told = log

    def attach(self) -> None:
        """Take the place of whoever heard it before."""
        logger = logging.getLogger("opentelemetry")
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._told.warning("traces", said=record.getMessage())
