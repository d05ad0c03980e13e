"""How a command ends when it fails: its exit code, the parts of the error, and no traceback."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from featurestore import errors
from featurestore.cli.app import cli
from featurestore.cli.context import StoppedError
from featurestore.errors import FeatureStoreError
from featurestore.store import BaseStore

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, FeatureStoreError)
]
LATER = {
    "ConflictError",
    "UnavailableError",
    "RegistryUnavailableError",
    "OnlineStoreUnavailableError",
    "StreamUnavailableError",
    "OverloadedError",
    "DeadlineExceededError",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "featurestore.toml").write_text('project = "p"\n')
    monkeypatch.chdir(tmp_path)

    def invoke(*words, fails=None, **options):
        if fails is not None:

            def fail(*_, **__):
                raise fails

            monkeypatch.setattr(BaseStore, "plan", fail)
            monkeypatch.setattr(BaseStore, "apply", fail)
            monkeypatch.setattr(BaseStore, "materialize_incremental", fail)
        return CliRunner().invoke(cli, words, **options)

    return invoke


def exit_code(cls):
    return 3 if cls.__name__ == "DataError" else 4 if cls.__name__ in LATER else 1


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_has_its_exit_code_and_all_its_parts(run, cls):
    error = cls("It is so.", where="there", got="x", allowed="y", hint="Do z.")
    text = run("plan", fails=error)
    assert (text.exit_code, text.stdout) == (exit_code(cls), "")
    assert text.stderr.splitlines() == [
        "Error:   It is so.",
        "where:   there",
        "got:     x",
        "allowed: y",
        "next:    Do z.",
    ]
    found = run("plan", "--output", "json", fails=error)
    assert (found.exit_code, found.stdout) == (exit_code(cls), "")
    assert json.loads(found.stderr) == {
        "error": {
            "class": cls.__name__,
            "what": "It is so.",
            "where": "there",
            "got": "x",
            "allowed": "y",
            "hint": "Do z.",
            "exit_code": exit_code(cls),
        }
    }


def test_an_unforeseen_exception_is_a_bug_in_two_lines(run):
    result = run("plan", fails=ZeroDivisionError("by zero\nmore"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: Unexpected ZeroDivisionError: by zero. This is a bug of featurestore.",
        "next:  Run it again with --verbose and report what it prints.",
    ]
    found = json.loads(run("--output=json", "plan", fails=ValueError()).stderr)["error"]
    assert (found["class"], found["exit_code"]) == ("ValueError", 1)


@pytest.mark.parametrize("words", [("plan", "--verbose"), ("--verbose", "plan")])
def test_verbose_shows_the_traceback(run, words):
    result = run(*words, fails=ZeroDivisionError("by zero"))
    assert "Traceback" in result.stderr
    assert "in fail" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("nosuch",),
        ("plan", "--bogus"),
        ("materialize",),
        ("materialize", "2013-01-01T00:00:00Z"),
        ("list", "bogus"),
        ("list", "views", "--view", "x"),
        ("get-online-features",),
        ("get-historical-features", "--features", "x"),
        ("get-historical-features", "--features", "x", "--sql", "x", "--entity-rows", "x"),
        ("get-historical-features", "--features", "x", "--entity-rows", "nosuch.parquet"),
        ("get-historical-features", "--features", "x", "--entity-rows", "featurestore.toml"),
    ],
)
def test_wrong_usage_is_2_and_names_the_help(run, words):
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert "--help'" in result.stderr
    found = run(*words, "--output", "json")
    assert found.exit_code == 2
    assert json.loads(found.stderr)["error"]["exit_code"] == 2


def test_an_unknown_way_of_printing_is_usage(run):
    result = run("plan", "--output", "xml")
    assert (result.exit_code, "'text', 'json'" in result.stderr) == (2, True)


def test_no_command_shows_the_help(run):
    result = run()
    assert result.exit_code == 2
    assert "materialize-incremental" in result.stderr


def test_a_near_miss_is_suggested(run):
    assert "'apply'" in run("aply").stderr


def test_no_repository_says_how_to_begin(tmp_path):
    result = CliRunner().invoke(cli, ["--repo", str(tmp_path), "status"])
    assert result.exit_code == 1
    assert "featurestore init" in result.stderr


def test_a_repository_is_found_from_below_and_by_option(run, tmp_path, monkeypatch):
    (tmp_path / "definitions").mkdir()
    monkeypatch.chdir(tmp_path / "definitions")
    assert run("status").exit_code == 0
    monkeypatch.chdir("/")
    assert run("status", "--repo", str(tmp_path)).exit_code == 0
    assert run("status").exit_code == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("plan",), "Interrupted. Nothing was changed."),
        (("apply",), "'featurestore plan' tells which"),
        (("materialize-incremental",), "Done: no view."),
    ],
)
def test_an_interrupt_is_130_and_one_line_on_what_was_done(run, words, text):
    result = run(*words, fails=KeyboardInterrupt())
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(result.stderr.splitlines()) == 1
    assert text in result.stderr
    found = json.loads(run(*words, "--output", "json", fails=KeyboardInterrupt()).stderr)["error"]
    assert (found["class"], found["exit_code"]) == (StoppedError.__name__, 130)


def test_an_interrupted_materialization_names_the_views(run, monkeypatch):
    def stopped(*_, progress, **__):
        progress("a", "reading the source")
        progress("b", "reading the source")
        progress("b", "done")
        raise KeyboardInterrupt

    monkeypatch.setattr(BaseStore, "materialize_incremental", stopped)
    result = run("materialize-incremental")
    assert result.exit_code == 130
    assert result.stderr.startswith(
        "Interrupted. Done: b. Stopped, and not marked done: a. Running the command again"
    )
