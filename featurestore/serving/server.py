"""The gRPC server: lookups, what is served, health and reflection; it drains before it ends.

A request's deadline bounds the wait for the store, so that a store that is gone is told as such
before the caller gives up. New definitions are noticed by a thread in the background; requests
never wait for the registry. The server refuses to start without definitions to serve.
"""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from featurestore.errors import (
    DeadlineExceededError,
    FeatureStoreError,
    RequestError,
    SettingsError,
)
from featurestore.model.settings import ServingSettings
from featurestore.services.online import OnlineReader
from featurestore.serving.client import SERVICE
from featurestore.serving.health import SERVICE_NAME as HEALTH_NAME
from featurestore.serving.health import Health
from featurestore.serving.info import write_info
from featurestore.serving.pool import DaemonPool
from featurestore.serving.requests import read_request
from featurestore.serving.status import code_of, metadata_of
from featurestore.serving.v1 import serving_pb2 as pb
from featurestore.serving.writer import writer_of

# The share of a caller's time that the store may take; the rest is for telling that it did not.
_STORE_SHARE = 0.8
_PING_SECONDS = 1.0
_LONGEST_DETAILS = 1000
_LAST_PORT = 65_535


class FeatureServer:
    """Serves a project's online features.

    Args:
        reader: Answers the lookups.
        settings: The address and the limits; port 0 takes a free one.
        credentials: For TLS, such as `grpc.ssl_server_credentials(...)`; plain text without them.
    """

    def __init__(
        self,
        reader: OnlineReader,
        settings: ServingSettings,
        *,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._credentials = credentials
        self._log = structlog.get_logger("featurestore.serving")
        self._health = Health(SERVICE)
        self._troubles: dict[str, str] = {}
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._pool = DaemonPool(settings.threads)
        self._server = grpc.server(
            self._pool,
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),
            ),
        )
        self.address = settings.address

    def start(self) -> str:
        """Begin to serve; return the address that is listened on.

        Raises:
            RegistryUnavailableError: The definitions cannot be read.
            SettingsError: The address cannot be listened on.
        """
        state = self._reader.state.get()
        self._add_services()
        self.address = self._bind()
        self._look()
        self._server.start()
        self._watcher.start()
        self._log.info(
            "serving",
            address=self.address,
            project=self._reader.project,
            revision=state.revision,
            views=len(state.serving),
        )
        return self.address

    def stop(self) -> None:
        """Tell that we are going, take no more requests, and finish those that are in flight."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._health.end()
        self._log.info("draining", address=self.address, seconds=self._settings.drain_seconds)
        self._server.stop(self._settings.drain_seconds).wait()
        self._pool.shutdown(wait=False)
        if self._watcher.is_alive():
            self._watcher.join()
        self._log.info("stopped", address=self.address)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; to be called from the main thread.

        Raises:
            RegistryUnavailableError: The definitions cannot be read.
            SettingsError: The address cannot be listened on.
        """
        asked = threading.Event()
        held = {
            number: signal.signal(number, lambda *_: asked.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self.start()
            # Not for ever: once Polars is loaded, Ctrl-C does not end a wait without a limit.
            while not asked.wait(0.5):
                pass
            self.stop()
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)

    def _add_services(self) -> None:
        methods = {
            "GetOnlineFeatures": self._get_online_features,
            "GetServingInfo": self._get_serving_info,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(method))
            for name, method in methods.items()
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def _bind(self) -> str:
        address = self._settings.address
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > _LAST_PORT:
            raise _cannot_listen(address)
        try:
            if self._credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise _cannot_listen(address) from error
        return f"{host}:{bound}"

    def _guarded(
        self, method: Callable[[bytes, float | None], bytes]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        """Return a method as a handler: errors become statuses, late requests are not begun."""

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return method(request, _time_left(context))
            except FeatureStoreError as error:
                context.set_trailing_metadata(metadata_of(error))
                code, details = code_of(error), str(error)[:_LONGEST_DETAILS]
            except Exception:  # noqa: BLE001  (whatever it is, the caller must not see our insides)
                reference = uuid.uuid4().hex[:8]
                self._log.exception("request failed", reference=reference)
                code = grpc.StatusCode.INTERNAL
                details = f"The server failed; its log has the reason as {reference}."
            context.abort(code, details)
            raise AssertionError(details)  # abort has raised already

        return handle

    def _get_online_features(self, request: bytes, left: float | None) -> bytes:
        try:
            message = pb.GetOnlineFeaturesRequest.FromString(request)
        except DecodeError as error:
            raise RequestError("The request is no GetOnlineFeaturesRequest.") from error
        limit = self._settings.max_message_bytes
        asked = read_request(message, limit)
        answer = self._reader.get_online_features(
            asked.features,
            asked.entity_rows,
            as_of=asked.as_of,
            request=asked.request,
            full_feature_names=asked.full_feature_names,
            timeout=None if left is None else left * _STORE_SHARE,
        )
        data = writer_of(answer.layout).write(answer)
        if len(data) > limit:
            raise RequestError(
                "The answer is larger than the server sends.",
                got=f"{len(data)} bytes",
                allowed=f"{limit} bytes",
                hint="Ask for fewer entity rows at once, or raise serving.max_message_bytes.",
            )
        return data

    def _get_serving_info(self, request: bytes, left: float | None) -> bytes:  # noqa: ARG002
        return write_info(self._reader.state.get()).SerializeToString()

    def _watch(self) -> None:
        # Twice in the time for which a state is used: no request finds it too old.
        while not self._stopping.wait(self._settings.refresh_seconds / 2):
            self._look()

    def _look(self) -> None:
        """Look for new definitions, and whether the store is there; tell what has changed."""
        before = self._troubles
        state = self._reader.state
        troubles = {}
        try:
            state.refresh()
            if state.last_error is not None:
                troubles["registry"] = state.last_error.what
            self._reader.ping(timeout=_PING_SECONDS)
        except FeatureStoreError as error:
            troubles["online store"] = error.what
        except Exception:  # noqa: BLE001  (the watch must go on)
            self._log.exception("the watch failed")
            return
        self._health.tell(serving="online store" not in troubles)
        self._troubles = troubles
        for name in troubles.keys() - before.keys():
            self._log.warning("unavailable", part=name, error=troubles[name])
        for name in before.keys() - troubles.keys():
            self._log.info("available again", part=name)


def _cannot_listen(address: str) -> SettingsError:
    return SettingsError(
        f"The server cannot listen on {address}.",
        where="serving.address",
        got=address,
        allowed="host:port; port 0 takes a free one",
        hint="Is another server running there?",
    )


def _time_left(context: grpc.ServicerContext) -> float | None:
    """Return the seconds until a request's deadline, None without one.

    Raises:
        DeadlineExceededError: It is over; nobody waits for the answer any more.
    """
    left: float | None = context.time_remaining()
    if left is not None and left <= 0:
        raise DeadlineExceededError("The request waited past its deadline.")
    return left
