"""The SQL registry among processes: races, locks, SIGKILL, broken and read-only files.

Real processes run `registry_worker.py`. Races and SIGKILL are shown on PostgreSQL too when
FEATURESTORE_TEST_POSTGRES_URL names a database.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.errors import ConflictError, RegistryUnavailableError, StorageError
from featurestore.testing.registry_samples import ADA, apply, full_state, view_plan, with_views
from tests.integration.worker_process import WorkerProcess

POSTGRES = os.environ.get("FEATURESTORE_TEST_POSTGRES_URL", "")


class Worker(WorkerProcess):
    """A process of `registry_worker` at work."""

    program = Path(__file__).with_name("registry_worker.py")

    def expect(self, word: str) -> None:
        assert self.line() == word

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict:
        return json.loads(self.line())


@pytest.fixture
def project() -> str:
    return f"p{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path: Path, project: str):
    """A registry that nobody has made yet: a new file, or a schema without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/data/registry.db"
        return
    if not POSTGRES:
        pytest.skip("FEATURESTORE_TEST_POSTGRES_URL names no PostgreSQL database")
    with closing(psycopg.connect(POSTGRES, autocommit=True)) as connection:
        connection.execute(f"CREATE SCHEMA {project}")
        yield f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}options=-csearch_path%3D{project}"
        connection.execute(f"DROP SCHEMA {project} CASCADE")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@contextmanager
def opened(url: str | Path, *, timeout_seconds: float = 30):
    url = f"sqlite:///{url}" if isinstance(url, Path) else url
    with closing(SqlRegistry(url, timeout_seconds=timeout_seconds)) as registry:
        yield registry


def race(count: int, *arguments: str) -> list[dict]:
    """Let processes do one thing at once; return how each ended, with its name."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(*arguments, f"w{n}")) for n in range(count)]
        for worker in workers:
            worker.expect("ready")
        for worker in workers:
            worker.go()
        return [{**worker.result(), "name": f"w{n}"} for n, worker in enumerate(workers)]


def assert_one_winner(results: list[dict], registry: SqlRegistry, project: str, revision: int):
    winners = [result["name"] for result in results if "done" in result]
    assert len(winners) == 1, results
    losers = [result for result in results if "error" in result]
    assert {result["error"] for result in losers} == {"ConflictError"}
    for result in losers:
        assert f"revision {revision} by '{winners[0]}' at 2013-01-01T12:00:00Z" in result["text"]
    assert registry.revision(project) == revision
    assert registry.changes(project)[0].applied_by == winners[0]
    return winners[0]


@pytest.mark.parametrize("count", [2, 8])
def test_of_processes_that_publish_at_once_one_wins(url: str, project: str, count: int):
    with opened(url) as registry:
        apply(registry, full_state(project))
        results = race(count, "publish", url, project)
        winner = assert_one_winner(results, registry, project, revision=2)
        assert list(registry.state(project).catalog.views) == [winner]
        views = [v.name for v in registry.versions(project, "feature_view")]
        assert views == ["weather", winner]


def test_processes_that_make_the_registry_at_once_make_one(url: str, project: str):
    results = race(8, "publish_first", url, project)
    with opened(url) as registry:
        assert_one_winner(results, registry, project, revision=1)
        assert registry.state(project) == full_state(project, revision=1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE featurestore_projects",
        "INSERT INTO featurestore_versions",
        "INSERT INTO featurestore_changes",
    ],
)
def test_a_publisher_killed_inside_of_its_transaction_leaves_the_former_state(
    url: str, project: str, statement: str
):
    with opened(url) as registry:
        state = apply(registry, full_state(project))
        before = (registry.versions(project), registry.changes(project))
        with Worker("stop_inside", url, project, statement) as worker:
            worker.expect("inside")
            assert registry.state(project) == state
            worker.kill()
        assert registry.state(project) == state
        assert (registry.versions(project), registry.changes(project)) == before
        assert apply(registry, state, by="the next").revision == 2
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_process_killed_while_it_makes_the_tables_blocks_nobody(path: Path, project: str):
    statement = "CREATE TABLE featurestore_ledgers"
    with Worker("stop_inside", f"sqlite:///{path}", project, statement) as worker:
        worker.expect("inside")
        worker.kill()
    with opened(path) as registry:
        assert apply(registry, full_state(project)).revision == 1


def test_a_lock_held_by_another_process_is_told_in_time_and_readers_go_on(path: Path, project: str):
    with opened(path, timeout_seconds=0.3) as registry:
        state = apply(registry, full_state(project))
        with Worker("hold", str(path), "BEGIN IMMEDIATE") as holder:
            holder.expect("holding")
            began = time.monotonic()
            with pytest.raises(RegistryUnavailableError) as caught:
                apply(registry, state)
            assert 0.2 < time.monotonic() - began < 5
            assert str(path) in str(caught.value)
            assert "0.3 s" in str(caught.value)
            assert "Try again" in caught.value.hint
            assert registry.state(project) == state
            assert registry.revision(project) == 1
            holder.go()
            assert holder.result() == {"done": "released"}
        assert apply(registry, state).revision == 2


def test_a_lock_on_a_new_file_is_told_in_time(path: Path, project: str):
    with opened(path, timeout_seconds=0.2) as registry:
        with Worker("hold", str(path), "BEGIN EXCLUSIVE") as holder:
            holder.expect("holding")
            began = time.monotonic()
            with pytest.raises(RegistryUnavailableError, match="lock"):
                registry.revision(project)
            assert time.monotonic() - began < 5
        assert registry.revision(project) == 0


def test_a_registry_crosses_a_fork(url: str, project: str):
    with opened(url) as registry:
        apply(registry, full_state(project))
        with Worker("fork", url, project) as worker:
            assert worker.result() == {"done": [0, 3]}
        assert [c.applied_by for c in registry.changes(project)] == ["parent", "child", ADA]


def test_a_file_that_is_no_database_is_told_and_left_alone(path: Path, project: str):
    content = b"this is no database, it is somebody's text\n" * 200
    path.write_bytes(content)
    with opened(path) as registry:
        for call in (lambda: registry.state(project), lambda: apply(registry, full_state(project))):
            with pytest.raises(StorageError, match="no SQLite database") as caught:
                call()
            assert str(path) in str(caught.value)
            assert caught.value.hint
    assert path.read_bytes() == content


def test_damaged_pages_are_told(path: Path, project: str):
    with opened(path) as registry:
        apply(registry, full_state(project))
    content = path.read_bytes()
    page = int.from_bytes(content[16:18], "big")
    path.write_bytes(content[:page] + b"\xa5" * (len(content) - page))
    with opened(path) as registry, pytest.raises(StorageError, match="damaged"):
        registry.state(project)


def test_a_document_that_is_no_state_is_told(path: Path, project: str):
    with opened(path) as registry:
        apply(registry, full_state(project))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute('UPDATE featurestore_projects SET body = \'{"of": "tomorrow"}\'')
        with pytest.raises(StorageError, match="cannot read") as caught:
            registry.state(project)
        assert str(path) in str(caught.value)


def test_tables_of_somebody_else_are_told(path: Path, project: str):
    with opened(path) as registry:
        registry.revision(project)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("ALTER TABLE featurestore_projects RENAME TO mine")
        with pytest.raises(StorageError, match="no such table"):
            registry.revision(project)


def test_a_registry_of_a_newer_version_is_refused(path: Path, project: str):
    with opened(path) as registry:
        apply(registry, full_state(project))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE featurestore_schema_version SET version = 7")
    with opened(path) as registry:
        with pytest.raises(StorageError) as caught:
            apply(registry, full_state(project, revision=1))
        for part in (str(path), "schema version 7", "schema version 1", "pip install --upgrade"):
            assert part in str(caught.value)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT revision FROM featurestore_projects").fetchall() == [(1,)]


@pytest.mark.parametrize("below", ["a file", "a file/and/deeper"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, project: str, below: str):
    (tmp_path / "a file").write_text("no folder", encoding="utf-8")
    with opened(tmp_path / below / "registry.db") as registry:
        with pytest.raises(StorageError, match="folder cannot be created") as caught:
            apply(registry, full_state(project))
        assert str(tmp_path / below) in str(caught.value)


def test_a_path_that_is_a_folder_is_told(tmp_path: Path, project: str):
    with opened(tmp_path) as registry, pytest.raises(StorageError, match="cannot be opened"):
        registry.revision(project)


@pytest.fixture
def public_folder():
    """A folder that every user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="featurestore-registry-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_told(public_folder: Path, tmp_path: Path, project: str):
    public_folder.chmod(0o555)
    url, warm_up = f"sqlite:///{public_folder}", f"sqlite:///{tmp_path}"
    arguments = (f"{url}/registry.db", project, f"{warm_up}/a.db")
    with Worker("unprivileged", "publish", *arguments) as worker:
        result = worker.result()
    assert result["error"] == "StorageError"
    assert "cannot be opened" in result["text"]
    assert str(public_folder) in result["text"]
    arguments = (f"{url}/deeper/registry.db", project, f"{warm_up}/b.db")
    with Worker("unprivileged", "revision", *arguments) as worker:
        result = worker.result()
    assert result["error"] == "StorageError"
    assert "Permission denied" in result["text"]


def test_a_read_only_file_is_told(public_folder: Path, tmp_path: Path, project: str):
    path = public_folder / "registry.db"
    with opened(path) as registry:
        apply(registry, full_state(project))
    path.chmod(0o444)
    public_folder.chmod(0o777)
    arguments = (f"sqlite:///{path}", project, f"sqlite:///{tmp_path}/warm.db")
    with Worker("unprivileged", "publish", *arguments) as worker:
        result = worker.result()
    assert result["error"] == "StorageError"
    assert "read-only" in result["text"]
    with opened(path) as registry:
        assert registry.revision(project) == 1


def test_a_full_disk_is_told_and_changes_nothing(path: Path, project: str):
    with opened(path) as registry:
        apply(registry, full_state(project))
    with Worker("small_disk", f"sqlite:///{path}", project, "150000") as worker:
        result = worker.result()
        assert result["error"] == "StorageError"
        assert str(path) in result["text"]
        assert worker.result() == {"done": True}
    with opened(path) as registry:
        assert registry.state(project) == full_state(project, revision=1)


def test_a_registry_that_was_deleted_and_made_anew_is_noticed(tmp_path: Path, project: str):
    """What is written to a deleted file is lost: a long-lived process must not go on with it."""
    path = tmp_path / "data" / "registry.db"
    with opened(path) as server, opened(path) as other:
        state = apply(server, full_state(project))
        shutil.rmtree(path.parent)
        assert server.revision(project) == 0
        apply(other, with_views(state.model_copy(update={"revision": 0}), view_plan("n", "00")))
        assert list(server.state(project).catalog.views) == ["n"]
        with pytest.raises(ConflictError):
            apply(server, full_state(project))
        assert len(other.changes(project)) == 1
