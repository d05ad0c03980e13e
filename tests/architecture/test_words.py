"""The project speaks of itself alone: no paths of one machine, no loose ends."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.tree import GENERATED, ROOT, files, modules, parsed

_FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w./])/(?:root|home|Users)/\w"),
    "a loose end": re.compile(r"\b(?:TODO|FIXME|XXX)\b"),
}
_BINARY = {".parquet", ".png", ".gz"}


def test_no_forbidden_words():
    found = []
    for path in files():
        if path.suffix in _BINARY or path == Path(__file__) or GENERATED in path.parents:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for what, pattern in _FORBIDDEN.items():
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {what}: {line.strip()[:80]}")
    assert found == []


@pytest.mark.parametrize("text", ["cd /home/ann/store", "in /Users/ann", "TODO: more"])
def test_the_words_would_be_found(text):
    assert any(pattern.search(text) for pattern in _FORBIDDEN.values())


@pytest.mark.parametrize("text", ["a/home/b", "law T1", "/homes"])
def test_innocent_words_are_not_found(text):
    assert not any(pattern.search(text) for pattern in _FORBIDDEN.values())


@pytest.mark.parametrize("folder", ["featurestore", "tests", "definitions", "demo", "benchmarks"])
def test_every_module_says_what_it_is_for(folder):
    silent = [
        str(path.relative_to(ROOT))
        for path in modules(ROOT / folder)
        if path.stat().st_size and not ast.get_docstring(parsed(path))
    ]
    assert silent == []
