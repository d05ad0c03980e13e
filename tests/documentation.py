"""Reads and runs the code blocks of documents, in a copy of the worked example's repository.

A block's language says how it is run:

- `console`: lines after `$ ` are commands, what follows is their output; a command that ends in `&`
  runs beside the others until the document ends.
- `python`: run in one namespace a document; a `text` block right behind it is what it prints.

Expected output may leave things out with `...`. A comment in front of a block says otherwise:
`<!-- file: NAME -->` writes the block to a file, `<!-- not run: REASON -->` leaves it alone. Blocks
of other languages are prose.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import UnauthenticatedError, UnavailableError
from featurestore.testing.valkey import wait_until

ROOT = Path(__file__).resolve().parents[1]
ADDRESS, HTTP_ADDRESS = "127.0.0.1:6566", "127.0.0.1:6567"
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n\n?)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SECONDS = 120


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, and the comment before it."""

    language: str
    text: str
    line: int
    comment: str


def blocks(document: Path) -> list[Block]:
    """Return a document's fenced blocks in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(m[2], m[3], text.count("\n", 0, m.start(3)), m[1] or "")
        for m in _BLOCK.finditer(text)
    ]


class Reader:
    """Somebody who follows a document.

    Args:
        folder: Where to put the copy of the repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "definitions", folder / "definitions", dirs_exist_ok=True)
        shutil.copy(ROOT / "featurestore.toml", folder)
        self.ran = 0
        self._names: dict[str, Any] = {"__name__": "document"}
        self._beside: list[subprocess.Popen[bytes]] = []
        self._address = f"127.0.0.1:{_free_port()}"
        self._http_address = f"127.0.0.1:{_free_port()}"

    def follow(self, document: Path) -> None:
        """Run all blocks of a document.

        Raises:
            AssertionError: A block failed, or printed something else.
        """
        found = blocks(document)
        for block, after in zip(found, [*found[1:], None], strict=True):
            place = f"{document.name}:{block.line}"
            if block.comment.startswith("file: "):
                path = self.folder / block.comment.removeprefix("file: ")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.comment.startswith("not run: "):
                continue
            elif block.language == "console":
                self._console(block.text, place)
            elif block.language == "python":
                expected = after.text if after and after.language == "text" else None
                self._python(block, expected, place)

    def close(self) -> None:
        """Stop what runs beside."""
        for process in self._beside:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _console(self, text: str, place: str) -> None:
        joined = text.replace("\\\n", " ")
        for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self.ran += 1
            if command.rstrip().endswith("&"):
                self._start(command.rstrip().removesuffix("&"))
                continue
            done = subprocess.run(  # noqa: S603  (what the document tells its readers to run)
                [*_shell(), self._here(command)],
                cwd=self.folder, env=_environment(), capture_output=True, text=True, check=False,
                timeout=_SECONDS,
            )  # fmt: skip
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{place}: $ {command}\n{said}"
            if expected.strip():
                _compare(expected, said.replace(self._address, ADDRESS), f"{place}: $ {command}")

    def _start(self, command: str) -> None:
        words = shlex.split(self._here(command))
        words[0] = str(Path(sys.executable).with_name(words[0]))
        environment = {**_environment(), "FEATURESTORE_SERVING_ADDRESS": self._address}
        process = subprocess.Popen(  # noqa: S603
            words, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._beside.append(process)
        wait_until(lambda: process.poll() is not None or _answers(self._address), what=command)
        assert process.poll() is None, command

    def _python(self, block: Block, expected: str | None, place: str) -> None:
        self.ran += 1
        code = compile("\n" * block.line + self._here(block.text), place, "exec")
        printed = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(printed):
            exec(code, self._names)  # noqa: S102
        if expected is not None:
            _compare(expected, printed.getvalue().replace(self._address, ADDRESS), place)

    def _here(self, text: str) -> str:
        return text.replace(ADDRESS, self._address).replace(HTTP_ADDRESS, self._http_address)


def _compare(expected: str, got: str, place: str) -> None:
    checker = doctest.OutputChecker()
    if not checker.check_output(expected, got, _FLAGS):
        example = doctest.Example("", expected)
        raise AssertionError(f"{place}:\n{checker.output_difference(example, got, _FLAGS)}")


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FEATURESTORE_")}
    binaries = str(Path(sys.executable).parent)
    return {**kept, "PATH": f"{binaries}:{os.environ['PATH']}", "POLARS_FMT_MAX_COLS": "8"}


def _shell() -> list[str]:
    return [shutil.which("bash") or "sh", "-euc"]


def _answers(address: str) -> bool:
    from featurestore import OnlineClient

    with OnlineClient(address, timeout=1.0) as client:
        try:
            client.serving_info()
        except UnauthenticatedError:
            return True
        except UnavailableError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
