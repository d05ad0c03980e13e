"""Events that a call hands in: what is checked, how they are packed, and what the receipt says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore.errors import (
    FeatureNotFoundError,
    MissingColumnError,
    RequestError,
    StreamUnavailableError,
)
from featurestore.ports.stream_laws import partition_of
from featurestore.ports.streams import Entry
from featurestore.services.payloads import Decoder
from featurestore.testing.valkey import ValkeyServer
from tests.ingesting import COUNTS, LAST, NOW, SCHEMA, Click, Repository

OTHER = """
files_only = FeatureView(name="files_only", entities=[user], source=files, features=["amount"])
"""
ROW = Click("a", 1).row


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    found = Repository(tmp_path, views=COUNTS.format(column="amount") + LAST + OTHER)
    with found.store:
        found.store.apply()
        yield found


def entries(repository: Repository) -> list[Entry]:
    stream = repository.store.services.open_stream(repository.stream_url)
    return stream.consumer("reader", "reader").poll(10_000, 0.0)


def pushed(repository: Repository) -> pa.Table:
    found, refused = Decoder(SCHEMA, None).decode(entries(repository))
    assert refused == []
    return found


@pytest.mark.parametrize(
    "events",
    [
        [ROW, {**ROW, "id": "b"}],
        {name: [value, value] for name, value in ROW.items()} | {"id": ["a", "b"]},
        pa.Table.from_pylist([ROW, {**ROW, "id": "b"}], schema=SCHEMA),
        pl.DataFrame([ROW, {**ROW, "id": "b"}]),
        pd.DataFrame([ROW, {**ROW, "id": "b"}]),
    ],
    ids=["dicts", "lists", "pyarrow", "polars", "pandas"],
)
def test_rows_of_any_kind_are_taken(repository, events):
    receipt = repository.store.push("clicks", events)
    found = pushed(repository)
    assert found["id"].to_pylist() == ["a", "b"]
    assert found["at"].to_pylist() == [ROW["at"]] * 2
    assert found["seen"].to_pylist() == [None, None]
    assert (receipt.accepted, dict(receipt.positions)) == (
        2,
        {"0": entries(repository)[-1].position},
    )


def test_columns_that_are_left_out_are_null(repository):
    repository.store.push("clicks", [{"id": "a", "at": NOW}])
    assert pushed(repository).select(["user", "amount"]).to_pylist() == [
        {"user": None, "amount": None}
    ]


def test_no_events_are_no_entries(repository):
    receipt = repository.store.push("clicks", SCHEMA.empty_table())
    assert (receipt.accepted, receipt.positions, entries(repository)) == (0, {}, [])


def test_payloads_have_512_events_and_an_event_once(repository):
    ids = [f"e{n}" for n in range(1030)] + ["e1", "e2", "e1"]
    table = pa.table({"id": ids, "at": pa.array([NOW] * len(ids)), "user": list(range(len(ids)))})
    assert repository.store.push("clicks", table).accepted == 1033
    taken = entries(repository)
    pieces = [Decoder(SCHEMA, None).decode([entry])[0]["id"].to_pylist() for entry in taken]
    assert max(map(len, pieces)) == 512
    assert all(len(set(piece)) == len(piece) for piece in pieces)
    assert sorted(sum(pieces, [])) == sorted(ids)  # noqa: RUF017
    # The versions of an event are in the order in which they were handed in.
    found = pushed(repository)
    users = [r["user"] for r in found.to_pylist() if r["id"] == "e1"]
    assert users == [1, 1030, 1032]


def test_events_of_an_id_go_to_one_partition(tmp_path):
    repository = Repository(tmp_path, stream="memory:partitioned?partitions=4")
    with repository.store as store:
        store.apply()
        for n in range(3):
            store.push("clicks", [Click(f"e{i}", 1, n).row for i in range(40)])
        where: dict[str, set[str]] = {}
        for entry in entries(repository):
            for name in Decoder(SCHEMA, None).decode([entry])[0]["id"].to_pylist():
                where.setdefault(name, set()).add(entry.partition)
        assert where == {f"e{i}": {str(partition_of(f"e{i}".encode(), 4))} for i in range(40)}


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("click", FeatureNotFoundError, "Did you mean 'clicks'"),
        ("nothing", FeatureNotFoundError, "allowed: clicks"),
        ("files", RequestError, "The source 'files' is a FileSource; it takes no live events"),
    ],
)
def test_what_is_no_stream_is_refused_by_name(repository, source, error, text):
    with pytest.raises(error, match=text):
        repository.store.push(source, [ROW])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"amout": 1.0}, RequestError, "no column 'amout'"),
        ({"id": None}, RequestError, "'id' is the event_id of the source 'clicks', and null"),
        ({"at": None}, RequestError, "'at' is the event_timestamp"),
        ({"amount": "1.0"}, RequestError, "'amount' of the events cannot be read as double"),
        ({"user": 1.5}, RequestError, "'user' of the events cannot be read as int64"),
        ({"user": 2**63}, RequestError, "'user'"),
        ({"at": datetime(2024, 1, 1)}, RequestError, "never guessed"),  # noqa: DTZ001
        ({"at": "2024-01-01T00:00:00Z"}, RequestError, "'at' of the events"),
        ({"id": 7}, RequestError, "'id' of the events cannot be read as string"),
    ],
)
def test_events_that_do_not_fit_are_refused_and_none_is_appended(repository, change, error, text):
    with pytest.raises(error, match=text):
        repository.store.push("clicks", [{**ROW, **change}])
    assert entries(repository) == []


def test_events_without_a_column_that_tells_them_are_refused(repository):
    with pytest.raises(MissingColumnError, match="lack the column 'id', the event_id"):
        repository.store.push("clicks", [{"at": NOW}])
    with pytest.raises(MissingColumnError, match="lack the column 'at'"):
        repository.store.push("clicks", [{"id": "a"}])


def test_a_stream_that_is_gone_is_told(repository):
    repository.store.services.open_stream(repository.stream_url).available = False
    with pytest.raises(StreamUnavailableError):
        repository.store.push("clicks", [ROW])


def test_a_stream_that_hangs_is_told_within_the_time_given(tmp_path):
    with ValkeyServer() as valkey:
        found = Repository(tmp_path, views=LAST, stream=f"{valkey.url}/clicks")
        with found.store as store:
            store.apply()
            store.push("clicks", [ROW])
            valkey.pause()
            begun = time.monotonic()
            with pytest.raises(StreamUnavailableError):
                store.push("clicks", [{**ROW, "id": str(n)} for n in range(20_000)], timeout=0.2)
            took = time.monotonic() - begun
            valkey.resume()
            assert took < 1.5
            assert store.push("clicks", [ROW]).accepted == 1


def test_columns_may_be_renamed_and_naive(tmp_path):
    """Events have the columns of the history, under its own names and in its own zone."""
    repository = Repository(tmp_path)
    head = """
from featurestore import Aggregate, Entity, FeatureView, FileSource, StreamSource
user = Entity(name="user", join_keys=["user"])
files = FileSource(name="files", path="local.parquet", event_timestamp="at", timezone="Europe/Oslo",
                   field_mapping={"key": "id", "when": "at"})
clicks = StreamSource(name="clicks", batch=files, stream="memory:renamed", event_id="id")
"""
    definitions = head + COUNTS.format(column="amount")
    (tmp_path / "definitions" / "views.py").write_text(definitions, encoding="utf-8")
    repository.stream_url = "memory:renamed"
    columns = {
        "key": pa.int64(),
        "when": pa.timestamp("us"),
        "user": pa.int64(),
        "amount": pa.float64(),
    }
    import pyarrow.parquet as pq

    pq.write_table(pa.schema(list(columns.items())).empty_table(), tmp_path / "local.parquet")
    with repository.store as store:
        store.apply()
        local = NOW.astimezone(UTC).replace(tzinfo=None)
        store.push("clicks", [{"key": 1, "when": local, "user": 1, "amount": 2.0}])
        with pytest.raises(RequestError, match="wall-clock times without a zone"):
            store.push("clicks", [{"key": 1, "when": NOW, "user": 1}])
        repository.send(b'{"key": 2, "when": "2024-05-01T11:50:00Z", "user": 1, "amount": 3}')
        ingestor = repository.ingestor()
        worker = ingestor.worker("clicks", "0")
        while worker.step():
            pass
        worker.settle()
        ingestor.follow()
        worker.close()
        # Oslo's noon is ten o'clock UTC; the other one is ten minutes before noon UTC.
        assert repository.online((1,)) == {"n_1h": [1], "n_lifetime": [2], "total_1d": [5.0]}
        assert repository.offline((1,)) == repository.online((1,))
        assert repository.quarantined() == []
