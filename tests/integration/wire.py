"""Servers at the other end of a wire that behave as real ones do on a bad day."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

# A certificate for localhost, signed by itself, good until 2120. Its key is worth nothing.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgg+UXcnHv3OxotA+x
R7Z3a7THHKM76kVxV4d03FZDXAuhRANCAARX2PKqZEWkwDlzDwCPfwLep3KGnqo8
AFd2WvZGcDNXTar3uiABsFvuokpJ0PYh6X0eXw4KQdz1q2DIlUV37eKi
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABFfY8qpkRaTAOXMP
AI9/At6ncoaeqjwAV3Za9kZwM1dNqve6IAGwW+6iSknQ9iHpfR5fDgpB3PWrYMiV
RXft4qKjXjBcMA8GA1UdEwEB/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgKEMBoGA1Ud
EQQTMBGCCWxvY2FsaG9zdIcEfwAAATAdBgNVHQ4EFgQU9Bd7U6yRUEUA3vwMCz2K
nNwrmmMwCgYIKoZIzj0EAwIDSAAwRQIhAKBRABaLSxu4Dv3QEKDb6c98sMbaAyvc
lyeGkoM0GYGXAiAtZj1fXCq/VcvzhNPKMMld4SYBp5wNEqX1C/0371TLxQ==
-----END CERTIFICATE-----
"""


# Deals with a connection; the event is set when it is to end.
Handler = Callable[[socket.socket, threading.Event], None]


class Listener:
    """Listens on a free loopback port and lets a function deal with each connection."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.accepted = 0
        self.closing = threading.Event()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._handle(connection, self.closing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing.set()
        for connection in (self._server, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)


def silent(connection: socket.socket, _closing: threading.Event) -> None:
    """Read and never answer."""
    while connection.recv(1 << 16):
        pass


def hang_up(connection: socket.socket, _closing: threading.Event) -> None:
    """Close at the first word."""
    connection.recv(1)


def answer(reply: bytes) -> Handler:
    """Return a function that answers whatever comes with the same bytes."""

    def handle(connection: socket.socket, _closing: threading.Event) -> None:
        while connection.recv(1 << 16):
            connection.sendall(reply)

    return handle


def drip(connection: socket.socket, closing: threading.Event) -> None:
    """Begin an answer and send on, a byte at a time, without end."""
    connection.recv(1 << 16)
    connection.sendall(b"*1\r\n$1000000\r\n")
    while not closing.wait(0.02):
        connection.sendall(b"x")


def fall_deaf(connection: socket.socket, closing: threading.Event) -> None:
    """Answer two questions, then read nothing more."""
    for _ in range(2):
        connection.recv(1 << 16)
        connection.sendall(b"+PONG\r\n")
    closing.wait()


def tls_proxy(port: int, folder: Path) -> tuple[Listener, Path]:
    """Return a server that speaks TLS and passes on to a port, and the file of its certificate."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handle(connection: socket.socket, _closing: threading.Event) -> None:
        with (
            context.wrap_socket(connection, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", port)) as plain,
        ):
            back = threading.Thread(target=_pump, args=(plain, secure))
            back.start()
            _pump(secure, plain)
            back.join(10)

    return Listener(handle), certificate


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
