"""How the demo tells what it does: numbered chapters, lines and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console


class Story:
    """Prints what happens, and how long it took.

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
        """Print a line."""
        self.console.print(f"   {text}")

    def table(self, *columns: str) -> Table:
        """Return an empty table; columns that begin with ">" are aligned to the right."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in columns:
            right = name.startswith(">")
            table.add_column(name.removeprefix(">"), justify="right" if right else "left")
        return table

    def show(self, table: Table) -> None:
        """Print a table, indented."""
        self.console.print(Padding(table, (0, 0, 0, 3)))
