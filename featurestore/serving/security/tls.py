"""TLS of gRPC, both sides: the server's files are read again when they change.

A server whose new files are no good goes on with the old ones and says so: nobody is cut off by a
half-written rotation. With roots for clients' certificates, every client must show one.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc

from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.model.settings import ServingSettings
from featurestore.serving.security.certificates import (
    CertificateFiles,
    Certificates,
    read_certificates,
    read_pem,
)

Pem = str | Path | bytes


def certificate_files(settings: ServingSettings, folder: Path) -> CertificateFiles | None:
    """Return where the settings say that the server's certificate stands, None for plain text.

    Raises:
        SettingsError: One file is named without the other.
    """
    names = (settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    if not any(names):
        return None
    if not settings.tls_certificate or not settings.tls_key:
        missing = "tls_key" if settings.tls_certificate else "tls_certificate"
        raise SettingsError(
            "TLS needs a certificate and its key.", where="serving", got=f"no {missing}"
        )
    client_ca = folder / settings.tls_client_ca if settings.tls_client_ca else None
    return CertificateFiles(folder / settings.tls_certificate, folder / settings.tls_key, client_ca)


class ServerTls:
    """A server's certificate as it is now.

    Args:
        files: Where it stands.
        log: Told of new certificates, and of such that cannot be used.

    Raises:
        SettingsError: The files cannot be used.
    """

    def __init__(self, files: CertificateFiles, log: Any) -> None:
        self._files = files
        self._log = log
        self._lock = threading.Lock()
        self._seen = files.look()
        self._current = read_certificates(files)

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a gRPC server takes; each handshake asks for the newest certificate."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._current),
            self._fetch,
            require_client_authentication=self._current.client_ca is not None,
        )

    @property
    def expires(self) -> str:
        """Until when the certificate is valid."""
        return self._current.expires

    def _fetch(self) -> Any:
        """Return the new configuration if there is one; gRPC asks at each handshake."""
        with self._lock:
            seen = self._files.look()
            if seen == self._seen:
                return None
            self._seen = seen
            try:
                self._current = read_certificates(self._files)
            except FeatureStoreError as error:
                self._log.error("certificate refused", where=error.where, error=error.what)
                return None
            self._log.info("certificate loaded", expires=self._current.expires)
            return _configuration(self._current)


def channel_credentials(
    root_certificates: Pem | None, certificate: Pem | None, key: Pem | None
) -> grpc.ChannelCredentials:
    """Return what a client's channel takes.

    Args:
        root_certificates: Whom to trust: a PEM file, or PEM as bytes; None takes gRPC's own.
        certificate: The client's certificate, if the server wants one.
        key: Its key.

    Raises:
        SettingsError: A file cannot be read, or one of certificate and key is missing.
    """
    if (certificate is None) is not (key is None):
        raise SettingsError(
            "A client's certificate needs its key, and the key its certificate.",
            where="OnlineClient",
        )
    return grpc.ssl_channel_credentials(
        _bytes_of(root_certificates, "root_certificates"),
        _bytes_of(key, "client_key"),
        _bytes_of(certificate, "client_certificate"),
    )


def _configuration(certificates: Certificates) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.certificate)], certificates.client_ca
    )


def _bytes_of(pem: Pem | None, name: str) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else read_pem(Path(pem), name)
