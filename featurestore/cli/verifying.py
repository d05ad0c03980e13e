"""The command that tells whether what is served is right: `verify`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.context import Command, Invocation, pass_invocation
from featurestore.cli.output import Block, Cell, Output, Style, Table, count, duration, plain

if TYPE_CHECKING:
    from featurestore.services.verification_report import VerificationReport

_SHOWN_DIFFERENCES = 20
_SHOWN_LATE = 20
_DIFFERENT = 3


@click.command("verify", cls=Command, short_help="Prove that online and offline are equal.")
@click.option("--service", required=True, metavar="SERVICE|REFS", help="What to verify: a feature"
    " service, or references such as view:feature,view:feature.")  # fmt: skip
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw so many entities from the views' tables. By default all of them are asked for.",
)
@click.option(
    "--entities",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead: a Parquet or CSV file with the join keys.",
)
@click.option(
    "--as-of", "instants", multiple=True, metavar="INSTANT",
    help="The instant to ask for; repeat it for more. By default now.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Draws another sample.")
@click.option(
    "--server", metavar="HOST:PORT", help="Ask this feature server, not the online store itself."
)
@pass_invocation
def verify(
    invocation: Invocation,
    /,
    service: str,
    *,
    sample: int | None,
    entities: Path | None,
    instants: tuple[str, ...],
    seed: int,
    server: str | None,
) -> Output:
    """Look features up online, compute them again from the tables, and compare every bit.

    Exit code 3 says that something differs, which is a bug; 1 that nothing could be compared.
    Values that late data changed since are told apart: they are no difference.
    """
    from featurestore.cli.reading import applied_features

    if sample is not None and entities is not None:
        raise click.UsageError("Give either --sample or --entities.")
    with invocation.store() as store, _client(server) as client, invocation.working("Verifying"):
        report = store.verify(
            applied_features(store, service),
            sample=sample,
            entities=None if entities is None else entities.resolve(),
            as_of=list(instants),
            seed=seed,
            client=client,
        )
    return _report(report)


@contextlib.contextmanager
def _client(server: str | None) -> Iterator[Any]:
    if server is None:
        yield None
        return
    from featurestore.cli.connecting import client_of

    with client_of(server, timeout=60.0) as client:
        yield client


def _report(report: VerificationReport) -> Output:
    data = dataclasses.asdict(report) | {"equal": report.equal}
    data["late"] = {
        name: {"compared": late.compared, "changed": late.changed, "share": late.share}
        for name, late in report.late.items()
    }
    style: Style = "good" if report.equal else "bad"
    verdict = f"{count(report.compared, 'value')} compared, {report.different:,} different."
    instants = count(len(report.instants), "instant")
    asked = (
        f"{count(report.entities, 'entity').replace('entitys', 'entities')} at {instants},"
        f" {report.present:,} values present; {duration(report.seconds)}."
    )
    blocks: list[Block] = [Cell(verdict, style), Cell(asked, "faint")]
    blocks += [*_differences(report), *_left_out(report), *_late(report)]
    return Output(data, blocks, exit_code=0 if report.equal else _DIFFERENT)


def _differences(report: VerificationReport) -> Iterator[Block]:
    if report.equal:
        return
    rows = [
        (
            each.reference,
            ", ".join(f"{name}={_text(value)}" for name, value in each.entity.items()),
            plain(each.as_of),
            f"{_text(each.online)} {each.online_status}",
            f"{_text(each.offline)} {each.offline_status}",
        )
        for each in report.differences[:_SHOWN_DIFFERENCES]
    ]
    yield Table(("feature", "entity", "as of", "~online", "~offline"), rows)
    more = report.different - len(rows)
    if more > 0:
        yield Cell(f"{more:,} more differ; --output json tells the first 100.", "faint")


def _left_out(report: VerificationReport) -> Iterator[Block]:
    for reason, number in report.not_comparable.items():
        yield Cell(f"{count(number, 'value')} not comparable: {reason}.", "warning")


def _late(report: VerificationReport) -> Iterator[Block]:
    late = sorted(report.late.items(), key=lambda item: -item[1].share)
    rows = [
        (name, f"{each.changed:,}", f"{each.compared:,}", f"{each.share:.2%}")
        for name, each in late
        if each.changed
    ]
    if rows:
        yield Cell("Late data, which is no difference: values that were others when first known.")
        yield Table(("feature", ">changed", ">of", ">share"), rows[:_SHOWN_LATE])


def _text(value: Any) -> str:
    shown = plain(value)
    if isinstance(shown, float):
        return repr(shown)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)


COMMANDS = (verify,)
