"""The client of a feature server: the same calls as in process, and the same answers.

Loads no engine, no store and no registry. A call that failed raises the class that the server
raised. Safe to use from many threads; one client keeps one connection. A lookup that no server has
answered, as happens where one of several is just being stopped, is tried twice more, in the same
time; pushes are not.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Self

import grpc

from featurestore.clock import SystemClock
from featurestore.compile.request import FeaturesArgument
from featurestore.errors import MissingColumnError, SettingsError, UnavailableError
from featurestore.services.columns import InputRows
from featurestore.services.online import checked_as_of
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import OnlineResponse
from featurestore.serving.info import ServingInfo, read_info
from featurestore.serving.push import read_receipt, write_push
from featurestore.serving.requests import explain_missing, write_request
from featurestore.serving.responses import read_response
from featurestore.serving.security.headers import API_KEY, AUTHORIZATION
from featurestore.serving.security.tls import Pem, channel_credentials
from featurestore.serving.status import error_of, is_lost
from featurestore.serving.v1 import serving_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureServing"].full_name
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that was restarted is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
# Before a lookup that was lost on its way is tried again. The second is longer than a channel waits
# before it connects anew.
_PAUSES = (0.0, 0.15)


class OnlineClient:
    """Looks features up at a feature server, and pushes events to it.

    Args:
        address: host:port.
        timeout: Seconds that a call may take, by default.
        tls: Whether to speak TLS. By default it is spoken where a certificate is given.
        root_certificates: Whom to trust: a PEM file, or PEM as bytes; None takes gRPC's own.
        client_certificate: The client's own certificate, where the server wants one (mTLS).
        client_key: Its key.
        credentials: For TLS of another make, instead of these.
        api_key: Says who calls.
        token: Says who calls, instead of a key: a JWT, or what returns the one for a call.

    Raises:
        SettingsError: A file cannot be read, or a secret would travel in plain text over a network
            without `tls=False` having been said.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 5.0,
        tls: bool | None = None,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        token: str | Callable[[], str] | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._clock = SystemClock()
        self._shown = _shown(api_key, token)
        given = (root_certificates, client_certificate, client_key)
        if tls is False and any(given):
            raise SettingsError("Certificates need TLS.", where="OnlineClient", got="tls=False")
        if credentials is None and (tls or any(given)):
            credentials = channel_credentials(*given)
        if credentials is None and tls is None and self._shown and not is_loopback(address):
            raise _in_plain_text(address)
        self._channel = _channel(address, credentials)
        self._get = self._channel.unary_unary(
            f"/{SERVICE}/GetOnlineFeatures",
            request_serializer=pb.GetOnlineFeaturesRequest.SerializeToString,
            response_deserializer=pb.GetOnlineFeaturesResponse.FromString,
        )
        self._push = self._channel.unary_unary(
            f"/{SERVICE}/Push",
            request_serializer=pb.PushRequest.SerializeToString,
            response_deserializer=pb.PushResponse.FromString,
        )
        self._info = self._channel.unary_unary(
            f"/{SERVICE}/GetServingInfo",
            request_serializer=pb.GetServingInfoRequest.SerializeToString,
            response_deserializer=pb.GetServingInfoResponse.FromString,
        )

    def get_online_features(
        self,
        features: FeaturesArgument,
        entity_rows: Any,
        *,
        as_of: datetime | str | int | None = None,
        request: Any = None,
        full_feature_names: bool = False,
        timeout: float | None = None,
    ) -> OnlineResponse:
        """Return the features of entities as of an instant.

        Args:
            features: A service, its name, or a list of `view:feature` references.
            entity_rows: The join keys: a list of dicts, a dict of lists, or a table.
            as_of: The instant; an integer is microseconds. None is the server's now.
            request: The fields of on-demand views: one row an entity row, or a dict of single
                values for all of them.
            full_feature_names: Name the result's columns `view__feature`.
            timeout: Seconds that the call may take; None takes the client's.

        Raises:
            RequestError: Something asked for makes no sense; its subclasses say what.
            UnavailableError: The server, or its store, cannot be reached.
            DeadlineExceededError: There was no answer in time.
            FeatureStoreError: Whatever else the server raised, by its own class.
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
        try:
            answer = self._call(self._get, message, timeout, again=True)
        except MissingColumnError as error:
            raise explain_missing(error, left_out) from error
        return read_response(answer)

    def push(self, source: str, events: Any, *, timeout: float | None = None) -> PushReceipt:
        """Append events to the stream of a source; they are in it durably once this returns.

        After an error some may be in it. Pushing all of them again is right: events that have an
        id and a version count once, however often they come.

        Args:
            source: The source's name.
            events: A list of dicts, a dict of lists, or a pyarrow, polars or pandas table.
            timeout: Seconds that the call may take; None takes the client's.

        Raises:
            RequestError: There is no such source, or it takes no such events; its subclasses say
                what.
            UnavailableError: The server, or the stream, cannot be reached.
            DeadlineExceededError: There was no answer in time.
            FeatureStoreError: Whatever else the server raised, by its own class.
        """
        return read_receipt(self._call(self._push, write_push(source, events), timeout))

    def serving_info(self, *, timeout: float | None = None) -> ServingInfo:
        """Return what the server serves.

        Raises:
            UnavailableError: It cannot be reached.
            DeadlineExceededError: There was no answer in time.
        """
        return read_info(self._call(self._info, pb.GetServingInfoRequest(), timeout, again=True))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __repr__(self) -> str:
        return f"OnlineClient({self.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self, method: Any, message: Any, timeout: float | None, *, again: bool = False
    ) -> Any:
        """Call a method; `again` where it may be called twice, as it only reads."""
        metadata = None if self._shown is None else (self._shown(),)
        seconds = self._timeout if timeout is None else timeout
        end = self._clock.monotonic() + seconds
        for pause in (*(_PAUSES if again else ()), None):
            try:
                return method(message, timeout=seconds, metadata=metadata)
            except grpc.RpcError as failure:
                if pause is None or not is_lost(failure):
                    raise error_of(failure, self.address) from failure
                seconds = end - self._clock.monotonic() - pause
                if seconds <= 0:
                    raise error_of(failure, self.address) from failure
            except ValueError as error:
                raise UnavailableError(
                    f"The client of {self.address} is closed.", where=self.address, got=str(error)
                ) from error
            threading.Event().wait(pause)
        raise AssertionError  # the last try has returned or raised


def is_loopback(address: str) -> bool:
    """Whether host:port is of this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_OPTIONS)


def _shown(
    api_key: str | None, token: str | Callable[[], str] | None
) -> Callable[[], tuple[str, str]] | None:
    """Return what makes the metadata that says who calls."""
    if api_key is not None and token is not None:
        raise SettingsError("A client shows an API key or a token, not both.", where="OnlineClient")
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
