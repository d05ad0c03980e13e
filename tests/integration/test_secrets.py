"""Secrets stay where they were put: one is planted in every place, then all is searched for them.

Searched is what a scenario left behind: files, tables, the registry's database, logs and audit of
a real server, what commands printed, what callers got, and what objects say of themselves.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.parse

import grpc
import pytest
from click.testing import CliRunner

from featurestore import FeatureStore
from featurestore.cli.app import cli
from featurestore.errors import FeatureStoreError
from featurestore.serving.client import OnlineClient
from featurestore.settings_file import load_settings
from featurestore.testing.valkey import ValkeyServer, wait_until
from tests.ingesting import COUNTS, LAST, NOW, Click, Repository
from tests.integration.grpc_process import SERVICE

ONLINE = "pl4nted/online pass@word"
STREAMS = "pl4nted-streams"
OTHER = "pl4nted-other"
KEY_OF_ENTITY = 987_654_321_234
SECONDS = 30


class Findings:
    """All that is searched."""

    def __init__(self):
        self.texts = {}

    def add(self, where, text):
        data = text if isinstance(text, bytes) else str(text).encode()
        self.texts[where] = self.texts.get(where, b"") + data

    def add_error(self, where, error):
        """Add all that an error says, and those that it came from."""
        while error is not None:
            parts = [repr(error), str(error), vars(error)]
            if isinstance(error, grpc.RpcError):
                parts += [error.details(), error.debug_error_string(), error.trailing_metadata()]
            self.add(where, " ".join(map(str, parts)))
            error = error.__cause__ or error.__context__

    def add_folder(self, folder):
        for path in folder.rglob("*"):
            if path.is_file():
                self.add(str(path.relative_to(folder)), path.read_bytes())

    def with_any_of(self, secrets):
        """Return where a secret is found, as it is or as it may be written."""
        return sorted(
            {
                (where, secret[:12])
                for where, data in self.texts.items()
                for secret in secrets
                for form in forms(secret)
                if form in data
            }
        )


def forms(secret):
    plain = secret.encode()
    return {
        plain,
        urllib.parse.quote(secret).encode(),
        urllib.parse.quote(secret, safe="").encode(),
        base64.b64encode(plain).rstrip(b"="),
        json.dumps(secret)[1:-1].encode(),
        plain.hex().encode(),
    }


@pytest.fixture
def environment(monkeypatch):
    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"FEATURESTORE_{name}", value)

    return set_all


def run(findings, folder, *words, code=0, **options):
    """Run a command; all that it prints is searched."""
    result = CliRunner().invoke(cli, ["--repo", str(folder), "--verbose", *words], **options)
    findings.add(f"{words[0]} prints", result.stdout + result.stderr)
    assert result.exit_code == code, result.stderr or result.exception
    return result


@pytest.fixture
def folder(tmp_path):
    """A repository whose store and stream ask for passwords; an entity's number is its own."""
    made = Repository(tmp_path, stream="memory:none", views=COUNTS.format(column="amount") + LAST)
    made.history([Click("a", KEY_OF_ENTITY, 20), Click("b", 2, 30)])
    made.store.close()
    text = (
        'project = "p"\n[offline]\nworkers = 1\nthreads = 1\n[serving]\nkeys_file = "keys.json"\n'
    )
    text += 'audit_log = "audit.jsonl"\nrefresh_seconds = 0.1\naddress = "127.0.0.1:0"\n'
    (tmp_path / "featurestore.toml").write_text(text, encoding="utf-8")
    return tmp_path


def use(folder, environment, server):
    views = folder / "definitions" / "views.py"
    url = f"{server.url}/clicks"
    views.write_text(views.read_text().replace("memory:none", url), encoding="utf-8")
    environment(ONLINE_URL=server.url, ONLINE_PASSWORD=ONLINE)
    environment(STREAMS_USERNAME="streams", STREAMS_PASSWORD=STREAMS)
    server.command("ACL", "SETUSER", "streams", "reset", "on", f">{STREAMS}", "~*", "+@all")


def test_nothing_that_was_secret_is_found_anywhere(folder, environment):
    findings = Findings()
    with ValkeyServer(password=ONLINE) as server:
        use(folder, environment, server)
        for words in (["plan"], ["apply"], ["materialize-incremental"], ["status"], ["list"]):
            run(findings, folder, *words)
        run(findings, folder, "describe", "counts")
        run(findings, folder, "push", "clicks", input='{"id": "z", "user": 2, "amount": 1.0,'
            ' "at": "2024-05-01T11:00:00Z"}\n')  # fmt: skip
        words = ["keys", "create", "shop", "--scope", "read_online:p", "--output", "json"]
        made = CliRunner().invoke(cli, ["--repo", str(folder), *words])
        key = json.loads(made.stdout)["key"]
        run(findings, folder, "keys", "list")
        with FeatureStore(folder) as store:
            for thing in (
                store,
                store.services.online_store,
                store.services.settings,
                store.services,
            ):
                findings.add("what objects say", f"{thing!r} {thing}")
            findings.add("what objects say", store.services.open_stream(f"{server.url}/clicks"))
        with Serving(folder, findings) as address:
            _call_in_every_way(findings, address, key)
            server.stop()
            _call(findings, address, api_key=key)
            server.start()
            _refused_by_the_store(findings, folder, environment, server)
    findings.add_folder(folder)
    lines = (folder / "audit.jsonl").read_text().splitlines()
    assert len(lines) > 6
    secrets = [ONLINE, STREAMS, OTHER, key, key.rpartition("_")[2]]
    assert findings.with_any_of(secrets) == []
    told = [text for where, text in findings.texts.items() if "audit" in where or "prints" in where]
    assert str(KEY_OF_ENTITY).encode() not in b"".join(told)


class Serving:
    """A server process; what it prints is searched."""

    def __init__(self, folder, findings):
        self.folder, self.findings = folder, findings
        self.output = folder.parent / f"{folder.name}-serve.txt"

    def __enter__(self):
        command = [sys.executable, "-m", "featurestore.cli", "serve", "--repo", str(self.folder)]
        command += ["--verbose", "--output", "json"]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603
                command, stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ)
            )
        wait_until(self._address, seconds=SECONDS, what="the server")
        return self._address()

    def _address(self):
        for line in self.output.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("event") == "serving":
                return json.loads(line)["address"]
        assert self.process.poll() is None, self.output.read_text()
        return None

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(SECONDS) == 0
        self.findings.add("serve prints", self.output.read_bytes())


def _call(findings, address, **shown):
    with OnlineClient(address, tls=False, timeout=5, **shown) as client:
        findings.add("what objects say", f"{client!r}")
        try:
            client.get_online_features(["last:amount"], {"user": [KEY_OF_ENTITY]}, as_of=NOW)
        except FeatureStoreError as error:
            findings.add_error("what callers get", error)
            return False
    return True


def _call_in_every_way(findings, address, key):
    assert _call(findings, address, api_key=key)
    for shown in (
        {"api_key": OTHER},
        {"api_key": f"{key[:-4]}{OTHER}"},
        {"token": OTHER},
        {"token": f"{OTHER}.{OTHER}.{OTHER}"},
    ):
        assert not _call(findings, address, **shown)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")
        for metadata in (
            [("authorization", f"Basic {OTHER}")],
            [("authorization", OTHER)],
            [("x-api-key", OTHER), ("authorization", f"Bearer {OTHER}")],
            [("x-api-key", key), ("x-other", OTHER)],
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"\xff", metadata=metadata, timeout=5)
            findings.add_error("what callers get", caught.value)


def _refused_by_the_store(findings, folder, environment, server):
    """Wrong passwords, and passwords in URLs, whatever is done with them."""
    inside = urllib.parse.quote(OTHER, safe="")
    for values in (
        {"ONLINE_PASSWORD": OTHER},
        {"ONLINE_URL": server.url.replace("//", f"//user:{inside}@"), "ONLINE_PASSWORD": ONLINE},
        {"ONLINE_URL": f"redis+sentinel://:{inside}@127.0.0.1:{server.port}/x",
         "ONLINE_SENTINEL_PASSWORD": OTHER},
    ):  # fmt: skip
        environment(**values)
        run(findings, folder, "status")
        start, end = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
        if "+sentinel" in values.get("ONLINE_URL", "") or values.get("ONLINE_PASSWORD") == OTHER:
            run(findings, folder, "materialize", start, end, "--view", "last", code=1)


WRONG = {
    "a scheme that is none": {"ONLINE_URL": f"redi://user:{OTHER}@host"},
    "no scheme": {"ONLINE_URL": f"user:{OTHER}@host"},
    "a port that is none": {"ONLINE_URL": f"redis://user:{OTHER}@host:port"},
    "an option that is none": {"ONLINE_URL": f"redis://user:{OTHER}@host?secret={OTHER}"},
    "sentinels without a service": {"ONLINE_URL": f"redis+sentinel://user:{OTHER}@host"},
    "sentinels with a port that is none": {"ONLINE_URL": f"redis+sentinel://:{OTHER}@host:x/y"},
    "a registry that is gone": {"REGISTRY_URL": f"postgresql://user:{OTHER}@127.0.0.1:1/x"},
    "a registry's scheme that is none": {"REGISTRY_URL": f"postgrsql://user:{OTHER}@host/x"},
    "a registry's port that is none": {"REGISTRY_URL": f"postgresql://user:{OTHER}@host:x/x"},
    "a section that is no table": {"ONLINE": OTHER},
    "a section of two": {"ONLINE": json.dumps({"password": OTHER, "pasword": OTHER})},
    "another setting that is wrong": {"ONLINE_PASSWORD": OTHER, "ONLINE_TIMEOUT_SECONDS": "soon"},
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("output", ["text", "json"])
def test_settings_that_are_wrong_do_not_show_their_secrets(folder, environment, case, output):
    environment(**WRONG[case])
    findings = Findings()
    words = ["--repo", str(folder), "--verbose", "--output", output, "apply"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code in {1, 4}
    assert result.stderr
    findings.add("apply prints", result.stdout + result.stderr)
    assert findings.with_any_of([OTHER]) == []


FILES = {
    "a password": f'[online]\npassword = "{OTHER}"\n',
    "a password misspelt": f'[online]\npasswort = "{OTHER}"\n',
    "a sentinel's password": f'[online]\nsentinel_password = "{OTHER}"\n',
    "a password in a URL": f'[online]\nurl = "redis://user:{OTHER}@host"\n',
    "a password in a URL of sentinels": f'[online]\nurl = "redis+sentinel://:{OTHER}@a,b/c"\n',
    "a URL where a table is": f'online = "redis://user:{OTHER}@host"\n',
    "a line that is broken": f'[online]\npassword = "{OTHER}\n',
}


@pytest.mark.parametrize("case", FILES)
def test_secrets_in_the_file_are_refused_and_not_shown(tmp_path, case):
    (tmp_path / "featurestore.toml").write_text(f'project = "p"\n{FILES[case]}', encoding="utf-8")
    with pytest.raises(FeatureStoreError) as caught:
        load_settings(tmp_path)
    findings = Findings()
    findings.add("the error", f"{caught.value} {caught.value!r} {vars(caught.value)}")
    result = CliRunner().invoke(cli, ["--repo", str(tmp_path), "--verbose", "status"])
    findings.add("status prints", result.stdout + result.stderr)
    assert findings.with_any_of([OTHER]) == []


def test_the_search_finds():
    findings = Findings()
    for place, form in enumerate(sorted(forms(ONLINE))):
        findings.add(f"place {place}", b"xx" + form + b"yy")
    findings.add("clean", "nothing")
    assert len(findings.with_any_of([ONLINE])) == len(findings.texts) - 1
    assert findings.with_any_of([STREAMS]) == []
