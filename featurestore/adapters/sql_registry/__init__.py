"""A registry in a SQLite file or a PostgreSQL database."""

from featurestore.adapters.sql_registry.registry import SqlRegistry

__all__ = ["SqlRegistry"]
