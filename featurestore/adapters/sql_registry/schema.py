"""The registry's tables, alike in SQLite and PostgreSQL.

What is looked up stands in columns; documents stand as JSON text. Names carry a prefix, because a
team's database may hold other things. Text is ordered by its bytes, not by the server's language.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
)
from sqlalchemy.dialects import postgresql

# Written into every registry. Raise it with any change of these tables or of the JSON in them that
# an older program could not read.
SCHEMA_VERSION = 1

metadata = MetaData()


def _text(name: str) -> Column[str]:
    kind = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
    return Column(name, kind, nullable=False)


def _integer(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


schema_version = Table(
    "featurestore_schema_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _integer("version"),
)

projects = Table(
    "featurestore_projects",
    metadata,
    _text("project"),
    _integer("revision"),
    _text("body"),
    PrimaryKeyConstraint("project"),
)

versions = Table(
    "featurestore_versions",
    metadata,
    _text("project"),
    _text("kind"),
    _text("name"),
    _text("fingerprint"),
    _integer("revision"),
    _integer("position"),
    _text("body"),
    PrimaryKeyConstraint("project", "kind", "name", "fingerprint"),
    Index("featurestore_versions_order", "project", "revision", "position"),
)

changes = Table(
    "featurestore_changes",
    metadata,
    _text("project"),
    _integer("revision"),
    _text("body"),
    PrimaryKeyConstraint("project", "revision"),
)

ledgers = Table(
    "featurestore_ledgers",
    metadata,
    _text("project"),
    _text("view"),
    _text("table_fingerprint"),
    _integer("version"),
    _text("body"),
    PrimaryKeyConstraint("project", "view", "table_fingerprint"),
)

snapshots = Table(
    "featurestore_snapshots",
    metadata,
    _text("project"),
    _text("id"),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("project", "id"),
)

runs = Table(
    "featurestore_runs",
    metadata,
    _text("project"),
    _text("id"),
    _text("view"),
    _text("state"),
    _integer("started_at_us"),
    _text("body"),
    PrimaryKeyConstraint("project", "id"),
    Index("featurestore_runs_order", "project", "started_at_us", "id"),
)

# In the order in which a project is deleted: its row first, because publishers wait for that one.
PROJECT_TABLES = (projects, versions, changes, ledgers, snapshots, runs)
