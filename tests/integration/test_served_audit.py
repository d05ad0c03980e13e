"""What was served is computed again from its log: late data explains itself, skew does not (L4)."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureStore
from featurestore.compile.plan import table_id
from featurestore.errors import RequestError
from featurestore.ports.registry import Run
from featurestore.semantics.keys import namespace
from featurestore.services.columns import InputRows
from featurestore.services.response import OnlineResponse
from featurestore.services.served_log import Served
from featurestore.services.served_log_explaining import FILES_GONE, HISTORY, RUNNING
from featurestore.services.served_log_history import Epoch, TableHistory
from featurestore.services.served_log_replay import GONE_CODE, GONE_TABLE
from featurestore.services.table_disposal import TableDisposal
from featurestore.services.verification_checking import AHEAD, BEHIND
from tests.ingesting import Click, Repository
from tests.integration.test_ingestion import take_all
from tests.integration.test_verify import (
    CARDS,
    DEFINITIONS,
    NOW,
    SERVICE,
    Corruption,
    _card_with,
    _overwrite,
    call,
    key_of,
    open_store,
    payments,
    view,
    write,
)

MINUTE = 60_000_000
FEATURES = 3 + 7 + 1


def serve(store: FeatureStore, features: Any, rows: Any, **more: Any) -> OnlineResponse:
    """Look up, and log the answer at once."""
    services = store.services
    given = InputRows.of(rows)
    answer = services.online.get_online_features(features, given, **more)
    fields = None if "request" not in more else InputRows.of_request(more["request"], given.rows)
    state, now = services.state.get(), services.clock.now_us()
    served = Served(answer, features, given, fields, "r", "grpc", state, 0.0, now)
    for shape, made in services.served_log.convert([served]).batches:
        services.served_log.append(shape, made)
    return answer


def serve_all(store: FeatureStore) -> OnlineResponse:
    """Serve every card."""
    return serve(store, SERVICE, {"card_id": list(range(CARDS))}, request={"limit": 100.0})


def arrive(store: FeatureStore, seed: int, count: int = 900) -> None:
    """Let late payments arrive, and materialize them."""
    rows = payments(random.Random(seed))[:count]  # noqa: S311
    write(store.services.folder, f"{seed}.parquet", [r | {"id": f"{seed}-{r['id']}"} for r in rows])
    store.services.clock.advance(MINUTE)
    store.materialize_incremental()
    store.services.clock.advance(MINUTE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with everything materialized."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "definitions").mkdir()
    (folder / "definitions" / "cards.py").write_text(DEFINITIONS, encoding="utf-8")
    (folder / "featurestore.toml").write_text(
        'project = "shop"\n[registry]\nurl = "sqlite:///registry.db"\n'
        '[offline]\npath = "offline"\n[online]\nurl = "lmdb:online"\n',
        encoding="utf-8",
    )
    write(folder, "1.parquet", payments(random.Random(1)))  # noqa: S311
    with open_store(folder) as store:
        store.apply()
        store.materialize_incremental()
    return folder


@pytest.fixture
def shop(prepared: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """A copy of it, a minute later."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    with open_store(tmp_path) as store:
        store.services.clock.advance(MINUTE)
        yield store


def test_l4_late_data_is_told_apart_from_skew(shop: FeatureStore) -> None:
    for seed in (2, 3):
        serve_all(shop)
        arrive(shop, seed, 300)
    serve_all(shop)
    serve(shop, ["latest:shop"], {"card_id": [1, 2, 999]})
    report = shop.verify_served()
    assert (report.equal, dict(report.not_comparable)) == (True, {})
    assert report.rows == 3 * CARDS + 3
    assert report.compared == 3 * CARDS * FEATURES + 3
    assert set(report.services) == {SERVICE, "latest:shop"}
    assert report.late["latest:amount"].changed > 0
    assert report.late["spend:amount_sum_24h"].changed > CARDS // 4
    assert report.late["share:share"].changed > 0
    last = shop.verify_served(SERVICE, since=NOW + timedelta(minutes=5))
    assert last.rows == CARDS
    assert sum(late.changed for late in last.late.values()) == 0


@pytest.mark.parametrize("name", ["latest", "spend"])
def test_l4_a_value_that_was_altered_is_found(shop: FeatureStore, name: str) -> None:
    card = _card_with(shop, name, 0.1)
    if name == "latest":
        _overwrite(shop, card)
        serve_all(shop)
    else:
        with Corruption(shop, name, card):
            serve_all(shop)
    arrive(shop, 2, 100)
    report = shop.verify_served(SERVICE)
    assert report.different > 0
    assert {each.entity["card_id"] for each in report.differences} == {card}
    assert {each.reference.split(":")[0] for each in report.differences} >= {name}
    if name == "latest":
        told = call(shop, "verify", "--served", "--output", "json")
        assert told.exit_code == 3, told.stderr
        assert json.loads(told.stdout)["different"] == report.different
    else:
        shown = call(shop, "verify", "--served", "--service", SERVICE)
        assert shown.exit_code == 3, shown.stderr
        assert f"card_id={card}" in shown.stdout


def test_l4_an_answer_from_a_row_that_was_no_longer_the_newest_is_found(shop: FeatureStore) -> None:
    """The row stood in the table; but when it was served, a newer one had been pushed."""
    online = shop.services.online_store
    keys = [key_of(shop, "latest", card) for card in range(CARDS)]
    before = online.read(keys)
    arrive(shop, 2)
    after = online.read(keys)
    lost = next(n for n in range(CARDS) if before[n] and before[n] != after[n])
    # Behind everybody's back: the store is as it was, for one card.
    plan = view(shop, "latest")
    online.delete_namespace(namespace(shop.project, "latest", plan.table_fingerprint))
    kept = {k: v for k, v in zip(keys, after, strict=True) if v} | {keys[lost]: before[lost] or b""}
    online.write(list(kept), list(kept.values()), None)
    assert online.read([keys[lost]]) == [before[lost]]
    serve_all(shop)
    report = shop.verify_served()
    assert {each.entity["card_id"] for each in report.differences} == {lost}
    assert "latest" in {each.reference.split(":")[0] for each in report.differences}


def test_l4_where_former_files_are_gone_a_row_must_have_stood_in_the_table(
    shop: FeatureStore,
) -> None:
    card = _card_with(shop, "latest", 0.1)
    _overwrite(shop, card)
    serve_all(shop)
    arrive(shop, 2, 400)
    for name in ("latest", "spend"):
        _merge(shop, name)
    report = shop.verify_served(SERVICE)
    # Windows and what is made of them cannot be computed as they were; rows can be found.
    assert set(report.not_comparable) == {FILES_GONE}
    assert report.late["latest:amount"].changed > 0
    assert {each.entity["card_id"] for each in report.differences} == {card}
    assert {each.reference.split(":")[0] for each in report.differences} == {"latest"}
    assert report.compared + sum(report.not_comparable.values()) == CARDS * FEATURES


def test_l4_answers_of_a_definition_whose_table_is_gone_are_counted(shop: FeatureStore) -> None:
    serve_all(shop)
    text = DEFINITIONS.replace('"24h"', '"23h"').replace("_24h", "_23h")
    (shop.services.folder / "definitions" / "cards.py").write_text(text, encoding="utf-8")
    former = view(shop, "spend")
    shop.apply(allow_destructive=True)
    shop.materialize_incremental()
    # The former table is still there, and so is what was answered from it; the code is another.
    there = shop.verify_served(SERVICE)
    assert there.equal
    assert there.not_comparable == {}
    TableDisposal(
        shop.project, shop.services.registry, shop.services.tables, shop.services.online_store
    ).delete(former.name, former.table_fingerprint)
    gone = shop.verify_served(SERVICE)
    assert gone.equal
    assert gone.not_comparable == {GONE_TABLE: 8 * CARDS}
    assert gone.compared == 3 * CARDS
    changed = text.replace("/ pl.col", "/ 2 / pl.col")
    (shop.services.folder / "definitions" / "cards.py").write_text(changed, encoding="utf-8")
    with open_store(shop.services.folder) as again:
        serve(again, ["latest:amount"], {"card_id": [1]})
        report = again.verify_served(SERVICE)
        assert report.not_comparable == {GONE_TABLE: 8 * CARDS}


def test_l4_code_that_is_gone_is_counted(shop: FeatureStore) -> None:
    serve_all(shop)
    changed = DEFINITIONS.replace("/ pl.col", "/ 2 / pl.col")
    (shop.services.folder / "definitions" / "cards.py").write_text(changed, encoding="utf-8")
    with open_store(shop.services.folder) as again:
        report = again.verify_served(SERVICE)
    assert report.not_comparable == {GONE_CODE: CARDS}
    assert (report.compared, report.different) == (10 * CARDS, 0)


def test_rows_that_were_dated_ahead_are_no_skew(shop: FeatureStore) -> None:
    row = payments(random.Random(4))[0] | {"id": "ahead", "card_id": 1, "gone": False}  # noqa: S311
    ahead = row | {"at": NOW + timedelta(minutes=30), "amount": 5.0, "version": 0}
    write(shop.services.folder, "ahead.parquet", [ahead])
    shop.materialize(NOW - timedelta(minutes=1), NOW + timedelta(hours=2), ["latest"])
    shop.services.clock.advance(60 * MINUTE)
    serve(shop, ["latest:amount"], {"card_id": [1, 2]})
    report = shop.verify_served(["latest:amount"])
    assert (report.compared, report.different) == (1, 0)
    assert report.not_comparable == {AHEAD: 1}


def test_samples_are_drawn_from_all_that_was_logged(shop: FeatureStore) -> None:
    for _ in range(3):
        serve_all(shop)
        serve(shop, ["latest:amount"], {"card_id": list(range(CARDS))})
    found = shop.verify_served(sample=50)
    assert found.rows == 50
    again = shop.verify_served(sample=50, seed=0)
    assert (found.compared, found.present) == (again.compared, again.present)
    assert found.compared != shop.verify_served(sample=50, seed=2).compared
    assert shop.verify_served(sample=1000).rows == 6 * CARDS


def test_nothing_logged_is_an_error(shop: FeatureStore) -> None:
    with pytest.raises(RequestError, match="Nothing was logged"):
        shop.verify_served()
    serve_all(shop)
    with pytest.raises(RequestError, match="Nothing was logged"):
        shop.verify_served("card")
    with pytest.raises(RequestError, match="Nothing was logged"):
        shop.verify_served(SERVICE, until=NOW)
    plan = view(shop, "latest")
    shop.services.registry.delete_ledger(shop.project, plan.name, plan.table_fingerprint)
    shop.services.tables.drop(table_id(shop.project, plan))
    serve(shop, ["latest:amount"], {"card_id": [1]})
    with pytest.raises(RequestError, match="Nothing was compared"):
        shop.verify_served(["latest:amount"])
    missing = call(shop, "verify", "--served", "--service", "card")
    assert missing.exit_code == 1
    assert "'cards'" in missing.stderr
    for wrong in (["--served", "--as-of", "2024-01-01T00:00:00Z"], ["--since", NOW.isoformat()]):
        assert call(shop, "verify", *wrong).exit_code == 2
    assert call(shop, "verify").exit_code == 2


def test_teardown_deletes_the_log(shop: FeatureStore) -> None:
    serve_all(shop)
    deleted = shop.teardown()
    assert any(name.startswith("shop/_served/cards/") for name in deleted)
    assert shop.services.tables.names("shop") == []


def test_l4_live_windows_are_computed_up_to_what_had_been_applied(tmp_path: Path) -> None:
    repository = Repository(tmp_path, online="memory:")
    users, asked = {"user": [1, 2, 3, 9]}, ["counts", "last"]
    with repository.store as store:
        repository.history([Click(f"h{n}", n % 4, minutes=40 + n) for n in range(12)])
        store.apply()
        take_all(repository)
        answers = []
        for step in range(2):
            answers.append(serve(store, asked, users))
            repository.push(*[Click(f"s{step}-{n}", n % 4, 30 - step) for n in range(6)])
            take_all(repository)
            store.services.clock.advance(MINUTE)
        answers.append(serve(store, asked, users))
        assert answers[0].to_dict() != answers[-1].to_dict()
        report = store.verify_served()
        assert (report.equal, dict(report.not_comparable)) == (True, {})
        assert report.rows == 3 * 4
        assert report.late["last:note"].changed > 0
        # History that comes later is in the windows now; nobody can tell any more what was then.
        repository.history([Click("late", 1, minutes=20)], "b")
        store.services.clock.advance(MINUTE)
        take_all(repository)
        store.materialize_incremental()
        report = store.verify_served()
        assert report.equal
        assert set(report.not_comparable) == {HISTORY}


def test_l4_live_rows_that_the_table_does_not_hold_yet_are_counted(tmp_path: Path) -> None:
    repository = Repository(tmp_path, online="memory:")
    with repository.store as store:
        store.apply()
        take_all(repository)
        ingestor = repository.ingestor()
        worker = ingestor.worker("clicks", "0")
        repository.push(Click("one", 1))
        while worker.step():
            pass
        serve(store, ["counts", "last"], {"user": [1, 2]})
        report = store.verify_served()
        assert report.equal
        assert report.not_comparable == {BEHIND: 5}
        worker.settle()
        ingestor.follow()
        worker.close()
        report = store.verify_served()
        assert (report.equal, dict(report.not_comparable)) == (True, {})


def test_epochs_say_what_had_been_pushed(shop: FeatureStore) -> None:
    """Runs overlap, fail and are made good; an answer lies somewhere among them."""
    services = shop.services
    plan = view(shop, "latest")
    name = table_id(shop.project, plan)
    arrive(shop, 2, 300)
    arrive(shop, 3, 300)
    versions = [v.version for v in reversed(services.tables.history(name))]
    ids = [v.metadata["run"] for v in reversed(services.tables.history(name))]
    runs = {run.id: run for run in services.registry.runs(shop.project, "latest")}

    def set_run(number: int, state: str, start: int, end: int | None) -> None:
        changed = {"state": state, "started_at_us": start, "finished_at_us": end}
        services.registry.save_run(shop.project, runs[ids[number]].model_copy(update=changed))

    def epoch(asked: int, served: int | None = None) -> Epoch:
        history = TableHistory(shop.project, plan, services.tables, services.registry)
        return history.epoch(asked, asked if served is None else served)

    set_run(0, "succeeded", 100, 200)
    set_run(1, "failed", 300, 400)
    set_run(2, "succeeded", 500, 600)
    one, two, three = versions
    assert epoch(50) == Epoch(-1, -1, None)
    assert epoch(150) == Epoch(-1, one, None)
    assert epoch(200) == Epoch(one, one, 100)
    assert epoch(199, 200) == Epoch(-1, one, None)
    assert epoch(350) == Epoch(one, two, 100)
    assert epoch(450) == Epoch(one, two, 100)  # what it committed is not pushed yet
    assert epoch(550) == Epoch(one, three, 100)
    assert epoch(600) == Epoch(three, three, 500)
    set_run(1, "succeeded", 300, 900)  # which ended after the third one
    assert epoch(700) == Epoch(one, three, 500)
    set_run(1, "running", 300, None)
    assert epoch(1000) == Epoch(one, three, 500)


def test_while_a_run_goes_on_both_states_are_right(shop: FeatureStore) -> None:
    before = serve_all(shop)
    start = shop.services.clock.now_us()
    arrive(shop, 2, 400)
    after = serve_all(shop)
    assert before.to_dict() != after.to_dict()
    # As if the run had begun before the first answer and ended after the second.
    for name in ("latest", "spend"):
        run = shop.services.registry.runs(shop.project, name)[0]
        _stretch(shop, run, start - 1, shop.services.clock.now_us() + 1)
    report = shop.verify_served()
    assert (report.equal, dict(report.not_comparable)) == (True, {})
    card = _card_with(shop, "spend", 0.1)
    with Corruption(shop, "spend", card):
        serve(shop, ["spend"], {"card_id": [card]})
    doubtful = shop.verify_served(["spend"])
    assert set(doubtful.not_comparable) == {RUNNING}


def _stretch(store: FeatureStore, run: Run, start: int, end: int) -> None:
    changed = run.model_copy(update={"started_at_us": start, "finished_at_us": end})
    store.services.registry.save_run(store.project, changed)


def _merge(store: FeatureStore, name: str) -> None:
    """Make one file of a table's files, as a later run may, and delete the former ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore.ports.tables import TableFile

    tables, plan = store.services.tables, view(store, name)
    held = tables.snapshot(table_id(store.project, plan))
    run = store.services.registry.runs(store.project, name)[0]
    added = []
    for period in {file.period for file in held.files}:
        files = [file for file in held.files if file.period == period]
        path = Path(tables.folder(held.table_id)) / f"event_period={period}" / "merged.parquet"
        rows = pa.concat_tables([pq.ParquetFile(file.path).read() for file in files])
        pq.write_table(rows, path)
        low, high = min(f.min_event for f in files), max(f.max_event for f in files)
        size = path.stat().st_size
        relative = f"event_period={period}/merged.parquet"
        added.append(TableFile(relative, period, rows.num_rows, size, low, high))
    tables.commit(
        held.table_id,
        pq.ParquetFile(held.files[0].path).schema_arrow.append(pa.field("event_period", "string")),
        read_version=held.version,
        add=added,
        remove=held.files,
        metadata={**held.metadata, "run": run.id},
    )
    for file in held.files:
        Path(file.path).unlink()
