"""What servers have served: flushed when they end, whole when they are killed (L2, L3)."""

from __future__ import annotations

import http.client
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pytest

from featurestore import FeatureStore, OnlineClient
from featurestore.clock import SystemClock
from featurestore.errors import RequestError
from featurestore.semantics.keys import encode_key, namespace
from featurestore.semantics.timeline import to_datetime
from featurestore.services.comparison import differing
from featurestore.testing.valkey import wait_until
from tests.integration.test_verify import call

USERS = 50
DEFINITIONS = '''
"""Users and what they did."""

import polars as pl

from featurestore import (
    Aggregate, Entity, FeatureService, FeatureView, Field, FileSource, RequestSource,
    on_demand_feature_view,
)

user = Entity(name="user", join_keys=["user"])
source = FileSource(name="rows", path="rows/*.parquet", event_timestamp="at")
users = FeatureView(name="users", entities=[user], source=source,
                    features=["score", "tags", Field(name="name", expression="'n' || user")])
totals = FeatureView(name="totals", entities=[user], source=source,
                     features=[Aggregate("sum", column="score", windows=["1h", "lifetime"]),
                               Aggregate("count", windows=["1h"], name="n")])
request = RequestSource(name="request", fields=[Field(name="factor", dtype="float64")])

@on_demand_feature_view(sources=[users["score"], request],
                        features=[Field(name="scaled", dtype="float64")])
def scaled(inputs: pl.DataFrame) -> pl.DataFrame:
    """The score by a factor."""
    return inputs.select(scaled=pl.col("score") * pl.col("factor"))

everything = FeatureService(name="everything", features=[users, totals, scaled])
'''
PLANTED = struct.pack("<d", 0.1)
SETTINGS = """
project = "shop"
[online]
url = "lmdb:online"
[offline]
threads = 1
workers = 1
[serving]
drain_seconds = 10
served_log_sample = 1.0
served_log_seconds = {seconds}
served_log_rows = {rows}
"""


def now() -> datetime:
    """Return the instant as servers see it: their clock is the machine's."""
    return to_datetime(SystemClock().now_us())


def make(folder: Path, seconds: float = 0.2, rows: int = 100_000) -> Path:
    """Write a repository and materialize it."""
    for name in ("definitions", "rows"):
        (folder / name).mkdir()
    (folder / "definitions" / "users.py").write_text(DEFINITIONS, encoding="utf-8")
    (folder / "featurestore.toml").write_text(SETTINGS.format(seconds=seconds, rows=rows))
    at = [now() - timedelta(minutes=n % 90) for n in range(USERS)]
    pl.DataFrame(
        {
            "user": range(USERS),
            "at": at,
            "score": [0.1 * n if n % 7 else None for n in range(USERS)],
            "tags": [["a", None][: n % 3] for n in range(USERS)],
        },
        schema_overrides={"tags": pl.List(pl.String)},
    ).write_parquet(folder / "rows" / "0.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize_incremental()
    return folder


class Server:
    """`featurestore serve` as a process; its logs as they come."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "featurestore.cli", "serve", "--repo", str(folder)]
        self.logs: list[dict[str, Any]] = []
        self.process = subprocess.Popen(  # noqa: S603  (our own interpreter)
            [*command, "--address", "127.0.0.1:0", "--output", "json", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [line for line in self.logs if line.get("event") == event]

        wait_until(
            lambda: len(found()) >= count or not self._reader.is_alive(),
            seconds=60,
            what=f"'{event}'",
        )
        assert len(found()) >= count, self.logs
        return found()[count - 1]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(30)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(30)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            try:
                self.logs.append(json.loads(line))
            except ValueError:
                self.logs.append({"event": line.strip()})


def client_of(server: Server) -> OnlineClient:
    """Return a client that is patient: the first call loads what an on-demand view needs."""
    return OnlineClient(server.wait_for("serving")["address"], timeout=30)


def ask(client: OnlineClient, users: list[int | None]) -> pa.Table:
    """Look everything up, and return what was answered."""
    answer = client.get_online_features("everything", {"user": users}, request={"factor": 2.0})
    return answer.to_arrow().append_column("as_of", pa.array([answer.as_of] * len(users)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("repository"))


def same_rows(found: pa.Table, expected: pa.Table) -> None:
    """Check that the log holds the very answers, whatever their order."""
    order = [("as_of", "ascending"), ("user", "ascending")]
    found, expected = found.sort_by(order), expected.sort_by(order)
    assert found.num_rows == expected.num_rows
    for name in expected.column_names:
        if name not in {"as_of", "user"}:
            pair = found[name].combine_chunks(), expected[name].combine_chunks()
            assert not differing(*pair).any(), name


def test_l2_what_was_served_is_in_the_log_when_a_server_has_ended(repository: Path) -> None:
    start = now()
    with (
        Server(repository) as server,
        client_of(server) as client,
    ):
        answers = [ask(client, [n, n + 1, USERS + n]) for n in range(20)]
        with pytest.raises(RequestError):
            client.get_online_features("everything", {"user": ["x"]}, request={"factor": 1.0})
        assert server.end() == 0
    with FeatureStore(repository) as store:
        found = store.get_served_features("everything", start).to_arrow()
        same_rows(found, pa.concat_tables(answers))
        assert set(found["factor"].to_pylist()) == {2.0}
        report = store.verify_served("everything", since=start)
        assert (report.equal, dict(report.not_comparable), report.rows) == (True, {}, 60)
    done = call_in(repository, "verify", "--served", "--since", start.isoformat())
    assert done.exit_code == 0, done.stderr
    assert "420 values compared, 0 different." in done.stdout


def test_both_fronts_are_logged_alike(repository: Path) -> None:
    start = now()
    asked = {
        "features": "everything",
        "entity_rows": {"user": [1, 2, None]},
        "request": {"factor": 2.0},
    }
    with Server(repository, "--http-address", "127.0.0.1:0") as server:
        served = server.wait_for("serving")
        with OnlineClient(served["address"], timeout=30) as client:
            ask(client, [1, 2, None])
        connection = http.client.HTTPConnection(served["http_address"], timeout=30)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/get-online-features", json.dumps(asked), headers)
        assert connection.getresponse().status == 200
        connection.close()
        assert server.end() == 0
    with FeatureStore(repository) as store:
        (table,) = store.services.served_reader.find("everything", start, None)
        rows = pa.Table.from_batches(table.batches())
        assert rows["_front"].to_pylist() == ["grpc"] * 3 + ["http"] * 3
        for name in ("entity", "request", "features", "status"):
            values = [repr(row) for row in rows[name].to_pylist()]
            assert values[:3] == values[3:], name
        assert store.verify_served("everything", since=start).equal


def test_l3_two_servers_append_to_one_table(repository: Path) -> None:
    start = now()
    answers: list[pa.Table] = []
    with Server(repository) as one, Server(repository) as other:
        addresses = [server.wait_for("serving")["address"] for server in (one, other)]
        for number in range(12):
            with OnlineClient(addresses[number % 2], timeout=30) as client:
                answers += [ask(client, [number, n]) for n in range(5)]
        assert (one.end(), other.end()) == (0, 0)
    with FeatureStore(repository) as store:
        found = store.get_served_features("everything", start, include_metadata=True).to_arrow()
        same_rows(found, pa.concat_tables(answers))
        (table,) = store.services.served_reader.find("everything", start, None)
        servers = {s for batch in table.batches(["_server"]) for s in batch["_server"].to_pylist()}
        assert len(servers) == 2
        assert store.verify_served("everything", since=start).equal


def test_l3_a_server_that_is_killed_leaves_whole_batches_only(repository: Path) -> None:
    start = now()
    with (
        Server(repository) as server,
        client_of(server) as client,
    ):
        answers = [ask(client, [n % USERS, 1, 2]) for n in range(30)]
        with FeatureStore(repository) as store:
            wait_until(lambda: _logged(store, start) > 0, what="a batch in the log")
        answers += [ask(client, [n % USERS, 3, 4]) for n in range(10)]
        server.end(signal.SIGKILL)
    with FeatureStore(repository) as store:
        found = store.get_served_features("everything", start, include_metadata=True).to_arrow()
        assert 0 < found.num_rows <= 120
        # Whole answers, and each of them once.
        rows = found.select(["request_id", "request_row"]).to_pylist()
        assert len({(row["request_id"], row["request_row"]) for row in rows}) == found.num_rows
        assert found.num_rows % 3 == 0
        expected = pa.concat_tables(answers)
        instants = pa.array(sorted(set(found["as_of"].to_pylist())), expected["as_of"].type)
        kept = pa.compute.is_in(expected["as_of"], value_set=instants)
        same_rows(found, expected.filter(kept))
        assert store.verify_served("everything", since=start).equal


def test_l4_a_value_that_was_planted_in_the_store_is_found(repository: Path) -> None:
    start = now()
    with FeatureStore(repository) as store:
        plan = store.services.state.get().serving["users"]
        lead = namespace("shop", "users", plan.table_fingerprint)
        key = lead + (encode_key([1], [plan.join_keys[0].type]) or b"")
        value = store.services.online_store.read([key])[0] or b""
    other = bytearray(value)
    place = value.index(PLANTED)
    other[place] ^= 1
    _put(repository, key, bytes(other))
    try:
        with Server(repository) as server:
            with client_of(server) as client:
                ask(client, [0, 1, 2])
            assert server.end() == 0
    finally:
        _put(repository, key, value)
    found = call_in(
        repository, "verify", "--served", "--since", start.isoformat(), "--output", "json"
    )
    assert found.exit_code == 3, found.stderr
    differences = json.loads(found.stdout)["differences"]
    assert {each["reference"] for each in differences} == {"users:score", "scaled:scaled"}
    assert {each["entity"]["user"] for each in differences} == {1}


def test_l2_lookups_go_on_where_the_log_cannot_be_written(tmp_path: Path) -> None:
    make(tmp_path, rows=10)
    blocked = tmp_path / "data" / "offline" / "shop" / "_served"
    blocked.write_text("no folder", encoding="utf-8")
    with Server(tmp_path) as server, client_of(server) as client:
        answers = [ask(client, [n]) for n in range(30)]
        server.wait_for("served log behind")
        assert server.end() == 0
        assert len(answers) == 30
        lost = [line for line in server.logs if line.get("event") == "served log behind"]
        assert any("cannot be written" in (line["error"] or "") for line in lost), lost
        assert sum(line["dropped"] + line["failed"] for line in lost) == 30
    blocked.unlink()
    with FeatureStore(tmp_path) as store, pytest.raises(RequestError, match="Nothing was logged"):
        store.get_served_features("everything")


def call_in(folder: Path, *words: str) -> Any:
    """Run a command in a repository."""
    with FeatureStore(folder) as store:
        return call(store, *words)


def _logged(store: FeatureStore, start: datetime) -> int:
    try:
        return int(store.get_served_features("everything", start).to_arrow().num_rows)
    except RequestError:
        return 0


def _put(folder: Path, key: bytes, value: bytes) -> None:
    """Put a row online behind everybody's back, though it is no newer than the one there."""
    with FeatureStore(folder) as store:
        online = store.services.online_store
        plan = store.services.state.get().serving["users"]
        lead = namespace("shop", "users", plan.table_fingerprint)
        keys = [lead + (encode_key([n], [plan.join_keys[0].type]) or b"") for n in range(USERS)]
        held = {k: v for k, v in zip(keys, online.read(keys), strict=True) if v} | {key: value}
        online.delete_namespace(lead)
        online.write(list(held), list(held.values()), None)
        os.sync()
