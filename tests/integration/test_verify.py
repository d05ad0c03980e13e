"""Verification finds nothing where nothing is wrong, and every value that is (laws V1, V2)."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurestore import FeatureStore, OnlineClient
from featurestore.cli.app import cli
from featurestore.clock import FixedClock
from featurestore.compile.plan import ViewPlan
from featurestore.errors import RequestError
from featurestore.model.settings import ServingSettings, Settings
from featurestore.ports.online import VERSION, StateChange, StateRead
from featurestore.semantics.keys import encode_key, namespace
from featurestore.semantics.states.layout import RECENT
from featurestore.semantics.timeline import to_instant
from featurestore.serving.server import FeatureServer

NOW = datetime(2024, 3, 10, 12, tzinfo=UTC)
CARDS, EVENTS = 40, 900
INSTANT = pa.timestamp("us", tz="UTC")
SERVICE = "cards"
TENTH, OTHER = struct.pack("<d", 0.1), struct.pack("<d", 3e17)
DEFINITIONS = '''
"""Cards and what was paid with them."""

from datetime import timedelta

import polars as pl

from featurestore import (
    Aggregate, Entity, FeatureService, FeatureView, Field, FileSource, RequestSource,
    on_demand_feature_view,
)

card = Entity(name="card", join_keys=["card_id"])
payments = FileSource(
    name="payments", path="payments/*.parquet", event_timestamp="at", created_timestamp="learnt",
    event_id="id", version="version", deleted="gone",
)
latest = FeatureView(
    name="latest", entities=[card], source=payments, ttl=timedelta(days=2), where="NOT gone",
    features=["amount", "shop", Field(name="items", expression="[amount, -amount]")],
)
spend = FeatureView(
    name="spend", entities=[card], source=payments,
    features=[
        Aggregate("sum", column="amount", windows=["1h", "24h"]),
        Aggregate("mean", column="amount", windows=["24h", "lifetime"]),
        Aggregate("count", windows=["24h"], by="shop", name="visits"),
        Aggregate("last_k", column="shop", k=3, windows=["24h"]),
        Aggregate("variance", column="amount", windows=["7d"]),
    ],
)
request = RequestSource(name="request", fields=[Field(name="limit", dtype="float64")])

@on_demand_feature_view(
    sources=[latest["amount"], spend["amount_sum_24h"], request],
    features=[Field(name="share", dtype="float64")],
)
def share(inputs: pl.DataFrame) -> pl.DataFrame:
    """How much of the limit is spent."""
    return inputs.select(share=(pl.col("amount") + pl.col("amount_sum_24h")) / pl.col("limit"))

cards = FeatureService(name="cards", features=[latest, spend, share])
'''


def payments(chance: random.Random) -> list[dict[str, Any]]:
    """Versions of payments on hours and days, late ones, corrected ones and deleted ones."""
    rows = []
    for number in range(EVENTS):
        at = NOW - timedelta(hours=chance.randrange(24 * 12), minutes=chance.choice([0, 0, 1, 59]))
        learnt = at + timedelta(minutes=chance.choice([0, 0, 1, 90, 60 * 30]))
        for version in range(chance.choice([1, 1, 1, 2])):
            amount = chance.choice([0.1, 0.2, 1e16, -1e16, -0.0, 7.25, None, math.nan])
            rows.append(
                {
                    "card_id": chance.randrange(CARDS),
                    "id": f"p{number}",
                    "version": version,
                    "at": at,
                    "learnt": min(NOW, learnt + timedelta(hours=version)),
                    "gone": version > 0 and chance.random() < 0.5,
                    "amount": amount,
                    "shop": chance.choice(["a", "b", "é", None]),
                }
            )
    return rows


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a file of the source."""
    kinds = {"at": INSTANT, "learnt": INSTANT, "amount": pa.float64(), "shop": pa.string()}
    columns = {n: pa.array([row[n] for row in rows], kinds.get(n)) for n in rows[0]}
    (folder / "payments").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "payments" / name)


def open_store(folder: Path) -> FeatureStore:
    """Open the repository as of `NOW`."""
    settings = Settings(
        project="shop",
        registry={"url": "sqlite:///registry.db"},
        offline={"path": "offline", "threads": 1, "workers": 1},
        online={"url": "lmdb:online"},
    )
    return FeatureStore(folder, settings=settings, clock=FixedClock(to_instant(NOW)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A store with everything materialized; nobody changes it for good."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "cards.py").write_text(DEFINITIONS, encoding="utf-8")
    (folder / "featurestore.toml").write_text(
        'project = "shop"\ndefinitions = "definitions"\n'
        '[registry]\nurl = "sqlite:///registry.db"\n'
        '[offline]\npath = "offline"\n[online]\nurl = "lmdb:online"\n',
        encoding="utf-8",
    )
    write(folder, "0.parquet", payments(random.Random(1)))  # noqa: S311
    with open_store(folder) as store:
        store.apply()
        store.materialize_incremental()
        yield store


def view(store: FeatureStore, name: str) -> ViewPlan:
    """Return a view as it is served."""
    return store.services.state.get().serving[name]


def key_of(store: FeatureStore, name: str, card: int) -> bytes:
    """Return the online key of a card in a view."""
    plan = view(store, name)
    lead = namespace(store.project, name, plan.table_fingerprint)
    return lead + (encode_key([card], [key.type for key in plan.join_keys]) or b"")


@dataclass
class Corruption:
    """Changes what is kept online of one card, and puts it back."""

    store: FeatureStore
    name: str
    card: int

    def __enter__(self) -> None:
        online, key = self.store.services.online_store, key_of(self.store, self.name, self.card)
        fields = [VERSION, RECENT]
        self.held = online.read_states([StateRead(key, fields)])[0][0]
        page = (self.held[1] or b"").replace(TENTH, OTHER)
        assert page != self.held[1]
        self._put(key, page)

    def __exit__(self, *_: object) -> None:
        self._put(key_of(self.store, self.name, self.card), self.held[1] or b"")

    def _put(self, key: bytes, page: bytes) -> None:
        change = StateChange(key, self.held[0], {VERSION: self.held[0] or b"", RECENT: page})
        assert self.store.services.online_store.write_states([change]) == [True]


def test_everything_is_equal_at_every_instant(shop: FeatureStore) -> None:
    instants = [NOW + timedelta(minutes=20 * n) for n in range(100)]
    report = shop.verify(SERVICE, as_of=[*instants, NOW + timedelta(days=3)])
    assert (report.equal, report.differences, report.not_comparable) == (True, (), {})
    features = 3 + 7 + 1
    assert report.entities == CARDS
    assert report.compared == CARDS * 101 * features
    assert report.present > report.compared // 3
    print(f"{report.compared:,} values compared, {report.different} different")  # noqa: T201


def test_a_past_instant_is_compared_as_far_as_the_store_reaches(shop: FeatureStore) -> None:
    report = shop.verify(SERVICE, as_of=NOW - timedelta(hours=5))
    assert report.equal
    # The rows of cards that have paid since are newer, and so are features made of them.
    left_out = sum(report.not_comparable.values())
    assert 0 < left_out < CARDS * 11 == report.compared + left_out


def test_what_late_data_changed_is_told_apart(shop: FeatureStore) -> None:
    report = shop.verify(SERVICE, as_of=[NOW, NOW + timedelta(hours=1)])
    known = shop.verify(["spend:amount_mean_lifetime"], as_of=NOW - timedelta(minutes=50))
    assert report.equal
    assert known.equal
    assert known.late["spend:amount_mean_lifetime"].changed > 0
    assert report.late["spend:amount_mean_lifetime"].compared == 2 * CARDS


@pytest.mark.parametrize("name", ["latest", "spend"])
def test_a_value_that_was_corrupted_is_found(shop: FeatureStore, name: str) -> None:
    card = _card_with(shop, name, 0.1)
    reference = "latest:amount" if name == "latest" else "spend:amount_mean_lifetime"
    if name == "latest":
        _overwrite(shop, card)
        report = shop.verify([reference, "latest:shop"])
        shop.materialize("2020-01-01T00:00:00Z", NOW + timedelta(seconds=1), ["latest"])
    else:
        with Corruption(shop, name, card):
            report = shop.verify(["spend"])
            # Though rows may have come of age since the last run pushed, which windows see anyhow.
            assert shop.verify(["spend"], as_of=NOW + timedelta(hours=1)).different > 0
    assert report.different >= 1
    found = {each.reference: each for each in report.differences}
    assert found[reference].entity == {"card_id": card}
    assert found[reference].as_of == NOW
    assert found[reference].online != found[reference].offline
    assert {each.entity["card_id"] for each in report.differences} == {card}
    if name == "spend":
        assert shop.verify(["spend"]).equal


def test_a_row_that_is_missing_online_is_found_by_its_status(shop: FeatureStore) -> None:
    plan = view(shop, "latest")
    lead = namespace(shop.project, "latest", plan.table_fingerprint)
    shop.services.online_store.delete_namespace(lead)
    report = shop.verify(["latest:amount"], as_of=NOW)
    shop.materialize("2020-01-01T00:00:00Z", NOW + timedelta(seconds=1), ["latest"])
    statuses = {(each.online_status, each.offline_status) for each in report.differences}
    assert report.different > 0
    assert {online for online, _ in statuses} == {"NOT_FOUND"}
    assert shop.verify(["latest:amount"], as_of=NOW).equal


def test_samples_are_the_same_for_the_same_seed(shop: FeatureStore) -> None:
    with Corruption(shop, "spend", _card_with(shop, "spend", 0.1)):
        found = [shop.verify(["spend"], sample=20, seed=seed).different for seed in range(5)]
        again = shop.verify(["spend"], sample=20, seed=1).different
    assert found[1] == again
    assert len(set(found)) == 2  # in some of the samples and not in others
    assert shop.verify(SERVICE, sample=7).entities == 7


def test_entities_and_request_fields_may_be_given(shop: FeatureStore, tmp_path: Path) -> None:
    rows = [{"card_id": n, "limit": float(n)} for n in [1, 1, 2, 999]]
    assert shop.verify(SERVICE, entities=rows).compared == 4 * 11
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    (tmp_path / "some.csv").write_text("card_id\n1\n7\n", encoding="utf-8")
    assert shop.verify(SERVICE, entities=tmp_path / "some.parquet").compared == 4 * 11
    assert shop.verify(SERVICE, entities=str(tmp_path / "some.csv")).entities == 2


def test_nothing_compared_is_an_error(shop: FeatureStore) -> None:
    with pytest.raises(RequestError, match="Nothing was compared"):
        shop.verify(["latest:amount"], as_of="1990-01-01T00:00:00Z", entities=[{"card_id": 1}])
    with pytest.raises(RequestError, match="Nothing was compared"):
        shop.verify(SERVICE, entities={"card_id": []})
    with pytest.raises(RequestError, match="either drawn or given"):
        shop.verify(SERVICE, entities=[{"card_id": 1}], sample=1)


def test_a_server_is_verified_over_the_wire(shop: FeatureStore) -> None:
    server = FeatureServer(shop.services.online, ServingSettings(address="127.0.0.1:0"))
    address = server.start()
    try:
        with OnlineClient(address) as client:
            report = shop.verify(SERVICE, as_of=[NOW, NOW + timedelta(hours=3)], client=client)
        done = call(shop, "verify", "--service", "spend", "--server", address, *AS_OF)
    finally:
        server.stop()
    assert (report.compared, report.different) == (CARDS * 2 * 11, 0)
    assert done.exit_code == 0, done.stderr


AS_OF = ("--as-of", NOW.isoformat())


def call(store: FeatureStore, *words: str) -> Any:
    """Run a command."""
    return CliRunner().invoke(cli, ["--repo", str(store.services.folder), *words])


def test_the_command_says_equal_and_not_equal_by_its_exit_code(shop: FeatureStore) -> None:
    equal = call(shop, "verify", "--service", "latest,spend", "--sample", "10", *AS_OF)
    assert equal.exit_code == 0, equal.stderr
    assert "values compared, 0 different." in equal.stdout
    card = _card_with(shop, "spend", 0.1)
    with Corruption(shop, "spend", card):
        differs = call(shop, "verify", "--service", "spend", *AS_OF)
        told = call(shop, "verify", "--service", "spend", "--output", "json", *AS_OF)
    assert differs.exit_code == told.exit_code == 3
    assert f"card_id={card}" in differs.stdout
    data = json.loads(told.stdout)
    assert data["different"] == len(data["differences"]) > 0
    assert data["differences"][0]["entity"] == {"card_id": card}


def test_the_command_refuses_what_compares_nothing(shop: FeatureStore) -> None:
    long_ago = call(shop, "verify", "--service", "latest", "--as-of", "1990-01-01T00:00:00Z")
    assert long_ago.exit_code == 1
    assert "Nothing was compared" in long_ago.stderr
    assert call(shop, "verify", "--service", "nothing").exit_code == 1
    both = call(shop, "verify", "--service", "spend", "--sample", "1", "--entities", __file__)
    assert both.exit_code == 2


def _card_with(store: FeatureStore, name: str, amount: float) -> int:
    """Return a card whose state holds an amount; one whose newest row does."""
    bits = struct.pack("<d", amount)
    online = store.services.online_store
    for card in range(CARDS):
        key = key_of(store, name, card)
        if name == "latest":
            held = online.read([key])[0]
        else:
            held = online.read_states([StateRead(key, [RECENT])])[0][0][0]
        if held is not None and bits in held:
            return card
    raise AssertionError


def _overwrite(store: FeatureStore, card: int) -> None:
    """Put a row online that is as new as the one there, and larger by one bit."""
    online, key = store.services.online_store, key_of(store, "latest", card)
    value = bytearray(online.read([key])[0] or b"")
    value[value.index(TENTH)] |= 1
    assert online.write([key], [bytes(value)], None) == 1
