"""Push, ingest and look up in three processes: what a platform team runs, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore, OnlineClient
from featurestore.clock import SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.semantics.timeline import to_datetime

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "card": pa.int64(), "at": INSTANT, "amount": pa.float64()})
DEFINITIONS = """
from featurestore import Aggregate, Entity, FeatureService, FeatureView, FileSource, StreamSource
card = Entity(name="card", join_keys=["card"])
past = FileSource(name="past", path="payments.parquet", event_timestamp="at")
payments = StreamSource(name="payments", batch=past, stream="lmdb:stream/payments", event_id="id")
spend = FeatureView(name="spend", entities=[card], source=payments, features=[
    Aggregate("sum", column="amount", windows=["1d"]), Aggregate("count", windows=["lifetime"])])
fraud = FeatureService(name="fraud", features=[spend])
"""


def _command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "featurestore.cli", *words, "--repo", str(folder)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Give a repository and the address of a server of it."""
    now = to_datetime(SystemClock().now_us())
    rows = [{"id": "old", "card": 1, "at": now - timedelta(hours=2), "amount": 10.0}]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "payments.parquet")
    (tmp_path / "featurestore.toml").write_text('project = "bank"\n[online]\nurl = "lmdb:online"\n')
    (tmp_path / "definitions").mkdir()
    (tmp_path / "definitions" / "cards.py").write_text(DEFINITIONS)
    with FeatureStore(tmp_path) as store:
        store.apply()
        store.materialize_incremental()
    words = ("serve", "--address", "127.0.0.1:0", "--output", "json")
    server = subprocess.Popen(  # noqa: S603  (our own interpreter)
        _command(tmp_path, *words), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stderr is not None
        yield tmp_path, _address(server.stderr)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        server.stderr.close()


def _address(log: IO[str]) -> str:
    for line in log:
        if line.startswith("{") and json.loads(line).get("event") == "serving":
            return str(json.loads(line)["address"])
    raise AssertionError("the server ended")


def test_what_is_pushed_is_served(served: tuple[Path, str]) -> None:
    """The answer says which events it has seen, and verify finds no difference."""
    folder, address = served
    now = to_datetime(SystemClock().now_us())
    events = [
        {"id": "a", "card": 1, "at": now - timedelta(minutes=2), "amount": 0.1},
        {"id": "b", "card": 1, "at": now - timedelta(minutes=1), "amount": 0.2},
        {"id": "c", "card": 2, "at": now - timedelta(minutes=1), "amount": 5.0},
    ]
    with OnlineClient(address) as client:
        receipt = client.push("payments", events)
        assert receipt.accepted == 3
        done = subprocess.run(  # noqa: S603  (our own interpreter)
            _command(folder, "ingest", "--until-idle"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = client.get_online_features("fraud", {"card": [1, 2, 3]})
        assert found.to_dict() == {
            "card": [1, 2, 3],
            "amount_sum_1d": [10.3, 5.0, None],
            "count_lifetime": [3, 1, 0],
        }
        ((name, reached),) = receipt.positions.items()
        assert found.applied["spend"][name] == [reached, reached, None]
        with pytest.raises(FeatureStoreError, match="payment"):
            client.push("payment", events)
    checked = subprocess.run(  # noqa: S603  (our own interpreter)
        _command(folder, "verify", "--service", "fraud", "--output", "json"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["different"] == 0
    assert report["compared"] > 0
