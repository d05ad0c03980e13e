"""Real data with real lateness: rides in Chicago, and earthquakes that were corrected for weeks."""

from __future__ import annotations

import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore
from featurestore.compile.plan import table_id
from featurestore.dtypes import parse
from featurestore.semantics.reference import ReferenceRow, canonical, join
from featurestore.semantics.timeline import to_datetime, to_instant

_DATA = Path(__file__).parent.parent / "data"
_DEFINITIONS = """
from datetime import timedelta
from featurestore import Entity, FeatureView, Field, FileSource

station = Entity(name="station", join_keys=["station"])
network = Entity(name="network", join_keys=["net", "magType"])
rides = FeatureView(
    name="rides", entities=[station], ttl=timedelta(days=7),
    source=FileSource(name="ridership", path="chicago_ridership.parquet", event_timestamp="date"),
    features=["ridership_thousands"])
last_quake = FeatureView(
    name="last_quake", entities=[network],
    source=FileSource(name="quakes", path="earthquakes.parquet", event_timestamp="time",
                      created_timestamp="updated"),
    features=["id", "mag", "depth_km", "sig"])
"""
_SEED = 1906


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("real")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "views.py").write_text(_DEFINITIONS, encoding="utf-8")
    (folder / "featurestore.toml").write_text('project = "real"\n', encoding="utf-8")
    for name in ("chicago_ridership.parquet", "earthquakes.parquet"):
        shutil.copy(_DATA / name, folder / name)
    made = FeatureStore(folder)
    made.apply()
    made.materialize_incremental()
    return made


def _files(store: FeatureStore, view: str) -> int:
    plan = store.services.registry.state(store.project).catalog.views[view]
    return len(store.services.tables.snapshot(table_id(store.project, plan)).files)


def test_fifteen_years_of_twenty_rows_a_day_are_one_file(store: FeatureStore) -> None:
    assert _files(store, "rides") == 1


def test_a_year_of_daily_runs_leaves_few_files(tmp_path: Path) -> None:
    """Each run adds a day of rows; what it leaves is merged on the way."""
    (tmp_path / "definitions").mkdir()
    (tmp_path / "definitions" / "views.py").write_text(_DEFINITIONS, encoding="utf-8")
    (tmp_path / "featurestore.toml").write_text('project = "daily"\n', encoding="utf-8")
    for name in ("chicago_ridership.parquet", "earthquakes.parquet"):
        shutil.copy(_DATA / name, tmp_path / name)
    with FeatureStore(tmp_path) as store:
        store.apply()
        day = to_datetime(to_instant("2010-01-01T00:00:00Z"))
        for _ in range(40):
            store.materialize(day, day + timedelta(days=1), ["rides"])
            day += timedelta(days=1)
        assert _files(store, "rides") < 9


@pytest.mark.parametrize("knowledge", ["healed", "known"])
def test_earthquakes_as_they_were_known(store: FeatureStore, knowledge: Any) -> None:
    table = pq.read_table(_DATA / "earthquakes.parquet").to_pylist()
    features = ["id", "mag", "depth_km", "sig"]
    types = [parse(name) for name in ("string", "float64", "float64", "int64")]
    rows = [
        ReferenceRow(
            (row["net"], row["magType"]),
            to_instant(row["time"]),
            to_instant(row["updated"]),
            tuple(row[name] for name in features),
        )
        for row in table
    ]
    chance = random.Random(_SEED)  # noqa: S311
    keys = sorted({row.key for row in rows if None not in row.key})
    instants = [row.event for row in rows] + [row.created for row in rows if row.created]
    asked = [
        (chance.choice(keys), chance.choice(instants) + chance.choice([-1, 0, 1]))
        for _ in range(400)
    ]
    entity_rows = pa.table(
        {
            "net": [key[0] for key, _ in asked],
            "magType": [key[1] for key, _ in asked],
            "event_timestamp": pa.array([at for _, at in asked]).cast(pa.timestamp("us", tz="UTC")),
        }
    )
    references = [f"last_quake:{name}" for name in features]
    job = store.get_historical_features(entity_rows, references, knowledge=knowledge)
    found = job.to_arrow().select(features).to_pylist()
    wanted = join(rows, [parse("string")] * 2, types, asked, ttl=None, knowledge=knowledge)
    nothing = (None,) * len(features)
    for row, match in zip(found, wanted, strict=True):
        expected = match.values if match else nothing
        assert canonical(list(row.values()), types) == canonical(expected, types)
    assert any(match is not None for match in wanted)


def test_what_was_known_differs_from_what_is_known_now(store: FeatureStore) -> None:
    quakes = pq.read_table(_DATA / "earthquakes.parquet", columns=["net", "magType", "time"])
    rows = quakes.rename_columns(["net", "magType", "event_timestamp"])
    asked = rows.filter(pc.is_valid(rows["magType"]))
    healed = store.get_historical_features(asked, ["last_quake:id"]).to_arrow()
    known = store.get_historical_features(asked, ["last_quake:id"], knowledge="known").to_arrow()
    differ = sum(
        a != b for a, b in zip(healed["id"].to_pylist(), known["id"].to_pylist(), strict=True)
    )
    assert differ > asked.num_rows // 2
