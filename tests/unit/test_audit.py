"""The audit: whole lines, nothing blocks, what is lost is counted, files may be moved away."""

from __future__ import annotations

import json
import os
import threading

import pytest
from structlog.testing import CapturingLogger

from featurestore.access import audit as rooms
from featurestore.access.audit import Audit
from featurestore.testing.valkey import wait_until


@pytest.fixture
def log():
    return CapturingLogger()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def lines(path):
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line]


def test_every_line_is_written_before_the_end(path, log):
    audit = Audit(path, log)
    threads = [
        threading.Thread(target=lambda n=n: [audit.write({"n": n, "i": i}) for i in range(200)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()
    found = lines(path)
    assert len(found) == 800
    for n in range(4):
        assert [line["i"] for line in found if line["n"] == n] == list(range(200))
    assert path.stat().st_mode & 0o777 == 0o600
    assert audit.dropped == 0


def test_what_callers_name_makes_no_lines_of_its_own(path, log):
    audit = Audit(path, log)
    audit.write({"service": 'a\n{"who": "root"}\u2028\x1b[31m"'})
    audit.close()
    assert len(path.read_bytes().splitlines()) == 1
    assert lines(path)[0]["service"].startswith("a\n{")
    assert path.read_text().isascii()


def test_a_file_that_was_moved_away_is_begun_anew(path, log):
    audit = Audit(path, log)
    for number in range(3):
        audit.write({"number": number})
        wait_until(lambda n=number: {"number": n} in lines(path), what="the line")
        path.rename(path.with_suffix(f".{number}"))
    audit.write({"number": 3})
    audit.close()
    assert lines(path) == [{"number": 3}]
    assert [lines(path.with_suffix(f".{n}")) for n in range(3)] == [
        [{"number": n}] for n in range(3)
    ]


def test_nobody_waits_for_a_disk_and_what_is_lost_is_counted(path, log):
    # A pipe that nobody reads is a disk that does not answer.
    os.mkfifo(path)
    audit = Audit(path, log, queued=100)
    for number in range(1_000):
        audit.write({"number": number})
    assert audit.dropped >= 800
    with path.open(encoding="utf-8") as reader:
        audit.close()
        found = [json.loads(line) for line in reader]
    told = sum(line["count"] for line in found if "count" in line)
    kept = [line["number"] for line in found if "number" in line]
    assert told == audit.dropped
    assert len(kept) + told == 1_000


def test_a_full_disk_is_told_and_lines_after_it_are_whole(path, log, monkeypatch):
    audit = Audit(path, log)
    audit.write({"number": 0})
    wait_until(lambda: lines(path), what="the first line")
    write = os.write

    def full(file, data):
        if len(data) > 5:
            return write(file, data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rooms.os, "write", full)
    audit.write({"number": 1})
    wait_until(lambda: log.calls, what="the log")
    assert log.calls[0].kwargs == {"count": 1, "error": "No space left on device"}
    monkeypatch.undo()
    audit.write({"number": 2})
    audit.close()
    whole = [text for text in path.read_text().splitlines() if text.endswith("}")]
    assert [json.loads(text) for text in whole] == [
        {"number": 0},
        {"number": 2},
        {"event": "audit lines dropped", "count": 1},
    ]


def test_standard_error_takes_it_too(capsys, log):
    audit = Audit(None, log)
    audit.write({"number": 1})
    audit.close()
    assert json.loads(capsys.readouterr().err) == {"number": 1}
