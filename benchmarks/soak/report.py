"""The record of a soak as text, and the judgement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import Table, mebibytes, number
from benchmarks.load import Load
from benchmarks.soak.watching import SERVER, WORKER, Watcher

if TYPE_CHECKING:
    from benchmarks.soak.run import Result

_LIMITS = {"serve": SERVER, "ingest": WORKER, "schedule": WORKER}
_HEADING = "{:>7} {:>8} {:>8} {:>8} {:>8} {:>7}  {}"


def heading() -> str:
    """Return the heading of the lines."""
    columns = ("seconds", "req/s", "p50 ms", "p99 ms", "p99.9 ms", "errors")
    return _HEADING.format(*columns, "MiB/descriptors/threads of each process; store MiB")


def line(at: float, load: Load, watcher: Watcher) -> str:
    """Return the line of a piece of the load."""
    timing = load.timing
    held = "  ".join(
        f"{name} {mebibytes(u.memory)}/{u.descriptors}/{u.threads}"
        for name, u in watcher.now().items()
    )
    store = mebibytes(watcher.store[-1][1]) if watcher.store else ""
    millis = [f"{timing.quantile(q) * 1e3:.1f}" for q in (0.5, 0.99, 0.999)]
    errors = sum(load.failures.values())
    return _HEADING.format(f"{at:.0f}", number(load.rate), *millis, errors, f"{held}; {store}")


def judged(result: Result) -> tuple[bool, str]:
    """Return whether the soak passed, and all that it is judged by."""
    actors, checker = result.actors, result.actors.checker
    failures = result.failures
    requests = sum(load.requests for _, load in result.lines)
    samples = sorted(s for _, load in result.lines for s in load.timing.samples)
    table = Table("Soak", ["what", "found", "must be", ""])
    verdicts: list[bool] = []

    def judge(what: str, found: str, bar: str, *, holds: bool) -> None:
        verdicts.append(holds)
        table.add(what, found, bar, "PASS" if holds else "FAIL")

    shown = ", ".join(f"{count} x {kind}" for kind, count in failures.items())
    judge("errors", shown or "0", "0", holds=not failures)
    wrong = f"{checker.wrong} in {checker.answers:,} answers"
    judge("wrong answers", wrong, "0", holds=not checker.wrong and checker.answers > 0)
    for how, found in zip(("of the store", "through the server"), result.verified, strict=False):
        holds = bool(found) and found["different"] == 0 and found["compared"] > 0
        values = f"{found['different']} of {found['compared']:,}" if found else "it failed"
        judge(f"different values, {how}", values, "0", holds=holds)
    if len(result.verified) < 2:  # noqa: PLR2004
        judge("verified", "no", "yes", holds=False)
    for what in ("events", "rows pushed", "changes of definitions"):
        judge(what, f"{actors.counts[what]:,}", "> 0", holds=actors.counts[what] > 0)
    for growth in result.watcher.growth(_LIMITS):
        limit = _LIMITS[growth.name.split()[0]]
        text = (
            f"{growth.memory / 2**20:+.1f} MiB to {mebibytes(growth.last.memory)},"
            f" descriptors {growth.descriptors:+.1f} to {growth.last.descriptors},"
            f" threads {growth.threads:+.1f} to {growth.last.threads}"
        )
        bar = (
            f"{limit.bytes / 2**20:.0f} MiB or {limit.share:.0%},"
            f" {limit.descriptors:.0f} descriptors, {limit.threads:.0f} threads"
        )
        bar = bar if growth.judged else "too short to judge"
        judge(f"growth of {growth.name}", text, bar, holds=growth.flat)
    passed = all(verdicts)
    notes = _notes(result, requests, samples)
    table.notes += notes
    said = "".join(f"\n- WRONG: {each}" for each in checker.said)
    return passed, f"{table}{said}\n{'PASS' if passed else 'FAIL'}"


def _notes(result: Result, requests: int, samples: list[float]) -> list[str]:
    actors, checker, store = result.actors, result.actors.checker, result.watcher.store
    ms = [
        f"{name} {samples[min(len(samples) - 1, int(len(samples) * q))] * 1e3:.1f} ms"
        for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
        if samples
    ]
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(actors.counts.items()))
    load = f"{requests:,} requests of 10 entities at {number(result.rate)} a second"
    return [
        f"{load}, 70 % of the peak beside all the rest ({number(result.peak)}) at most.",
        f"Latency: {', '.join(ms)}.",
        f"Beside: {counts}.",
        f"{checker.generations} fingerprints of the plain view were seen.",
        f"An acknowledged event was in the answers after {checker.lag:.2f} s at most.",
        f"Valkey: {mebibytes(store[0][1])} MiB at the start, {mebibytes(store[-1][1])} at the end.",
        "Valkey keeps the stream, and former generations for an hour: it is not judged.",
        "Growth is that of a straight line through the second half.",
    ]
