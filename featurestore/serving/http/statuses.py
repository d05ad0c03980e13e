"""Errors over HTTP: a status for every class, and the error as JSON.

`code` is the name of the gRPC status, which the HTTP status follows from by a fixed table. What is
refused before it is known what is called has an HTTP status of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from featurestore.errors import FeatureStoreError, OverloadedError, UnavailableError
from featurestore.serving.exchange import Manner
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.security.headers import REQUEST_ID
from featurestore.serving.status import shortened

JSON_TYPE = "application/json"
# As gRPC's own statuses are told over HTTP everywhere (google.rpc.Code).
HTTP_STATUSES = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_PARTS = ("what", "where", "got", "allowed", "hint")


def too_large(what: str, got: str, limit: int) -> RefusedError:
    """Return the error of a body that is longer than the server takes.

    Args:
        what: What the front calls it: "body" or "message".
        got: How long it is, as far as that is known.
        limit: How many bytes it may have.
    """
    return RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "RESOURCE_EXHAUSTED",
        f"The {what} is larger than the server takes.",
        got=got,
        allowed=f"{limit} bytes",
        hint="Send less at once, or raise the server's serving.max_message_bytes.",
    )


def crowded() -> OverloadedError:
    """Return the error of a body that is one too many, of all that are held at once."""
    error = OverloadedError(
        "The server holds more of large requests than it takes on.", hint="Try again in 1 s."
    )
    error.retry_seconds = 1.0
    return error


def refusal(error: RefusedError, request_id: str) -> Reply:
    """Return the answer to a request that is refused; the connection ends, as a body may follow."""
    body = _body(error.code, error, request_id)
    return Reply(error.status, body, {REQUEST_ID: request_id, **error.headers}, closes=True)


def failure(
    error: FeatureStoreError, request_id: str, code_of: Callable[[FeatureStoreError], Any]
) -> Reply:
    """Return the answer to a call that failed by an error of ours.

    Args:
        error: Why.
        request_id: The call's id.
        code_of: Tells the gRPC status of an error.
    """
    if isinstance(error, RefusedError):
        return refusal(error, request_id)
    code: str = code_of(error).name
    headers = {REQUEST_ID: request_id}
    if isinstance(error, UnavailableError) and error.retry_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_seconds)))
    if code == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    return Reply(HTTP_STATUSES[code], _body(code, error, request_id), headers)


def breakdown(what: str, request_id: str) -> Reply:
    """Return the answer to a call that failed in a way that nobody foresaw."""
    body = _body("INTERNAL", FeatureStoreError(what), request_id)
    return Reply(HTTP_STATUSES["INTERNAL"], body, {REQUEST_ID: request_id})


def _body(code: str, error: FeatureStoreError, request_id: str) -> bytes:
    parts = {part: shortened(getattr(error, part)) for part in _PARTS}
    told = {"error": {"code": code, **parts, "request_id": request_id}}
    # An error may show what came, and text that is none must not break its telling.
    return json.dumps(told, ensure_ascii=False).encode(errors="replace")


JSON = Manner("http", failure, breakdown)
