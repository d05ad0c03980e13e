"""What the head of a request says: how long its caller waits, who that is, what comes as a body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import RequestError
from featurestore.serving.http.statuses import JSON_TYPE
from featurestore.serving.replies import RefusedError

if TYPE_CHECKING:
    from aiohttp import web

TIMEOUT, GRPC_TIMEOUT = "x-request-timeout", "grpc-timeout"
_SECONDS = re.compile(r"\d{1,8}(?:\.\d{1,9})?", re.ASCII)
_GRPC_SECONDS = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_NAME = 100


def headers_of(request: web.BaseRequest) -> Iterator[tuple[str, str]]:
    """Yield the headers, names in lower case; bytes that are no text stand for themselves."""
    for name, value in request.headers.items():
        fit = value if value.isascii() else value.encode(errors="surrogateescape").decode("latin-1")
        yield name.lower(), fit


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a caller waits, None for as long as it takes.

    Raises:
        RequestError: A header says something else.
    """
    text = headers.get(TIMEOUT)
    if text is not None:
        if not _SECONDS.fullmatch(text.strip()):
            raise _no_time(TIMEOUT, text, "seconds, such as 0.5")
        return float(text)
    text = headers.get(GRPC_TIMEOUT)
    if text is None:
        return None
    match = _GRPC_SECONDS.fullmatch(text.strip())
    if not match:
        raise _no_time(GRPC_TIMEOUT, text, "digits and a unit of H, M, S, m, u or n, such as 500m")
    return int(match[1]) * _UNITS[match[2]]


def check_content(headers: Mapping[str, str]) -> None:
    """Return if a body is JSON as it is.

    Raises:
        RefusedError: It is something else, or compressed: that could become larger than it is.
    """
    kind, _, options = headers.get("content-type", "").partition(";")
    charset = options.strip().lower().replace('"', "")
    if kind.strip().lower() != JSON_TYPE or charset not in {"", "charset=utf-8"}:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "INVALID_ARGUMENT",
            "The body is said to be something else than JSON.",
            where="content-type",
            got=ascii(headers.get("content-type", ""))[:_LONGEST_NAME],
            allowed=JSON_TYPE,
            hint=f"Send the header 'content-type: {JSON_TYPE}'.",
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "INVALID_ARGUMENT",
            "The body is compressed.",
            where="content-encoding",
            got=ascii(encoding)[:_LONGEST_NAME],
            allowed="identity",
        )


class Caller(Protocol):
    """A request or a connection that knows of its other end."""

    def get_extra_info(self, name: str, /) -> Any:
        """Return what is known by a name of asyncio's."""
        ...


def peer_of(caller: Caller) -> str:
    """Return who calls from where, as gRPC writes it."""
    name: Any = caller.get_extra_info("peername")
    if not isinstance(name, tuple):
        return "unknown"
    host, port = name[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def certificate_of(caller: Caller) -> str | None:
    """Return the first name in a caller's certificate, None where it shows none."""
    shown: Any = caller.get_extra_info("peercert")
    if not shown:
        return None
    others = [value for _, value in shown.get("subjectAltName", ())]
    names = [v for part in shown.get("subject", ()) for key, v in part if key == "commonName"]
    return next(iter((*others, *names)), "")[:_LONGEST_NAME]


def _no_time(name: str, got: str, allowed: str) -> RequestError:
    return RequestError(
        "A header is no time.", where=name, got=ascii(got)[:_LONGEST_NAME], allowed=allowed
    )
