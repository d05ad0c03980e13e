"""The worked example runs, finds differences where there are some, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from demo import live, parity
from demo.__main__ import main
from demo.story import Story
from featurestore.testing.valkey import wait_until

ROOT = Path(__file__).resolve().parents[2]
AS_OF = datetime(2024, 6, 1, 12, tzinfo=UTC)
TTL = timedelta(hours=3)


def test_the_first_days_of_the_year(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--state", str(tmp_path), "--until", "2013-01-03"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"11,687 values compared, 0 different", told)
    assert re.search(r"knowledge='known' looks\s+further back", told)
    assert not _is_alive(int(re.search(r"Server (\d+) answers", told)[1]))


def test_live_flights_are_served_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "_PUSHES", 1)
    told = io.StringIO()
    assert live.go_live(Story(Console(file=told, width=200)), tmp_path / "live")
    text = told.getvalue()
    assert re.search(r"23,400 values compared at 6 instants, 0 different", text)
    assert re.search(r"\n +[\d,]+ values compared, 0 different\.", text)
    assert not _is_alive(int(re.search(r"Server (\d+) answers", text)[1]))


def test_nothing_compared_is_not_equal(tmp_path: Path):
    # The first instant of the proof comes later.
    assert main(["--state", str(tmp_path), "--until", "2013-01-02"]) == 1


def test_an_interrupted_demo_stops_its_server(tmp_path: Path):
    command = [
        sys.executable,
        "-u",
        "-m",
        "demo",
        "--state",
        str(tmp_path),
        "--until",
        "2013-04-01",
    ]
    with subprocess.Popen(  # noqa: S603  (our own interpreter)
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        server = 0
        for line in demo.stdout:
            found = re.search(r"Server (\d+) answers", line)
            if found:
                server = int(found[1])
                break
        assert _is_alive(server)
        demo.send_signal(signal.SIGTERM)
        rest = demo.stdout.read()
        assert demo.wait(60) == 130
    assert "Interrupted" in rest
    wait_until(lambda: not _is_alive(server), what="the end of the server")


def test_a_former_state_is_made_anew_and_nothing_else_is_touched(tmp_path: Path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("old", encoding="utf-8")
    main(["--state", str(tmp_path), "--until", "2013-01-02"])
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "store" / "old").exists()


class Answer:
    """As much of an `OnlineResponse` as a comparison reads: one view, one on-demand view."""

    def __init__(self, values: list[float | None], statuses: list[str], made: list[float | None]):
        self._columns = {"weather__temp": pa.array(values), "made__up": pa.array(made)}
        self.feature_names = list(self._columns)
        self.statuses = {
            "weather__temp": [Status(name) for name in statuses],
            "made__up": [Status("NULL_VALUE" if v is None else "PRESENT") for v in made],
        }
        events = [None if name == "NOT_FOUND" else EVENTS[name] for name in statuses]
        self.event_timestamps = {"weather__temp": events, "made__up": [None] * len(made)}

    def __len__(self) -> int:
        return len(self.statuses["made__up"])

    def column(self, name: str) -> pa.Array:
        return self._columns[name]


class Status:
    def __init__(self, name: str):
        self.name = name


RECENT = AS_OF - timedelta(hours=1)
EVENTS = {
    "PRESENT": RECENT,
    "NULL_VALUE": RECENT,
    "OUTSIDE_MAX_AGE": AS_OF - TTL - timedelta(microseconds=1),
}
STATUSES = ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]
VALUES = [1.5, None, None, None]


def offline(
    values: list[float | None] = VALUES,
    made: list[float | None] = VALUES,
    events: list[datetime | None] | None = None,
) -> pa.Table:
    instants = events or [RECENT, RECENT, None, None]
    columns = {
        "weather__temp": pa.array(values, pa.float64()),
        "weather__event_timestamp": pa.array(instants, pa.timestamp("us", tz="UTC")),
        "made__up": pa.array(made, pa.float64()),
    }
    return pa.table(columns)


def compare(answer: Answer, table: pa.Table) -> parity.Comparison:
    return parity.compare(answer, table, AS_OF, {"weather": TTL})


def test_equal_answers_are_equal():
    found = compare(Answer(VALUES, STATUSES, VALUES), offline())
    assert (found.entities, found.compared, found.differences) == (4, 8, [])
    assert found.statuses["NULL_VALUE"] == 1 + 3


@pytest.mark.parametrize(
    "table",
    [
        offline(
            values=[struct.unpack("<d", struct.pack("<q", 0x3FF8000000000001))[0], *VALUES[1:]]
        ),
        offline(values=[None, None, None, None]),
        offline(values=[1.5, 0.0, None, None]),
        offline(made=[1.5, None, None, 2.5]),
        offline(events=[RECENT - timedelta(microseconds=1), RECENT, None, None]),
        offline(events=[RECENT, None, None, None]),
        offline(events=[RECENT, RECENT, RECENT, None]),
    ],
    ids=["one bit", "null", "value", "on demand", "older row", "no row", "a row"],
)
def test_any_difference_is_found(table: pa.Table):
    assert compare(Answer(VALUES, STATUSES, VALUES), table).differences


def test_a_status_that_does_not_fit_is_found():
    visible = Answer(VALUES, STATUSES, VALUES)
    visible.event_timestamps["weather__temp"][3] = AS_OF - TTL
    assert compare(visible, offline()).differences
    lost = Answer(VALUES, ["PRESENT", "NULL_VALUE", "NOT_FOUND", "NOT_FOUND"], VALUES)
    assert not compare(lost, offline()).differences
    lost.statuses["weather__temp"][0] = Status("NULL_VALUE")
    assert compare(lost, offline()).differences


def test_zeros_of_either_sign_differ_and_equal_nans_do_not():
    nan = float("nan")
    assert parity.bits(pa.array([0.0])) != parity.bits(pa.array([-0.0]))
    assert parity.bits(pa.array([nan])) == parity.bits(pa.array([nan]))
    assert parity.bits(pa.array([[0.0]])) != parity.bits(pa.array([[-0.0]]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
