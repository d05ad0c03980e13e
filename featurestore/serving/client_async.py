"""The client of a feature server for asyncio: as `serving/client.py`, while other tasks run.

Its connection belongs to the loop in which the first call is made. Who cancels a task that waits
for an answer cancels the call.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Self

import grpc
import grpc.aio

from featurestore.compile.request import FeaturesArgument
from featurestore.errors import MissingColumnError
from featurestore.services.pushing_events import PushReceipt
from featurestore.services.response import OnlineResponse
from featurestore.serving.client_calls import OPTIONS, Connecting, LookupCall, Stubs, Token
from featurestore.serving.info import ServingInfo, read_info
from featurestore.serving.push import read_receipt, write_push
from featurestore.serving.security.tls import Pem
from featurestore.serving.v1 import serving_pb2 as pb


class AsyncOnlineClient:
    """Looks features up at a feature server, and pushes events to it, in asyncio.

    Its arguments, answers and errors are those of `OnlineClient`; one client makes any number of
    calls at once over one connection.

    Args:
        address: host:port.
        timeout: Seconds that a call may take, by default.
        tls: Whether to speak TLS. By default it is spoken where a certificate is given.
        root_certificates: Whom to trust: a PEM file, or PEM as bytes; None takes gRPC's own.
        client_certificate: The client's own certificate, where the server wants one (mTLS).
        client_key: Its key.
        credentials: For TLS of another make, instead of these.
        api_key: Says who calls.
        token: Says who calls, instead of a key: a JWT, or what returns the one for a call at once.

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
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._closed = False

    async def get_online_features(
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
            answer = await self._call("lookup", call.message, timeout, again=True)
        except MissingColumnError as error:
            raise call.explained(error) from error
        return call.answered(answer)

    async def push(
        self,
        source: str,
        events: Any,
        *,
        timeout: float | None = None,
    ) -> PushReceipt:
        """Append events to the stream of a source; they are in it durably once this returns.

        After an error, or when it was cancelled, some may be in it. Pushing all of them again is
        right: events that have an id and a version count once, however often they come.

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
        return read_receipt(await self._call("push", write_push(source, events), timeout))

    async def serving_info(
        self,
        *,
        timeout: float | None = None,
    ) -> ServingInfo:
        """Return what the server serves.

        Raises:
            UnavailableError: It cannot be reached.
            DeadlineExceededError: There was no answer in time.
        """
        asked = pb.GetServingInfoRequest()
        return read_info(await self._call("info", asked, timeout, again=True))

    async def close(self) -> None:
        """Close the connection; calls that wait for answers fail."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def __repr__(self) -> str:
        return f"AsyncOnlineClient({self.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        name: str,
        message: Any,
        timeout: float | None,
        *,
        again: bool = False,
    ) -> Any:
        """Call a method; `again` where it may be called twice, as it only reads."""
        trial = self._connecting.trial(timeout, again=again)
        method = getattr(self._connected(), name)
        while True:
            try:
                return await method(message, timeout=trial.seconds, metadata=trial.metadata)
            except grpc.RpcError as failure:
                pause = trial.pause_after(failure)
            except grpc.aio.UsageError as error:
                raise self._connecting.closed(error) from error
            except asyncio.CancelledError as error:
                # Whoever closes the client cancels its calls, but not the tasks that wait for them.
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    raise self._connecting.closed(error) from error
                raise
            await asyncio.sleep(pause)

    def _connected(self) -> Stubs:
        """Return the methods; the first call connects, in its loop."""
        if self._closed:
            raise self._connecting.closed(ValueError("closed before the call"))
        if self._stubs is None:
            credentials = self._connecting.credentials
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(self.address, credentials, options=OPTIONS)
            self._stubs = Stubs(self._channel)
        return self._stubs
