"""The registry's methods as statements; each is one transaction.

Documents are JSON text. Compare-and-swap is an UPDATE that names the expected revision, or an
INSERT that yields to a row which is there: the database decides who is first.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Insert, Table, Update, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from featurestore.adapters.sql_registry.database import Database
from featurestore.adapters.sql_registry.location import parse_location
from featurestore.adapters.sql_registry.schema import (
    PROJECT_TABLES,
    changes,
    ledgers,
    projects,
    runs,
    snapshots,
    versions,
)
from featurestore.clock import Clock, SystemClock
from featurestore.compile.plan import Catalog
from featurestore.errors import StorageError
from featurestore.ports.engine import SourceFile
from featurestore.ports.registry import Change, Ledger, ProjectState, Run, RunState, Version
from featurestore.ports.registry_laws import (
    definition_versions,
    ledger_conflict,
    listing_id,
    listing_tokens,
    publish_conflict,
)

_Model = TypeVar("_Model", bound=BaseModel)


class SqlRegistry:
    """A registry in a SQLite file or a PostgreSQL database, opened on first use.

    May be used by many threads and by many processes at once; a fork opens connections of its own.

    Args:
        url: `sqlite:///path` relative to `base_folder`, `sqlite:////path`, or
            `postgresql://user@host:port/database`.
        password: Of the PostgreSQL user; goes before one in the URL.
        timeout_seconds: How long to wait for a lock or a connection.
        base_folder: What a relative path is relative to.
        clock: Measures waits.

    Raises:
        SettingsError: The URL is of no known kind. At first use: its driver is not installed, or
            the server has no such database.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str | None = None,
        timeout_seconds: float = 10.0,
        base_folder: str | Path = ".",
        clock: Clock | None = None,
    ) -> None:
        location = parse_location(url, password, Path(base_folder))
        self._where = location.label
        self._insert = sqlite.insert if location.path is not None else postgresql.insert
        self._database = Database(location, timeout_seconds, clock or SystemClock())

    def __repr__(self) -> str:
        return f"SqlRegistry({self._where!r})"

    def revision(self, project: str) -> int:
        """See `Registry.revision`."""
        with self._database.read() as connection:
            return _revision(connection, project)

    def state(self, project: str) -> ProjectState:
        """See `Registry.state`."""
        with self._database.read() as connection:
            body = connection.scalar(select(projects.c.body).where(projects.c.project == project))
        if body is None:
            return ProjectState(catalog=Catalog(project=project))
        return self._parse(ProjectState, body)

    def publish(
        self, state: ProjectState, *, applied_by: str, applied_at_us: int, summary: str
    ) -> ProjectState:
        """See `Registry.publish`."""
        project = state.catalog.project
        after = state.model_copy(update={"revision": state.revision + 1})
        change = Change(
            revision=after.revision,
            applied_by=applied_by,
            applied_at_us=applied_at_us,
            summary=summary,
        )
        rows = [
            {
                "project": project,
                "position": position,
                **version.model_dump(exclude={"applied_by", "applied_at_us"}),
            }
            for position, version in enumerate(
                definition_versions(after, applied_by, applied_at_us)
            )
        ]
        values = {"revision": after.revision, "body": after.model_dump_json()}
        with self._database.write() as connection:
            key = {"project": project}
            if not self._swap(connection, projects, key, state.revision, values):
                raise self._lost(connection, project, state.revision)
            if rows:
                connection.execute(self._insert(versions).on_conflict_do_nothing(), rows)
            line = {"project": project, "revision": change.revision, "body": _json(change)}
            connection.execute(changes.insert(), line)
        return after

    def versions(
        self, project: str, kind: str | None = None, name: str | None = None
    ) -> list[Version]:
        """See `Registry.versions`."""
        table = versions.c
        query = (
            select(table.kind, table.name, table.fingerprint, table.body, changes.c.body)
            .join_from(
                versions,
                changes,
                (changes.c.project == table.project) & (changes.c.revision == table.revision),
            )
            .where(table.project == project)
            .order_by(table.revision, table.position)
        )
        if kind is not None:
            query = query.where(table.kind == kind)
        if name is not None:
            query = query.where(table.name == name)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        lines = {line: self._parse_small(Change, line) for line in {row[4] for row in found}}
        return [
            Version(
                kind=kind_,
                name=name_,
                fingerprint=fingerprint,
                body=body,
                **lines[line].model_dump(exclude={"summary"}),
            )
            for kind_, name_, fingerprint, body, line in found
        ]

    def changes(self, project: str, limit: int = 100) -> list[Change]:
        """See `Registry.changes`."""
        query = (
            select(changes.c.body)
            .where(changes.c.project == project)
            .order_by(changes.c.revision.desc())
            .limit(max(limit, 0))
        )
        with self._database.read() as connection:
            found = connection.scalars(query).all()
        return [self._parse_small(Change, body) for body in found]

    def ledger(self, project: str, view: str, table_fingerprint: str) -> Ledger:
        """See `Registry.ledger`."""
        key = _ledger_key(project, view, table_fingerprint)
        with self._database.read() as connection:
            body = connection.scalar(select(ledgers.c.body).where(*_equal(ledgers, key)))
        return Ledger() if body is None else self._parse(Ledger, body)

    def write_ledger(
        self, project: str, view: str, table_fingerprint: str, ledger: Ledger
    ) -> Ledger:
        """See `Registry.write_ledger`."""
        after = ledger.model_copy(update={"version": ledger.version + 1})
        key = _ledger_key(project, view, table_fingerprint)
        values = {"version": after.version, "body": after.model_dump_json()}
        with self._database.write() as connection:
            if not self._swap(connection, ledgers, key, ledger.version, values):
                found = connection.scalar(select(ledgers.c.version).where(*_equal(ledgers, key)))
                raise ledger_conflict(
                    view, table_fingerprint, ledger.version, found or 0, self._where
                )
        return after

    def delete_ledger(self, project: str, view: str, table_fingerprint: str) -> None:
        """See `Registry.delete_ledger`."""
        key = _ledger_key(project, view, table_fingerprint)
        with self._database.write() as connection:
            connection.execute(delete(ledgers).where(*_equal(ledgers, key)))

    def save_snapshot(self, project: str, files: Sequence[SourceFile]) -> str:
        """See `Registry.save_snapshot`."""
        tokens = listing_tokens(files)
        snapshot = listing_id(tokens)
        # ASCII: a path that is no valid UTF-8 comes back as it was.
        body = zlib.compress(json.dumps(tokens).encode("ascii"))
        row = {"project": project, "id": snapshot, "body": body}
        with self._database.write() as connection:
            connection.execute(self._insert(snapshots).on_conflict_do_nothing(), row)
        return snapshot

    def load_snapshot(self, project: str, snapshot: str) -> dict[str, str]:
        """See `Registry.load_snapshot`."""
        if not snapshot:
            return {}
        key = {"project": project, "id": snapshot}
        with self._database.read() as connection:
            body = connection.scalar(select(snapshots.c.body).where(*_equal(snapshots, key)))
        if body is None:
            raise StorageError(
                f"Project '{project}' has no file listing '{snapshot}'.", where=self._where
            )
        try:
            tokens: dict[str, str] = json.loads(zlib.decompress(body))
        except (zlib.error, ValueError) as error:
            raise self._unreadable(f"a file listing: {error}") from error
        return tokens

    def save_run(self, project: str, run: Run) -> None:
        """See `Registry.save_run`."""
        row = {
            "project": project,
            "id": run.id,
            "view": run.view,
            "state": run.state,
            "started_at_us": run.started_at_us,
            "body": _json(run),
        }
        statement = self._insert(runs)
        replaced = {name: statement.excluded[name] for name in row if name not in {"project", "id"}}
        upsert = statement.on_conflict_do_update(index_elements=["project", "id"], set_=replaced)
        with self._database.write() as connection:
            connection.execute(upsert, row)

    def bury_run(self, project: str, run: Run) -> bool:
        """See `Registry.bury_run`."""
        running = (
            update(runs)
            .where(runs.c.project == project, runs.c.id == run.id, runs.c.state == "running")
            .values(
                view=run.view, state=run.state, started_at_us=run.started_at_us, body=_json(run)
            )
        )
        with self._database.write() as connection:
            return connection.execute(running).rowcount == 1

    def runs(
        self,
        project: str,
        view: str | None = None,
        *,
        state: RunState | None = None,
        limit: int = 100,
    ) -> list[Run]:
        """See `Registry.runs`."""
        query = select(runs.c.body).where(runs.c.project == project)
        if view is not None:
            query = query.where(runs.c.view == view)
        if state is not None:
            query = query.where(runs.c.state == state)
        query = query.order_by(runs.c.started_at_us.desc(), runs.c.id.desc()).limit(max(limit, 0))
        with self._database.read() as connection:
            found = connection.scalars(query).all()
        return [self._parse_small(Run, body) for body in found]

    def delete_project(self, project: str) -> None:
        """See `Registry.delete_project`."""
        with self._database.write() as connection:
            for table in PROJECT_TABLES:
                connection.execute(delete(table).where(table.c.project == project))

    def close(self) -> None:
        """See `Registry.close`; the next use opens new ones."""
        self._database.close()

    def _swap(
        self,
        connection: Connection,
        table: Table,
        key: dict[str, str],
        expected: int,
        values: dict[str, Any],
    ) -> bool:
        """Write a row if its counter, the first of `values`, is still as expected; 0 is no row."""
        statement: Insert | Update
        if expected == 0:
            statement = self._insert(table).values({**key, **values}).on_conflict_do_nothing()
        else:
            counter = table.c[next(iter(values))]
            statement = update(table).where(*_equal(table, key), counter == expected).values(values)
        done = connection.execute(statement.execution_options(preserve_rowcount=True))
        return done.rowcount == 1

    def _lost(self, connection: Connection, project: str, expected: int) -> Exception:
        key = {"project": project, "revision": expected + 1}
        line = connection.scalar(select(changes.c.body).where(*_equal(changes, key)))
        winner = None if line is None else self._parse_small(Change, line)
        found = _revision(connection, project)
        return publish_conflict(project, expected, found, winner, self._where)

    def _parse(self, model: type[_Model], body: str) -> _Model:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise self._unreadable(f"{model.__name__}: {error}") from error

    def _parse_small(self, model: type[_Model], body: str) -> _Model:
        try:
            return model.model_validate(json.loads(body))
        except (ValidationError, ValueError) as error:
            raise self._unreadable(f"{model.__name__}: {error}") from error

    def _unreadable(self, got: str) -> StorageError:
        return StorageError(
            "The registry holds a document that this version cannot read.",
            where=self._where,
            got=" ".join(got.split()),
            hint="Install the version of featurestore that wrote it, or the newest.",
        )


def _revision(connection: Connection, project: str) -> int:
    query = select(projects.c.revision).where(projects.c.project == project)
    return connection.scalar(query) or 0


def _ledger_key(project: str, view: str, table_fingerprint: str) -> dict[str, str]:
    return {"project": project, "view": view, "table_fingerprint": table_fingerprint}


def _equal(table: Table, key: dict[str, Any]) -> list[Any]:
    return [table.c[name] == value for name, value in key.items()]


def _json(model: BaseModel) -> str:
    # ASCII, unlike pydantic's: an error's text may carry a path that is no valid UTF-8.
    return json.dumps(model.model_dump())
