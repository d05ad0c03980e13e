"""The committed code of the protocol is what the protocol generates, and the protocol is clean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path("featurestore/serving/v1")
FILES = ("serving_pb2.py", "serving_pb2.pyi", "serving_pb2_grpc.py")


def test_the_committed_code_is_what_is_generated(tmp_path):
    subprocess.run(  # noqa: S603  (our own script)
        [ROOT / "proto" / "generate.sh", tmp_path],
        env={**os.environ, "PYTHON": sys.executable},
        check=True,
        cwd=tmp_path,
    )
    made = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert made == sorted(FILES)
    for name in FILES:
        assert (tmp_path / FOLDER / name).read_bytes() == (ROOT / FOLDER / name).read_bytes(), name
    assert sorted(p.name for p in (ROOT / FOLDER).glob("*.py*")) == sorted((*FILES, "__init__.py"))


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_buf_is_content(command, tmp_path):
    buf = Path(sys.executable).with_name("buf")
    ended = subprocess.run(  # noqa: S603  (from our own environment)
        [buf, *command, ROOT / "proto"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
