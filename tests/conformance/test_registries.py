"""Every registry against one suite and one model: memory, SQLite, and PostgreSQL when there is one.

PostgreSQL is tested when FEATURESTORE_TEST_POSTGRES_URL names a database, such as
`postgresql://user:password@127.0.0.1:5432/test`. The tests leave its tables there and empty.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import sqlite3
import sys
import tempfile
import traceback
import uuid
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from pydantic import BaseModel

from featurestore.adapters.memory_registry import MemoryRegistry
from featurestore.adapters.sql_registry import SqlRegistry
from featurestore.errors import (
    AuthenticationError,
    RegistryUnavailableError,
    SettingsError,
    StorageError,
)
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Ledger, LedgerEntry, Registry
from featurestore.testing.registry import RegistrySuite, registry_machine
from featurestore.testing.registry_samples import full_run, full_state

POSTGRES = os.environ.get("FEATURESTORE_TEST_POSTGRES_URL", "")
NO_POSTGRES = "FEATURESTORE_TEST_POSTGRES_URL names no PostgreSQL database"

_bounded = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class TestMemory(RegistrySuite):
    @pytest.fixture
    def registry(self):
        return MemoryRegistry()


class TestSqlite(RegistrySuite):
    @pytest.fixture
    def registry(self, tmp_path: Path):
        registry = SqlRegistry("sqlite:///data/registry.db", base_folder=tmp_path)
        yield registry
        registry.close()


@pytest.mark.skipif(not POSTGRES, reason=NO_POSTGRES)
class TestPostgres(RegistrySuite):
    @pytest.fixture
    def registry(self):
        registry = SqlRegistry(POSTGRES)
        yield registry
        registry.close()


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    _SqliteFiles.folder = tmp_path_factory.mktemp("registries")


class _SqliteFiles:
    """Gives each example of the machine a file of its own."""

    folder = Path(tempfile.gettempdir())
    numbers = itertools.count()

    @classmethod
    def new(cls) -> Registry:
        return SqlRegistry(f"sqlite:///{next(cls.numbers)}.db", base_folder=cls.folder)


def _machine(factory):
    case = registry_machine(factory).TestCase
    case.settings = _bounded
    return case


TestMemoryMachine = _machine(MemoryRegistry)
TestSqliteMachine = _machine(_SqliteFiles.new)
if POSTGRES:
    TestPostgresMachine = _machine(lambda: SqlRegistry(POSTGRES))


class TestLocation:
    """Which database a URL names, and what is said when it names none."""

    def test_nothing_is_touched_before_the_first_use(self, tmp_path: Path):
        registry = SqlRegistry("sqlite:///data/deep/registry.db", base_folder=tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert registry.revision("p") == 0
        assert (tmp_path / "data/deep/registry.db").is_file()
        registry.close()

    def test_a_path_with_four_slashes_is_absolute(self, tmp_path: Path):
        path = tmp_path / "100% größe #1.db"
        registry = SqlRegistry(f"sqlite:///{path}", base_folder="/nowhere")
        assert repr(registry) == f"SqlRegistry('sqlite:///{path}')"
        registry.revision("p")
        registry.close()
        assert path.is_file()

    def test_readers_and_writers_of_a_file_do_not_wait_for_each_other(self, tmp_path: Path):
        with closing(SqlRegistry("sqlite:///r.db", base_folder=tmp_path)) as registry:
            registry.revision("p")
        with closing(sqlite3.connect(tmp_path / "r.db")) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    @pytest.mark.parametrize(
        "url",
        [
            "mysql://u:secret@h/db",
            "postgres://u:secret@h/db",
            "postgresql://u:secret@h:port/db",
            "postgresql://u:secret@[::1/db",
            "sqlite://",
            "sqlite:///",
            "sqlite:///a.db?mode=ro",
            "u:secret@h",
            "",
        ],
    )
    def test_other_urls_are_refused_without_their_password(self, url: str):
        with pytest.raises(SettingsError) as caught:
            SqlRegistry(url)
        assert "secret" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.allowed

    def test_passwords_are_masked(self):
        url = "postgresql://u:secret@h:1/db?sslpassword=secret&application_name=a"
        shown = repr(SqlRegistry(url, password="secret"))  # noqa: S106 - it is what must not show
        assert shown == (
            "SqlRegistry('postgresql://u:***@h:1/db?application_name=a&sslpassword=***')"
        )
        assert "secret" not in repr(SqlRegistry("postgresql://u@h/db", password="secret"))  # noqa: S106

    def test_a_missing_driver_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "psycopg", None)
        registry = SqlRegistry("postgresql://u:secret@h/db")
        with pytest.raises(SettingsError) as caught:
            registry.revision("p")
        assert "featurestore[postgres]" in str(caught.value)
        assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_is_not_there_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"postgresql://u:secret@127.0.0.1:{taken.getsockname()[1]}/db"
        with pytest.raises(RegistryUnavailableError) as caught:
            SqlRegistry(url, timeout_seconds=2).state("p")
    assert "refused" in str(caught.value)
    assert caught.value.where == url.replace("secret", "***")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_full_disk_is_told_by_its_name(tmp_path: Path):
    from sqlalchemy import Pool, event

    def shrink(connection, _record) -> None:
        connection.execute("PRAGMA max_page_count = 30")

    event.listen(Pool, "connect", shrink)
    try:
        with closing(SqlRegistry("sqlite:///r.db", base_folder=tmp_path)) as registry:
            files = [
                SourceFile(hashlib.sha256(n.to_bytes(2, "big")).hexdigest(), "t")
                for n in range(5_000)
            ]
            with pytest.raises(StorageError, match="full disk"):
                registry.save_snapshot("p", files)
            assert registry.revision("p") == 0
    finally:
        event.remove(Pool, "connect", shrink)


@pytest.mark.skipif(not POSTGRES, reason=NO_POSTGRES)
class TestPostgresFailures:
    """What a server says no to, in our words."""

    @staticmethod
    def url(**changes: str) -> str:
        from sqlalchemy import make_url

        return make_url(POSTGRES).set(**changes).render_as_string(hide_password=False)

    def test_a_wrong_password_is_an_authentication_error(self):
        registry = SqlRegistry(POSTGRES, password="no such secret")  # noqa: S106
        with pytest.raises(AuthenticationError) as caught:
            registry.revision("p")
        assert "FEATURESTORE_REGISTRY_PASSWORD" in str(caught.value)
        assert "no such secret" not in "".join(traceback.format_exception(caught.value))

    def test_the_password_of_the_settings_goes_before_the_one_in_the_url(self):
        url = self.url(password="wrong")  # noqa: S106
        right = psycopg.conninfo.conninfo_to_dict(POSTGRES)["password"]
        with closing(SqlRegistry(url, password=right)) as registry:
            assert registry.revision("p") == 0

    def test_a_missing_database_is_told(self):
        with pytest.raises(SettingsError, match="does not exist"):
            SqlRegistry(self.url(database="no_such_database")).revision("p")

    def test_a_read_only_server_is_told_and_can_be_read(self):
        read_only = {"options": "-cdefault_transaction_read_only=on"}
        with closing(SqlRegistry(POSTGRES)) as registry:
            registry.revision("p")
        with closing(SqlRegistry(self.url(query=read_only))) as registry:
            assert registry.revision("p") == 0
            with pytest.raises(StorageError, match="read-only"):
                registry.publish(full_state("p"), applied_by="a", applied_at_us=0, summary="")

    def test_a_row_locked_by_another_session_is_told_in_time(self):
        project = f"p{uuid.uuid4().hex[:12]}"
        with (
            closing(SqlRegistry(POSTGRES, timeout_seconds=0.2)) as registry,
            closing(psycopg.connect(POSTGRES)) as other,
        ):
            state = registry.publish(
                full_state(project), applied_by="a", applied_at_us=0, summary=""
            )
            query = "SELECT 1 FROM featurestore_projects WHERE project = %s FOR UPDATE"
            other.execute(query, (project,))
            with pytest.raises(RegistryUnavailableError, match="another session holds a lock"):
                registry.publish(state, applied_by="a", applied_at_us=0, summary="")
            assert registry.revision(project) == 1
            other.rollback()
            registry.delete_project(project)

    def test_connections_that_the_server_ended_are_replaced(self):
        with (
            closing(SqlRegistry(self.url(query={"options": "-cgeqo=off"}))) as registry,
            closing(psycopg.connect(POSTGRES, autocommit=True)) as other,
        ):
            assert registry.revision("p") == 0
            ended = other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'featurestore' AND pid <> pg_backend_pid()"
            ).fetchall()
            assert ended
            assert registry.revision("p") == 0

    def test_a_name_that_the_server_cannot_keep_is_told(self):
        with (
            closing(SqlRegistry(POSTGRES)) as registry,
            pytest.raises(StorageError, match="cannot keep a value"),
        ):
            registry.revision("p\0")


def _defaults(model: BaseModel, where: str) -> list[str]:
    """Return the fields, at any depth, that are as their models would have them anyway."""
    found = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if not field.is_required() and value == field.get_default(call_default_factory=True):
            found.append(f"{where}.{name}")
        held = value.values() if isinstance(value, dict) else value
        items = [held] if isinstance(held, BaseModel) else held
        if isinstance(items, str) or not hasattr(items, "__iter__"):
            continue
        for item in items:
            if isinstance(item, BaseModel):
                found += _defaults(item, f"{where}.{name}")
    return found


def test_the_suite_tells_every_field_from_its_default():
    """A field that is new in a plan must get a value in the samples, or no round trip shows it."""
    state = full_state("p", revision=1)
    ignored = {
        "state.catalog.views.features.expression",
        "state.catalog.views.features.description",
    }
    ignored |= {"state.serving.features.expression", "state.serving.features.description"}
    for on_demand in ("state.catalog.on_demand", "state.former_on_demand"):
        ignored |= {f"{on_demand}.features.{x}" for x in ("expression", "description")}
    assert set(_defaults(state, "state")) - ignored == set()
    feature = state.catalog.views["weather"].features
    assert feature[0].description
    assert feature[1].expression
    assert _defaults(full_run(), "run") == []
    assert set(Ledger.model_fields) == {"version", "entries", "pushed_until_us", "open_runs"}
    assert set(LedgerEntry.model_fields) == {
        "start", "end", "snapshot", "logged", "history",
    }  # fmt: skip
