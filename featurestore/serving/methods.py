"""The methods of the service, whatever front a call came through.

A front hands over what came, the seconds that are left for it, and the call. Here it is permitted,
answered and told to observers; what fails raises an error of ours, which the front makes a status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from featurestore.errors import FeatureStoreError, RequestError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader, Prepared
from featurestore.services.response import OnlineResponse
from featurestore.serving.freshness import Freshness
from featurestore.serving.info import write_info
from featurestore.serving.observing import READS, Observer
from featurestore.serving.push import EventSink, PushMethod, read_events, write_receipt
from featurestore.serving.requests import ReadRequest, read_request
from featurestore.serving.security.calls import Call
from featurestore.serving.security.guard import Guard
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import writer_of

# The share of a caller's time that the store may take; the rest is for telling that it did not.
_STORE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Planned:
    """A lookup that was read, permitted and checked, and not made yet.

    Attributes:
        asked: What came.
        prepared: The same, ready to be made.
        call: Its call.
    """

    asked: ReadRequest
    prepared: Prepared
    call: Call


class Method(Protocol):
    """Answers the bytes of a request, in so many seconds (None: any), for a call."""

    def __call__(self, request: bytes, left: float | None, call: Call, /) -> bytes:
        """Return the bytes of the answer."""
        ...


class Methods:
    """Answers calls.

    Args:
        reader: Answers the lookups.
        guard: Says what a caller may do.
        settings: The limits.
        events: Takes pushed events; without it pushes are refused.
        observers: Hear what lookups have found.
        freshness: Knows how fresh the views are.
    """

    def __init__(  # noqa: PLR0917
        self,
        reader: OnlineReader,
        guard: Guard,
        settings: ServingSettings,
        events: EventSink | None,
        observers: Sequence[Observer],
        freshness: Freshness | None = None,
    ) -> None:
        self._reader = reader
        self._freshness = freshness
        self._guard = guard
        self._limit = settings.max_message_bytes
        self._push = PushMethod(events)
        self._observers = observers

    def get_online_features(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a GetOnlineFeaturesRequest with a GetOnlineFeaturesResponse."""
        return self.answer(self.plan(request, call), left, call)

    def plan(self, request: bytes, call: Call) -> Planned:
        """Return what a GetOnlineFeaturesRequest asks for, if the caller may read it."""
        try:
            message = pb.GetOnlineFeaturesRequest.FromString(request)
        except DecodeError as error:
            raise RequestError("The request is no GetOnlineFeaturesRequest.") from error
        return self.planned(read_request(message, self._limit), call)

    def planned(self, asked: ReadRequest, call: Call) -> Planned:
        """Return a lookup that was read as one to be made, if its caller may read it.

        Raises:
            RequestError: It makes no sense, or asks for too much.
            AccessDeniedError: The caller may not read it.
        """
        call.rows = asked.entity_rows.rows
        self._guard.begin_read(call, asked.features, asked.entity_rows.rows, self._reader.state)
        prepared = self._reader.prepare(
            asked.features,
            asked.entity_rows,
            as_of=asked.as_of,
            request=asked.request,
            full_feature_names=asked.full_feature_names,
        )
        return Planned(asked, prepared, call)

    def answer(self, planned: Planned, left: float | None, call: Call) -> bytes:
        """Answer a lookup that was planned."""
        return self.written(planned, self.read(planned, left), call)

    def read(self, planned: Planned, left: float | None) -> OnlineResponse:
        """Return what a lookup finds.

        Raises:
            FeatureStoreError: Whatever the lookup raises.
        """
        patience = patience_of(left)
        with READS.made_for((planned.call,)):
            return self._guard.breaker.run(
                lambda: self._reader.look_up(planned.prepared, patience), patience
            )

    def read_together(
        self, planned: Sequence[Planned], left: float | None
    ) -> list[OnlineResponse | FeatureStoreError]:
        """Return what small lookups find, or why one has no answer, by one round trip."""
        patience = patience_of(left)
        prepared = [each.prepared for each in planned]
        with READS.made_for([each.call for each in planned]):
            return self._guard.breaker.run(
                lambda: self._reader.look_up_together(prepared, patience), patience
            )

    def written(self, planned: Planned, answer: OnlineResponse, call: Call) -> bytes:
        """Return the bytes of what a lookup has found."""
        self.tell(planned, answer, call)
        data = writer_of(answer.layout).write(answer, planned.asked.sent)
        if len(data) > self._limit:
            raise RequestError(
                "The answer is larger than the server sends.",
                got=f"{len(data)} bytes",
                allowed=f"{self._limit} bytes",
                hint="Ask for fewer entity rows at once, or raise serving.max_message_bytes.",
            )
        return data

    def tell(self, planned: Planned, answer: OnlineResponse, call: Call) -> None:
        """Tell those who hear of lookups what one has found."""
        self._guard.end_read(call, answer)
        for observer in self._observers:
            observer.answered(call, planned.asked, answer)

    def push(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a PushRequest with a PushResponse."""
        message = self._push.read(request)
        call.source = message.source
        self._guard.begin_push(call, message.source)
        events = read_events(message)
        call.rows = events.num_rows
        receipt = self._push.put(message.source, events, patience_of(left))
        call.facts["rows"] = receipt.accepted
        data: bytes = write_receipt(receipt).SerializeToString()
        return data

    def get_serving_info(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a GetServingInfoRequest with a GetServingInfoResponse."""
        del request, left
        state = self._reader.state.get()
        visible = self._guard.access.visible(call.principal, state)
        data: bytes = write_info(state, visible, self._freshness).SerializeToString()
        return data


def patience_of(left: float | None) -> float | None:
    """Return how long a store or stream may take where a caller waits for so long."""
    return None if left is None else left * _STORE_SHARE
