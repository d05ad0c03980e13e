"""Errors over gRPC, both ways: a status for every class, and the whole error in trailing metadata.

The caller gets back the class that the server raised, with what, where, got, allowed and hint. What
the server did not raise on purpose is told by its status alone.
"""

from __future__ import annotations

import json
import math
from typing import Any

import grpc

from featurestore import errors
from featurestore.errors import FeatureStoreError

METADATA_KEY = "featurestore-error-bin"
# Clients that try again by themselves go by this, as gRPC has it.
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_PARTS = ("what", "where", "got", "allowed", "hint")
# Clients refuse more than 8 KiB of metadata in all, and binary metadata may travel as base64.
_LONGEST_PART = 900

# The first class that fits decides.
_CODES: tuple[tuple[type[FeatureStoreError], grpc.StatusCode], ...] = (
    (errors.FeatureNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.AsOfBeforeRowError, grpc.StatusCode.OUT_OF_RANGE),
    (errors.RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotMaterializedError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DefinitionError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DataError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.ConflictError, grpc.StatusCode.ABORTED),
)
_TOO_LARGE = "Send less at once, or raise the server's serving.max_message_bytes."
_CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, FeatureStoreError)
}


def code_of(error: FeatureStoreError) -> grpc.StatusCode:
    """Return the status that tells an error; INTERNAL for what is the server's own trouble."""
    return next((code for cls, code in _CODES if isinstance(error, cls)), grpc.StatusCode.INTERNAL)


def metadata_of(error: FeatureStoreError) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that carries an error, and when to try again."""
    told = json.dumps(parts_of(error), ensure_ascii=False).encode()
    retry = error.retry_seconds if isinstance(error, errors.UnavailableError) else None
    if retry is None:
        return ((METADATA_KEY, told),)
    return (METADATA_KEY, told), (_PUSHBACK_KEY, str(math.ceil(retry * 1000)))


def parts_of(error: FeatureStoreError) -> dict[str, str | None]:
    """Return what an error tells, and as `class` the nearest class that others know."""
    known = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _CLASSES)
    return {"class": known, **{part: shortened(getattr(error, part)) for part in _PARTS}}


def error_of(failure: Any, address: str) -> FeatureStoreError:
    """Return the error that a failed call stands for.

    Args:
        failure: The `grpc.RpcError` of a call.
        address: The server's address, for errors of the way there.
    """
    metadata = dict(failure.trailing_metadata() or ())
    carried = _carried(metadata.get(METADATA_KEY))
    if carried is not None:
        retry = metadata.get(_PUSHBACK_KEY, "")
        if isinstance(carried, errors.UnavailableError) and retry.isdecimal():
            carried.retry_seconds = int(retry) / 1000
        return carried
    return _by_status(failure.code(), failure.details() or "", address)


def is_lost(failure: Any) -> bool:
    """Whether a call failed on its way: no server of ours has said anything about it.

    A server that is being stopped refuses the calls that it has not begun as cancelled.
    """
    if failure.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return False
    return METADATA_KEY not in dict(failure.trailing_metadata() or ())


def _carried(value: Any) -> FeatureStoreError | None:
    try:
        parts = json.loads(value)
        cls = _CLASSES.get(parts["class"], FeatureStoreError)
        return cls(parts["what"], **{part: parts.get(part) for part in _PARTS[1:]})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _by_status(code: grpc.StatusCode, details: str, address: str) -> FeatureStoreError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError(
            f"The feature server at {address} did not answer before the deadline.",
            where=address,
            hint="Give it more time with timeout=, or look at the server.",
        )
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return errors.UnavailableError(
            f"The feature server at {address} cannot be reached.",
            where=address,
            got=details or None,
            hint="Is it running ('featurestore serve'), and is this its address?",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FeatureStoreError(
            f"The server at {address} does not serve features.", where=address, got=details
        )
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        unknown = code is grpc.StatusCode.UNAUTHENTICATED
        cls = errors.UnauthenticatedError if unknown else errors.AccessDeniedError
        return cls(f"The feature server at {address} refused the call.", where=address, got=details)
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        return errors.RequestError(
            f"The feature server at {address} refused the request.",
            where=address,
            got=details,
            hint=_TOO_LARGE if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None,
        )
    return FeatureStoreError(
        f"The feature server at {address} failed.", where=address, got=f"{code.name}: {details}"
    )


def shortened(text: str | None) -> str | None:
    """Return a part of an error as long as may be sent."""
    if text is None:
        return None
    # It may show what came, which need not be Unicode.
    data = text.encode(errors="replace")
    if len(data) <= _LONGEST_PART:
        return data.decode()
    return data[:_LONGEST_PART].decode(errors="ignore") + "..."
