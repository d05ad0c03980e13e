"""Which path is which method: found by the path alone, then by the verb."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError, listing, near_miss
from featurestore.serving.http.methods import JsonMethods
from featurestore.serving.methods import Method
from featurestore.serving.push import push_code_of
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.security.headers import REQUEST_ID
from featurestore.serving.status import code_of

if TYPE_CHECKING:
    from aiohttp import web

_LONGEST_PATH = 100


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path.

    Attributes:
        verb: GET, which HEAD is allowed for too, or POST.
        name: What the method is called, over gRPC as well.
        method: Answers calls; None where these are lookups, which are gathered.
        code_of: The gRPC status of an error of it.
        told: Instead of a method: returns what everybody is told at once, from the request's id.
    """

    verb: str
    name: str = ""
    method: Method | None = None
    code_of: Callable[[FeatureStoreError], Any] = code_of
    told: Callable[[str], Reply] | None = None

    @property
    def takes_body(self) -> bool:
        """Whether a body comes with it."""
        return self.verb == "POST"


class Routes:
    """What there is.

    Args:
        methods: Answer calls.
        is_answering: Says whether lookups can be answered now.
    """

    def __init__(self, methods: JsonMethods, is_answering: Callable[[], bool]) -> None:
        described = _description()
        ready = _health(is_answering)
        self._routes: Mapping[str, Route] = {
            "/v1/get-online-features": Route("POST", "GetOnlineFeatures"),
            "/v1/push": Route("POST", "Push", methods.push, push_code_of),
            "/v1/serving-info": Route("GET", "GetServingInfo", methods.get_serving_info),
            "/v1/health": Route("GET", told=ready),
            "/v1/health/ready": Route("GET", told=ready),
            "/v1/health/live": Route("GET", told=lambda name: _told(200, b'{"live":true}', name)),
            "/openapi.json": Route("GET", told=lambda name: _told(200, described, name)),
        }

    def of(self, request: web.BaseRequest) -> Route:
        """Return the route of a request.

        Raises:
            RefusedError: There is none, or it takes another verb.
        """
        path = request.path
        route = self._routes.get(path)
        if route is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                "NOT_FOUND",
                "There is nothing at this path.",
                got=ascii(path)[1:-1][:_LONGEST_PATH],
                allowed=listing(self._routes),
                hint=near_miss(path[:_LONGEST_PATH], self._routes),
            )
        if request.method != route.verb and (request.method, route.verb) != ("HEAD", "GET"):
            allowed = "POST" if route.takes_body else "GET, HEAD"
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "UNIMPLEMENTED",
                f"{path} takes another verb.",
                {"allow": allowed},
                got=ascii(request.method)[1:-1][:_LONGEST_PATH],
                allowed=allowed,
            )
        return route


def _health(is_answering: Callable[[], bool]) -> Callable[[str], Reply]:
    def told(request_id: str) -> Reply:
        ready = is_answering()
        body = json.dumps({"live": True, "ready": ready}).encode()
        return _told(200 if ready else 503, body, request_id)

    return told


def _told(status: int, body: bytes, request_id: str) -> Reply:
    return Reply(status, body, {REQUEST_ID: request_id})


def _description() -> bytes:
    """Return the description of all this for machines."""
    place = importlib.resources.files(__package__) / "openapi.json"
    described = json.loads(place.read_text(encoding="utf-8"))
    described["info"]["version"] = importlib.metadata.version("featurestore")
    return json.dumps(described).encode()
