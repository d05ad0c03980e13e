"""The list of rooms in docs/architecture.md, made from each module's own first sentence.

`python -m tests.architecture.rooms` writes it anew (`make rooms`); a test compares.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture.tree import PACKAGE, ROOT, modules, parsed

PAGE = ROOT / "docs" / "architecture.md"
_BEGIN = "<!-- rooms: written by `make rooms` from the modules' own docstrings -->\n"
_END = "<!-- end of rooms -->\n"


def listing() -> str:
    """Return the rooms, folder by folder, outermost first."""
    parts = []
    for folder in _folders():
        name = folder.relative_to(PACKAGE.parent).as_posix()
        parts.append(f"\n**`{name}/`** {_sentence(folder / '__init__.py')}\n\n")
        rooms = [p for p in modules(folder) if p.parent == folder and p.name != "__init__.py"]
        parts += [f"- `{room.relative_to(PACKAGE)}`: {_sentence(room)}\n" for room in rooms]
        if folder.name == "serving":
            parts.append("- `serving/v1/`: Code generated from `proto/`; private to this folder.\n")
    return "".join(parts) + "\n"


def shown() -> str:
    """Return the rooms as the page has them."""
    return PAGE.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


def write() -> None:
    """Write the rooms into the page."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    tail = rest.partition(_END)[2]
    PAGE.write_text(f"{head}{_BEGIN}{listing()}{_END}{tail}", encoding="utf-8")


def _folders() -> list[Path]:
    found = {path.parent for path in modules()}
    return sorted(found)


def _sentence(path: Path) -> str:
    text = (ast.get_docstring(parsed(path)) or "").partition("\n\n")[0]
    return " ".join(text.split())


if __name__ == "__main__":
    write()
