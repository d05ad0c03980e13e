"""Runs the benchmarks and prints their tables as Markdown: what `make bench` calls.

    python -m benchmarks [--full] [--feast PYTHON] [--only NAME ...] [--profile] [--write FILE]

Feast never enters our environment: it is found by the interpreter of its own. See README.md beside.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.common import Sizes, machine, versions

_HEAD = """# Results

Written by `python -m benchmarks --write`; see [README.md](README.md) for what is measured. The
machine is shared, other work ran beside: the ratios count, and small differences do not.
"""
NAMES = (
    "import",
    "materialize",
    "online",
    "serving",
    "point_in_time",
    "windows",
    "states",
    "ingestion",
)
_KEPT = (*NAMES, "soak")


def main() -> int:
    """Parse the arguments, run, print, and write if asked."""
    arguments = _parser().parse_args()
    feast = _feast(arguments.feast)
    sizes = Sizes(full=arguments.full, feast=feast, profile=arguments.profile)
    found = versions(sizes.feast)
    _say(f"Versions: {found}.\n")
    for name in arguments.only or NAMES:
        started, where = time.perf_counter(), machine()
        tables = importlib.import_module(f"benchmarks.bench_{name}").run(sizes)
        seconds = time.perf_counter() - started
        size = "Large" if sizes.full else "Small"
        text = f"{size} sizes. {where}. {found}. Took {seconds:.0f} s.\n\n"
        text += "\n".join(str(table) for table in tables)
        _say(f"## {name}\n\n{text}")
        if arguments.write:
            keep(arguments.write, name, text)
    return 0


def keep(path: Path, name: str, text: str) -> None:
    """Put the results of a benchmark, or of the soak, in a file, in place of former ones."""
    former = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    sections = dict(section.split("\n\n", 1) for section in former)
    sections[name] = text
    parts = [f"\n## {each}\n\n{sections[each].rstrip()}\n" for each in _KEPT if each in sections]
    path.write_text(_HEAD + "".join(parts), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="large sizes (about twenty minutes)")
    parser.add_argument("--feast", metavar="PYTHON", help="an interpreter that has Feast")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these benchmarks only")
    parser.add_argument("--profile", action="store_true", help="serving: where its time goes, too")
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


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
