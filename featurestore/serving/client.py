"""The client of a feature server: the same call as in process, and the same answer.

Loads no engine, no store and no registry. A call that failed raises the class that the server
raised. Safe to use from many threads; one client keeps one connection.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

import grpc

from featurestore.compile.request import FeaturesArgument
from featurestore.errors import MissingColumnError, UnavailableError
from featurestore.services.columns import InputRows
from featurestore.services.online import checked_as_of
from featurestore.services.response import OnlineResponse
from featurestore.serving.info import ServingInfo, read_info
from featurestore.serving.requests import explain_missing, write_request
from featurestore.serving.responses import read_response
from featurestore.serving.status import error_of
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


class OnlineClient:
    """Looks features up at a feature server.

    Args:
        address: host:port.
        timeout: Seconds that a call may take, by default.
        credentials: For TLS, such as `grpc.ssl_channel_credentials(...)`; without them the
            connection is plain text.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 5.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        self._get = self._channel.unary_unary(
            f"/{SERVICE}/GetOnlineFeatures",
            request_serializer=pb.GetOnlineFeaturesRequest.SerializeToString,
            response_deserializer=pb.GetOnlineFeaturesResponse.FromString,
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
            answer = self._call(self._get, message, timeout)
        except MissingColumnError as error:
            raise explain_missing(error, left_out) from error
        return read_response(answer)

    def serving_info(self, *, timeout: float | None = None) -> ServingInfo:
        """Return what the server serves.

        Raises:
            UnavailableError: It cannot be reached.
            DeadlineExceededError: There was no answer in time.
        """
        return read_info(self._call(self._info, pb.GetServingInfoRequest(), timeout))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, message: Any, timeout: float | None) -> Any:
        try:
            return method(message, timeout=self._timeout if timeout is None else timeout)
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from failure
        except ValueError as error:
            raise UnavailableError(
                f"The client of {self.address} is closed.", where=self.address, got=str(error)
            ) from error
