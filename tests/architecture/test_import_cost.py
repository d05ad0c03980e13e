"""What starting costs: a definitions module or a command line must not wait for an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("duckdb", "polars", "grpc", "redis", "sqlalchemy", "pyarrow", "deltalake", "lmdb", "numpy")
IMPORT_SECONDS = 0.3
HELP_SECONDS = 0.5
TRIES = 5


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, featurestore;"
        "from featurestore import Entity, FeatureService, FeatureView, Field, FileSource;"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert _run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_importing_takes_less_than_its_limit():
    # A process of its own each time; what Python itself needs to start does not count.
    code = (
        "import time; t = time.perf_counter(); import featurestore;"
        "from featurestore import FeatureView; print(time.perf_counter() - t)"
    )
    best = min(float(_run([sys.executable, "-c", code]).stdout) for _ in range(TRIES))
    assert best < IMPORT_SECONDS


def test_help_takes_less_than_its_limit():
    command = [str(Path(sys.executable).with_name("featurestore")), "--help"]
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        assert "materialize" in _run(command).stdout
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < HELP_SECONDS


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(  # noqa: S603  (our own interpreter and command)
        command, check=True, capture_output=True, text=True, env=env
    )
