"""How long a user waits before anything happens: importing the package and `--help`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import ROOT, Sizes, Table, Timing, measure, times

BAR_IMPORT, BAR_HELP = 0.3, 0.5
_MODULES = "import sys, {name}; {use}; print(len(sys.modules))"


def run(sizes: Sizes) -> list[Table]:
    """Time fresh processes; the best of several, for every side alike."""
    repeat = sizes.pick(5, 15)
    ours, floor = Path(sys.executable), _time([sys.executable, "-c", "pass"], repeat * 2)
    table = Table(
        f"Import and --help, best of {repeat} fresh processes",
        ["what", "seconds", "over `python -c pass`", "modules", "bar", "reached"],
    )
    table.add("`python -c pass` (floor)", f"{floor.best:.3f}", "", "", "", "")

    def add(what: str, command: list[str], count: str, bar: float | None, runs: int) -> Timing:
        timing = _time(command, runs)
        reached = "" if bar is None else "yes" if timing.best < bar else "NO"
        limit = "" if bar is None else f"< {bar}"
        extra = f"{timing.best - floor.best:.3f}"
        table.add(what, f"{timing.best:.3f}", extra, count, limit, reached)
        return timing

    python, name = str(ours), "featurestore"
    for use in ("featurestore.FeatureView", "featurestore.FeatureStore"):
        code = f"import featurestore; {use}"
        label = f"`import featurestore; {use.split('.')[1]}`"
        add(label, [python, "-c", code], _modules(python, name, use), BAR_IMPORT, repeat)
    plain = [python, "-c", "import featurestore"]
    mine = add("`import featurestore`", plain, _modules(python, name), BAR_IMPORT, repeat)
    cli = add("`featurestore --help`", [str(ours.parent / name), "--help"], "", BAR_HELP, repeat)
    if sizes.feast:
        theirs, few = sizes.feast, max(3, repeat // 3)
        command = [theirs, "-c", "import feast"]
        peer = add("`import feast`", command, _modules(theirs, "feast"), None, few)
        peer_cli = add(
            "`feast --help`", [str(Path(theirs).parent / "feast"), "--help"], "", None, few
        )
        table.notes.append(
            f"Import {times(mine.best, peer.best)} as fast as Feast,"
            f" `--help` {times(cli.best, peer_cli.best)}."
        )
    return [table]


def _time(command: Sequence[str], repeat: int) -> Timing:
    return measure(lambda: _quiet(command), times=repeat)


def _quiet(command: Sequence[str]) -> str:
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def _modules(python: str, name: str, use: str = "0") -> str:
    """Return how many modules an import loads."""
    code = _MODULES.format(name=name, use=use)
    return f"{int(_quiet([python, '-c', code]).splitlines()[-1]):,}"
