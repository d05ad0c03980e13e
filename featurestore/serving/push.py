"""Pushes over gRPC, both ways: events as a message, and the receipt.

The server decodes events into a table and hands it to the store, which knows what its sources take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
import pyarrow as pa
from google.protobuf.message import DecodeError

from featurestore.errors import DataError, FeatureStoreError, RequestError, SourceSchemaError
from featurestore.services.event_table import events_table
from featurestore.services.pushing_events import PushReceipt
from featurestore.serving.arrow_stream import read_stream, write_stream
from featurestore.serving.conversion import read_columns
from featurestore.serving.status import code_of
from featurestore.serving.v1 import serving_pb2 as pb


class EventSink(Protocol):
    """Whoever takes events, such as a feature store."""

    def push(self, source: str, events: pa.Table, *, timeout: float | None) -> PushReceipt:
        """Append events to the stream of a source; see `services.pushing_events`."""
        ...


EventReader = Callable[[str, Sequence[Mapping[str, Any]]], pa.Table]
"""Returns JSON objects as events of a source; see `services.pushing_events.EventPusher.typed`."""


class NoEventsError(RequestError):
    """The server was started without anything that takes events."""


class PushMethod:
    """The method `Push`, in two steps: whether the caller may is asked in between.

    Args:
        sink: Takes the events; None refuses them all.
    """

    def __init__(self, sink: EventSink | None) -> None:
        self._sink = sink

    def read(self, request: bytes) -> pb.PushRequest:
        """Return the message of a request; its events are not looked at yet.

        Raises:
            RequestError: It breaks the protocol, or nobody here takes events.
        """
        if self._sink is None:
            raise NoEventsError("This feature server takes no events.")
        try:
            message = pb.PushRequest.FromString(request)
        except DecodeError as error:
            raise RequestError("The request is no PushRequest.") from error
        if not message.source:
            raise RequestError("A push names no source.")
        return message

    def put(self, source: str, events: pa.Table, timeout: float | None) -> PushReceipt:
        """Hand events over, waiting for so many seconds at most (None: as the stream is set).

        Raises:
            RequestError: The store refuses them.
            FeatureStoreError: Whatever else the store raises.
        """
        if self._sink is None:
            raise NoEventsError("This feature server takes no events.")
        return self._sink.push(source, events, timeout=timeout)


def push_code_of(error: FeatureStoreError) -> grpc.StatusCode:
    """Return the status of a failed push: what is wrong with the events is wrong with the call."""
    if isinstance(error, NoEventsError):
        return grpc.StatusCode.UNIMPLEMENTED
    if isinstance(error, DataError | SourceSchemaError):
        return grpc.StatusCode.INVALID_ARGUMENT
    return code_of(error)


def write_push(source: str, events: Any) -> pb.PushRequest:
    """Return the message of a push.

    Raises:
        RequestError: The events cannot be read as rows.
    """
    return pb.PushRequest(source=source, arrow_ipc=write_stream(events_table(events)))


def read_events(message: pb.PushRequest) -> pa.Table:
    """Return the events of a message.

    Raises:
        RequestError: It breaks the protocol.
    """
    kind = message.WhichOneof("events")
    if kind is None:
        raise RequestError(
            "A push holds no events.",
            where=f"source '{message.source}'",
            allowed="columns, or arrow_ipc",
        )
    if kind == "arrow_ipc":
        return read_stream(message.arrow_ipc)
    columns = read_columns(message.columns.columns, "events")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(
            "The columns of 'events' differ in length.",
            got=", ".join(f"{name}: {length}" for name, length in lengths.items()),
            allowed="one length",
        )
    return pa.table(columns)


def write_receipt(receipt: PushReceipt) -> pb.PushResponse:
    """Return the message of a receipt."""
    positions = [
        pb.StreamPosition(partition=partition, position=position)
        for partition, position in receipt.positions.items()
    ]
    return pb.PushResponse(accepted=receipt.accepted, positions=positions)


def read_receipt(message: pb.PushResponse) -> PushReceipt:
    """Return the receipt that a message holds."""
    positions = {item.partition: item.position for item in message.positions}
    return PushReceipt(message.accepted, positions)
