"""The methods of the service, whatever front a call came through.

A front hands over what came, the seconds that are left for it, and the call. Here it is permitted,
answered and told to observers; what fails raises an error of ours, which the front makes a status.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from featurestore.errors import RequestError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.services.response import OnlineResponse
from featurestore.serving.info import write_info
from featurestore.serving.observing import Observer
from featurestore.serving.push import EventSink, PushMethod, write_receipt
from featurestore.serving.requests import ReadRequest, read_request
from featurestore.serving.security.calls import Call
from featurestore.serving.security.guard import Guard
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import writer_of

# The share of a caller's time that the store may take; the rest is for telling that it did not.
_STORE_SHARE = 0.8


class Methods:
    """Answers calls.

    Args:
        reader: Answers the lookups.
        guard: Says what a caller may do.
        settings: The limits.
        events: Takes pushed events; without it pushes are refused.
        observers: Hear what lookups have found.
    """

    def __init__(
        self,
        reader: OnlineReader,
        guard: Guard,
        settings: ServingSettings,
        events: EventSink | None,
        observers: Sequence[Observer],
    ) -> None:
        self._reader = reader
        self._guard = guard
        self._limit = settings.max_message_bytes
        self._push = PushMethod(events)
        self._observers = observers

    def get_online_features(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a GetOnlineFeaturesRequest with a GetOnlineFeaturesResponse."""
        try:
            message = pb.GetOnlineFeaturesRequest.FromString(request)
        except DecodeError as error:
            raise RequestError("The request is no GetOnlineFeaturesRequest.") from error
        asked = read_request(message, self._limit)
        answer = self.look_up(asked, left, call)
        data = writer_of(answer.layout).write(answer, asked.sent)
        if len(data) > self._limit:
            raise RequestError(
                "The answer is larger than the server sends.",
                got=f"{len(data)} bytes",
                allowed=f"{self._limit} bytes",
                hint="Ask for fewer entity rows at once, or raise serving.max_message_bytes.",
            )
        return data

    def look_up(self, asked: ReadRequest, left: float | None, call: Call) -> OnlineResponse:
        """Return what was asked for, if the caller may read it.

        Raises:
            RequestError: It makes no sense, or asks for too much.
            AccessDeniedError: The caller may not read it.
            FeatureStoreError: Whatever else the lookup raises.
        """
        guard = self._guard
        guard.begin_read(call, asked.features, asked.entity_rows.rows, self._reader.state)
        patience = None if left is None else left * _STORE_SHARE
        answer = guard.breaker.run(
            lambda: self._reader.get_online_features(
                asked.features,
                asked.entity_rows,
                as_of=asked.as_of,
                request=asked.request,
                full_feature_names=asked.full_feature_names,
                timeout=patience,
            ),
            patience,
        )
        guard.end_read(call, answer)
        for observer in self._observers:
            observer.answered(call, asked, answer)
        return answer

    def push(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a PushRequest with a PushResponse."""
        del left  # the stream's own timeout bounds the wait
        message = self._push.read(request)
        self._guard.begin_push(call, message.source)
        receipt = self._push.put(message)
        call.facts["rows"] = receipt.accepted
        data: bytes = write_receipt(receipt).SerializeToString()
        return data

    def get_serving_info(self, request: bytes, left: float | None, call: Call) -> bytes:
        """Answer a GetServingInfoRequest with a GetServingInfoResponse."""
        del request, left
        state = self._reader.state.get()
        visible = self._guard.access.visible(call.principal, state)
        data: bytes = write_info(state, visible).SerializeToString()
        return data
