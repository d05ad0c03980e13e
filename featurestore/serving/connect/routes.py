"""Which path is which method of the Connect protocol, and the health that everybody is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from featurestore.errors import FeatureNotFoundError, FeatureStoreError, RequestError, near_miss
from featurestore.serving.client_calls import SERVICE
from featurestore.serving.health import SERVICE_NAME as HEALTH
from featurestore.serving.methods import Method, Methods
from featurestore.serving.push import push_code_of
from featurestore.serving.replies import RefusedError
from featurestore.serving.status import code_of

_LONGEST_SHOWN = 100
_VERB = "POST"


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path.

    Attributes:
        name: What the method is called, over gRPC as well.
        method: Answers calls on a thread; None where lookups are gathered.
        code_of: The gRPC status of an error of it.
        told: Instead of a method: what everybody is told at once.
    """

    name: str
    method: Method | None = None
    code_of: Callable[[FeatureStoreError], Any] = code_of
    told: Callable[[bytes], bytes] | None = None


class Routes:
    """What there is.

    Args:
        methods: Answer calls.
        is_answering: Says whether lookups can be answered now.
    """

    def __init__(self, methods: Methods, is_answering: Callable[[], bool]) -> None:
        self._is_answering = is_answering
        self._routes: Mapping[bytes, Route] = {
            f"/{SERVICE}/GetOnlineFeatures".encode(): Route("GetOnlineFeatures"),
            f"/{SERVICE}/Push".encode(): Route("Push", methods.push, push_code_of),
            f"/{SERVICE}/GetServingInfo".encode(): Route(
                "GetServingInfo", methods.get_serving_info
            ),
            f"/{HEALTH}/Check".encode(): Route("Check", told=self._health),
        }

    def of(self, path: bytes, verb: str) -> Route:
        """Return the route of a request.

        Raises:
            RefusedError: There is none, or it takes another verb.
        """
        route = self._routes.get(path)
        if route is None:
            shown = path[:_LONGEST_SHOWN].decode("ascii", "backslashreplace")
            known = [each.decode() for each in self._routes]
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                "UNIMPLEMENTED",
                "There is no such method.",
                got=shown,
                allowed=", ".join(known),
                hint=near_miss(shown, known),
            )
        if verb != _VERB:
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "UNIMPLEMENTED",
                "Methods are called by another verb.",
                {"allow": _VERB},
                got=verb[:_LONGEST_SHOWN],
                allowed=_VERB,
            )
        return route

    def _health(self, body: bytes) -> bytes:
        try:
            name = health_pb2.HealthCheckRequest.FromString(body).service
        except DecodeError as error:
            raise RequestError("This is no HealthCheckRequest.") from error
        if name not in {"", SERVICE}:
            raise FeatureNotFoundError(
                "There is no such service.", got=ascii(name)[:_LONGEST_SHOWN], allowed=SERVICE
            )
        status = health_pb2.HealthCheckResponse
        found = status.SERVING if self._is_answering() else status.NOT_SERVING
        data: bytes = status(status=found).SerializeToString()
        return data
