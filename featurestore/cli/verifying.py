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
    from featurestore.services.served_log_report import ServedReport
    from featurestore.services.verification_report import VerificationReport

    Report = ServedReport | VerificationReport

_SHOWN_DIFFERENCES = 20
_SHOWN_LATE = 20
_DIFFERENT = 3


@click.command("verify", cls=Command, short_help="Prove that online and offline are equal.")
@click.option("--service", metavar="SERVICE|REFS", help="What to verify: a feature service, or"
    " references such as view:feature,view:feature. Needed unless --served is given.")  # fmt: skip
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw so many entities from the views' tables, or rows from the log with --served. By"
    " default all of them are taken.",
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
@click.option("--served", is_flag=True, help="Verify what was served, from the log of it"
    " (serving.served_log_sample), instead of asking now.")  # fmt: skip
@click.option("--since", metavar="INSTANT", help="With --served: only what was served from then.")
@click.option("--until", metavar="INSTANT", help="With --served: only what was served before.")
@pass_invocation
def verify(
    invocation: Invocation,
    /,
    service: str | None,
    *,
    sample: int | None,
    entities: Path | None,
    instants: tuple[str, ...],
    seed: int,
    server: str | None,
    served: bool,
    since: str | None,
    until: str | None,
) -> Output:
    """Look features up online, compute them again from the tables, and compare every bit.

    With --served, what was served is taken from its log instead, and computed again as of then.

    Exit code 3 says that something differs, which is a bug; 1 that nothing could be compared.
    Values that late data changed since are told apart: they are no difference.
    """
    if served:
        if entities is not None or instants or server is not None:
            raise click.UsageError("--served goes with --service, --since, --until and --sample.")
        with invocation.store() as store, invocation.working("Verifying what was served"):
            return _served_report(
                store.verify_served(
                    _references(service), since=since, until=until, sample=sample, seed=seed
                )
            )
    if service is None or since is not None or until is not None:
        raise click.UsageError("Give --service; --since and --until go with --served.")
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


def _references(service: str | None) -> str | list[str] | None:
    """Return what was asked for; it need not be applied any more."""
    if service is None or not ({":", ","} & set(service)):
        return service
    return [item.strip() for item in service.split(",")]


def _served_report(report: ServedReport) -> Output:
    data = dataclasses.asdict(report) | {"equal": report.equal, "late": _late_data(report)}
    verdict = f"{count(report.compared, 'value')} compared, {report.different:,} different."
    looked = (
        f"{count(report.rows, 'row')} of {', '.join(report.services)}, served from"
        f" {plain(report.first)} to {plain(report.last)}; {duration(report.seconds)}."
    )
    blocks: list[Block] = [
        Cell(verdict, "good" if report.equal else "bad"),
        Cell(looked, "faint"),
        *_differences(report),
        *_left_out(report),
        *_late(
            report, "Values that rows which came later would change now, which is no difference."
        ),
    ]
    return Output(data, blocks, exit_code=0 if report.equal else _DIFFERENT)


def _late_data(report: Report) -> dict[str, Any]:
    return {
        name: {"compared": late.compared, "changed": late.changed, "share": late.share}
        for name, late in report.late.items()
    }


def _report(report: VerificationReport) -> Output:
    data = dataclasses.asdict(report) | {"equal": report.equal, "late": _late_data(report)}
    style: Style = "good" if report.equal else "bad"
    verdict = f"{count(report.compared, 'value')} compared, {report.different:,} different."
    instants = count(len(report.instants), "instant")
    asked = (
        f"{count(report.entities, 'entity').replace('entitys', 'entities')} at {instants},"
        f" {report.present:,} values present; {duration(report.seconds)}."
    )
    blocks: list[Block] = [Cell(verdict, style), Cell(asked, "faint")]
    late = "Late data, which is no difference: values that were others when first known."
    blocks += [*_differences(report), *_left_out(report), *_late(report, late)]
    return Output(data, blocks, exit_code=0 if report.equal else _DIFFERENT)


def _differences(report: Report) -> Iterator[Block]:
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


def _left_out(report: Report) -> Iterator[Block]:
    for reason, number in report.not_comparable.items():
        yield Cell(f"{count(number, 'value')} not comparable: {reason}.", "warning")


def _late(report: Report, title: str) -> Iterator[Block]:
    late = sorted(report.late.items(), key=lambda item: -item[1].share)
    rows = [
        (name, f"{each.changed:,}", f"{each.compared:,}", f"{each.share:.2%}")
        for name, each in late
        if each.changed
    ]
    if rows:
        yield Cell(title)
        yield Table(("feature", ">changed", ">of", ">share"), rows[:_SHOWN_LATE])


def _text(value: Any) -> str:
    shown = plain(value)
    if isinstance(shown, float):
        return repr(shown)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)


COMMANDS = (verify,)
