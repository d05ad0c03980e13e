"""`featurestore keys`: made, listed, revoked; the key is shown once and kept nowhere."""

from __future__ import annotations

import json
import re

import pytest

from featurestore.cli.app import cli
from featurestore.cli.connecting import client_of
from featurestore.errors import SettingsError

SCOPE = "read_online:shop/service/*"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "featurestore.toml").write_text(
        'project = "shop"\n[serving]\nkeys_file = "secret/keys.json"\n'
    )

    def run(*words, code=0):
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return said.out if code == 0 else said.err

    return run


def as_json(text):
    return json.loads(text)


def test_a_key_is_made_listed_and_revoked(run, tmp_path):
    said = run("keys", "create", "web shop", "--scope", SCOPE, "--expires", "90d")
    key = re.search("fs_[0-9a-f]{12}_[0-9a-f]{64}", said)[0]
    ident = key.split("_")[1]
    assert "cannot be shown again" in said
    listed = run("keys", "list")
    assert key.split("_")[2] not in listed
    assert re.search(rf"{ident} +web shop +{re.escape(SCOPE)} +valid", listed)
    assert f"Key {ident} (web shop) is revoked." in run("keys", "revoke", ident)
    (item,) = as_json(run("keys", "list", "--output", "json"))["keys"]
    assert (item["state"], item["id"], item["scopes"]) == ("revoked", ident, [SCOPE])
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert key.split("_")[2] not in written


def test_machines_get_the_key_too(run):
    item = as_json(run("keys", "create", "a", "--scope", SCOPE, "--output", "json"))
    assert item["key"].startswith(f"fs_{item['id']}_")
    assert item["expires_at"] is None
    until = "2999-01-31T00:00:00Z"
    item = as_json(
        run("keys", "create", "a", "--scope", SCOPE, "--expires", until, "--output", "json")
    )
    assert item["expires_at"] == until


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (("create", "a", "--scope", "read:shop"), "no scope", 1),
        (("create", "a"), "--scope", 2),
        (("create", "a", "--scope", SCOPE, "--expires", "2001-01-01T00:00Z"), "expired before", 1),
        (("create", "a", "--scope", SCOPE, "--expires", "soon"), "--expires", 1),
        (("create", "a", "--scope", SCOPE, "--expires", "2999-01-01T00:00:00"), "--expires", 1),
        (("revoke", "nobody"), "No key has the id", 1),
    ],
    ids=range(6),
)  # fmt: skip
def test_what_makes_no_sense_is_told(run, words, says, code):
    assert says in run("keys", *words, code=code)


def test_without_a_file_the_setting_is_named(run, tmp_path):
    (tmp_path / "featurestore.toml").write_text('project = "shop"\n')
    assert "keys_file" in run("keys", "list", code=1)


def test_variables_say_who_calls(monkeypatch):
    monkeypatch.setenv("FEATURESTORE_CLIENT_API_KEY", "fs_1")
    with client_of("127.0.0.1:1") as client:
        assert client._connecting._shown() == ("x-api-key", "fs_1")
    with pytest.raises(SettingsError, match="plain text"):
        client_of("store.example:1")
    monkeypatch.setenv("FEATURESTORE_CLIENT_TLS", "0")
    client_of("store.example:1").close()
    monkeypatch.setenv("FEATURESTORE_CLIENT_ROOT_CERTIFICATES", "no-such-file.pem")
    with pytest.raises(SettingsError, match="need TLS"):
        client_of("store.example:1")
    monkeypatch.setenv("FEATURESTORE_CLIENT_TLS", "1")
    with pytest.raises(SettingsError, match="cannot be read"):
        client_of("store.example:1")
