"""Runs the benchmarks and prints their tables as Markdown: what `make bench` calls.

    python -m benchmarks [--full] [--feast PYTHON] [--only NAME ...] [--write FILE]

Feast never enters our environment: it is found by the interpreter of its own. See README.md beside.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.common import Sizes, Table, machine, versions

NAMES = ("import", "materialize", "online", "grpc", "point_in_time")


def main() -> int:
    """Parse the arguments, run, print, and write if asked."""
    arguments = _parser().parse_args()
    sizes = Sizes(full=arguments.full, feast=_feast(arguments.feast))
    size = "full" if sizes.full else "small"
    parts = [f"Machine: {machine()}.\n\nVersions: {versions(sizes.feast)}.\n\nSizes: {size}.\n"]
    _say(parts[0])
    for name in arguments.only or NAMES:
        started = time.perf_counter()
        tables = importlib.import_module(f"benchmarks.bench_{name}").run(sizes)
        seconds = time.perf_counter() - started
        parts.append(_section(name, tables, seconds))
        _say(parts[-1])
    if arguments.write:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        if sizes.feast:
            command = command.replace(sizes.feast, "PYTHON")
        head = f"# Results\n\nWritten by `{command}`.\n\n"
        arguments.write.write_text(head + "\n".join(parts), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="large sizes (about half an hour)")
    parser.add_argument("--feast", metavar="PYTHON", help="an interpreter that has Feast")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these benchmarks only")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the tables")
    return parser


def _feast(python: str | None) -> str | None:
    """Return the interpreter, made absolute without following links out of its environment."""
    if not python:
        return None
    path = Path(python).absolute()
    if not path.exists():
        raise SystemExit(f"--feast: there is no {path}; benchmarks/README.md says how to make one")
    return str(path)


def _section(name: str, tables: list[Table], seconds: float) -> str:
    body = "\n".join(str(table) for table in tables)
    return f"## {name}\n\n{body}\nTook {seconds:.0f} s.\n"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
