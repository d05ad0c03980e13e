"""Prints what commands give back, as text for people or JSON for machines.

The only room that writes to the terminal. Text is coloured when it goes to one; elsewhere lines are
as long as they need to be, so that other tools can read them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Literal, TextIO, cast

from featurestore.cli.output import Block, Cell, Facts, Output, Style, Table, plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from featurestore.services.materialization import Progress

Mode = Literal["text", "json"]

_STYLES: dict[Style, str] = {
    "plain": "",
    "heading": "bold",
    "good": "green",
    "warning": "yellow",
    "bad": "bold red",
    "faint": "dim",
}
_UNBOUND = 10_000
_STAGES = (
    "listing the source",
    "reading the source",
    "writing the table",
    "pushing online",
    "done",
)


def show(output: Output, mode: Mode) -> None:
    """Print a result to standard output."""
    if mode == "json":
        write_json(output.data, sys.stdout)
        return
    console = _console(sys.stdout)
    for block in output.blocks:
        _print(console, block)
    sys.stdout.flush()


def show_error(parts: dict[str, Any], mode: Mode) -> None:
    """Print an error to standard error.

    Args:
        parts: "what", and where there are any "where", "got", "allowed" and "hint".
        mode: Text, or JSON under the key "error".
    """
    if mode == "json":
        write_json({"error": parts}, sys.stderr)
        return
    console = _console(sys.stderr)
    pairs = [("Error:", Cell(parts["what"], "heading"))]
    labels = (("where", "where"), ("got", "got"), ("allowed", "allowed"), ("hint", "next"))
    pairs += [(f"{label}:", Cell(parts[key])) for key, label in labels if parts.get(key)]
    _print(console, _grid(pairs, first="bad"))


def show_line(text: str, style: Style = "plain") -> None:
    """Print one line to standard error."""
    _print(_console(sys.stderr), Cell(text, style))


def write_json(value: Any, stream: IO[str]) -> None:
    """Print a value as JSON."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    stream.write(f"{text}\n")
    stream.flush()


def write_json_line(value: Any) -> None:
    """Print a value as one line of JSON to standard output, for commands that go on."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


class _Lines:
    """A file for a log: what cannot be written is lost, and whoever tells of it goes on.

    Args:
        file: Where lines go; it may be a pipe that nobody reads any more, or a disk that is full.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write some of the log."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)

    def flush(self) -> None:
        """Send what was written."""
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()


def log_to_stderr(mode: Mode, *, stamped: bool = False) -> None:
    """Send what the services log to standard error: lines for people, or JSON a line.

    Args:
        mode: Text or JSON.
        stamped: Whether lines for people begin with the instant, as those of a server do.
    """
    import structlog

    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    last: Any = structlog.processors.JSONRenderer()
    if mode == "text":
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *([stamp] if stamped or mode == "json" else []),
            structlog.processors.format_exc_info,
            last,
        ],
        # In one write each, so that the lines of processes that share it do not run into another.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lines(sys.stderr))),
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def working(text: str, mode: Mode) -> Iterator[None]:
    """Show on a terminal that something goes on."""
    if mode == "json" or not sys.stderr.isatty():
        yield
        return
    with _console(sys.stderr).status(text):
        yield


def is_live(mode: Mode) -> bool:
    """Whether a line can be shown that changes in place."""
    return mode == "text" and sys.stderr.isatty()


@contextlib.contextmanager
def live_line(mode: Mode) -> Iterator[Callable[[str], None]]:
    """Show on a terminal a line that changes in place."""
    if not is_live(mode):
        yield lambda _: None
        return
    console = _console(sys.stderr)
    with console.status("") as status:
        yield lambda text: status.update(_text(Cell(text)))


@contextlib.contextmanager
def view_progress(mode: Mode) -> Iterator[Progress]:
    """Show on a terminal a bar for each view, with the stage that it is at."""
    if mode == "json" or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich import progress

    bars = progress.Progress(
        progress.SpinnerColumn(finished_text="[green]✓"),
        progress.TextColumn("{task.fields[view]}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.description}", style="dim", markup=False),
        progress.TimeElapsedColumn(),
        console=_console(sys.stderr),
        transient=True,
    )
    tasks: dict[str, progress.TaskID] = {}

    def advance(view: str, stage: str) -> None:
        if view not in tasks:
            tasks[view] = bars.add_task(stage, total=len(_STAGES) - 1, view=view)
        done = _STAGES.index(stage) if stage in _STAGES else None
        bars.update(tasks[view], description=stage, completed=done)

    with bars:
        yield advance


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    width = None if stream.isatty() else _UNBOUND
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _print(console: Console, item: Block | RenderableType) -> None:
    renderable = _renderable(item)
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    lines = capture.get().splitlines()
    console.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def _renderable(item: Block | RenderableType) -> RenderableType:
    if isinstance(item, Cell):
        return _text(item)
    if isinstance(item, Facts):
        return _grid([(f"{label}:", _cell(value)) for label, value in item.pairs])
    if isinstance(item, Table):
        return _table(item) if item.rows else _text(Cell(item.empty, "faint"))
    return item


def _table(block: Table) -> RenderableType:
    from rich.table import Table as RichTable

    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in block.columns:
        table.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
            no_wrap=not column.startswith("~"),
        )
    for row in block.rows:
        table.add_row(*(_text(_cell(value)) for value in row))
    return table


def _grid(pairs: list[tuple[str, Cell]], first: Style = "faint") -> RenderableType:
    from rich.table import Table as RichTable

    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for index, (label, value) in enumerate(pairs):
        grid.add_row(_text(Cell(label, first if index == 0 else "faint")), _text(value))
    return grid


def _cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _text(cell: Cell) -> Text:
    from rich.text import Text

    return Text(cell.text, style=_STYLES[cell.style])
