"""Log lines of processes that share standard error: each is written whole."""

from __future__ import annotations

import io
import json
import os
import socket
import sys

import pytest
import structlog

from featurestore.cli import render


def test_a_line_is_one_write_though_nothing_is_buffered(monkeypatch):
    """Python buffers nothing under PYTHONUNBUFFERED, as containers have it."""
    # Each datagram is one write; a second one would be where another process can come between.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, io.FileIO(theirs.detach(), "w") as raw:
        unbuffered = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        monkeypatch.setattr(sys, "stderr", unbuffered)
        render.log_to_stderr("json", stamped=True)
        structlog.get_logger().info("draining", seconds=30)
        written = ours.recv(4096)
        unbuffered.detach()
    assert written.endswith(b"}\n")
    assert json.loads(written)["event"] == "draining"


def test_lines_that_cannot_be_written_are_lost(monkeypatch):
    """Nobody is to fail for telling what he does: a pipe may be closed, or a disk full."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.FileIO(writer, "w") as raw:
        broken = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
        monkeypatch.setattr(sys, "stderr", broken)
        render.log_to_stderr("json", stamped=True)
        with pytest.raises(BrokenPipeError):
            broken.write("first")
        structlog.get_logger().info("draining", seconds=30)
        broken.detach()
