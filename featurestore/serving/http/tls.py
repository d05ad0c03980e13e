"""TLS of the HTTP front: the same files as gRPC's, looked at in every handshake."""

from __future__ import annotations

import ssl
from typing import Any

from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.serving.security.certificates import CertificateFiles, read_certificates


class HttpTls:
    """A server's certificate as it is now.

    Args:
        files: Where it stands.
        log: Told of new certificates, and of such that cannot be used.

    Attributes:
        context: What connections are made with; it always hands over to the newest.

    Raises:
        SettingsError: The files cannot be used.
    """

    def __init__(self, files: CertificateFiles, log: Any) -> None:
        self._files = files
        self._log = log
        self._seen = files.look()
        self._current, _ = _read(files)
        self.context, _ = _read(files)
        # Called in every handshake, whether or not the client names a server.
        self.context.sni_callback = self._choose

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        seen = self._files.look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._current, expires = _read(self._files)
            except FeatureStoreError as error:
                self._log.error("certificate refused", where=error.where, error=error.what)
            else:
                self._log.info("certificate loaded", expires=expires)
        connection.context = self._current


def _read(files: CertificateFiles) -> tuple[ssl.SSLContext, str]:
    """Return a context with a server's files, checked, and until when the certificate is valid.

    Raises:
        SettingsError: They cannot be used.
    """
    found = read_certificates(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # The key has no password: otherwise reading it had failed before.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
        if found.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=found.client_ca.decode("ascii", "replace"))
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            "The certificate has changed while it was read.",
            where=str(files.certificate),
            got=str(error),
        ) from error
    return context, found.expires
