"""What commands give back becomes JSON and text: stable, valid, and readable without a terminal."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from rich.console import Console

from featurestore.cli import render
from featurestore.cli.output import Cell, Facts, Output, Table, count, duration, plain


def printed(output, mode, capsys):
    render.show(output, mode)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (datetime(2013, 1, 31, 12, tzinfo=UTC), "2013-01-31T12:00:00Z"),
        (datetime(2013, 1, 31, 12, 0, 0, 5, tzinfo=UTC), "2013-01-31T12:00:00.000005Z"),
        (datetime(2013, 1, 31, 1, tzinfo=timezone(timedelta(hours=2))), "2013-01-30T23:00:00Z"),
        (date(2013, 1, 31), "2013-01-31"),
        (b"\x00\xff", "AP8="),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (0.1, 0.1),
        (True, True),
        (None, None),
        ({1: (2, frozenset([3]))}, {"1": [2, [3]]}),
        ({True: 1, date(2013, 1, 31): 2}, {"true": 1, "2013-01-31": 2}),
        (
            {b"\x00\xff": None, datetime(2013, 1, 31, tzinfo=UTC): float("nan")},
            {"AP8=": None, "2013-01-31T00:00:00Z": "NaN"},
        ),
        ([b"a", [float("nan")]], ["YQ==", ["NaN"]]),
    ],
)
def test_values_as_json_has_them(value, shown):
    found = plain(value)
    assert found == shown
    assert type(found) is type(shown)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.123, "0.12 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (600, "10 min"),
        (3600, "1 h"),
        (90_000, "1 d 1 h"),
        (86_460, "1 d"),
        (-75, "-1 min 15 s"),
        (10**9, "11574 d"),
    ],
)
def test_durations_for_people(seconds, shown):
    assert duration(seconds) == shown


def test_counts_for_people():
    assert [count(n, "row") for n in (0, 1, 1_234_567)] == ["0 rows", "1 row", "1,234,567 rows"]


def test_json_is_the_data_and_nothing_else(capsys):
    data = {"größe": [1, datetime(2013, 1, 1, tzinfo=UTC)]}
    text = printed(Output(data, [Cell("for people")]), "json", capsys)
    assert json.loads(text) == {"größe": [1, "2013-01-01T00:00:00Z"]}
    assert "größe" in text


def test_tables_are_aligned_and_never_cut_outside_of_a_terminal(capsys):
    long = "x" * 300
    table = Table(("name", ">rows", "~text"), [["a", "1", long], ["bcd", "1,000", "[red]y[/red]"]])
    assert printed(Output({}, [table]), "text", capsys).splitlines() == [
        "name   rows  text",
        f"a         1  {long}",
        "bcd   1,000  [red]y[/red]",
    ]


def test_an_empty_table_says_so(capsys):
    table = Table(("a",), [], empty="No rows.")
    assert printed(Output({}, [table]), "text", capsys) == "No rows.\n"


def test_facts_are_aligned(capsys):
    facts = Facts([("name", "a"), ("fingerprint", Cell("b", "good"))])
    assert printed(Output({}, [facts]), "text", capsys) == "name:        a\nfingerprint: b\n"


def test_no_colour_outside_of_a_terminal(capsys):
    styles = ("plain", "heading", "good", "warning", "bad", "faint")
    output = Output({}, [Cell(style, style) for style in styles])
    assert printed(output, "text", capsys) == "".join(f"{style}\n" for style in styles)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_colours_and_its_own_width(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.delenv("NO_COLOR", raising=False)
    render.show(Output({}, [Table(("a", "~b"), [[Cell("x", "bad"), "many words " * 5]])]), "text")
    text = screen.getvalue()
    assert "\x1b[1;31m" in text
    lines = Console(file=io.StringIO()).render_str(text).plain.splitlines()
    assert len(lines) > 2


def test_progress_shows_stages_on_a_terminal_alone(monkeypatch):
    for mode, stream, shows in (
        ("text", Terminal(), True),
        ("json", Terminal(), False),
        ("text", io.StringIO(), False),
    ):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with render.view_progress(mode) as progress:
            progress("stats", "reading the source")
            progress("stats", "a stage of tomorrow")
            progress("stats", "done")
        assert ("stats" in stream.getvalue()) is shows


def test_errors_are_labelled_and_aligned(capsys):
    render.show_error(
        {"what": "It is wrong.", "where": "here", "got": "a\nb", "allowed": None, "hint": "do"},
        "text",
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Error: It is wrong.",
        "where: here",
        "got:   a",
        "       b",
        "next:  do",
    ]
