"""How the demo tells what it does: numbered chapters, lines and tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

_INDENT = 3


class Story:
    """Prints what happens.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = 0

    def chapter(self, title: str) -> None:
        """Begin a numbered step."""
        self._step += 1
        self.console.print(f"\n[bold]{self._step}. {title}[/bold]")

    def say(self, text: str) -> None:
        """Print a paragraph, indented."""
        self.console.print(Padding(text, (0, 0, 0, _INDENT)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns that begin with ">" are aligned to the right."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in columns:
            right = name.startswith(">")
            table.add_column(name.removeprefix(">"), justify="right" if right else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, str], None]]:
        """Show on a terminal what a job does, with the seconds it takes; give what to tell."""
        if not self.console.is_terminal:
            yield lambda *_: None
            return
        with self.console.status("materializing") as status:
            yield lambda view, stage: status.update(f"{view}: {stage}")


def text(value: Any) -> str:
    """Return a value as a cell of a table."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)


def megabytes(folder: Path) -> str:
    """Return the size of a folder's files."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.1f} MB"
