"""Redis users with the permissions that docs/redis.md lists, no more, do all that it says."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from featurestore import FeatureStore
from featurestore.adapters.redis import RedisOnlineStore
from featurestore.adapters.redis.streams import RedisEventStream
from featurestore.cli.app import cli
from featurestore.errors import AuthenticationError
from featurestore.serving.client import OnlineClient
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import ValkeyServer
from featurestore.testing.valkey_sentinel import FailoverGroup, ValkeySentinel
from tests.documentation import ROOT
from tests.ingesting import COUNTS, FEATURES, LAST, NOW, Click, Repository
from tests.integration.faults import KEYS, changes, driver_of, emptied_cluster, rows, versions

DOCUMENT = (ROOT / "docs" / "redis.md").read_text(encoding="utf-8")
# Needed in moments that no test can bring about: a millisecond with more than 4096 entries, a group
# whose former members have left something behind.
RARE = {"events-producer": {"xdel"}, "events-consumer": {"xgroup|delconsumer"}}
BRIEF = """
brief = FeatureView(name="brief", entities=[user], source=clicks, features=["amount"],
                    ttl=timedelta(days=1))
"""


def documented() -> dict[str, list[str]]:
    """Return the rules of each user as the document has them."""
    blocks = re.findall(r"^```acl\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    lines = [line.split() for block in blocks for line in block.splitlines()]
    assert all(words[0] == "user" for words in lines)
    return {words[1]: words[2:] for words in lines}


def more(kind: str) -> list[str]:
    """Return the rules that the document's table adds."""
    (line,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| {kind} |")]
    return [rule for quoted in re.findall(r"`(.*?)`", line)[-2 if "and the" in line else -1 :]
            for rule in quoted.replace("\\|", "|").split()]  # fmt: skip


def password_of(name: str) -> str:
    (found,) = [rule for rule in documented()[name] if rule.startswith(">")]
    return found.removeprefix(">")


def install(server: ValkeyServer, *extra: str) -> None:
    """Give a server the documented users."""
    for name, rules in documented().items():
        server.command("ACL", "SETUSER", name, "reset", *rules, *extra)


def login(name: str) -> dict[str, str]:
    return {"username": name, "password": password_of(name)}


@pytest.fixture
def server():
    with ValkeyServer() as server:
        install(server)
        yield server


def settings_of(server: ValkeyServer, online: str, streams: str) -> dict[str, Any]:
    return {
        "FEATURESTORE_ONLINE_URL": server.url,
        "FEATURESTORE_ONLINE_USERNAME": online,
        "FEATURESTORE_ONLINE_PASSWORD": password_of(online),
        "FEATURESTORE_STREAMS_USERNAME": streams,
        "FEATURESTORE_STREAMS_PASSWORD": password_of(streams),
    }


class Project:
    """A repository over a server, called as one user or another."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        views = "from datetime import timedelta\n" + COUNTS.format(column="amount") + LAST + BRIEF
        stream = f"{server.url}/clicks?partitions=2"
        repository = Repository(folder, stream=stream, views=views)
        repository.history([Click("a", 1, 20), Click("b", 2, 30)])
        repository.store.close()
        text = 'project = "p"\n[offline]\nworkers = 1\nthreads = 1\n[serving]\n'
        text += "refresh_seconds = 0.1\n[streams]\npoll_seconds = 0.0\n"
        (folder / "featurestore.toml").write_text(text, encoding="utf-8")

    def call(self, *words, online="features-writer", streams="events-consumer", code=0, **options):
        env = settings_of(self.server, online, streams)
        result = CliRunner().invoke(cli, ["--repo", str(self.folder), *words], env=env, **options)
        assert result.exit_code == code, result.stderr or result.exception
        return result.stdout if code == 0 else result.stderr


def commands_of(server: ValkeyServer) -> set[str]:
    """Return the commands that a server has run since its statistics were reset."""
    text = server.command("INFO", "commandstats")
    return set(re.findall(r"^cmdstat_(\S+?):calls=[1-9]", text, re.MULTILINE))


def refusals(server: ValkeyServer) -> set[tuple[str, str]]:
    """Return who was refused what."""
    return {
        (entry["username"], entry["object"]) for raw in driver_of(server) for entry in raw.acl_log()
    }


def allowed(name: str) -> set[str]:
    return {rule[1:] for rule in documented()[name] if rule.startswith("+")}


def test_a_project_from_apply_to_teardown_with_the_documented_users(server, tmp_path, monkeypatch):
    server.command("CONFIG", "RESETSTAT")
    project = Project(tmp_path, server)
    project.call("apply")
    project.call("materialize-incremental")
    start, end = NOW - timedelta(days=1), NOW + timedelta(days=1)
    project.call("materialize", start.isoformat(), end.isoformat())
    lines = '{"id": "c", "user": 1, "at": "2024-05-01T11:30:00Z", "amount": 3.5}\n' * 2
    project.call("push", "clicks", input=lines, streams="events-producer")
    project.call("ingest", "--until-idle")
    status = project.call("status", online="features-reader")
    assert "cannot" not in status
    asked = ["--service", ",".join(FEATURES), "--as-of", NOW.isoformat()]
    told = json.loads(project.call("verify", *asked, "--output", "json", online="features-reader"))
    assert told["equal"] is True
    _serve_as_reader(project, monkeypatch)
    refused = project.call("materialize", start.isoformat(), end.isoformat(),
                           online="features-reader", code=1)  # fmt: skip
    assert "refused the user" in refused
    assert "+evalsha" in refused
    assert "docs/redis.md" in refused
    assert "READER-PASSWORD" not in refused
    _both(server.url)
    _at_the_edges(server)
    project.call("teardown", "--yes")
    assert server.command("DBSIZE") in {"0", "2"}  # the stream is its producers'
    used = commands_of(server)
    for name in documented():
        unused = allowed(name) - used - RARE.get(name, set())
        assert unused == set(), name
    assert refusals(server) == {("features-reader", "evalsha"), ("features-reader", "unlink")}


def _serve_as_reader(project, monkeypatch):
    for name, value in settings_of(project.server, "features-reader", "events-producer").items():
        monkeypatch.setenv(name, value)
    with FeatureStore(project.folder) as store:
        services = store.services
        serving = services.settings.serving.model_copy(update={"address": "127.0.0.1:0"})
        server = FeatureServer(services.online, serving, events=store, folder=project.folder)
        server.start()
        try:
            with OnlineClient(server.address) as client:
                found = client.get_online_features(
                    ["counts:n_lifetime", "last:amount"], {"user": [1, 2]}, as_of=NOW
                )
                assert found.to_dict()["n_lifetime"] == [2, 1]
                assert found.to_dict()["amount"] == [1.0, 1.0]
                pushed = client.push("clicks", [{**Click("d").row, "seen": NOW}])
                assert pushed.accepted == 1
        finally:
            server.stop()


def _at_the_edges(server):
    """Call what a short project does not come to: pings, lags of groups, entries that are gone."""
    url = f"{server.url}/clicks?partitions=2"
    producer = RedisEventStream.from_url(url, **login("events-producer"))
    producer.append([b"x", b"y", b"z"])
    producer.ping()
    stream = RedisEventStream.from_url(url, **login("events-consumer"))
    consumer = stream.consumer("g", "m")
    assert sum(consumer.lag().values()) > 3
    consumer.poll(2, 5.0)
    for raw in driver_of(server):
        for key in stream.location.keys:
            raw.xdel(key, *[entry for entry, _ in raw.xrange(key)])
    consumer.lag()
    assert consumer.poll(2, 0.1) == []
    assert stream.ends()
    consumer.close()
    stream.forget("g")
    stream.ping()


def test_with_sentinels():
    with FailoverGroup() as group:
        install(group.primary(), *more("sentinels"))
        with ValkeySentinel(group.service, group.primary().port) as sentinel:
            (told,) = re.findall(r"A sentinel's user needs `(.*?)`", DOCUMENT)
            sentinel.command(
                "ACL", "SETUSER", "watcher", "reset", "on", ">pw", "-@all", *told.split()
            )
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{group.service}"
            watcher = {"sentinel_username": "watcher", "sentinel_password": "pw"}
            _both(url, **watcher)


def test_with_a_cluster(valkey_cluster):
    for cluster in emptied_cluster(valkey_cluster):
        for node in cluster.nodes:
            install(node, *more("a cluster"))
            node.command("ACL", "LOG", "RESET")
        _both(cluster.url)
        for node in cluster.nodes:
            assert refusals(node) <= {("features-reader", "evalsha"), ("features-reader", "unlink")}
            node.command("ACL", "DELUSER", *documented())


def test_with_a_database_and_replicas(server):
    install(server, *more("another database than 0"), *more("`?replicas=N`"))
    _both(f"{server.url}/3?replicas=0")


def _both(url, **options):
    """Do all that an online store does, as both users."""
    writer = RedisOnlineStore.from_url(url, timeout=5, **login("features-writer"), **options)
    reader = RedisOnlineStore.from_url(url, timeout=5, **login("features-reader"), **options)
    states = [key + b"state" for key in KEYS[:9]]
    assert writer.write(KEYS, rows(1), None) == len(KEYS)
    assert writer.write_states(changes(1, None, states)) == [True] * 9
    for store in (writer, reader):
        store.ping()
        assert store.cautions() == []
        assert store.read(KEYS) == rows(1)
        assert versions(store, states) == [1] * 9
        assert store.count(KEYS[0][:8]) == len(KEYS) + 9
    for call in (
        lambda: reader.write(KEYS, rows(2), None),
        lambda: reader.write_states(changes(2, 1, states)),
    ):
        with pytest.raises(AuthenticationError) as caught:
            call()
        assert caught.value.allowed == "+evalsha"
    with pytest.raises(AuthenticationError) as caught:
        reader.delete_namespace(KEYS[0][:8])
    assert caught.value.allowed == "+unlink"
    assert reader.read(KEYS) == rows(1)
    assert writer.delete_namespace(KEYS[0][:8]) == len(KEYS) + 9
    reader.close()
    writer.close()
