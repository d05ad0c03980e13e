"""One call as its server sees it: its id, who makes it, and what the audit will say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from featurestore.access.audit import new_request_id
from featurestore.access.scopes import ANYONE, Principal
from featurestore.serving.security.headers import (
    API_KEY,
    AUTHORIZATION,
    REQUEST_ID,
    TRACE_PARENT,
    TRACE_STATE,
)

_FIT = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)


class Call:
    """A call, from when it came to when it was answered.

    Args:
        method: What is called.
        headers: The metadata or headers that came with it, names in lower case.

    Attributes:
        id: The caller's `x-request-id` if it has one that fits, or one of our own.
        principal: Who makes it, once that is known.
        begun: When it came, by the clock's `monotonic`.
        facts: What the audit says beyond that.
        rows: The entity rows of a lookup, or the events of a push, once they have been read.
        source: The source that a push names; it need not exist.
        parent: The span of the caller's that this call is part of (W3C `traceparent`).
        vendors: What tracing systems on the way there have noted of it (W3C `tracestate`).
        span: The span of this call, where it is traced.
        front: What it came by: "grpc", "http" or "connect".
    """

    __slots__ = (
        "api_key",
        "authorization",
        "begun",
        "facts",
        "front",
        "id",
        "method",
        "parent",
        "principal",
        "rows",
        "source",
        "span",
        "vendors",
    )

    def __init__(self, method: str, headers: Iterable[tuple[str, str | bytes]]) -> None:
        self.method = method
        self.id = ""
        self.principal: Principal = ANYONE
        self.begun = 0.0
        self.api_key: str | None = None
        self.authorization: str | None = None
        self.facts: dict[str, object] = {}
        self.rows = 0
        self.source: str | None = None
        self.parent: str | None = None
        self.vendors: str | None = None
        self.span: object | None = None
        self.front = "grpc"
        for name, value in headers:
            if name == REQUEST_ID:
                if isinstance(value, str) and _FIT.fullmatch(value):
                    self.id = value
            elif name == API_KEY:
                self.api_key = str(value)
            elif name == AUTHORIZATION:
                self.authorization = str(value)
            elif name == TRACE_PARENT:
                self.parent = str(value)
            elif name == TRACE_STATE:
                self.vendors = str(value)
        self.id = self.id or new_request_id()

    def __repr__(self) -> str:
        return f"Call({self.method!r}, id={self.id!r}, principal={self.principal.name!r})"
