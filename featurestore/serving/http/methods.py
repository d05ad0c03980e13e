"""The methods of the service with JSON on both sides: what stands between a body and an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore.errors import FeatureStoreError, RequestError
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.services.response import OnlineResponse
from featurestore.serving.http.answers import answer_writer, write_info, write_receipt
from featurestore.serving.http.lookups import Reader, check_fields, too_large
from featurestore.serving.http.parsing import parse, shown, too_deep
from featurestore.serving.info import read_info
from featurestore.serving.methods import Methods, Planned, patience_of
from featurestore.serving.push import EventReader, EventSink, NoEventsError
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.security.guard import Guard
from featurestore.serving.v1 import serving_pb2 as pb


class JsonMethods:
    """Answers calls.

    Args:
        methods: Answers them, once they are read.
        reader: Knows the definitions.
        guard: Says what a caller may do.
        settings: The limits.
        events: Takes pushed events; without it pushes are refused.
        event_reader: Reads them.
    """

    def __init__(  # noqa: PLR0917
        self,
        methods: Methods,
        reader: OnlineReader,
        guard: Guard,
        settings: ServingSettings,
        events: EventSink | None,
        event_reader: EventReader | None,
    ) -> None:
        self._methods = methods
        self._states = reader.state
        self._reader = Reader(reader.state, settings.max_message_bytes)
        self._guard = guard
        self._limit = settings.max_message_bytes
        self._events = events
        self._event_reader = event_reader

    def plan(self, body: bytes, call: Call) -> Planned:
        """Return what a lookup asks for, if its caller may read it."""
        return self._methods.planned(self._read(body, call), call)

    def answer(self, planned: Planned, left: float | None, call: Call) -> bytes:
        """Answer a lookup that was planned."""
        return self.written(planned, self._methods.read(planned, left), call)

    def read_together(
        self, planned: Sequence[Planned], left: float | None
    ) -> list[OnlineResponse | FeatureStoreError]:
        """Return what small lookups find, or why one has no answer, by one round trip."""
        return self._methods.read_together(planned, left)

    def written(self, planned: Planned, answer: OnlineResponse, call: Call) -> bytes:
        """Return the JSON of what a lookup has found."""
        self._methods.tell(planned, answer, call)
        data = answer_writer(answer.layout).write(answer)
        if len(data) > self._limit:
            raise too_large(f"{len(data)} bytes", self._limit)
        return data

    def push(self, body: bytes, left: float | None, call: Call) -> bytes:
        """Answer a push."""
        if self._events is None or self._event_reader is None:
            raise NoEventsError("This feature server takes no events.")
        try:
            source, events = _pushed(parse(body))
            call.source, call.rows = source, len(events)
            self._guard.begin_push(call, source)
            rows = self._event_reader(source, events)
        except RecursionError as error:
            raise too_deep() from error
        receipt = self._events.push(source, rows, timeout=patience_of(left))
        call.facts["rows"] = receipt.accepted
        return write_receipt(receipt)

    def get_serving_info(self, body: bytes, left: float | None, call: Call) -> bytes:
        """Tell what is served."""
        data = self._methods.get_serving_info(body, left, call)
        return write_info(read_info(pb.GetServingInfoResponse.FromString(data)))

    def _read(self, body: bytes, call: Call) -> ReadRequest:
        """Return what is asked for, if the caller may read it.

        Whether it may is asked before anything of the definitions is told, by errors of types too.
        """
        try:
            asked = self._reader.untyped(parse(body))
            self._guard.begin_read(call, asked.features, asked.entity_rows.rows, self._states)
            return self._reader.typed(asked)
        except RecursionError as error:
            raise too_deep() from error


def _pushed(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the source and the events of a push."""
    check_fields(body, ("source", "events"), ("source", "events"), "the body")
    source, events = body["source"], body["events"]
    if not isinstance(source, str):
        raise RequestError("'source' is no text.", got=shown(source))
    if not isinstance(events, list) or not all(isinstance(item, dict) for item in events):
        raise RequestError("'events' is no list of objects.", got=shown(events))
    return source, events
