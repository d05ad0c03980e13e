"""One call as its server sees it: its id, who makes it, and what the audit will say of it."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterable

from featurestore.serving.security.access import ANYONE
from featurestore.serving.security.headers import API_KEY, AUTHORIZATION, REQUEST_ID
from featurestore.serving.security.scopes import Principal

_FIT = re.compile(r"[\w.:@/+=-]{1,128}", re.ASCII)
# Ids need not be secret, only distinct: a random beginning a process, and a number.
_PROCESS = secrets.token_hex(6)
_NUMBERS = itertools.count(1)


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
    """

    __slots__ = ("api_key", "authorization", "begun", "facts", "id", "method", "principal")

    def __init__(self, method: str, headers: Iterable[tuple[str, str | bytes]]) -> None:
        self.method = method
        self.id = ""
        self.principal: Principal = ANYONE
        self.begun = 0.0
        self.api_key: str | None = None
        self.authorization: str | None = None
        self.facts: dict[str, object] = {}
        for name, value in headers:
            if name == REQUEST_ID:
                if isinstance(value, str) and _FIT.fullmatch(value):
                    self.id = value
            elif name == API_KEY:
                self.api_key = str(value)
            elif name == AUTHORIZATION:
                self.authorization = str(value)
        self.id = self.id or f"{_PROCESS}-{next(_NUMBERS)}"

    def __repr__(self) -> str:
        return f"Call({self.method!r}, id={self.id!r}, principal={self.principal.name!r})"
