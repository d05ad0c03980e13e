"""A room stays small enough to read: 400 lines a file, 40 a function."""

from __future__ import annotations

import ast

from tests.architecture.tree import PACKAGE, ROOT, modules, parsed

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
# What may be longer, and why.
LONGER: dict[str, str] = {}


def test_files_are_short():
    long = {}
    for path in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            long[str(path.relative_to(ROOT))] = lines
    assert {name: n for name, n in long.items() if name not in LONGER} == {}


def test_functions_are_short():
    long = {}
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = _code_lines(node)
                if size > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}::{node.name}"] = size
    assert {name: n for name, n in long.items() if name not in LONGER} == {}


def test_the_exceptions_exist_and_say_why():
    for name, reason in LONGER.items():
        path, _, function = name.partition("::")
        assert (ROOT / path).is_relative_to(PACKAGE)
        names = {getattr(node, "name", "") for node in ast.walk(parsed(ROOT / path))}
        assert not function or function in names
        assert len(reason.split()) > 3


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which is there to be as long as it needs."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total
