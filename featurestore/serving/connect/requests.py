"""A request as it comes in, from its first byte to its last."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from featurestore.serving.replies import Reply

if TYPE_CHECKING:
    from featurestore.serving.connect.routes import Route
    from featurestore.serving.exchange import Exchange

# One of everything for which there is a header, and a token or two, have room in this.
_LARGEST_HEAD = 32 * 1024


class Request:
    """A request of a connection.

    Attributes:
        path: As it stands in its first line.
        headers: By their names in lower case.
        body: What has come of it.
        held: How many bytes of the body count as held.
        is_headed: Whether its head has come whole.
        is_whole: Whether all of it has come.
        stays: Whether its caller keeps the connection.
        waits: Whether it is being found out who calls, before its body is taken in.
        route: What it asks for.
        exchange: The call, where it makes one.
        timer: Goes off at its deadline.
        reply: Its answer, once there is one.
    """

    __slots__ = (
        "_head_size",
        "body",
        "exchange",
        "headers",
        "held",
        "is_headed",
        "is_whole",
        "path",
        "reply",
        "route",
        "stays",
        "timer",
        "waits",
    )

    def __init__(self) -> None:
        self.path = b""
        self.headers: dict[str, str] = {}
        self.body: bytes | bytearray = b""
        self.held = self._head_size = 0
        self.is_headed = self.is_whole = self.waits = False
        self.stays = True
        self.route: Route | None = None
        self.exchange: Exchange | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.reply: Reply | None = None

    @property
    def is_fat(self) -> bool:
        """Whether its head is larger than anybody needs."""
        return self._head_size > _LARGEST_HEAD

    @property
    def length(self) -> int | None:
        """The length that its head tells of the body; None where it comes in chunks."""
        told = self.headers.get("content-length")
        if told is None:
            return None if "transfer-encoding" in self.headers else 0
        return int(told)

    def add_path(self, part: bytes) -> None:
        """Take in a part of the path."""
        self.path += part
        self._head_size += len(part)

    def add_header(self, name: bytes, value: bytes | None) -> None:
        """Take in a header; bytes that are no text stand for themselves."""
        text = value or b""
        self._head_size += len(name) + len(text)
        self.headers[name.decode("latin-1").lower()] = text.decode("latin-1").strip()

    def without_upgrade(self, verb: str) -> bytes:
        """Return the head again, but for the words that ask for another protocol."""
        stays = "close" not in self.headers.get("connection", "").lower()
        left = {k: v for k, v in self.headers.items() if k not in {"connection", "upgrade"}}
        left["connection"] = "keep-alive" if stays else "close"
        lines = "".join([f"{name}: {value}\r\n" for name, value in left.items()])
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (verb.encode(), self.path, lines.encode("latin-1"))

    def add_body(self, part: bytes) -> None:
        """Take in a part of the body."""
        if not self.body:
            self.body = part
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += part

    def end(self, reply: Reply) -> bool:
        """Take an answer; return whether it is the first one."""
        self.forget()
        if self.reply is not None:
            return False
        self.reply = reply
        return True

    def forget(self) -> None:
        """Have no deadline any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
