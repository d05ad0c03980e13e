"""The repository as the architecture tests see it: its files, without what git ignores."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featurestore"
GENERATED = PACKAGE / "serving" / "v1"
_IGNORED = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    ".import_linter_cache",
    ".benchmarks",
    "__pycache__",
    "dist",
}


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Return the files that belong to the project, sorted."""
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED or path == ROOT / "data":
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def modules(folder: Path = PACKAGE) -> list[Path]:
    """Return Python modules that people wrote."""
    return [p for p in files(folder) if p.suffix == ".py" and GENERATED not in p.parents]


def parsed(path: Path) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))
