"""The project speaks of itself alone: no machines, registries or numbers of anybody's issues."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.tree import GENERATED, ROOT, files, modules, parsed

_FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w./])/(?:work|root|home)/\w"),
    "a package registry": re.compile(
        r"pypi\.(?:org|io)|pythonhosted|npmjs\.|crates\.io|ghcr\.io|quay\.io|docker\.io"
        r"|proxy\.golang",
        re.IGNORECASE,
    ),
    "the number of an issue": re.compile(
        r"\b(?:issues?|fix(?:es)?|closes?|bug)\s+#?\d|(?<![\w&/#])#\d{2,}\b", re.IGNORECASE
    ),
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


@pytest.mark.parametrize(
    "text", ["cd /work/main", "see pypi.org", "as in #12", "fixes #1", "issue 42", "TODO: more"]
)
def test_the_words_would_be_found(text):
    assert any(pattern.search(text) for pattern in _FORBIDDEN.values())


@pytest.mark.parametrize(
    "text", ["a/work/b", "law T1", "colour #fff", "workflow", "&#39;", "file #1"]
)
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
