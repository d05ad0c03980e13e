"""What goes back to a caller, whatever front it called; and the error of one who is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

from featurestore.errors import RequestError


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to a caller.

    Attributes:
        status: Of HTTP; over gRPC the number of its status where it is none that succeeded.
        body: The answer, or what tells the error.
        headers: What it says beside that; over gRPC its trailing metadata.
        closes: Whether the connection ends with it.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    closes: bool = False


class RefusedError(RequestError):
    """A request is refused by what HTTP says of it, before anything answers it.

    Args:
        status: Of HTTP.
        code: The name of the gRPC status that comes nearest.
        what: One sentence that says what is wrong.
        headers: What the answer says beside that.
        parts: What else the error tells; see `FeatureStoreError`.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        what: str,
        headers: dict[str, str] | None = None,
        **parts: str | None,
    ) -> None:
        super().__init__(what, **parts)
        self.status = int(status)
        self.code = code
        self.headers = headers or {}
