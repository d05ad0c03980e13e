"""Law M2 with real SIGKILLs: whenever a job dies, running it again gives the same state."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from featurestore.clock import SystemClock

_SEED = 20130101
_RANDOM_KILLS = 10
_TIMEOUT = 300
_MIN_STEPS = 30


def _drive(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.integration.kill_driver", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )


def test_killed_at_every_step(durable_online_url: str, tmp_path: Path) -> None:
    """Before and after each call that the job makes to the outside, in a first and a second run."""
    done = _drive("every", tmp_path, durable_online_url)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if not (line["killed"] and line["same"])] == []
    assert done.returncode == 0, done.stderr
    assert len(lines) > _MIN_STEPS, done.stderr


def test_killed_at_random_moments(durable_online_url: str, tmp_path: Path) -> None:
    """Wherever the machine happens to be: in the middle of a write, a commit or a push."""
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    for folder in (calm, hit):
        assert _drive("prepare", folder, durable_online_url, folder.name).returncode == 0
    clock = SystemClock()
    start = clock.monotonic()
    assert _drive("run", calm).returncode == 0
    seconds = clock.monotonic() - start
    chance = random.Random(_SEED)  # noqa: S311
    killed = sum(_killed(hit, chance.uniform(seconds / 3, seconds)) for _ in range(_RANDOM_KILLS))
    assert killed > 0
    last = _drive("run", hit)
    assert last.returncode == 0, last.stderr
    assert json.loads(_drive("observe", hit).stdout) == json.loads(_drive("observe", calm).stdout)


def _killed(folder: Path, seconds: float) -> bool:
    """Start a run and kill it after so long; return whether it was still at work."""
    arguments = [sys.executable, "-m", "tests.integration.kill_driver", "run", str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False
