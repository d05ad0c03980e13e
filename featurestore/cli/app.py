"""The command line as a whole: its commands, how results are printed, and how errors end it.

Exit codes: 0 done, 1 a clear error of ours, 2 usage, 3 data failed its expectations or is not equal
online and offline, 4 try again later, 130 interrupted. An exception that nobody foresaw is a bug,
and said to be one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from featurestore.cli import (
    catalog,
    definitions,
    explaining,
    jobs,
    keys,
    reading,
    serving,
    streams,
    verifying,
)
from featurestore.cli.context import Invocation, StoppedError, shared_options
from featurestore.cli.output import Output
from featurestore.errors import FeatureStoreError

_USAGE = 2
_BUG = 1


class _CommandLine(click.Group):
    """Prints what commands return, and maps what they raise to an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands in the order in which one comes to use them."""
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, *_: Any, **more: Any) -> NoReturn:
        """Run a command line and exit."""
        # Python has no stream where the caller closed it.
        sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
        words = list(sys.argv[1:] if args is None else args)
        invocation = Invocation("json" if _asks_for_json(words) else "text")
        more["standalone_mode"] = False
        code = 0
        try:
            code = self._run(words, invocation, more)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read our output has enough; what the command did is done.
            _hush(sys.stdout)
        sys.exit(code)

    def _run(self, words: list[str], invocation: Invocation, more: dict[str, Any]) -> int:
        from featurestore.cli import render

        try:
            result = super().main(words, obj=invocation, **more)
            if isinstance(result, Output):
                render.show(result, invocation.output)
                return result.exit_code
            return result if isinstance(result, int) else 0
        except BrokenPipeError:
            raise
        except click.UsageError as error:
            _report_usage(error, invocation)
            return _USAGE
        except (KeyboardInterrupt, click.Abort):
            return _report(StoppedError("Interrupted."), invocation)
        except Exception as error:  # noqa: BLE001  the last resort of a process
            return _report(error, invocation)


def _report(error: Exception, invocation: Invocation) -> int:
    from featurestore.cli import render

    if invocation.verbose:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, StoppedError) and invocation.output == "text":
        render.show_line(error.what, "warning")
        return error.exit_code
    parts = error_parts(error)
    render.show_error(parts, invocation.output)
    return int(parts["exit_code"])


def error_parts(error: Exception) -> dict[str, Any]:
    """Return the parts of an error as `--output json` prints them."""
    name = type(error).__name__
    if isinstance(error, FeatureStoreError):
        return {
            "class": name,
            "what": error.what,
            "where": error.where,
            "got": error.got,
            "allowed": error.allowed,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
    text = str(error).strip().split("\n")[0]
    return {
        "class": name,
        "what": f"Unexpected {name}{': ' if text else ''}{text}. This is a bug of featurestore.",
        "where": None,
        "got": None,
        "allowed": None,
        "hint": "Run it again with --verbose and report what it prints.",
        "exit_code": _BUG,
    }


def _report_usage(error: click.UsageError, invocation: Invocation) -> None:
    from featurestore.cli import render

    if isinstance(error, click.exceptions.NoArgsIsHelpError) and invocation.output == "text":
        click.echo(error.format_message(), err=True)
        return
    command = error.ctx.command_path if error.ctx else "featurestore"
    usage = " ".join(error.ctx.get_usage().split()) if error.ctx else None
    parts = {
        "class": type(error).__name__,
        "what": error.format_message().split("\n")[0],
        "where": None,
        "got": None,
        "allowed": usage and usage.removeprefix("Usage: "),
        "hint": f"See '{command} --help'.",
        "exit_code": _USAGE,
    }
    render.show_error(parts, invocation.output)


def _asks_for_json(words: list[str]) -> bool:
    # Asked before parsing, so that a usage error is printed as the rest would have been.
    return re.search(r"(?:^|\0)--output(?:=|\0)json(?:\0|$)", "\0".join(words)) is not None


def _hush(stream: Any) -> None:
    """Let a closed pipe be: the interpreter flushes once more when it exits."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _version() -> str:
    from importlib.metadata import version

    return version("featurestore")


@click.group(
    cls=_CommandLine,
    params=shared_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="featurestore", message="%(prog)s %(version)s")
def cli() -> None:
    """Features for training and serving, equal bit for bit.

    Definitions are Python modules; a repository is a folder with featurestore.toml. Begin with
    'featurestore init DIR'.
    """


for _command in (
    *definitions.COMMANDS,
    *jobs.COMMANDS,
    *reading.COMMANDS,
    *streams.COMMANDS,
    *serving.COMMANDS,
    *keys.COMMANDS,
    *verifying.COMMANDS,
    *explaining.COMMANDS,
    *catalog.COMMANDS,
):
    cli.add_command(_command)
