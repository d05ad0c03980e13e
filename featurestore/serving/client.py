"""The client of a feature server: the same calls as in process, and the same answers.

Loads no engine, no store and no registry. A call that failed raises the class that the server
raised. Safe to use from many threads; one client keeps one connection. A lookup that no server has
answered, as happens where one of several is just being stopped, is tried three times more, in
the same time; pushes are not.
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any, Self

import grpc

from featurestore.compile.request import FeaturesArgument
from featurestore.errors import MissingColumnError
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import OnlineResponse
from featurestore.serving.client_calls import OPTIONS, Connecting, LookupCall, Stubs, Token
from featurestore.serving.info import ServingInfo, read_info
from featurestore.serving.push import read_receipt, write_push
from featurestore.serving.security.tls import Pem
from featurestore.serving.v1 import serving_pb2 as pb


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
        token: Token | None = None,
    ) -> None:
        given = (root_certificates, client_certificate, client_key)
        self._connecting = Connecting(
            type(self).__name__, address, timeout, tls, given, credentials, api_key, token
        )
        self.address = address
        self._channel = _channel(address, self._connecting.credentials)
        self._stubs = Stubs(self._channel)

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
        call = LookupCall.of(
            features, entity_rows, as_of, request, full_feature_names=full_feature_names
        )
        try:
            answer = self._call(self._stubs.lookup, call.message, timeout, again=True)
        except MissingColumnError as error:
            raise call.explained(error) from error
        return call.answered(answer)

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
        return read_receipt(self._call(self._stubs.push, write_push(source, events), timeout))

    def serving_info(self, *, timeout: float | None = None) -> ServingInfo:
        """Return what the server serves.

        Raises:
            UnavailableError: It cannot be reached.
            DeadlineExceededError: There was no answer in time.
        """
        return read_info(
            self._call(self._stubs.info, pb.GetServingInfoRequest(), timeout, again=True)
        )

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
        trial = self._connecting.trial(timeout, again=again)
        while True:
            try:
                return method(message, timeout=trial.seconds, metadata=trial.metadata)
            except grpc.RpcError as failure:
                pause = trial.pause_after(failure)
            except ValueError as error:
                raise self._connecting.closed(error) from error
            threading.Event().wait(pause)


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=OPTIONS)
