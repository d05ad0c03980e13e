"""The command line in a repository that asks for keys: what is denied ends with 1, and says why."""

from __future__ import annotations

import json
import threading

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurestore.cli.app import cli
from featurestore.testing.valkey import wait_until
from tests.guarded import Guarded, entity_rows

VARIABLE = "FEATURESTORE_API_KEY"
TRAIN = ["get-historical-features", "--entity-rows", "rows.parquet", "--features"]
USER = ["--entity", "user=1"]
# Each command with the one scope that it takes.
COMMANDS = [
    (["apply"], "apply:shop/view/pays"),
    (["teardown", "--yes"], "apply:shop"),
    (["materialize", "2024-05-01T00:00Z", "2024-05-02T00:00Z"], "write:shop/view/*"),
    (["materialize-incremental", "--view", "pays"], "write:shop/view/pays"),
    ([*TRAIN, "ranking"], "read_offline:shop/service/ranking"),
    ([*TRAIN, "users:score"], "read_offline:shop/view/users"),
    (["get-online-features", *USER, "--features", "users:score"], "read_online:shop/view/users"),
    (["verify", "--service", "billing"], "read_offline:shop/service/billing"),
    (["explain", "pays:amount", *USER], "read_offline:shop/view/pays"),
    (["push", "clicks", "events.jsonl"], "write:shop/source/clicks"),
    (["ingest", "--until-idle"], "write:shop/source/*"),
    (["ingest", "--until-idle", "--source", "clicks"], "write:shop/source/clicks"),
    (["schedule"], "write:shop/view/users"),
    (["verify", "--served"], "read_offline:shop"),
]  # fmt: skip
_RUN_FOR_EVER = {"schedule"}
_FIND_NOTHING = {"--served"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    made = Guarded.make(tmp_path_factory.mktemp("template"))
    # Something to apply.
    text = made.definitions.read_text()
    made.definitions.write_text(text.replace('"amount"]', '"amount"], description="bills"'))
    pq.write_table(entity_rows(1), made.folder / "rows.parquet")
    event = {**made.click("b"), "at": "2024-05-01T11:30:00Z"}
    (made.folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    return made


@pytest.fixture
def shop(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return template.copy(tmp_path)


def run(*words, code=0):
    """Run a command; return what it said as JSON."""
    result = CliRunner().invoke(cli, [*words, "--output", "json"])
    assert result.exit_code == code, result.stderr or result.exception
    if code:
        return json.loads(result.stderr)
    # Some commands print an object a line.
    return json.loads(result.stdout.splitlines()[-1] if words[0] == "ingest" else result.stdout)


@pytest.mark.parametrize(("words", "scope"), COMMANDS, ids=[f"{w}" for w, _ in COMMANDS])
def test_each_command_takes_a_key_with_its_scope(shop, monkeypatch, words, scope):
    error = run(*words, code=1)["error"]
    assert (error["class"], error["exit_code"]) == ("UnauthenticatedError", 1)
    assert VARIABLE in error["allowed"]
    monkeypatch.setenv(VARIABLE, shop.key("apply:shop/view/nothing"))
    error = run(*words, code=1)["error"]
    assert (error["class"], error["allowed"]) == ("AccessDeniedError", scope)
    if words[0] not in _RUN_FOR_EVER:
        monkeypatch.setenv(VARIABLE, shop.key(scope))
        run(*words, code=1 if _FIND_NOTHING & set(words) else 0)
    denied = [line["missing"] for line in shop.audit() if line["status"] == "PERMISSION_DENIED"]
    assert denied == [scope]


@pytest.mark.parametrize("words", [["plan"], ["status"], ["list"], ["describe", "users"]])
def test_definitions_are_shown_to_anybody_of_the_project(shop, monkeypatch, words):
    assert run(*words, code=1)["error"]["class"] == "UnauthenticatedError"
    monkeypatch.setenv(VARIABLE, shop.key("*:bank"))
    assert run(*words, code=1)["error"]["class"] == "AccessDeniedError"
    monkeypatch.setenv(VARIABLE, shop.key("write:shop/source/x"))
    run(*words)


def test_what_is_denied_is_not_even_read(shop, monkeypatch):
    monkeypatch.setenv(VARIABLE, shop.key("write:shop/source/other"))
    assert run("push", "clicks", "nowhere.csv", code=1)["error"]["class"] == "AccessDeniedError"


def test_people_are_told_too(shop, monkeypatch):
    monkeypatch.setenv(VARIABLE, shop.key("read_offline:shop/view/users"))
    result = CliRunner().invoke(cli, ["explain", "pays:amount", *USER])
    assert result.exit_code == 1
    assert "may not read_offline the view 'pays'" in result.stderr
    assert "allowed: read_offline:shop/view/pays" in result.stderr


@pytest.mark.usefixtures("shop")
def test_keys_are_made_without_a_key_by_whoever_may_write_the_file(monkeypatch):
    made = run("keys", "create", "ann", "--scope", "read_offline:shop/view/users")
    monkeypatch.setenv(VARIABLE, made["key"])
    run(*TRAIN, "users:score")
    monkeypatch.delenv(VARIABLE)
    run("keys", "revoke", made["id"])
    assert [key["state"] for key in run("keys", "list")["keys"]] == ["revoked"]
    monkeypatch.setenv(VARIABLE, made["key"])
    assert "revoked" in run("plan", code=1)["error"]["what"]


def test_two_files_of_keys_are_told_apart(shop, monkeypatch):
    create = ("keys", "create", "ann", "--scope", "*:shop")
    monkeypatch.setenv("FEATURESTORE_SERVING_KEYS_FILE", "keys/keys.json")
    run(*create)
    monkeypatch.setenv("FEATURESTORE_SERVING_KEYS_FILE", "keys/served.json")
    assert "--section" in run(*create, code=1)["error"]["hint"]
    run(*create, "--section", "serving")
    run(*create, "--section", "access")
    assert len(run("keys", "list", "--section", "serving")["keys"]) == 1
    assert len(run("keys", "list", "--section", "access")["keys"]) == 2
    (shop.folder / "featurestore.toml").write_text('project = "shop"\n')
    where = run("keys", "list", "--section", "access", code=1)["error"]["where"]
    assert where == "access.keys_file"


def test_ingestion_ends_in_good_order_when_its_key_is_revoked(shop, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_SERVING_REFRESH_SECONDS", "0.01")
    key = shop.key("write:shop/source/clicks", "read_online:shop")
    monkeypatch.setenv(VARIABLE, key)
    run("push", "clicks", "events.jsonl")
    ended = []

    def work():
        result = CliRunner().invoke(
            cli, ["--output", "json", "--repo", str(shop.folder), "ingest", "--source", "clicks"]
        )
        ended.append(result)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(
        lambda: any(line["method"] == "ingest" for line in shop.audit()), what="the first line"
    )
    shop.keys().revoke(key)
    thread.join(30)
    (result,) = ended
    assert result.exit_code == 1
    assert "revoked" in result.stderr
    assert '"stopped"' in result.stdout


@pytest.mark.usefixtures("shop")
def test_a_server_does_not_start_without_a_key():
    error = run("serve", "--address", "127.0.0.1:0", code=1)["error"]
    assert error["class"] == "UnauthenticatedError"
