"""A real primary with replicas and sentinels that fail over fast, for tests; see `valkey`.

The sentinels look five times a second instead of every ten, and take a server for dead after a
third of a second. Refuses to be a setup to copy: it is far too hasty for one.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from featurestore.testing.valkey import ServerError, ValkeyServer, wait_until

_HOST = "127.0.0.1"
_DOWN_MILLISECONDS = 300
_AT_ONCE = ["--repl-diskless-sync-delay", "0"]
_HASTE = ("INFO-PERIOD", 200, "PING-PERIOD", 100, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 200)


class ValkeySentinel(ValkeyServer):
    """One sentinel process.

    Args:
        service: What it calls the primary.
        primary: The port of the primary.
        quorum: How many sentinels must agree that the primary is gone.
        password: Asked of those who ask the sentinel.
        server_password: What the primary and the replicas ask for.
    """

    def __init__(
        self,
        service: str,
        primary: int,
        quorum: int = 1,
        *,
        password: str | None = None,
        server_password: str | None = None,
    ) -> None:
        super().__init__(password=password)
        lines = [
            f"sentinel monitor {service} {_HOST} {primary} {quorum}",
            f"sentinel down-after-milliseconds {service} {_DOWN_MILLISECONDS}",
            f"sentinel failover-timeout {service} 2000",
        ]
        if server_password is not None:
            lines.append(f'sentinel auth-pass {service} "{server_password}"')
        if password is not None:
            lines.append(f'requirepass "{password}"')
        self._lines = lines

    def _arguments(self, port: int, folder: Path, log: Path) -> list[str]:
        file = folder / "sentinel.conf"
        own = [f"port {port}", f"bind {_HOST}", f"dir {folder}", f"logfile {log}"]
        if not file.exists():
            file.write_text("\n".join([*own, *self._lines, ""]), encoding="utf-8")
        return [str(file), "--sentinel"]


class FailoverGroup:
    """A primary, its replicas, and sentinels that watch them.

    Args:
        replicas: How many replicas.
        sentinels: How many sentinels; the majority decides.
        password: Asked by primary and replicas.
        sentinel_password: Asked by the sentinels.

    Raises:
        ServerError: From `__enter__`: a process did not start.
        TimeoutError: From `__enter__`: the replicas were not found.
    """

    service = "features"

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 1,
        *,
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self._password = password
        self._sentinel_password = sentinel_password
        self._replicas = replicas
        self._count = sentinels
        self._stack = ExitStack()
        self.servers: list[ValkeyServer] = []
        self.sentinels: list[ValkeySentinel] = []

    @property
    def url(self) -> str:
        """The URL by the sentinels, without passwords."""
        hosts = ",".join(f"{_HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}"

    def primary(self) -> ValkeyServer:
        """Return the server that calls itself the primary and is running, the first of several."""
        return next(server for server in self.servers if self._role(server) == "master")

    def wait(self, replicas: int | None = None) -> ValkeyServer:
        """Return the primary once so many replicas follow it and all sentinels name it."""
        wanted = self._replicas if replicas is None else replicas
        found: list[ValkeyServer] = []

        def settled() -> bool:
            found[:] = [s for s in self.servers if self._role(s) == "master"]
            return len(found) == 1 and self._followers(found[0]) >= wanted and self._named(found[0])

        wait_until(settled, what="the sentinels and replicas to agree")
        return found[0]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first = stack.enter_context(ValkeyServer(password=self._password, options=_AT_ONCE))
            self.servers = [first]
            follow = [*_AT_ONCE, "--replicaof", f"{_HOST} {first.port}"]
            for _ in range(self._replicas):
                replica = ValkeyServer(password=self._password, options=follow)
                self.servers.append(stack.enter_context(replica))
            # Sentinels ask who follows when they start, and then seldom.
            wait_until(lambda: self._followers(first) == self._replicas, what="the replicas")
            for _ in range(self._count):
                sentinel = ValkeySentinel(
                    self.service,
                    first.port,
                    self._count // 2 + 1,
                    password=self._sentinel_password,
                    server_password=self._password,
                )
                self.sentinels.append(stack.enter_context(sentinel))
                sentinel.command("SENTINEL", "DEBUG", *_HASTE)
            self.wait()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _role(self, server: ValkeyServer) -> str:
        return _about(server, "replication").get("role", "")

    def _followers(self, server: ValkeyServer) -> int:
        about = _about(server, "replication")
        return sum(
            "state=online" in text for name, text in about.items() if name.startswith("slave")
        )

    def _named(self, primary: ValkeyServer) -> bool:
        return all(
            f"address={_HOST}:{primary.port}," in _about(sentinel, "sentinel").get("master0", "")
            for sentinel in self.sentinels
        )


def _about(server: ValkeyServer, section: str) -> dict[str, str]:
    """Return a section of what a server tells of itself; nothing of one that does not answer."""
    try:
        text = server.command("INFO", section)
    except (OSError, ServerError):
        return {}
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
