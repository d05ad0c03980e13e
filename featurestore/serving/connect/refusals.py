"""What is told to those who send no HTTP, or send it too slowly."""

from __future__ import annotations

from http import HTTPStatus

from featurestore.serving.connect.protocol import failure
from featurestore.serving.connect.requests import Request
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.security.calls import Call
from featurestore.serving.status import code_of

_SHOWN = 200


def noise(got: str, *, too_large: bool = False) -> RefusedError:
    """Return the error of what is no HTTP, in the words of the parser."""
    return RefusedError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST,
        "INVALID_ARGUMENT",
        "The head of the request is too large." if too_large else "The request is no HTTP/1.1.",
        got=ascii(got)[1:-1][:_SHOWN],
    )


def no_http(got: str, *, too_large: bool = False) -> Reply:
    """Return the answer to what is no HTTP, and was no call yet."""
    return failure(noise(got, too_large=too_large), Call("", ()).id, code_of)


def in_vain(request: Request, seconds: float) -> Reply:
    """Return the answer to a request that does not come."""
    part = "body" if request.is_headed else "head of the request"
    error = RefusedError(
        HTTPStatus.REQUEST_TIMEOUT,
        "CANCELLED",
        f"The {part} did not come in time.",
        allowed=f"{seconds:g} s",
        hint="Send it at once; serving.receive_seconds is the limit.",
    )
    if request.exchange is None:
        return failure(error, Call("", ()).id, code_of)
    return request.exchange.fail(error)
