"""The documents keep up with the code: laws have tests, rooms have files, dependencies reasons."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.wiring import load_settings
from tests.architecture import pages
from tests.architecture.tree import PACKAGE, ROOT, files, modules, parsed

_TEST = re.compile(r"`((?:tests|featurestore/testing)/[\w/]+\.py)::(\w+(?:::\w+)?)`")
_LAW = re.compile(r"^\*\*([A-Z]\d+)\.?\*\*", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#:\s]+)(?:#[^)]*)?\)")
SEMANTICS = ROOT / "docs" / "semantics.md"
_COUNTS = {"T": (1, 2, 3, 4, 5), "K": (1, 2), "J": (1, 2, 3, 4, 5), "W": (1, 2, 3, 4, 5, 6)}
_COUNTS |= {"M": (1, 2, 3, 4, 6, 7), "O": (1, 2, 3, 4, 5), "V": (1, 2, 3)}
_COUNTS |= {"L": (1, 2, 3, 4, 5)}
HOLDING = [f"{letter}{number}" for letter, numbers in _COUNTS.items() for number in numbers]


def laws() -> dict[str, str]:
    """Return the text of each law by its number, in order of appearance."""
    text = SEMANTICS.read_text(encoding="utf-8").partition("\n## Not yet")[0]
    parts = _LAW.split(text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_law_stands_in_the_document_once():
    text = SEMANTICS.read_text(encoding="utf-8").partition("\n## Not yet")[0]
    assert _LAW.findall(text) == HOLDING


@pytest.mark.parametrize("law", HOLDING)
def test_each_law_names_tests_that_exist(law):
    named = _TEST.findall(laws()[law])
    assert named, f"law {law} names no test"
    missing = [f"{path}::{test}" for path, test in named if test not in _tests_of(ROOT / path)]
    assert missing == []


def test_every_sentence_of_the_decisions_names_its_test():
    text = SEMANTICS.read_text(encoding="utf-8")
    decisions = text.partition("\n## Decisions")[2].partition("\n## ")[0]
    items = re.split(r"^- ", decisions, flags=re.MULTILINE)[1:]
    assert len(items) > 5
    silent = [item.split("\n")[0] for item in items if not _TEST.search(item)]
    assert silent == []


@pytest.mark.parametrize(
    "document",
    [p for p in files(ROOT) if p.suffix == ".md"],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_links_and_tests_that_documents_name_exist(document):
    text = document.read_text(encoding="utf-8")
    broken = [link for link in _LINK.findall(text) if not (document.parent / link).exists()]
    broken += [f"{p}::{t}" for p, t in _TEST.findall(text) if t not in _tests_of(ROOT / p)]
    assert broken == []


@pytest.mark.parametrize("part", pages.PARTS)
def test_what_is_made_from_the_code_is_as_the_code_is(part):
    made = pages.PARTS[part].make()
    assert len(made) > 1000
    assert pages.PARTS[part].shown() == made, "run 'make pages'"


def test_the_list_of_rooms_has_every_module():
    text = pages.rooms()
    missing = [path for path in modules() if path.name != "__init__.py" and path.name not in text]
    assert missing == []


def test_the_architecture_page_names_nothing_that_is_gone():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?)`", text)
    assert len(shown) > 50
    gone = [name for name in shown if not any((top / name).exists() for top in (PACKAGE, ROOT))]
    assert gone == []


def test_dependencies_are_all_told_with_licence_and_reason():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    told = set()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and re.fullmatch(r"[a-z0-9-]+", cells[0]) and set(cells[0]) != {"-"}:
            told.add(cells[0])
            assert cells[1]
            assert cells[2]
    told.discard("package")
    assert told == set(_dependencies())


def test_every_dependency_is_imported_somewhere():
    imported = {
        name.partition(".")[0].lower()
        for path in modules()
        for node in ast.walk(parsed(path))
        for name in _imports(node)
    }
    for path in files(PACKAGE / "serving" / "v1"):
        imported |= {"google"} if "google.protobuf" in path.read_text(encoding="utf-8") else set()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in wanted["dependencies"]}
    unused = {name for name in names if _IMPORTED_AS.get(name, name) not in imported}
    # Zones are read by the standard library, which looks for this package itself.
    assert unused - {"tzdata"} == set()


_IMPORTED_AS = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "protobuf": "google",
    "pydantic-settings": "pydantic_settings",
}


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def _dependencies() -> Iterator[str]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = data["project"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *data["dependency-groups"].values(),
        data["build-system"]["requires"],
    ]
    for group in groups:
        for requirement in group:
            match = re.match(r"[A-Za-z0-9_.-]+", requirement)
            assert match
            yield match[0].lower()


def _tests_of(path: Path) -> set[str]:
    """Return the tests of a file, those of classes as Class::test."""
    if not path.exists():
        return set()
    names = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}::{item.name}"
                for item in node.body
                if isinstance(item, ast.FunctionDef)
            }
    return names


def test_each_variable_of_the_settings_page_overrides_its_setting(monkeypatch, tmp_path):
    (tmp_path / "featurestore.toml").write_text('project = "p"\n', encoding="utf-8")
    before = load_settings(tmp_path)
    lines = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \| `(\w+)` \|", pages.settings(), re.MULTILINE)
    assert len(lines) > 20
    for key, default, variable in lines:
        section = variable.removeprefix("FEATURESTORE_").partition("_")[0].lower()
        other = "7MiB" if "iB" in default else "7"
        monkeypatch.setenv(variable, other)
        value = getattr(getattr(load_settings(tmp_path), section), key)
        assert value != getattr(getattr(before, section), key), variable
        monkeypatch.delenv(variable)
