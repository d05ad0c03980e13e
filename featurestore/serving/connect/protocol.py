"""What the Connect protocol says of a unary call: its head, its answer, its errors as JSON.

`https://connectrpc.com/docs/protocol`. Spoken is the binary form without compression; JSON is
spoken by the HTTP front, in columns as people write them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from google.protobuf.struct_pb2 import Struct

from featurestore.errors import FeatureStoreError, RequestError
from featurestore.serving.exchange import Manner
from featurestore.serving.http.statuses import breakdown as told_breakdown
from featurestore.serving.http.statuses import failure as told_failure
from featurestore.serving.replies import RefusedError, Reply
from featurestore.serving.status import parts_of

MESSAGE_TYPE = "application/proto"
TIMEOUT, VERSION = "connect-timeout-ms", "connect-protocol-version"
_VERSION = "1"
_MILLISECONDS = re.compile(r"\d{1,10}", re.ASCII)
_LONGEST_SHOWN = 100
_LONGEST_MESSAGE = 1_000
_DETAIL = "google.protobuf.Struct"


def failure(
    error: FeatureStoreError, request_id: str, code_of: Callable[[FeatureStoreError], Any]
) -> Reply:
    """Return the answer to a call that failed by an error of ours.

    Args:
        error: Why.
        request_id: The call's id.
        code_of: Tells the gRPC status of an error.
    """
    told = told_failure(error, request_id, code_of)
    code = error.code if isinstance(error, RefusedError) else code_of(error).name
    return Reply(told.status, _body(code, error), told.headers, told.closes)


def breakdown(what: str, request_id: str) -> Reply:
    """Return the answer to a call that failed in a way that nobody foresaw."""
    told = told_breakdown(what, request_id)
    return Reply(told.status, _body("INTERNAL", None, what), told.headers)


CONNECT = Manner("connect", failure, breakdown)


def seconds_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a caller waits, None for as long as it takes.

    Raises:
        RequestError: The header says something else.
    """
    text = headers.get(TIMEOUT)
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text):
        raise RequestError(
            "A header is no time.",
            where=TIMEOUT,
            got=ascii(text)[:_LONGEST_SHOWN],
            allowed="milliseconds of at most ten digits",
        )
    return int(text) / 1e3


def check_head(headers: Mapping[str, str]) -> None:
    """Return if a call is of this protocol.

    Raises:
        RefusedError: It is of another one or another version, or its message is compressed: that
            could become larger than it is.
    """
    kind = headers.get("content-type", "").strip().lower()
    if kind != MESSAGE_TYPE:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "INVALID_ARGUMENT",
            "The call is said to be something else than one of the Connect protocol.",
            {"accept-post": MESSAGE_TYPE},
            where="content-type",
            got=ascii(kind)[:_LONGEST_SHOWN],
            allowed=MESSAGE_TYPE,
            hint="gRPC and JSON are spoken at other addresses: see docs/clients.md.",
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RefusedError(
            HTTPStatus.NOT_IMPLEMENTED,
            "UNIMPLEMENTED",
            "The message is compressed.",
            {"accept-encoding": "identity"},
            where="content-encoding",
            got=ascii(encoding)[:_LONGEST_SHOWN],
            allowed="identity",
        )
    version = headers.get(VERSION, _VERSION)
    if version != _VERSION:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            "INVALID_ARGUMENT",
            "The call is of another version of the Connect protocol.",
            where=VERSION,
            got=ascii(version)[:_LONGEST_SHOWN],
            allowed=_VERSION,
        )


def _body(code: str, error: FeatureStoreError | None, what: str = "") -> bytes:
    # The protocol writes this one in the American way.
    name = "canceled" if code == "CANCELLED" else code.lower()
    told: dict[str, Any] = {"code": name, "message": what}
    if error is not None:
        # An error may show what came, and text that is none must not break its telling.
        message = str(error)[:_LONGEST_MESSAGE].encode(errors="replace").decode()
        parts = {
            part: text.encode(errors="replace").decode()
            for part, text in parts_of(error).items()
            if text is not None
        }
        detail = Struct()
        detail.update(parts)
        value = base64.b64encode(detail.SerializeToString()).decode().rstrip("=")
        told["message"] = message
        told["details"] = [{"type": _DETAIL, "value": value, "debug": parts}]
    return json.dumps(told, ensure_ascii=False).encode()
