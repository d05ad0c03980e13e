"""Keys of those who open a repository: each verb asks, and what is denied touches nothing."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import structlog
from structlog.testing import capture_logs

from featurestore import FeatureStore, OnlineClient
from featurestore.access.gate import OPEN
from featurestore.access.key_ring import KeyRing
from featurestore.cli.serving import _server
from featurestore.clock import FixedClock
from featurestore.errors import (
    AccessDeniedError,
    FeatureNotFoundError,
    RequestError,
    SettingsError,
    UnauthenticatedError,
)
from featurestore.model.declarations import FeatureSelection
from featurestore.model.settings import AccessSettings, ServingSettings
from featurestore.services.columns import InputRows
from featurestore.serving.requests import ReadRequest
from featurestore.serving.security.calls import Call
from featurestore.serving.served_log import ServedLogObserver
from featurestore.settings_file import load_settings
from featurestore.store import BaseStore
from tests.guarded import AS_OF, AT, KEY_OF_ENTITY, VERBS, Guarded, entity_rows, training

NOTHING = "apply:shop/view/nothing"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return Guarded.make(tmp_path_factory.mktemp("template"))


@pytest.fixture
def shop(template, tmp_path):
    return template.copy(tmp_path)


class Untouchable:
    """Services that nobody may ask for anything."""

    def __getattr__(self, name):
        raise AssertionError(f"'{name}' was touched")


@pytest.mark.parametrize(("verb", "call", "scope"), VERBS, ids=[f"{v}-{s}" for v, _, s in VERBS])
def test_a_denied_verb_names_the_scope_and_touches_nothing(shop, verb, call, scope):
    action, _, what = scope.partition(":")
    other = "read_online" if action != "read_online" else "read_offline"
    with shop.open(NOTHING, f"{other}:{what}") as store:
        services, store.services = store.services, Untouchable()
        with pytest.raises(AccessDeniedError) as denied:
            call(store)
        store.services = services
        assert denied.value.allowed == scope
        assert denied.value.exit_code == 1
    (line,) = shop.audit()
    assert (line["method"], line["status"]) == (verb, "PERMISSION_DENIED")
    assert line["missing"] == scope
    assert line["who"].endswith("(tests)")


@pytest.mark.parametrize(("verb", "call", "scope"), VERBS, ids=[f"{v}-{s}" for v, _, s in VERBS])
def test_one_scope_is_all_that_a_verb_takes(shop, verb, call, scope):
    with shop.open(scope) as store:
        call(store)
    (line,) = shop.audit()
    assert (line["method"], line["status"], line["project"]) == (verb, "OK", "shop")


def test_every_verb_asks():
    asked = {verb for verb, _, _ in VERBS} | {"apply", "plan", "status"}
    asked |= {"get_served_features", "verify_served"}
    verbs = {name for name, value in vars(BaseStore).items() if callable(value)}
    assert {name for name in verbs if not name.startswith("_")} == asked | {"close"}


def test_without_the_setting_nobody_is_asked(template, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_API_KEY", "no key at all")
    with FeatureStore(template.folder, api_key="neither") as store:
        assert store.gate is OPEN
        assert training(store, ["users:score"])["score"] == [0.5, 1.5]


def test_an_audit_without_keys_asks_nobody(shop):
    text = (shop.folder / "featurestore.toml").read_text()
    (shop.folder / "featurestore.toml").write_text(text.replace('keys_file = "keys/keys.json"', ""))
    with FeatureStore(shop.folder) as store:
        store.status()
        assert not store.gate.asks
    (line,) = shop.audit()
    assert (line["who"], line["method"], line["status"]) == ("anyone", "status", "OK")


# Who opens it.


def test_a_repository_does_not_open_without_a_key(shop, monkeypatch):
    shop.key("*:shop")
    with pytest.raises(UnauthenticatedError, match="without an API key") as refused:
        FeatureStore(shop.folder)
    assert "FEATURESTORE_API_KEY" in refused.value.allowed
    monkeypatch.setenv("FEATURESTORE_API_KEY", shop.key("read_offline:shop") + "\n")
    with FeatureStore(shop.folder) as store:
        assert store.plan().changes == ()
    refused, plan = shop.audit()
    assert (refused["method"], refused["status"]) == ("open", "UNAUTHENTICATED")
    assert (plan["method"], plan["status"]) == ("plan", "OK")


def test_who_hands_in_a_key_is_not_who_the_variable_says(shop, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_API_KEY", shop.key("*:shop"))
    with shop.open("read_offline:shop") as store, pytest.raises(AccessDeniedError):
        store.teardown()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda _: "fs_no_key", "none of ours"),
        (lambda _: f"fs_{'0' * 12}_{'0' * 64}", "not known"),
        (lambda shop: shop.key("*:shop")[:-1] + "x", "none of ours"),
        (lambda shop: shop.key("*:shop")[:16] + "0" * 64, "not known"),
        (lambda shop: shop.keys(FixedClock(0)).create("a", ["*:shop"], 1)[0], "has expired"),
    ],
    ids=["no key", "unknown", "damaged", "a wrong secret", "expired"],
)
def test_a_key_that_is_not_valid_opens_nothing(shop, made, says):
    key = made(shop)
    with pytest.raises(UnauthenticatedError, match=says) as refused:
        FeatureStore(shop.folder, api_key=key)
    assert key not in repr(refused.value) + str(refused.value)
    assert shop.audit()[0]["reason"] == refused.value.what


def test_a_key_of_another_project_opens_nothing(shop):
    with pytest.raises(AccessDeniedError, match="project 'shop'") as denied:
        shop.open("*:shops", "*:sho", "read_offline:bank/view/users")
    assert "read_offline:shop" in denied.value.allowed
    (line,) = shop.audit()
    assert line["who"].startswith("key:")
    assert line["status"] == "PERMISSION_DENIED"


def test_a_key_is_refused_as_soon_as_it_is_revoked(shop):
    key = shop.key("*:shop")
    with FeatureStore(shop.folder, api_key=key) as store:
        assert training(store, ["users:score"])["score"] == [0.5, 1.5]
        shop.keys().revoke(key)
        store.services, services = Untouchable(), store.services
        for _, call, _ in VERBS:
            with pytest.raises(UnauthenticatedError, match="revoked"):
                call(store)
        store.services = services


def test_a_key_expires_while_a_store_is_open(shop):
    clock = FixedClock(1_000_000)
    key = shop.keys(clock).create("a", ["*:shop"], 2_000_000)[0]
    with FeatureStore(shop.folder, api_key=key, clock=clock) as store:
        store.plan()
        clock.advance(1_000_000)
        with pytest.raises(UnauthenticatedError, match="expired"):
            store.plan()


def test_a_file_of_keys_that_is_gone_lets_nobody_in(shop):
    with shop.open("*:shop") as store:
        shop.keys().path.unlink()
        with pytest.raises(UnauthenticatedError, match="not known"):
            store.plan()


def test_a_damaged_file_leaves_those_who_were_known_and_is_told(shop):
    key = shop.key("*:shop")
    with FeatureStore(shop.folder, api_key=key) as store:
        shop.keys().path.write_text("{")
        with capture_logs() as logs:
            store.plan()
            store.plan()
    assert [line["part"] for line in logs if line["event"] == "unavailable"] == ["API keys"]
    with pytest.raises(SettingsError, match="cannot be read"):
        FeatureStore(shop.folder, api_key=key)


# What is read.


def test_a_key_for_one_view_gets_its_training_set_and_no_other(shop):
    with shop.open("read_offline:shop/view/users") as store:
        assert training(store, ["users:score"])["score"] == [0.5, 1.5]
        for features, missing in [
            (["pays:amount"], "view/pays"),
            (["users:score", "pays:amount"], "view/pays"),
            (["doubled:twice"], "view/doubled"),
            ("ranking", "service/ranking"),
            ([FeatureSelection(view="pays", features=None, alias_name="users")], "view/pays"),
            (["nowhere:at_all"], "view/nowhere"),
        ]:
            with pytest.raises(AccessDeniedError) as denied:
                store.get_historical_features(entity_rows(1), features)
            assert denied.value.allowed == f"read_offline:shop/{missing}"


def test_an_on_demand_view_takes_what_it_is_computed_from(shop):
    with shop.open("read_offline:shop/view/doubled") as store:
        with pytest.raises(AccessDeniedError) as denied:
            training(store, ["doubled:twice"])
        assert denied.value.allowed == "read_offline:shop/view/users"
    with shop.open("read_offline:shop/view/doubled", "read_offline:shop/view/users") as store:
        assert training(store, ["doubled:twice"])["twice"] == [1.0, 3.0]


def test_materializing_what_is_missing_is_writing(shop):
    scopes = ["read_offline:shop/service/ranking"]
    with shop.open(*scopes) as store, pytest.raises(AccessDeniedError) as denied:
        training(store, "ranking", materialize_missing=True)
    assert denied.value.allowed == "write:shop/view/users"
    with shop.open(*scopes, "write:shop/view/users") as store:
        found = training(store, "ranking", materialize_missing=True)
    assert found["twice"] == [1.0, 3.0]


@pytest.mark.parametrize("features", [[], None, [1], 7, ["users:nothing"], "nothing"])
def test_what_makes_no_sense_is_told_as_ever(shop, features):
    open_to_all = load_settings(shop.folder).model_copy(update={"access": AccessSettings()})
    with (
        FeatureStore(shop.folder, settings=open_to_all) as store,
        pytest.raises((RequestError, TypeError)) as expected,
    ):
        store.get_historical_features(entity_rows(1), features)
    with shop.open("*:shop") as store, pytest.raises(type(expected.value)):
        store.get_historical_features(entity_rows(1), features)


def serve(store, features):
    """Answer a lookup and log it, as a server does."""
    services = store.services
    observer = ServedLogObserver(
        services.served_log,
        services.state.get,
        ServingSettings(served_log_sample=1.0, served_log_seconds=0.01),
        services.clock,
        structlog.get_logger(),
    )
    given = InputRows.of([{"user": 1}])
    answer = services.online.get_online_features(features, given)
    asked = ReadRequest(features, given, None, None, full_feature_names=False, sent={})
    observer.answered(Call("x", []), asked, answer)
    observer.close()


def test_what_was_served_takes_the_scope_of_the_service_or_of_all_views(shop):
    with shop.open("*:shop") as store:
        serve(store, "ranking")
        serve(store, ["users:score"])
        assert store.verify_served().different == 0
    everything = "read_offline:shop"
    with shop.open("read_offline:shop/service/ranking") as store:
        assert store.get_served_features("ranking").to_arrow().num_rows == 1
        assert store.verify_served("ranking").rows == 1
        for features, missing in [
            ("billing", "read_offline:shop/service/billing"),
            (["users:score"], "read_offline:shop/view/users"),
            (None, everything),
        ]:
            with pytest.raises(AccessDeniedError) as denied:
                store.verify_served(features)
            assert denied.value.allowed == missing
            if features is not None:
                with pytest.raises(AccessDeniedError):
                    store.get_served_features(features)
    with shop.open("read_offline:shop/view/users") as store:
        assert store.get_served_features(["users:score"]).to_arrow()["score"].to_pylist() == [0.5]


def test_an_alias_in_the_log_does_not_stand_for_the_view_that_it_is_called_after(shop):
    aliased = FeatureSelection(view="pays", features=("amount",), alias_name="users")
    with shop.open("*:shop") as store:
        serve(store, [aliased])
    with shop.open("read_offline:shop/view/users") as store:
        for read in (store.get_served_features, store.verify_served):
            with pytest.raises(AccessDeniedError) as denied:
                read(["users:amount"])
            assert denied.value.allowed == "read_offline:shop/view/pays"
    with shop.open("read_offline:shop/view/*") as store:
        found = store.get_served_features(["users:amount"]).to_arrow()
        assert found["amount"].to_pylist() == [0.5]


# What is applied.


MORE = 'more = FeatureView(name="more", entities=[user], source=clicks, features=["note"])\n'
CHANGES = {
    "a view": (
        [('features=["amount"]', 'features=["amount"], description="what they pay"')],
        ["view/pays"],
    ),
    "a source": ([("bills.parquet", "./bills.parquet")], ["source/bills", "view/pays"]),
    "an on-demand view": ([("* 2", "* 3")], ["view/doubled"]),
    "a service": ([("[users, doubled]", "[users]")], ["service/ranking"]),
    "an entity": (
        [('join_keys=["user"])', 'join_keys=["user"], description="who")')],
        ["view/last", "view/pays", "view/users"],
    ),
    "a new view": (
        [("last = Fea", f"{MORE}last = Fea")],
        ["view/more"],
    ),
    "nothing": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_applying_takes_the_scope_of_each_definition_that_changes(shop, change):
    edits, wanted = CHANGES[change]
    text = shop.definitions.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    shop.definitions.write_text(text)
    scopes = [f"apply:shop/{name}" for name in wanted]
    for missing in scopes:
        left = [scope for scope in scopes if scope != missing]
        with shop.open("*:shop/view/nothing", *left) as store:
            before = store.services.registry.revision("shop")
            with pytest.raises(AccessDeniedError) as denied:
                store.apply()
            assert denied.value.allowed == missing
            assert store.services.registry.revision("shop") == before
    with shop.open("*:shop/view/nothing", *scopes) as store:
        result = store.apply()
        assert result.published is bool(wanted)
        (newest,) = store.services.registry.changes("shop", 1)
        assert ("(tests)" in newest.applied_by) is bool(wanted)
    line = shop.audit()[-1]
    assert (line["method"], line["status"]) == ("apply", "OK")
    assert sorted(line["changes"]) == wanted


def test_removing_a_view_takes_its_scope_and_that_of_its_source(shop):
    text = shop.definitions.read_text()
    head, _, tail = text.partition("pays = FeatureView")
    shop.definitions.write_text(
        head
        + tail[tail.index("last = Fea") :].replace(
            'billing = FeatureService(name="billing", features=[pays])', ""
        )
    )
    scopes = [f"apply:shop/{name}" for name in ("service/billing", "source/bills", "view/pays")]
    for missing in scopes:
        with shop.open(*(s for s in scopes if s != missing)) as store:
            with pytest.raises(AccessDeniedError) as denied:
                store.apply(allow_destructive=True)
            assert denied.value.allowed == missing
            assert store.services.tables.names("shop/pays")
    with shop.open(*scopes) as store:
        assert [name.partition("/")[2].partition("/")[0] for name in
                store.apply(allow_destructive=True).deleted] == ["pays"]  # fmt: skip


def test_a_plan_may_be_seen_by_anybody_of_the_project(shop):
    shop.definitions.write_text(shop.definitions.read_text().replace("* 2", "* 3"))
    with shop.open("read_online:shop/service/x") as store:
        assert [item.name for item in store.plan().changes] == ["doubled"]
        assert {view.view for view in store.status()} == {"users", "pays", "last"}


def test_a_teardown_takes_the_whole_project(shop):
    parts = [f"apply:shop/{kind}" for kind in ("view", "service", "source")]
    with shop.open(*parts) as store:
        with pytest.raises(AccessDeniedError, match="the whole project") as denied:
            store.teardown()
        assert denied.value.allowed == "apply:shop"
        assert store.status()


# What is written down.


def test_the_audit_tells_who_did_what_and_no_keys_of_entities(shop):
    with shop.open("*:shop") as store:
        training(store, ["users:score", "pays:amount"])
        store.get_online_features("ranking", [{"user": KEY_OF_ENTITY}])
        store.explain("users:score", {"user": KEY_OF_ENTITY})
        store.push("clicks", [shop.click("b"), shop.click("c")])
        store.materialize(AT, AS_OF, ["users"])
        store.materialize_incremental()
        store.verify("billing")
        with pytest.raises(FeatureNotFoundError):
            store.push("clack", [shop.click("d")])
    lines = shop.audit()
    told = [(x["method"], x["status"], x.get("rows")) for x in lines]
    assert told == [
        ("get_historical_features", "OK", 2),
        ("get_online_features", "OK", 1),
        ("explain", "OK", None),
        ("push", "OK", 2),
        ("materialize", "OK", 0),
        ("materialize_incremental", "OK", 0),
        ("verify", "OK", 2),
        ("push", "ERROR", None),
    ]
    assert lines[0]["views"] == ["users", "pays"]
    assert lines[1]["service"] == lines[6]["service"].replace("billing", "ranking") == "ranking"
    assert (lines[3]["source"], lines[4]["views"]) == ("clicks", ["users"])
    assert lines[5]["views"] == ["*"]
    assert lines[7]["error"] == "FeatureNotFoundError"
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert all(line["latency_ms"] >= 0 and line["at"] and line["peer"] for line in lines)
    text = (shop.folder / "audit.jsonl").read_text()
    assert str(KEY_OF_ENTITY) not in text
    assert "planted" not in text


def test_the_trail_of_a_program_that_never_closes_its_store_is_written(shop):
    code = "import sys; from featurestore import FeatureStore; FeatureStore(sys.argv[1]).plan()"
    ran = subprocess.run(  # noqa: S603  (our own interpreter)
        [sys.executable, "-c", code, str(shop.folder)],
        env={"FEATURESTORE_API_KEY": shop.key("*:shop")},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line["method"] for line in shop.audit()] == ["plan"]


def test_the_trail_of_a_store_that_is_dropped_is_written(shop):
    shop.open("*:shop").plan()
    gc.collect()
    assert [line["method"] for line in shop.audit()] == ["plan"]


def test_an_audit_without_a_folder_is_told(shop, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ACCESS_AUDIT_LOG", "nowhere/audit.jsonl")
    with pytest.raises(SettingsError) as refused:
        shop.open("*:shop")
    assert refused.value.where == "access.audit_log"


def test_no_secret_is_found_anywhere(shop):
    key = shop.key("read_offline:shop/view/users")
    secret = key.split("_")[2]
    said = []
    with FeatureStore(shop.folder, api_key=key) as store:
        gate = store.gate
        said += [repr(x) + str(x) for x in (store, gate, store.services, store.services.settings)]
        said += [repr(value) for value in vars(gate).values()]
        training(store, ["users:score"])
        with pytest.raises(AccessDeniedError) as denied:
            store.teardown()
        shop.keys().revoke(key)
        with pytest.raises(UnauthenticatedError) as refused:
            store.plan()
    for error in (denied.value, refused.value):
        said += [repr(error), str(error), str(vars(error))]
    assert secret not in "".join(said)
    for path in shop.folder.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    text = (shop.folder / "featurestore.toml").read_text()
    (shop.folder / "featurestore.toml").write_text(f'{text}api_key = "{key}"\n')
    with pytest.raises(SettingsError, match="secret") as told:
        FeatureStore(shop.folder)
    assert secret not in str(told.value)
    assert "FEATURESTORE_API_KEY" in told.value.hint
    (shop.folder / "featurestore.toml").write_text(f'api_key = "{key}"\n{text}')
    with pytest.raises(SettingsError) as told:
        FeatureStore(shop.folder)
    assert secret not in str(told.value)


def test_the_server_of_a_repository_asks_its_callers_and_not_its_own_key(shop):
    with shop.open(NOTHING) as store:
        serving = ServingSettings(address="127.0.0.1:0", keys_file="keys/keys.json")
        pushing, reading = shop.key("write:shop/source/clicks"), shop.key("read_online:shop")
        server = _server(store, serving, None, share_port=False)
        address = server.start()
        try:
            with OnlineClient(address, api_key=pushing) as client:
                assert client.push("clicks", [shop.click("b")]).accepted == 1
                with pytest.raises(AccessDeniedError):
                    client.get_online_features(["users:score"], [{"user": 1}])
            with OnlineClient(address, api_key=reading) as client:
                found = client.get_online_features(["users:score"], [{"user": 1}])
                assert found.to_dict()["score"] == [0.5]
                with pytest.raises(AccessDeniedError):
                    client.push("clicks", [shop.click("b")])
        finally:
            server.stop()


def test_keys_are_read_once_as_long_as_their_file_is_the_same(shop, monkeypatch):
    with shop.open("*:shop") as store:
        ring = store.gate._ring
        assert isinstance(ring, KeyRing)
        monkeypatch.setattr(ring._file, "read", lambda: pytest.fail("read again"))
        store.status()
        store.plan()
