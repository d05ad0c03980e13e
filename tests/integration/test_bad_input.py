"""Bad input and bad days: each has its clear error, and nothing is lost or half-written."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.clock import SystemClock
from featurestore.errors import (
    AuthenticationError,
    CyclicReferenceError,
    DefinitionError,
    DuplicateNameError,
    FeatureStoreError,
    OnlineStoreUnavailableError,
    RegistryUnavailableError,
    SourceCorruptError,
    SourceNotFoundError,
    SourceSchemaError,
    StorageError,
    UnknownReferenceError,
)
from featurestore.testing.valkey import ValkeyServer

HEAD = """
from datetime import timedelta
from featurestore import (Entity, FeatureService, FeatureView, Field, FileSource, RequestSource,
                          on_demand_feature_view)
user = Entity(name="user", join_keys=["user"])
clicks = FileSource(name="clicks", path="clicks.parquet", event_timestamp="happened")
"""
VIEW = (
    'user_clicks = FeatureView(name="user_clicks", entities=[user], source=clicks, features=["n"])'
)
DAY = datetime(2024, 1, 1, tzinfo=UTC)


def write_clicks(path: Path, rows: int = 3, **columns: Any) -> None:
    data = {
        "user": list(range(rows)),
        "happened": [DAY + timedelta(minutes=n) for n in range(rows)],
        "n": [n * 10 for n in range(rows)],
        **columns,
    }
    pq.write_table(pa.table(data), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "definitions").mkdir()
    define(tmp_path, VIEW)
    configure(tmp_path, "lmdb:data/online")
    write_clicks(tmp_path / "clicks.parquet")
    return tmp_path


def define(folder: Path, *lines: str) -> None:
    (folder / "definitions" / "views.py").write_text("\n".join([HEAD, *lines]), encoding="utf-8")


def configure(folder: Path, online: str, more: str = "") -> None:
    text = f'project = "bad_days"\n[online]\nurl = "{online}"\ntimeout_seconds = 1.0\n{more}'
    (folder / "featurestore.toml").write_text(text, encoding="utf-8")


def refused(folder: Path, kind: type[FeatureStoreError], *words: str) -> FeatureStoreError:
    """Plan, expect an error of this kind that says these words, and that nothing was applied."""
    with FeatureStore(folder) as store:
        with pytest.raises(kind) as caught:
            store.apply()
        assert store.services.registry.revision(store.project) == 0
    text = str(caught.value)
    for word in words:
        assert word in text, text
    return caught.value


def test_missing_file(folder: Path) -> None:
    (folder / "clicks.parquet").rename(folder / "click.parquet")
    refused(folder, SourceNotFoundError, "clicks", "Did you mean 'click.parquet'?")


def test_wrong_column(folder: Path) -> None:
    define(folder, VIEW.replace('["n"]', '["m"]'))
    refused(folder, SourceSchemaError, "'m'", "definitions/views.py", "happened, n, user")


def test_type_mismatch(folder: Path) -> None:
    define(folder, VIEW.replace('["n"]', '[Field(name="n", dtype="string")]'))
    refused(folder, SourceSchemaError, "'n'", "string", "int64", "definitions/views.py")


def test_unknown_timezone(folder: Path) -> None:
    source = HEAD.replace(
        'event_timestamp="happened"', 'event_timestamp="happened", timezone="America/NewYork"'
    )
    (folder / "definitions" / "views.py").write_text(source + VIEW, encoding="utf-8")
    refused(folder, DefinitionError, "America/New_York", "definitions/views.py:6")


def test_duplicate_names(folder: Path) -> None:
    define(folder, VIEW, VIEW.replace("user_clicks =", "again =").replace('"n"', '"n", "user2"'))
    write_clicks(folder / "clicks.parquet", user2=[1, 2, 3])
    refused(folder, DuplicateNameError, "user_clicks", "definitions/views.py")


def test_missing_reference(folder: Path) -> None:
    define(folder, VIEW, 's = FeatureService(name="s", features=["user_click:n"])')
    refused(folder, UnknownReferenceError, "user_click", "user_clicks", "definitions/views.py")


def test_cyclic_references(folder: Path) -> None:
    template = (
        '@on_demand_feature_view(sources=["{1}"], features=[Field(name="{0}_x", dtype="int64")])\n'
        "def {0}(inputs): return inputs\n"
    )
    define(folder, VIEW, template.format("a", "b"), template.format("b", "a"))
    refused(folder, CyclicReferenceError, "a", "b", "definitions/views.py")


def test_empty_source(folder: Path) -> None:
    schema = pq.read_schema(folder / "clicks.parquet")
    pq.write_table(schema.empty_table(), folder / "clicks.parquet")
    with FeatureStore(folder) as store:
        store.apply()
        report = store.materialize_incremental()
        assert report.rows_written == 0
        assert store.get_online_features(["user_clicks:n"], {"user": [1]}).to_dict()["n"] == [None]
        rows = pa.table({"user": [1], "event_timestamp": [DAY]})
        assert store.get_historical_features(rows, ["user_clicks:n"]).to_arrow()[
            "n"
        ].to_pylist() == [None]


def test_corrupt_parquet_pages(folder: Path) -> None:
    """The footer is whole, so that only reading the data shows it."""
    write_clicks(folder / "clicks.parquet", rows=5_000)
    with FeatureStore(folder) as store:
        store.apply()
        store.materialize_incremental()
        before = store.get_online_features(["user_clicks:n"], {"user": [1, 4_999]}).to_dict()
        path = folder / "clicks.parquet"
        data = bytearray(path.read_bytes())
        data[200 : len(data) // 2] = b"\xff" * (len(data) // 2 - 200)
        path.write_bytes(bytes(data))
        with pytest.raises(FeatureStoreError) as caught:
            store.materialize_incremental()
        assert isinstance(caught.value, SourceCorruptError), caught.value
        after = store.get_online_features(["user_clicks:n"], {"user": [1, 4_999]}).to_dict()
        assert after == before
        assert store.services.registry.runs(store.project)[0].state == "failed"


def _limited(folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """Materialize in a process whose files may not grow beyond a limit: a disk that gets full."""
    code = (
        "import resource, signal, sys\n"
        "from featurestore import FeatureStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"store = FeatureStore({str(folder)!r})\n"
        "store.services.registry.revision(store.project)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        "    store.materialize_incremental()\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_full_disk(folder: Path) -> None:
    write_clicks(folder / "clicks.parquet", rows=200_000)
    configure(folder, "memory:")
    with FeatureStore(folder) as store:
        store.apply()
        done = _limited(folder, 65_536)
        assert done.stdout.startswith("StorageError"), done.stdout + done.stderr
        offline = folder / "data" / "offline"
        assert list(offline.rglob("part-*.parquet")) == []
        assert store.materialize_incremental().rows_written == 200_000


def test_folder_that_cannot_be_written(folder: Path) -> None:
    """A file stands where the tables' folder would be: not even root can write there."""
    blocker = folder / "data" / "offline" / "bad_days"
    blocker.parent.mkdir(parents=True)
    blocker.write_text("in the way", encoding="utf-8")
    with FeatureStore(folder) as store:
        store.apply()
        with pytest.raises(StorageError, match=r"cannot be"):
            store.materialize_incremental()
        blocker.unlink()
        assert store.materialize_incremental().rows_written == 3


def test_dead_redis(folder: Path) -> None:
    with ValkeyServer() as server:
        url = server.url
    configure(folder, url)
    with FeatureStore(folder) as store:
        store.apply()
        clock = SystemClock()
        start = clock.monotonic()
        with pytest.raises(OnlineStoreUnavailableError):
            store.materialize_incremental()
        with pytest.raises(OnlineStoreUnavailableError):
            store.get_online_features(["user_clicks:n"], {"user": [1]})
        assert clock.monotonic() - start < 10.0
        assert store.services.registry.runs(store.project)[0].state == "failed"


def test_what_a_dead_redis_missed_is_pushed_when_it_is_back(folder: Path) -> None:
    with ValkeyServer() as server:
        url = server.url
    configure(folder, url)
    with FeatureStore(folder) as store:
        store.apply()
        with pytest.raises(OnlineStoreUnavailableError):
            store.materialize_incremental()
    with ValkeyServer() as server:
        configure(folder, server.url)
        with FeatureStore(folder) as store:
            store.materialize_incremental()
            found = store.get_online_features(["user_clicks:n"], {"user": [0, 1, 2]})
            assert found.to_dict()["n"] == [0, 10, 20]


def test_wrong_password(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ValkeyServer(password="right-secret") as server:  # noqa: S106
        configure(folder, server.url)
        monkeypatch.setenv("FEATURESTORE_ONLINE_PASSWORD", "wrong-secret")
        with FeatureStore(folder) as store:
            store.apply()
            with pytest.raises(AuthenticationError) as caught:
                store.materialize_incremental()
            assert "secret" not in str(caught.value)
        monkeypatch.setenv("FEATURESTORE_ONLINE_PASSWORD", "right-secret")
        with FeatureStore(folder) as store:
            store.materialize_incremental()
            found = store.get_online_features(["user_clicks:n"], {"user": [1]}).to_dict()
            assert found["n"] == [10]


def test_registry_locked_by_another_process(folder: Path) -> None:
    configure(folder, "memory:", "[registry]\ntimeout_seconds = 0.3\n")
    with FeatureStore(folder) as store:
        store.apply()
        holder = sqlite3.connect(folder / "data" / "registry.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryUnavailableError, match="registry"):
            store.materialize_incremental()
        holder.execute("ROLLBACK")
        holder.close()
        assert store.materialize_incremental().rows_written == 3


def test_sigint_in_mid_job(folder: Path) -> None:
    """Ctrl-C stops the statement that runs; the run is recorded as failed; a rerun is whole."""
    slow = HEAD.replace(
        'path="clicks.parquet"',
        'query="SELECT a.user, a.happened + to_microseconds(b.range) AS happened, a.n FROM'
        " 'clicks.parquet' a, range(20000000) b ORDER BY sin(b.range)\"",
    )
    (folder / "definitions" / "views.py").write_text(slow + VIEW, encoding="utf-8")
    with FeatureStore(folder) as store:
        store.apply()
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "featurestore.cli", "--repo", folder, "materialize-incremental"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with FeatureStore(folder) as store:
        clock = SystemClock()
        deadline = clock.monotonic() + 30
        while not store.services.registry.runs(store.project) and clock.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        run = store.services.registry.runs(store.project)[0]
        assert (run.state, run.rows_written) == ("failed", 0)
        define(folder, VIEW)
        store.apply(allow_destructive=True)
        assert store.materialize_incremental().rows_written == 3
    assert json.dumps(run.error)
    assert os.listdir(folder / "data" / "offline" / ".spill") == []  # noqa: PTH208
