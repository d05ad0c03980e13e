"""The `featurestore` command. Commands return values; `render` prints them as text or JSON."""

from __future__ import annotations


def main() -> None:
    """Run the command with the arguments of the process and exit with its code."""
    from featurestore.cli.app import cli

    cli.main()
