"""What every client of a feature server has in common, however it waits for answers.

Checks what it is given, makes messages of calls and answers of messages, and decides whether a call
that was lost on its way is tried again. Refuses to send a secret in plain text over a network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurestore.clock import Clock, SystemClock
from featurestore.compile.request import FeaturesArgument
from featurestore.errors import MissingColumnError, RequestError, SettingsError, UnavailableError
from featurestore.services.columns import InputRows
from featurestore.services.online import checked_as_of
from featurestore.services.response import OnlineResponse
from featurestore.serving.requests import explain_missing, write_request
from featurestore.serving.responses import read_response
from featurestore.serving.security.headers import API_KEY, AUTHORIZATION
from featurestore.serving.security.tls import Pem, channel_credentials
from featurestore.serving.status import error_of, is_lost
from featurestore.serving.v1 import serving_pb2 as pb

if TYPE_CHECKING:
    import grpc

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name
Token = str | Callable[[], str]

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that was restarted is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # This is how long connecting may take, whatever its name says: long enough for a server that is
    # busy to greet, and short enough that one that hangs is left for another within a call's time.
    ("grpc.min_reconnect_backoff_ms", 2_000),
)
# Before a lookup that was lost on its way is tried again. The second is longer than a channel waits
# before it connects anew, and the third leaves a busy server the time to take it in: until then all
# calls of the channel fail.
_PAUSES = (0.0, 0.15, 0.5)


class Stubs:
    """The methods of the service on a channel, blocking or not.

    Args:
        channel: A channel of `grpc` or `grpc.aio`.
    """

    def __init__(self, channel: Any) -> None:
        self.lookup = channel.unary_unary(
            f"/{SERVICE}/GetOnlineFeatures",
            request_serializer=pb.GetOnlineFeaturesRequest.SerializeToString,
            response_deserializer=pb.GetOnlineFeaturesResponse.FromString,
        )
        self.push = channel.unary_unary(
            f"/{SERVICE}/Push",
            request_serializer=pb.PushRequest.SerializeToString,
            response_deserializer=pb.PushResponse.FromString,
        )
        self.info = channel.unary_unary(
            f"/{SERVICE}/GetServingInfo",
            request_serializer=pb.GetServingInfoRequest.SerializeToString,
            response_deserializer=pb.GetServingInfoResponse.FromString,
        )


class Connecting:
    """Where a client's calls go, who makes them, and how long they may take.

    Args:
        who: The client's class, for errors.
        address: host:port.
        timeout: Seconds that a call may take, by default.
        tls: Whether to speak TLS. By default it is spoken where a certificate is given.
        certificates: Whom to trust, the client's own certificate, and its key; see the clients.
        credentials: For TLS of another make, instead of these.
        api_key: Says who calls.
        token: Says who calls, instead of a key.

    Attributes:
        address: As it was given.
        credentials: For TLS; None is plain text.

    Raises:
        SettingsError: A file cannot be read, or a secret would travel in plain text over a network
            without `tls=False` having been said.
    """

    def __init__(  # noqa: PLR0917
        self,
        who: str,
        address: str,
        timeout: float,
        tls: bool | None,  # noqa: FBT001  (as the clients have it)
        certificates: tuple[Pem | None, Pem | None, Pem | None],
        credentials: grpc.ChannelCredentials | None,
        api_key: str | None,
        token: Token | None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._clock: Clock = SystemClock()
        self._shown = _shown(who, api_key, token)
        if tls is False and any(certificates):
            raise SettingsError("Certificates need TLS.", where=who, got="tls=False")
        if credentials is None and (tls or any(certificates)):
            credentials = channel_credentials(*certificates)
        if credentials is None and tls is None and self._shown and not is_loopback(address):
            raise _in_plain_text(address)
        self.credentials = credentials

    def trial(self, timeout: float | None, *, again: bool = False) -> Trial:
        """Begin a call.

        Args:
            timeout: Seconds that it may take; None takes the client's.
            again: Whether it may be made twice, as it only reads.
        """
        seconds = self._timeout if timeout is None else timeout
        shown = None if self._shown is None else (self._shown(),)
        return Trial(self.address, self._clock, seconds, shown, _PAUSES if again else ())

    def closed(self, error: BaseException) -> UnavailableError:
        """Return the error of a call of a client that is closed."""
        return UnavailableError(
            f"The client of {self.address} is closed.", where=self.address, got=str(error) or None
        )


class Trial:
    """One call of a client, made once or several times.

    Args:
        address: The server's.
        clock: Measures the time that is left.
        seconds: How long all of it may take.
        metadata: Says who makes it.
        pauses: Before each further time.

    Attributes:
        seconds: How long it may take when it is made now.
        metadata: Goes with each.
    """

    def __init__(
        self,
        address: str,
        clock: Clock,
        seconds: float,
        metadata: tuple[tuple[str, str], ...] | None,
        pauses: Sequence[float],
    ) -> None:
        self.seconds = seconds
        self.metadata = metadata
        self._address = address
        self._clock = clock
        self._end = clock.monotonic() + seconds
        self._pauses: Iterator[float] = iter(pauses)

    def pause_after(self, failure: Any) -> float:
        """Return the seconds to wait before a failed call is made again.

        Args:
            failure: Its `grpc.RpcError`.

        Raises:
            FeatureStoreError: It is not made again; what the failure stands for.
        """
        pause = next(self._pauses, None)
        if pause is None or not is_lost(failure):
            raise error_of(failure, self._address) from failure
        self.seconds = self._end - self._clock.monotonic() - pause
        if self.seconds <= 0:
            raise error_of(failure, self._address) from failure
        return pause


@dataclass(frozen=True, slots=True)
class LookupCall:
    """A lookup as a message.

    Attributes:
        message: It.
        left_out: The columns that could not be sent, each with the reason.
    """

    message: pb.GetOnlineFeaturesRequest
    left_out: dict[str, str]

    @classmethod
    def of(
        cls,
        features: FeaturesArgument,
        entity_rows: Any,
        as_of: datetime | str | int | None,
        request: Any,
        *,
        full_feature_names: bool,
    ) -> LookupCall:
        """Return the message of a lookup; see `OnlineClient.get_online_features`.

        Raises:
            RequestError: Something asked for makes no sense; its subclasses say what.
        """
        rows = InputRows.of(entity_rows)
        fields = None if request is None else InputRows.of_request(request, rows.rows)
        message, left_out = write_request(
            features,
            rows,
            fields,
            None if as_of is None else checked_as_of(as_of),
            full_feature_names=full_feature_names,
        )
        return cls(message, left_out)

    def answered(self, message: pb.GetOnlineFeaturesResponse) -> OnlineResponse:
        """Return the answer that a message holds."""
        return read_response(message)

    def explained(self, error: MissingColumnError) -> RequestError:
        """Return the error that a caller should see: a column may be missing as it was not sent."""
        return explain_missing(error, self.left_out)


def is_loopback(address: str) -> bool:
    """Whether host:port is of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(
    who: str, api_key: str | None, token: Token | None
) -> Callable[[], tuple[str, str]] | None:
    """Return what makes the metadata that says who calls."""
    if api_key is not None and token is not None:
        raise SettingsError("A client shows an API key or a token, not both.", where=who)
    if api_key is not None:
        shown = (API_KEY, _sendable(api_key, "api_key"))
        return lambda: shown
    if token is None:
        return None
    make = token if callable(token) else lambda: token
    return lambda: (AUTHORIZATION, f"Bearer {_sendable(make(), 'token')}")


def _sendable(secret: str, name: str) -> str:
    """Return a secret that may stand in a header; errors do not show it."""
    text = secret.strip()
    if not text or not text.isascii() or not text.isprintable():
        raise SettingsError(f"The {name} is empty, or holds what no header can hold.")
    return text


def _in_plain_text(address: str) -> SettingsError:
    return SettingsError(
        "The key or token would travel in plain text.",
        where=address,
        hint="Give root_certificates= or tls=True; tls=False where the network itself is secure.",
    )
