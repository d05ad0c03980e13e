"""Health and reflection on threads of their own: nobody holds up lookups by asking for these.

Health is told to everybody: load balancers have no keys, and hear only whether lookups are
answered. Reflection tells the protocol, which is public, and nothing of the project; still it is
offered only where everybody may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from featurestore.clock import Clock
from featurestore.serving.health import SERVICE_NAME as HEALTH_NAME
from featurestore.serving.health import Health
from featurestore.serving.pool import DaemonPool
from featurestore.serving.receiving import Receiver

_THREADS = 2
_MOST_WAITING = 1_000
_Send = Callable[[Any], None]
_Messages = Iterator[bytes]


class StandardServices:
    """The services that every gRPC server has.

    Args:
        health: Tells the health.
        reflected: The names of the services that reflection tells; none where it is not offered.
        clock: Measures how long callers take to send.
        seconds: How long they may take.
    """

    def __init__(
        self, health: Health, reflected: Sequence[str], clock: Clock, seconds: float
    ) -> None:
        self._health = health
        self._reflected = reflected
        self._pool = DaemonPool(_THREADS, _MOST_WAITING)
        self._receiver = Receiver(self._pool, clock, seconds)

    def add_to(self, server: grpc.Server) -> None:
        """Add them to a server, and begin to look at who calls them."""
        check = grpc.stream_unary_rpc_method_handler(
            self._here(self._check),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.stream_stream_rpc_method_handler(
            self._here(self._watch, blocking=False),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        handlers = [
            grpc.method_handlers_generic_handler(HEALTH_NAME, {"Check": check, "Watch": watch})
        ]
        if self._reflected:
            reflect = grpc.stream_stream_rpc_method_handler(
                self._here(self._reflect),
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
            name = reflection.SERVICE_NAME
            handlers.append(
                grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": reflect})
            )
            names = (*self._reflected, HEALTH_NAME, name)
            self._reflection = reflection.ReflectionServicer(names)
        server.add_generic_rpc_handlers(tuple(handlers))
        self._receiver.start()

    def stop(self) -> None:
        """End their threads."""
        self._receiver.stop()
        self._pool.shutdown(wait=False)

    def _here(self, method: Callable[..., Any], *, blocking: bool = True) -> Callable[..., Any]:
        """Return a method that gRPC calls on our threads."""

        def call(*args: Any) -> Any:
            return method(*args)

        call.experimental_thread_pool = self._pool  # type: ignore[attr-defined]
        call.experimental_non_blocking = not blocking  # type: ignore[attr-defined]
        return call

    def _check(self, messages: _Messages, context: grpc.ServicerContext) -> Any:
        return self._health.Check(self._asked(messages, context), context)

    def _watch(self, messages: _Messages, context: grpc.ServicerContext, send: _Send) -> None:
        self._health.Watch(self._asked(messages, context), context, send)

    def _reflect(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        received = self._receiver.stream(messages, context)
        answers: Iterator[Any] = self._reflection.ServerReflectionInfo(received, context)
        return answers

    def _asked(self, messages: _Messages, context: grpc.ServicerContext) -> Any:
        if self._pool.is_refusing():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many ask at once.")
        try:
            return health_pb2.HealthCheckRequest.FromString(
                self._receiver.receive(messages, context)
            )
        except (StopIteration, DecodeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "This is no HealthCheckRequest.")
