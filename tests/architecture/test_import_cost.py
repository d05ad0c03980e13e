"""What starting loads: a definitions module or a command line must not wait for an engine.

How long it takes stands in `benchmarks/bench_import.py`: no test depends on the machine's load.
"""

from __future__ import annotations

import os
import subprocess
import sys

HEAVY = ("duckdb", "polars", "grpc", "redis", "sqlalchemy", "pyarrow", "deltalake", "lmdb", "numpy")


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, featurestore;"
        "from featurestore import Entity, FeatureService, FeatureView, Field, FileSource;"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert _run([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from featurestore.cli import main\n"
        "sys.argv = ['featurestore', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    lines = _run([sys.executable, "-c", code]).stdout.splitlines()
    assert any("materialize" in line for line in lines)
    assert lines[-1] == "[]"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(  # noqa: S603  (our own interpreter and command)
        command, check=True, capture_output=True, text=True, env=env
    )
