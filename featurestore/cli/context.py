"""What all commands share: where the repository is, how to print, and how a command may end.

`Command` adds the options that every command takes; `Invocation` holds what they said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from featurestore.cli.render import Mode
    from featurestore.wiring import FeatureStore

_FILE_NAME = "featurestore.toml"
_UNCHANGED = "Nothing was changed."


class StoppedError(FeatureStoreError):
    """The user stopped the command; `what` says what was done and what was not."""

    exit_code: ClassVar[int] = 130


class Invocation:
    """One call of the command line.

    Attributes:
        output: How to print.
        verbose: Whether to show tracebacks.
        repo: The folder that `--repo` named, None for the nearest one.
    """

    def __init__(self, output: Mode = "text", *, verbose: bool = False) -> None:
        self.output: Mode = output
        self.verbose = verbose
        self.repo: Path | None = None

    @property
    def folder(self) -> Path:
        """The repository: `--repo`, or this folder or the nearest above it with its file."""
        if self.repo is not None:
            return self.repo
        here = Path.cwd()
        return next((f for f in (here, *here.parents) if (f / _FILE_NAME).is_file()), here)

    @contextlib.contextmanager
    def store(self) -> Iterator[FeatureStore]:
        """Open the repository's feature store for the length of a command."""
        from featurestore.cli import render
        from featurestore.wiring import FeatureStore

        render.log_to_stderr(self.output)
        with FeatureStore(self.folder) as store:
            yield store

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show on a terminal that something goes on."""
        from featurestore.cli import render

        with render.working(text, self.output):
            yield


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _set(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Invocation), attribute, value)

    return keep


def shared_options() -> list[click.Parameter]:
    """Return new options that every command takes, before or after its name."""
    return [
        click.Option(
            ["--repo"],
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="The repository. By default this folder or the nearest above it with"
            f" {_FILE_NAME}.",
            expose_value=False,
            callback=_set("repo"),
        ),
        click.Option(
            ["--output"],
            type=click.Choice(["text", "json"]),
            help="How to print results and errors. By default text.",
            expose_value=False,
            callback=_set("output"),
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            help="Show the traceback of an error.",
            expose_value=False,
            callback=_set("verbose"),
        ),
    ]


class Command(click.Command):
    """A command with the shared options, which says what an interrupt left behind.

    Args:
        interrupted: What is to be said after Ctrl-C.
    """

    def __init__(self, *args: Any, interrupted: str = _UNCHANGED, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params = [*self.params, *shared_options()]
        self._interrupted = interrupted

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as error:
            raise StoppedError(f"Interrupted. {self._interrupted}") from error
