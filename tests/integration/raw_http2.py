"""A caller that speaks HTTP/2 by hand, and need not keep to what gRPC's own clients keep to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING = 0, 1, 3, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    # A literal, without indexing and without Huffman codes.
    parts = [bytes([len(text)]) + text.encode() for text in (name, value)]
    return b"\x00" + b"".join(parts)


class RawConnection:
    """A connection whose answers are read and thrown away.

    Args:
        address: host:port.
        method: What is called: /package.Service/Method.
        headers: More headers of each call.
    """

    def __init__(self, address: str, method: str, **headers: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._head = b"".join(
            _header(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", address),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                *((name.replace("_", "-"), value) for name, value in headers.items()),
            )
        )
        self._next = 1
        self._lock = threading.Lock()
        self.closed = threading.Event()
        self.send(_PREFACE + frame(_SETTINGS, 0, 0, b""))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has hung up is no error."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    @property
    def head(self) -> bytes:
        """The headers of a call, encoded."""
        return self._head

    def open(self, count: int = 1) -> list[int]:
        """Begin calls of which nothing but the head is sent; return their streams."""
        streams = [self._next + 2 * i for i in range(count)]
        self._next += 2 * count
        self.send(b"".join(frame(_HEADERS, _END_HEADERS, s, self._head) for s in streams))
        return streams

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Send a part of a call's message."""
        self.send(frame(_DATA, _END_STREAM if end else 0, stream, payload))

    def reset(self, streams: list[int]) -> None:
        """Take calls back."""
        cancelled = struct.pack(">I", 8)
        self.send(b"".join(frame(_RESET, 0, stream, cancelled) for stream in streams))

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(20)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 16):
                held += data
                while len(held) >= 9 and len(held) >= 9 + int.from_bytes(held[:3], "big"):
                    size = 9 + int.from_bytes(held[:3], "big")
                    self._answer(held[3], held[4], held[9:size])
                    held = held[size:]
        self.closed.set()

    def _answer(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self.send(frame(_SETTINGS, _ACK, 0, b""))
        if kind == _PING and not flags & _ACK:
            self.send(frame(_PING, _ACK, 0, payload))
