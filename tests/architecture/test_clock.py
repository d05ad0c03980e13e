"""Law T5: nobody reads the clock but `clock.py`, neither in Python nor in SQL."""

from __future__ import annotations

import ast
import re

import pytest

from tests.architecture.tree import PACKAGE, modules, parsed

_MODULES = {"time": {"time", "time_ns", "monotonic", "monotonic_ns", "gmtime", "localtime"}}
_MODULES["time"] |= {"perf_counter", "perf_counter_ns", "clock_gettime"}
_METHODS = {"now", "utcnow", "today"}
_SQL = re.compile(
    r"\b(?:now|today|transaction_timestamp|get_current_timestamp)\(\)|\bcurrent_timestamp\b",
    re.IGNORECASE,
)
# The room that refuses such words in the SQL of definitions has to name them.
_NAMES_THEM = {"compile/source_sql.py"}
CLOCK = PACKAGE / "clock.py"


def readings(tree: ast.Module) -> list[int]:
    """Return the lines in which a module asks the machine for the time."""
    names = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _reads(node.func, names)
    ]


def _reads(called: ast.expr, names: dict[str, tuple[str | None, str]]) -> bool:
    if isinstance(called, ast.Name):
        module, name = names.get(called.id, (None, ""))
        return name in _MODULES.get(module or "", ())
    if not isinstance(called, ast.Attribute):
        return False
    owner = getattr(called.value, "id", None) or getattr(called.value, "attr", "")
    return called.attr in _MODULES.get(owner, ()) or (
        called.attr in _METHODS and owner in {"datetime", "date"}
    )


def test_t5_only_the_clock_reads_the_time():
    found = {str(path.relative_to(PACKAGE)): readings(parsed(path)) for path in modules()}
    assert found.pop("clock.py")
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_t5_no_sql_reads_the_time():
    found = []
    for path in modules():
        if str(path.relative_to(PACKAGE)) in _NAMES_THEM:
            continue
        texts = [
            node.value
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found += [f"{path.name}: {text[:60]}" for text in texts if _SQL.search(text)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import time\ntime.time()",
        "import time\ntime.monotonic()",
        "from time import time_ns as t\nt()",
        "from datetime import datetime\ndatetime.now(UTC)",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import date\ndate.today()",
    ],
)
def test_a_reading_would_be_found(text):
    assert readings(ast.parse(text)) == [2]
