"""Who else hears of calls: metrics, traces and the log of what was served attach here.

An observer hears of every call of every front. It is called on the thread that answers, so it
takes no time to speak of, waits for nothing, and never raises.
"""

from __future__ import annotations

from typing import Protocol

from featurestore.errors import FeatureStoreError
from featurestore.services.response import OnlineResponse
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call


class Observer(Protocol):
    """Hears of calls as they come and go."""

    def begun(self, call: Call) -> None:
        """Hear of a call before it is admitted; `call.begun` says when that was."""
        ...

    def answered(self, call: Call, asked: ReadRequest, answer: OnlineResponse) -> None:
        """Hear what a lookup has found; it is not sent yet."""
        ...

    def ended(self, call: Call, status: str, error: FeatureStoreError | None) -> None:
        """Hear how a call ended.

        Args:
            call: The call.
            status: "OK", or the name of a gRPC status.
            error: Why it failed, where that is an error of ours.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; no call comes any more."""
        ...
