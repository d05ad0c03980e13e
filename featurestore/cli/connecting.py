"""How commands with `--server` reach it: secrets and certificates come from variables only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.serving.client import OnlineClient

_PREFIX = "FEATURESTORE_CLIENT_"


def client_of(server: str, timeout: float = 5.0) -> OnlineClient:
    """Return a client of a feature server.

    Args:
        server: host:port.
        timeout: Seconds that a call may take.

    Raises:
        SettingsError: A variable names a file that cannot be read, or a secret would travel in
            plain text.
    """
    from featurestore.serving.client import OnlineClient

    return OnlineClient(
        server,
        timeout=timeout,
        tls={"1": True, "0": False}.get(os.environ.get(f"{_PREFIX}TLS", "")),
        root_certificates=_variable("ROOT_CERTIFICATES"),
        client_certificate=_variable("CERTIFICATE"),
        client_key=_variable("KEY"),
        api_key=_variable("API_KEY"),
        token=_variable("TOKEN"),
    )


def _variable(name: str) -> str | None:
    return os.environ.get(f"{_PREFIX}{name}") or None
