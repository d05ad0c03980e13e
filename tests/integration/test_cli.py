"""The command line on a repository that `init` began: every command, as text and as JSON.

Most commands are called in this process; what a shell sees (streams, pipes, signals) is tested with
real processes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from featurestore import FeatureStore
from featurestore.cli.app import cli
from featurestore.cli.scaffold import CUSTOMERS, write_repository
from featurestore.clock import FixedClock
from featurestore.errors import StorageError
from featurestore.testing.valkey import wait_until

COMMAND = Path(sys.executable).with_name("featurestore")
SECONDS = 60


def call(folder, *words, code=0, **options):
    """Run a command in this process; return what it printed."""
    result = CliRunner().invoke(cli, ["--repo", str(folder), *words], **options)
    assert result.exit_code == code, result.stderr
    if code == 0:
        assert "Error" not in result.stderr
        return result.stdout
    assert result.stdout == ""
    return result.stderr


def data(folder, *words):
    return json.loads(call(folder, *words, "--output", "json"))


def shell(folder, *words, program=COMMAND):
    """Run a program, the command by default, as a process of its own."""
    return subprocess.run(  # noqa: S603  (our own command, this interpreter or its tools)
        [str(program), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def start(folder, *words, **environment):
    """Begin the command as a process of its own."""
    return subprocess.Popen(  # noqa: S603  (our own command)
        [str(COMMAND), *words],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A repository with everything applied and materialized, for commands that only read."""
    folder = tmp_path_factory.mktemp("repositories") / "shop"
    call(folder.parent, "init", str(folder))
    call(folder, "apply")
    call(folder, "materialize-incremental")
    return folder


@pytest.fixture
def new(tmp_path):
    """A repository that was just begun."""
    call(tmp_path, "init", str(tmp_path / "shop"))
    return tmp_path / "shop"


def test_the_readme_of_a_new_repository_works_in_a_terminal(tmp_path):
    begun = shell(tmp_path, "init", "shop")
    assert (begun.returncode, begun.stderr) == (0, "")
    folder = tmp_path / "shop"
    text = (folder / "README.md").read_text()
    commands = [
        line
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 8
    printed = {}
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "featurestore"
        done = shell(folder, *words)
        assert (done.returncode, done.stderr) == (0, ""), line
        printed[words[0]] = done.stdout
    assert "5 to add" in printed["plan"]
    assert "revision 1" in printed["apply"]
    assert "1,120" in printed["materialize-incremental"]
    assert "200 rows of 9 columns" in printed["get-historical-features"]
    assert printed["get-online-features"].count("PRESENT") == 5
    assert printed["status"].count("serving") == 2
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    ran = shell(folder, "-c", python, program=sys.executable)
    assert "limit_share" in ran.stdout


def test_what_init_says_is_next_works(tmp_path):
    begun = json.loads(call(tmp_path, "init", str(tmp_path / "my shop"), "--output", "json"))
    assert begun["project"] == "my_shop"
    assert {"README.md", ".gitignore", "featurestore.toml"} <= set(begun["files"])
    assert all((tmp_path / "my shop" / name).is_file() for name in begun["files"])
    for line in begun["next"][1:]:
        call(tmp_path / "my shop", *shlex.split(line)[1:])


def test_init_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        text = call(tmp_path, "init", str(target), code=1)
        assert "empty folder" in text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    call(tmp_path, "init", str(tmp_path / "empty"))


def test_init_that_cannot_write_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_repository(tmp_path / "file" / "below", FixedClock(0))


@pytest.mark.parametrize(
    ("folder", "project"), [("Shop-2", "shop_2"), ("größe", "gr_e"), ("...", "features")]
)
def test_a_project_is_called_like_its_folder(tmp_path, folder, project):
    assert write_repository(tmp_path / "x" / folder, FixedClock(0))[0] == project


def test_a_new_repository_is_the_same_everywhere(tmp_path):
    for name in ("one", "two"):
        write_repository(tmp_path / name / "shop", FixedClock(1_700_000_000_000_000))
    for path in sorted((tmp_path / "one").rglob("*.*")):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        if path.is_file():
            assert path.read_bytes() == other.read_bytes()


def test_the_definitions_of_a_new_repository_are_well_formed(new):
    for words in (["check", "--isolated"], ["format", "--check", "--isolated"]):
        done = shell(new, *words, str(new), program=Path(sys.executable).with_name("ruff"))
        assert done.returncode == 0, done.stdout


def test_plan_shows_what_apply_would_do_and_writes_nothing(new):
    found = data(new, "plan")
    assert (found["project"], found["base_revision"], found["destructive"]) == ("shop", 0, False)
    assert [(item["action"], item["kind"], item["name"]) for item in found["changes"]] == [
        ("added", "entity", "customer"),
        ("added", "feature_view", "customer_activity"),
        ("added", "feature_view", "customer_profile"),
        ("added", "on_demand_feature_view", "limit_share"),
        ("added", "feature_service", "purchase_risk"),
    ]
    assert "+ feature view customer_activity" in call(new, "plan").splitlines()
    assert data(new, "list", "changes") == {"changes": []}


def test_apply_says_what_it_did(new):
    applied = data(new, "apply")
    assert (applied["published"], applied["revision"]) == (True, 1)
    assert (applied["rebuilding"], applied["deleted"]) == ([], [])
    again = data(new, "apply")
    assert (again["published"], again["revision"], again["changes"]) == (False, 1, [])
    assert "nothing to apply" in call(new, "apply")


def redefine(folder, before, after):
    path = folder / "definitions" / "customers.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_a_change_that_drops_data_must_be_allowed(new):
    call(new, "apply")
    call(new, "materialize-incremental")
    redefine(new, '"plan", "credit_limit"', '"credit_limit"')
    assert data(new, "plan")["destructive"] is True
    assert "DROPS DATA" in call(new, "plan")
    refused = call(new, "apply", code=1)
    assert "--allow-destructive" in refused
    assert "'plan'" in refused
    text = call(new, "apply", "--allow-destructive")
    assert "apply it with" not in text
    assert "former table until materialized anew: customer_profile" in text
    assert data(new, "status")["views"][1]["state"] == "rebuilding"
    call(new, "materialize-incremental", "--view", "customer_profile")
    assert data(new, "status")["views"][1]["state"] == "serving"


def test_a_wrong_definition_names_file_and_line(new):
    redefine(new, '"0 * * * *"', '"every hour"')
    error = call(new, "plan", code=1)
    assert "definitions/customers.py:" in error
    assert "cron expression" in error


def test_teardown_asks_for_the_name(new):
    call(new, "apply")
    for answer in ("no\n", ""):
        assert "Nothing was deleted" in call(new, "teardown", code=1, input=answer)
    assert len(data(new, "list")["views"]) == 3
    assert "Project 'shop' is deleted" in call(new, "teardown", input="shop\n")
    assert data(new, "list") == {"views": []}
    assert data(new, "teardown", "--yes") == {"project": "shop", "deleted": []}


def test_ctrl_c_at_the_question_deletes_nothing(new):
    call(new, "apply")
    process = start(new, "teardown")
    try:
        asked = ""
        while "go on" not in asked:
            letter = process.stderr.read(1)
            assert letter, asked
            asked += letter
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors.splitlines()[-1]) == (
        130, "Interrupted. Nothing was deleted.",
    )  # fmt: skip
    assert len(data(new, "list")["views"]) == 3


def test_teardown_says_which_tables_it_deleted(new):
    call(new, "apply")
    call(new, "materialize-incremental")
    assert len(data(new, "teardown", "--yes")["deleted"]) == 2


def test_materialize_takes_an_interval_and_reports(new):
    call(new, "apply")
    words = ("materialize", "2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z")
    report = data(new, *words, "--view", "customer_activity")
    (view,) = report["views"]
    assert {key: view[key] for key in view if key.startswith("rows_")} == {
        "rows_read": 1120,
        "rows_written": 1120,
        "rows_pushed": CUSTOMERS,
        "rows_rejected": 0,
        "rows_tied": 0,
    }
    assert (view["view"], view["error"]) == ("customer_activity", None)
    assert report["seconds"] >= view["seconds"] > 0
    lines = call(new, *words).splitlines()
    assert lines[0].split() == ["view", "read", "written", "pushed", "rejected", "tied", "seconds"]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("materialize", "2013-01-01", "2013-01-02"), "no time zone"),
        (("materialize", "yesterday", "2013-01-02T00:00:00Z"), "'start' is no instant"),
        (("materialize", "2013-01-02T00:00:00Z", "2013-01-02T00:00:00Z"), "empty"),
        (("materialize-incremental", "--view", "customer_activty"), "'customer_activity'"),
    ],
)
def test_materialize_refuses_what_makes_no_sense(shop, words, text):
    assert text in call(shop, *words, code=1)


def test_rejected_and_tied_rows_are_warned_of(new):
    path = new / "sources" / "profiles.parquet"
    table = pq.read_table(path)
    odd = table.slice(0, 3).to_pylist()
    odd[0]["customer_id"] = None
    odd[1]["credit_limit"] = 1.0
    odd[2]["changed_at"] = None
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(odd, table.schema)]), path)
    call(new, "apply")
    text = call(new, "materialize-incremental")
    assert "Warning: customer_profile: 2 rows left out" in text
    assert "Warning: customer_profile: 2 rows with the same key and timestamps" in text
    assert "Warning: customer_activity" not in text


def test_a_training_set_is_written(shop, tmp_path):
    out = tmp_path / "training.parquet"
    words = ("--entity-rows", str(shop / "purchases.parquet"), "--features", "purchase_risk")
    found = data(shop, "get-historical-features", *words, "--out", str(out))
    assert (found["rows"], found["path"]) == (200, str(out))
    written, rows = pq.read_table(out), pq.read_table(shop / "purchases.parquet")
    assert written.column_names == found["columns"]
    assert written.select(rows.column_names).equals(rows)
    assert found["columns"][4:] == [
        "plan", "credit_limit", "orders_24h", "mean_order", "limit_share",
    ]  # fmt: skip
    with FeatureStore(shop) as store:
        same = store.get_historical_features(shop / "purchases.parquet", "purchase_risk")
        assert same.to_arrow().equals(written)


def test_a_training_set_is_shown(shop):
    words = ("--entity-rows", str(shop / "purchases.parquet"), "--features", "customer_profile")
    lines = call(shop, "get-historical-features", *words).splitlines()
    assert lines[0].split()[-2:] == ["plan", "credit_limit"]
    assert len(lines) == 22
    assert lines[-1] == "180 more rows; --out FILE.parquet writes all."
    assert len(data(shop, "get-historical-features", *words)["rows"]) == 200


def test_historical_options_reach_the_store(shop):
    sql = "SELECT customer_id, changed_at AS seen FROM 'sources/profiles.parquet'"
    found = data(
        shop, "get-historical-features", "--sql", sql, "--timestamp-column", "seen",
        "--features", "customer_profile:plan, customer_activity:orders_24h",
        "--full-feature-names", "--include-timestamps", "--knowledge", "known",
    )  # fmt: skip
    assert set(found["columns"]) == {
        "customer_id", "seen", "customer_profile__plan", "customer_activity__orders_24h",
        "customer_profile__event_timestamp", "customer_activity__event_timestamp",
        "customer_profile__created_timestamp", "customer_activity__created_timestamp",
    }  # fmt: skip
    for row in found["rows"]:
        assert row["customer_profile__event_timestamp"] == row["seen"]


def test_entity_rows_may_be_csv(shop, tmp_path):
    rows = tmp_path / "it's rows.csv"
    rows.write_text("customer_id,event_timestamp,amount\n1,2100-01-01T00:00:00Z,10.5\n")
    found = data(shop, "get-historical-features", "--entity-rows", str(rows),
                 "--features", "purchase_risk")  # fmt: skip
    assert found["rows"][0]["plan"] == "business"
    assert found["rows"][0]["event_timestamp"] == "2100-01-01T00:00:00Z"


def test_explain_shows_the_plan_and_runs_nothing(shop, tmp_path):
    words = ("--entity-rows", str(shop / "purchases.parquet"), "--features", "purchase_risk")
    out = tmp_path / "training.parquet"
    text = call(shop, "get-historical-features", *words, "--explain", "--out", str(out))
    assert "join: customer_profile" in text
    assert not out.exists()
    assert "customer_profile" in data(shop, "get-historical-features", *words, "--explain")["plan"]


def test_what_is_missing_is_materialized_on_request(new):
    call(new, "apply")
    words = ("--entity-rows", str(new / "purchases.parquet"), "--features", "customer_profile")
    before = data(new, "get-historical-features", *words)["rows"]
    assert {row["plan"] for row in before} == {None}
    after = data(new, "get-historical-features", *words, "--materialize-missing")["rows"]
    assert None not in {row["plan"] for row in after}


ONLINE = ("get-online-features", "--features", "purchase_risk", "--request", "amount=100")


def test_online_features_as_json(shop):
    found = data(shop, *ONLINE, "--entity", "customer_id=1", "--entity", "customer_id=999")
    assert set(found) == {"as_of", "service", "fingerprints", "rows"}
    assert found["service"] == "purchase_risk"
    assert set(found["fingerprints"]) == {"customer_profile", "customer_activity", "limit_share"}
    known, unknown = found["rows"]
    assert known["keys"] == {"customer_id": 1}
    assert known["values"]["plan"] == "business"
    assert set(known["statuses"].values()) == {"PRESENT"}
    assert known["event_timestamps"]["plan"].endswith("Z")
    assert unknown["values"]["plan"] is None
    assert unknown["statuses"]["plan"] == "NOT_FOUND"
    assert unknown["event_timestamps"]["plan"] is None
    with FeatureStore(shop) as store:
        same = store.get_online_features(
            "purchase_risk", [{"customer_id": 1}], request={"amount": 100.0}
        )
    assert known["values"] == {name: same.to_dict()[name][0] for name in same.feature_names}


def test_online_features_as_text(shop):
    lines = call(shop, *ONLINE, "--entity", "customer_id=1").splitlines()
    assert lines[0].startswith("As of 2")
    assert lines[1].split() == ["customer_id", "feature", "value", "status", "event", "timestamp"]
    assert lines[2].split()[:4] == ["1", "plan", "business", "PRESENT"]
    assert len(lines) == 7


def test_requests_go_to_all_entities_or_one_to_each(shop):
    entities = ("--entity", "customer_id=1", "--entity", "customer_id=1")
    one = data(shop, *ONLINE, *entities)["rows"]
    assert one[0]["values"] == one[1]["values"]
    each = data(shop, *ONLINE, "--request", "amount=0", *entities)["rows"]
    assert each[0]["values"]["limit_share"] > each[1]["values"]["limit_share"]
    three = (*ONLINE, "--request", "amount=0", "--request", "amount=0")
    assert "number of rows" in call(shop, *three, *entities, code=1)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--features", "purchase_risk"), 2, "--entity customer_id=..."),
        (("--features", "purchase_risk", "--entity", "customer_id=1"), 2, "--request amount=..."),
        (("--features", "customer_profile", "--entity", "customer_id=x"), 1, "read as int64"),
        (("--features", "customer_profile", "--entity", "custmer_id=1"), 1, "'customer_id'"),
        (("--features", "purchase_rsk", "--entity", "customer_id=1"), 1, "'purchase_risk'"),
        (("--features", "customer_profile:pln", "--entity", "customer_id=1"), 1, "plan"),
        (
            ("--features", "customer_profile", "--entity", "customer_id=1", "--as-of",
             "2013-01-01"),
            1,
            "no time zone",
        ),
        (
            ("--features", "customer_profile", "--entity", "customer_id=1", "--as-of",
             "2013-01-01T00:00:00Z"),
            1,
            "newer",
        ),
    ],
)  # fmt: skip
def test_online_lookups_that_make_no_sense(shop, words, code, text):
    assert text in call(shop, "get-online-features", *words, code=code)


def test_status_as_json(shop):
    found = data(shop, "status")
    assert found["project"] == "shop"
    activity, profile = found["views"]
    assert set(activity) == {
        "view", "at", "fingerprint", "state", "newest_event", "freshness_seconds", "covered",
        "last_run", "last_success", "failed_runs", "schedule", "next_run", "late",
        "rows_offline", "rows_online", "online", "notes",
    }  # fmt: skip
    assert (activity["view"], activity["state"], activity["late"]) == (
        "customer_activity", "serving", False,
    )  # fmt: skip
    assert (activity["rows_offline"], activity["rows_online"]) == (1120, CUSTOMERS)
    assert activity["last_run"]["state"] == "succeeded"
    assert activity["last_run"]["started_at"].endswith("Z")
    seen = datetime.fromisoformat(activity["at"]) - datetime.fromisoformat(activity["newest_event"])
    assert activity["freshness_seconds"] == pytest.approx(seen.total_seconds())
    assert datetime.fromisoformat(activity["next_run"]).minute == 0
    assert (profile["schedule"], profile["next_run"]) == (None, None)


def test_status_tells_what_is_wrong(new):
    call(new, "apply")
    (new / "sources" / "profiles.parquet").unlink()
    call(new, "materialize-incremental", code=1)
    text = call(new, "status")
    assert "customer_profile: last run failed: SourceNotFoundError: " in text
    views = {view["view"]: view for view in data(new, "status")["views"]}
    assert (views["customer_profile"]["failed_runs"], views["customer_profile"]["state"]) == (
        1, "empty",
    )  # fmt: skip
    runs = call(new, "list", "runs")
    assert re.search(r"customer_profile +failed", runs)
    assert "SourceNotFoundError" in runs


def test_status_without_the_online_store(shop, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE_URL", "redis://127.0.0.1:1/0")
    found = data(shop, "status")["views"]
    assert [view["rows_online"] for view in found] == [None, None]
    assert [view["rows_offline"] for view in found] == [1120, 29]
    assert "customer_profile: The online store" in call(shop, "status")


def test_an_online_store_that_is_gone_is_4(shop, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_ONLINE_URL", "redis://127.0.0.1:1/0")
    text = call(shop, *ONLINE, "--entity", "customer_id=1", code=4)
    assert "127.0.0.1:1" in text


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("views", ["customer_activity", "customer_profile", "limit_share"]),
        ("services", ["purchase_risk"]),
        ("entities", ["customer"]),
        ("sources", ["activity", "profiles"]),
    ],
)
def test_list_what_is_applied(shop, kind, names):
    assert [item["name"] for item in data(shop, "list", kind)[kind]] == names
    lines = call(shop, "list", kind).splitlines()
    assert [line.split()[0] for line in lines[1:]] == names


def test_list_what_happened(shop):
    versions = data(shop, "list", "versions")["versions"]
    assert {(item["kind"], item["revision"]) for item in versions} == {
        (kind, 1)
        for kind in ("entity", "feature_view", "on_demand_feature_view", "feature_service")
    }
    assert len(data(shop, "list", "versions", "--limit", "2")["versions"]) == 2
    (change,) = data(shop, "list", "changes")["changes"]
    assert "added feature_view customer_profile" in change["summary"]
    runs = data(shop, "list", "runs", "--view", "customer_profile")["runs"]
    assert {run["view"] for run in runs} == {"customer_profile"}
    assert {"id", "kind", "state", "attempt", "rows_written", "error", "start", "end"} <= set(
        runs[0]
    )
    for kind in ("versions", "changes", "runs"):
        assert len(call(shop, "list", kind).splitlines()) > 1


def test_nothing_applied_lists_nothing(new):
    assert call(new, "list") == "No views are applied.\n"
    assert call(new, "list", "runs") == "No runs.\n"
    assert "No view is applied" in call(new, "status")
    assert "No view is applied" in call(new, "materialize-incremental")


def test_describe_tells_everything_of_a_view(shop):
    (view,) = data(shop, "describe", "customer_activity")["definitions"]
    assert view["kind"] == "feature_view"
    assert view["join_keys"] == [{"name": "customer_id", "dtype": "int64"}]
    assert {f["name"]: f["dtype"] for f in view["features"]} == {
        "orders_24h": "int64", "spend_24h": "float64", "mean_order": "float64",
    }  # fmt: skip
    assert view["source"]["path"] == "sources/activity.parquet"
    assert (view["ttl_seconds"], view["schedule"], view["owner"]) == (
        172_800, "0 * * * *", "accounts",
    )  # fmt: skip
    assert view["used_by"] == [
        "on_demand_feature_view limit_share", "feature_service purchase_risk",
    ]  # fmt: skip
    assert view["versions"][0]["fingerprint"] == view["fingerprint"]
    text = call(shop, "describe", "customer_activity")
    for part in ("0 * * * *", "2 d", "mean_order", "nullif", "purchase_risk", view["fingerprint"]):
        assert part in text


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("limit_share", "on_demand_feature_view", ["amount", "customer_activity:spend_24h"]),
        ("purchase_risk", "feature_service", ["customer_profile:plan", "limit_share:limit_share"]),
        ("customer", "entity", ["customer_id", "feature_view customer_profile"]),
        ("activity", "file_source", ["sources/activity.parquet", "recorded_at"]),
    ],
)
def test_describe_knows_every_kind(shop, name, kind, parts):
    (item,) = data(shop, "describe", name)["definitions"]
    assert (item["kind"], item["name"]) == (kind, name)
    text = call(shop, "describe", name)
    assert [part for part in parts if part not in text] == []


def test_describe_suggests_the_near_miss(shop):
    assert "Did you mean 'customer_activity'?" in call(shop, "describe", "customr_activity", code=1)


def test_a_server_is_asked_by_the_same_commands(shop):
    process = start(shop, "serve", "--address", "127.0.0.1:0", "--output", "json")
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        log = (json.loads(line) for line in process.stderr)
        address = next(line for line in log if line["event"] == "serving")["address"]
        local = data(shop, *ONLINE, "--entity", "customer_id=3")
        asked = data("/", *ONLINE, "--entity", "customer_id=3", "--server", address)
        assert asked["rows"] == local["rows"]
        assert asked["fingerprints"] == local["fingerprints"]
        by_name = ("get-online-features", "--features", "customer_profile", "--server", address)
        assert len(data("/", *by_name, "--entity", "customer_id=3")["rows"][0]["values"]) == 2
        info = data("/", "status", "--server", address)
        assert (info["project"], info["revision"]) == ("shop", 1)
        assert info["views"]["customer_profile"]["join_keys"] == {"customer_id": "int64"}
        assert info["views"]["limit_share"]["request"] == {"amount": "float64"}
        assert "purchase_risk" in call("/", "status", "--server", address)
        error = call(
            "/", "get-online-features", "--features", "nosuch", "--server", address, code=1
        )
        assert "'nosuch'" in error
        # After an on-demand view was computed: Polars changes how signals arrive.
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
    assert "cannot be reached" in call("/", "status", "--server", address, code=4)


def test_an_address_that_is_taken_is_a_clear_error(shop):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = shell(shop, "serve", "--address", address)
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_whoever_stops_reading_our_output_gets_no_traceback(shop):
    for command in ("list versions", "list runs --output json", "describe customer"):
        line = f"set -o pipefail; {shlex.quote(str(COMMAND))} {command} | true"
        done = shell(shop, "-c", line, program="bash")
        assert (done.returncode, done.stderr) == (0, ""), command


def test_closed_streams_are_no_trouble(shop):
    line = f"{shlex.quote(str(COMMAND))} list >&- 2>&-"
    assert shell(shop, "-c", line, program="bash").returncode == 0


SLOW = """
from featurestore import Entity, FeatureView, Field, FileSource

key = Entity(name="key", join_keys=["id"])
quick = FeatureView(
    name="quick",
    entities=[key],
    source=FileSource(
        name="quick",
        query="SELECT 1::BIGINT AS id, 1.0::DOUBLE AS x, TIMESTAMPTZ '2024-01-01 00:00:00Z' AS t",
        event_timestamp="t",
    ),
    features=["x"],
)
slow = FeatureView(
    name="slow",
    entities=[key],
    source=FileSource(
        name="slow",
        query="SELECT range AS id, sqrt(range) AS x, TIMESTAMPTZ '2024-01-01 00:00:00Z' AS t"
        " FROM range(ROWS)",
        event_timestamp="t",
    ),
    features=["x"],
)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_materialization_says_what_was_done_and_can_be_run_again(tmp_path, number):
    (tmp_path / "definitions").mkdir()
    (tmp_path / "featurestore.toml").write_text('project = "p"\n')
    definitions = tmp_path / "definitions" / "views.py"
    definitions.write_text(SLOW.replace("ROWS", "500_000_000"))
    call(tmp_path, "apply")
    process = start(tmp_path, "materialize-incremental", FEATURESTORE_OFFLINE_MEMORY_LIMIT="1GiB")
    try:
        with FeatureStore(tmp_path) as store:

            def states():
                found = store.services.registry.runs("p")
                return {run.view: run.state for run in found}

            wait_until(
                lambda: states() == {"quick": "succeeded", "slow": "running"}, seconds=SECONDS
            )
            process.send_signal(number)
            out, err = process.communicate(timeout=SECONDS)
            assert states() == {"quick": "succeeded", "slow": "failed"}
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.startswith("Interrupted. Done: quick. Stopped, and not marked done: slow.")
    assert len(err.splitlines()) == 1
    definitions.write_text(SLOW.replace("ROWS", "1000"))
    call(tmp_path, "apply")
    call(tmp_path, "materialize-incremental")
    assert [view["rows_offline"] for view in data(tmp_path, "status")["views"]] == [1, 1000]
