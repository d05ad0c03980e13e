"""`featurestore push` and `featurestore ingest`, as text and as JSON, in files and in pipes."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurestore import FeatureStore
from featurestore.cli.app import cli
from featurestore.services.ingestion import Ingestor
from featurestore.serving.server import FeatureServer
from featurestore.testing.valkey import wait_until
from tests.ingesting import COUNTS, DEFINITIONS, LAST, SCHEMA

SECONDS = 60
AT = datetime(2024, 5, 1, 11, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "definitions").mkdir()
    (tmp_path / "clicks").mkdir()
    text = DEFINITIONS.format(stream="lmdb:data/stream/clicks")
    views = text + COUNTS.format(column="amount") + LAST
    (tmp_path / "definitions" / "views.py").write_text(views, encoding="utf-8")
    settings = 'project = "p"\n[offline]\nworkers = 1\n[streams]\nflush_seconds = 0.05\n'
    settings += "log_seconds = 0.1\n[serving]\nrefresh_seconds = 0.1\n"
    (tmp_path / "featurestore.toml").write_text(settings, encoding="utf-8")
    pq.write_table(SCHEMA.empty_table(), tmp_path / "clicks" / "a.parquet")
    with FeatureStore(tmp_path) as store:
        store.apply()
    return tmp_path


def call(folder: Path, *words: str, code: int = 0, **options: Any) -> str:
    result = CliRunner().invoke(cli, ["--repo", str(folder), *words], **options)
    assert result.exit_code == code, result.stderr or result.exception
    return result.stdout if code == 0 else result.stderr


def events(*names: str) -> pa.Table:
    return pa.table(
        {
            "id": list(names),
            "user": [1] * len(names),
            "at": pa.array([AT] * len(names), pa.timestamp("us", "UTC")),
            "amount": [1.5] * len(names),
        }
    )


def lines(*names: str) -> str:
    rows = [{"id": n, "user": 1, "at": "2024-05-01T13:00:00+02:00", "amount": 1.5} for n in names]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def counted(folder: Path) -> int:
    with FeatureStore(folder) as store:
        found = store.get_online_features(["counts:n_lifetime"], [{"user": 1}]).to_dict()
    return found["n_lifetime"][0]


@pytest.mark.parametrize(
    ("words", "place", "begins"),
    [
        (["ingest", "--until-idle"], Ingestor, "run"),
        (["serve", "--address", "127.0.0.1:0"], FeatureServer, "run"),
    ],
)
def test_what_runs_for_long_is_not_held_up_by_garbage(folder, monkeypatch, words, place, begins):
    found = []
    monkeypatch.setattr(place, begins, lambda *_, **__: found.append(gc.get_freeze_count()))
    call(folder, *words)
    assert len(found) == 1
    assert found[0] > 10_000
    assert gc.get_freeze_count() == 0


def test_events_of_every_format_are_pushed_and_ingested(folder):
    pq.write_table(events("a", "b"), folder / "events.parquet")
    pc.write_csv(events("c"), folder / "events.csv")
    (folder / "events.jsonl").write_text(lines("d") + "\n", encoding="utf-8")
    assert "events:      2" in call(folder, "push", "clicks", str(folder / "events.parquet"))
    csv = call(folder, "push", "clicks", str(folder / "events.csv"), "--output", "json")
    assert json.loads(csv)["accepted"] == 1
    assert list(json.loads(csv)["positions"]) == ["0"]
    call(folder, "push", "clicks", str(folder / "events.jsonl"))
    call(folder, "push", "clicks", "-", input=lines("e", "a"))
    call(folder, "push", "clicks", input=lines("f"))
    text = call(folder, "ingest", "--until-idle")
    assert text.splitlines()[1].split()[:4] == ["clicks", "7", "0", "0"]
    assert counted(folder) == 6
    again = call(folder, "ingest", "--until-idle", "--output", "json").splitlines()
    told = [json.loads(line) for line in again]
    assert [line["event"] for line in told] == ["started", "stopped", "finished"]
    (source,) = told[-1]["sources"]
    assert (source["events"], source["idle"], source["trouble"]) == (0, True, None)
    assert source["partitions"]["0"]["lag"] == 0


@pytest.mark.parametrize(
    ("words", "given", "text"),
    [
        (["click"], "", "Did you mean 'clicks'"),
        (["clicks", "nowhere.csv"], "", "nowhere.csv"),
        (["clicks", "events.xls"], "", "Say --format"),
        (["clicks", "-", "--format", "csv"], "", "JSON lines"),
        (["clicks"], "no JSON\n", "standard input, line 1"),
        (["clicks"], lines("a") + "[1]\n", "standard input, line 2"),
        (["clicks"], '{"id": "a", "usr": 1}\n', "Did you mean 'user'"),
        (["clicks"], lines("a") + '{"id": "b", "amount": "x"}\n', "event 1 of 2"),
        (["clicks"], '{"id": "a", "at": "2024-05-01T13:00:00"}\n', "time zone"),
        (["clicks"], '{"id": null, "at": "2024-05-01T13:00:00Z"}\n', "event_id"),
    ],
)
def test_what_cannot_be_pushed_is_told(folder, words, given, text):
    told = call(folder, "push", *words, input=given, code=1)
    assert text in told


def test_damaged_files_are_told(folder):
    (folder / "events.parquet").write_bytes(b"PAR1 and no more")
    (folder / "events.csv").write_text("id,user\na,much\n", encoding="utf-8")
    for name in ("events.parquet", "events.csv"):
        assert name in call(folder, "push", "clicks", str(folder / name), code=1)


def test_a_source_that_is_no_stream_is_told(folder):
    assert "No applied view has a stream source called 'files'" in call(
        folder, "ingest", "--source", "files", "--until-idle", code=1
    )


def test_several_workers_share_the_work(folder):
    call(folder, "push", "clicks", input=lines(*(f"e{n}" for n in range(50))))
    call(folder, "ingest", "--until-idle", "--workers", "3", "--source", "clicks")
    assert counted(folder) == 50


def test_sigterm_flushes_commits_and_leaves(folder):
    call(folder, "push", "clicks", input=lines("a"))
    process = subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            "-m",
            "featurestore.cli",
            "ingest",
            "--repo",
            str(folder),
            "--output",
            "json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FEATURESTORE_STREAMS_FLUSH_SECONDS": "1000"},
    )
    wait_until(lambda: counted(folder) == 1, seconds=SECONDS)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    finished = json.loads(output.splitlines()[-1])
    assert finished["sources"][0]["partitions"]["0"]["lag"] in {0, 1}
    with FeatureStore(folder) as store:
        live = store.services.stream_log.live("clicks")
        stream = store.services.open_stream("lmdb:data/stream/clicks")
        assert (len(live.files), live.claims) == (1, {})
        assert stream.consumer("featurestore.p.clicks", "x").lag() == {"0": 0}


def test_status_tells_of_refused_events(folder):
    with FeatureStore(folder) as store:
        store.services.open_stream("lmdb:data/stream/clicks").append([b"bad"])
    text = call(folder, "ingest", "--until-idle")
    assert text.splitlines()[1].split()[1:3] == ["0", "1"]
    assert "1 live event of 'clicks' in quarantine" in call(folder, "status")
