"""The parts of documents that are made from the code: rooms, settings and metrics.

`python -m tests.architecture.pages` writes them anew (`make pages`); tests compare.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

from featurestore.model.settings import Section, Settings
from featurestore.serving.metrics.families import FAMILIES, PREFIX
from tests.architecture.tree import PACKAGE, ROOT, modules, parsed


@dataclass(frozen=True)
class Part:
    """A part of a page between two comments."""

    page: Path
    begin: str
    end: str
    make: Callable[[], str]

    def shown(self) -> str:
        """Return the part as the page has it."""
        return self.page.read_text(encoding="utf-8").partition(self.begin)[2].partition(self.end)[0]

    def write(self) -> None:
        """Write the part into its page."""
        head, begin, rest = self.page.read_text(encoding="utf-8").partition(self.begin)
        _, end, tail = rest.partition(self.end)
        self.page.write_text(f"{head}{begin}{self.make()}{end}{tail}", encoding="utf-8")


def rooms() -> str:
    """Return every module and its first sentence, folder by folder."""
    parts = []
    for folder in sorted({path.parent for path in modules()}):
        name = folder.relative_to(PACKAGE.parent).as_posix()
        parts.append(f"\n**`{name}/`** {_sentence(folder / '__init__.py')}\n\n")
        found = [p for p in modules(folder) if p.parent == folder and p.name != "__init__.py"]
        parts += [f"- `{room.relative_to(PACKAGE)}`: {_sentence(room)}\n" for room in found]
        if folder.name == "serving":
            parts.append("- `serving/v1/`: Code generated from `proto/`; private to this folder.\n")
    return "".join(parts) + "\n"


def settings() -> str:
    """Return every setting with its type, its default, its variable and its meaning."""
    parts = []
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        if not (inspect.isclass(model) and issubclass(model, Section)):
            continue
        meanings = _attributes(inspect.getdoc(model) or "")
        parts.append(f"\n## [{section}]\n\n{_first(model)}\n\n")
        parts.append("| key | type | default | variable | |\n|---|---|---|---|---|\n")
        for key, setting in model.model_fields.items():
            default = "" if setting.default is None else f"`{json.dumps(setting.default)}`"
            variable = f"`FEATURESTORE_{section}_{key}`".upper()
            cells = (f"`{key}`", _kind(setting), default, variable, meanings[key])
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts) + "\n"


def metrics() -> str:
    """Return every metric with its kind, its labels and its meaning."""
    parts = ["\n| metric | kind | labels | |\n|---|---|---|---|\n"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        parts.append(f"| `{PREFIX}{family.name}` | {family.kind} | {labels} | {family.help} |\n")
    return "".join(parts) + "\n"


PARTS = {
    "rooms": Part(
        ROOT / "docs" / "architecture.md",
        "<!-- rooms: written by `make pages` from the modules' own docstrings -->\n",
        "<!-- end of rooms -->\n",
        rooms,
    ),
    "metrics": Part(
        ROOT / "docs" / "observability.md",
        "<!-- metrics: written by `make pages` from featurestore/serving/metrics/families.py -->\n",
        "<!-- end of metrics -->\n",
        metrics,
    ),
    "settings": Part(
        ROOT / "docs" / "settings.md",
        "<!-- settings: written by `make pages` from featurestore/model/settings.py -->\n",
        "<!-- end of settings -->\n",
        settings,
    ),
}


def _sentence(path: Path) -> str:
    text = (ast.get_docstring(parsed(path)) or "").partition("\n\n")[0]
    return " ".join(text.split())


def _kind(setting: Any) -> str:
    kinds = (SecretStr, "secret"), (int, "integer"), (float, "number")
    options = get_args(setting.annotation) or (setting.annotation,)
    named = next((name for kind, name in kinds if kind in options), "text")
    return "size" if setting.metadata else named


def _first(model: type) -> str:
    return (inspect.getdoc(model) or "").partition("\n")[0]


def _attributes(text: str) -> dict[str, str]:
    """Return {attribute: meaning} of a docstring's section "Attributes"."""
    body = inspect.cleandoc(text.partition("Attributes:\n")[2].partition("\n\n")[0])
    found = re.split(r"^(\w+): ", body, flags=re.MULTILINE)[1:]
    pairs = zip(found[::2], found[1::2], strict=True)
    return {name: " ".join(meaning.split()) for name, meaning in pairs}


if __name__ == "__main__":
    for part in PARTS.values():
        part.write()
