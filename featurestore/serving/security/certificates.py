"""Certificates from PEM files, checked before they are used, by a handshake with themselves.

A file that is missing, a key that belongs to another certificate, or one that has expired is told
by its name, instead of by clients that cannot connect.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import SettingsError

_ROUNDS = 4
_EXPIRED, _NOT_YET = 10, 9


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a server's certificate stands.

    Attributes:
        certificate: It, and those that lead to its root.
        key: Its key, without a password.
        client_ca: The roots of clients' certificates; None lets clients come without one.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def look(self) -> tuple[tuple[int, ...], ...]:
        """Return what is another value once a file has changed; () where one is missing."""
        paths = (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))
        try:
            stats = [path.stat() for path in paths]
        except OSError:
            return ()
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)


@dataclass(frozen=True, slots=True)
class Certificates:
    """A server's certificate as it was read.

    Attributes:
        certificate: PEM.
        key: PEM; never shown.
        client_ca: PEM.
        expires: Until when it is valid, as OpenSSL writes it.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: str

    def __repr__(self) -> str:
        return f"Certificates(expires={self.expires!r})"


def read_certificates(files: CertificateFiles) -> Certificates:
    """Read and check a server's files.

    Raises:
        SettingsError: One is missing or is no PEM, the key belongs to another certificate, or the
            certificate is not valid now.
    """
    certificate = read_pem(files.certificate, "serving.tls_certificate")
    key = read_pem(files.key, "serving.tls_key")
    server = _context(files)
    client_ca = None
    if files.client_ca is not None:
        client_ca = read_pem(files.client_ca, "serving.tls_client_ca")
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files.client_ca, "serving.tls_client_ca")
    return Certificates(certificate, key, client_ca, _expiry(server, files.certificate))


def read_pem(path: Path, setting: str) -> bytes:
    """Return the content of a PEM file.

    Raises:
        SettingsError: It cannot be read, or is no PEM.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"The file of {setting} cannot be read.",
            where=str(path),
            got=error.strerror or str(error),
            hint="Name a PEM file that the server may read.",
        ) from error
    if b"-----BEGIN " not in data:
        raise SettingsError(f"The file of {setting} is no PEM file.", where=str(path))
    return data


def _context(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With a password asked for, OpenSSL would wait for somebody to type it.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        what = "The key belongs to another certificate." if mismatch else (
            "The certificate or its key cannot be read."
        )  # fmt: skip
        raise SettingsError(
            what,
            where=f"{files.certificate} and {files.key}",
            got=error.reason or str(error),
            hint="serving.tls_certificate and serving.tls_key are PEM files of one pair,"
            " the key without a password.",
        ) from error
    return context


def _trust(context: ssl.SSLContext, path: Path, setting: str) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            f"The file of {setting} holds no certificate.", where=str(path), got=str(error)
        ) from error


def _expiry(server: ssl.SSLContext, path: Path) -> str:
    """Return until when a certificate is valid, once a handshake by it alone has succeeded.

    The standard library tells of a certificate only what a handshake has accepted.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    _trust(client, path, "serving.tls_certificate")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    try:
        for _ in range(_ROUNDS):
            for side in (asking, answering):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        words = {_EXPIRED: "has expired", _NOT_YET: "is not valid yet"}
        raise SettingsError(
            f"The server's certificate {words.get(error.verify_code, 'cannot be used')}.",
            where=str(path),
            got=error.verify_message,
            hint="Put a valid one in its place; a running server takes it without a restart.",
        ) from error
    return str((asking.getpeercert() or {}).get("notAfter", "unknown"))
